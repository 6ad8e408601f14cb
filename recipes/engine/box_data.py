"""Pictures and the boxes in them from wherever `--data` points: VOC, COCO, YOLO, TFDS, or scenes.

Every picture is laid into the network's square input with its sides in proportion, grey around it;
boxes are float32 corners in pixels of that input, padded to the same number for every picture.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError
from tiffin.export.images import Frame, framed, load_framed
from tiffin.export.proposals import PROPOSALS
from tiffin.layers import kmeans_anchors
from tiffin.recipes.engine import annotations, scenes
from tiffin.recipes.engine.data import (
    SHARES,
    Split,
    progress,
    read_pixels,
    require_memory,
    tfds_builder,
    tfds_splits,
)

SCENES = (2000, 200, 400)  # to train, validate, test


@dataclasses.dataclass
class BoxSplit(Split):
    """Pictures with boxes; `labels` has the number of each picture's objects.

    Attributes:
        boxes: float32 `[n, most, 4]`, corners in pixels of the input; beyond `labels` zeros.
        classes: int32 `[n, most]`; beyond `labels` -1.
        difficult: bool `[n, most]`: neither trained on nor counted.
        frames: where each picture lies in the input.
        proposals: float32 `[n, number, 4]`, regions that may hold an object, corners in pixels of
            the input; those beyond a picture's own have no area. None: nobody asked for them.
    """

    boxes: np.ndarray = None
    classes: np.ndarray = None
    difficult: np.ndarray = None
    frames: list[Frame] = None
    proposals: np.ndarray | None = None

    @classmethod
    def of(cls, boxes, classes, difficult, frames, images=None, paths=None) -> "BoxSplit":
        """Make a split of lists that hold an array for each picture, boxes in its own pixels."""
        counts = np.array([len(c) for c in classes], np.int32)
        most = max(1, int(counts.max(initial=0)))
        split = cls(
            counts,
            frames[0].size,
            images,
            paths,
            np.zeros((len(counts), most, 4), np.float32),
            np.full((len(counts), most), -1, np.int32),
            np.zeros((len(counts), most), bool),
            list(frames),
        )
        for i, count in enumerate(counts):
            split.boxes[i, :count] = frames[i].place(boxes[i])
            split.classes[i, :count] = classes[i]
            split.difficult[i, :count] = difficult[i]
        return split

    def take(self, indices: np.ndarray) -> "BoxSplit":
        base = super().take(indices)
        return BoxSplit(
            base.labels,
            self.size,
            base.images,
            base.paths,
            self.boxes[indices],
            self.classes[indices],
            self.difficult[indices],
            [self.frames[i] for i in indices],
            None if self.proposals is None else self.proposals[indices],
        )

    def targets(self) -> dict[str, np.ndarray]:
        """Return `boxes`, `classes`, -1 where there is nothing to learn, the `index`, and
        `proposals` where there are some."""
        targets = {
            "boxes": self.boxes,
            "classes": np.where(self.difficult, -1, self.classes),
            "index": np.arange(len(self), dtype=np.int32),
        }
        return targets if self.proposals is None else targets | {PROPOSALS: self.proposals}

    def inputs(self, limit: int | None = None, seed: int = 0) -> tuple:
        """Return what a network takes of up to `limit` pictures, and their indices."""
        images, index = self.arrays(limit, seed)
        if self.proposals is None:
            return images, index
        return {"image": images, PROPOSALS: self.proposals[index]}, index

    def arrays(self, limit: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return up to `limit` readable pictures, drawn evenly, and their indices."""
        chosen = self.chosen(limit, seed)
        if self.images is not None:
            return self.images[chosen], chosen
        pairs = list(self.take(chosen).batches(64).unbatch().as_numpy_iterator())
        return np.stack([x for x, _ in pairs]), chosen[[y["index"] for _, y in pairs]]

    def decode(self, path: str) -> np.ndarray:
        return load_framed(path, self.size)[0]

    def augmented(self, augment: Callable, images, targets, key):
        return augment(images, targets, key)


@dataclasses.dataclass
class BoxData:
    """A detection data set in its three splits.

    Attributes:
        kind: what was recognised, for people.
        classes: class names, by index.
        train, validation, test: the splits.
        problems: what was wrong in the annotations.
    """

    kind: str
    classes: list[str]
    train: BoxSplit
    validation: BoxSplit
    test: BoxSplit
    problems: annotations.Problems

    def summary(self) -> str:
        """Return one line for people."""
        parts = (self.train, self.validation, self.test)
        pictures, boxes = (
            " / ".join(str(count(part)) for part in parts)
            for count in (len, lambda part: int(part.labels.sum()))
        )
        text = (
            f"{self.kind}, {pictures} images to train / validate / test at "
            f"{'x'.join(map(str, self.train.size))} with {boxes} boxes of {len(self.classes)} "
            "classes"
        )
        problems = str(self.problems)
        return text + (f"; {problems}" if problems else "")


def load_boxes(data: str, data_dir: Path | None, size: int, seed: int) -> BoxData:
    """Recognise what `data` names, read it and split it.

    Args:
        data: `digits` for embedded scenes, a folder in VOC, COCO or YOLO form, a COCO .json file,
            or a TFDS name such as `voc/2007`.
        data_dir: where TFDS keeps its prepared data sets.
        size: height and width of the input in pixels.
        seed: of the scenes, and of the split where the data has none.

    Raises:
        InputError: nothing of that name, no annotated pictures, no boxes at all.
    """
    if data == "digits":
        return _scenes(size, seed)
    path = Path(data).expanduser()
    if path.exists():
        return _folder(path, size, seed)
    return _tfds(data, data_dir, size, seed)


