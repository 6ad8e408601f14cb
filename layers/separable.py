"""Depthwise separable convolution, the block of MobileNet."""

import keras
from keras import layers

from tiffin.layers.normalization import BatchNormalization


def depthwise_conv(
    x: keras.KerasTensor, stride: int = 1, *, name: str, padding: str = "same", stddev: float = 0.09
) -> keras.KerasTensor:
    """Apply one 3x3 kernel to every channel, without bias.

    Args:
        x: float `[batch, height, width, channels]`.
        stride: step in height and width.
        name: of the layer; a padding before it is `{name}_pad`.
        padding: where zeros go at a stride of 2. "same": as TensorFlow does, for even sizes below
            and to the right only. "symmetric": one pixel on every side, as torch does. Without a
            stride both are the same.
        stddev: of the truncated normal that draws the kernel; 0.09 in the code of MobileNet's
            authors. Glorot's and He's rules in Keras count a depthwise kernel's fan-in as
            9 * channels, which makes wide layers so faint that BN's epsilon drowns them.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), channels]`.

    Raises:
        ValueError: an unknown `padding`.
    """
    if padding not in ("same", "symmetric"):
        raise ValueError(f"padding={padding!r} must be 'same' (TensorFlow) or 'symmetric' (torch).")
    if padding == "symmetric" and stride > 1:
        x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
        padding = "valid"
    return layers.DepthwiseConv2D(
        3,
        stride,
        "same" if stride == 1 else padding,
        use_bias=False,
        depthwise_initializer=keras.initializers.TruncatedNormal(stddev=stddev),
        name=name,
    )(x)


def pointwise_conv(x: keras.KerasTensor, filters: int, *, name: str) -> keras.KerasTensor:
    """Apply a 1x1 convolution without bias, drawn as `depthwise_conv`'s kernel by default."""
    initializer = keras.initializers.TruncatedNormal(stddev=0.09)
    return layers.Conv2D(filters, 1, use_bias=False, kernel_initializer=initializer, name=name)(x)


def separable_block(
    x: keras.KerasTensor,
    filters: int,
    stride: int = 1,
    *,
    name: str,
    padding: str = "same",
    max_value: float | None = 6,
    epsilon: float = 1e-3,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Filter every channel by itself, then mix the channels: 3x3 depthwise and 1x1 convolution.

    Howard et al. 2017 (arXiv 1704.04861), section 3.1 and figure 3 right: batch normalisation and
    ReLU after both. It costs 1 / filters + 1 / 9 of a full 3x3 convolution.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: channels of the output.
        stride: of the depthwise convolution.
        name: suffix of the layers `conv_dw_{name}` and `conv_pw_{name}`, each with `_bn` and
            `_relu`; those of keras.applications, where it is a number.
        padding: see `depthwise_conv`.
        max_value: where ReLU saturates: 6, as in the authors' code, or None, as in the paper.
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), filters]`.

    Raises:
        ValueError: an unknown `padding`.
    """
    bn = {"epsilon": epsilon, "momentum": momentum}
    x = depthwise_conv(x, stride, name=f"conv_dw_{name}", padding=padding)
    x = BatchNormalization(name=f"conv_dw_{name}_bn", **bn)(x)
    x = layers.ReLU(max_value, name=f"conv_dw_{name}_relu")(x)
    x = pointwise_conv(x, filters, name=f"conv_pw_{name}")
    x = BatchNormalization(name=f"conv_pw_{name}_bn", **bn)(x)
    return layers.ReLU(max_value, name=f"conv_pw_{name}_relu")(x)
