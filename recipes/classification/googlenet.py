"""GoogLeNet: Inception, the first version.

Which kernel size suits a feature is unknown, so a module applies 1x1, 3x3 and 5x5 at once, with a
pooling beside them, and puts the answers side by side. 1x1 convolutions thin the channels before
the dear kernels, so that 22 layers cost less than AlexNet's eight have parameters. Two classifiers
halfway up feed gradient to the lower layers in training and are thrown away afterwards.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: Going Deeper with
Convolutions (2014), arXiv 1409.4842.

Reproduces table 1 (1.5 billion multiply-adds at 224x224). The paper gives top-5 errors only:
10.07 % for one network and one crop, 6.67 % for seven networks and 144 crops (table 3). Ours: see
docs/results.md. Two versions:
    googlenet      the paper's: biases, local response normalisation, no batch normalisation; what
                   the paper leaves open (paddings, start values, LRN's constants) as in Caffe's
    googlenet_bn   torchvision's: batch normalisation, none of the local response; its 5x5 kernels
                   are 3x3 (a known slip that its weights have kept), pool4 is 2x2

Run it:
    python recipes/classification/googlenet.py --alpha 0.5 --export
"""

import dataclasses
from typing import ClassVar, Literal, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    LocalResponseNormalization,
    Top,
    classifier,
    conv_relu,
    image_input,
    inception_module,
    overlapping_max_pooling,
    require_size,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "googlenet": (2014, 224, 6_998_552, 1_582_671_872, None, "ImageNet"),
    "googlenet_bn": (2014, 224, 6_624_904, 1_498_376_192, None, "ImageNet"),
}

# Table 1: the inception modules; a max pooling comes before 3a, 4a and 5a.
MODULES = (
    # name, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
    ("3a", 64, 96, 128, 16, 32, 32),  #     28 x 28 x 256
    ("3b", 128, 128, 192, 32, 96, 64),  #   28 x 28 x 480
    ("4a", 192, 96, 208, 16, 48, 64),  #    14 x 14 x 512, auxiliary head 1
    ("4b", 160, 112, 224, 24, 64, 64),  #   14 x 14 x 512
    ("4c", 128, 128, 256, 24, 64, 64),  #   14 x 14 x 512
    ("4d", 112, 144, 288, 32, 64, 64),  #   14 x 14 x 528, auxiliary head 2
    ("4e", 256, 160, 320, 32, 128, 128),  # 14 x 14 x 832
    ("5a", 256, 160, 320, 32, 128, 128),  # 7 x 7 x 832
    ("5b", 384, 192, 384, 48, 128, 128),  # 7 x 7 x 1024
)

