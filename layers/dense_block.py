"""DenseNet's blocks, functions over Keras tensors; layer names follow keras.applications."""

import keras
from keras import layers

from tiffin.layers.normalization import BatchNormalization
from tiffin.layers.residual import padded_conv


def dense_layer(
    x: keras.KerasTensor,
    growth_rate: int,
    *,
    name: str,
    bottleneck: bool = True,
    drop_rate: float = 0.0,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Compute `growth_rate` new feature maps from all earlier ones, and append them.

    Huang et al. 2017 (arXiv 1608.06993), equation 2: BN, ReLU, 3x3 convolution; with a bottleneck
    (DenseNet-B) a 1x1 convolution to four times the new maps stands before, with its BN and ReLU.

    Args:
        x: float `[batch, height, width, channels]`.
        growth_rate: the paper's k, new channels.
        name: prefix of the layers `{name}_0_bn` and `{name}_0_relu`; with a bottleneck
            `{name}_1_conv`, `{name}_1_bn` and `{name}_1_relu`; `{name}_2_conv`, `{name}_concat`.
        bottleneck: whether the 1x1 convolution is there.
        drop_rate: of dropout after every convolution, in [0, 1).
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, height, width, channels + growth_rate]`, the new channels last.
    """
    bn = {"epsilon": epsilon, "momentum": momentum}
    new = _activate(x, f"{name}_0", bn)
    if bottleneck:
        new = _convolve(new, 4 * growth_rate, 1, f"{name}_1", drop_rate)
        new = _activate(new, f"{name}_1", bn)
    new = _convolve(new, growth_rate, 3, f"{name}_2", drop_rate)
    return layers.Concatenate(name=f"{name}_concat")([x, new])


def dense_block(
    x: keras.KerasTensor, repeats: int, growth_rate: int, *, name: str, **options
) -> keras.KerasTensor:
    """Apply `repeats` dense layers (Huang et al. 2017, figure 1).

    Args:
        x: float `[batch, height, width, channels]`.
        repeats: number of dense layers.
        growth_rate: new channels of each, the paper's k.
        name: prefix; the layers' own are `{name}_block1` and so on.
        **options: `bottleneck`, `drop_rate`, `epsilon` and `momentum` of `dense_layer`.

    Returns:
        `[batch, height, width, channels + repeats * growth_rate]`, the input's channels first. It
        is not normalised and has no ReLU behind it: whoever reads it begins with its own.
    """
    for repeat in range(repeats):
        x = dense_layer(x, growth_rate, name=f"{name}_block{repeat + 1}", **options)
    return x


def transition(
    x: keras.KerasTensor,
    filters: int,
    *,
    name: str,
    drop_rate: float = 0.0,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Halve the size between two dense blocks: BN, ReLU, 1x1 convolution, 2x2 average pooling.

    Huang et al. 2017 (arXiv 1608.06993), section 3, pooling layers.

    Args:
        x: float `[batch, height, width, channels]`, at least 2x2.
        filters: channels of the output, theta * channels in the paper (compression).
        name: prefix of the layers `{name}_bn`, `{name}_relu`, `{name}_conv` and `{name}_pool`.
        drop_rate: of dropout after the convolution, in [0, 1).
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, height // 2, width // 2, filters]`.
    """
    x = _activate(x, name, {"epsilon": epsilon, "momentum": momentum})
    x = _convolve(x, filters, 1, name, drop_rate)
    return layers.AveragePooling2D(2, name=f"{name}_pool")(x)


def _activate(x, name, bn):
    x = BatchNormalization(name=f"{name}_bn", **bn)(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _convolve(x, filters, kernel_size, name, drop_rate):
    x = padded_conv(x, filters, kernel_size, name=name)
    return layers.Dropout(drop_rate, name=f"{name}_dropout")(x) if drop_rate else x
