"""Custom Keras layers, written with `keras.ops`: they run on TensorFlow, JAX and torch."""

from tiffin.layers.activations import Maxout, MaxoutConv2D, PReLU
from tiffin.layers.adversarial import ToPixels, discriminator_loss, generator_loss
from tiffin.layers.anchors import anchor_shapes, grid_anchors, kmeans_anchors, ssd_boxes, ssd_scales
from tiffin.layers.attention import BahdanauAttention, LuongAttention
from tiffin.layers.box_losses import (
    binary_cross_entropy,
    focal_loss,
    smooth_l1,
    sparse_cross_entropy,
)
from tiffin.layers.boxes import (
    DecodeBoxes,
    box_area,
    clip_boxes,
    decode_boxes,
    decode_cells,
    decode_roots,
    encode_boxes,
    encode_cells,
    encode_roots,
    intersection,
    iou,
    take_rows,
    to_centers,
    to_corners,
)
from tiffin.layers.center_loss import CenterLoss
from tiffin.layers.convolution import GroupedConv2D
from tiffin.layers.darknet import DarknetConvolutions, darknet_maps
from tiffin.layers.decoder import Decoder
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
from tiffin.layers.im2col import Im2ColConv2D, col2im, im2col
from tiffin.layers.inception import conv_relu, inception_module
from tiffin.layers.low_rank import LowRankDense, truncate_svd
from tiffin.layers.margin import (
    AMSoftmax,
    ArcFace,
    ASoftmax,
    EmbeddingTrainer,
    LSoftmax,
    MarginAnnealing,
    MarginSoftmax,
)
from tiffin.layers.matching import balanced_sample, hardest, match, take_objects
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
    L2Normalization,
    LocalResponseNormalization,
)
from tiffin.layers.pair_losses import ContrastiveLoss, TripletLoss, pairwise_distances
from tiffin.layers.pooling import overlapping_max_pooling, padded_max_pooling
from tiffin.layers.proposals import DecodeRegions, Proposals, PyramidRoIAlign, feature_pyramid
from tiffin.layers.recurrent import (
    CoupledLSTMCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTMCell,
    Recurrent,
    SimpleRNNCell,
)
from tiffin.layers.region_losses import proposal_losses, region_losses, sample_regions
from tiffin.layers.regions import RoIAlign, RoIPool, SpatialPyramidPooling, WarpedRegions
from tiffin.layers.residual import (
    ZeroPaddedShortcut,
    basic_block,
    bottleneck_block,
    conv_bn,
    inverted_residual,
    make_divisible,
    padded_conv,
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
from tiffin.layers.ssd_losses import ssd_losses
from tiffin.layers.suppression import (
    NonMaxSuppression,
    RelativeDetections,
    RuntimeSuppression,
    soft_nms,
    suppress,
)
from tiffin.layers.yolo import DecodeCells, DecodeRoots, JointScores, Reorg, yolo_losses

__all__ = [
    "INCEPTION_STEM",
    "SMALLEST_WITH_AUXILIARY",
    "AMSoftmax",
    "ASoftmax",
    "ArcFace",
    "BahdanauAttention",
    "BatchNormalization",
    "CenterLoss",
    "ChannelShuffle",
    "ChannelSplit",
    "ContrastiveLoss",
    "CoupledLSTMCell",
    "DarknetConvolutions",
    "DecodeBoxes",
    "DecodeCells",
    "DecodeRegions",
    "DecodeRoots",
    "Decoder",
    "EmbeddingTrainer",
    "GRUCell",
    "GroupedConv2D",
    "Im2ColConv2D",
    "ImageNormalization",
    "JointScores",
    "KLDivergence",
    "L2Normalization",
    "LSTMCell",
    "LSoftmax",
    "LocalResponseNormalization",
    "LowRankDense",
    "LuongAttention",
    "MarginAnnealing",
    "MarginSoftmax",
    "Maxout",
    "MaxoutConv2D",
    "NonMaxSuppression",
    "PReLU",
    "PeepholeLSTMCell",
    "Proposals",
    "PyramidRoIAlign",
    "Recurrent",
    "RelativeDetections",
    "Reorg",
    "RoIAlign",
    "RoIPool",
    "RuntimeSuppression",
    "ScaledResidual",
    "ShuffledConcatenate",
    "SimpleRNNCell",
    "SpatialPyramidPooling",
    "ToPixels",
    "Top",
    "TripletLoss",
    "WarpedRegions",
    "ZeroPaddedShortcut",
    "anchor_shapes",
    "balanced_sample",
    "basic_block",
    "binary_cross_entropy",
    "bottleneck_block",
    "box_area",
    "check_inception",
    "classification_head",
    "classifier",
    "clip_boxes",
    "col2im",
    "conv_bn",
    "conv_relu",
    "cross_entropy",
    "darknet_maps",
    "decode_boxes",
    "decode_cells",
    "decode_roots",
    "dense_block",
    "dense_layer",
    "depthwise_conv",
    "discriminator_loss",
    "encode_boxes",
    "encode_cells",
    "encode_roots",
    "entropy",
    "factorized_inception",
    "feature_pyramid",
    "fire",
    "flat_embedding",
    "focal_loss",
    "generator_loss",
    "grid_anchors",
    "hardest",
    "hidden_layers",
    "im2col",
    "image_input",
    "inception_auxiliary_head",
    "inception_layers",
    "inception_module",
    "inception_stem",
    "inception_stem_strides",
    "intersection",
    "inverted_residual",
    "iou",
    "kl_divergence",
    "kmeans_anchors",
    "largest_stem_stride",
    "make_divisible",
    "match",
    "overlapping_max_pooling",
    "padded_conv",
    "padded_max_pooling",
    "pairwise_distances",
    "proposal_losses",
    "region_losses",
    "require_size",
    "sample_regions",
    "separable_block",
    "shuffle_unit",
    "shuffle_unit_v2",
    "smooth_l1",
    "soft_nms",
    "sparse_cross_entropy",
    "sphere_stage",
    "squeeze_excitation",
    "ssd_boxes",
    "ssd_losses",
    "ssd_scales",
    "suppress",
    "take_objects",
    "take_rows",
    "to_centers",
    "to_corners",
    "transition",
    "truncate_svd",
    "yolo_losses",
]
