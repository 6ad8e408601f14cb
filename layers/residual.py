"""Residual blocks, written as functions over Keras tensors.

A block is a function and not a layer, so that its inner layers stand in `model.summary()`, can be
frozen one by one, tapped as feature maps, and matched by name with other people's weights. Layer
names and their order follow keras.applications.
"""

import keras
from keras import layers, ops

from tiffin.layers.convolution import GroupedConv2D
from tiffin.layers.normalization import BatchNormalization
from tiffin.layers.separable import depthwise_conv, pointwise_conv
from tiffin.layers.squeeze_excitation import squeeze_excitation


@keras.saving.register_keras_serializable("tiffin")
class ZeroPaddedShortcut(keras.layers.Layer):
    """The shortcut without parameters: every `stride`-th pixel, new channels filled with zeros.

    He et al. 2015 (arXiv 1512.03385), section 3.3, option A. The zeros come after the input's
    channels, as in the authors' Torch code.

    Args:
        filters: channels of the output, at least those of the input.
        stride: step in height and width, in pixels.
        **kwargs: `name`, `dtype`.

    Input: float `[batch, height, width, channels]`.
    Output: `[batch, ceil(height / stride), ceil(width / stride), filters]`.

    Raises:
        ValueError: `stride` is below 1, or `filters` below the input's channels.
    """

    def __init__(self, filters: int, stride: int = 1, **kwargs):
        super().__init__(**kwargs)
        if stride < 1:
            raise ValueError(f"stride={stride} must be 1 or more.")
        self.filters, self.stride = filters, stride

    def build(self, input_shape):
        if len(input_shape) != 4 or self.filters < input_shape[-1]:
            raise ValueError(
                f"A shortcut of {self.filters} channels cannot carry an input of shape "
                f"{tuple(input_shape)}: it takes [batch, height, width, at most {self.filters}]; "
                "use a projection to reduce channels."
            )

    def call(self, inputs):
        x = inputs[:, :: self.stride, :: self.stride, :]
        extra = self.filters - inputs.shape[-1]
        return ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, extra]]) if extra else x

    def compute_output_shape(self, input_shape):
        batch, *size, _ = input_shape
        return (batch, *(None if n is None else -(-n // self.stride) for n in size), self.filters)

    def get_config(self):
        return super().get_config() | {"filters": self.filters, "stride": self.stride}


def padded_conv(
    x: keras.KerasTensor,
    filters: int,
    kernel_size: int,
    stride: int = 1,
    *,
    name: str,
    groups: int = 1,
    use_bias: bool = False,
) -> keras.KerasTensor:
    """Apply a convolution, He-normal, padded by `kernel_size // 2` on every side.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: channels of the output.
        kernel_size: odd height and width of the kernel.
        stride: step in height and width. Strided kernels see the same zeros on both sides, as in
            the authors' and torch's code; Keras' "same" would put them at the end only.
        name: prefix of the layers `{name}_pad` (strided kernels) and `{name}_conv`.
        groups: each output channel sees one of so many groups of input channels.
        use_bias: whether to add one; batch normalisation behind it makes it useless.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), filters]`.
    """
    padding = "same"
    if stride > 1 and kernel_size > 1:
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    options = {"use_bias": use_bias, "kernel_initializer": "he_normal", "name": f"{name}_conv"}
    if groups == 1:
        return layers.Conv2D(filters, kernel_size, stride, padding, **options)(x)
    return GroupedConv2D(filters, kernel_size, stride, padding, groups=groups, **options)(x)


def conv_bn(
    x: keras.KerasTensor,
    filters: int,
    kernel_size: int,
    stride: int = 1,
    *,
    name: str,
    groups: int = 1,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Apply `padded_conv` without bias, then batch normalisation.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: channels of the output.
        kernel_size: odd height and width of the kernel.
        stride: step in height and width.
        name: prefix of the layers `{name}_pad` (strided kernels), `{name}_conv` and `{name}_bn`.
        groups: each output channel sees one of so many groups of input channels.
        epsilon: added to the variance.
        momentum: weight of the old moving statistics in each step.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), filters]`.
    """
    x = padded_conv(x, filters, kernel_size, stride, name=name, groups=groups)
    return BatchNormalization(epsilon=epsilon, momentum=momentum, name=f"{name}_bn")(x)


def basic_block(
    x: keras.KerasTensor,
    filters: int,
    stride: int = 1,
    *,
    name: str,
    shortcut: str = "projection",
    se_reduction: int | None = None,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Apply the residual block of two 3x3 convolutions (He et al. 2015, figure 5 left).

    Args:
        x: float `[batch, height, width, channels]`.
        filters: channels of both convolutions and of the output.
        stride: of the first convolution and the shortcut.
        name: prefix of all layers, such as `conv2_block1`; the last one is `{name}_out`.
        shortcut: where shape changes, "projection" (1x1 convolution and BN; option B) or
            "identity" (zero-padded, no parameters; option A). Elsewhere the identity always.
        se_reduction: `reduction` of squeeze-and-excitation before the sum; None: without it.
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), filters]`, after the last ReLU.

    Raises:
        ValueError: an unknown `shortcut`.
    """
    bn = {"epsilon": epsilon, "momentum": momentum}
    skip = _shortcut(x, filters, stride, shortcut, name, bn)
    x = conv_bn(x, filters, 3, stride, name=f"{name}_1", **bn)
    x = layers.ReLU(name=f"{name}_1_relu")(x)
    x = conv_bn(x, filters, 3, name=f"{name}_2", **bn)
    if se_reduction:
        x = squeeze_excitation(x, se_reduction, name=f"{name}_se")
    x = layers.Add(name=f"{name}_add")([skip, x])
    return layers.ReLU(name=f"{name}_out")(x)


def bottleneck_block(
    x: keras.KerasTensor,
    filters: int,
    stride: int = 1,
    *,
    name: str,
    shortcut: str = "projection",
    stride_in: str = "1x1",
    widths: tuple[int, int] | None = None,
    groups: int = 1,
    se_reduction: int | None = None,
    shortcut_kernel: int = 1,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Apply the residual block of 1x1, 3x3 and 1x1 convolutions (He et al. 2015, figure 5 right).

    With `groups` and `widths` it is ResNeXt's (Xie et al. 2016, figure 3c), with `se_reduction`
    SE-ResNet's (Hu et al. 2017, figure 3).

    Args:
        x: float `[batch, height, width, channels]`.
        filters: a quarter of the output's channels, and channels of the first two convolutions.
        stride: of the block.
        name: prefix of all layers, such as `conv2_block1`; the last one is `{name}_out`.
        shortcut: as in `basic_block`.
        stride_in: the convolution that carries the stride, "1x1" (the first; the paper's, called
            v1) or "3x3" (torch's, called v1.5: 0.5 % less error for 12 % more arithmetic).
        widths: channels of the first and the second convolution, where they are not `filters`.
        groups: of the 3x3 convolution.
        se_reduction: `reduction` of squeeze-and-excitation before the sum; None: without it.
        shortcut_kernel: height and width of the projection's kernel; 3 in SENet-154.
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), 4 * filters]`, after the last ReLU.

    Raises:
        ValueError: an unknown `shortcut` or `stride_in`.
    """
    if stride_in not in ("1x1", "3x3"):
        raise ValueError(f"stride_in={stride_in!r} must be '1x1' (the paper) or '3x3' (torch).")
    first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
    bn = {"epsilon": epsilon, "momentum": momentum}
    inner, outer = widths or (filters, filters)
    skip = _shortcut(x, 4 * filters, stride, shortcut, name, bn, shortcut_kernel)
    x = conv_bn(x, inner, 1, first, name=f"{name}_1", **bn)
    x = layers.ReLU(name=f"{name}_1_relu")(x)
    x = conv_bn(x, outer, 3, second, groups=groups, name=f"{name}_2", **bn)
    x = layers.ReLU(name=f"{name}_2_relu")(x)
    x = conv_bn(x, 4 * filters, 1, name=f"{name}_3", **bn)
    if se_reduction:
        x = squeeze_excitation(x, se_reduction, name=f"{name}_se")
    x = layers.Add(name=f"{name}_add")([skip, x])
    return layers.ReLU(name=f"{name}_out")(x)


def _shortcut(x, filters, stride, shortcut, name, bn, kernel_size=1):
    if shortcut not in ("projection", "identity"):
        raise ValueError(f"shortcut={shortcut!r} must be 'projection' or 'identity'.")
    if stride == 1 and x.shape[-1] == filters:
        return x
    if shortcut == "projection":
        return conv_bn(x, filters, kernel_size, stride, name=f"{name}_0", **bn)
    return ZeroPaddedShortcut(filters, stride, name=f"{name}_0_shortcut")(x)


def inverted_residual(
    x: keras.KerasTensor,
    filters: int,
    stride: int = 1,
    *,
    expansion: int = 6,
    expand: bool | None = None,
    padding: str = "same",
    name: str,
    epsilon: float = 1e-3,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Apply MobileNetV2's block: expand, filter depthwise, project without a nonlinearity.

    Sandler et al. 2018 (arXiv 1801.04381), table 1 and figure 4d. The input is added to the output
    where both have the same shape.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: channels of the output.
        stride: of the depthwise convolution, 1 or 2.
        expansion: the paper's t.
        expand: whether the expanding convolution is there; None: as the paper has it, where
            `expansion` is above 1.
        padding: of the depthwise convolution, see `depthwise_conv`.
        name: prefix of the layers, such as `block_1`.
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), filters]`.

    Raises:
        ValueError: `expansion` is below 1, or an unknown `padding`.
    """
    if expansion < 1:
        raise ValueError(f"expansion={expansion} must be 1 or more.")
    bn = {"epsilon": epsilon, "momentum": momentum}
    skip, channels = x, x.shape[-1]
    if expansion > 1 if expand is None else expand:
        x = pointwise_conv(x, expansion * channels, name=f"{name}_expand")
        x = BatchNormalization(name=f"{name}_expand_BN", **bn)(x)
        x = layers.ReLU(6, name=f"{name}_expand_relu")(x)
    x = depthwise_conv(x, stride, name=f"{name}_depthwise", padding=padding)
    x = BatchNormalization(name=f"{name}_depthwise_BN", **bn)(x)
    x = layers.ReLU(6, name=f"{name}_depthwise_relu")(x)
    x = pointwise_conv(x, filters, name=f"{name}_project")
    x = BatchNormalization(name=f"{name}_project_BN", **bn)(x)
    if stride == 1 and channels == filters:
        return layers.Add(name=f"{name}_add")([skip, x])
    return x


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a number of channels to a multiple of `divisor`, never down by more than 10 %.

    The rule of MobileNet's published code for scaled widths.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
