"""SENet: squeeze-and-excitation networks.

Before a block's output joins the shortcut, every channel is scaled by a number between 0 and 1 that
two small layers compute from the means of all channels: the network turns up what this picture
needs and turns down the rest. It costs hardly any arithmetic and a tenth more parameters, and takes
ResNet-50 close to ResNet-101. SENet-154 was among the winners of ImageNet's challenge of 2017.

Hu, Shen, Albanie, Sun, Wu: Squeeze-and-Excitation Networks (2017), arXiv 1709.01507.

Reproduces table 1 (architectures) and table 2 (ImageNet, single 224x224 crop); the paper's top-1
errors stand in VARIANTS. se_resnet20 is not the paper's: its block in the first ResNet paper's
CIFAR form, as pytorchcv has it, for small pictures. Ours: see docs/results.md.

Run it:
    python recipes/classification/senet.py --model se_resnet50 --data photos/ --export
"""

import dataclasses
from typing import ClassVar, Literal, Unpack

import keras
from keras import layers

from tiffin.export.errors import one_of
from tiffin.layers import (
    Top,
    basic_block,
    bottleneck_block,
    classifier,
    conv_bn,
    image_input,
    overlapping_max_pooling,
    padded_max_pooling,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import PYTORCHCV_RESNET, PYTORCHCV_UNIT, TORCHVISION_UNITS
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "se_resnet50": (2017, 224, 28_088_024, 3_860_488_192, 23.29, "ImageNet"),
    "se_resnet101": (2017, 224, 49_326_872, 7_574_937_600, 22.38, "ImageNet"),
    "se_resnet152": (2017, 224, 66_821_848, 11_288_993_792, 21.57, "ImageNet"),
    "se_resnext50_32x4d": (2017, 224, 27_559_896, 4_232_994_816, 21.10, "ImageNet"),
    "se_resnext101_32x4d": (2017, 224, 48_955_416, 7_974_739_968, 20.70, "ImageNet"),
    "senet154": (2017, 224, 115_088_984, 20_688_363_520, 18.68, "ImageNet"),
    "se_resnet20": (2017, 32, 274_847, 40_815_200, None, "CIFAR-10"),
}

# Table 1, with He et al. 2015 for the depths. Widths and channels double from stage to stage.
IMAGENET = {
    # variant: blocks of conv2 to conv5, groups, widths of a block's 1x1 and 3x3 in conv2
    "se_resnet50": ((3, 4, 6, 3), 1, (64, 64)),
    "se_resnet101": ((3, 4, 23, 3), 1, (64, 64)),
    "se_resnet152": ((3, 8, 36, 3), 1, (64, 64)),
    "se_resnext50_32x4d": ((3, 4, 6, 3), 32, (128, 128)),
    "se_resnext101_32x4d": ((3, 4, 23, 3), 32, (128, 128)),
    "senet154": ((3, 8, 36, 3), 64, (128, 256)),
}
REDUCTION = 16  # the paper's r

_TIMM = (
    *TORCHVISION_UNITS,
    (r"layer(\d+)\.(\d+)\.se(?:_module)?\.fc1", "conv{1+1}_block{2+1}_se_reduce"),
    (r"layer(\d+)\.(\d+)\.se(?:_module)?\.fc2", "conv{1+1}_block{2+1}_se_expand"),
)
WEIGHTS = {
    "pytorchcv": Collection(
        names=(
            *PYTORCHCV_RESNET,
            (r"features\.init_block\.conv(\d)\.(conv|bn)", "conv1_{1}_{2}"),
            (PYTORCHCV_UNIT + r"se\.conv1", "conv{1+1}_block{2}_se_reduce"),
            (PYTORCHCV_UNIT + r"se\.conv2", "conv{1+1}_block{2}_se_expand"),
        ),
    ),
    # seresnet50 and the like, of timm's resnet.py.
    "timm": Collection(
        names=((r"(conv|bn)1", "conv1_{1}"), *_TIMM, (r"fc", "logits")),
        options={"stride_in": "3x3"},
    ),
    # legacy_seresnet50, legacy_senet154 and the like, of timm's senet.py: the authors' own weights.
    "timm-legacy": Collection(
        names=(
            (r"layer0\.(conv|bn)1", "conv1_{1}"),
            (r"layer0\.(conv|bn)(\d)", "conv1_{2}_{1}"),
            *_TIMM,
            (r"last_linear", "logits"),
        ),
        options={"stem_pool": "end"},
    ),
}


