"""VGG: depth by small filters.

Two 3x3 convolutions see as far as one of 5x5, three as far as one of 7x7, with fewer weights and
more nonlinearities between. So VGG is nothing but 3x3 convolutions and pooling, and its table asks
one question: how deep? Its even, plain layers made it the backbone of detectors, style transfer
and perceptual losses.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition (2014),
arXiv 1409.1556.

Reproduces table 1, columns A, B, D and E; the errors in VARIANTS are the best of table 3 (one
scale in the test). Batch normalisation came a year later: the `_bn` forms are torchvision's, whose
weights have 29.63, 28.41, 26.64 and 25.78 % (one crop) for 11, 13, 16 and 19 layers. Ours: see
docs/results.md.

Run it:
    python recipes/classification/vgg.py --alpha 0.25 --data mnist --data-dir DIR --epochs 3
"""

import dataclasses
import functools
from typing import ClassVar, Literal, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    BatchNormalization,
    Top,
    classifier,
    hidden_layers,
    image_input,
    make_divisible,
    require_size,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import KERAS_URL, keras_files
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "vgg11": (2014, 224, 132_863_336, 7_609_090_048, 29.6, "ImageNet"),
    "vgg13": (2014, 224, 133_047_848, 11_308_466_176, 28.7, "ImageNet"),
    "vgg16": (2014, 224, 138_357_544, 15_470_264_320, 25.6, "ImageNet"),
    "vgg19": (2014, 224, 143_667_240, 19_632_062_464, 25.5, "ImageNet"),
    "vgg11_bn": (2015, 224, 132_868_840, 7_609_090_048, None, "ImageNet"),
    "vgg13_bn": (2015, 224, 133_053_736, 11_308_466_176, None, "ImageNet"),
    "vgg16_bn": (2015, 224, 138_365_992, 15_470_264_320, None, "ImageNet"),
    "vgg19_bn": (2015, 224, 143_678_248, 19_632_062_464, None, "ImageNet"),
}

# Table 1: convolutions of a block, all 3x3; max pooling of 2x2 pixels ends each.
CONFIGURATIONS = (
    # layer name, input size, channels, A (11 layers), B (13), D (16), E (19)
    ("block1", 224, 64, 1, 2, 2, 2),
    ("block2", 112, 128, 1, 2, 2, 2),
    ("block3", 56, 256, 2, 2, 3, 4),
    ("block4", 28, 512, 2, 2, 3, 4),
    ("block5", 14, 512, 2, 2, 3, 4),
)
DEPTHS = (11, 13, 16, 19)


def _stages(depth: int) -> list[tuple[str, int, int]]:
    """Return name, channels and number of convolutions of each block."""
    return [(row[0], row[2], row[3 + DEPTHS.index(depth)]) for row in CONFIGURATIONS]


