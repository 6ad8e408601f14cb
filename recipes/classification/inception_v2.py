"""Inception v2: batch normalisation, BN-Inception.

A layer's inputs shift while the layers below it learn, so it chases a moving target. Batch
normalisation gives every channel mean 0 and variance 1 over the batch, then a learnt scale and
offset: learning rates can be thirty times higher, start values matter less, dropout is hardly
needed. GoogLeNet with it, and with two 3x3 convolutions for every 5x5, passes GoogLeNet in a
fourteenth of the steps.

Ioffe, Szegedy: Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift (2015), arXiv 1502.03167.

Reproduces figure 5 (ImageNet, 224x224) and the 25.2 % top-1 error of BN-x30 with a single crop
(figures 3 and 4). Ours: see docs/results.md. Two versions:
    inception_v2   the paper's: the first convolution is separable with depth multiplier 8, 96
                   channels behind the poolings of 4c and 4d, no biases; the rest as in the
                   authors' TensorFlow code
    bninception    the one whose ImageNet weights went from Caffe to mxnet and torch: a full first
                   convolution, 128 channels there, biases (which batch normalisation cancels),
                   poolings that count the zeros around a map

Run it:
    python recipes/classification/inception_v2.py --alpha 0.5 --export
"""

import dataclasses
from typing import ClassVar, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    Top,
    classifier,
    conv_relu,
    image_input,
    inception_module,
    overlapping_max_pooling,
    require_size,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "inception_v2": (2015, 224, 11_188_288, 1_934_857_216, 25.2, "ImageNet"),
    "bninception": (2015, 224, 11_295_240, 2_032_600_064, None, "ImageNet"),
}

# Figure 5: the inception modules. 3c and 4e stride, have no 1x1 and pass their pooling through.
MODULES = (
    # name, #1x1, #3x3 reduce, #3x3, double #3x3 reduce, double #3x3, pool, proj
    ("3a", 64, 64, 64, 64, 96, "avg", 32),  #       28 x 28 x 256
    ("3b", 64, 64, 96, 64, 96, "avg", 64),  #       28 x 28 x 320
    ("3c", 0, 128, 160, 64, 96, "max", 0),  #       14 x 14 x 576
    ("4a", 224, 64, 96, 96, 128, "avg", 128),  #    14 x 14 x 576
    ("4b", 192, 96, 128, 96, 128, "avg", 128),  #   14 x 14 x 576
    ("4c", 160, 128, 160, 128, 160, "avg", 96),  #  14 x 14 x 576
    ("4d", 96, 128, 192, 160, 192, "avg", 96),  #   14 x 14 x 576
    ("4e", 0, 128, 192, 192, 256, "max", 0),  #     7 x 7 x 1024
    ("5a", 352, 192, 320, 160, 224, "avg", 128),  # 7 x 7 x 1024
    ("5b", 352, 192, 320, 192, 224, "max", 128),  # 7 x 7 x 1024
)


def in_our_order(paths: list[str]) -> dict[str, str]:
    """Name pytorchcv's layers by their order: `branches.branch2.conv1` is no kernel size."""
    ours = ["conv1", "conv2_reduce", "conv2"]
    for name, one, *_, projection in MODULES:
        branches = ["1x1"] if one else []
        branches += ["3x3_reduce", "3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2"]
        branches += ["pool_proj"] if projection else []
        ours += [f"inception_{name}_{branch}" for branch in branches]
    units = list(dict.fromkeys(path.rpartition(".")[0] for path in paths if path != "output"))
    names = dict(zip(units, ours, strict=True))
    found = {f"{unit}.{kind}": f"{names[unit]}_{kind}" for unit in units for kind in ("conv", "bn")}
    return found | {"output": "logits"}


WEIGHTS = {
    "pytorchcv": Collection(names=in_our_order, licence="MIT"),
}


def inception_v2(
    variant: str = "inception_v2",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    dropout: float = 0.2,
    normalization: tuple | None = None,
    stem_stride: int = 2,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build BN-Inception; layers are named after Caffe's, such as `inception_3a_3x3_reduce_conv`.

    Args:
        variant: "inception_v2", the paper's, or "bninception", Caffe's.
        input_shape: `(height, width, channels)` in pixels, 224 in the paper; 7 at least, 4 with
            `stem_stride` 1.
        classes: width of the last layer.
        alpha: width multiplier, 1 in the paper; no layer falls below 16 channels, the rule of the
            authors' code.
        dropout: rate before the last layer, in [0, 1). The authors' code has 0.2; the paper
            says that batch normalisation allows to do without.
        normalization: see `tiffin.layers.image_input`.
        stem_stride: stride of the first convolution, 2 in the paper. 1 is a departure for small
            pictures: at 32x32 the modules work on 8x8, 4x4 and 2x2 instead of 4x4 to 1x1.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        ValueError: an unknown variant, a value outside its range, or a picture too small.
    """
    one_of("variant", variant, VARIANTS)
    one_of("stem_stride", stem_stride, (2, 1))
    if not alpha > 0:
        raise InputError(f"alpha={alpha} must be positive; the paper's width is 1.")
    require_size(input_shape, 3 * stem_stride + 1, f"{variant} with stem_stride={stem_stride}")
    paper = variant == "inception_v2"
    conv = {
        "use_bias": not paper,
        "epsilon": 1e-3 if paper else 1e-5,
        "momentum": bn_momentum,
        "alpha": alpha,
    }

    image, x = image_input(input_shape, normalization)
    stride, maps = stem_stride, {}
    if paper:
        x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
        x = layers.DepthwiseConv2D(
            7,
            stride,
            depth_multiplier=8,
            use_bias=False,
            depthwise_initializer="he_normal",
            name="conv1_depthwise",
        )(x)  # 112 x 112 x 24
        x = conv_relu(x, 64, 1, name="conv1", **conv)
    else:
        x = conv_relu(x, 64, 7, stride, name="conv1", **conv)
    maps[stride] = x  # 112 x 112 x 64
    x = overlapping_max_pooling(x, name="pool1")
    stride *= 2
    x = conv_relu(x, 64, 1, name="conv2_reduce", **conv)
    x = maps[stride] = conv_relu(x, 192, 3, name="conv2", **conv)  # 56 x 56 x 192
    x = overlapping_max_pooling(x, name="pool2")
    stride *= 2
    for name, *filters, pool, projection in MODULES:
        if name in ("4c", "4d") and not paper:
            projection = 128
        step = 2 if name in ("3c", "4e") else 1
        stride *= step
        x = maps[stride] = inception_module(
            x,
            (*filters, projection),
            name=f"inception_{name}",
            third="double_3x3",
            pool=pool,
            count_zeros=not paper,
            stride=step,
            **conv,
        )

    return classifier(variant, image, x, classes, maps, dropout=dropout, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train BN-Inception (Ioffe and Szegedy 2015, arXiv 1502.03167).

    examples:
      tiffin train inception_v2 --data mnist --alpha 0.5
      tiffin train inception_v2 --data photos/ --export
    """

    model: str = "inception_v2"
    alpha: float = 1.0
    """Width multiplier; 1 is the paper's."""
    stem_stride: int | None = None
    """Stride of the first convolution; default: the paper's 2, but 1 below 64 pixels."""
    small: ClassVar = {"stem_stride": 1}
    builder: ClassVar = staticmethod(inception_v2)


if __name__ == "__main__":
    main(Config)
