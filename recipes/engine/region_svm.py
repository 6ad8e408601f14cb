"""What R-CNN and SPP-net do when their network is trained: linear SVMs and box regression.

Girshick et al. 2014 (R-CNN, arXiv 1311.2524), section 2.3 and appendices B and C, with the numbers
of the authors' code.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import keras
import numpy as np
from keras import ops

from tiffin.export.files import replacing
from tiffin.export.proposals import PROPOSALS
from tiffin.layers import DecodeRegions, encode_boxes, iou
from tiffin.recipes.engine.box_data import BoxData, BoxSplit
from tiffin.recipes.engine.data import progress
from tiffin.recipes.engine.region_detection import GivenRegions, hidden
from tiffin.recipes.engine.weights import Source

_COST, _POSITIVE_WEIGHT, _BIAS = 1e-3, 2.0, 10.0  # of the SVMs
_NORM = 20.0  # mean length that features are scaled to, which these are for
_RIDGE, _NEAR = 1000.0, 0.6  # of box regression; IoU from which a region is one of its examples
_NEGATIVE = 0.3  # IoU with a class's objects below which a region is a negative of it
_FIRST, _ROUNDS = 2000, 5  # negatives to begin with; rounds of mining further ones
_PICTURES, _SAMPLED = 1000, 64  # of the training; regions of each
_BATCH = 16
VARIANCES = (0.1, 0.2)
_FITTED = ("svms", "regressors")


def region_classifier(
    name: str,
    inputs: Mapping[str, keras.KerasTensor],
    seen: keras.KerasTensor,
    pooled: keras.KerasTensor,
    units: Sequence[int],
    classes: int,
) -> keras.Model:
    """Close a network for `RegionSVM`: hidden layers, and the softmax that it is trained with.

    Args:
        name: of the network.
        inputs: `image` and `proposals`.
        seen: what regions are looked at in.
        pooled: float `[batch * proposals, dimensions]`, what was looked at of each.
        units: of the hidden layers.
        classes: without the background.
    """
    x = hidden(pooled, units)
    logits = keras.layers.Dense(1 + classes, dtype="float32", name="logits")(x)
    outputs = {"map0": seen, PROPOSALS: inputs[PROPOSALS], "pooled": pooled, "features": x}
    return keras.Model(dict(inputs), outputs | {"logits": logits}, name=name)


@dataclasses.dataclass
class RegionSVM(GivenRegions):
    """A detector whose features are judged by an SVM for each class.

    Its builder gives `features`, what the SVMs see, and `pooled`, what box regression sees.
    """

    classifier: Literal["svm", "softmax"] = "svm"
    """What judges in the end: a linear SVM for each class, its margin turned into a probability, or
    the softmax that the network was trained with."""
    parts: ClassVar = ("class_loss",)

    def decode(self, outputs: Mapping) -> tuple:
        count = outputs["logits"].shape[-1] - 1
        deltas = keras.layers.Dense(4 * count, name="regressors")(outputs["pooled"])
        logits, activation = outputs["logits"], "softmax"
        if self.classifier == "svm":
            logits, activation = (
                keras.layers.Dense(count, name="svms")(outputs["features"]),
                "sigmoid",
            )
        judged = DecodeRegions(self.size, VARIANCES, activation, name="boxes")
        return judged(logits, deltas, outputs[PROPOSALS])

    def load(self, model: keras.Model, source: Source) -> list[str]:
        """Load weights but for what was fitted to the features of another training."""
        if source.tensors.layers is not None:
            kept = {n: x for n, x in source.tensors.layers.items() if n not in _FITTED}
            tensors = dataclasses.replace(source.tensors, layers=kept)
            source = dataclasses.replace(source, tensors=tensors)
        return super().load(model, source)

    def complete(self, model: keras.Model, data: BoxData, path: Path) -> None:
        """Fit the SVMs and the box regression to what the network makes of training regions."""
        print("Fitting box regression" + " and SVMs" * (self.classifier == "svm") + " ...")
        few = data.train.take(data.train.chosen(_PICTURES, self.seed))
        seen = examples(model, few, len(data.classes), self.seed)
        model.get_layer("regressors").set_weights(fit_regressors(seen, len(data.classes)))
        if self.classifier == "svm":
            model.get_layer("svms").set_weights(fit_svms(seen, len(data.classes), self.seed))
        with replacing(path) as temporary:
            model.save(temporary)


@dataclasses.dataclass
class Examples:
    """Regions of training pictures, and what a network makes of them.

    Attributes:
        real: int `[n]`, the class of a region that is an object, -1 for the others.
        overlap: float32 `[n, classes]`, its largest IoU with an object of each class.
        features: float32 `[n, dimensions]`, what the SVMs see; None without them.
        deltas: float32 `[m, 4]`, of the proposals near an object: where that lies.
        kinds: int `[m]`, its class.
        pooled: float32 `[m, dimensions]`, what box regression sees of them.
    """

    real: np.ndarray
    overlap: np.ndarray
    features: np.ndarray | None
    deltas: np.ndarray
    kinds: np.ndarray
    pooled: np.ndarray


def examples(model: keras.Model, split: BoxSplit, classes: int, seed: int) -> Examples:
    """Return the objects of pictures, proposals near them and proposals of the background.

    Args:
        model: from `RegionSVM.inference`.
        split: pictures with objects and proposals.
        classes: number of them.
        seed: of the choice.
    """
    seen = {"pooled": model.get_layer("regressors").input}
    if "svms" in (layer.name for layer in model.layers):
        seen["features"] = model.get_layer("svms").input
    few = {
        "image": keras.Input(model.inputs[0].shape[1:], name="image"),
        PROPOSALS: keras.Input((_SAMPLED, 4), name=PROPOSALS),
    }
    # With fewer regions than in the file.
    network = keras.Model(few, keras.Model(model.input, seen).call(few))
    random, parts = np.random.default_rng(seed), []
    batches, steps = split.batches(_BATCH).as_numpy_iterator(), -(-len(split) // _BATCH)
    for images, targets in progress(batches, steps, "features of regions"):
        chosen = _choose(split.take(targets["index"]), classes, random)
        said = network.predict_on_batch({"image": images, PROPOSALS: chosen.pop("regions")})
        said = {name: ops.convert_to_numpy(value) for name, value in said.items()}
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in chosen.items()}
        used, near = flat["used"], flat["near"] & flat["used"]
        parts.append(
            Examples(
                flat["real"][used],
                flat["overlap"][used],
                said["features"][used] if "features" in said else None,
                flat["deltas"][near],
                flat["kinds"][near],
                said["pooled"][near],
            )
        )
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Examples(*(None if c[0] is None else np.concatenate(c) for c in columns))


def _choose(split: BoxSplit, classes: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Choose regions of each picture: its objects, then proposals that are near one or far off.

    Returns:
        Arrays `[pictures, _SAMPLED, ...]`: `regions`, `used` (the others fill up), `near` (a
        proposal near an object), and `real`, `overlap`, `deltas`, `kinds` of `Examples`.
    """
    count, spare = split.boxes.shape[1], np.zeros((len(split), _SAMPLED, 4), np.float32)
    regions = np.concatenate([split.boxes, split.proposals, spare], axis=1)
    shared = ops.convert_to_numpy(iou(regions, split.boxes))
    owner, best = shared.argmax(-1), shared.max(-1)
    is_object = np.arange(regions.shape[1]) < count
    near, far = ~is_object & (best >= _NEAR), ~is_object & (best < _NEGATIVE)
    area = (regions[..., 2:] - regions[..., :2]).prod(-1)
    key = np.where(near | far | is_object, random.uniform(size=area.shape) + is_object, -1.0)
    key = np.where(area > 0, key, -1.0)
    order = np.argsort(-key, axis=1)[:, :_SAMPLED]

    def chosen(values):
        return np.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), 1)

    kinds = np.take_along_axis(split.classes, owner, 1)
    nearest = np.take_along_axis(split.boxes, owner[..., None], 1)
    counted = (np.where(split.difficult, -1, split.classes) >= 0) & (area[:, :count] > 0)
    real = np.full(area.shape, -1)
    real[:, :count] = np.where(counted, split.classes, -1)
    overlap = np.stack(
        [np.where(split.classes[:, None] == k, shared, 0).max(-1) for k in range(classes)], -1
    )
    unit = np.array([0, 0, 1, 1], np.float32)  # finite for those that do not count
    safe = np.where(near[..., None], [nearest, regions], unit)
    return {
        "regions": chosen(np.where(key[..., None] >= 0, regions, 0)),
        "used": chosen(key) >= 0,
        "near": chosen(near),
        "real": chosen(real),
        "overlap": chosen(overlap),
        "deltas": chosen(ops.convert_to_numpy(encode_boxes(*safe, VARIANCES))),
        "kinds": chosen(kinds),
    }


