"""Custom Keras layers, written with `keras.ops`: they run on TensorFlow, JAX and torch."""

from tiffin.layers.activations import Maxout, MaxoutConv2D, PReLU
from tiffin.layers.convolution import GroupedConv2D
from tiffin.layers.dense_block import dense_block, dense_layer, transition
from tiffin.layers.fire import fire
from tiffin.layers.inception import ceil_max_pooling, conv_relu, inception_module
from tiffin.layers.network import (
    Top,
    classification_head,
    classifier,
    hidden_layers,
    image_input,
)
from tiffin.layers.normalization import (
    BatchNormalization,
    ImageNormalization,
    LocalResponseNormalization,
)
from tiffin.layers.pooling import overlapping_max_pooling
from tiffin.layers.residual import (
    ZeroPaddedShortcut,
    basic_block,
    bottleneck_block,
    conv_bn,
    inverted_residual,
    make_divisible,
    padded_conv,
    padded_max_pooling,
)
from tiffin.layers.squeeze_excitation import squeeze_excitation

__all__ = [
    "BatchNormalization",
    "GroupedConv2D",
    "ImageNormalization",
    "LocalResponseNormalization",
    "Maxout",
    "MaxoutConv2D",
    "PReLU",
    "Top",
    "ZeroPaddedShortcut",
    "basic_block",
    "bottleneck_block",
    "ceil_max_pooling",
    "classification_head",
    "classifier",
    "conv_bn",
    "conv_relu",
    "dense_block",
    "dense_layer",
    "fire",
    "hidden_layers",
    "image_input",
    "inception_module",
    "inverted_residual",
    "make_divisible",
    "overlapping_max_pooling",
    "padded_conv",
    "padded_max_pooling",
    "squeeze_excitation",
    "transition",
]
