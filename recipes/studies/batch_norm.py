"""Batch normalisation: speed, learning rates, batch sizes, place, and what inference does with it.

Ioffe and Szegedy: Batch Normalization, 2015, arXiv 1502.03167; figure 1's network of three hidden
layers of 100 sigmoid units, and section 3.1 for inference and the identity.

    python recipes/studies/batch_norm.py
"""

import dataclasses

import keras
import numpy as np
from keras import layers, ops

from tiffin.recipes.engine.study import STYLES, DataStudy, Outcome, main, prepare

CLAIM = "Batch norm trains in fewer steps, stands larger learning rates, and needs larger batches"
BATCHES = (2, 8, 32, 256)
PLACES = ("without", "before the activation", "after the activation")


def network(place: str, shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build three hidden layers of sigmoids, with batch normalisation in one of `PLACES`."""
    image = keras.Input(shape)
    x = layers.Flatten()(image)
    for _ in range(3):
        x = layers.Dense(100)(x)
        x = layers.BatchNormalization(momentum=0.9)(x) if place == PLACES[1] else x
        x = layers.Activation("sigmoid")(x)
        x = layers.BatchNormalization(momentum=0.9)(x) if place == PLACES[2] else x
    return keras.Model(image, layers.Dense(classes)(x))


def identity_error(x: np.ndarray, exact: bool) -> float:
    """Return how batch norm with beta = mu, gamma = sigma (of variance + epsilon) changes x."""
    layer = layers.BatchNormalization(epsilon=1e-3)
    layer.build(x.shape)
    sigma = np.sqrt(x.var(0) + (layer.epsilon if exact else 0.0))
    layer.gamma.assign(sigma)
    layer.beta.assign(x.mean(0))
    return float(np.abs(ops.convert_to_numpy(layer(x, training=True)) - x).max())


@dataclasses.dataclass
class Config(DataStudy):
    """Train the paper's first network with and without batch normalisation."""

    steps: int = 400
    """Of every training."""
    rates: tuple[float, float, float] = (0.01, 0.1, 1.0)
    """Learning rates of gradient descent with momentum."""

    def train(self, seed, place, batch, rate):
        """Return training losses by step and test accuracy."""
        keras.utils.set_random_seed(seed)
        (x, y), unseen, classes = self.parts
        model = network(place, x.shape[1:], classes)
        prepare(model, keras.optimizers.SGD(rate, 0.9))
        order, losses = np.random.default_rng(seed), []
        for _ in range(self.steps):
            chosen = order.integers(0, len(x), batch)
            losses.append(float(model.train_on_batch(x[chosen], y[chosen])[0]))
        return np.array(losses), model.evaluate(*unseen, batch_size=512, verbose=0)[1]

    def measure(self, seed):
        self.parts = self.load(seed)
        table, curves = {}, {}
        for place in PLACES:
            table[place] = {}
            for rate in self.rates:
                losses, accuracy = self.train(seed, place, 32, rate)
                table[place][f"accuracy at {rate:g}"] = accuracy
                if rate == self.rates[1]:
                    curves[place] = losses
                    smooth = np.convolve(losses, np.ones(20) / 20, "valid")
                    low = np.flatnonzero(smooth < 0.5)
                    table[place]["steps to a loss of 0.5"] = low[0] if len(low) else self.steps
        for size in BATCHES:
            for place in PLACES[:2]:
                _, accuracy = self.train(seed, place, size, self.rates[0])
                name = f"batches of {size}"
                table.setdefault(name, {})[f"accuracy, {place.partition(' ')[0]}"] = accuracy
            layer = layers.BatchNormalization(momentum=0.0)
            layer(np.random.default_rng(seed).normal(size=(size, 4000)), training=True)
            table[name]["variance of a batch"] = float(np.mean(layer.moving_variance))
        x = np.random.default_rng(seed).normal(3, 2, (64, 50)).astype("float32")
        errors = identity_error(x, False), identity_error(x, True)
        table["identity"] = dict(zip(("error", "error, epsilon in gamma"), errors, strict=True))
        return table, curves

    def draw(self, figure, rows, drawn):
        loss, sizes = figure.subplots(1, 2)
        for place, style in zip(PLACES, STYLES, strict=False):
            mean = np.convolve(np.mean([c[place] for c in drawn], 0), np.ones(10) / 10, "valid")
            loss.plot(mean, **style, label=place)
        loss.set(xlabel="step", ylabel="training loss, nats", title=f"Rate {self.rates[1]:g}")
        loss.legend()
        for name, style in zip(("without", "before"), STYLES, strict=False):
            values = [100 * rows[f"batches of {size}"][f"accuracy, {name}"] for size in BATCHES]
            sizes.semilogx(BATCHES, values, **style | {"markevery": 1}, base=2, label=name)
        sizes.set(xlabel="batch size", ylabel="test accuracy, %", title=f"{self.steps} steps each")
        sizes.legend()

    def judge(self, rows, spread):
        steps = [rows[place]["steps to a loss of 0.5"] for place in PLACES]
        middle, high = (
            [rows[place][f"accuracy at {rate:g}"] for place in PLACES] for rate in self.rates[1:]
        )
        small, large = (rows[f"batches of {size}"] for size in (BATCHES[0], BATCHES[-1]))
        lost = [large[f"accuracy, {n}"] - small[f"accuracy, {n}"] for n in ("without", "before")]
        plain, exact = rows["identity"].values()
        return [
            Outcome(
                "Batch norm trains in fewer steps.",
                f"{steps[1]:.0f} steps to a loss of 0.5, {steps[0]:.0f} of {self.steps} without.",
                steps[1] < steps[0] / 2,
            ),
            Outcome(
                "It stands larger learning rates.",
                f"At {self.rates[2]:g} {high[1]:.1%} with it, {high[0]:.1%} without.",
                high[1] - high[0] > 0.1,
            ),
            Outcome(
                "It suffers more from small batches than a network without it.",
                f"From batches of 256 to 2 it loses {lost[1]:.1%}, without {lost[0]:.1%}.",
                lost[1] > max(0.05, lost[0]),
            ),
            Outcome(
                "It belongs before the activation.",
                f"{middle[1]:.1%} before, {middle[2]:.1%} after it.",
                middle[1] > middle[2] + spread[PLACES[1]][f"accuracy at {self.rates[1]:g}"],
            ),
            Outcome(
                "A batch underestimates the variance by (n - 1) / n, which inference has to mend.",
                f"With batches of 2 it is {small['variance of a batch']:.3f} of the true one, with "
                f"{BATCHES[-1]} {large['variance of a batch']:.3f}; Keras leaves it so.",
                abs(small["variance of a batch"] - 0.5) < 0.05,
            ),
            Outcome(
                "With gamma = sigma and beta = mu it is the identity.",
                f"It changes a batch by {plain:.1g}; with epsilon in gamma, by {exact:.1g}.",
                exact < 1e-5,
            ),
        ]


if __name__ == "__main__":
    main(Config)
