"""ResNeXt: aggregated residual transformations.

A bottleneck's 3x3 convolution is split into many narrow paths of one shape, whose sum is the
block's output: a grouped convolution does just that. The number of paths, the cardinality, is a
dimension of its own beside depth and width, and at equal cost more paths err less than more layers
or wider ones. One template, two numbers: "32x4d" has 32 paths of 4 channels in the first stage.

Xie, Girshick, Dollár, Tu, He: Aggregated Residual Transformations for Deep Neural Networks (2016),
arXiv 1611.05431.

Reproduces table 1 (ImageNet architectures, single 224x224 crop) and table 7 (CIFAR-10); the
paper's top-1 errors stand in VARIANTS, those of 50 and 101 layers also in the authors' repository.
The blocks are form (c) of figure 3 as in the authors' code; that code has the CIFAR nets without
the paper's pre-activation, and the authors find it better. Ours: see docs/results.md.

Run it:
    python recipes/classification/resnext.py --model resnext50_32x4d --data photos/ --export
"""

import dataclasses
import math
import re
from typing import ClassVar, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    Top,
    bottleneck_block,
    classifier,
    conv_bn,
    image_input,
    padded_max_pooling,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import PYTORCHCV_RESNET, TORCHVISION_RESNET
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "resnext50_32x4d": (2016, 224, 25_028_904, 4_230_479_872, 22.2, "ImageNet"),
    "resnext101_32x4d": (2016, 224, 44_177_704, 7_969_996_800, 21.2, "ImageNet"),
    "resnext101_64x4d": (2016, 224, 83_455_272, 15_460_270_080, 20.4, "ImageNet"),
    "resnext29_8x64d": (2016, 32, 34_426_698, 5_387_266_048, 3.65, "CIFAR-10"),
    "resnext29_16x64d": (2016, 32, 68_155_210, 10_688_866_304, 3.58, "CIFAR-10"),
}

# Table 1: blocks a stage; the CIFAR form of section 5.3 has three stages of (layers - 2) / 9.
IMAGENET = (
    # stage, output, channels of the block's output, blocks of 50 layers, of 101 layers
    ("conv2", 56, 256, 3, 3),
    ("conv3", 28, 512, 4, 4),
    ("conv4", 14, 1024, 6, 23),
    ("conv5", 7, 2048, 3, 3),
)
CIFAR = (
    # stage, output, channels of the block's output
    ("conv2", 32, 256),
    ("conv3", 16, 512),
    ("conv4", 8, 1024),
)

WEIGHTS = {
    "torchvision": Collection(
        names=TORCHVISION_RESNET,
        files={
            "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
            "resnext101_64x4d": "resnext101_64x4d-173b62eb.pth",
        },
    ),
    "pytorchcv": Collection(names=PYTORCHCV_RESNET),
}


def resnext(
    variant: str = "resnext50_32x4d",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    stem_stride: int = 2,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build a ResNeXt; layer names are those of keras.applications' ResNet.

    Args:
        variant: one of `VARIANTS`: depth, cardinality x width of a path in the first stage. 50 and
            101 layers are the ImageNet form, with a stride of 32 in all; 29 layers the CIFAR form,
            with a stride of 4. The 3x3 convolution carries a block's stride.
        input_shape: `(height, width, channels)` in pixels, any size; 224 or 32 in the paper.
        classes: width of the last layer.
        alpha: width multiplier, 1 in the paper: of the channels and of each path, whose number
            stays; a path of the first stage keeps at least one channel.
        stem_stride: stride of the ImageNet form's first convolution, 2 in the paper. 1 is a
            departure for small pictures, of which a stride of 32 leaves a single point.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: an unknown variant or `stem_stride`, or an `alpha` that leaves no path.
    """
    one_of("variant", variant, VARIANTS)
    one_of("stem_stride", stem_stride, (2, 1))
    depth, cardinality, path = map(int, re.findall(r"\d+", variant))
    if not 1 <= path * alpha < math.inf:
        raise InputError(f"alpha={alpha}: {variant} needs at least {1 / path:g}.")
    bn = {"epsilon": 1e-5, "momentum": bn_momentum}

    image, x = image_input(input_shape, normalization)
    maps = {}
    if depth == 29:
        x = conv_bn(x, int(64 * alpha), 3, name="conv1", **bn)
        x = layers.ReLU(name="conv1_relu")(x)  # 32 x 32 x 64
        stages = [(name, channels, 3) for name, _, channels in CIFAR]
        stride = 1
    else:
        x = conv_bn(x, int(64 * alpha), 7, stem_stride, name="conv1", **bn)
        x = maps[stem_stride] = layers.ReLU(name="conv1_relu")(x)  # 112 x 112 x 64
        x = padded_max_pooling(x, name="pool1")
        stages = [(row[0], row[2], row[3 if depth == 50 else 4]) for row in IMAGENET]
        stride = 2 * stem_stride

    for name, channels, blocks in stages:
        # A path's width doubles with the channels: table 1 writes 128, 256, 512, 1024 for 32x4d.
        width = cardinality * int(path * alpha) * channels // 256
        step = 1 if name == "conv2" else 2
        stride *= step
        for block in range(blocks):
            x = bottleneck_block(
                x,
                int(channels * alpha) // 4,
                step if block == 0 else 1,
                name=f"{name}_block{block + 1}",
                stride_in="3x3",
                widths=(width, width),
                groups=cardinality,
                **bn,
            )
        maps[stride] = x

    return classifier(variant, image, x, classes, maps, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train a ResNeXt (Xie et al. 2016, arXiv 1611.05431).

    The authors' CIFAR-10 training is --model resnext29_8x64d --epochs 300 --batch-size 128
    --weight-decay 5e-4 --schedule step --milestones 0.5 0.75 --augment random_crop horizontal_flip.

    examples:
      tiffin train resnext --data digits
      tiffin train resnext29_8x64d --data cifar10 --epochs 300
    """

    model: str = "resnext50_32x4d"
    alpha: float = 1.0
    """Width multiplier; 1 in the paper."""
    stem_stride: int | None = None
    """Stride of the ImageNet form's first convolution; default: 2, but 1 below 64 pixels."""
    builder: ClassVar = staticmethod(resnext)
    small: ClassVar = {"stem_stride": 1}


if __name__ == "__main__":
    main(Config)