WEIGHTS = {
    "torchvision": Collection(
        names=(
            (r"conv1\.(\w+)", "conv1_{1}"),
            (r"conv2\.(\w+)", "conv2_reduce_{1}"),
            (r"conv3\.(\w+)", "conv2_{1}"),
            (r"inception(\w+)\.branch1\.(\w+)", "inception_{1}_1x1_{2}"),
            (r"inception(\w+)\.branch2\.0\.(\w+)", "inception_{1}_3x3_reduce_{2}"),
            (r"inception(\w+)\.branch2\.1\.(\w+)", "inception_{1}_3x3_{2}"),
            (r"inception(\w+)\.branch3\.0\.(\w+)", "inception_{1}_5x5_reduce_{2}"),
            (r"inception(\w+)\.branch3\.1\.(\w+)", "inception_{1}_5x5_{2}"),
            (r"inception(\w+)\.branch4\.1\.(\w+)", "inception_{1}_pool_proj_{2}"),
            (r"fc", "logits"),
            (r"aux(\d)\.conv\.(\w+)", "auxiliary_{1}_{2}"),
            (r"aux(\d)\.fc1", "auxiliary_{1}_fc"),
            (r"aux(\d)\.fc2", "auxiliary_{1}_logits"),
        ),
        epsilon=1e-3,
        # torchvision's transform_input turns its usual normalisation into this one.
        normalization=((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        files={"googlenet_bn": "googlenet-1378be20.pth"},
    ),
}


def googlenet(
    variant: str = "googlenet",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    third: str | None = None,
    auxiliary: bool = False,
    dropout: float = 0.4,
    normalization: tuple | None = None,
    stem_stride: int = 2,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build GoogLeNet; layers are named after Caffe's, such as `inception_3a_5x5_reduce_conv`.

    Args:
        variant: "googlenet", the paper's, or "googlenet_bn", torchvision's.
        input_shape: `(height, width, channels)` in pixels, 224 in the paper; 31 at least, 15 for
            "googlenet_bn", half as much with `stem_stride` 1.
        classes: width of the last layer.
        alpha: width multiplier, 1 in the paper; no layer falls below 16 channels, the rule of the
            authors' code.
        third: kernel of the modules' third branch, "5x5" or "3x3". None: the variant's own, 5x5
            for the paper's and 3x3 for torchvision's.
        auxiliary: add the two heads of training, on 4a and 4d. They see a grid of 4x4: the paper
            averages 5x5 pixels of a 14x14 map at stride 3, on which torchvision, and both
            variants on maps of another size, average adaptively.
        dropout: rate before the last layer, in [0, 1); 0.7 in the auxiliary heads.
        normalization: see `tiffin.layers.image_input`.
        stem_stride: stride of the first convolution, 2 in the paper. 1 is a departure for small
            pictures: at 32x32 the modules work on 8x8, 4x4 and 2x2 instead of 4x4 to 1x1.
        bn_momentum: of batch normalisation, where the variant has it.
        **top: see `tiffin.layers.classifier`, as for what is returned. With `auxiliary` the other
            outputs are `auxiliary_1` and `auxiliary_2`, float32 `[batch, classes]`.

    Raises:
        ValueError: an unknown variant, a value outside its range, or a picture too small.
    """
    one_of("variant", variant, VARIANTS)
    one_of("third", third, (None, "5x5", "3x3"))
    one_of("stem_stride", stem_stride, (2, 1))
    if not alpha > 0:
        raise InputError(f"alpha={alpha} must be positive; the paper's width is 1.")
    paper = variant == "googlenet"
    require_size(
        input_shape,
        (15 if paper else 7) * stem_stride + 1,
        f"{variant} with stem_stride={stem_stride}",
    )
    third = third or ("5x5" if paper else "3x3")
    if paper:
        # Caffe's "xavier" counts a kernel's inputs alone, which Keras calls LeCun's rule.
        conv = {"normalize": False, "use_bias": True, "bias": 0.2, "initializer": "lecun_uniform"}
    else:
        conv = {"epsilon": 1e-3, "momentum": bn_momentum}
    conv["alpha"] = alpha

    def normalized(x, name):
        # Caffe divides its alpha of 1e-4 by the five neighbours.
        return LocalResponseNormalization(5, 1.0, 2e-5, 0.75, name=name)(x) if paper else x

    image, x = image_input(input_shape, normalization)
    stride, maps, heads = stem_stride, {}, {}
    x = maps[stride] = conv_relu(x, 64, 7, stride, name="conv1", **conv)  # 112 x 112 x 64
    x = overlapping_max_pooling(x, name="pool1")
    x = normalized(x, "norm1")  # 56 x 56 x 64
    stride *= 2
    x = conv_relu(x, 64, 1, name="conv2_reduce", **conv)
    x = conv_relu(x, 192, 3, name="conv2", **conv)
    x = maps[stride] = normalized(x, "norm2")  # 56 x 56 x 192
    for name, *filters in MODULES:
        if name in ("3a", "4a", "5a"):
            stride *= 2
            if name == "5a" and not paper:
                x = layers.MaxPooling2D(2, 2, "same", name="pool4")(x)
            else:
                x = overlapping_max_pooling(x, name=f"pool{int(name[0]) - 1}")
        x = inception_module(x, filters, name=f"inception_{name}", third=third, **conv)
        maps[stride] = x
        if auxiliary and name in ("4a", "4d") and top.get("include_top", True):
            head = f"auxiliary_{len(heads) + 1}"
            heads[head] = auxiliary_head(x, 128, classes, paper, name=head, **conv)

    return classifier(variant, image, x, classes, maps, auxiliary=heads, dropout=dropout, **top)


def auxiliary_head(
    x: keras.KerasTensor, filters: int, classes: int, paper: bool, *, name: str, **conv
) -> keras.KerasTensor:
    """Classify halfway up: pool to 4x4, 1x1 convolution, 1024 units, dropout (section 5).

    Args:
        x: float `[batch, height, width, channels]`.
        filters: of the convolution, 128 in the paper.
        classes: width of the last layer.
        paper: average 5x5 at stride 3, on a map of 14x14; else adaptively.
        name: prefix of all layers.
        **conv: see `tiffin.layers.conv_relu`.

    Returns:
        Logits, float32 `[batch, classes]`.
    """
    if paper and x.shape[1:3] == (14, 14):
        x = layers.AveragePooling2D(5, 3, name=f"{name}_pool")(x)
    else:
        x = layers.AdaptiveAveragePooling2D(4, name=f"{name}_pool")(x)
    x = conv_relu(x, filters, 1, name=name, **conv)
    x = layers.Flatten(name=f"{name}_flatten")(x)
    x = layers.Dense(1024, "relu", name=f"{name}_fc")(x)
    x = layers.Dropout(0.7, name=f"{name}_dropout")(x)
    return layers.Dense(classes, dtype="float32", name=f"{name}_logits")(x)


@dataclasses.dataclass
class Config(Classification):
    """Train GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842).

    The default is googlenet_bn; the paper's net, googlenet, learns next to nothing in its first
    hundred steps, then as fast.

    examples:
      tiffin train googlenet_bn --data mnist --alpha 0.5
      tiffin train googlenet --data photos/ --export
    """

    model: str = "googlenet_bn"
    alpha: float = 1.0
    """Width multiplier; 1 is the paper's."""
    third: Literal["5x5", "3x3"] | None = None
    """Kernel of the modules' third branch; default: the paper's 5x5, but 3x3 for googlenet_bn."""
    auxiliary: bool = True
    """Train with the two auxiliary heads; they are left out of what is kept."""
    stem_stride: int | None = None
    """Stride of the first convolution; default: the paper's 2, but 1 below 64 pixels."""
    learning_rate: float = 0.01
    weight_decay: float = 2e-4
    small: ClassVar = {"stem_stride": 1}
    builder: ClassVar = staticmethod(googlenet)


if __name__ == "__main__":
    main(Config)
