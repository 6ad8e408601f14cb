"""Squeeze-and-excitation, written as a function over Keras tensors."""

import keras
from keras import layers


def squeeze_excitation(
    x: keras.KerasTensor, reduction: int = 16, *, name: str
) -> keras.KerasTensor:
    """Scale every channel by a weight that the whole picture decides.

    Hu et al. 2017 (arXiv 1709.01507), section 3, equations 2 to 4: squeeze the picture to one
    number a channel by its mean, let two fully connected layers see how the channels go together,
    and excite: multiply each channel by what comes out, between 0 and 1. The two layers are 1x1
    convolutions with bias, as in the authors' code: they need no change of shape.

    Args:
        x: float `[batch, height, width, channels]`.
        reduction: the paper's r; the first of the two layers has `channels // reduction` outputs.
        name: prefix of the layers `{name}_squeeze`, `{name}_reduce`, `{name}_expand` and
            `{name}_excite`.

    Returns:
        `[batch, height, width, channels]`.

    Raises:
        ValueError: `reduction` leaves no channel, or is below 1.
    """
    channels = x.shape[-1]
    if not 1 <= reduction <= channels:
        raise ValueError(f"reduction={reduction} must be 1 to {channels}, the input's channels.")
    weights = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    weights = layers.Conv2D(
        channels // reduction,
        1,
        activation="relu",
        kernel_initializer="he_normal",
        name=f"{name}_reduce",
    )(weights)
    weights = layers.Conv2D(channels, 1, activation="sigmoid", name=f"{name}_expand")(weights)
    return layers.Multiply(name=f"{name}_excite")([x, weights])
