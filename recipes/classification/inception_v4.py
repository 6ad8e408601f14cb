"""Inception v4: one uniform module for each size, many times.

Freed from the need to split a network over machines, the authors tidy up Inception v3: the modules
of one size are all alike, so that only their number is left to choose. The stem, too, halves the
size by convolution and pooling side by side. Beside it stands Inception-ResNet v2, as costly and as
accurate, which learns faster: see inception_resnet_v2.py.

Szegedy, Ioffe, Vanhoucke, Alemi: Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning (2016), arXiv 1602.07261.

Reproduces the network of figure 9, with a top-1 error of 20.0 % for one crop (table 2); ours: see
docs/results.md.

Run it:
    python recipes/classification/inception_v4.py --alpha 0.25 --data mnist --data-dir DIR
"""

import dataclasses
from typing import ClassVar, Unpack

import keras

from tiffin.layers import (
    Top,
    check_inception,
    classifier,
    conv_relu,
    factorized_inception,
    image_input,
    inception_stem_strides,
    largest_stem_stride,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import PYTORCHCV_BRANCH, TIMM_BRANCHES, pytorchcv_inception, within
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "inception_v4": (2016, 299, 42_679_816, 12_253_974_624, 20.0, "ImageNet"),
}

# A module is a tuple of branches, a branch a list of steps (filters, kernel size, stride, padding);
# a list in a branch stands side by side. Figure 3 without its first three convolutions and its end:
MIXED_3A = ([("max", 2)], [(96, 3, 2)])
MIXED_4A = (
    [(64, 1), (96, 3, 1, "valid")],
    [(64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1, "valid")],
)
INCEPTION_A = (  # figure 4
    [(96, 1)],
    [(64, 1), (96, 3)],
    [(64, 1), (96, 3), (96, 3)],
    [("avg",), (96, 1)],
)
REDUCTION_A = (  # figure 7, table 1
    [(384, 3, 2)],
    [(192, 1), (224, 3), (256, 3, 2)],
    [("max", 2)],
)
INCEPTION_B = (  # figure 5
    [(384, 1)],
    [(192, 1), (224, (1, 7)), (256, (7, 1))],
    [(192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))],
    [("avg",), (128, 1)],
)
REDUCTION_B = (  # figure 8
    [(192, 1), (192, 3, 2)],
    [(256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)],
    [("max", 2)],
)
INCEPTION_C = (  # figure 6
    [(256, 1)],
    [(384, 1), [(256, (1, 3)), (256, (3, 1))]],
    [(384, 1), (448, (3, 1)), (512, (1, 3)), [(256, (1, 3)), (256, (3, 1))]],
    [("avg",), (256, 1)],
)

# Figure 9, behind the stem.
MODULES = (
    # names, stride in pixels, branches
    (["Inception_A_1", "Inception_A_2", "Inception_A_3", "Inception_A_4"], 8, INCEPTION_A),
    (["Reduction_A"], 16, REDUCTION_A),
    ([f"Inception_B_{i}" for i in range(1, 8)], 16, INCEPTION_B),
    (["Reduction_B"], 32, REDUCTION_B),
    (["Inception_C_1", "Inception_C_2", "Inception_C_3"], 32, INCEPTION_C),
)

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
WEIGHTS = {
    "timm": Collection(
        names=(
            *((rf"features\.{i}\.(conv|bn)", f"{layer}_{{1}}") for i, layer in enumerate(STEM)),
            (r"features\.3\.conv\.(conv|bn)", "Mixed_3a_branch2_{1}"),
            (r"features\.5\.conv\.(conv|bn)", "Mixed_5a_branch1_{1}"),
            *within(
                (
                    (r"features\.4", "Mixed_4a"),
                    (r"features\.([6-9])", "Inception_A_{1-5}"),
                    (r"features\.10", "Reduction_A"),
                    (r"features\.(1[1-7])", "Inception_B_{1-10}"),
                    (r"features\.18", "Reduction_B"),
                    (r"features\.(19|20|21)", "Inception_C_{1-18}"),
                ),
                TIMM_BRANCHES,
            ),
            (r"last_linear", "logits"),
        ),
        epsilon=1e-3,
        normalization=(127.5, 127.5),
        licence="Apache-2.0",
    ),
    "pytorchcv": Collection(
        names=(
            *pytorchcv_inception(STEM, "Reduction_A_branch1"),
            *within(
                (
                    (r"features\.init_block\.block1", "Mixed_3a"),
                    (r"features\.init_block\.block2", "Mixed_4a"),
                    (r"features\.init_block\.block3", "Mixed_5a"),
                    (r"features\.stage1\.unit(\d)", "Inception_A_{1}"),
                    (r"features\.stage2\.unit1", "Reduction_A"),
                    (r"features\.stage2\.unit(\d)", "Inception_B_{1-1}"),
                    (r"features\.stage3\.unit1", "Reduction_B"),
                    (r"features\.stage3\.unit(\d)", "Inception_C_{1-1}"),
                ),
                within(((r"branches\.branch(\d)", "branch{1}"),), PYTORCHCV_BRANCH),
            ),
        ),
        epsilon=1e-3,
        licence="MIT",
    ),
}


