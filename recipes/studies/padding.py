"""Padding: sizes by formula, and what a border does to a picture and to a network.

Dumoulin and Visin: A Guide to Convolution Arithmetic for Deep Learning, 2016, arXiv 1603.07285,
for the sizes; Islam, Jia, Bruce: How Much Position Information Do Convolutional Neural Networks
Encode?, 2020, arXiv 2001.08248, for what zeros tell.

    python recipes/studies/padding.py
"""

import dataclasses

import numpy as np
from keras import layers, ops

from tiffin.recipes.engine.study import DataStudy, Outcome, main

CLAIM = "Sizes follow from formulas; zeros around a picture darken its border and tell where it is"
MODES = ("valid", "same", "full", "causal", "reflect")


def margins(mode: str, size: int, kernel: int, stride: int = 1, dilation: int = 1):
    """Return how much is put before and behind an axis of so many places."""
    reach = dilation * (kernel - 1)  # between the first and the last place that a filter sees
    if mode == "valid":
        return 0, 0
    if mode == "full":
        return reach, reach
    if mode == "causal":
        return reach, 0
    whole = max(0, (-(-size // stride) - 1) * stride + reach + 1 - size)
    return whole // 2, whole - whole // 2


def output_size(mode: str, size: int, kernel: int, stride: int = 1, dilation: int = 1) -> int:
    """Return the length of an axis behind a convolution, by the formulas of textbooks."""
    reach = dilation * (kernel - 1)
    if mode == "valid":
        return (size - reach - 1) // stride + 1
    if mode == "full":
        return (size + reach - 1) // stride + 1
    return -(-size // stride)


def padded(x, mode: str, kernel: int, stride: int = 1, dilation: int = 1):
    """Return pictures `[n, height, width, channels]` with both axes padded."""
    sides = [margins(mode, n, kernel, stride, dilation) for n in x.shape[1:3]]
    kind = "reflect" if mode == "reflect" else "constant"
    return np.pad(ops.convert_to_numpy(x), [(0, 0), *sides, (0, 0)], mode=kind)


def filtered(x, kernel, mode: str):
    """Return pictures behind one filter `[k, k, in, out]`."""
    return ops.conv(padded(x, mode, kernel.shape[0]), kernel, padding="valid")


def size_of_layer(mode: str, size: int, kernel: int, stride: int, dilation: int) -> int:
    """Return what a layer of Keras makes of an axis: by its own padding, where it has that."""
    given = 1, kernel, stride
    if mode in ("valid", "same", "causal"):
        x = np.zeros((1, size, 1), "float32")
        return layers.Conv1D(*given, padding=mode, dilation_rate=dilation)(x).shape[1]
    x = padded(np.zeros((1, size, size, 1), "float32"), mode, kernel, stride, dilation)
    return layers.Conv2D(*given, dilation_rate=dilation)(x).shape[1]


@dataclasses.dataclass
class Config(DataStudy):
    """Check the formulas of output sizes on layers, and measure what happens at borders."""

    image_size: int = 32
    kernel: int = 5
    """Side of the mean filter."""
    shapes: int = 60
    """Random sizes, kernels, strides and dilations that the formulas are tried on."""

    inches = (12, 3)

    def measure(self, seed):
        random, table = np.random.default_rng(seed), {}
        (x, _), _, _ = self.load(seed)
        x, cut, reach = x[:200], self.image_size // 4, self.kernel // 2
        mean = np.zeros((self.kernel, self.kernel, x.shape[-1], x.shape[-1]), "float32")
        mean[:] = np.eye(x.shape[-1]) / self.kernel**2
        inner = x[:, cut:-cut, cut:-cut]
        # What the filter would say if it saw the rest of the picture.
        truth = ops.convert_to_numpy(filtered(x, mean, "same"))[:, cut:-cut, cut:-cut]
        ring = np.ones(inner.shape[1:3], bool)
        ring[reach:-reach, reach:-reach] = False
        kernels = [
            random.normal(0, (2 / (9 * n)) ** 0.5, (3, 3, n, 16)).astype("float32")
            for n in (1, 16, 16, 16)
        ]
        pictures = {"the picture": inner[0]}
        for mode in MODES:
            wrong = 0
            for _ in range(self.shapes):
                kernel, size = random.integers(1, 6), random.integers(20, 40)
                stride, dilation = random.permutation([random.integers(1, 4), 1])
                given = int(size), int(kernel), int(stride), int(dilation)
                wrong += output_size(mode, *given) != size_of_layer(mode, *given)
            table[mode] = {"wrong sizes": wrong, "28 behind 5x5": output_size(mode, 28, 5)}
            found = ops.convert_to_numpy(filtered(inner, mean, mode))
            pictures[mode] = found[0]
            if found.shape == truth.shape:
                error = np.square(found - truth)[:, ring].mean() ** 0.5
                table[mode]["error at the border"] = error / truth[:, ring].std()
                flat = np.ones((1, 24, 24, 1), "float32")
                for kernel in kernels:
                    flat = ops.relu(filtered(flat, kernel, mode))
                flat = ops.convert_to_numpy(flat)
                table[mode]["a flat picture varies"] = flat.std((1, 2)).mean() / flat.mean()
        return table, pictures

    def draw(self, figure, rows, drawn):
        for axes, (name, picture) in zip(figure.subplots(1, 6), drawn[0].items(), strict=True):
            axes.imshow(picture[..., 0], cmap="gray")
            axes.set_title(f"{name}\n{picture.shape[0]}x{picture.shape[1]} pixels", fontsize=10)
            axes.set(xlabel="x, pixels", ylabel="y, pixels")
        figure.suptitle(f"A {self.kernel}x{self.kernel} mean filter under each padding")

    def judge(self, rows, spread):
        wrong = sum(cells["wrong sizes"] for cells in rows.values())
        same, reflect = (rows[mode] for mode in ("same", "reflect"))
        errors = [cells["error at the border"] for cells in (same, reflect)]
        unsure = [spread[mode]["error at the border"] for mode in ("same", "reflect")]
        varies = [cells["a flat picture varies"] for cells in (same, reflect)]
        return [
            Outcome(
                "Output sizes follow from size, kernel, stride, dilation and padding alone.",
                f"{wrong:.0f} of {self.shapes * len(MODES)} random layers differ from the formula.",
                wrong == 0,
            ),
            Outcome(
                "Reflection keeps borders truer than zeros do.",
                f"The error at the border is {errors[0]:.3f} of the spread with zeros, "
                f"{errors[1]:.3f} with reflection.",
                errors[1] + unsure[1] < errors[0] - unsure[0],
            ),
            Outcome(
                "Zeros tell a network where the border is; reflection does not.",
                f"Behind four random layers a flat picture varies by {varies[0]:.0%} of its mean "
                f"with zeros, by {varies[1]:.1g} with reflection.",
                varies[0] > 0.05 and varies[1] < 1e-4,
            ),
        ]


if __name__ == "__main__":
    main(Config)
