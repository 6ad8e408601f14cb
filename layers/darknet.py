"""Darknet's networks: convolutions with leaky ReLU, poolings and residual pairs, row by row."""

import itertools
from collections.abc import Sequence

import keras
from keras import layers

from tiffin.layers.residual import conv_bn, padded_conv


class DarknetConvolutions:
    """Convolutions with a leaky ReLU, numbered from 1 in the order in which they are made.

    The names `layer1_conv`, `layer1_bn` and so on follow the order of Darknet's configuration and
    weight files.

    Args:
        normalized: batch normalisation in place of a bias (from YOLO v2 on).
        momentum: of batch normalisation.
    """

    def __init__(self, normalized: bool = True, momentum: float = 0.9):
        self.normalized, self.momentum, self.numbers = normalized, momentum, itertools.count(1)

    def __call__(
        self, x: keras.KerasTensor, filters: int, kernel: int, stride: int = 1
    ) -> keras.KerasTensor:
        """Apply the next convolution, padded on all sides, and a leaky ReLU of slope 0.1."""
        name = f"layer{next(self.numbers)}"
        if self.normalized:
            x = conv_bn(x, filters, kernel, stride, name=name, momentum=self.momentum, epsilon=1e-6)
        else:
            x = padded_conv(x, filters, kernel, stride, name=name, use_bias=True)
        return layers.LeakyReLU(0.1, name=f"{name}_leaky")(x)


def darknet_maps(
    x: keras.KerasTensor, rows: Sequence[str | tuple], conv: DarknetConvolutions
) -> dict[str, keras.KerasTensor]:
    """Apply a table of layers.

    Args:
        x: float `[batch, height, width, channels]`.
        rows: `(filters, kernel)` or `(filters, kernel, stride)` of a convolution; `maxpool`,
            halving the map; `maxpool 1`, of 2x2 windows at a stride of 1; or `residual`: a 1x1
            convolution of half the channels and a 3x3 one, added to what was there (YOLOv3, arXiv
            1804.02767, table 1).
        conv: makes the convolutions.

    Returns:
        The last map of each stride, as `stride_8` and the like.
    """
    size, maps = x.shape[1], {}
    for row in rows:
        if row == "residual":
            filters = x.shape[-1]
            x = layers.Add()([x, conv(conv(x, filters // 2, 1), filters, 3)])
        elif row == "maxpool":
            x = layers.MaxPooling2D(2, 2)(x)
        elif row == "maxpool 1":
            x = layers.MaxPooling2D(2, 1, "same")(x)
        else:
            x = conv(x, *row)
        maps[f"stride_{size // x.shape[1]}"] = x
    return maps
