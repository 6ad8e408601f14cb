"""Images and labels from wherever `--data` points: digits, TFDS, a folder of class folders.

Everything ends as raw uint8 RGB pixels of one size. What fits in memory is decoded once and kept
there; the rest is decoded in parallel as it is needed.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiffin.export.errors import InputError, nearest, optional
from tiffin.export.images import SUFFIXES, load_image
from tiffin.recipes.engine.augmentation import Chance
from tiffin.recipes.engine.distribution import ALONE, Place, several

if TYPE_CHECKING:
    import tensorflow as tf

SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
SPLITS |= {"validation": "validation", "test": "test", "testing": "test", "dev": "validation"}
SHARES = {"test": 0.2, "validation": 0.1}  # of training data, for splits that are missing


@dataclasses.dataclass
class Split:
    """Labelled images of one size: decoded pixels, or files that are decoded as they are needed.

    Attributes:
        labels: int32 `[n]`, class indices.
        size: `(height, width)` in pixels.
        images: uint8 `[n, height, width, 3]`, or None where `paths` are read on the fly.
        paths: the n files, or None where the images have none.
    """

    labels: np.ndarray
    size: tuple[int, int]
    images: np.ndarray | None = None
    paths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """Return the examples at `indices` as a new split."""
        images = None if self.images is None else self.images[indices]
        paths = None if self.paths is None else self.paths[indices]
        return Split(self.labels[indices], self.size, images, paths)

    def targets(self):
        """Return what a network is to find in each example: arrays, the examples first."""
        return self.labels

    def decode(self, path: str) -> np.ndarray:
        """Read a file as uint8 `[height, width, 3]`."""
        return load_image(path, self.size)

    def augmented(self, augment: Callable, images, targets, key):
        """Return a batch as `augment` changes it."""
        return augment(images, key), targets

    def _decode_or_skip(self, path: str) -> tuple[np.ndarray, np.bool_]:
        """Decode one file inside a running pipeline; a bad one is named once and left out."""
        try:
            return self.decode(path), np.True_
        except InputError as error:
            if path not in _skipped:
                _skipped.add(path)
                print(f"\nSkipped: {error}")
            return np.zeros((*self.size, 3), np.uint8), np.False_

    def arrays(self, limit: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return up to `limit` examples, drawn evenly, as (uint8 images, int32 labels)."""
        chosen = self.chosen(limit, seed)
        if self.images is not None:
            return self.images[chosen], self.labels[chosen]
        pairs = list(self.take(chosen).batches(64).unbatch().as_numpy_iterator())
        return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])

    def inputs(self, limit: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return what a network takes of up to `limit` examples, and what goes with it."""
        return self.arrays(limit, seed)

    def chosen(self, limit: int | None, seed: int) -> np.ndarray:
        """Return the indices of up to `limit` examples, in order."""
        if limit is None or limit >= len(self):
            return np.arange(len(self))
        return np.sort(np.random.default_rng(seed).choice(len(self), limit, replace=False))

    def _batch(self, indices: "tf.Tensor", batch_size: int, drop_remainder: bool, fill: bool):
        """Return a dataset of (uint8 image batch, label batch) for a dataset's worth of indices.

        An unreadable file is left out, or, with `fill`, a black picture.
        """
        import tensorflow as tf

        source = tf.data.Dataset.from_tensor_slices(indices)
        targets = tf.nest.map_structure(tf.constant, self.targets())

        def at(index):
            return tf.nest.map_structure(lambda values: tf.gather(values, index), targets)

        if self.images is not None:
            images = tf.constant(self.images)
            return source.batch(batch_size, drop_remainder).map(
                lambda i: (tf.gather(images, i), at(i)), tf.data.AUTOTUNE
            )
        paths = tf.constant(self.paths.astype(str))

        def decode(index):
            pixels, ok = tf.numpy_function(
                lambda p: self._decode_or_skip(os.fsdecode(p)),
                [paths[index]],
                (tf.uint8, tf.bool),
            )
            return tf.ensure_shape(pixels, (*self.size, 3)), at(index), tf.ensure_shape(ok, ())

        examples = source.map(decode, tf.data.AUTOTUNE)
        examples = examples if fill else examples.filter(lambda image, label, ok: ok)
        return examples.map(lambda image, label, ok: (image, label)).batch(
            batch_size, drop_remainder
        )

    def batches(self, batch_size: int, place: Place = ALONE) -> "tf.data.Dataset":
        """Return (uint8 images, labels) batches once, in order: for evaluation.

        Args:
            batch_size: examples a batch, of all processes together.
            place: of several devices, each gets as many, and a process its rows alone.
        """
        count = place.whole(len(self), 0)
        starts = range(0, count, batch_size)
        parts = [np.arange(i, min(i + batch_size, count)) for i in starts]
        mine = [part[place.rows(len(part))] for part in parts]
        indices = np.concatenate([*mine, np.zeros(0, np.int64)])
        # Of several processes each must have as many rows as the others.
        batches = self._batch(indices, batch_size // place.count, False, place.count > 1)
        return batches.prefetch(-1)  # as many as are of use

    def training_batches(
        self,
        batch_size: int,
        seed: int,
        first_epoch: int = 0,
        augment: Callable | None = None,
        drop_remainder: bool = True,
        in_a_row: int = 1,
        place: Place = ALONE,
    ) -> "tf.data.Dataset":
        """Return endless shuffled (float32 images, labels) batches, with sample weights where the
        last batch of an epoch is kept, so that each example counts alike.

        The order and the augmentation of an epoch depend on `seed` and its number alone, so that a
        resumed run sees what the unbroken one would have seen.

        Args:
            batch_size: examples a batch, of all processes together.
            seed: of the order and the augmentation.
            first_epoch: number of the epoch to start with.
            augment: maps float32 `[batch, height, width, 3]` images and a `Chance` to images of the
                same shape.
            drop_remainder: leave an epoch's incomplete last batch out (another one each epoch).
            in_a_row: examples of one class that stand together, so that a batch has several of
                each of its classes.
            place: a process of several reads its rows of each batch alone.
        """
        import tensorflow as tf

        steps = len(self) // batch_size if drop_remainder else -(-len(self) // batch_size)
        # Scaled so that the mean over an epoch's batches is the mean over its examples.
        share = steps / len(self)
        rows = place.rows(batch_size)

        def prepare(key):
            def example(step, batch):
                images, labels = tf.cast(batch[0], tf.float32), batch[1]
                if augment is not None:
                    chance = Chance(key, rows.start, batch_size).fold_in(step)
                    images, labels = self.augmented(augment, images, labels, chance)
                if drop_remainder:
                    return images, labels
                count = tf.shape(images)[:1]
                return images, labels, tf.fill(count, tf.cast(count[0], tf.float32) * share)

            return example

        def epoch(number):
            key = tf.stack([tf.cast(seed, tf.int64), number])
            order = _shuffled(tf.constant(self.labels), key, in_a_row)
            if place.count > 1:
                order = tf.reshape(order[: steps * batch_size], [steps, batch_size])
                order = tf.reshape(order[:, rows], [-1])
            size = batch_size // place.count
            batches = self._batch(tf.cast(order, tf.int64), size, drop_remainder, False)
            # Where unreadable files leave an epoch short, its first batches fill it up.
            batches = batches.repeat().take(steps).enumerate()
            return batches.map(prepare(key), tf.data.AUTOTUNE)

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        return epochs.flat_map(epoch).prefetch(tf.data.AUTOTUNE)


def _shuffled(labels: "tf.Tensor", key: "tf.Tensor", in_a_row: int) -> "tf.Tensor":
    """Return a random order of examples in which so many of a class stand together."""
    import tensorflow as tf

    count = tf.shape(labels)[0]
    order = tf.argsort(tf.random.stateless_uniform([count], key))
    if in_a_row < 2:
        return order
    order = tf.gather(order, tf.argsort(tf.gather(labels, order), stable=True))
    sorted_labels = tf.gather(labels, order)
    start = tf.searchsorted(sorted_labels, sorted_labels)  # where each one's class begins
    row = (tf.range(count) - start) // in_a_row
    first = tf.concat(
        [[0], tf.cast((row[1:] != row[:-1]) | (start[1:] != start[:-1]), tf.int32)], 0
    )
    rows = tf.cumsum(first)
    turn = tf.random.stateless_uniform([count], key + 1)
    return tf.gather(order, tf.argsort(tf.gather(turn, rows), stable=True))


_skipped: set[str] = set()


@dataclasses.dataclass
class ImageData:
    """A labelled image data set in its three splits.

    Attributes:
        kind: what was recognised, for people: `folder of 2 classes, photos`.
        classes: class names, by index.
        train, validation, test: the splits.
        skipped: files that could not be read.
        test_classes: names of the test split's classes, where they are others than the training's.
    """

    kind: str
    classes: list[str]
    train: Split
    validation: Split
    test: Split
    skipped: list[str] = dataclasses.field(default_factory=list)
    test_classes: list[str] | None = None

    def summary(self) -> str:
        """Return one line for people."""
        counts = f"{len(self.train)} / {len(self.validation)} / {len(self.test)}"
        size = "x".join(map(str, self.train.size))
        text = f"{self.kind}, {counts} images to train / validate / test at {size}"
        if self.test_classes:
            text += f"; {len(self.test_classes)} classes of the test are in the test alone"
        return text + (f", {len(self.skipped)} unreadable skipped" if self.skipped else "")


def load_images(
    data: str,
    data_dir: Path | None,
    size: int | None,
    default_size: int,
    seed: int,
    leaves: bool = False,
    loose: bool = False,
) -> ImageData:
    """Recognise what `data` names, read it and split it.

    Args:
        data: `digits`, a TFDS name such as `cifar10`, or a folder of class folders, with or without
            train/val/test folders above them.
        data_dir: where TFDS keeps its prepared data; None for TFDS's own default.
        size: height and width in pixels; None for the data's own, `default_size` where it varies.
        default_size: the network's usual input size.
        seed: of the stratified split where the data has none.
        leaves: in a folder, each folder that holds images itself is a class, however deep it lies
            (`alphabet/character/1.png`), instead of each at the top with all below it.
        loose: take a folder with one class, or with images and no class folders, too.

    Raises:
        InputError: nothing of that name, an empty folder, one class, a class too small to split.
    """
    path = Path(data).expanduser()
    if data == "digits":
        return _digits(size or 32, seed)
    if path.is_dir():
        return _folder(path, size or default_size, seed, leaves, loose)
    if path.exists():
        raise InputError(f"{path} is a file; --data takes a folder that holds one folder a class.")
    if path.is_absolute() or data.startswith(("./", "../", "~")) or data.endswith(os.sep):
        raise InputError(f"There is no folder {path}: check the path given to --data.")
    return _tfds(data, data_dir, size, seed)


def _complete(parts: dict[str, Split], kind: str, classes: list[str], seed: int, where: str):
    """Carve the splits that the data lacks out of its training part, each class alike."""
    from sklearn.model_selection import train_test_split

    train = parts["train"]
    missing = {part: share for part, share in SHARES.items() if part not in parts}
    counts = np.bincount(train.labels, minlength=len(classes))
    if counts.min() < 1 + len(missing):
        raise InputError(
            f"Class '{classes[counts.argmin()]}' in {where} has {counts.min()} readable images; "
            f"each class needs at least {1 + len(missing)}, as training, "
            f"{' and '.join(missing)} get one each. Add images, or remove the class."
        )
    total = len(train)
    for part, share in missing.items():
        rest, held_out = train_test_split(
            np.arange(len(train)),
            test_size=max(len(classes), round(share * total)),
            random_state=seed,
            stratify=train.labels,
        )
        parts[part], train = train.take(held_out), train.take(rest)
    return ImageData(kind, classes, train, parts["validation"], parts["test"])


def join(parts: list[Split]) -> Split:
    """Return the examples of several splits of one kind as one."""

    def together(arrays):
        return None if any(a is None for a in arrays) else np.concatenate(arrays)

    return Split(
        np.concatenate([part.labels for part in parts]),
        parts[0].size,
        together([part.images for part in parts]),
        together([part.paths for part in parts]),
    )


def in_pairs(split: Split, others: Split, in_a_row: int, seed: int) -> Split:
    """Return a split in the order of training, with one from `others` for each example alone.

    A loss of pairs says nothing of pictures whose like is in another batch, or nowhere, and little
    of a batch that has nothing else.

    Args:
        split: the examples.
        others: of the same classes.
        in_a_row: examples of a class that stand together, at least 2.
        seed: of the order.
    """
    alone = np.flatnonzero(np.bincount(split.labels) == 1)
    found, first = np.unique(others.labels, return_index=True)
    whole = join([split, others.take(first[np.isin(found, alone)])])
    return whole.take(_shuffled(whole.labels, np.array([seed, 0]), max(2, in_a_row)).numpy())


def hold_out(data: ImageData, share: float, seed: int) -> ImageData:
    """Return the data with some classes in the test split alone, and no others there.

    Args:
        data: any; its own test pictures of the remaining classes join the training.
        share: of the classes to hold out, in (0, 1); two at least, and two remain.
        seed: of the draw.

    Raises:
        InputError: there are fewer than four classes.
    """
    count = len(data.classes)
    if count < 4:
        raise InputError(
            f"{data.kind} has {count} classes; to test on unseen ones it takes 4 or more. Use "
            "--unseen 0 to test on other pictures of the same ones."
        )
    unseen = np.zeros(count, bool)
    held_out = min(max(2, round(share * count)), count - 2)
    unseen[np.random.default_rng(seed).choice(count, held_out, replace=False)] = True
    number = np.where(unseen, np.cumsum(unseen), np.cumsum(~unseen)) - 1

    def joined(parts: list[Split], which: np.ndarray) -> Split:
        split = join([part.take(np.flatnonzero(which[part.labels])) for part in parts])
        split.labels = number[split.labels].astype(np.int32)
        return split

    names = np.array(data.classes, object)
    return dataclasses.replace(
        data,
        classes=list(names[~unseen]),
        train=joined([data.train, data.test], ~unseen),
        validation=joined([data.validation], ~unseen),
        test=joined([data.train, data.validation, data.test], unseen),
        test_classes=list(names[unseen]),
    )


def _digits(size: int, seed: int) -> ImageData:
    import tensorflow as tf
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # A margin, as the strokes touch the frame and any shift would cut them.
    grey = np.pad(bunch.images, ((0, 0), (1, 1), (1, 1)))[..., None] * (255 / 16)
    grown = tf.image.resize(grey.astype(np.float32), (size, size), "bicubic").numpy()
    images = np.repeat(grown.clip(0, 255).round().astype(np.uint8), 3, axis=-1)
    split = Split(bunch.target.astype(np.int32), (size, size), images)
    kind = "scikit-learn's handwritten digits (embedded)"
    return _complete({"train": split}, kind, [str(d) for d in range(10)], seed, "the digits")


def tfds_builder(name: str, data_dir: Path | None, folder: str):
    """Return the TFDS builder of a prepared data set, downloading it if need be.

    Args:
        name: of the data set.
        data_dir: where TFDS keeps them.
        folder: what --data could name instead, for the message.

    Raises:
        InputError: no such data set or folder, or no way to get it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    user = f"--data {name} is neither 'digits', nor a folder here; a TFDS data set"
    tfds = optional("tensorflow_datasets", user)
    optional("importlib_resources", user)  # which TFDS imports later
    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"There is no folder {data_dir}: check the path given to --data-dir.")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, FileNotFoundError) as error:
        near = nearest(name, tfds.list_builders(with_community_datasets=False))
        raise InputError(
            f"--data {name} is neither 'digits', nor a folder here, nor a TFDS data set{near} "
            f"--data takes {folder}, too."
        ) from error
    try:
        if not builder.data_path.exists():
            print(f"Downloading {name} through TFDS ...")
            builder.download_and_prepare()
    except Exception as error:
        raise InputError(
            f"{name} is not prepared under {builder.data_path} and could not be downloaded "
            f"({str(error).splitlines()[0]}). Connect to a network, or name the folder that "
            "holds it with --data-dir."
        ) from error
    return builder


