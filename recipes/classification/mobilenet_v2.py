"""MobileNetV2: inverted residuals and linear bottlenecks.

A block widens a thin tensor, filters it channel by channel, and projects it back to thin: the
shortcut joins the thin ends, where memory is cheapest. The projection has no nonlinearity, since a
ReLU on few channels destroys what they carry. ReLU6 bounds what remains, so that low-precision
arithmetic suffices.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2 (2018), arXiv 1801.04381.

Reproduces table 4 (ImageNet, 224x224; top-1 accuracy, parameters, multiply-adds):
    MobileNetV2         72.0 %   3.4 M   300 M      ours: see docs/results.md
    MobileNetV2 (1.4)   74.7 %   6.9 M   585 M

Run it:
    python recipes/classification/mobilenet_v2.py --alpha 0.35 --epochs 40 --export
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
    inverted_residual,
    make_divisible,
)
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import KERAS_URL
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "mobilenet_v2": (2018, 224, 3_504_872, 300_774_272, 28.0, "ImageNet"),
}

# Table 2 of the paper: expansion, output channels, repeats, and stride of the first repeat.
BOTTLENECKS = (
    # t,  c, n, s      input at 224x224
    (1, 16, 1, 1),  #  112 x 112 x 32
    (6, 24, 2, 2),  #  112 x 112 x 16
    (6, 32, 3, 2),  #  56 x 56 x 24
    (6, 64, 4, 2),  #  28 x 28 x 32
    (6, 96, 3, 1),  #  14 x 14 x 64
    (6, 160, 3, 2),  # 14 x 14 x 96
    (6, 320, 1, 1),  # 7 x 7 x 160
)

# pytorchcv counts stages and units; before its stages stand so many blocks.
_BLOCKS_BEFORE = {2: 0, 3: 2, 4: 5, 5: 12}
_TORCHVISION = (
    (r"features\.0\.0", "Conv1"),
    (r"features\.0\.1", "bn_Conv1"),
    (r"features\.1\.conv\.0\.0", "expanded_conv_depthwise"),
    (r"features\.1\.conv\.0\.1", "expanded_conv_depthwise_BN"),
    (r"features\.1\.conv\.1", "expanded_conv_project"),
    (r"features\.1\.conv\.2", "expanded_conv_project_BN"),
    (r"features\.18\.0", "Conv_1"),
    (r"features\.18\.1", "Conv_1_bn"),
    (r"features\.(\d+)\.conv\.0\.0", "block_{1-1}_expand"),
    (r"features\.(\d+)\.conv\.0\.1", "block_{1-1}_expand_BN"),
    (r"features\.(\d+)\.conv\.1\.0", "block_{1-1}_depthwise"),
    (r"features\.(\d+)\.conv\.1\.1", "block_{1-1}_depthwise_BN"),
    (r"features\.(\d+)\.conv\.2", "block_{1-1}_project"),
    (r"features\.(\d+)\.conv\.3", "block_{1-1}_project_BN"),
    (r"classifier\.1", "logits"),
)
_PYTORCHCV = (
    (r"features\.init_block\.conv", "Conv1"),
    (r"features\.init_block\.bn", "bn_Conv1"),
    (r"features\.stage1\.unit1\.conv2\.conv", "expanded_conv_depthwise"),
    (r"features\.stage1\.unit1\.conv2\.bn", "expanded_conv_depthwise_BN"),
    (r"features\.stage1\.unit1\.conv3\.conv", "expanded_conv_project"),
    (r"features\.stage1\.unit1\.conv3\.bn", "expanded_conv_project_BN"),
    *(
        (
            rf"features\.stage{stage}\.unit(\d)\.conv{number}\.{kind}",
            f"block_{{1+{before}}}_{layer}{ending}",
        )
        for stage, before in _BLOCKS_BEFORE.items()
        for number, layer in ((1, "expand"), (2, "depthwise"), (3, "project"))
        for kind, ending in (("conv", ""), ("bn", "_BN"))
    ),
    (r"features\.final_block\.conv", "Conv_1"),
    (r"features\.final_block\.bn", "Conv_1_bn"),
    (r"output", "logits"),
)
_FIRST_EXPANSION = (
    (r"features\.stage1\.unit1\.conv1\.conv", "expanded_conv_expand"),
    (r"features\.stage1\.unit1\.conv1\.bn", "expanded_conv_expand_BN"),
)
# keras.applications publishes its files without checksums, so that they are not fetched from here
# but loaded from a path: mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5
# and the like at `url`.
WEIGHTS = {
    "keras.applications": Collection(
        names=((r"predictions", "logits"),),
        epsilon=1e-3,
        normalization=((127.5,) * 3, (127.5,) * 3),
        licence="Apache-2.0",
        url=f"{KERAS_URL}mobilenet_v2/",
    ),
    "torchvision": Collection(
        names=_TORCHVISION,
        options={"padding": "symmetric"},
        files={"mobilenet_v2": "mobilenet_v2-b0353104.pth"},
    ),
    "pytorchcv (mobilenetv2b)": Collection(
        names=_PYTORCHCV, options={"padding": "symmetric", "divisor": 1}
    ),
    "pytorchcv": Collection(
        names=(*_FIRST_EXPANSION, *_PYTORCHCV),
        options={"padding": "symmetric", "divisor": 1, "expand_first": True},
    ),
}


def mobilenet_v2(
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    divisor: int = 8,
    padding: str = "same",
    expand_first: bool = False,
    dropout: float = 0.2,
    normalization: tuple | None = None,
    stem_stride: int = 2,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build MobileNetV2; layer names are those of keras.applications.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size; the last feature map has a
            32nd of it, rounded up.
        classes: width of the last layer.
        alpha: width multiplier, 0.35 to 1.4 in the paper; the last convolution keeps 1280 channels
            for alpha below 1.
        divisor: channels are rounded to multiples of it, 8 as in the authors' code; 1 in pytorchcv.
        padding: at a stride of 2, "same" (the authors, keras.applications) or "symmetric" (torch).
        expand_first: whether the first block has its 1x1 convolution of expansion 1: not in the
            paper's counts, the authors' code and pytorchcv's mobilenetv2b, but in its mobilenetv2.
        dropout: rate before the last layer, in [0, 1).
        normalization: see `tiffin.layers.image_input`.
        stem_stride: stride of the first convolution, 2 in the paper. 1 is a departure for small
            pictures: at 32x32 the last feature map is then 2x2 instead of a single pixel.
        bn_momentum: of batch normalisation. The authors' 0.997 needs long training: moving
            statistics are still those of the start after some hundred steps, and validation
            sees noise; 0.9 suits short and long runs alike.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: a value outside its range.
    """
    if not alpha > 0:
        raise InputError(f"alpha={alpha} must be positive; the paper uses 0.35 to 1.4.")
    if divisor < 1:
        raise InputError(f"divisor={divisor} must be 1 or more; the authors' code has 8.")
    one_of("padding", padding, ("same", "symmetric"))
    one_of("stem_stride", stem_stride, (2, 1))
    bn = {"epsilon": 1e-3, "momentum": bn_momentum}
    stem_padding = "same"
    kernel = keras.initializers.TruncatedNormal

    image, x = image_input(input_shape, normalization)
    if padding == "symmetric" and stem_stride == 2:
        x, stem_padding = layers.ZeroPadding2D(1, name="Conv1_pad")(x), "valid"
    x = layers.Conv2D(
        make_divisible(32 * alpha, divisor),
        3,
        stem_stride,
        stem_padding,
        use_bias=False,
        kernel_initializer=kernel(stddev=0.09),
        name="Conv1",
    )(x)
    x = BatchNormalization(name="bn_Conv1", **bn)(x)
    x = layers.ReLU(6, name="Conv1_relu")(x)  # 112 x 112 x 32

    block, stride, maps = 0, stem_stride, {}
    for t, c, n, s in BOTTLENECKS:
        stride *= s
        for repeat in range(n):
            x = maps[stride] = inverted_residual(
                x,
                make_divisible(c * alpha, divisor),
                s if repeat == 0 else 1,
                expansion=t,
                expand=True if expand_first else None,
                padding=padding,
                name=f"block_{block}" if block else "expanded_conv",
                **bn,
            )
            block += 1

    x = layers.Conv2D(
        make_divisible(1280 * max(alpha, 1.0), divisor),
        1,
        use_bias=False,
        kernel_initializer=kernel(stddev=0.09),
        name="Conv_1",
    )(x)
    x = BatchNormalization(name="Conv_1_bn", **bn)(x)
    x = maps[stride] = layers.ReLU(6, name="out_relu")(x)  # 7 x 7 x 1280

    return classifier("mobilenet_v2", image, x, classes, maps, dropout=dropout, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381).

    examples:
      tiffin train mobilenet_v2 --export
      tiffin train mobilenet_v2 --data photos/ --alpha 0.5 --augment horizontal_flip color_jitter
    """

    model: str = "mobilenet_v2"
    alpha: float = 1.0
    """Width multiplier; the paper's are 0.35, 0.5, 0.75, 1.0, 1.3 and 1.4."""
    padding: Literal["same", "symmetric"] = "same"
    """Where strided convolutions see zeros: as in TensorFlow, or as in torch."""
    stem_stride: int | None = None
    """Stride of the first convolution; default: the paper's 2, but 1 below 64 pixels."""
    weight_decay: float = 4e-5
    builder: ClassVar = staticmethod(mobilenet_v2)
    small: ClassVar = {"stem_stride": 1}


if __name__ == "__main__":
    main(Config)