def _scenes(size: int, seed: int) -> BoxData:
    frame = Frame.around((size, size), (size, size))
    parts = [
        BoxSplit.of(
            boxes, classes, [np.zeros(len(c), bool) for c in classes], [frame] * len(boxes), x
        )
        for x, boxes, classes in scenes.make(SCENES, size, seed)
    ]
    kind = "scenes of scikit-learn's handwritten digits (embedded)"
    return BoxData(kind, list(scenes.CLASSES), *parts, annotations.Problems())


def _folder(root: Path, size: int, seed: int) -> BoxData:
    problems = annotations.Problems()
    kind, pictures, classes = annotations.read(root, problems)
    trained = sorted({name for p in pictures["train"] for name in p.names})
    classes = classes or trained
    if not trained:
        raise InputError(
            f"{root} has no boxes in its training pictures: there is nothing to learn."
        )
    number = {name: i for i, name in enumerate(classes)}
    parts = {}
    for part, found in pictures.items():
        if not found:
            continue
        boxes, kinds, difficult = [], [], []
        for picture in found:
            known = np.array([name in number for name in picture.names], bool)
            for name in sorted({n for n in picture.names if n not in number}):
                problems.add(
                    "Box dropped",
                    f"class '{name}' in {picture.path} ({part}) does not occur in the training",
                )
            boxes.append(picture.boxes[known])
            kinds.append([number[n] for n in picture.names if n in number])
            difficult.append(picture.difficult[known])
        frames = [Frame.around(p.size, (size, size)) for p in found]
        paths = np.array([str(p.path) for p in found], object)
        split = BoxSplit.of(boxes, kinds, difficult, frames, paths=paths)
        parts[part] = _in_memory(split, part, problems)
    # Of the path, its name: the sentence travels with exported files.
    return _completed(f"{kind} {root.resolve().name}", classes, parts, problems, seed)


def _in_memory(split: BoxSplit, part: str, problems: annotations.Problems) -> BoxSplit:
    """Decode the pictures at once where they fit; leave out those that cannot be read."""
    images, good, skipped = read_pixels(split.paths, split.size, split.decode, part)
    problems.counts["Picture skipped"] += len(skipped)
    split = split.take(np.flatnonzero(good))
    split.images = None if images is None else images[good]
    return split


def _completed(kind: str, classes: list[str], parts: dict[str, BoxSplit], problems, seed: int):
    """Carve the splits that the data lacks out of its training part."""
    train = parts["train"]
    missing = {part: share for part, share in SHARES.items() if part not in parts}
    if len(train) < 1 + len(missing):
        raise InputError(
            f"{kind} has {len(train)} readable training pictures; it takes {1 + len(missing)}, as "
            f"{' and '.join(missing)} get one each."
        )
    order = np.random.default_rng(seed).permutation(len(train))
    for part, share in missing.items():
        count = max(1, round(share * len(train)))
        parts[part], order = train.take(np.sort(order[:count])), order[count:]
    parts["train"] = train.take(np.sort(order)) if missing else train
    return BoxData(kind, classes, parts["train"], parts["validation"], parts["test"], problems)


def _tfds(name: str, data_dir: Path | None, size: int, seed: int) -> BoxData:
    builder = tfds_builder(name, data_dir, "a folder in VOC, COCO or YOLO form")
    things = dict(builder.info.features.items()).get("objects", {})
    if not {"bbox", "label"} <= set(things.keys()):
        raise InputError(f"TFDS's {name} has no boxes: choose a detection set, such as voc/2007.")
    classes = list(things["label"].names)
    parts = tfds_splits(builder, lambda split: _tfds_split(builder, split, size))
    kind = f"TFDS {builder.info.full_name}"
    return _completed(kind, classes, parts, annotations.Problems(), seed)


def _tfds_split(builder, split: str, size: int) -> BoxSplit:
    from PIL import Image

    count = builder.info.splits[split].num_examples
    require_memory(count, (size, size), f"{builder.info.full_name} ({split})")
    images, boxes, classes, difficult, frames = [], [], [], [], []
    examples = builder.as_dataset(split=split, shuffle_files=False).as_numpy_iterator()
    for example in progress(examples, count, f"reading {split}"):
        image, frame = framed(Image.fromarray(example["image"]).convert("RGB"), (size, size))
        things, sides = example["objects"], np.tile(frame.original, 2)
        kept = things["label"] >= 0
        images.append(image)
        boxes.append((things["bbox"] * sides)[kept])
        classes.append(things["label"][kept].astype(np.int32))
        hard = things.get("is_difficult", things.get("is_crowd"))
        difficult.append(np.zeros(kept.sum(), bool) if hard is None else hard[kept])
        frames.append(frame)
    return BoxSplit.of(boxes, classes, difficult, frames, np.stack(images))


def truth(split: BoxSplit) -> list[dict[str, np.ndarray]]:
    """Return the objects of each picture in its own pixels: `boxes`, `classes`, `difficult`."""
    return [
        {
            "boxes": frame.back(split.boxes[i, :n]).astype(np.float32),
            "classes": split.classes[i, :n],
            "difficult": split.difficult[i, :n],
        }
        for i, (n, frame) in enumerate(zip(split.labels, split.frames, strict=True))
    ]


def fitted_anchors(split: BoxSplit, count: int, seed: int) -> np.ndarray:
    """Return the anchors, heights and widths in pixels of the input, that fit the boxes best.

    Raises:
        InputError: there are fewer different boxes than anchors.
    """
    real = split.classes >= 0
    try:
        return kmeans_anchors(split.boxes[real][:, 2:] - split.boxes[real][:, :2], count, seed)
    except ValueError as error:
        raise InputError(f"The training boxes: {error} Take --anchors paper.") from error