def tfds_splits(builder, read: Callable) -> dict:
    """Return what `read` makes of each split that there is, by our name for it.

    Raises:
        InputError: there is none to train on.
    """
    splits = builder.info.splits
    found = {SPLITS[n]: read(n) for n in splits if n in SPLITS and splits[n].num_examples}
    if "train" not in found:
        raise InputError(f"TFDS's {builder.name} has no training split; it has {list(splits)}.")
    return found


def _tfds(name: str, data_dir: Path | None, size: int | None, seed: int) -> ImageData:
    builder = tfds_builder(name, data_dir, "a folder that holds one folder of images a class")
    features = builder.info.features
    if set(builder.info.supervised_keys or ()) != {"image", "label"}:
        raise InputError(f"TFDS's {name} has no image and label: choose a classification set.")
    classes, shape = features["label"].names, features["image"].shape
    native = shape[:2] if None not in shape[:2] else (224, 224)
    target = (size, size) if size else tuple(native)
    parts = tfds_splits(builder, lambda split: _tfds_split(builder, split, target))
    return _complete(parts, f"TFDS {builder.info.full_name}", list(classes), seed, name)


def _tfds_split(builder, split: str, size: tuple[int, int]) -> Split:
    import tensorflow as tf

    count = builder.info.splits[split].num_examples
    require_memory(count, size, f"{builder.info.full_name} ({split})")

    def prepare(image, label):
        if image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        if tuple(image.shape[:2]) != size:
            image = tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)
            image = tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)
        return image, tf.cast(label, tf.int32)

    dataset = builder.as_dataset(split=split, as_supervised=True, shuffle_files=False)
    images = np.empty((count, *size, 3), np.uint8)
    labels = np.empty(count, np.int32)
    done = 0
    batches = dataset.map(prepare, tf.data.AUTOTUNE).batch(256).prefetch(2)
    for image, label in progress(batches.as_numpy_iterator(), -(-count // 256), f"reading {split}"):
        images[done : done + len(label)], labels[done : done + len(label)] = image, label
        done += len(label)
    return Split(labels[:done], size, images[:done])


def progress(iterable, total: int, what: str) -> Iterator:
    from tqdm import tqdm

    return iter(tqdm(iterable, total=total, desc=what, leave=False, disable=None))


def _fits(count: int, size: tuple[int, int]) -> bool:
    """Whether decoded pixels may stay in memory: half of what is free."""
    import psutil

    return count * size[0] * size[1] * 3 <= psutil.virtual_memory().available / 2


def require_memory(count: int, size: tuple[int, int], what: str) -> None:
    if not _fits(count, size):
        need = count * size[0] * size[1] * 3 / 2**30
        raise InputError(
            f"{what} takes {need:.0f} GiB at {size[0]}x{size[1]}, more than half of the free "
            "memory. Choose a smaller --image-size, or unpack it into a folder of class folders, "
            "which is read as it is needed."
        )


def is_image(path: Path) -> bool:
    """Whether a file is an image that nobody has hidden, by its name."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _image_files(folder: Path) -> list[Path]:
    return sorted(filter(is_image, folder.rglob("*")))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_files(top: Path, leaves: bool) -> dict[str, list[Path]]:
    """Return the images of each class under a folder, by the class's name."""
    if not leaves:
        return {f.name: _image_files(f) for f in _subfolders(top)}
    found: dict[str, list[Path]] = {}
    for path in _image_files(top):
        if path.parent != top:
            found.setdefault(path.parent.relative_to(top).as_posix(), []).append(path)
    return found


def _folder(root: Path, size: int, seed: int, leaves: bool, loose: bool) -> ImageData:
    folders = _subfolders(root)
    tops = {SPLITS[f.name.lower()]: f for f in folders if f.name.lower() in SPLITS}
    if tops and "train" not in tops and any(_subfolders(top) for top in tops.values()):
        raise InputError(
            f"{root} has {' and '.join(sorted(f.name for f in tops.values()))} but no train "
            "folder: add one, or put the class folders directly into it to have them split."
        )
    if "train" not in tops:
        tops = {"train": root}
    elif beside := [f.name for f in folders if f not in tops.values()]:
        print(f"Ignored beside {tops['train'].name}/: {', '.join(beside)}")
    find = functools.partial(_class_files, leaves=leaves)
    if loose and not find(tops["train"]):
        name = root.resolve().name

        def find(top: Path) -> dict[str, list[Path]]:
            files = _image_files(top)
            return {name: files} if files else {}

    classes = list(find(tops["train"]))
    if not classes:
        count = len(_image_files(tops["train"]))
        found = f"{count} images but no class folders" if count else "nothing in it"
        raise InputError(
            f"{tops['train']} has {found}: --data takes a folder that holds one folder of images a "
            "class, such as photos/cat/1.jpg and photos/dog/2.jpg."
        )
    if len(classes) == 1 and not loose:
        raise InputError(
            f"{tops['train']} has one class folder, '{classes[0]}'; a classifier needs two or more."
        )
    parts, skipped = {}, []
    for part, top in tops.items():
        found = find(top)
        unknown = set(found) - set(classes)
        if unknown:
            raise InputError(
                f"{top} has a class '{min(unknown)}' that {tops['train']} lacks"
                f"{nearest(min(unknown), classes)} Every class needs training images."
            )
        files = [(path, i) for i, c in enumerate(classes) for path in found.get(c, ())]
        labels = np.array([label for _, label in files], np.int32)
        paths = np.array([str(path) for path, _ in files], object)
        split = Split(labels, (size, size), paths=paths)
        images, good, bad = read_pixels(paths, split.size, split.decode, part)
        parts[part] = split.take(good)
        parts[part].images = None if images is None else images[good]
        skipped += bad
        present = np.bincount(parts[part].labels, minlength=len(classes))
        if part == "train" and present.min() == 0:
            empty = classes[present.argmin()]
            raise InputError(
                f"Class '{empty}' has no readable image in {top / empty}: add images (of "
                f"{', '.join(sorted(SUFFIXES))}), or remove the folder."
            )
        if not len(parts[part]):
            raise InputError(f"{top} has no readable images: fill it, or remove the folder.")
    # Of the path, its name: the sentence travels with exported files.
    what = f"{len(classes)} classes" if len(classes) > 1 else "images"
    kind = f"folder of {what}, {root.resolve().name}"
    data = _complete(parts, kind, classes, seed, str(root))
    data.skipped = skipped
    return data


def read_pixels(paths, size: tuple[int, int], decode: Callable[[str], np.ndarray], part: str):
    """Decode files at once where their pixels fit in memory, and one process trains alone.

    Args:
        paths: the files.
        size: `(height, width)` of what `decode` returns.
        decode: reads one as uint8 `[height, width, 3]`, or raises InputError.
        part: what they are, for the progress bar.

    Returns:
        (uint8 `[n, height, width, 3]` or None where they are read later, bool `[n]` of the readable
        ones, messages about the others).
    """
    good = np.ones(len(paths), bool)
    # One of several processes reads what it needs of an epoch, no more.
    if several() or not _fits(len(paths), size):
        return None, good, []
    images = np.empty((len(paths), *size, 3), np.uint8)
    skipped = []

    def read(index: int) -> str | None:
        try:
            images[index] = decode(paths[index])
        except InputError as error:
            good[index] = False
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for problem in progress(pool.map(read, range(len(paths))), len(paths), f"decoding {part}"):
            if problem:
                skipped.append(problem)
                print(f"Skipped: {problem}")
    return images, good, skipped
