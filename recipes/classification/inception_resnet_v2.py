"""Inception-ResNet v2: Inception modules that learn what to add to their input.

The branches of a module are not its output but, through a 1x1 convolution that makes up for their
few channels, a residual. Such a network learns several times faster than Inception v4, for about
the same cost and accuracy. Residuals are scaled by 0.1 to 0.2 before they are added, since networks
of more than a thousand filters die otherwise.

Szegedy, Ioffe, Vanhoucke, Alemi: Inception-v4, Inception-ResNet and the Impact of Residual
Connections on Learning (2016), arXiv 1602.07261.

Reproduces the network of figure 15, with a top-1 error of 19.9 % for one crop (table 2); ours: see
docs/results.md. It is the authors' code and every published file: with the stem of Inception v3, an
Inception module behind it and their own widths; the paper draws the stem of Inception v4.

Run it:
    python recipes/classification/inception_resnet_v2.py --alpha 0.25 --data mnist --data-dir DIR
"""

import dataclasses
from typing import ClassVar, Unpack

import keras
from keras import layers

from tiffin.layers import (
    INCEPTION_STEM,
    ScaledResidual,
    Top,
    check_inception,
    classifier,
    conv_relu,
    factorized_inception,
    image_input,
    inception_layers,
    inception_stem,
    largest_stem_stride,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import (
    KERAS_URL,
    PYTORCHCV_BRANCH,
    TIMM_BRANCHES,
    counted,
    keras_files,
    pytorchcv_inception,
    within,
)
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "inception_resnet_v2": (2016, 299, 55_843_464, 13_155_794_016, 19.9, "ImageNet"),
}

# A module is a tuple of branches, a branch a list of steps (filters, kernel size, stride).
MIXED_5B = (
    [(96, 1)],
    [(48, 1), (64, 5)],
    [(64, 1), (96, 3), (96, 3)],
    [("avg",), (64, 1)],
)
INCEPTION_RESNET_A = (  # figure 16
    [(32, 1)],
    [(32, 1), (32, 3)],
    [(32, 1), (48, 3), (64, 3)],
)
REDUCTION_A = (  # figure 7, table 1
    [(384, 3, 2)],
    [(256, 1), (256, 3), (384, 3, 2)],
    [("max", 2)],
)
INCEPTION_RESNET_B = (  # figure 17
    [(192, 1)],
    [(128, 1), (160, (1, 7)), (192, (7, 1))],
)
REDUCTION_B = (  # figure 18
    [(256, 1), (384, 3, 2)],
    [(256, 1), (288, 3, 2)],
    [(256, 1), (288, 3), (320, 3, 2)],
    [("max", 2)],
)
INCEPTION_RESNET_C = (  # figure 19
    [(192, 1)],
    [(192, 1), (224, (1, 3)), (256, (3, 1))],
)

# Figure 15, behind the stem.
MODULES = (
    # names, stride in pixels, scale of the residual, or None where there is none, branches
    (["Mixed_5b"], 8, None, MIXED_5B),  # 35 x 35 x 320
    ([f"block35_{i}" for i in range(1, 11)], 8, 0.17, INCEPTION_RESNET_A),
    (["Mixed_6a"], 16, None, REDUCTION_A),  # 17 x 17 x 1088
    ([f"block17_{i}" for i in range(1, 21)], 16, 0.1, INCEPTION_RESNET_B),
    (["Mixed_7a"], 32, None, REDUCTION_B),  # 8 x 8 x 2080
    ([f"block8_{i}" for i in range(1, 11)], 32, 0.2, INCEPTION_RESNET_C),
)


def keras_applications(paths: list[str]) -> dict[str, str]:
    """Name the layers of keras.applications: some have names, the others are counted."""
    ours = [*INCEPTION_STEM]
    for names, _, _, branches in MODULES:
        ours += [layer for name in names for layer in inception_layers(name, branches)]
    named = {path: path for path in paths if path.startswith("block")}
    named |= {"conv_7b": "Conv2d_7b_1x1_conv", "conv_7b_bn": "Conv2d_7b_1x1_bn"}
    return named | counted(paths, ours)


