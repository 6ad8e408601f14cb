"""The task of detection: pictures to boxes with classes and scores."""

import abc
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import keras
import numpy as np
from keras import ops

from tiffin.export.errors import InputError, optional
from tiffin.export.files import write_text
from tiffin.export.metadata import LABELS_FILE, labels_text
from tiffin.export.proposals import PROPOSALS
from tiffin.layers import NonMaxSuppression, RelativeDetections, RuntimeSuppression
from tiffin.recipes.engine import backbones, box_augmentation, detection_metrics, registry, report
from tiffin.recipes.engine.box_data import BoxData, BoxSplit, load_boxes, truth
from tiffin.recipes.engine.image_recipe import ImageRecipe
from tiffin.recipes.engine.optimizers import OptimizerName
from tiffin.recipes.engine.weights import Source

_SHOWN = 0.3  # score from which a detection is drawn and counted as said


class Detector(keras.Model):
    """A network to raw heads, with the loss of its paper.

    Args:
        network: a model from `image` to a dictionary of raw outputs.
        criterion: a function of targets (`boxes` float `[batch, n, 4]`, `classes` int
            `[batch, n]`, -1 where there is nothing) and raw outputs to a dictionary of scalars,
            whose sum is the loss.
        parts: the names in that dictionary.
        trained: the part of the network whose raw outputs the loss is for, mostly the whole.
        **tracked: what else the loss computes with: further models, generators of numbers.
    """

    def __init__(self, network, criterion: Callable, parts: Sequence[str], trained, **tracked):
        super().__init__(name=network.name)
        self.network, self.criterion, self.trained = network, criterion, trained
        self.parts = [keras.metrics.Mean(name=name) for name in parts]
        for name, value in tracked.items():
            setattr(self, name, value)
        self.build(trained.input_shape)

    def call(self, inputs, training=None):
        return self.trained(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        values = self.criterion(y, y_pred, training)
        for part in self.parts:
            part.update_state(values[part.name])
        return sum(values.values())

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return self.get_metrics_result()


@dataclasses.dataclass
class Detection(ImageRecipe):
    """A network from images to boxes."""

    data: str = "digits"
    """`digits` (embedded scenes), a folder in Pascal VOC, COCO or YOLO form, or a TFDS name such as
    voc/2007."""
    backbone: str | None = None
    """A network of the classification collection to stand under the detector; default: the
    variant's own. `tiffin list` shows all."""
    alpha: float | None = None
    """Width multiplier of the backbone, where it has one."""
    batch_size: int = 16
    optimizer: OptimizerName = "adam"
    learning_rate: float = 2e-3
    augment: tuple[str, ...] = ("scale:0.2", "color_jitter")
    """In order, each with an optional strength, such as zoom_out:2: mosaic, iou_crop, zoom_out,
    scale, horizontal_flip, vertical_flip, color_jitter, noise."""
    score_threshold: float = 0.01
    """Detections below this score are dropped, in the exported files too."""
    iou_threshold: float = 0.45
    """Of two boxes of a class that overlap by more than this only the surer one stays."""
    detections: int = 100
    """Most detections in a picture."""
    coordinates: Literal["pixels", "relative"] = "pixels"
    """Of the boxes in exported files: pixels of the input, or shares of its sides with all outputs
    as float32, as in TFLite's own detectors, which MediaPipe opens."""
    suppression: Literal["inside", "runtime", "none"] = "inside"
    """Of overlapping boxes in exported files: inside, by operations that every runtime has; by the
    runtime's own operator; or none, which leaves all boxes and scores to the app."""
    max_loss: float = 0.02
    """How much mAP50 an fp16 or int8 file may lose; one that loses more is not handed out."""

    task: ClassVar[str] = "detection"
    mirrored: ClassVar[bool] = False
    monitor: ClassVar[tuple[str, str]] = ("val_loss", "min")
    make_augmenter: ClassVar[Callable] = staticmethod(box_augmentation.augmenter)
    limits: ClassVar = ImageRecipe.limits | {"detections": (1, math.inf)}
    parts: ClassVar[tuple[str, ...]]  # names of the losses
    # By variant the network of the classification collection under it, and its options.
    bodies: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}

    def check(self) -> None:
        super().check()
        for name in ("score_threshold", "iou_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: from 0 to below 1."
                )
        if self.suppression == "none" and self.coordinates == "relative":
            raise InputError("--coordinates relative is not for files with --suppression none.")
        if self.backbone and registry.find(self.backbone).task != "classification":
            raise InputError(f"--backbone {self.backbone} is no classification network.")
        optional("pycocotools", "Detection")  # at the very end, to evaluate

    @property
    def default_size(self) -> int:
        return sys.modules[type(self).__module__].VARIANTS[self.model][1]

    def load_data(self) -> BoxData:
        size = self.image_size or self.default_size
        return load_boxes(self.data, self.data_dir, size, self.seed)

    def call_builder(self, input_shape, normalization, **options) -> keras.Model:
        if self.built_with:
            options["backbone_options"] = self.built_with
        return super().call_builder(input_shape, normalization, **options)

    @property
    def backbone_network(self) -> tuple[str | None, dict[str, Any]]:
        """The network under this detector and its options; None for a body of the paper's own."""
        own = self.bodies.get(self.model, (None, {}))
        options = {"alpha": self.alpha, "backbone_options": self.built_with}
        return backbones.choose(own, backbone=self.backbone, **options)

    def published(self):
        known, _ = super().published()
        name, options = self.backbone_network
        if self.weights == "imagenet":
            backbones.require_published(self.model, name, options)
        if not name:
            return known, self.model
        known = known | backbones.collections(name)
        return known, name if self.weights == "imagenet" else self.model

    def load(self, model: keras.Model, source: Source) -> list[str]:
        """Load a detector's weights, or those of the network under it into that part."""
        name, options = self.backbone_network
        network = self.body(model)
        said = backbones.load(network, name, options, source) if name else None
        return said or super().load(model, source)

    @abc.abstractmethod
    def losses(self, targets: Mapping, outputs: Mapping, training: bool = False) -> dict:
        """Return the parts of the loss, scalars by name."""

    def trained(self, network: keras.Model) -> tuple[keras.Model, dict[str, Any]]:
        """Return the part of a network that the loss is for, and what else it computes with."""
        return network, {}

    @abc.abstractmethod
    def decode(self, outputs: Mapping) -> tuple:
        """Return (boxes `[batch, n, 4]` in pixels, scores `[batch, n, classes]`), by layers that
        can be saved."""

    @abc.abstractmethod
    def raw(self, input_shape: tuple[int, int, int], classes: int, normalization) -> keras.Model:
        """Return the network from pictures to its raw heads."""

    def network(self, input_shape, classes, normalization) -> keras.Model:
        network = self.raw(input_shape, classes, normalization)
        trained, tracked = self.trained(network)
        return Detector(network, self.losses, self.parts, trained, **tracked)

    def body(self, model: keras.Model) -> keras.Model:
        return model.network if isinstance(model, Detector) else model

    def inference(self, model: keras.Model) -> keras.Model:
        network = self.body(model)
        boxes, scores = self.decode(network.output)
        found = self.suppress(boxes, scores)
        return keras.Model(network.input, found, name=network.name)

    @property
    def suppress(self) -> NonMaxSuppression:
        """What chooses among all boxes."""
        return NonMaxSuppression(
            self.detections,
            self.iou_threshold,
            self.score_threshold,
            max(300, self.detections),
            name="detections",
        )

    def exported(self, model: keras.Model) -> keras.Model:
        boxes, scores = model.get_layer("detections").input
        if self.suppression == "none":
            return keras.Model(model.input, {"boxes": boxes, "scores": scores}, name=model.name)
        if self.suppression == "runtime":
            limits = self.detections, self.iou_threshold, self.score_threshold
            found = RuntimeSuppression(*limits, name="detections")(boxes, scores)
            model = keras.Model(model.input, found, name=model.name)
        if self.coordinates == "pixels":
            return model
        relative = RelativeDetections(model.inputs[0].shape[1:3], name="relative")
        return keras.Model(model.input, relative(model.output), name=model.name)

    def objective(self) -> dict[str, Any]:
        return {"loss": None}

    def introduce(self, batches, data: BoxData, directory: Path) -> None:
        write_text(directory / LABELS_FILE, labels_text(data.classes))
        images, targets = next(iter(batches.take(1).as_numpy_iterator()))[:2]
        drawn = []
        for boxes, kinds in zip(targets["boxes"][:20], targets["classes"][:20], strict=True):
            names = [data.classes[k] for k in kinds[kinds >= 0]]
            drawn.append((np.zeros((0, 4)), boxes[kinds >= 0], names))
        heading = "A training batch, augmented"
        report.boxes(images[:20], drawn, heading, directory / "augmented.png")

    def evaluate(self, model: keras.Model, data: BoxData, directory: Path) -> dict[str, Any]:
        """Return mAP of VOC and COCO, a table of classes, kinds of mistakes, images a second."""
        found, index, rate = detect(model, data.test)
        split = data.test.take(index)
        real = truth(split)
        count = len(data.classes)
        ap, curves = detection_metrics.voc(real, found, count)
        ap11, _ = detection_metrics.voc(real, found, count, points=11)
        wrong, matrix = detection_metrics.mistakes(real, found, count, _SHOWN)
        report.precision_recall(curves, ap, data.classes, directory / "precision_recall.png")
        report.confusion(matrix, [*data.classes, "background"], directory / "confusion.png")
        draw(split, found, data.classes, directory / "detections.png")
        objects = [sum(int((t["classes"] == k).sum()) for t in real) for k in range(count)]
        result = {
            "map50": mean(ap),
            "map50_11_points": mean(ap11),
            "coco": {n: finite(v) for n, v in detection_metrics.coco(real, found, count).items()},
            "mistakes": wrong,
            "images_per_second": rate,
            "examples": len(real),
            "classes": {
                name: {"AP50": finite(ap[k]), "objects": objects[k]}
                for k, name in enumerate(data.classes)
            },
        }
        print(
            f"Test: mAP50 {result['map50']:.2%}, COCO AP {result['coco']['AP'] or 0:.2%} of "
            f"{len(real)} images; at score {_SHOWN}: "
            + ", ".join(f"{number} {kind}" for kind, number in wrong.items())
        )
        return result

    def mean_average_precision(self, outputs: Mapping[str, np.ndarray], targets) -> float:
        """Return VOC's mAP50 of the outputs of a file that leaves all boxes and scores."""
        parts = range(0, len(outputs["scores"]), 32)  # pairs of boxes take memory
        found = [
            self.suppress(outputs["boxes"][i : i + 32], outputs["scores"][i : i + 32])
            for i in parts
        ]
        joined = {
            name: np.concatenate([ops.convert_to_numpy(some[name]) for some in found])
            for name in found[0]
        }
        return mean_average_precision(joined, targets)

    def export_options(self, data: BoxData, test: dict[str, Any]) -> dict[str, Any]:
        inputs, index = data.test.inputs(1000, self.seed)
        split = data.test.take(index)
        targets = {n: getattr(split, n) for n in ("boxes", "classes", "difficult")}
        if self.coordinates == "relative":
            targets["boxes"] = targets["boxes"] / np.tile(split.size, 2)
        left = self.suppression == "none"
        metric = self.mean_average_precision if left else mean_average_precision
        return super().export_options(data, test) | {
            "evaluation": (inputs, targets),
            "metric": metric,
            "labels": data.classes,
            "max_loss": self.max_loss,
        }


