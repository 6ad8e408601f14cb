"""Custom Keras layers, written with `keras.ops`: they run on TensorFlow, JAX and torch."""

from tiffin.layers.activations import Maxout, MaxoutConv2D, PReLU
from tiffin.layers.center_loss import CenterLoss
from tiffin.layers.convolution import GroupedConv2D
from tiffin.layers.dense_block import dense_block, dense_layer, transition
from tiffin.layers.divergence import KLDivergence, cross_entropy, entropy, kl_divergence
from tiffin.layers.factorized_inception import (
    INCEPTION_STEM,
    SMALLEST_WITH_AUXILIARY,
    ScaledResidual,
    check_inception,
    factorized_inception,
    inception_auxiliary_head,
    inception_layers,
    inception_stem,
    inception_stem_strides,
    largest_stem_stride,
)
from tiffin.layers.fire import fire
from tiffin.layers.inception import conv_relu, inception_module
from tiffin.layers.margin import (
    AMSoftmax,
    ArcFace,
    ASoftmax,
    EmbeddingTrainer,
    LSoftmax,
    MarginAnnealing,
    MarginSoftmax,
)
from tiffin.layers.network import (
    Top,
    classification_head,
    classifier,
    flat_embedding,
    hidden_layers,
    image_input,
    require_size,
)
from tiffin.layers.normalization import (
    BatchNormalization,
    ImageNormalization,
    LocalResponseNormalization,
)
from tiffin.layers.pair_losses import ContrastiveLoss, TripletLoss, pairwise_distances
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
from tiffin.layers.separable import depthwise_conv, separable_block
from tiffin.layers.shuffle import (
    ChannelShuffle,
    ChannelSplit,
    ShuffledConcatenate,
    shuffle_unit,
    shuffle_unit_v2,
)
from tiffin.layers.sphere import sphere_stage
from tiffin.layers.squeeze_excitation import squeeze_excitation

__all__ = [
    "INCEPTION_STEM",
    "SMALLEST_WITH_AUXILIARY",
    "AMSoftmax",
    "ASoftmax",
    "ArcFace",
    "BatchNormalization",
    "CenterLoss",
    "ChannelShuffle",
    "ChannelSplit",
    "ContrastiveLoss",
    "EmbeddingTrainer",
    "GroupedConv2D",
    "ImageNormalization",
    "KLDivergence",
    "LSoftmax",
    "LocalResponseNormalization",
    "MarginAnnealing",
    "MarginSoftmax",
    "Maxout",
    "MaxoutConv2D",
    "PReLU",
    "ScaledResidual",
    "ShuffledConcatenate",
    "Top",
    "TripletLoss",
    "ZeroPaddedShortcut",
    "basic_block",
    "bottleneck_block",
    "check_inception",
    "classification_head",
    "classifier",
    "conv_bn",
    "conv_relu",
    "cross_entropy",
    "dense_block",
    "dense_layer",
    "depthwise_conv",
    "entropy",
    "factorized_inception",
    "fire",
    "flat_embedding",
    "hidden_layers",
    "image_input",
    "inception_auxiliary_head",
    "inception_layers",
    "inception_module",
    "inception_stem",
    "inception_stem_strides",
    "inverted_residual",
    "kl_divergence",
    "largest_stem_stride",
    "make_divisible",
    "overlapping_max_pooling",
    "padded_conv",
    "padded_max_pooling",
    "pairwise_distances",
    "require_size",
    "separable_block",
    "shuffle_unit",
    "shuffle_unit_v2",
    "sphere_stage",
    "squeeze_excitation",
    "transition",
]
