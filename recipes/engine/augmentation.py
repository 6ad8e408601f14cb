"""Augmentation by name: each a function of a whole batch, any number of them in a row.

Neighbours that only move pixels about are joined, so that a picture is interpolated once.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from tiffin.export.errors import InputError, nearest

# name: (default strength, what it is)
AUGMENTATIONS = {
    "rotation": (15.0, "degrees to either side"),
    "horizontal_flip": (0.5, "probability"),
    "vertical_flip": (0.5, "probability"),
    "color_jitter": (0.3, "largest relative change of brightness, contrast and saturation"),
    "translation": (0.1, "share of the side by which the picture moves, mirrored at its border"),
    "shear": (0.1, "largest slant to either side, as a tangent"),
    "random_crop": (0.125, "share of the side by which the picture moves, black beyond its border"),
    "center_crop": (0.875, "share of the side that is kept and enlarged"),
    "scale": (0.2, "largest relative change of size"),
    "noise": (8.0, "standard deviation of Gaussian noise in grey levels"),
}


@dataclasses.dataclass(frozen=True)
class Chance:
    """Random numbers for the rows of a batch, or for some of them, which then get the same.

    Attributes:
        seed: integers `[2]`, as TensorFlow's stateless functions take them.
        first: number of the first row here in the whole batch.
        rows: of the whole batch; None: all are here.
    """

    seed: Any
    first: int = 0
    rows: int | None = None

    def fold_in(self, number) -> "Chance":
        """Return other random numbers, for the same rows."""
        import tensorflow as tf

        seed = tf.random.experimental.stateless_fold_in(self.seed, number)
        return dataclasses.replace(self, seed=seed)

    def uniform(self, rows, shape=(), low=0.0, high=1.0, dtype="float32"):
        """Return `[rows, *shape]`, from `low` up to and without `high`."""
        import tensorflow as tf

        return self._drawn(
            tf.random.stateless_uniform, rows, shape, low, high, tf.dtypes.as_dtype(dtype)
        )

    def normal(self, rows, shape):
        """Return `[rows, *shape]` of mean 0 and deviation 1."""
        import tensorflow as tf

        return self._drawn(tf.random.stateless_normal, rows, shape)

    def _drawn(self, draw: Callable, rows, shape, *arguments):
        import tensorflow as tf

        whole = rows if self.rows is None else self.rows
        shape = tf.concat([[whole], tf.cast(shape, tf.int32)], 0)
        numbers = draw(shape, self.seed, *arguments)
        return numbers[self.first : self.first + rows]


def parse(
    names: Sequence[str], known: dict[str, tuple[float, str]] = AUGMENTATIONS
) -> list[tuple[str, float]]:
    """Read `("rotation:10", "horizontal_flip")` as [("rotation", 10.0), ("horizontal_flip", 0.5)].

    Raises:
        InputError: an unknown name, or a strength that is no non-negative number.
    """
    chosen = []
    for given in names:
        name, colon, strength = given.partition(":")
        if name not in known:
            raise InputError(f"There is no augmentation '{name}'{nearest(name, known)}")
        default, meaning = known[name]
        try:
            value = float(strength) if colon else default
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf") or (name == "center_crop" and not 0 < value <= 1):
            raise InputError(
                f"--augment {given}: '{strength}' is no strength; write {name}:{default:g} "
                f"({meaning})."
            )
        chosen.append((name, value))
    return chosen


def augmenter(names: Sequence[str]) -> Callable | None:
    """Return a function of (float32 images `[batch, h, w, c]` in 0-255, `Chance`), or None.

    Args:
        names: names from `AUGMENTATIONS`, each with an optional strength after a colon, applied in
            this order.

    Returns:
        A function that a tf.data pipeline maps over batches; every example of a batch is changed
        by its own random amount, and the same chance gives the same batch.
    """
    chosen = parse(names)
    if not chosen:
        return None

    def augment(images, chance: Chance):
        import tensorflow as tf

        keyed = [
            (chance.fold_in(place), name, strength) for place, (name, strength) in enumerate(chosen)
        ]
        for moves, group in itertools.groupby(keyed, lambda item: item[1] in _MOVES):
            if moves:
                images = _moved(images, [_MOVES[n](images, key, s) for key, n, s in group])
            else:
                for key, name, strength in group:
                    images = FUNCTIONS[name](images, key, strength)
        return tf.clip_by_value(images, 0.0, 255.0)

    return augment


def _uniform(images, key: Chance, low: float, high: float, columns: int = 1):
    import tensorflow as tf

    return key.uniform(tf.shape(images)[0], (columns,), low, high)


def project(images, rows, fill: str, value: float = 0.0):
    """Sample output pixel (x, y, 1) from input pixel rows[:6] @ (x, y, 1).

    Args:
        images: float32 `[batch, height, width, channels]`.
        rows: six tensors `[batch, 1]`.
        fill: REFLECT or CONSTANT, what lies beyond the border.
        value: the constant.
    """
    import tensorflow as tf

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.concat([*rows, tf.zeros_like(rows[0]), tf.zeros_like(rows[0])], axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=value,
        interpolation="BILINEAR",
        fill_mode=fill,
    )


def _moved(images, matrices):
    """Map about the picture's centre by 3x3 matrices in a row, mirrored beyond the border."""
    import tensorflow as tf

    matrix = matrices[0]
    for after in matrices[1:]:
        matrix = matrix @ after
    height, width = (tf.cast(n, tf.float32) for n in tf.unstack(tf.shape(images)[1:3]))
    x, y = (width - 1) / 2, (height - 1) / 2
    (a, b, to_x), (c, d, to_y) = (tf.unstack(matrix[:, i, :, None], axis=1) for i in (0, 1))
    rows = (a, b, x + to_x - a * x - b * y, c, d, y + to_y - c * x - d * y)
    return project(images, rows, "REFLECT")


