"""AM-softmax (CosFace): a margin subtracted from the cosine.

Embeddings and classes both have length 1, so that a logit is a cosine, and the true class's has to
be larger than any other by m. The scale s gives softmax enough range to be sure. It needs neither
annealing nor polynomials, and trains from scratch where A-softmax does not converge.

Wang, Cheng, Liu, Liu: Additive Margin Softmax for Face Verification, 2018, arXiv 1801.05599.
Wang et al.: CosFace, CVPR 2018, arXiv 1801.09414, is the same formula.

Reproduces table 2 of the first (LFW, accuracy in percent, 20 layers, m = 0.35): 98.98.
Ours: see docs/results.md.

Run it:
    python recipes/embedding/am_softmax.py --data faces/ --image-size 112 --export
"""

import dataclasses
from typing import ClassVar

import keras
from keras import layers

from tiffin.export.errors import InputError
from tiffin.layers import AMSoftmax, image_input, sphere_stage
from tiffin.recipes.engine.embedding import MarginRecipe
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "am_softmax20": (2018, 112, 24_501_952, 2_041_360_384, 1.02, "LFW"),
}

# The 20-layer network of SphereFace (arXiv 1704.08063, table 2): residual units of two
# convolutions behind a strided one.
STAGES = (
    # filters, units   output at 112x96
    (64, 1),  #        56 x 48
    (128, 2),  #       28 x 24
    (256, 4),  #       14 x 12
    (512, 1),  #       7 x 6
)


def am_softmax(
    input_shape: tuple[int, int, int] = (112, 112, 3),
    dimensions: int = 512,
    *,
    alpha: float = 1.0,
    normalization: tuple | None = None,
) -> keras.Model:
    """Build the paper's 20-layer network, from pictures to embeddings.

    Args:
        input_shape: `(height, width, channels)` in pixels; 112 x 96 in the paper.
        dimensions: length of an embedding, 512 in the paper.
        alpha: width multiplier, positive; 1 in the paper.
        normalization: see `tiffin.layers.image_input`; (127.5, 128) in the paper.

    Returns:
        A model from `image` to float `[batch, dimensions]`, not normalised.

    Raises:
        ValueError: an alpha that is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be positive; the paper's width is 1.")
    image, x = image_input(input_shape, normalization)
    for stage, (filters, units) in enumerate(STAGES, 1):
        x = sphere_stage(x, max(8, round(filters * alpha)), units, name=f"conv{stage}")
    x = layers.Dense(dimensions, name="fc5")(layers.Flatten()(x))
    return keras.Model(image, x, name="am_softmax20")


@dataclasses.dataclass
class Config(MarginRecipe):
    """Train under additive margin softmax (CosFace; Wang et al. 2018, arXiv 1801.05599).

    examples:
      tiffin train am_softmax --data mnist --alpha 0.25 --export
      tiffin train am_softmax --data faces/ --image-size 112 --dimensions 512
      tiffin train am_softmax --data faces/ --backbone mobilenet_v2
    """

    model: str = "am_softmax20"
    margin: float = 0.35
    """m, subtracted from the true class's cosine."""
    scale: float = 30.0
    """s, what cosines are multiplied by."""
    weight_decay: float = 5e-4
    learning_rate: float = 0.05
    builder: ClassVar = staticmethod(am_softmax)

    def check(self) -> None:
        super().check()
        if not self.margin >= 0 or not self.scale > 0:
            raise InputError(
                f"--margin {self.margin} --scale {self.scale}: the margin is at least 0, the scale "
                "positive; 0.35 and 30 in the paper."
            )

    def head(self, classes: int) -> keras.layers.Layer:
        return AMSoftmax(classes, self.margin, self.scale, name="logits")


if __name__ == "__main__":
    main(Config)
