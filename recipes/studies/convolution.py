"""Convolution as a matrix product: im2col, its gradient by col2im, and what they cost.

Chellapilla, Puri, Simard: High Performance Convolutional Neural Networks for Document Processing,
2006, section 2; Caffe made it common. The layer itself: layers/im2col.py.

    python recipes/studies/convolution.py
"""

import dataclasses
import functools
import time

import keras
import numpy as np
from keras import layers, ops

from tiffin.layers import Im2ColConv2D
from tiffin.recipes.engine import report
from tiffin.recipes.engine.study import Outcome, Study, autodiff, main

CLAIM = "A convolution is one matrix product over copied patches: k² the memory, but fast"
CASES = {
    # name: side in pixels, channels, filters, kernel, stride, padding
    "1x1": (32, 64, 64, 1, 1, "valid"),
    "3x3": (32, 64, 64, 3, 1, "same"),
    "3x3, stride 2": (32, 64, 64, 3, 2, "same"),
    "5x5": (32, 32, 64, 5, 1, "valid"),
    "11x11, stride 4": (64, 3, 64, 11, 4, "valid"),
}


def milliseconds(runs: dict, repeats: int = 30) -> dict[str, float]:
    """Return the median time of each function, called in turns."""
    times = {name: [] for name in runs}
    for number in range(repeats + 5):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if number >= 5:
                times[name].append(1000 * (time.perf_counter() - begin))
    return {name: float(np.median(taken)) for name, taken in times.items()}


def gradients(layer, x: np.ndarray, towards: np.ndarray) -> list[np.ndarray]:
    """Return the gradients of `sum(layer(x) towards)` by x and the layer's weights."""

    def loss(x, *weights):
        y, _ = layer.stateless_call([*weights], [], x)
        return ops.sum(ops.multiply(y, towards))

    return autodiff(loss, x, *layer.get_weights())


@dataclasses.dataclass
class Config(Study):
    """Write convolution as a matrix product and hold it against Keras' own."""

    batch: int = 8
    """Pictures at once."""

    def measure(self, seed):
        random, table = np.random.default_rng(seed), {}
        for name, (side, channels, filters, size, stride, padding) in CASES.items():
            pair = {
                "im2col": Im2ColConv2D(filters, size, stride, padding),
                "Conv2D": layers.Conv2D(filters, size, stride, padding),
            }
            x = random.normal(size=(self.batch, side, side, channels)).astype("float32")
            for layer in pair.values():
                layer.build(x.shape)
            pair["im2col"].set_weights(pair["Conv2D"].get_weights())
            outputs = [ops.convert_to_numpy(layer(x)) for layer in pair.values()]
            towards = random.normal(size=outputs[1].shape).astype("float32")
            found = [gradients(layer, x, towards) for layer in pair.values()]
            apart = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(*found, strict=True)]
            image = keras.Input(x.shape[1:])
            models = {key: keras.Model(image, layer(image)) for key, layer in pair.items()}
            runs = {
                key: functools.partial(model.predict_on_batch, x) for key, model in models.items()
            }
            times = milliseconds(runs)
            table[name] = {
                "output differs by": np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs).max(),
                "gradients by": max(apart),
                "memory of the input": np.prod(towards.shape[1:3]) * size**2 / side**2,
                "ms, im2col": times["im2col"],
                "ms, Conv2D": times["Conv2D"],
                "time ratio": times["im2col"] / times["Conv2D"],
            }
        return table, None

    def draw(self, figure, rows, drawn):
        left, right = figure.subplots(1, 2)
        report.bars(left, rows, {"": [r["memory of the input"] for r in rows.values()]}, 20)
        left.set(xlabel="kernel", ylabel="times the input's memory", title="What im2col copies")
        times = {name: [r[f"ms, {name}"] for r in rows.values()] for name in ("Conv2D", "im2col")}
        report.bars(right, rows, times, 20)
        right.set(xlabel="kernel", ylabel=f"ms for {self.batch} pictures", title="Forward pass")
        right.legend()

    def judge(self, rows, spread):
        worst = max(max(r["output differs by"], r["gradients by"]) for r in rows.values())
        square, ratios = rows["3x3"], [r["time ratio"] for r in rows.values()]
        return [
            Outcome(
                "A convolution is a product of patches and kernel, its gradient two more and "
                "col2im.",
                f"Outputs and gradients differ from Conv2D's by {worst:.1g} of the largest.",
                worst < 1e-5,
            ),
            Outcome(
                "im2col takes k² times the memory of its input.",
                f"3x3 takes {square['memory of the input']:.2f} times; a stride divides it.",
                abs(square["memory of the input"] - 9) < 0.5,
            ),
            Outcome(
                "As one large product it is as fast as any convolution.",
                f"It takes {min(ratios):.1f} to {max(ratios):.1f} times as long as Conv2D.",
                max(ratios) < 1.2,
            ),
        ]


if __name__ == "__main__":
    main(Config)