def _matrix(images, a=1.0, b=0.0, to_x=0.0, c=0.0, d=1.0, to_y=0.0):
    """Return `[batch, 3, 3]`, where a pixel comes from, of numbers or `[batch, 1]` each."""
    import tensorflow as tf

    ones = tf.ones([tf.shape(images)[0], 1])
    entries = [a, b, to_x, c, d, to_y, 0.0, 0.0, 1.0]
    return tf.reshape(tf.concat([ones * entry for entry in entries], axis=1), [-1, 3, 3])


def _rotation(images, key, degrees):
    import tensorflow as tf

    angle = _uniform(images, key, -degrees, degrees) * (3.141592653589793 / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    return _matrix(images, cos, -sin, 0.0, sin, cos)


def _scale(images, key, share):
    shrink = 1 / _uniform(images, key, 1 - min(share, 0.9), 1 + share)
    return _matrix(images, shrink, d=shrink)


def _center_crop(images, key, share):
    return _matrix(images, share, d=share)


def _translation(images, key, share):
    import tensorflow as tf

    sides = tf.cast(tf.shape(images)[1:3], tf.float32)
    down, across = tf.split(_uniform(images, key, -share, share, 2) * sides, 2, axis=1)
    return _matrix(images, to_x=across, to_y=down)


def _shear(images, key, slant):
    return _matrix(images, b=_uniform(images, key, -slant, slant))


def _random_crop(images, key, share):
    import tensorflow as tf

    sides = tf.cast(tf.shape(images)[1:3], tf.float32)
    moves = tf.round(_uniform(images, key, -share, share, 2) * sides)
    one, zero = tf.ones_like(moves[:, :1]), tf.zeros_like(moves[:, :1])
    return project(images, (one, zero, moves[:, 1:], zero, one, moves[:, :1]), "CONSTANT")


def _flip(axis: int) -> Callable:
    def flip(images, key, probability):
        import tensorflow as tf

        chosen = _uniform(images, key, 0.0, 1.0)[:, :, None, None] < probability
        return tf.where(chosen, tf.reverse(images, [axis]), images)

    return flip


def _color_jitter(images, key, share):
    import tensorflow as tf

    factors = 1 + _uniform(images, key, -share, share, 3)[:, :, None, None, None]
    brightness, contrast, saturation = tf.unstack(factors, axis=1)
    images = images * brightness
    grey = tf.reduce_mean(images, axis=-1, keepdims=True)
    images = grey + (images - grey) * saturation
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return mean + (images - mean) * contrast


def _noise(images, key, stddev):
    import tensorflow as tf

    shape = tf.shape(images)
    return images + stddev * key.normal(shape[0], shape[1:])


_MOVES = {
    "rotation": _rotation,
    "scale": _scale,
    "translation": _translation,
    "shear": _shear,
    "center_crop": _center_crop,
}
FUNCTIONS = {
    "horizontal_flip": _flip(2),
    "vertical_flip": _flip(1),
    "color_jitter": _color_jitter,
    "random_crop": _random_crop,
    "noise": _noise,
}