def finite(value: float) -> float | None:
    """Return a figure as JSON can hold it: None where there was nothing to measure."""
    return float(value) if np.isfinite(value) else None


def mean(values: np.ndarray) -> float:
    """Return the mean over the classes that have objects."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def unpadded(outputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return a detector's outputs picture by picture, without the places beyond `count`."""
    return [
        {name: outputs[name][i, :n] for name in ("boxes", "scores", "classes")}
        for i, n in enumerate(np.asarray(outputs["count"], int))
    ]


def mean_average_precision(
    outputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
) -> float:
    """Return VOC's mAP50 of a file's outputs, all in pixels of the input.

    Args:
        outputs: `boxes`, `scores`, `classes`, `count`.
        targets: `boxes`, `classes` (-1 where there is nothing) and `difficult`.
    """
    real = [
        {name: targets[name][i][kinds >= 0] for name in ("boxes", "classes", "difficult")}
        for i, kinds in enumerate(targets["classes"])
    ]
    count = int(targets["classes"].max(initial=0)) + 1
    return mean(detection_metrics.voc(real, unpadded(outputs), count)[0])


def detect(
    model: keras.Model, split: BoxSplit
) -> tuple[list[dict[str, np.ndarray]], np.ndarray, float]:
    """Return what a model finds, in pixels of the original pictures.

    Returns:
        (detections of each readable picture, which pictures of the split these are, pictures a
        second).
    """
    found, index, spent = [], [], 0.0
    for images, targets in split.batches(32).as_numpy_iterator():
        given = {"image": images} | {k: v for k, v in targets.items() if k == PROPOSALS}
        inputs = given if len(model.inputs) > 1 else images
        if not found:
            model.predict_on_batch(inputs)  # the first call compiles
        start = time.perf_counter()
        outputs = model.predict_on_batch(inputs)
        outputs = {name: ops.convert_to_numpy(value) for name, value in outputs.items()}
        spent += time.perf_counter() - start
        for place, seen in zip(targets["index"], unpadded(outputs), strict=True):
            found.append(seen | {"boxes": split.frames[place].back(seen["boxes"])})
            index.append(int(place))
    return found, np.array(index, int), len(found) / spent


