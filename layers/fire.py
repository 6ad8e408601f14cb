"""SqueezeNet's Fire module, written as a function over Keras tensors."""

import keras
from keras import layers


def fire(
    x: keras.KerasTensor,
    squeeze: int,
    expand1x1: int,
    expand3x3: int,
    *,
    name: str,
    bypass: str | None = None,
) -> keras.KerasTensor:
    """Squeeze to few channels, then expand by 1x1 and 3x3 convolutions side by side.

    Iandola et al. 2016 (arXiv 1602.07360), section 3.2 and figure 1; bypasses section 6 and
    figure 2. Every convolution has a bias and a ReLU, no normalisation.

    Args:
        x: float `[batch, height, width, channels]`.
        squeeze: the paper's s1x1, filters of the 1x1 convolution that feeds the other two.
        expand1x1: the paper's e1x1, filters of the expanding 1x1 convolution.
        expand3x3: the paper's e3x3, filters of the expanding 3x3 convolution.
        name: prefix of the layers `{name}_squeeze1x1`, `{name}_expand1x1`, `{name}_expand3x3`, each
            with its `_relu`, of `{name}_concat`, and of `{name}_bypass` and `{name}_add`.
        bypass: what is added to the output: None, "simple" (the input itself, which must have as
            many channels), or "complex" (the input after a 1x1 convolution).

    Returns:
        `[batch, height, width, expand1x1 + expand3x3]`.

    Raises:
        ValueError: another `bypass`, or a simple one around a change of channels.
    """
    if bypass not in (None, "simple", "complex"):
        raise ValueError(f"bypass={bypass!r} must be None, 'simple' or 'complex'.")
    filters = expand1x1 + expand3x3
    if bypass == "simple" and x.shape[-1] != filters:
        raise ValueError(
            f"A simple bypass cannot add {x.shape[-1]} channels to {filters}: bypass='complex' can."
        )
    skip = x
    x = _convolve(x, squeeze, 1, f"{name}_squeeze1x1")
    x = layers.Concatenate(name=f"{name}_concat")(
        [
            _convolve(x, expand1x1, 1, f"{name}_expand1x1"),
            _convolve(x, expand3x3, 3, f"{name}_expand3x3"),
        ]
    )
    if bypass == "complex":
        skip = layers.Conv2D(filters, 1, kernel_initializer="he_uniform", name=f"{name}_bypass")(
            skip
        )
    return layers.Add(name=f"{name}_add")([skip, x]) if bypass else x


def _convolve(x, filters, kernel_size, name):
    x = layers.Conv2D(
        filters, kernel_size, padding="same", kernel_initializer="he_uniform", name=name
    )(x)
    return layers.ReLU(name=f"{name}_relu")(x)
