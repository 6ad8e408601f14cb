"""Regularisation: what narrows the gap between training and test, each alone and all together.

Tibshirani 1996 for L1; Krogh and Hertz 1991 for weight decay; Prechelt 1998 for early stopping;
Srivastava et al. 2014 for dropout; Ioffe and Szegedy 2015, arXiv 1502.03167, for batch norm.

    python recipes/studies/regularization.py
"""

import dataclasses

import keras
import numpy as np
from keras import layers, regularizers

from tiffin.recipes.engine import report
from tiffin.recipes.engine.study import DataStudy, Outcome, main, prepare

CLAIM = "Regularisation costs training accuracy and wins test accuracy; L1 makes weights zero"
KINDS = ("none", "early stopping", "augmentation", "L1", "L2", "dropout", "batch norm", "all")
SMALL = 1e-3  # a weight that counts as zero


@dataclasses.dataclass
class Config(DataStudy):
    """Train a network that is too large for a small training set, regularised in eight ways."""

    examples: int = 80
    """Training pictures, at most."""
    units: int = 256
    """Of each of the two hidden layers."""
    epochs: int = 80
    """Passes over the examples."""
    l1: float = 3e-4
    """Factor of the sum of the weights' sizes."""
    l2: float = 3e-3
    """Factor of the sum of their squares."""
    rate: float = 0.5
    """Of dropout."""

    def network(self, kind: str, shape: tuple[int, ...], classes: int) -> keras.Model:
        """Build the network, regularised in one way."""
        penalties = {"L1": regularizers.L1(self.l1), "L2": regularizers.L2(self.l2)}
        penalty = penalties.get("L2" if kind == "all" else kind)
        image = x = keras.Input(shape)
        if kind in ("augmentation", "all"):
            x = layers.RandomTranslation(0.08, 0.08, fill_mode="nearest")(x)
            x = layers.RandomRotation(0.04, fill_mode="nearest")(x)
        x = layers.Flatten()(x)
        for i in (1, 2):
            x = layers.Dense(self.units, kernel_regularizer=penalty, name=f"hidden{i}")(x)
            x = layers.BatchNormalization()(x) if kind in ("batch norm", "all") else x
            x = layers.ReLU()(x)
            x = layers.Dropout(self.rate)(x) if kind in ("dropout", "all") else x
        return keras.Model(image, layers.Dense(classes, kernel_regularizer=penalty)(x))

    def measure(self, seed):
        train, test, classes = self.load(seed)
        table, kernels = {}, {}
        for kind in KINDS:
            keras.utils.set_random_seed(seed)
            model = self.network(kind, train.x.shape[1:], classes)
            prepare(model, keras.optimizers.Adam(1e-3))
            given = {"epochs": self.epochs, "batch_size": 32, "verbose": 0}
            if kind in ("early stopping", "all"):
                # A fifth of the examples says when to stop, and teaches nothing.
                stop = keras.callbacks.EarlyStopping(patience=8, restore_best_weights=True)
                given |= {"validation_split": 0.2, "callbacks": [stop]}
            done = model.fit(*train, **given)
            weights = np.concatenate(
                [np.ravel(model.get_layer(f"hidden{i}").kernel) for i in (1, 2)]
            )
            (_, seen), (cost, new) = (model.evaluate(*part, verbose=0) for part in (train, test))
            # Without the penalty, which is no error.
            cost -= sum(float(penalty) for penalty in model.losses)
            table[kind] = {
                "training accuracy": seen,
                "test accuracy": new,
                "gap": seen - new,
                "test loss": cost,
                "weights that are zero": float((np.abs(weights) < SMALL).mean()),
                "epochs": len(done.history["loss"]),
            }
            kernels[kind] = weights
        return table, kernels

    inches = (12, 4)

    def draw(self, figure, rows, drawn):
        bars, weights = figure.subplots(1, 2)
        parts = ("training", "test")
        heights = {part: [100 * rows[kind][f"{part} accuracy"] for kind in KINDS] for part in parts}
        report.bars(bars, KINDS, heights, 30)
        low = 100 * min(cells["test accuracy"] for cells in rows.values())
        bars.set(xlabel="regularisation", ylabel="accuracy, %", ylim=(low - 10, 108))
        bars.set_title(f"{self.examples} training pictures")
        bars.legend(loc="upper center", ncols=2)
        edges = np.linspace(-0.2, 0.2, 81)
        for kind, line in (("none", "-"), ("L1", "--"), ("L2", ":")):
            share, _ = np.histogram(drawn[0][kind], edges)
            middle = (edges[1:] + edges[:-1]) / 2
            weights.semilogy(middle, 100 * share / share.sum(), line, color="black", label=kind)
        weights.set(xlabel="weight", ylabel="share, % (logarithmic)", title="Hidden weights")
        weights.legend()

    def judge(self, rows, spread):
        new = {kind: rows[kind]["test accuracy"] for kind in KINDS}
        unsure = spread["none"]["test accuracy"]
        better = [kind for kind in KINDS[1:] if new[kind] > new["none"] + unsure]
        gaps = {kind: rows[kind]["gap"] for kind in KINDS}
        zeros = {kind: rows[kind]["weights that are zero"] for kind in ("none", "L1", "L2")}
        alone = max(KINDS[1:-1], key=new.get)
        return [
            Outcome(
                "Each kind of regularisation wins test accuracy.",
                f"Above {new['none']:.1%} ± {unsure:.1%} without any: "
                f"{', '.join(better) or 'none'}.",
                len(better) == len(KINDS) - 1,
            ),
            Outcome(
                "It narrows the gap between training and test.",
                f"{gaps['none']:.1%} without, {gaps['augmentation']:.1%} with augmentation, "
                f"{gaps['dropout']:.1%} with dropout, {gaps['L2']:.1%} with L2.",
                max(gaps[kind] for kind in ("augmentation", "dropout", "L2")) < gaps["none"],
            ),
            Outcome(
                "L1 makes weights zero, L2 only small.",
                f"{zeros['L1']:.0%} of the hidden weights are zero with L1, {zeros['L2']:.0%} with "
                f"L2, {zeros['none']:.0%} without.",
                zeros["L1"] > 0.5 > zeros["L2"],
            ),
            Outcome(
                "All together are best.",
                f"{new['all']:.1%}; {alone} alone {new[alone]:.1%}.",
                new["all"] >= new[alone],
            ),
        ]


if __name__ == "__main__":
    main(Config)
