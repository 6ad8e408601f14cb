"""DenseNet: densely connected convolutional networks.

Every layer of a block reads the feature maps of all layers before it, side by side, and appends a
few of its own. What has been found once stays readable and need not be learned again, so that a
dozen new maps a layer suffice; gradients reach every layer directly. Between blocks a transition
halves the size, and in the BC form also the number of maps.

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks (2016),
arXiv 1608.06993.

Reproduces table 1 (ImageNet architectures) and table 2 (CIFAR). The errors in VARIANTS are those of
table 3, single crop, and of table 2, CIFAR-10 with augmentation (C10+). densenet161 stands in the
authors' code and their README alone, whose error is given; densenet40_k12_bc is pytorchcv's, a
quarter of the arithmetic of densenet40_k12. Ours: see docs/results.md.

Run it:
    python recipes/classification/densenet.py --model densenet40_k12 --data cifar10 --data-dir DIR
"""

import dataclasses
from typing import ClassVar, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    BatchNormalization,
    Top,
    classifier,
    conv_bn,
    dense_block,
    image_input,
    padded_max_pooling,
    require_size,
    transition,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import KERAS_URL, keras_files
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "densenet121": (2016, 224, 7_978_856, 2_834_161_664, 25.02, "ImageNet"),
    "densenet169": (2016, 224, 14_149_480, 3_359_843_328, 23.80, "ImageNet"),
    "densenet201": (2016, 224, 20_013_928, 4_291_365_888, 22.58, "ImageNet"),
    "densenet264": (2016, 224, 33_337_704, 5_751_653_376, 22.15, "ImageNet"),
    "densenet161": (2016, 224, 28_681_000, 7_727_907_072, 22.2, "ImageNet"),
    "densenet40_k12": (2016, 32, 1_019_722, 264_812_928, 5.24, "CIFAR-10"),
    "densenet100_k12": (2016, 32, 6_979_642, 1_769_516_448, 4.10, "CIFAR-10"),
    "densenet100_k24": (2016, 32, 27_249_082, 6_889_347_744, 3.74, "CIFAR-10"),
    "densenet40_k12_bc": (2016, 32, 176_122, 72_365_352, None, "CIFAR-10"),
    "densenet100_k12_bc": (2016, 32, 769_162, 287_929_692, 4.51, "CIFAR-10"),
    "densenet250_k24_bc": (2016, 32, 15_324_406, 5_418_785_724, 3.62, "CIFAR-10"),
    "densenet190_k40_bc": (2016, 32, 25_624_430, 9_301_945_740, 3.46, "CIFAR-10"),
}

# Table 1: dense layers a block, each of a 1x1 and a 3x3 convolution.
IMAGENET = (
    # layer name, output size, DenseNet-121, -169, -201, -264, -161
    ("conv2", 56, 6, 6, 6, 6, 6),
    ("conv3", 28, 12, 12, 12, 12, 12),
    ("conv4", 14, 24, 32, 48, 64, 36),
    ("conv5", 7, 16, 32, 32, 48, 24),
)
DEPTHS = (121, 169, 201, 264, 161)

# Section 3, implementation details: three blocks of (L - 4) / 3 layers, half as many with
# bottlenecks, which have two convolutions each.
CIFAR = (("conv2", 32), ("conv3", 16), ("conv4", 8))  # layer name, output size

WEIGHTS = {
    "keras.applications": Collection(
        names=((r"predictions", "logits"),),
        epsilon=1.001e-5,
        url=f"{KERAS_URL}densenet/",
        files=keras_files(
            {
                "densenet121": ("densenet121", "9d60b8095a5708f2dcce2bca79d332c7"),
                "densenet169": ("densenet169", "d699b8f76981ab1b30698df4c175e90b"),
                "densenet201": ("densenet201", "1ceb130c1ea1b78c3bf6114dbdfd8807"),
            }
        ),
    ),
    "torchvision": Collection(
        names=(
            (r"features\.conv0", "conv1_conv"),
            (r"features\.norm0", "conv1_bn"),
            # The published files say norm.1 where the code of today says norm1.
            (
                r"features\.denseblock(\d+)\.denselayer(\d+)\.norm\.?(\d)",
                "conv{1+1}_block{2}_{3-1}_bn",
            ),
            (
                r"features\.denseblock(\d+)\.denselayer(\d+)\.conv\.?(\d)",
                "conv{1+1}_block{2}_{3}_conv",
            ),
            (r"features\.transition(\d+)\.norm", "pool{1+1}_bn"),
            (r"features\.transition(\d+)\.conv", "pool{1+1}_conv"),
            (r"features\.norm5", "bn"),
            (r"classifier", "logits"),
        ),
        files={
            "densenet121": "densenet121-a639ec97.pth",
            "densenet161": "densenet161-8d451a50.pth",
            "densenet169": "densenet169-b2777c0a.pth",
            "densenet201": "densenet201-c1103571.pth",
        },
    ),
    "pytorchcv": Collection(
        names=(
            (r"features\.init_block(\.conv)?", "conv1_conv"),
            (r"features\.init_block\.bn", "conv1_bn"),
            (r"features\.stage(\d+)\.unit(\d+)\.conv(\d)\.bn", "conv{1+1}_block{2}_{3-1}_bn"),
            (r"features\.stage(\d+)\.unit(\d+)\.conv(\d)\.conv", "conv{1+1}_block{2}_{3}_conv"),
            (r"features\.stage(\d+)\.unit(\d+)\.conv\.bn", "conv{1+1}_block{2}_0_bn"),
            (r"features\.stage(\d+)\.unit(\d+)\.conv\.conv", "conv{1+1}_block{2}_2_conv"),
            (r"features\.stage(\d+)\.trans\d+\.conv\.bn", "pool{1}_bn"),
            (r"features\.stage(\d+)\.trans\d+\.conv\.conv", "pool{1}_conv"),
            (r"features\.post_activ\.bn", "bn"),
            (r"output", "logits"),
        ),
        options={"compression": 0.5},
    ),
}