def numbered_names(paths: list[str], fully_connected: tuple[str, ...]) -> dict[str, str]:
    """Name our layers for the numbered ones of torchvision's and timm's `features`."""
    numbers = sorted({int(p.split(".")[1]) for p in paths if p.startswith("features.")})
    # Without batch normalisation the second module is a ReLU, which has no weights.
    bn = 1 in numbers
    ours = [
        f"{block}_conv{i + 1}{end}"
        for block, _, count in _stages(len(numbers) // (1 + bn) + 3)
        for i in range(count)
        for end in (("", "_bn") if bn else ("",))
    ]
    names = {f"features.{n}": name for n, name in zip(numbers, ours, strict=True)}
    return names | dict(zip(fully_connected, ("fc1", "fc2", "logits"), strict=True))


WEIGHTS = {
    "torchvision": Collection(
        names=functools.partial(
            numbered_names, fully_connected=("classifier.0", "classifier.3", "classifier.6")
        ),
        files={
            "vgg11": "vgg11-8a719046.pth",
            "vgg13": "vgg13-19584684.pth",
            "vgg16": "vgg16-397923af.pth",
            "vgg19": "vgg19-dcbb9e9d.pth",
            "vgg11_bn": "vgg11_bn-6002323d.pth",
            "vgg13_bn": "vgg13_bn-abd245e5.pth",
            "vgg16_bn": "vgg16_bn-6c64b313.pth",
            "vgg19_bn": "vgg19_bn-c79401a0.pth",
        },
    ),
    # The authors' own weights: pixels in the order blue, green, red, their mean taken off.
    "keras.applications": Collection(
        names=((r"predictions", "logits"),),
        normalization=((123.68, 116.779, 103.939), 1.0),
        bgr=True,
        licence="CC-BY-4.0",
        url=KERAS_URL,
        files=keras_files(
            {
                "vgg16": ("vgg16/vgg16", "64373286793e3c8b2b4e3219cbf3544b"),
                "vgg19": ("vgg19/vgg19", "cbe5617147190e668d6c5d5026f83318"),
            }
        ),
    ),
    "timm": Collection(
        names=functools.partial(
            numbered_names, fully_connected=("pre_logits.fc1", "pre_logits.fc2", "head.fc")
        ),
    ),
    "pytorchcv": Collection(
        names=(
            (r"features\.stage(\d)\.unit(\d)\.conv", "block{1}_conv{2}"),
            (r"features\.stage(\d)\.unit(\d)\.bn", "block{1}_conv{2}_bn"),
            (r"output\.fc([12])\.fc", "fc{1}"),
            (r"output\.fc3", "logits"),
        ),
    ),
}


def vgg(
    variant: str = "vgg16",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    hidden: int = 4096,
    dropout: float = 0.5,
    use_bias: bool = True,
    pool_padding: str = "valid",
    include_top: bool = True,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build a VGG network; layer names are those of keras.applications.

    Args:
        variant: one of `VARIANTS`; `_bn` has batch normalisation behind every convolution.
        input_shape: `(height, width, channels)` in pixels, 32 or more: five poolings halve them.
        classes: width of the last layer.
        alpha: width multiplier of the convolutions, above 0. Not 1 is a departure: half the width
            costs a quarter, which suits small pictures.
        hidden: width of the two hidden fully connected layers; less than the paper's 4096 is a
            departure for small pictures.
        dropout: rate behind each hidden layer, in [0, 1).
        use_bias: whether convolutions before batch normalisation have a bias, which does nothing
            there: torchvision's and pytorchcv's `bn_vgg11b` have, pytorchcv's `bn_vgg11` has not.
        pool_padding: "valid", where pooling drops the last pixel of an odd side, or "same", which
            keeps it: a departure for pictures below 32 pixels.
        include_top: False leaves out all fully connected layers.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: an unknown variant or option, or a picture that is too small.
        ValueError: fully connected layers for pictures of any size.
    """
    one_of("variant", variant, VARIANTS)
    one_of("pool_padding", pool_padding, ("valid", "same"))
    if not alpha > 0:
        raise InputError(f"alpha={alpha} must be positive; the paper's width is 1.")
    if hidden < 1:
        raise InputError(f"hidden={hidden} must be at least 1; the paper has 4096.")
    smallest = 32 if pool_padding == "valid" else 1
    require_size(input_shape, smallest, f"{variant} with pool_padding={pool_padding!r}")
    depth, _, bn = variant.removeprefix("vgg").partition("_")

    image, x = image_input(input_shape, normalization)
    stride, maps = 1, {}
    for block, channels, repeats in _stages(int(depth)):
        for repeat in range(repeats):
            name = f"{block}_conv{repeat + 1}"
            x = layers.Conv2D(
                make_divisible(channels * alpha),
                3,
                padding="same",
                activation=None if bn else "relu",
                use_bias=use_bias or not bn,
                kernel_initializer="he_normal",
                name=name,
            )(x)
            if bn:
                x = BatchNormalization(epsilon=1e-5, momentum=bn_momentum, name=f"{name}_bn")(x)
                x = layers.ReLU(name=f"{name}_relu")(x)
        maps[stride] = x
        x = layers.MaxPooling2D(2, padding=pool_padding, name=f"{block}_pool")(x)
        stride *= 2
    maps[stride] = x  # 7 x 7 x 512

    if include_top and not top.get("features"):
        x = hidden_layers(x, hidden, dropout, names=("fc1", "fc2"))
    return classifier(
        variant, image, x, classes, maps, dropout=dropout, include_top=include_top, **top
    )


@dataclasses.dataclass
class Config(Classification):
    """Train a VGG network (Simonyan, Zisserman 2014, arXiv 1409.1556).

    Two things depart from the paper below 64 pixels: 512 hidden units instead of 4096, and pooling
    that keeps the last pixel of an odd side.

    examples:
      tiffin train vgg --alpha 0.25 --data mnist
      tiffin train vgg16 --data photos/ --export
    """

    model: str = "vgg11_bn"
    alpha: float = 1.0
    """Width multiplier of the convolutions; the paper's is 1."""
    hidden: int | None = None
    """Width of the two hidden layers; default: the paper's 4096, but 512 below 64 pixels."""
    pool_padding: Literal["valid", "same"] | None = None
    """Whether pooling keeps the last pixel of an odd side; default: valid, same below 64."""
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    builder: ClassVar = staticmethod(vgg)
    small: ClassVar = {"hidden": 512, "pool_padding": "same"}


if __name__ == "__main__":
    main(Config)
