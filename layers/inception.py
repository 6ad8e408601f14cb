"""Inception modules, written as functions over Keras tensors."""

from collections.abc import Sequence

import keras
from keras import layers

from tiffin.layers.normalization import BatchNormalization


def conv_relu(
    x: keras.KerasTensor,
    filters: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    padding: str | None = None,
    *,
    name: str,
    alpha: float = 1.0,
    normalize: bool = True,
    use_bias: bool = False,
    bias: float = 0.0,
    initializer: str = "he_normal",
    bn_scale: bool = True,
    epsilon: float = 1e-3,
    momentum: float = 0.9,
) -> keras.KerasTensor:
    """Apply a convolution, batch normalisation if wanted, and ReLU, as the Inception papers do.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: channels of the output, before `alpha`.
        kernel_size: odd height and width of the kernel, or both.
        stride: step in height and width.
        padding: "same" or "valid"; None: half the kernel on every side, so that strided kernels
            see the same zeros on both, as in Caffe and torch; "same" puts most at the end.
        name: prefix of the layers `{name}_pad` (strided kernels), `{name}_conv`, `{name}_bn` and
            `{name}_relu`.
        alpha: width multiplier; no layer falls below 16 channels (or `filters`, if fewer), the
            rule of the authors' code (there `depth_multiplier` and `min_depth`).
        normalize: whether batch normalisation follows the convolution.
        use_bias: whether the convolution has a bias; one without `normalize` should.
        bias: what the bias starts with.
        initializer: of the kernel.
        bn_scale: whether batch normalisation has the factor gamma. The next layer can take its
            place behind a ReLU, and the authors leave it out.
        epsilon, momentum: of batch normalisation.

    Returns:
        `[batch, new height, new width, new channels]`.
    """
    if padding is None and stride > 1 and kernel_size != 1:
        sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        x = layers.ZeroPadding2D(tuple(n // 2 for n in sides), name=f"{name}_pad")(x)
        padding = "valid"
    x = layers.Conv2D(
        max(int(alpha * filters), min(filters, 16)),
        kernel_size,
        stride,
        padding or "same",
        use_bias=use_bias,
        kernel_initializer=initializer,
        bias_initializer=keras.initializers.Constant(bias),
        name=f"{name}_conv",
    )(x)
    if normalize:
        x = BatchNormalization(
            scale=bn_scale, epsilon=epsilon, momentum=momentum, name=f"{name}_bn"
        )(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def inception_module(
    x: keras.KerasTensor,
    filters: Sequence[int],
    *,
    name: str,
    third: str = "5x5",
    pool: str = "max",
    count_zeros: bool = False,
    stride: int = 1,
    **conv,
) -> keras.KerasTensor:
    """Look at a feature map in four ways at once and put the answers side by side.

    Szegedy et al. 2014 (arXiv 1409.4842), figure 2b: a 1x1 convolution, a 3x3 and a 5x5 one each
    behind a 1x1 that reduces channels, and a 3x3 pooling before a 1x1. Ioffe and Szegedy 2015
    (arXiv 1502.03167), figure 5, puts two 3x3 in place of the 5x5, and reduces the size by modules
    whose last convolutions and pooling stride, which have no 1x1 branch and no projection.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: the paper's row: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5 (or double #3x3) and
            pool proj. No 1x1 branch where the first is 0; a pooling that passes through where the
            last is.
        name: prefix of all layers, such as `inception_3a`; the last one is `{name}_output`, the
            convolutions are `{name}_1x1`, `{name}_3x3_reduce`, `{name}_3x3`, `{name}_5x5_reduce`,
            `{name}_5x5` (or `{name}_double_3x3_reduce`, `_1` and `_2`) and `{name}_pool_proj`.
        third: kernels of the third branch: "5x5", "double_3x3", or "3x3", which is torch's
            GoogLeNet and keeps the names of "5x5".
        pool: "max" or "avg".
        count_zeros: whether an average at the border divides by 9 as everywhere, as in Caffe, or
            by the pixels that are there, as in TensorFlow.
        stride: of the last convolution of the second and third branch, and of the pooling.
        **conv: further arguments of `conv_relu`, such as `alpha` and `momentum`.

    Returns:
        `[batch, ceil(height / stride), ceil(width / stride), sum of the branches' filters]`.

    Raises:
        ValueError: another `third` or `pool`; a stride with a 1x1 branch or a projection.
    """
    if third not in ("5x5", "3x3", "double_3x3"):
        raise ValueError(f"third={third!r} must be '5x5', '3x3' or 'double_3x3'.")
    if pool not in ("max", "avg"):
        raise ValueError(f"pool={pool!r} must be 'max' or 'avg'.")
    one, reduce_3, three, reduce_5, five, projection = filters
    if stride > 1 and (one or projection):
        raise ValueError(
            f"stride={stride}: a module that strides has no 1x1 branch and no projection; give 0 "
            f"for the first and the last number of filters={tuple(filters)}."
        )
    branches = []
    if one:
        branches.append(conv_relu(x, one, 1, name=f"{name}_1x1", **conv))

    y = conv_relu(x, reduce_3, 1, name=f"{name}_3x3_reduce", **conv)
    branches.append(conv_relu(y, three, 3, stride, name=f"{name}_3x3", **conv))

    if third == "double_3x3":
        y = conv_relu(x, reduce_5, 1, name=f"{name}_double_3x3_reduce", **conv)
        y = conv_relu(y, five, 3, name=f"{name}_double_3x3_1", **conv)
        branches.append(conv_relu(y, five, 3, stride, name=f"{name}_double_3x3_2", **conv))
    else:
        y = conv_relu(x, reduce_5, 1, name=f"{name}_5x5_reduce", **conv)
        branches.append(conv_relu(y, five, int(third[0]), stride, name=f"{name}_5x5", **conv))

    if pool == "max":
        y = layers.MaxPooling2D(3, stride, "same", name=f"{name}_pool")(x)
    elif count_zeros:
        y = layers.ZeroPadding2D(1, name=f"{name}_pool_pad")(x)
        y = layers.AveragePooling2D(3, stride, name=f"{name}_pool")(y)
    else:
        y = layers.AveragePooling2D(3, stride, "same", name=f"{name}_pool")(x)
    if projection:
        y = conv_relu(y, projection, 1, name=f"{name}_pool_proj", **conv)
    branches.append(y)
    return layers.Concatenate(name=f"{name}_output")(branches)