def densenet(
    variant: str = "densenet121",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    compression: float | None = None,
    drop_rate: float = 0.0,
    stem_stride: int = 2,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build a densely connected network; layer names are those of keras.applications.

    Args:
        variant: one of `VARIANTS`. 121 to 264 are the ImageNet form, DenseNet-BC with a stride of
            32 in all and a growth rate of 32, 48 for 161; the others the CIFAR form, with a stride
            of 4, of the depth and growth rate that they name.
        input_shape: `(height, width, channels)` in pixels; 224 or 32 in the paper. At least 29, or
            15 with `stem_stride=1`; the CIFAR form 4.
        classes: width of the last layer.
        compression: the paper's theta, in (0, 1]: share of the feature maps that a transition
            keeps. None: the paper's, 0.5 for BC and 1 otherwise. 0.5 without BC is what pytorchcv
            calls DenseNet-40 and -100: 599,050 parameters instead of 1,019,722 with k = 12.
        drop_rate: of dropout after every convolution but the first, in [0, 1). The paper has 0.2
            on data without augmentation, 0 with.
        stem_stride: stride of the ImageNet form's first convolution, 2 in the paper. 1 is a
            departure for small pictures: 28x28 ones would not survive the pooling.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned. Feature maps are those that
            enter a transition, and the last one, after BN and ReLU.

    Raises:
        InputError: an unknown variant, an option out of its range, or too small a picture.
    """
    one_of("variant", variant, VARIANTS)
    one_of("stem_stride", stem_stride, (2, 1))
    if compression is not None and not 0 < compression <= 1:
        raise InputError(f"compression={compression} must lie in (0, 1]; the paper uses 0.5 and 1.")
    if not 0 <= drop_rate < 1:
        raise InputError(f"drop_rate={drop_rate} must lie in [0, 1); the paper uses 0.2.")
    depth, *form = variant.removeprefix("densenet").split("_")
    depth, imagenet, bottleneck = int(depth), not form, not form or "bc" in form
    smallest = 4 if not imagenet else 29 if stem_stride == 2 else 15
    require_size(input_shape, smallest, variant)
    if compression is None:
        compression = 0.5 if bottleneck else 1.0
    bn = {"epsilon": 1e-5, "momentum": bn_momentum}

    image, x = image_input(input_shape, normalization)
    maps = {}
    if imagenet:
        growth = 48 if depth == 161 else 32
        x = conv_bn(x, 2 * growth, 7, stem_stride, name="conv1", **bn)
        x = maps[stem_stride] = layers.ReLU(name="conv1_relu")(x)  # 112 x 112 x 64
        x = padded_max_pooling(x, name="pool1")
        stages = [(row[0], row[2 + DEPTHS.index(depth)]) for row in IMAGENET]
        stride = 2 * stem_stride
    else:
        growth = int(form[0].removeprefix("k"))
        filters = 16 if compression == 1 and not bottleneck else 2 * growth
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name="conv1_conv",
        )(x)  # 32 x 32 x 16
        stages = [(name, (depth - 4) // (6 if bottleneck else 3)) for name, _ in CIFAR]
        stride = 1

    options = {"drop_rate": drop_rate, **bn}
    for name, repeats in stages:
        if name != "conv2":
            kept = int(compression * x.shape[-1])
            x = transition(x, kept, name=f"pool{int(name[-1]) - 1}", **options)
            stride *= 2
        x = dense_block(x, repeats, growth, name=name, bottleneck=bottleneck, **options)
        maps[stride] = x
    x = BatchNormalization(name="bn", **bn)(x)
    x = maps[stride] = layers.ReLU(name="relu")(x)  # 7 x 7 x 1024 in densenet121

    return classifier(variant, image, x, classes, maps, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train a densely connected network (Huang et al. 2016, arXiv 1608.06993).

    The paper's CIFAR-10 training is --epochs 300 --batch-size 64 --schedule step --milestones 0.5
    0.75 --augment random_crop horizontal_flip, or --drop-rate 0.2 without --augment.

    examples:
      tiffin train densenet100_k12_bc --data cifar10
      tiffin train densenet121 --data photos/ --export
    """

    model: str = "densenet40_k12_bc"
    compression: float | None = None
    """Share of the feature maps that a transition keeps; default: the paper's, 0.5 for BC."""
    drop_rate: float = 0.0
    """Of dropout after every convolution but the first; the paper's 0.2 goes without --augment."""
    stem_stride: int | None = None
    """Stride of the ImageNet form's first convolution; default: 2, but 1 below 64 pixels."""
    builder: ClassVar = staticmethod(densenet)
    small: ClassVar = {"stem_stride": 1}


if __name__ == "__main__":
    main(Config)