def senet(
    variant: str = "se_resnet50",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    stride_in: str | None = None,
    stem_pool: str = "both",
    dropout: float | None = None,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build a squeeze-and-excitation network; layer names follow keras.applications' ResNet.

    Args:
        variant: one of `VARIANTS`. se_resnet20 has the CIFAR form, with a stride of 4 in all, and
            projections as shortcuts; the others have a stride of 32.
        input_shape: `(height, width, channels)` in pixels, any size; 224 in the paper.
        classes: width of the last layer.
        stride_in: the bottlenecks' convolution that carries the stride, "1x1" or "3x3". None: the
            authors' choice, 1x1 for SE-ResNets and 3x3 for SE-ResNeXts and SENet-154.
        stem_pool: where the stem's maximum pads, on "both" sides (pytorchcv, torch) or at the
            "end" (the authors, in Caffe; timm's legacy models).
        dropout: rate before the last layer, in [0, 1). None: 0.2 for SENet-154, else 0.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: an unknown variant or option.
    """
    one_of("variant", variant, VARIANTS)
    one_of("stride_in", stride_in, (None, "1x1", "3x3"))
    one_of("stem_pool", stem_pool, ("both", "end"))
    bn = {"epsilon": 1e-5, "momentum": bn_momentum}

    image, x = image_input(input_shape, normalization)
    maps = {}
    if variant == "se_resnet20":
        x = conv_bn(x, 16, 3, name="conv1", **bn)
        x = layers.ReLU(name="conv1_relu")(x)  # 32 x 32 x 16
        for stage, (filters, stride) in enumerate(((16, 1), (32, 2), (64, 4)), 2):
            for block in range(1, 4):
                step = 2 if block == 1 and stage > 2 else 1
                name = f"conv{stage}_block{block}"
                x = basic_block(x, filters, step, name=name, se_reduction=REDUCTION, **bn)
            maps[stride] = x
        return classifier(variant, image, x, classes, maps, dropout=dropout or 0.0, **top)

    # The appendix has SENet-154's changes to a 64x4d ResNeXt-152: a stem of three 3x3 convolutions,
    # half the channels in each first 1x1, projections of 3x3 where the size shrinks, dropout.
    largest = variant == "senet154"
    if largest:
        for name, width, step in (("conv1", 64, 2), ("conv1_2", 64, 1), ("conv1_3", 128, 1)):
            x = conv_bn(x, width, 3, step, name=name, **bn)
            x = maps[2] = layers.ReLU(name=f"{name}_relu")(x)  # 112 x 112 x 128
    else:
        x = conv_bn(x, 64, 7, 2, name="conv1", **bn)
        x = maps[2] = layers.ReLU(name="conv1_relu")(x)  # 112 x 112 x 64
    if stem_pool == "both":
        x = padded_max_pooling(x, name="pool1")
    else:
        x = overlapping_max_pooling(x, name="pool1_pool")

    blocks, groups, (inner, outer) = IMAGENET[variant]
    for stage, repeats in enumerate(blocks):
        for repeat in range(repeats):
            x = bottleneck_block(
                x,
                64 * 2**stage,
                2 if repeat == 0 and stage > 0 else 1,
                name=f"conv{stage + 2}_block{repeat + 1}",
                stride_in=stride_in or ("1x1" if groups == 1 else "3x3"),
                widths=(inner * 2**stage, outer * 2**stage),
                groups=groups,
                se_reduction=REDUCTION,
                shortcut_kernel=3 if largest and stage > 0 else 1,
                **bn,
            )
        maps[4 * 2**stage] = x  # 56 x 56 x 256 to 7 x 7 x 2048

    rate = (0.2 if largest else 0.0) if dropout is None else dropout
    return classifier(variant, image, x, classes, maps, dropout=rate, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train a squeeze-and-excitation network (Hu et al. 2017, arXiv 1709.01507).

    examples:
      tiffin train senet --data digits
      tiffin train se_resnext50_32x4d --data photos/ --export
    """

    model: str = "se_resnet20"
    stride_in: Literal["1x1", "3x3"] | None = None
    """Which convolution of a bottleneck strides; default: the authors' choice for the variant."""
    stem_pool: Literal["both", "end"] = "both"
    """Where the stem's maximum pads: both sides as torch has it, or the end as the authors do."""
    builder: ClassVar = staticmethod(senet)


if __name__ == "__main__":
    main(Config)
