"""A-softmax (SphereFace): a margin in the angle alone, between classes of equal weight.

With every class's weight at length 1 and no bias, softmax compares angles only, and m times the
angle of the true class draws a margin on the sphere, whatever the length of an embedding. It is
what open sets need: faces of people who were never trained on are told apart by their angle.

Liu, Wen, Yu, Li, Raj, Song: SphereFace, CVPR 2017, arXiv 1704.08063.

Reproduces table 2 (the networks) and table 3 (LFW, accuracy in percent):
    SphereFace-20 99.26    SphereFace-36 99.35    SphereFace-64 99.42    ours: docs/results.md

Run it:
    python recipes/embedding/a_softmax.py --data faces/ --image-size 112 --export
"""

import dataclasses
from typing import ClassVar

import keras
from keras import layers

from tiffin.export.errors import one_of
from tiffin.layers import ASoftmax, image_input, sphere_stage
from tiffin.recipes.engine.embedding import AnnealedRecipe
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "sphereface4": (2017, 112, 14_397_504, 191_672_320, None, "LFW"),
    "sphereface10": (2017, 112, 17_052_992, 885_305_344, None, "LFW"),
    "sphereface20": (2017, 112, 24_501_952, 2_041_360_384, 0.74, "LFW"),
    "sphereface36": (2017, 112, 34_606_400, 3_891_048_448, 0.65, "LFW"),
    "sphereface64": (2017, 112, 50_021_824, 7_128_002_560, 0.58, "LFW"),
}

# Table 2: residual units of two convolutions behind the strided one.
UNITS = (
    # filters, units of 4, 10, 20, 36 and 64 layers   output at 112x96
    (64, 0, 0, 1, 2, 3),  #     56 x 48
    (128, 0, 1, 2, 4, 8),  #    28 x 24
    (256, 0, 2, 4, 8, 16),  #   14 x 12
    (512, 0, 0, 1, 2, 3),  #    7 x 6
)


def a_softmax(
    variant: str = "sphereface20",
    input_shape: tuple[int, int, int] = (112, 112, 3),
    dimensions: int = 512,
    *,
    normalization: tuple | None = None,
) -> keras.Model:
    """Build one of SphereFace's networks, from pictures to embeddings.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels, divisible by 16 or not; 112 x 96 in the
            paper.
        dimensions: length of an embedding, 512 in the paper.
        normalization: see `tiffin.layers.image_input`; (127.5, 128) in the paper.

    Returns:
        A model from `image` to float `[batch, dimensions]`, not normalised.

    Raises:
        InputError: an unknown variant.
    """
    one_of("variant", variant, VARIANTS)
    image, x = image_input(input_shape, normalization)
    for stage, (filters, *units) in enumerate(UNITS, 1):
        x = sphere_stage(x, filters, units[[*VARIANTS].index(variant)], name=f"conv{stage}")
    x = layers.Dense(dimensions, name="fc5")(layers.Flatten()(x))
    return keras.Model(image, x, name=variant)


@dataclasses.dataclass
class Config(AnnealedRecipe):
    """Train under A-softmax (SphereFace, Liu et al. 2017, arXiv 1704.08063).

    examples:
      tiffin train sphereface4 --data mnist --export
      tiffin train sphereface20 --data faces/ --image-size 112 --dimensions 512
      tiffin train a_softmax --data faces/ --backbone mobilenet_v2
    """

    model: str = "sphereface4"
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    builder: ClassVar = staticmethod(a_softmax)

    def head(self, classes: int) -> keras.layers.Layer:
        return ASoftmax(classes, self.margin, self.annealing[0], name="logits")


if __name__ == "__main__":
    main(Config)
