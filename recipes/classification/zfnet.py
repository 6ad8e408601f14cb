"""ZFNet and AlexNet: the first deep convolutional networks that won ImageNet.

AlexNet stacks five convolutions and three fully connected layers, made trainable by ReLU, dropout
and two graphics cards. Zeiler and Fergus looked at what its filters see: the first ones missed the
middle frequencies, and a stride of 4 left aliasing. ZFNet corrects both with 7x7 filters at a
stride of 2, and undoes the split over two cards.

Zeiler, Fergus: Visualizing and Understanding Convolutional Networks (2013), arXiv 1311.2901.
Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks
(NeurIPS 2012). Krizhevsky: One weird trick (2014), arXiv 1404.5997.

Reproduces figure 3 and table 2 (ImageNet 2012, validation, one network) of Zeiler and Fergus:
    alexnet     40.7 %   two groups of filters, as in the 2012 paper        ours: see
    zfnet       38.4 %   figure 3                                           docs/results.md
    zfnetb      37.5 %   layers 3, 4, 5 with 512, 1024, 512 maps
    alexnet_owt          one tower without normalisation: torchvision's AlexNet. Krizhevsky's own
                         one-tower file has 384 maps in layer 4; no paper has an error for this one.

Run it:
    python recipes/classification/zfnet.py --model alexnet --data mnist --data-dir DIR --epochs 5
"""

import dataclasses
import itertools
from typing import ClassVar, Literal, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    GroupedConv2D,
    LocalResponseNormalization,
    Top,
    classifier,
    hidden_layers,
    image_input,
    overlapping_max_pooling,
    require_size,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "alexnet": (2012, 224, 60_965_224, 724_406_816, 40.7, "ImageNet"),
    "alexnet_owt": (2014, 224, 61_100_840, 714_188_480, None, "ImageNet"),
    "zfnet": (2013, 224, 62_357_608, 1_168_032_896, 38.4, "ImageNet"),
    "zfnetb": (2013, 224, 107_627_624, 2_476_704_896, 37.5, "ImageNet"),
}

# Krizhevsky et al. 2012, section 3.5 and figure 2; Zeiler and Fergus 2013, figure 3. Max pooling
# follows layers 1, 2 and 5, and brings 55 x 55 to 27 x 27, 13 x 13 and 6 x 6.
ALEXNET = (
    # layer, filter size, stride, padding, maps of alexnet, its groups, maps of alexnet_owt
    ("conv1", 11, 4, 2, 96, 1, 64),
    ("conv2", 5, 1, 2, 256, 2, 192),
    ("conv3", 3, 1, 1, 384, 1, 384),
    ("conv4", 3, 1, 1, 384, 2, 256),
    ("conv5", 3, 1, 1, 256, 2, 256),
)
ZFNET = (
    # layer, filter size, stride, padding, maps of zfnet, groups, maps of zfnetb
    ("conv1", 7, 2, 1, 96, 1, 96),
    ("conv2", 5, 2, 0, 256, 1, 256),
    ("conv3", 3, 1, 1, 384, 1, 512),
    ("conv4", 3, 1, 1, 384, 1, 1024),
    ("conv5", 3, 1, 1, 256, 1, 512),
)
POOLED = {"conv1": "pool1", "conv2": "pool2", "conv5": "pool5"}

WEIGHTS = {
    "torchvision": Collection(
        names=(
            (r"features\.0", "conv1"),
            (r"features\.3", "conv2"),
            (r"features\.6", "conv3"),
            (r"features\.8", "conv4"),
            (r"features\.10", "conv5"),
            (r"classifier\.1", "fc6"),
            (r"classifier\.4", "fc7"),
            (r"classifier\.6", "logits"),
        ),
        files={"alexnet_owt": "alexnet-owt-7be5be79.pth"},
    ),
    "pytorchcv": Collection(
        names=(
            (r"features\.stage([12])\.unit1\.conv", "conv{1}"),
            (r"features\.stage3\.unit(\d)\.conv", "conv{1+2}"),
            (r"output\.fc([12])\.fc", "fc{1+5}"),
            (r"output\.fc3", "logits"),
        ),
        options={"groups": 1, "stem_padding": 0, "lrn": "conv", "lrn_alpha": 2e-5},
    ),
}


