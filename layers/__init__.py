"""Custom Keras layers, written with `keras.ops`: they run on TensorFlow, JAX and torch."""

from tiffin.layers.normalization import ImageNormalization
from tiffin.layers.residual import (
    ZeroPaddedShortcut,
    basic_block,
    bottleneck_block,
    conv_bn,
    inverted_residual,
    make_divisible,
)

__all__ = [
    "ImageNormalization",
    "ZeroPaddedShortcut",
    "basic_block",
    "bottleneck_block",
    "conv_bn",
    "inverted_residual",
    "make_divisible",
]
