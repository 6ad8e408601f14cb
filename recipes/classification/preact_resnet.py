"""Pre-activation ResNet: identity mappings in deep residual networks.

Batch normalisation and ReLU move in front of each convolution, so that nothing at all stands on
the path of the shortcuts: the input of any unit is that of an earlier one plus what came between.
Signal and gradient then pass from any layer to any other undimmed, and 1001 layers train.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks (2016), arXiv 1603.05027.

Reproduces tables 3 and 4 (CIFAR-10) and 5 (ImageNet, one 320x320 crop); the paper's top-1 errors
stand in VARIANTS, with None where it does not name the depth. Ours: see docs/results.md.

Run it:
    python recipes/classification/preact_resnet.py --model preact_resnet18 --data digits
"""

import dataclasses
from typing import ClassVar, Literal, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    BatchNormalization,
    Top,
    classifier,
    image_input,
    padded_conv,
    padded_max_pooling,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import KERAS_URL, PYTORCHCV_UNIT, keras_files
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "preact_resnet18": (2016, 224, 11_687_848, 1_814_073_344, None, "ImageNet"),
    "preact_resnet34": (2016, 224, 21_796_008, 3_663_761_408, None, "ImageNet"),
    "preact_resnet50": (2016, 224, 25_549_480, 3_857_973_248, None, "ImageNet"),
    "preact_resnet101": (2016, 224, 44_541_608, 7_570_194_432, None, "ImageNet"),
    "preact_resnet152": (2016, 224, 60_185_256, 11_282_415_616, 21.1, "ImageNet"),
    "preact_resnet200": (2016, 224, 64_666_280, 14_776_270_848, 20.7, "ImageNet"),
    "preact_resnet110": (2016, 32, 1_730_522, 253_149_824, 6.37, "CIFAR-10"),
    "preact_resnet164": (2016, 32, 1_703_258, 244_500_992, 5.46, "CIFAR-10"),
    "preact_resnet1001": (2016, 32, 10_327_706, 1_487_849_984, 4.92, "CIFAR-10"),
}

# Units a stage, as in table 1 of the first ResNet paper; 200 layers from this paper's section 5.
IMAGENET = (
    # stage, output, channels, 18, 34, 50, 101, 152, 200 layers
    ("conv2", 56, 64, 2, 3, 3, 3, 3, 3),
    ("conv3", 28, 128, 2, 4, 4, 4, 8, 24),
    ("conv4", 14, 256, 2, 6, 6, 23, 36, 36),
    ("conv5", 7, 512, 2, 3, 3, 3, 3, 3),
)
DEPTHS = (18, 34, 50, 101, 152, 200)

# Each has a third of the units: basic ones of two convolutions for 110 layers, bottlenecks of three
# for 164 and 1001.
CIFAR = (
    # stage, output, channels
    ("conv2", 32, 16),
    ("conv3", 16, 32),
    ("conv4", 8, 64),
)

