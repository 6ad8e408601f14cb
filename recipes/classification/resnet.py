"""ResNet: deep residual learning.

A block learns what to add to its input instead of a whole new representation. The identity is then
free, so that more layers cannot hurt, and the gradient reaches the first layer undimmed. With batch
normalisation after every convolution, 152 layers train where 30 plain ones failed.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (2015), arXiv 1512.03385.

Reproduces table 1 (ImageNet architectures) and table 6 (CIFAR-10); the paper's top-1 errors stand
in VARIANTS: ImageNet with 10 crops (table 2 for 18 layers, with option A; table 3, option B, for
the others), CIFAR-10 from table 6 (best of five for 110 layers). Ours: see docs/results.md.

Run it:
    python recipes/classification/resnet.py --model resnet20 --data cifar10 --data-dir DIR
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
    padded_max_pooling,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import KERAS_URL, PYTORCHCV_RESNET, TORCHVISION_RESNET, keras_files
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "resnet18": (2015, 224, 11_689_512, 1_814_073_344, 27.88, "ImageNet"),
    "resnet34": (2015, 224, 21_797_672, 3_663_761_408, 24.52, "ImageNet"),
    "resnet50": (2015, 224, 25_557_032, 3_857_973_248, 22.85, "ImageNet"),
    "resnet101": (2015, 224, 44_549_160, 7_570_194_432, 21.75, "ImageNet"),
    "resnet152": (2015, 224, 60_192_808, 11_282_415_616, 21.43, "ImageNet"),
    "resnet20": (2015, 32, 269_722, 40_551_040, 8.75, "CIFAR-10"),
    "resnet32": (2015, 32, 464_154, 68_862_592, 7.51, "CIFAR-10"),
    "resnet44": (2015, 32, 658_586, 97_174_144, 7.17, "CIFAR-10"),
    "resnet56": (2015, 32, 853_018, 125_485_696, 6.97, "CIFAR-10"),
    "resnet110": (2015, 32, 1_727_962, 252_887_680, 6.43, "CIFAR-10"),
}

# Table 1: blocks a stage. 18 and 34 layers have basic blocks, the others bottlenecks, whose output
# has four times the channels.
IMAGENET = (
    # layer name, output size, channels, 18-layer, 34-layer, 50-layer, 101-layer, 152-layer
    ("conv2", 56, 64, 2, 3, 3, 3, 3),
    ("conv3", 28, 128, 2, 4, 4, 4, 8),
    ("conv4", 14, 256, 2, 6, 6, 23, 36),
    ("conv5", 7, 512, 2, 3, 3, 3, 3),
)
DEPTHS = (18, 34, 50, 101, 152)

# Section 4.2: n = (layers - 2) / 6 basic blocks a stage.
CIFAR = (
    # layer name, output map size, filters
    ("conv2", 32, 16),
    ("conv3", 16, 32),
    ("conv4", 8, 64),
)

WEIGHTS = {
    "torchvision": Collection(
        names=TORCHVISION_RESNET,
        options={"stride_in": "3x3"},
        files={
            "resnet18": "resnet18-f37072fd.pth",
            "resnet34": "resnet34-b627a593.pth",
            "resnet50": "resnet50-0676ba61.pth",
            "resnet101": "resnet101-63fe2227.pth",
            "resnet152": "resnet152-394f9c45.pth",
        },
    ),
    "keras.applications": Collection(
        names=((r"predictions", "logits"),),
        epsilon=1.001e-5,
        bgr=True,
        normalization=((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
        licence="MIT",
        url=f"{KERAS_URL}resnet/",
        files=keras_files(
            {
                "resnet50": ("resnet50", "2cb95161c43110f7111970584f804107"),
                "resnet101": ("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
                "resnet152": ("resnet152", "100835be76be38e30d865e96f2aaae62"),
            }
        ),
    ),
    # It has projections in the CIFAR form, too.
    "pytorchcv": Collection(names=PYTORCHCV_RESNET, options={"shortcut": "projection"}),
}


def resnet(
    variant: str = "resnet50",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    stride_in: str = "1x1",
    shortcut: str | None = None,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build a residual network; layer names are those of keras.applications.

    Args:
        variant: one of `VARIANTS`. 18, 34, 50, 101 and 152 layers are the ImageNet form, with a
            stride of 32 in all; 20, 32, 44, 56 and 110 the CIFAR form, with a stride of 4.
        input_shape: `(height, width, channels)` in pixels, any size; 224 or 32 in the paper.
        classes: width of the last layer.
        stride_in: the bottlenecks' convolution that carries the stride: "1x1" (v1: the paper,
            keras.applications) or "3x3" (v1.5: torch).
        shortcut: where shape changes, "identity" (zero-padded, no parameters; option A) or
            "projection" (1x1 convolution; option B). None: the paper's choice, identity for the
            CIFAR form and projection for the other.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: an unknown variant or option.
    """
    one_of("variant", variant, VARIANTS)
    one_of("stride_in", stride_in, ("1x1", "3x3"))
    one_of("shortcut", shortcut, (None, "identity", "projection"))
    depth = int(variant.removeprefix("resnet"))
    bn = {"epsilon": 1e-5, "momentum": bn_momentum}

    image, x = image_input(input_shape, normalization)
    maps = {}
    if depth in DEPTHS:
        x = conv_bn(x, 64, 7, 2, name="conv1", **bn)
        x = maps[2] = layers.ReLU(name="conv1_relu")(x)  # 112 x 112 x 64
        x = padded_max_pooling(x, name="pool1")
        column = 3 + DEPTHS.index(depth)
        stages = [(row[0], row[2], row[column]) for row in IMAGENET]
        options = {"shortcut": shortcut or "projection", **bn}
    else:
        x = conv_bn(x, 16, 3, name="conv1", **bn)
        x = layers.ReLU(name="conv1_relu")(x)  # 32 x 32 x 16
        stages = [(name, filters, (depth - 2) // 6) for name, _, filters in CIFAR]
        options = {"shortcut": shortcut or "identity", **bn}

    block = basic_block
    if depth in (50, 101, 152):
        block = bottleneck_block
        options["stride_in"] = stride_in
    stride = 4 if depth in DEPTHS else 1
    for name, filters, repeats in stages:
        # The first stage keeps the size: the stem has halved it already, or need not.
        step = 1 if name == "conv2" else 2
        stride *= step
        for repeat in range(repeats):
            first = step if repeat == 0 else 1
            x = block(x, filters, first, name=f"{name}_block{repeat + 1}", **options)
        maps[stride] = x

    return classifier(variant, image, x, classes, maps, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train a residual network (He et al. 2015, arXiv 1512.03385).

    The paper's CIFAR-10 training is --epochs 164 --schedule step --milestones 0.5 0.75
    --augment random_crop horizontal_flip; the default is a short one along a cosine.

    examples:
      tiffin train resnet20 --data cifar10
      tiffin train resnet50 --data photos/ --export
    """

    model: str = "resnet20"
    stride_in: Literal["1x1", "3x3"] = "1x1"
    """Which convolution of a bottleneck strides: 1x1 as in the paper, or 3x3 as in torch."""
    shortcut: Literal["identity", "projection"] | None = None
    """Where shapes change: zero-padded identity or 1x1 projection; default: the paper's choice."""
    builder: ClassVar = staticmethod(resnet)


if __name__ == "__main__":
    main(Config)