def inception_v4(
    input_shape: tuple[int | None, int | None, int] = (299, 299, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    dropout: float = 0.2,
    stem_stride: int | None = None,
    bn_scale: bool = True,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build Inception v4; layers are named after the paper's figures.

    Args:
        input_shape: `(height, width, channels)` in pixels, at least 23 x 23.
        classes: width of the last layer.
        alpha: width multiplier, 1 in the paper; see `tiffin.layers.conv_relu`.
        dropout: rate before the last layer, in [0, 1); 0.2 in the paper.
        stem_stride: by what the stem divides the picture. None: 8, as in the paper, but 4 below 75
            pixels and 2 below 39, the smallest being 23.
        bn_scale: whether batch normalisation has gamma: yes in pytorchcv and timm (42,679,816
            parameters), no in the authors' code (42,648,232).
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        ValueError: a value outside its range, or a picture that is too small.
    """
    stem_stride = stem_stride or largest_stem_stride(input_shape)
    check_inception(input_shape, stem_stride, alpha)
    conv = {"alpha": alpha, "bn_scale": bn_scale, "momentum": bn_momentum}
    first, last = inception_stem_strides(stem_stride)

    image, x = image_input(input_shape, normalization)
    x = conv_relu(x, 32, 3, first, "valid", name="Conv2d_1a_3x3", **conv)  # 149 x 149 x 32
    x = conv_relu(x, 32, 3, 1, "valid", name="Conv2d_2a_3x3", **conv)
    x = conv_relu(x, 64, 3, name="Conv2d_2b_3x3", **conv)  # 147 x 147 x 64
    maps = {first: x}
    x = factorized_inception(x, MIXED_3A, name="Mixed_3a", **conv)  # 73 x 73 x 160
    x = maps[2 * first] = factorized_inception(x, MIXED_4A, name="Mixed_4a", **conv)
    mixed_5a = ([(192, 3, last)], [("max", last)])
    x = factorized_inception(x, mixed_5a, name="Mixed_5a", **conv)  # 35 x 35 x 384
    for names, stride, branches in MODULES:
        for name in names:
            x = factorized_inception(x, branches, name=name, **conv)
        maps[stride * stem_stride // 8] = x

    return classifier("inception_v4", image, x, classes, maps, dropout=dropout, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train Inception v4 (Szegedy et al. 2016, arXiv 1602.07261).

    examples:
      tiffin train inception_v4 --alpha 0.25 --data mnist
      tiffin train inception_v4 --data photos/ --image-size 299 --export
    """

    model: str = "inception_v4"
    alpha: float = 1.0
    """Width multiplier; 1 in the paper."""
    stem_stride: int | None = None
    """By what the stem divides the picture: 8, 4 or 2; default: the paper's 8, but 4 below 75
    pixels and 2 below 39."""
    weight_decay: float = 4e-5
    builder: ClassVar = staticmethod(inception_v4)


if __name__ == "__main__":
    main(Config)
