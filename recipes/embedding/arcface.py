"""ArcFace: a margin added to the angle.

Where A-softmax multiplies the angle and AM-softmax subtracts from its cosine, ArcFace turns the
embedding away from its class by m radians before it is compared: the margin is the same arc on the
sphere for every pair of classes. Its network is the improved residual one, without a stride in the
stem and with batch normalisation before and behind each convolution.

Deng, Guo, Xue, Zafeiriou: ArcFace, CVPR 2019, arXiv 1801.07698.

Reproduces the networks (section 3.1; depths as in the authors' code) and the loss. The paper has
99.83 % on LFW for 100 layers, trained on 5.8 million pictures. Ours: see docs/results.md.

Run it:
    python recipes/embedding/arcface.py --model arcface_r18 --data faces/ --image-size 112 --export
"""

import dataclasses
from typing import ClassVar

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    ArcFace,
    BatchNormalization,
    PReLU,
    flat_embedding,
    image_input,
    padded_conv,
)
from tiffin.recipes.engine.embedding import MarginRecipe
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "arcface_r18": (2019, 112, 24_025_088, 2_609_954_816, None, "LFW"),
    "arcface_r34": (2019, 112, 34_138_816, 4_459_642_880, None, "LFW"),
    "arcface_r50": (2019, 112, 43_590_336, 6_309_330_944, None, "LFW"),
    "arcface_r100": (2019, 112, 65_155_648, 12_089_606_144, 0.17, "LFW"),
}

BLOCKS = (
    # filters, blocks of r18, r34, r50 and r100   output at 112x112
    (64, 2, 3, 3, 3),  #      56 x 56
    (128, 2, 4, 4, 13),  #    28 x 28
    (256, 2, 6, 14, 30),  #   14 x 14
    (512, 2, 3, 3, 3),  #     7 x 7
)


def arcface(
    variant: str = "arcface_r50",
    input_shape: tuple[int, int, int] = (112, 112, 3),
    dimensions: int = 512,
    *,
    alpha: float = 1.0,
    dropout: float = 0.0,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
) -> keras.Model:
    """Build one of the improved residual networks, from pictures to embeddings.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels; 112 x 112 in the paper.
        dimensions: length of an embedding, 512 in the paper.
        alpha: width multiplier, positive; 1 in the paper.
        dropout: rate before the embedding, in [0, 1); 0.4 in the paper, 0 in the code's recipes.
        normalization: see `tiffin.layers.image_input`; (127.5, 128) in the paper.
        bn_momentum: of batch normalisation.

    Returns:
        A model from `image` to float `[batch, dimensions]`, not normalised.

    Raises:
        InputError: an unknown variant.
        ValueError: an alpha that is not positive.
    """
    one_of("variant", variant, VARIANTS)
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be positive; the paper's width is 1.")

    def bn(x, name, **options):
        return BatchNormalization(epsilon=1e-5, momentum=bn_momentum, name=name, **options)(x)

    def conv(x, filters, kernel, stride, name):
        return padded_conv(x, filters, kernel, stride, name=name)

    image, x = image_input(input_shape, normalization)
    x = conv(x, max(8, round(64 * alpha)), 3, 1, "conv1")
    x = PReLU(name="prelu")(bn(x, "bn1"))
    for stage, (filters, *counts) in enumerate(BLOCKS, 1):
        filters = max(8, round(filters * alpha))
        for block in range(counts[[*VARIANTS].index(variant)]):
            name, stride = f"layer{stage}_{block}", 1 if block else 2
            y = conv(bn(x, f"{name}_bn1"), filters, 3, 1, f"{name}_conv1")
            y = PReLU(name=f"{name}_prelu")(bn(y, f"{name}_bn2"))
            y = bn(conv(y, filters, 3, stride, f"{name}_conv2"), f"{name}_bn3")
            if not block:
                x = conv(x, filters, 1, stride, f"{name}_downsample_conv")
                x = bn(x, f"{name}_downsample_bn")
            x = layers.Add(name=f"{name}_add")([x, y])
    x = flat_embedding(x, dimensions, dropout, bn_momentum)
    return keras.Model(image, x, name=variant)


@dataclasses.dataclass
class Config(MarginRecipe):
    """Train under ArcFace (Deng et al. 2019, arXiv 1801.07698).

    examples:
      tiffin train arcface_r18 --data mnist --alpha 0.25 --export
      tiffin train arcface_r50 --data faces/ --image-size 112 --dimensions 512
      tiffin train arcface --data faces/ --backbone mobilenet_v2
    """

    model: str = "arcface_r18"
    margin: float = 0.5
    """m in radians, added to the true class's angle."""
    scale: float = 64.0
    """s, what cosines are multiplied by."""
    weight_decay: float = 5e-4
    builder: ClassVar = staticmethod(arcface)

    def check(self) -> None:
        super().check()
        if not 0 <= self.margin < 3.14 or not self.scale > 0:
            raise InputError(
                f"--margin {self.margin} --scale {self.scale}: the margin is in radians, from 0 to "
                "below pi, the scale positive; 0.5 and 64 in the paper."
            )

    def head(self, classes: int) -> keras.layers.Layer:
        return ArcFace(classes, self.margin, self.scale, name="logits")


if __name__ == "__main__":
    main(Config)
