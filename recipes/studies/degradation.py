"""Degradation: deeper plain networks have a higher training error, residual ones a lower.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, arXiv 1512.03385, figures 1
and 6: plain and residual networks of 20 and 56 layers with batch normalisation, here narrow ones.

    python recipes/studies/degradation.py
"""

import dataclasses

import keras
import numpy as np
from keras import layers

from tiffin.recipes.engine.study import DataStudy, Outcome, main

CLAIM = "56 plain layers train worse than 20; with shortcuts they do not"
DEPTHS = (20, 56)
LINES = {"plain": "-", "residual": "--"}


def network(depth: int, residual: bool, shape: tuple[int, ...], classes: int, width: int):
    """Build section 4.2's network: 6 n + 2 layers in three stages, the width doubling at each."""
    image = keras.Input(shape)

    def convolved(x, filters, stride):
        x = layers.Conv2D(
            filters, 3, stride, "same", use_bias=False, kernel_initializer="he_normal"
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    x = layers.ReLU()(convolved(image, width, 1))
    for stage in range(3):
        filters = width << stage
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            y = layers.ReLU()(convolved(x, filters, stride))
            y = convolved(y, filters, 1)
            if residual and stride == 1:
                y = layers.Add()([x, y])
            elif residual:
                # Option A: no weights; every second pixel, and zeros for what is new.
                short = layers.AveragePooling2D(1, 2)(x)
                y = layers.Add()([layers.Concatenate()([short, 0 * short]), y])
            x = layers.ReLU()(y)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes)(x))


@dataclasses.dataclass
class Config(DataStudy):
    """Train plain and residual networks of 20 and 56 layers alike."""

    image_size: int = 12
    epochs: int = 10
    """Passes over the examples."""
    width: int = 8
    """Channels of the first stage; the paper's is 16."""
    learning_rate: float = 0.05
    """Of momentum; falls to zero along a cosine."""

    def measure(self, seed):
        train, test, classes = self.load(seed)
        table, curves = {}, {}
        steps = self.epochs * -(-len(train.x) // 64)
        for kind in LINES:
            for depth in DEPTHS:
                keras.utils.set_random_seed(seed)
                shape = train.x.shape[1:]
                model = network(depth, kind == "residual", shape, classes, self.width)
                rate = keras.optimizers.schedules.CosineDecay(self.learning_rate, steps)
                name = f"{kind}, {depth} layers"
                model = self.prepared(name, model, keras.optimizers.SGD(rate, 0.9))
                done = model.fit(*train, batch_size=64, epochs=self.epochs, verbose=0).history
                curves[name] = 1 - np.array(done["accuracy"])
                _, accuracy = model.evaluate(*test, batch_size=256, verbose=0)
                table[name] = {
                    "training error": curves[name][-1],
                    "training loss": done["loss"][-1],
                    "test error": 1 - accuracy,
                    "parameters": model.count_params(),
                }
        return table, curves

    def draw(self, figure, rows, drawn):
        for axes, kind in zip(figure.subplots(1, 2, sharey=True), LINES, strict=True):
            for depth, line in zip(DEPTHS, ("-", "--"), strict=True):
                name = f"{kind}, {depth} layers"
                errors = 100 * np.array([curves[name] for curves in drawn])
                epochs = np.arange(1, errors.shape[1] + 1)
                axes.plot(epochs, errors.mean(0), line, color="black", label=f"{depth} layers")
                axes.fill_between(epochs, errors.min(0), errors.max(0), color="grey", alpha=0.3)
            axes.set(xlabel="epoch", ylabel="training error, %", title=kind.capitalize())
            axes.legend()

    def judge(self, rows, spread):
        error = {name: cells["training error"] for name, cells in rows.items()}
        unsure = {name: cells["training error"] for name, cells in spread.items()}
        (plain, deep), (short, long) = (
            [f"{kind}, {depth} layers" for depth in DEPTHS] for kind in LINES
        )
        return [
            Outcome(
                "A plain network of 56 layers has a higher training error than one of 20.",
                f"{error[deep]:.2%} ± {unsure[deep]:.2%} against {error[plain]:.2%} ± "
                f"{unsure[plain]:.2%}.",
                error[deep] - unsure[deep] > error[plain] + unsure[plain],
            ),
            Outcome(
                "With shortcuts 56 layers have no higher training error than 20.",
                f"{error[long]:.2%} ± {unsure[long]:.2%} against {error[short]:.2%} ± "
                f"{unsure[short]:.2%}.",
                error[long] - unsure[long] <= error[short] + unsure[short],
            ),
            Outcome(
                "Shortcuts cost no parameters.",
                f"{rows[deep]['parameters']:,.0f} without, {rows[long]['parameters']:,.0f} with.",
                rows[deep]["parameters"] == rows[long]["parameters"],
            ),
        ]


if __name__ == "__main__":
    main(Config)
