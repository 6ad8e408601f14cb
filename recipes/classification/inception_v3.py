"""Inception v3: factorised convolutions and label smoothing.

Two 3x3 convolutions see as far as a 5x5 for 72 % of its cost, 1x7 and 7x1 as far as a 7x7 for 29 %;
what that saves goes into more and wider modules. The size is halved by convolution and pooling side
by side, so that no bottleneck squeezes the picture. A second classifier on the way acts as a
regulariser, and so do smoothed labels.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture for Computer Vision
(2015), arXiv 1512.00567.

Reproduces the network of table 3's last row, a top-1 error of 21.2 % for one crop; ours: see
docs/results.md. It is the authors' code and every published file, not quite the paper's table 1 and
figures: a 1x1 convolution and two poolings in the stem, a 5x5 kept in the first modules.

Run it:
    python recipes/classification/inception_v3.py --alpha 0.25 --data mnist --data-dir DIR
"""

import dataclasses
import functools
from typing import ClassVar, Unpack

import keras

from tiffin.layers import (
    INCEPTION_STEM,
    SMALLEST_WITH_AUXILIARY,
    Top,
    check_inception,
    classifier,
    factorized_inception,
    image_input,
    inception_auxiliary_head,
    inception_layers,
    inception_stem,
    largest_stem_stride,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import (
    KERAS_URL,
    PYTORCHCV_BRANCH,
    counted,
    keras_files,
    pytorchcv_inception,
    within,
)
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "inception_v3": (2015, 299, 23_834_568, 5_713_216_096, 21.2, "ImageNet"),
}

# Branches by name, as in torchvision; a step is (filters, kernel size, stride), a list stands side
# by side.


def inception_a(pooled):
    """Figure 5: two 3x3 convolutions see as far as a 5x5."""
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [("avg",), (pooled, 1)],
    }


INCEPTION_B = {  # figure 10: convolution and pooling reduce the size side by side
    "branch3x3": [(384, 3, 2)],
    "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)],
    "branch_pool": [("max", 2)],
}


def inception_c(c):
    """Figure 6: 7x7 convolutions, each as 1x7 and 7x1."""
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, (1, 7)), (192, (7, 1))],
        "branch7x7dbl": [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))],
        "branch_pool": [("avg",), (192, 1)],
    }


INCEPTION_D = {  # the second reduction
    "branch3x3": [(192, 1), (320, 3, 2)],
    "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
    "branch_pool": [("max", 2)],
}
INCEPTION_E = {  # figure 7: wide rather than deep, before the classifier
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), [(384, (1, 3)), (384, (3, 1))]],
    "branch3x3dbl": [(448, 1), (384, 3), [(384, (1, 3)), (384, (3, 1))]],
    "branch_pool": [("avg",), (192, 1)],
}

# Table 1, behind the stem.
MODULES = (
    # name, stride in pixels, branches
    ("Mixed_5b", 8, inception_a(32)),  # 35 x 35 x 256
    ("Mixed_5c", 8, inception_a(64)),  # 35 x 35 x 288
    ("Mixed_5d", 8, inception_a(64)),
    ("Mixed_6a", 16, INCEPTION_B),  # 17 x 17 x 768
    ("Mixed_6b", 16, inception_c(128)),
    ("Mixed_6c", 16, inception_c(160)),
    ("Mixed_6d", 16, inception_c(160)),
    ("Mixed_6e", 16, inception_c(192)),
    ("Mixed_7a", 32, INCEPTION_D),  # 8 x 8 x 1280
    ("Mixed_7b", 32, INCEPTION_E),  # 8 x 8 x 2048
    ("Mixed_7c", 32, INCEPTION_E),
)
LAYERS = [layer for name, _, branches in MODULES for layer in inception_layers(name, branches)]