WEIGHTS = {
    "keras.applications": Collection(
        names=((r"predictions", "logits"),),
        options={"form": "keras"},
        epsilon=1.001e-5,
        normalization=((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        url=f"{KERAS_URL}resnet/",
        files=keras_files(
            {
                "preact_resnet50": ("resnet50v2", "3ef43a0b657b3be2300d5770ece849e0"),
                "preact_resnet101": ("resnet101v2", "6343647c601c52e1368623803854d971"),
                "preact_resnet152": ("resnet152v2", "a49b44d1979771252814e80f8ec446f9"),
            }
        ),
    ),
    "pytorchcv": Collection(
        names=(
            (r"features\.init_block(\.conv)?", "conv1_conv"),
            (r"features\.init_block\.bn", "conv1_bn"),
            (PYTORCHCV_UNIT + r"body\.conv1\.bn", "conv{1+1}_block{2}_preact_bn"),
            (PYTORCHCV_UNIT + r"body\.conv(\d)\.bn", "conv{1+1}_block{2}_{3-1}_bn"),
            (PYTORCHCV_UNIT + r"body\.conv(\d)\.conv", "conv{1+1}_block{2}_{3}_conv"),
            (PYTORCHCV_UNIT + r"identity_conv", "conv{1+1}_block{2}_0_conv"),
            (r"features\.post_activ\.bn", "post_bn"),
            (r"output", "logits"),
        ),
        options={"form": "pytorchcv"},
    ),
}


def preact_resnet(
    variant: str = "preact_resnet50",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    form: str | None = None,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build a pre-activation residual network; layer names are those of keras.applications.

    Args:
        variant: one of `VARIANTS`. 18 to 200 layers (without 110, 164) are the ImageNet form, with
            a stride of 32 in all; 110, 164 and 1001 the CIFAR form, with a stride of 4.
        input_shape: `(height, width, channels)` in pixels, any size; 224 or 32 in the paper.
        classes: width of the last layer.
        form: which of the published versions.
            "paper": the first unit takes the stem's activation as it is (appendix); the first
            convolution of a stage has the stride, as in the authors' code for CIFAR.
            "pytorchcv": the ImageNet form normalises twice, after the first convolution and in
            the first unit (128 parameters more); CIFAR bottlenecks stride in their 3x3.
            "keras": keras.applications' ResNet50V2, ResNet101V2 and ResNet152V2, after TF-Slim. The
            stem is not normalised; stem, projections and last convolutions have biases; the last
            unit of a stage has the stride, in its 3x3.
            None: "paper" for the CIFAR form, else "pytorchcv", since the authors have published no
            code of the ImageNet form. VARIANTS counts these.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **top: see `tiffin.layers.classifier`, as for what is returned. The maps of `features` are
            activations: the last one of each stride, where the stage of the next begins.

    Raises:
        InputError: an unknown variant or option, or `form="keras"` for what Keras does not have.
    """
    one_of("variant", variant, VARIANTS)
    one_of("form", form, (None, "paper", "pytorchcv", "keras"))
    depth = int(variant.removeprefix("preact_resnet"))
    imagenet = depth in DEPTHS
    basic = depth in (18, 34, 110)
    if form == "keras" and (basic or not imagenet):
        raise InputError(f"{variant} has no form='keras': 50, 101, 152 and 200 layers have.")
    form = form or ("pytorchcv" if imagenet else "paper")
    bn = {"epsilon": 1e-5, "momentum": bn_momentum}

    image, x = image_input(input_shape, normalization)
    maps = {}
    if not imagenet:
        x = padded_conv(x, 16, 3, name="conv1")  # 32 x 32 x 16
        stride, units = 1, (depth - 2) // (6 if basic else 9)
        stages = [(name, channels, units) for name, _, channels in CIFAR]
    else:
        x = padded_conv(x, 64, 7, 2, name="conv1", use_bias=form == "keras")
        if form != "keras":
            x = BatchNormalization(name="conv1_bn", **bn)(x)
            x = layers.ReLU(name="conv1_relu")(x)
        maps[2] = x  # 112 x 112 x 64
        x = padded_max_pooling(x, name="pool1")
        column = 3 + DEPTHS.index(depth)
        stride, stages = 4, [(row[0], row[2], row[column]) for row in IMAGENET]

    for name, channels, units in stages:
        last = name == stages[-1][0]
        for unit in range(1, units + 1):
            if form == "keras":
                step = 2 if unit == units and not last else 1
            else:
                step = 2 if unit == 1 and name != "conv2" else 1
            x, activation = _unit(
                x,
                channels,
                step,
                name=f"{name}_block{unit}",
                basic=basic,
                preact=not (form == "paper" and imagenet and unit == 1 and name == "conv2"),
                stride_in="1x1" if form == "paper" or (imagenet and form != "keras") else "3x3",
                bias=form == "keras",
                **bn,
            )
            maps[stride] = activation
            stride *= step

    x = BatchNormalization(name="post_bn", **bn)(x)
    x = maps[stride] = layers.ReLU(name="post_relu")(x)  # 7 x 7 x 512, 2048 with bottlenecks
    return classifier(variant, image, x, classes, maps, **top)


def _unit(x, filters, stride, *, name, basic, preact, stride_in, bias, epsilon, momentum):
    """Apply the residual unit of figure 4e; return its output and the activation it begins with."""
    bn = {"epsilon": epsilon, "momentum": momentum}
    a = skip = x
    if preact:
        a = BatchNormalization(name=f"{name}_preact_bn", **bn)(x)
        a = layers.ReLU(name=f"{name}_preact_relu")(a)
    start = a
    channels = filters if basic else 4 * filters
    if x.shape[-1] != channels:
        # Appendix: where channels grow, the shortcut also takes the activation.
        skip = padded_conv(a, channels, 1, stride, name=f"{name}_0", use_bias=bias)
    elif stride > 1:
        skip = layers.MaxPooling2D(1, stride, name=f"{name}_0_pool")(x)

    first, second = (stride, 1) if basic or stride_in == "1x1" else (1, stride)
    kernels = ((3, first), (3, 1)) if basic else ((1, first), (3, second), (1, 1))
    for i, (kernel_size, step) in enumerate(kernels, 1):
        last = i == len(kernels)
        width = channels if last else filters
        a = padded_conv(a, width, kernel_size, step, name=f"{name}_{i}", use_bias=bias and last)
        if not last:
            a = BatchNormalization(name=f"{name}_{i}_bn", **bn)(a)
            a = layers.ReLU(name=f"{name}_{i}_relu")(a)
    return layers.Add(name=f"{name}_out")([skip, a]), start


@dataclasses.dataclass
class Config(Classification):
    """Train a pre-activation residual network (He et al. 2016, arXiv 1603.05027).

    The paper's CIFAR-10 training is --epochs 164 --batch-size 128 --schedule step --milestones 0.5
    0.75 --augment random_crop horizontal_flip; the default is a short one along a cosine.

    examples:
      tiffin train preact_resnet164 --data cifar10
      tiffin train preact_resnet50 --data photos/ --export
    """

    model: str = "preact_resnet18"
    form: Literal["paper", "pytorchcv", "keras"] | None = None
    """Which published version; default: pytorchcv's of the ImageNet form, the authors' of CIFAR."""
    builder: ClassVar = staticmethod(preact_resnet)


if __name__ == "__main__":
    main(Config)
