"""Center loss: embeddings near the centre of their class, beside softmax.

Softmax parts the classes and cares no further: in two dimensions its features are long rays that
touch at the origin. A second loss pulls each embedding to the centre of its class, and the centres
follow by a running mean. Softmax keeps the classes apart, center loss makes each of them compact.

Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV
2016 (no arXiv version; the loss in later surveys: arXiv 1801.05599, section 2).

Reproduces figure 3 (MNIST, LeNets++ with two-dimensional features): the larger lambda, the tighter
the clusters. Ours: see docs/results.md.

Run it:
    python recipes/embedding/center_loss.py --data mnist --center-weight 0.1 --export
"""

import dataclasses
import math
from typing import ClassVar

import keras
from keras import layers

from tiffin.layers import CenterLoss, EmbeddingTrainer, PReLU, image_input
from tiffin.recipes.engine.embedding import MarginRecipe
from tiffin.recipes.engine.optimizers import OptimizerName
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "lenets_plus_plus": (2016, 28, 799_202, 82_165_504, None, "MNIST"),
}

# Table 1: two 5x5 convolutions of so many filters, then 2x2 max pooling; stage 4 is the features.
LENETS_PLUS_PLUS = (
    # filters   input at 28x28
    32,  # 28 x 28
    64,  # 14 x 14
    128,  # 7 x 7
)


def center_loss(
    input_shape: tuple[int, int, int] = (28, 28, 3),
    dimensions: int = 2,
    *,
    normalization: tuple | None = None,
) -> keras.Model:
    """Build LeNets++, from pictures to features.

    Args:
        input_shape: `(height, width, channels)` in pixels; 28 x 28 x 1 in the paper.
        dimensions: number of features, 2 in the paper so that they can be drawn.
        normalization: see `tiffin.layers.image_input`.

    Returns:
        A model from `image` to float `[batch, dimensions]`, not normalised.
    """
    image, x = image_input(input_shape, normalization)
    for stage, filters in enumerate(LENETS_PLUS_PLUS, 1):
        for i in (1, 2):
            x = layers.Conv2D(filters, 5, padding="same", name=f"conv{stage}_{i}")(x)
            x = PReLU(name=f"prelu{stage}_{i}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    x = layers.Dense(dimensions, name="features")(layers.Flatten()(x))
    return keras.Model(image, x, name="lenets_plus_plus")


@dataclasses.dataclass
class Config(MarginRecipe):
    """Train embeddings under softmax and center loss (Wen et al. 2016).

    Adam by default: features that nothing normalises diverge under momentum at 0.01.

    examples:
      tiffin train center_loss --data mnist --export
      tiffin train center_loss --data mnist --center-weight 0
      tiffin train center_loss --data faces/ --backbone resnet18 --dimensions 128
    """

    model: str = "lenets_plus_plus"
    dimensions: int = 2
    """Length of an embedding; 2 in the paper's picture."""
    center_weight: float = 0.1
    """Lambda, the weight of center loss; 0: softmax alone."""
    center_alpha: float = 0.5
    """How far the centres move in a step, from 0 to 1."""
    optimizer: OptimizerName = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    builder: ClassVar = staticmethod(center_loss)
    limits: ClassVar = MarginRecipe.limits | {
        "center_weight": (0, math.inf),
        "center_alpha": (0, 1),
    }

    def head(self, classes: int) -> keras.layers.Layer:
        return layers.Dense(classes, name="logits")

    def trainer(self, embedder: keras.Model, classes: int) -> EmbeddingTrainer:
        centers = CenterLoss(classes, self.center_alpha, name="center_loss")
        return EmbeddingTrainer(
            embedder, self.head(classes), centers, self.center_weight, name=embedder.name
        )


if __name__ == "__main__":
    main(Config)
