"""Channel shuffle and the units of ShuffleNet.

The layers change to channels-first for the while that they reorder channels, where a channel is one
block of memory. ONNX files are channels-first throughout: there the changes cancel with those that
the converter makes around convolutions.
"""

import keras
from keras import layers, ops

from tiffin.layers.normalization import BatchNormalization
from tiffin.layers.residual import conv_bn
from tiffin.layers.separable import depthwise_conv


def _channels_first(x):
    return ops.transpose(x, (0, 3, 1, 2))


def _channels_last(x):
    return ops.transpose(x, (0, 2, 3, 1))


@keras.saving.register_keras_serializable("tiffin")
class ChannelShuffle(keras.layers.Layer):
    """Deal the channels of every group out to all groups of the next grouped convolution.

    Zhang et al. 2017 (arXiv 1707.01083), section 3.1: channels `[groups, n]`, transposed, are
    `[n, groups]`: the first of every group, the second of every group, and so on.

    Args:
        groups: of the convolution before; divides the channels.
        **kwargs: `name`, `dtype`.

    Input and output: `[batch, height, width, channels]`.

    Raises:
        ValueError: `groups` is below 1, or does not divide the channels.
    """

    def __init__(self, groups: int, **kwargs):
        super().__init__(**kwargs)
        if groups < 1:
            raise ValueError(f"groups={groups} must be 1 or more.")
        self.groups = groups

    def build(self, input_shape):
        _check(input_shape, self.groups, "groups")

    def call(self, inputs):
        _, height, width, channels = ops.shape(inputs)
        x = _channels_first(inputs)
        x = ops.reshape(x, (-1, self.groups, channels // self.groups, height, width))
        x = ops.transpose(x, (0, 2, 1, 3, 4))
        return _channels_last(ops.reshape(x, (-1, channels, height, width)))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return super().get_config() | {"groups": self.groups}


@keras.saving.register_keras_serializable("tiffin")
class ChannelSplit(keras.layers.Layer):
    """Cut a feature map into parts of equally many channels.

    Ma et al. 2018 (arXiv 1807.11164), section 3.2 and figure 3c, with two parts.

    Args:
        parts: how many; divides the channels.
        **kwargs: `name`, `dtype`.

    Input: `[batch, height, width, channels]`.
    Output: a list of `parts` of `[batch, height, width, channels / parts]`.

    Raises:
        ValueError: `parts` is below 1, or does not divide the channels.
    """

    def __init__(self, parts: int = 2, **kwargs):
        super().__init__(**kwargs)
        if parts < 1:
            raise ValueError(f"parts={parts} must be 1 or more.")
        self.parts = parts

    def build(self, input_shape):
        _check(input_shape, self.parts, "parts")

    def call(self, inputs):
        return [_channels_last(x) for x in ops.split(_channels_first(inputs), self.parts, axis=1)]

    def compute_output_shape(self, input_shape):
        return [(*input_shape[:-1], input_shape[-1] // self.parts)] * self.parts

    def get_config(self):
        return super().get_config() | {"parts": self.parts}


@keras.saving.register_keras_serializable("tiffin")
class ShuffledConcatenate(keras.layers.Layer):
    """Concatenate feature maps and shuffle their channels, in one move of memory.

    Equal to `ChannelShuffle(len(inputs))` behind a concatenation: the first channel of every input,
    the second of every input, and so on. Stacking the inputs channel by channel needs no transpose.
    Ma et al. 2018 (arXiv 1807.11164), figure 3c and d.

    Args:
        **kwargs: `name`, `dtype`.

    Input: a list of `[batch, height, width, channels]`, all of one shape.
    Output: `[batch, height, width, channels * len(inputs)]`.

    Raises:
        ValueError: the shapes differ.
    """

    def build(self, input_shape):
        if len({tuple(shape) for shape in input_shape}) != 1 or len(input_shape[0]) != 4:
            shapes = ", ".join(str(tuple(shape)) for shape in input_shape)
            raise ValueError(
                "ShuffledConcatenate takes inputs of one shape [batch, height, width, channels], "
                f"not {shapes}."
            )

    def call(self, inputs):
        _, height, width, channels = ops.shape(inputs[0])
        x = ops.concatenate([ops.expand_dims(_channels_first(x), 2) for x in inputs], axis=2)
        return _channels_last(ops.reshape(x, (-1, channels * len(inputs), height, width)))

    def compute_output_shape(self, input_shape):
        return (*input_shape[0][:-1], input_shape[0][-1] * len(input_shape))


def _check(shape, parts: int, what: str) -> None:
    if len(shape) != 4 or shape[-1] is None or shape[-1] % parts:
        raise ValueError(
            f"{what}={parts} takes [batch, height, width, a multiple of {parts} channels], not "
            f"{tuple(shape)}."
        )


def shuffle_unit(
    x: keras.KerasTensor,
    filters: int,
    stride: int = 1,
    *,
    groups: int,
    name: str,
    first_groups: int | None = None,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Apply ShuffleNet's unit: a bottleneck of grouped 1x1 and 3x3 depthwise convolutions.

    Zhang et al. 2017 (arXiv 1707.01083), figure 2: b with a stride of 1, c with 2, where the input,
    averaged over 3x3 pixels, is appended instead of added.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: channels of the output, a multiple of `4 * groups`; the bottleneck has a quarter.
        stride: of the depthwise convolution. Without a stride the input must have `filters`
            channels; with one, `filters` less those of the input are a multiple of `groups`.
        groups: of both 1x1 convolutions.
        name: prefix of all layers, such as `stage2_unit1`; the last one is `{name}_out`.
        first_groups: groups of the first 1x1 convolution, where they differ.
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), filters]`, after the last ReLU.

    Raises:
        ValueError: channels that do not divide by groups, or cannot be added.
    """
    channels = x.shape[-1]
    new = filters if stride == 1 else filters - channels
    if filters % (4 * groups) or new < 1 or new % groups or (stride == 1 and channels != filters):
        raise ValueError(
            f"A shuffle unit of {groups} groups and stride {stride} cannot lead from {channels} to "
            f"{filters} channels: those must be a multiple of {4 * groups}; without a stride as "
            f"many as before, with one a multiple of {groups} more."
        )
    bn = {"epsilon": epsilon, "momentum": momentum}
    first = groups if first_groups is None else first_groups
    skip, middle = x, filters // 4
    x = conv_bn(x, middle, 1, groups=first, name=f"{name}_1", **bn)
    x = layers.ReLU(name=f"{name}_1_relu")(x)
    if groups > 1:
        x = ChannelShuffle(groups, name=f"{name}_shuffle")(x)
    x = _depthwise_bn(x, stride, f"{name}_2", bn)
    x = conv_bn(x, new, 1, groups=groups, name=f"{name}_3", **bn)
    if stride == 1:
        x = layers.Add(name=f"{name}_add")([skip, x])
    else:
        # The zeros around count in the mean, as in the authors' and torch's code.
        skip = layers.ZeroPadding2D(1, name=f"{name}_pool_pad")(skip)
        skip = layers.AveragePooling2D(3, stride, name=f"{name}_pool")(skip)
        x = layers.Concatenate(name=f"{name}_concat")([x, skip])
    return layers.ReLU(name=f"{name}_out")(x)


def shuffle_unit_v2(
    x: keras.KerasTensor,
    filters: int,
    stride: int = 1,
    *,
    name: str,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Apply ShuffleNet V2's unit: half of the channels pass, half are filtered, all are shuffled.

    Ma et al. 2018 (arXiv 1807.11164), figure 3: c with a stride of 1; d with 2, where two branches
    see all channels.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: channels of the output, even; without a stride those of the input.
        stride: of the depthwise convolutions.
        name: prefix of all layers, such as `stage2_unit1`; the last one is `{name}_out`. The right
            branch has convolutions 1 to 3, the left one 4 (depthwise) and 5.
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), filters]`.

    Raises:
        ValueError: an odd number of `filters`, or another than the input's without a stride.
    """
    if filters % 2 or (stride == 1 and x.shape[-1] != filters):
        raise ValueError(
            f"A shuffle unit of stride {stride} cannot lead from {x.shape[-1]} to {filters} "
            "channels: they must be even, and without a stride as many as before."
        )
    bn = {"epsilon": epsilon, "momentum": momentum}
    half = filters // 2
    if stride == 1:
        left, x = ChannelSplit(name=f"{name}_split")(x)
    else:
        left = _depthwise_bn(x, stride, f"{name}_4", bn)
        left = conv_bn(left, half, 1, name=f"{name}_5", **bn)
        left = layers.ReLU(name=f"{name}_5_relu")(left)
    x = conv_bn(x, half, 1, name=f"{name}_1", **bn)
    x = layers.ReLU(name=f"{name}_1_relu")(x)
    x = _depthwise_bn(x, stride, f"{name}_2", bn)
    x = conv_bn(x, half, 1, name=f"{name}_3", **bn)
    x = layers.ReLU(name=f"{name}_3_relu")(x)
    return ShuffledConcatenate(name=f"{name}_out")([left, x])


def _depthwise_bn(x, stride, name, bn):
    # He's rule for a kernel that sees nine values.
    stddev = (2 / 9) ** 0.5
    x = depthwise_conv(x, stride, name=f"{name}_conv", padding="symmetric", stddev=stddev)
    return BatchNormalization(name=f"{name}_bn", **bn)(x)
