"""What convolutions cost: weights, multiply-accumulates, and milliseconds of the exported files.

Standard 3x3 against a 1x1 bottleneck (He et al. 2015, arXiv 1512.03385, figure 5), grouped (Xie et
al. 2017, arXiv 1611.05431) and depthwise separable ones (Howard et al. 2017, arXiv 1704.04861,
section 3.1); that MACs do not tell the time: Ma et al. 2018, arXiv 1807.11164.

    python recipes/studies/conv_cost.py
"""

import dataclasses
import tempfile
from pathlib import Path

import keras
from keras import layers

from tiffin import export
from tiffin.export.benchmark import measure
from tiffin.layers import GroupedConv2D
from tiffin.recipes.engine import report, summary
from tiffin.recipes.engine.study import Outcome, Study, main

CLAIM = "Depthwise separable convolutions need an eighth of the MACs, and so of the time"
KINDS = ("standard 3x3", "1x1 bottleneck", "grouped, 8", "depthwise separable")
FILES = {"onnx": "ONNX", "tflite": "TFLite"}


def block(kind: str, x, channels: int):
    """Apply one kind of convolution that keeps shape and channels."""
    given = {"padding": "same", "use_bias": False}
    if kind == "1x1 bottleneck":
        x = layers.Conv2D(channels // 4, 1, use_bias=False)(x)
        x = layers.Conv2D(channels // 4, 3, **given)(x)
        return layers.Conv2D(channels, 1, use_bias=False)(x)
    if kind == "grouped, 8":
        return GroupedConv2D(channels, 3, groups=8, **given)(x)
    if kind == "depthwise separable":
        x = layers.DepthwiseConv2D(3, **given)(x)
        return layers.Conv2D(channels, 1, use_bias=False)(x)
    return layers.Conv2D(channels, 3, **given)(x)


def network(kind: str, size: int, channels: int, depth: int) -> keras.Model:
    """Build a stack of convolutions of one kind with ReLU between them."""
    x = features = keras.Input((size, size, channels), name="features")
    for _ in range(depth):
        x = layers.ReLU()(block(kind, x, channels))
    return keras.Model(features, x, name="stack")


def weights_by_formula(kind: str, channels: int) -> float:
    """Return what textbooks count for one block."""
    c = channels
    return {
        "standard 3x3": 9 * c * c,
        "1x1 bottleneck": 2 * c * (c // 4) + 9 * (c // 4) ** 2,
        "grouped, 8": 9 * c * c // 8,
        "depthwise separable": 9 * c + c * c,
    }[kind]


@dataclasses.dataclass
class Config(Study):
    """Export stacks of four kinds of convolution, and time the files in their runtimes."""

    size: int = 28
    """Height and width of the map."""
    channels: int = 64
    """Of the map, a multiple of 8."""
    depth: int = 4
    """Convolutions, one behind the other."""
    seconds: float = 1.0
    """For which each file is run."""

    def measure(self, seed):
        table = {}
        for kind in KINDS:
            model = network(kind, self.size, self.channels, self.depth)
            weights = model.count_params()
            macs = sum(row.macs for row in summary.rows(model))
            table[kind] = {
                "weights": weights,
                "formula": self.depth * weights_by_formula(kind, self.channels),
                "million MACs": macs / 1e6,
            }
            with tempfile.TemporaryDirectory() as folder:
                export.export(model, folder, precisions=("fp32",), name="stack", say=lambda _: None)
                for form, name in FILES.items():
                    speed = measure(Path(folder) / f"stack_fp32.{form}", 1, self.seconds)
                    table[kind][f"{name} ms"] = speed["median_ms"]
        first = table[KINDS[0]]
        for kind in KINDS:
            table[kind]["MACs, share"] = table[kind]["million MACs"] / first["million MACs"]
            for name in FILES.values():
                table[kind][f"{name} time, share"] = table[kind][f"{name} ms"] / first[f"{name} ms"]
        return table, None

    def draw(self, figure, rows, drawn):
        axes = figure.subplots()
        names = ("MACs", "ONNX time", "TFLite time")
        shares = {name: [100 * rows[kind][f"{name}, share"] for kind in KINDS] for name in names}
        report.bars(axes, KINDS, shares)
        axes.set(xlabel="kind of convolution", ylabel="% of the standard 3x3")
        axes.set_title(
            f"{self.depth} convolutions of {self.size}x{self.size}x{self.channels}, one thread"
        )
        axes.legend()

    def judge(self, rows, spread):
        wrong = sum(abs(cells["weights"] - cells["formula"]) for cells in rows.values())
        cells = rows["depthwise separable"]
        share = 1 / self.channels + 1 / 9
        times = [cells[f"{name} time, share"] for name in FILES.values()]
        ratios = [
            rows[kind][f"{name} time, share"] / rows[kind]["MACs, share"]
            for kind in KINDS
            for name in FILES.values()
        ]
        return [
            Outcome(
                "A depthwise separable convolution needs 1/channels + 1/9 of the standard one's "
                "MACs.",
                f"{cells['MACs, share']:.4f} against {share:.4f}; the weights of all kinds differ "
                f"from their formulas by {wrong:.0f}.",
                abs(cells["MACs, share"] - share) < 1e-9 and wrong == 0,
            ),
            Outcome(
                "Latency follows MACs.",
                f"It takes {cells['MACs, share']:.0%} of the MACs, {times[0]:.0%} of the time in "
                f"onnxruntime and {times[1]:.0%} in LiteRT; the kinds take {min(ratios):.2f} to "
                f"{max(ratios):.2f} times what MACs promise.",
                min(ratios) > 0.8 and max(ratios) < 1.25,
            ),
        ]


if __name__ == "__main__":
    main(Config)
