"""MobileNet: depthwise separable convolutions.

A full convolution filters and mixes channels at once. Split in two, a 3x3 kernel for each channel
by itself and then a 1x1 convolution across channels, the same job costs an eighth. Two numbers
shrink the network further to what a phone can bear: a width multiplier on all channels, and the
resolution of the input.

Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam: MobileNets (2017),
arXiv 1704.04861.

Reproduces tables 6 and 7 (ImageNet; top-1 accuracy, multiply-adds, parameters):
    1.0 MobileNet-224    70.6 %   569 M   4.2 M     ours: see docs/results.md
    0.75 MobileNet-224   68.4 %   325 M   2.6 M
    0.5 MobileNet-224    63.7 %   149 M   1.3 M
    0.25 MobileNet-224   50.6 %    41 M   0.5 M

Run it:
    python recipes/classification/mobilenet.py --alpha 0.25 --epochs 20 --export
"""

import dataclasses
from typing import ClassVar, Literal, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import BatchNormalization, Top, classifier, image_input, separable_block
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.names import KERAS_URL
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "mobilenet_v1": (2017, 224, 4_231_976, 568_740_352, 29.4, "ImageNet"),
}

# Table 1: each pair of a depthwise and a 1x1 convolution.
SEPARABLE = (
    # stride, filters   input at 224x224
    (1, 64),  #    112 x 112 x 32
    (2, 128),  #   112 x 112 x 64
    (1, 128),  #   56 x 56 x 128
    (2, 256),  #   56 x 56 x 128
    (1, 256),  #   28 x 28 x 256
    (2, 512),  #   28 x 28 x 256
    (1, 512),  #   14 x 14 x 512
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (2, 1024),  #  14 x 14 x 512
    (1, 1024),  #  7 x 7 x 1024
)

# pytorchcv counts stages and units; before its stages stand so many pairs.
_PAIRS_BEFORE = {1: 0, 2: 1, 3: 3, 4: 5, 5: 11}

# keras.applications publishes its files without checksums, so that they are not fetched from here
# but loaded from a path: mobilenet_1_0_224_tf.h5 and the like at `url`.
WEIGHTS = {
    "keras.applications": Collection(
        names=((r"conv_preds", "logits"),),
        epsilon=1e-3,
        normalization=((127.5,) * 3, (127.5,) * 3),
        licence="Apache-2.0",
        url=f"{KERAS_URL}mobilenet/",
    ),
    "pytorchcv": Collection(
        names=(
            (r"features\.init_block\.conv", "conv1"),
            (r"features\.init_block\.bn", "conv1_bn"),
            *(
                (
                    rf"features\.stage{stage}\.unit(\d)\.(dw|pw)_conv\.{kind}",
                    f"conv_{{2}}_{{1+{before}}}{ending}",
                )
                for stage, before in _PAIRS_BEFORE.items()
                for kind, ending in (("conv", ""), ("bn", "_bn"))
            ),
            (r"output", "logits"),
        ),
        options={"padding": "symmetric", "activation": "relu"},
    ),
}


def mobilenet(
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    alpha: float = 1.0,
    activation: str = "relu6",
    padding: str = "same",
    dropout: float = 1e-3,
    normalization: tuple | None = None,
    stem_stride: int = 2,
    bn_momentum: float = 0.9,
    **top: Unpack[Top],
) -> keras.Model:
    """Build MobileNet; layer names are those of keras.applications.

    Args:
        input_shape: `(height, width, channels)` in pixels, any size; the last feature map has a
            32nd of it, rounded up. The paper's resolutions are 224, 192, 160 and 128.
        classes: width of the last layer.
        alpha: width multiplier; the paper's are 1, 0.75, 0.5 and 0.25. At least 8 channels stay.
        activation: "relu6", as in the authors' code and keras.applications, whose bounded outputs
            8-bit arithmetic keeps well; or "relu", as the paper says and pytorchcv has it.
        padding: at a stride of 2, "same" (the authors, keras.applications) or "symmetric" (torch).
            keras.applications pads odd feature maps otherwise and ends one pixel smaller; at the
            paper's resolutions there are none.
        dropout: rate before the last layer, in [0, 1).
        normalization: see `tiffin.layers.image_input`.
        stem_stride: stride of the first convolution, 2 in the paper. 1 is a departure for small
            pictures: at 32x32 the last feature map is then 2x2 instead of a single pixel.
        bn_momentum: of batch normalisation; 0.9 suits short runs.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: a value outside its range.
    """
    if not alpha > 0:
        raise InputError(f"alpha={alpha} must be positive; the paper uses 0.25 to 1.")
    one_of("activation", activation, ("relu6", "relu"))
    one_of("padding", padding, ("same", "symmetric"))
    one_of("stem_stride", stem_stride, (2, 1))
    bn = {"epsilon": 1e-3, "momentum": bn_momentum}
    max_value = 6 if activation == "relu6" else None

    def width(filters):
        return max(8, int(filters * alpha))

    image, x = image_input(input_shape, normalization)
    if padding == "symmetric" and stem_stride == 2:
        x = layers.ZeroPadding2D(1, name="conv1_pad")(x)
    x = layers.Conv2D(
        width(32),
        3,
        stem_stride,
        "valid" if padding == "symmetric" and stem_stride == 2 else "same",
        use_bias=False,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.09),
        name="conv1",
    )(x)
    x = BatchNormalization(name="conv1_bn", **bn)(x)
    x = layers.ReLU(max_value, name="conv1_relu")(x)  # 112 x 112 x 32

    stride, maps = stem_stride, {}
    for number, (s, filters) in enumerate(SEPARABLE, 1):
        stride *= s
        x = maps[stride] = separable_block(
            x, width(filters), s, name=f"{number}", padding=padding, max_value=max_value, **bn
        )

    return classifier("mobilenet_v1", image, x, classes, maps, dropout=dropout, **top)


@dataclasses.dataclass
class Config(Classification):
    """Train MobileNet (Howard et al. 2017, arXiv 1704.04861).

    examples:
      tiffin train mobilenet --alpha 0.25 --export
      tiffin train mobilenet --data photos/ --image-size 160 --alpha 0.5
    """

    model: str = "mobilenet_v1"
    alpha: float = 1.0
    """Width multiplier; the paper's are 0.25, 0.5, 0.75 and 1."""
    activation: Literal["relu6", "relu"] = "relu6"
    """ReLU6 as in the authors' code, which suits int8; or ReLU as in the paper."""
    padding: Literal["same", "symmetric"] = "same"
    """Where strided convolutions see zeros: as in TensorFlow, or as in torch."""
    stem_stride: int | None = None
    """Stride of the first convolution; default: the paper's 2, but 1 below 64 pixels."""
    weight_decay: float = 4e-5
    builder: ClassVar = staticmethod(mobilenet)
    small: ClassVar = {"stem_stride": 1}


if __name__ == "__main__":
    main(Config)
