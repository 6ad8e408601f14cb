"""ShuffleNet: grouped 1x1 convolutions, and channels shuffled between the groups.

In a small network most arithmetic sits in 1x1 convolutions. Grouped they cost a fraction, but each
group would only ever see itself; a shuffle of channels, which costs no arithmetic, lets the groups
talk. V2 counts memory traffic as well as arithmetic: it splits the channels instead of grouping
them, passes one half untouched, and shuffles the halves together again.

Zhang, Zhou, Lin, Sun: ShuffleNet (2017), arXiv 1707.01083.
Ma, Zhang, Zheng, Sun: ShuffleNet V2 (2018), arXiv 1807.11164.

Reproduces table 1 of each paper. The top-1 errors in VARIANTS are those of V1's table 2 (width 1x)
and V2's table 8. Ours: see docs/results.md.

Run it:
    python recipes/classification/shufflenet.py --model shufflenet_v2_x0_5 --epochs 20 --export
"""

import dataclasses
from typing import ClassVar, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    Top,
    classifier,
    conv_bn,
    image_input,
    make_divisible,
    shuffle_unit,
    shuffle_unit_v2,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "shufflenet_v1_g1": (2017, 224, 1_531_936, 143_078_976, 33.6, "ImageNet"),
    "shufflenet_v1_g2": (2017, 224, 1_733_848, 140_836_512, 32.7, "ImageNet"),
    "shufflenet_v1_g3": (2017, 224, 1_865_728, 137_460_672, 32.6, "ImageNet"),
    "shufflenet_v1_g4": (2017, 224, 1_968_344, 134_339_776, 32.8, "ImageNet"),
    "shufflenet_v1_g8": (2017, 224, 2_434_768, 138_365_952, 32.4, "ImageNet"),
    "shufflenet_v2_x0_5": (2018, 224, 1_366_792, 40_476_448, 39.7, "ImageNet"),
    "shufflenet_v2_x1_0": (2018, 224, 2_278_604, 144_907_992, 30.6, "ImageNet"),
    "shufflenet_v2_x1_5": (2018, 224, 3_503_624, 295_759_392, 27.4, "ImageNet"),
    "shufflenet_v2_x2_0": (2018, 224, 7_393_996, 583_253_464, 25.1, "ImageNet"),
}

# Table 1 of V1 (stages 2 to 4: output channels for g groups) and of V2 (for its width).
STAGES = (
    # layer, output size, repeats,   g = 1,    2,    3,    4,    8    V2 0.5x, 1x, 1.5x,  2x
    ("stage2", 28, 4, 144, 200, 240, 272, 384, 48, 116, 176, 244),
    ("stage3", 14, 8, 288, 400, 480, 544, 768, 96, 232, 352, 488),
    ("stage4", 7, 4, 576, 800, 960, 1088, 1536, 192, 464, 704, 976),
)
CONV5 = {"shufflenet_v2_x2_0": 2048}  # the others of V2 have 1024, V1 none

# pytorchcv counts stages from 1. In V2, where we follow it, layers 4 and 5 are the left branch.
_PYTORCHCV = (
    (r"features\.stage(\d)\.unit(\d)\.\w+_(conv|bn)(\d)", "stage{1+1}_unit{2}_{4}_{3}"),
    (r"output", "logits"),
)
WEIGHTS = {
    "torchvision": Collection(
        names=(
            (r"conv(\d)\.0", "conv{1}_conv"),
            (r"conv(\d)\.1", "conv{1}_bn"),
            *(
                (rf"stage(\d)\.(\d+)\.branch{branch}\.{index}", f"stage{{1}}_unit{{2+1}}_{layer}")
                for branch, index, layer in (
                    (1, 0, "4_conv"),
                    (1, 1, "4_bn"),
                    (1, 2, "5_conv"),
                    (1, 3, "5_bn"),
                    (2, 0, "1_conv"),
                    (2, 1, "1_bn"),
                    (2, 3, "2_conv"),
                    (2, 4, "2_bn"),
                    (2, 5, "3_conv"),
                    (2, 6, "3_bn"),
                )
            ),
            (r"fc", "logits"),
        ),
        files={
            "shufflenet_v2_x0_5": "shufflenetv2_x0.5-f707e7126e.pth",
            "shufflenet_v2_x1_0": "shufflenetv2_x1-5666bf0f80.pth",
            "shufflenet_v2_x1_5": "shufflenetv2_x1_5-3c479a10.pth",
            "shufflenet_v2_x2_0": "shufflenetv2_x2_0-8be3c8ee.pth",
        },
    ),
    "pytorchcv": Collection(names=((r"features\.init_block\.(conv|bn)", "conv1_{1}"), *_PYTORCHCV)),
    "pytorchcv (shufflenetv2)": Collection(
        names=(
            (r"features\.init_block\.conv\.(conv|bn)", "conv1_{1}"),
            (r"features\.final_block\.(conv|bn)", "conv5_{1}"),
            *_PYTORCHCV,
        ),
        options={"pool_padding": "end"},
    ),
}


