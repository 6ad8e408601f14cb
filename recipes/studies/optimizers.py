"""Gradient descent and its kin: loss by step, by example and by second, and along a valley.

Bottou 2010: Large-Scale Machine Learning with Stochastic Gradient Descent; Polyak 1964 for
momentum; Tieleman and Hinton 2012 for RMSprop; Zeiler 2012, arXiv 1212.5701, for Adadelta; Kingma
and Ba 2015, arXiv 1412.6980, for Adam.

    python recipes/studies/optimizers.py
"""

import dataclasses

import keras
import numpy as np
from keras import layers

from tiffin.recipes.engine.optimizers import make_optimizer
from tiffin.recipes.engine.study import STYLES, DataStudy, Losses, Outcome, main

CLAIM = "Small batches learn more from each example; adaptive steps forgive a wrong learning rate"
KINDS = {
    # name: optimizer, batch size (None: all examples), learning rate
    "full batch": ("sgd", None, 0.3),
    "stochastic": ("sgd", 1, 0.02),
    "mini-batch": ("sgd", 32, 0.1),
    "momentum": ("momentum", 32, 0.03),
    "RMSprop": ("rmsprop", 32, 0.002),
    "Adadelta": ("adadelta", 32, 1.0),
    "Adam": ("adam", 32, 0.003),
}
FACTORS = (0.1, 1.0, 10.0)
DIVERGED = 10.0  # what a loss counts that is no number any more
# Rates along the valley.
STARTS = {"mini-batch": 0.045, "momentum": 0.01, "RMSprop": 0.05, "Adam": 0.1}


def valley(name: str, rate: float, steps: int = 200) -> np.ndarray:
    """Return the path of an optimizer down x² / 2 + 20 y², from (-4, 0.7)."""
    point = keras.Variable([-4.0, 0.7])
    optimizer, path = make_optimizer(name, rate, [point]), [np.array(point)]
    optimizer.build([point])
    for _ in range(steps):
        optimizer.apply([point * np.array([1.0, 40.0], "float32")], [point])
        path.append(np.array(point))
    return np.stack(path)


@dataclasses.dataclass
class Config(DataStudy):
    """Train one small network by seven methods, each at three learning rates."""

    epochs: int = 4
    """Passes over the examples; 40 times as many with full batches, which are a step each."""
    inches = (15, 4)

    def measure(self, seed):
        train, _, classes = self.load(seed)
        curves, table = {}, {}
        for name, (_, batch, rate) in KINDS.items():
            final, size = {}, batch or len(train.x)
            # One example at a time takes long: at its own rate alone.
            for factor in FACTORS if batch != 1 else (1.0,):
                rows = self.train(train, classes, seed, name, size, rate * factor)
                final[factor] = rows[-1, 2] if np.isfinite(rows[-1, 2]) else DIVERGED
                curves[name] = rows if factor == 1 else curves.get(name)
            steps, seconds, loss = curves[name].T
            table[name] = {
                "final loss": final[1.0],
                "steps": steps[-1],
                "seconds": seconds[-1],
                "loss after an epoch": np.interp(len(train.x) / size, steps, loss),
            }
            if len(final) > 1:
                table[name] |= {"a tenth of the rate": final[0.1], "ten times": final[10.0]}
        return table, curves

    def train(self, train, classes, seed, name, size, rate) -> np.ndarray:
        """Return what `Losses` notes of a training from the seed's weights."""
        keras.utils.set_random_seed(seed)
        image = keras.Input(train.x.shape[1:])
        x = layers.Dense(64, activation="relu")(layers.Flatten()(image))
        model = keras.Model(image, layers.Dense(classes)(x))
        optimizer = make_optimizer(KINDS[name][0], rate, model.trainable_variables)
        model, whole = self.prepared(name, model, optimizer), size >= len(train.x)
        shown = [np.concatenate([part] * (40 if whole else 1)) for part in train]
        losses = Losses(train, self.epochs * -(-len(shown[0]) // size))
        options = {"shuffle": not whole, "verbose": 0, "callbacks": [losses]}
        model.fit(*shown, size, self.epochs, **options)
        return np.array(losses.rows)

    def draw(self, figure, rows, drawn):
        by_example, by_second, path = figure.subplots(1, 3)
        for (name, (_, batch, _)), style in zip(KINDS.items(), STYLES, strict=True):
            steps, seconds, loss = np.mean([curves[name] for curves in drawn], 0).T
            by_example.semilogy(steps * (batch or self.examples), loss, **style, label=name)
            by_second.loglog(seconds[1:], loss[1:], **style, label=name)
        by_example.set(xlabel="examples seen", title="By example")
        by_example.set_xlim(0, self.epochs * self.examples)
        by_second.set(xlabel="seconds", title="By second")
        x, y = np.meshgrid(np.linspace(-5, 2, 80), np.linspace(-1, 1, 80))
        path.contour(x, y, x**2 / 2 + 20 * y**2, 12, colors="lightgrey")
        for (name, rate), style in zip(STARTS.items(), STYLES[2:], strict=False):
            path.plot(*valley(KINDS[name][0], rate).T, **style, linewidth=1, label=name)
        path.set(xlabel="x", ylabel="y", title="Down the valley x²/2 + 20 y²", ylim=(-1, 1))
        for axes in (by_example, by_second, path):
            axes.legend(fontsize=7)
        for axes in (by_example, by_second):
            axes.set_ylabel("training loss, nats")

    def judge(self, rows, spread):
        one, final = (
            {name: cells[column] for name, cells in rows.items()}
            for column in ("loss after an epoch", "final loss")
        )
        slow, fast = (
            1000 * self.examples * cells["seconds"] / cells["steps"] / size
            for cells, size in ((rows["stochastic"], 1), (rows["mini-batch"], 32))
        )
        adaptive, plain = (
            max(rows[name]["a tenth of the rate"], rows[name]["ten times"]) - final[name]
            for name in ("Adam", "mini-batch")
        )
        return [
            Outcome(
                "An epoch of small batches teaches more than one step with all examples.",
                f"Loss {one['stochastic']:.2f} with one example a step, {one['mini-batch']:.2f} "
                f"with 32, {one['full batch']:.2f} with all of them.",
                max(one["stochastic"], one["mini-batch"]) < one["full batch"],
            ),
            Outcome(
                "Mini-batches use the machine better than single examples.",
                f"{self.examples:,} examples take {slow:,.0f} ms one by one, {fast:,.0f} by 32.",
                fast < slow,
            ),
            Outcome(
                "Momentum goes faster than plain gradient descent.",
                f"Loss {final['momentum']:.3f} against {final['mini-batch']:.3f} at the end.",
                final["momentum"] < final["mini-batch"],
            ),
            Outcome(
                "Adaptive methods forgive a wrong learning rate.",
                f"A tenth of it, or ten times, costs Adam up to {adaptive:.2f}, plain mini-batch "
                f"descent up to {plain:.2f}.",
                adaptive < plain,
            ),
        ]


if __name__ == "__main__":
    main(Config)