# Of pytorchcv, which numbers modules and branches.
UNITS = [f"stage{i}.unit{j}" for i, count in ((1, 3), (2, 5), (3, 3)) for j in range(1, count + 1)]
PYTORCHCV = tuple(
    (rf"features\.{unit}\.branches\.branch{number}", f"{name}_{branch}")
    for unit, (name, _, branches) in zip(UNITS, MODULES, strict=True)
    for number, branch in enumerate(branches, 1)
)
WEIGHTS = {
    "torchvision": Collection(  # and timm
        names=(
            (r"(Conv2d_\w+)\.(conv|bn)", "{1}_{2}"),
            (r"AuxLogits\.(conv\d)\.(conv|bn)", "auxiliary_{1}_{2}"),
            (r"(\w+)\.(branch\w+)_\da\.(conv|bn)", "{1}_{2}_1x3_{3}"),
            (r"(\w+)\.(branch\w+)_\db\.(conv|bn)", "{1}_{2}_3x1_{3}"),
            (r"(\w+)\.(\w+)\.(conv|bn)", "{1}_{2}_{3}"),
            (r"AuxLogits\.fc", "auxiliary_logits"),
            (r"fc", "logits"),
        ),
        options={"count_zeros": True},
        epsilon=1e-3,
        # The published file wants what torchvision calls transform_input: its usual mean and
        # standard deviation are undone, and pixels fill [-1, 1].
        normalization=(127.5, 127.5),
        files={"inception_v3": "inception_v3_google-0cc3c7bd.pth"},
    ),
    "keras.applications": Collection(
        names=functools.partial(counted, layers=[*INCEPTION_STEM, *LAYERS]),
        epsilon=1e-3,
        normalization=(127.5, 127.5),
        licence="Apache-2.0",
        url=f"{KERAS_URL}inception_v3/",
        files=keras_files({"inception_v3": ("inception_v3", "9a0d58056eeedaa3f26cb7ebd46da564")}),
    ),
    "pytorchcv": Collection(
        names=(
            *pytorchcv_inception(INCEPTION_STEM, "Mixed_6a_branch3x3"),
            *within(PYTORCHCV, PYTORCHCV_BRANCH),
        ),
        options={"count_zeros": True},
        epsilon=1e-3,
        licence="MIT",
    ),
}


def inception_v3(
    input_shape: tuple[int | None, int | None, int] = (299, 299, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    dropout: float = 0.2,
    auxiliary: bool = False,
    stem_stride: int | None = None,
    bn_scale: bool = True,
    count_zeros: bool = False,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build Inception v3; layers are named as in torchvision, but `_1x3` and `_3x1` side by side.

    Args:
        input_shape: `(height, width, channels)` in pixels, at least 23 x 23.
        classes: width of the last layer.
        alpha: width multiplier, 1 in the paper; see `tiffin.layers.conv_relu`.
        dropout: rate before the last layer, in [0, 1): 0.2 in the authors' code, 0.5 in torch's.
        auxiliary: add the second classifier, `auxiliary`, which takes 107 x 107 pixels.
        stem_stride: by what the stem divides the picture. None: 8, as in the paper, but 4 below 75
            pixels and 2 below 39, the smallest being 23.
        bn_scale: whether batch normalisation has gamma: yes in torchvision (with the auxiliary
            head 27,161,264 parameters) and pytorchcv (23,834,568, ours in VARIANTS), no in the
            authors' code and keras.applications (23,817,352).
        count_zeros: whether the modules' means count the zeros beyond the border: no in the
            authors' code and keras.applications, yes in torchvision and pytorchcv.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        ValueError: a value outside its range, or a picture that is too small.
    """
    auxiliary = auxiliary and top.get("include_top", True)
    stem_stride = stem_stride or largest_stem_stride(input_shape)
    check_inception(input_shape, stem_stride, alpha, auxiliary)
    conv = {"alpha": alpha, "bn_scale": bn_scale, "momentum": bn_momentum}

    image, x = image_input(input_shape, normalization)
    x, maps = inception_stem(x, stem_stride, **conv)  # 35 x 35 x 192
    heads = {}
    for name, stride, branches in MODULES:
        x = factorized_inception(x, branches, name=name, count_zeros=count_zeros, **conv)
        maps[stride * stem_stride // 8] = x
        if auxiliary and name == "Mixed_6e":
            heads["auxiliary"] = inception_auxiliary_head(x, classes, name="auxiliary", **conv)

    return classifier(
        "inception_v3", image, x, classes, maps, dropout=dropout, auxiliary=heads, **top
    )


@dataclasses.dataclass
class Config(Classification):
    """Train Inception v3 (Szegedy et al. 2015, arXiv 1512.00567).

    examples:
      tiffin train inception_v3 --alpha 0.25 --data mnist
      tiffin train inception_v3 --data photos/ --image-size 299 --export
    """

    model: str = "inception_v3"
    alpha: float = 1.0
    """Width multiplier; 1 in the paper."""
    stem_stride: int | None = None
    """By what the stem divides the picture: 8, 4 or 2; default: the paper's 8, but 4 below 75
    pixels and 2 below 39."""
    auxiliary: bool = True
    """Train with the paper's second classifier, where the picture is large enough for it."""
    label_smoothing: float = 0.1
    weight_decay: float = 4e-5
    builder: ClassVar = staticmethod(inception_v3)

    def build(self, input_shape, classes, normalization, **options):
        stride = self.stem_stride or largest_stem_stride(input_shape)
        smallest = SMALLEST_WITH_AUXILIARY.get(stride, 0)
        options.setdefault("auxiliary", self.auxiliary and min(input_shape[:2]) >= smallest)
        return super().build(input_shape, classes, normalization, **options)


if __name__ == "__main__":
    main(Config)
