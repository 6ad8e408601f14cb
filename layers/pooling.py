"""Pooling windows that Keras' paddings do not have."""

import keras
from keras import layers


def overlapping_max_pooling(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Take the maximum of 3x3 windows at a stride of 2, the last of which may reach over the edge.

    Krizhevsky et al. 2012, section 3.4. Windows begin at the first pixel, and an even side has one
    more whose last pixel is missing: Caffe's rounding, torch's `ceil_mode`. "valid" would leave
    that window out, and "same" would begin before an odd side.

    Args:
        x: float `[batch, height, width, channels]`, 2 pixels or more, none below 0: what comes out
            of a ReLU.
        name: of the layer; `{name}_pad` goes before it where one side is odd and the other even,
            or a side is not known.

    Returns:
        `[batch, ceil((height - 1) / 2), ceil((width - 1) / 2), channels]`.
    """
    odd = [side is not None and side % 2 == 1 for side in x.shape[1:3]]
    padding = "valid"
    if not any(odd) and None not in x.shape[1:3]:
        padding = "same"
    elif not all(odd):
        x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)
    return layers.MaxPooling2D(3, 2, padding, name=name)(x)


def padded_max_pooling(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Take the maximum of 3x3 windows at a stride of 2, with one pixel of zeros on every side.

    The pooling of ResNet's stem in torch and keras.applications.

    Args:
        x: float `[batch, height, width, channels]`.
        name: prefix of the layers `{name}_pad` and `{name}_pool`.

    Returns:
        `[batch, ceil(height / 2), ceil(width / 2), channels]`.
    """
    x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return layers.MaxPooling2D(3, 2, name=f"{name}_pool")(x)