def draw(split: BoxSplit, found, classes, path: Path) -> None:
    """Draw up to 20 evenly chosen pictures with what was found and what is there."""
    chosen = np.unique(np.linspace(0, len(split) - 1, 20).round().astype(int))
    few = split.take(chosen)
    images, _ = few.arrays()
    drawn = []
    for i, place in enumerate(chosen):
        seen, n = found[place], few.labels[i]
        sure = seen["scores"] >= _SHOWN
        labels = [
            f"{classes[k]} {s:.2f}"
            for k, s in zip(seen["classes"][sure], seen["scores"][sure], strict=True)
        ]
        boxes = few.frames[i].place(seen["boxes"][sure])
        drawn.append((few.boxes[i, :n], boxes, labels))
    heading = f"Test pictures: found with a score of {_SHOWN} or more (yellow), there (white)"
    report.boxes(images, drawn, heading, path)


def box_heads(
    names: Sequence[str],
    maps: Sequence[keras.KerasTensor],
    counts: Sequence[int],
    classes: int,
    head: Callable[[keras.KerasTensor, int, str], keras.KerasTensor],
) -> dict[str, keras.KerasTensor]:
    """Let every cell of some maps predict boxes, and join what they say.

    Args:
        names: of the maps.
        maps: float `[batch, height, width, channels]`.
        counts: boxes of a cell on each map.
        classes: without the background or objectness, whose score stands before theirs.
        head: from a map, a number of channels and a name to the map of so many channels.

    Returns:
        `deltas`, float32 `[batch, n, 4]`, and `logits`, float32 `[batch, n, 1 + classes]`: map by
        map, row by row, in a cell box by box.
    """
    outputs = {}
    for kind, width in (("deltas", 4), ("logits", 1 + classes)):
        parts = []
        for name, x, count in zip(names, maps, counts, strict=True):
            x = head(x, count * width, f"{name}_{kind}")
            parts.append(keras.layers.Reshape((-1, width), name=f"{name}_{kind}_rows")(x))
        outputs[kind] = keras.layers.Concatenate(axis=1, dtype="float32", name=kind)(parts)
    return outputs
