"""Activations: their slopes, the gradient by depth, dead units, accuracy, and what Maxout costs.

Glorot and Bengio 2010; Nair and Hinton 2010 for ReLU; Maas et al. 2013 for its leak; He et al.
2015, arXiv 1502.01852, for PReLU; Goodfellow et al. 2013, arXiv 1302.4389, for Maxout.

    python recipes/studies/activations.py
"""

import dataclasses

import keras
import numpy as np
from keras import layers, ops

from tiffin.layers import Maxout, PReLU
from tiffin.recipes.engine.study import STYLES, DataStudy, Outcome, autodiff, main, prepare

CLAIM = "Sigmoids let the gradient vanish with depth; ReLU keeps it, and units die"
KINDS = ("sigmoid", "tanh", "ReLU", "leaky ReLU", "PReLU", "Maxout")
FUNCTIONS = {
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "ReLU": ops.relu,
    "leaky ReLU": lambda x: ops.leaky_relu(x, 0.1),
}


def hidden(kind: str, units: int, name: str):
    """Return a function from features to features behind one layer of a kind."""
    start = "glorot_uniform" if kind in ("sigmoid", "tanh") else "he_uniform"
    if kind == "Maxout":
        return Maxout(units, 2, name=name)
    linear = layers.Dense(units, kernel_initializer=start, name=f"{name}_linear")
    if kind == "PReLU":
        return lambda x: PReLU(name=name)(linear(x))
    return lambda x: layers.Activation(FUNCTIONS[kind], name=name)(linear(x))


@dataclasses.dataclass
class Config(DataStudy):
    """Train one deep network with each of six activations."""

    depth: int = 12
    """Hidden layers."""
    units: int = 64
    """Of each."""
    epochs: int = 8
    """Passes over the examples."""
    learning_rate: float = 0.01
    """Of momentum, the same for all."""

    def network(self, kind: str, shape: tuple[int, ...], classes: int) -> keras.Model:
        """Build the network; its inner results are the outputs `hidden1`, `hidden2`, ..."""
        image, inner = keras.Input(shape), []
        x = layers.Flatten()(image)
        for i in range(self.depth):
            x = hidden(kind, self.units, f"hidden{i + 1}")(x)
            inner.append(x)
        return keras.Model(image, [layers.Dense(classes, name="logits")(x), *inner], name="deep")

    def measure(self, seed):
        train, test, classes = self.load(seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        table, curves = {}, {}
        for kind in KINDS:
            keras.utils.set_random_seed(seed)
            whole = self.network(kind, train.x.shape[1:], classes)
            curves[kind] = norms = self.gradients(whole, train, loss)
            model = keras.Model(whole.input, whole.outputs[0])
            prepare(model, keras.optimizers.SGD(self.learning_rate, 0.9))
            model.fit(*train, batch_size=32, epochs=self.epochs, verbose=0)
            outputs = [ops.convert_to_numpy(x) for x in whole(train.x)[1:]]
            # Dead: the same for every example, so that no gradient passes.
            dead = np.mean([(np.ptp(x, 0) < 1e-6).mean() for x in outputs])
            table[kind] = {
                "test accuracy": model.evaluate(*test, verbose=0)[1],
                "gradient, first / last layer": norms[0] / norms[-1],
                "dead units": dead,
                "parameters": model.count_params(),
            }
        return table, curves

    def gradients(self, whole: keras.Model, train, loss) -> np.ndarray:
        """Return the norm of the fresh network's gradient by what each layer puts out."""
        names = [f"hidden{i + 1}" for i in range(self.depth)]
        x, y = train.x[:128], train.y[:128]
        results = [ops.convert_to_numpy(r) for r in whole(x)[1:]]
        norms = []
        for name, result in zip(names, results, strict=True):
            rest = keras.Model(whole.get_layer(name).output, whole.outputs[0])
            (gradient,) = autodiff(lambda r, rest=rest: loss(y, rest(r)), result)
            norms.append(np.linalg.norm(gradient))
        return np.array(norms)

    inches = (15, 4)

    def draw(self, figure, rows, drawn):
        values, slopes, depth = figure.subplots(1, 3)
        x = np.linspace(-4, 4, 401, dtype="float32")
        for kind, style in zip(KINDS, STYLES, strict=False):
            given = style | {"label": kind}
            norms = np.mean([curves[kind] for curves in drawn], 0)
            depth.semilogy(np.arange(1, self.depth + 1), norms / norms[-1], **given)
            if kind in FUNCTIONS:
                function = FUNCTIONS[kind]
                values.plot(x, ops.convert_to_numpy(function(x)), **given)
                (slope,) = autodiff(lambda x, f=function: ops.sum(f(x)), x)
                slopes.plot(x, slope, **given)
        values.set(xlabel="x", ylabel="f(x)", title="Functions", ylim=(-1.5, 3))
        slopes.set(xlabel="x", ylabel="f'(x)", title="Their slopes")
        depth.set(xlabel="hidden layer", ylabel="gradient norm, relative to the last layer's")
        depth.set_title("Before training")
        depth.legend(fontsize=7)

    def judge(self, rows, spread):
        ratio = {kind: rows[kind]["gradient, first / last layer"] for kind in KINDS}
        accuracy = {kind: rows[kind]["test accuracy"] for kind in KINDS}
        dead = {kind: rows[kind]["dead units"] for kind in KINDS}
        maxout = rows["Maxout"]["parameters"] / rows["ReLU"]["parameters"]
        return [
            Outcome(
                "Sigmoids let the gradient vanish with depth, ReLU keeps it.",
                f"The first layer gets {ratio['sigmoid']:.1g} of the last one's gradient with "
                f"sigmoids, {ratio['tanh']:.2g} with tanh, {ratio['ReLU']:.2g} with ReLU.",
                ratio["sigmoid"] < 0.01 and ratio["ReLU"] > 0.1,
            ),
            Outcome(
                "Deep networks of sigmoids do not train, those of ReLU do.",
                f"Accuracy {accuracy['sigmoid']:.1%} against {accuracy['ReLU']:.1%} with "
                f"{self.depth} layers.",
                accuracy["ReLU"] - accuracy["sigmoid"] > 0.2,
            ),
            Outcome(
                "Units of ReLU die, those of leaky ReLU do not.",
                f"{dead['ReLU']:.1%} give the same for every example; {dead['leaky ReLU']:.1%} of "
                "the leaky ones.",
                dead["ReLU"] > 0.01 > dead["leaky ReLU"],
            ),
            Outcome(
                "Maxout of two pieces doubles the parameters.",
                f"{maxout:.2f} times ReLU's, for {accuracy['Maxout']:.1%} accuracy.",
                1.8 < maxout < 2.1,
            ),
        ]


if __name__ == "__main__":
    main(Config)