def shufflenet(
    variant: str = "shufflenet_v2_x1_0",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    pool_padding: str = "symmetric",
    normalization: tuple | None = None,
    stem_stride: int = 4,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build ShuffleNet or ShuffleNet V2; layer names are ours, after the papers' tables.

    Args:
        variant: one of `VARIANTS`: V1 with 1, 2, 3, 4 or 8 groups, V2 of width 0.5, 1, 1.5 or 2.
        input_shape: `(height, width, channels)` in pixels, any size; the last feature map has a
            32nd of it, rounded up.
        classes: width of the last layer.
        alpha: width multiplier of V1, 0.25 to 2 in the paper; V2 has a variant for each width.
            Stages are rounded to multiples of `4 * groups`, the first convolution to multiples of
            `groups`, as pytorchcv's and the authors' widths are. As in the authors' code, the first
            convolution keeps its 24 channels until 2x.
        pool_padding: of the first pooling, "symmetric" (the authors, torchvision, pytorchcv's V1)
            or "end" (pytorchcv's V2: below and to the right only).
        normalization: see `tiffin.layers.image_input`.
        stem_stride: stride of first convolution and pooling together, 4 in the papers. 2 takes it
            from the convolution, 1 leaves the pooling out, too: departures for small pictures, at
            32x32 with a last feature map of 2x2 and 4x4 pixels instead of one.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: an unknown variant or option, or a value outside its range.
    """
    one_of("variant", variant, VARIANTS)
    one_of("pool_padding", pool_padding, ("symmetric", "end"))
    one_of("stem_stride", stem_stride, (4, 2, 1))
    version2 = variant.startswith("shufflenet_v2")
    if not alpha > 0 or (version2 and alpha != 1):
        raise InputError(
            f"alpha={alpha} must be positive, 0.25 to 2 in the paper, and 1 for ShuffleNet V2, "
            "whose widths are variants of their own."
        )
    bn = {"epsilon": 1e-5, "momentum": bn_momentum}
    groups = 1 if version2 else int(variant.rpartition("g")[2])

    image, x = image_input(input_shape, normalization)
    stem = make_divisible(24 * (int(alpha) if alpha > 1 else alpha), groups)
    x = conv_bn(x, stem, 3, 2 if stem_stride == 4 else 1, name="conv1", **bn)
    x = layers.ReLU(name="conv1_relu")(x)  # 112 x 112 x 24
    maps = {max(stem_stride // 2, 1): x}
    if stem_stride > 1:
        # What is pooled is never negative: the zeros around it cannot win.
        edge = 1 if pool_padding == "symmetric" else ((0, 1), (0, 1))
        x = layers.ZeroPadding2D(edge, name="pool1_pad")(x)
        x = maps[stem_stride] = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)  # 56 x 56 x 24

    stride, column = stem_stride, 3 + list(VARIANTS).index(variant)
    for row in STAGES:
        name, _, repeats = row[:3]
        stride *= 2
        for unit in range(1, repeats + 1):
            step, prefix = 2 if unit == 1 else 1, f"{name}_unit{unit}"
            if version2:
                x = shuffle_unit_v2(x, row[column], step, name=prefix, **bn)
                continue
            # Section 3.2: the first 1x1 convolution has too few input channels for groups.
            first = 1 if (name, unit) == ("stage2", 1) else groups
            width = make_divisible(row[column] * alpha, 4 * groups)
            x = shuffle_unit(x, width, step, groups=groups, first_groups=first, name=prefix, **bn)
        maps[stride] = x

    if version2:
        x = conv_bn(x, CONV5.get(variant, 1024), 1, name="conv5", **bn)
        x = maps[stride] = layers.ReLU(name="conv5_relu")(x)  # 7 x 7 x 1024

    return classifier(variant, image, x, classes, maps, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train ShuffleNet (arXiv 1707.01083) or ShuffleNet V2 (arXiv 1807.11164).

    examples:
      tiffin train shufflenet_v2_x0_5 --export
      tiffin train shufflenet_v1_g3 --alpha 0.5
    """

    model: str = "shufflenet_v2_x0_5"
    alpha: float = 1.0
    """Width multiplier of V1; the paper's are 0.25, 0.5, 1, 1.5 and 2."""
    stem_stride: int | None = None
    """Of first convolution and pooling; default: the papers' 4, but 2 below 64 pixels."""
    weight_decay: float = 4e-5
    builder: ClassVar = staticmethod(shufflenet)
    small: ClassVar = {"stem_stride": 2}


if __name__ == "__main__":
    main(Config)
