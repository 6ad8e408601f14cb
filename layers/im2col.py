"""Convolution as a matrix product: im2col, the product, and col2im for its gradient.

Chellapilla, Puri, Simard: High Performance Convolutional Neural Networks for Document Processing,
2006, section 2. To be read and measured; `keras.layers.Conv2D` computes the same.
"""

import keras
from keras import ops


def im2col(x, size: int, stride: int = 1):
    """Return the patches that a square kernel sees, each as a row.

    Args:
        x: `[batch, height, width, channels]`.
        size: side of the kernel.
        stride: places from a patch to the next, in both directions.

    Returns:
        `[batch, rows, columns, size² channels]`, `rows = (height - size) // stride + 1`.
    """
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    shifts = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return ops.concatenate(shifts, -1)


def col2im(patches, height: int, width: int, size: int, stride: int = 1):
    """Return the picture to whose places the patches add up: the transpose of `im2col`.

    Args:
        patches: as `im2col` returns them.
        height, width: of the picture.
        size, stride: as for `im2col`.

    Returns:
        `[batch, height, width, channels]`.
    """
    rows, columns, channels = *patches.shape[1:3], patches.shape[3] // size**2
    total = 0
    for shift in range(size**2):
        i, j = divmod(shift, size)
        part = patches[..., shift * channels : (shift + 1) * channels]
        # Zeros between the places that a stride leaves out, then around the whole.
        part = ops.reshape(part, (-1, rows, 1, columns, 1, channels))
        gap = (0, stride - 1)
        part = ops.pad(part, [(0, 0), (0, 0), gap, (0, 0), gap, (0, 0)])
        part = ops.reshape(part, (-1, rows * stride, columns * stride, channels))
        part = part[:, : (rows - 1) * stride + 1, : (columns - 1) * stride + 1]
        below, right = height - i - part.shape[1], width - j - part.shape[2]
        total = total + ops.pad(part, [(0, 0), (i, below), (j, right), (0, 0)])
    return total


@keras.saving.register_keras_serializable("tiffin")
class Im2ColConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` as one matrix product, with its gradient written out.

    With the patches as the rows of X, the kernel as W and the upstream gradient as G:
    `Y = X W`, `dW = Xᵀ G` and, for the picture, `col2im(G Wᵀ)`.

    Args: those of `keras.layers.Conv2D`; square kernels and strides, no dilation, no groups.

    Raises:
        ValueError: one of these, or channels first.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        (a, b), (c, d) = self.kernel_size, self.strides
        if a != b or c != d or self.dilation_rate != (1, 1) or self.groups != 1:
            raise ValueError(
                f"kernel_size={self.kernel_size}, strides={self.strides}, dilation_rate="
                f"{self.dilation_rate}, groups={self.groups}: Im2ColConv2D has square kernels and "
                "strides, no dilation and one group."
            )
        if self.data_format != "channels_last":
            raise ValueError("Im2ColConv2D takes channels last.")

    def call(self, inputs):
        x, (size, _), (stride, _) = inputs, self.kernel_size, self.strides
        if self.padding == "same":
            more = [max(0, (-(-n // stride) - 1) * stride + size - n) for n in x.shape[1:3]]
            x = ops.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in more), (0, 0)])
        height, width = x.shape[1:3]

        @ops.custom_gradient
        def product(x, weights):
            patches = im2col(x, size, stride)

            def gradient(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                rows = ops.reshape(patches, (-1, patches.shape[-1]))
                flat = ops.reshape(upstream, (-1, upstream.shape[-1]))
                back = ops.matmul(upstream, ops.transpose(weights))
                return (
                    col2im(back, height, width, size, stride),
                    ops.matmul(ops.transpose(rows), flat),
                )

            return ops.matmul(patches, weights), gradient

        y = product(x, ops.reshape(self.kernel, (-1, self.filters)))
        y = ops.add(y, self.bias) if self.use_bias else y
        return self.activation(y)
