"""Custom Keras layers, written with `keras.ops`: they run on TensorFlow, JAX and torch."""

from tiffin.layers.activations import Maxout, MaxoutConv2D, PReLU
from tiffin.layers.convolution import GroupedConv2D
from tiffin.layers.heads import classification_head
from tiffin.layers.normalization import BatchNormalization, ImageNormalization
from tiffin.layers.residual import (
    ZeroPaddedShortcut,
    basic_block,
    bottleneck_block,
    conv_bn,
    inverted_residual,
    make_divisible,
)

__all__ = [
    "BatchNormalization",
    "GroupedConv2D",
    "ImageNormalization",
    "Maxout",
    "MaxoutConv2D",
    "PReLU",
    "ZeroPaddedShortcut",
    "basic_block",
    "bottleneck_block",
    "classification_head",
    "conv_bn",
    "inverted_residual",
    "make_divisible",
]