WEIGHTS = {
    "keras.applications": Collection(
        names=keras_applications,
        epsilon=1e-3,
        normalization=(127.5, 127.5),
        licence="Apache-2.0",
        url=f"{KERAS_URL}inception_resnet_v2/",
        files=keras_files(
            {"inception_resnet_v2": ("inception_resnet_v2", "e693bd0210a403b3192acc6073ad2e96")}
        ),
    ),
    "timm": Collection(
        names=(
            (r"conv2d_(1a|2a|2b|4a)\.(conv|bn)", "Conv2d_{1}_3x3_{2}"),
            (r"conv2d_(3b|7b)\.(conv|bn)", "Conv2d_{1}_1x1_{2}"),
            *within(
                (
                    (r"mixed_(\d\w)", "Mixed_{1}"),
                    (r"repeat\.(\d)", "block35_{1+1}"),
                    (r"repeat_1\.(\d+)", "block17_{1+1}"),
                    (r"repeat_2\.(\d)", "block8_{1+1}"),
                    (r"block8", "block8_10"),
                ),
                (*TIMM_BRANCHES, (r"conv2d", "conv")),
            ),
            (r"classif", "logits"),
        ),
        epsilon=1e-3,
        normalization=(127.5, 127.5),
        licence="Apache-2.0",
    ),
    "pytorchcv": Collection(
        names=(
            *pytorchcv_inception(INCEPTION_STEM, "Mixed_6a_branch1"),
            *within(
                (
                    (r"features\.init_block\.block", "Mixed_5b"),
                    (r"features\.stage1\.unit(\d+)", "block35_{1}"),
                    (r"features\.stage2\.unit1", "Mixed_6a"),
                    (r"features\.stage2\.unit(\d+)", "block17_{1-1}"),
                    (r"features\.stage3\.unit1", "Mixed_7a"),
                    (r"features\.stage3\.unit(\d+)", "block8_{1-1}"),
                ),
                (
                    *within(((r"branches\.branch(\d)", "branch{1}"),), PYTORCHCV_BRANCH),
                    (r"conv", "conv"),
                ),
            ),
            (r"features\.final_conv\.(conv|bn)", "Conv2d_7b_1x1_{1}"),
        ),
        epsilon=1e-3,
        licence="MIT",
    ),
}


def inception_resnet_v2(
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
    """Build Inception-ResNet v2; layer names are those of the authors' code.

    Args:
        input_shape: `(height, width, channels)` in pixels, at least 23 x 23.
        classes: width of the last layer.
        alpha: width multiplier, 1 in the paper; see `tiffin.layers.conv_relu`.
        dropout: rate before the last layer, in [0, 1); 0.2 in the paper.
        stem_stride: by what the stem divides the picture. None: 8, as in the paper, but 4 below 75
            pixels and 2 below 39, the smallest being 23.
        bn_scale: whether batch normalisation has gamma: yes in pytorchcv and timm (55,843,464
            parameters), no in the authors' code and keras.applications (55,813,192).
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        ValueError: a value outside its range, or a picture that is too small.
    """
    stem_stride = stem_stride or largest_stem_stride(input_shape)
    check_inception(input_shape, stem_stride, alpha)
    conv = {"alpha": alpha, "bn_scale": bn_scale, "momentum": bn_momentum}

    image, x = image_input(input_shape, normalization)
    x, maps = inception_stem(x, stem_stride, **conv)  # 35 x 35 x 192
    for names, stride, scale, branches in MODULES:
        for name in names:
            if scale is None:
                x = factorized_inception(x, branches, name=name, **conv)
            else:
                y = factorized_inception(x, branches, name=name, **conv)
                y = layers.Conv2D(x.shape[-1], 1, name=f"{name}_conv")(y)
                last = name == "block8_10"
                x = ScaledResidual(1.0 if last else scale, name=f"{name}_add")([x, y])
                x = x if last else layers.ReLU(name=f"{name}_relu")(x)
        maps[stride * stem_stride // 8] = x
    x = conv_relu(x, 1536, 1, name="Conv2d_7b_1x1", **conv)  # 8 x 8 x 1536
    maps[32 * stem_stride // 8] = x

    return classifier("inception_resnet_v2", image, x, classes, maps, dropout=dropout, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train Inception-ResNet v2 (Szegedy et al. 2016, arXiv 1602.07261).

    examples:
      tiffin train inception_resnet_v2 --alpha 0.25 --data mnist
      tiffin train inception_resnet_v2 --data photos/ --image-size 299 --export
    """

    model: str = "inception_resnet_v2"
    alpha: float = 1.0
    """Width multiplier; 1 in the paper."""
    stem_stride: int | None = None
    """By what the stem divides the picture: 8, 4 or 2; default: the paper's 8, but 4 below 75
    pixels and 2 below 39."""
    weight_decay: float = 4e-5
    builder: ClassVar = staticmethod(inception_resnet_v2)


if __name__ == "__main__":
    main(Config)