def _scale(features: np.ndarray) -> float:
    return _NORM / max(float(np.linalg.norm(features, axis=1).mean()), 1e-6)


def fit_regressors(seen: Examples, classes: int) -> list[np.ndarray]:
    """Return kernel and bias of a dense layer from `pooled` to the deltas of each class.

    Ridge regression; a class without examples moves no box.
    """
    from sklearn.linear_model import Ridge

    kernel = np.zeros((seen.pooled.shape[1], classes, 4), np.float32)
    bias = np.zeros((classes, 4), np.float32)
    scale = _scale(seen.pooled) if len(seen.pooled) else 1.0
    for kind in np.unique(seen.kinds):
        mine = seen.kinds == kind
        found = Ridge(_RIDGE).fit(seen.pooled[mine] * scale, seen.deltas[mine])
        kernel[:, kind], bias[kind] = found.coef_.T * scale, found.intercept_
    return [kernel.reshape(len(kernel), -1), bias.ravel()]


def fit_svms(seen: Examples, classes: int, seed: int) -> list[np.ndarray]:
    """Return kernel and bias of a dense layer from `features` to the logits of each class.

    An SVM for each, of objects against regions that overlap none of the class by much; of these,
    hard ones are mined. A logistic regression turns its margin into a logit (Platt's scaling).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    random = np.random.default_rng(seed)
    features = seen.features * (scale := _scale(seen.features))
    kernel = np.zeros((features.shape[1], classes), np.float32)
    bias = np.full(classes, -10.0, np.float32)  # a class without objects is never found
    for kind in np.unique(seen.real[seen.real >= 0]):
        positive = features[seen.real == kind]
        pool = features[(seen.real != kind) & (seen.overlap[:, kind] < _NEGATIVE)]
        hard = np.zeros(len(pool), bool)
        hard[random.permutation(len(pool))[:_FIRST]] = True
        svm = LinearSVC(
            C=_COST,
            loss="hinge",
            class_weight={1: _POSITIVE_WEIGHT},
            intercept_scaling=_BIAS,
            random_state=seed,
            max_iter=10_000,
        )
        for _ in range(_ROUNDS):
            x = np.concatenate([positive, pool[hard]])
            y = np.arange(len(x)) < len(positive)
            svm.fit(x, y)
            margin = svm.decision_function(pool)
            missed = (margin > -1) & ~hard
            if not missed.any():
                break
            hard = (hard & (margin > -1.2)) | missed
        x = np.concatenate([svm.decision_function(positive), margin])[:, None]
        platt = LogisticRegression().fit(x, np.arange(len(x)) < len(positive))
        slope, shift = platt.coef_[0, 0], platt.intercept_[0]
        kernel[:, kind] = svm.coef_[0] * scale * slope
        bias[kind] = svm.intercept_[0] * slope + shift
    return [kernel, bias]
