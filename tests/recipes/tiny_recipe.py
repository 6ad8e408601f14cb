"""The smallest recipe: it shows that a recipe costs one file, and it trains in seconds."""

import dataclasses

import keras

from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.training import main

VARIANTS = {"tiny": {"year": 2026, "parameters": 1_000}, "tinier": {"year": 2026}}


def tiny(input_shape, classes, width, normalization):
    mean, std = normalization
    inputs = x = keras.Input(input_shape, name="image")
    x = keras.layers.Rescaling(1 / std[0], -mean[0] / std[0], name="scaling")(x)
    x = keras.layers.Conv2D(width, 5, 4, use_bias=False, name="conv1")(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name="bn1")(x)
    x = keras.layers.ReLU(name="relu1")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x), name="tiny")


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

    def build(self, input_shape, classes, normalization):
        return tiny(input_shape, classes, self.width, normalization)


if __name__ == "__main__":
    main(Config)
