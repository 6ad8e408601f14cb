"""Siamese networks: pairs of a class near each other, others a margin apart.

There is no head and no list of classes: the loss compares the pictures of a batch with one another,
so that what is learned is a distance, which also holds for classes that nobody trained on. One
drawing of a new character is enough to find its like.

Hadsell, Chopra, LeCun: Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006, for
contrastive loss; Schroff et al. 2015 (arXiv 1503.03832) and Hermans et al. 2017 (arXiv 1703.07737)
for triplets. Networks: Vinyals et al. 2016 (arXiv 1606.04080), section 4.1.1; Koch et al.: Siamese
Neural Networks for One-shot Image Recognition, 2015.

Reproduces one-shot accuracy on Omniglot characters unseen in training (5 ways, percent):
    siamese net, Vinyals et al.'s table 1: 96.7 (fine-tuned on the new characters: 97.3)
    ours: see docs/results.md

Run it:
    python recipes/embedding/contrastive.py --data omniglot/images_background --image-size 28
"""

import dataclasses
from typing import ClassVar, Literal

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import BatchNormalization, ContrastiveLoss, TripletLoss, image_input
from tiffin.recipes.engine.embedding import PairRecipe
from tiffin.recipes.engine.optimizers import OptimizerName
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "conv4_64": (2016, 28, 113_088, 10_718_208, None, "Omniglot"),
    "siamese_koch": (2015, 105, 38_960_448, 1_026_588_672, None, "Omniglot"),
}

# Koch et al. 2015, figure 4: each but the last followed by 2x2 max pooling.
KOCH = (
    # filters, kernel   input at 105x105
    (64, 10),  #        105 x 105
    (128, 7),  #        48 x 48
    (128, 4),  #        21 x 21
    (256, 4),  #        9 x 9
)


def contrastive(
    variant: str = "conv4_64",
    input_shape: tuple[int, int, int] = (28, 28, 3),
    dimensions: int | None = None,
    *,
    normalization: tuple | None = None,
) -> keras.Model:
    """Build one half of a siamese network, from pictures to embeddings.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels.
        dimensions: length of an embedding, by a further layer for conv4_64; None: the paper's, 64
            at 28 x 28 for conv4_64 and 4096 for siamese_koch.
        normalization: see `tiffin.layers.image_input`.

    Returns:
        A model from `image` to float `[batch, dimensions]`, not normalised.

    Raises:
        InputError: an unknown variant.
    """
    one_of("variant", variant, VARIANTS)
    image, x = image_input(input_shape, normalization)
    if variant == "conv4_64":
        for i in range(1, 5):
            x = layers.Conv2D(64, 3, padding="same", name=f"conv{i}")(x)
            x = BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"bn{i}")(x)
            x = layers.ReLU(name=f"relu{i}")(x)
            x = layers.MaxPooling2D(2, name=f"pool{i}")(x)
        x = layers.Flatten()(x)
        if dimensions:
            x = layers.Dense(dimensions, name="embedding")(x)
        return keras.Model(image, x, name=variant)
    for i, (filters, kernel) in enumerate(KOCH, 1):
        x = layers.Conv2D(filters, kernel, activation="relu", name=f"conv{i}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{i}")(x) if i < len(KOCH) else x
    x = layers.Dense(dimensions or 4096, activation="sigmoid", name="fc")(layers.Flatten()(x))
    return keras.Model(image, x, name=variant)


@dataclasses.dataclass
class Config(PairRecipe):
    """Train a siamese network under contrastive or triplet loss (Hadsell et al. 2006).

    examples:
      tiffin train contrastive --data mnist --export
      tiffin train contrastive --data omniglot/images_background --image-size 28 --in-a-row 5
      tiffin train contrastive --data faces/ --backbone resnet18 --loss batch_hard --margin 0.2
    """

    model: str = "conv4_64"
    dimensions: int | None = None
    """Length of an embedding; default: the network's own, or 128 behind a --backbone."""
    loss: Literal["contrastive", "batch_hard", "semi_hard"] = "contrastive"
    """contrastive: all pairs of a batch; batch_hard, semi_hard: triplets."""
    margin: float = 1.0
    """Distance to keep, of embeddings of length 1: at most 2 is ever reached. 0.2 is usual for
    triplets."""
    balanced: bool = True
    """Contrastive loss: count pairs of a class and others alike, half and half."""
    optimizer: OptimizerName = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    builder: ClassVar = staticmethod(contrastive)

    def check(self) -> None:
        super().check()
        if not 0 < self.margin <= 2:
            raise InputError(f"--margin {self.margin}: above 0 and at most 2.")

    def pair_loss(self) -> keras.losses.Loss:
        if self.loss == "contrastive":
            return ContrastiveLoss(self.margin, self.balanced)
        return TripletLoss(self.margin, self.loss)


if __name__ == "__main__":
    main(Config)