def zfnet(
    variant: str = "zfnet",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    groups: int = 2,
    lrn: str | None = None,
    lrn_alpha: float = 1e-4,
    stem_stride: int | None = None,
    stem_padding: int = 2,
    hidden: int = 4096,
    dropout: float = 0.5,
    include_top: bool = True,
    normalization: tuple | None = None,
    **top: Unpack[Top],
) -> keras.Model:
    """Build ZFNet or AlexNet.

    pytorchcv's nets are ours with `groups=1, stem_padding=0, lrn="conv", lrn_alpha=2e-5`; its
    `alexnetb` is `alexnet_owt`, its ungrouped `alexnet` has 62,378,344 parameters.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels. At least 35 for alexnet and
            47 for zfnet; with a smaller `stem_stride` 21 (2) or 14 (1), and 26 (1).
        classes: width of the last layer.
        groups: of alexnet's layers 2, 4 and 5: the paper's 2, or 1, which undoes the split.
        lrn: where response normalisation stands in layers 1 and 2: "conv" (before pooling, as in
            alexnet) or "pool" (behind it: figure 3). None: the variant's own; alexnet_owt has none.
        lrn_alpha: its alpha as the paper's formula counts it; 2e-5 is what torch and Caffe write
            as 1e-4. Its other constants are n = 5, k = 2 and beta = 0.75.
        stem_stride: stride of the first convolution. None: the paper's 4 or 2. Less is a departure
            for small pictures: at 28x28 the paper's leaves nothing.
        stem_padding: zeros around alexnet's picture, in pixels. The paper mentions none, but its
            first map of 55x55 pixels at 224 takes 2.
        hidden: width of the two hidden fully connected layers; less than the paper's 4096 is a
            departure for small pictures.
        dropout: rate behind each hidden layer, in [0, 1).
        include_top: False leaves out all fully connected layers.
        normalization: see `tiffin.layers.image_input`.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: an unknown variant or option, or a picture that is too small.
        ValueError: fully connected layers for pictures of any size.
    """
    one_of("variant", variant, VARIANTS)
    one_of("groups", groups, (2, 1))
    one_of("lrn", lrn, (None, "conv", "pool"))
    one_of("stem_stride", stem_stride, (None, 1, 2, 4))
    one_of("stem_padding", stem_padding, (2, 1, 0))
    if hidden < 1:
        raise InputError(f"hidden={hidden} must be at least 1; the papers have 4096.")
    lrn = None if variant == "alexnet_owt" else lrn or ("conv" if variant == "alexnet" else "pool")
    second = variant in ("alexnet_owt", "zfnetb")
    rows = []
    for row in ALEXNET if variant.startswith("alexnet") else ZFNET:
        name, size, stride, padding, filters, split, others = row
        if name == "conv1":
            stride = stem_stride or stride
            padding = stem_padding if variant == "alexnet" else padding
        if second:
            filters, split = others, 1
        rows.append((name, size, stride, padding, filters, min(split, groups)))
    smallest = next(side for side in itertools.count(1) if _left(side, rows))
    require_size(input_shape, smallest, f"{variant} with stem_stride={rows[0][2]}")

    image, x = image_input(input_shape, normalization)
    total, maps = 1, {}
    for name, size, stride, padding, filters, split in rows:
        same = stride == 1 and padding == size // 2
        if padding and not same:
            x = layers.ZeroPadding2D(padding, name=f"{name}_pad")(x)
        x = GroupedConv2D(
            filters,
            size,
            stride,
            "same" if same else "valid",
            groups=split,
            activation="relu",
            kernel_initializer="he_normal",
            name=name,
        )(x)
        total *= stride
        normalize = LocalResponseNormalization(5, 2.0, lrn_alpha, 0.75, name=f"norm{name[-1]}")
        if lrn == "conv" and name in ("conv1", "conv2"):
            x = normalize(x)
        maps[total] = x
        if name in POOLED:
            x = overlapping_max_pooling(x, name=POOLED[name])
            if lrn == "pool" and name != "conv5":
                x = normalize(x)
            total *= 2
            maps[total] = x

    if include_top and not top.get("features"):
        x = hidden_layers(x, hidden, dropout, names=("fc6", "fc7"))
    return classifier(
        variant, image, x, classes, maps, dropout=dropout, include_top=include_top, **top
    )


def _left(side: int, rows: list[tuple]) -> int:
    """Return what convolutions and poolings leave of a side, in pixels."""
    for name, size, stride, padding, *_ in rows:
        side = max(side + 2 * padding - size + stride, 0) // stride
        side = side // 2 if name in POOLED else side
    return side


@dataclasses.dataclass
class Config(Classification):
    """Train ZFNet (Zeiler, Fergus 2013, arXiv 1311.2901) or AlexNet (Krizhevsky et al. 2012).

    Below 64 pixels two things depart from the papers, so that something is left of the picture and
    there is something to learn from little of it: a smaller stride, and 512 hidden units, not 4096.

    examples:
      tiffin train zfnet --data mnist
      tiffin train alexnet --data photos/ --export
    """

    model: str = "zfnet"
    groups: Literal[1, 2] = 2
    """Of alexnet's layers 2, 4 and 5."""
    lrn: Literal["conv", "pool"] | None = None
    """Where response normalisation stands; default: the paper's place."""
    lrn_alpha: float = 1e-4
    """Its alpha, as the paper's formula counts it: a fifth of what torch and Caffe write."""
    stem_padding: Literal[0, 1, 2] = 2
    """Zeros around alexnet's picture, in pixels."""
    stem_stride: int | None = None
    """Stride of the first convolution; default: the paper's 4 or 2, below 64 pixels 2 or 1."""
    hidden: int | None = None
    """Width of the two hidden layers; default: the papers' 4096, but 512 below 64 pixels."""
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    builder: ClassVar = staticmethod(zfnet)

    @property
    def small(self):
        return {"stem_stride": 2 if self.model.startswith("alexnet") else 1, "hidden": 512}


if __name__ == "__main__":
    main(Config)
