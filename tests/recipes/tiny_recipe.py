"""The smallest recipe: it shows that a recipe costs one file, and it trains in seconds."""

import dataclasses
from typing import ClassVar

import keras

from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.training import main

VARIANTS = {
    "tiny": (2026, 8, 1_000, 1_000, None, "digits"),
    "tinier": (2026, 8, 1_000, 1_000, None, "digits"),
}


def tiny(input_shape, classes, width, normalization, auxiliary=False):
    mean, std = normalization
    inputs = x = keras.Input(input_shape, name="image")
    x = keras.layers.Rescaling(1 / std[0], -mean[0] / std[0], name="scaling")(x)
    x = keras.layers.Conv2D(width, 5, 4, use_bias=False, name="conv1")(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name="bn1")(x)
    x = keras.layers.ReLU(name="relu1")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    logits = keras.layers.Dense(classes, name="logits")(x)
    if auxiliary:
        helper = keras.layers.Dense(classes, name="auxiliary_logits")(x)
        return keras.Model(inputs, {"logits": logits, "auxiliary": helper}, name="tiny")
    return keras.Model(inputs, logits, name="tiny")


@dataclasses.dataclass
class Config(Classification):
    """Train the tiny network.

    python tiny_recipe.py --epochs 3
    """

    model: str = "tiny"
    epochs: int | None = 3
    image_size: int | None = 16
    learning_rate: float = 0.05
    width: int = 8
    """Channels of the one convolution."""
    auxiliary: bool = False
    """Train a second head beside the first."""
    builder: ClassVar = staticmethod(tiny)

    def build(self, input_shape, classes, normalization, **options):
        return tiny(input_shape, classes, self.width, normalization, self.auxiliary)


if __name__ == "__main__":
    main(Config)
