"""Latency of the exported files, side by side in one run: ours, Keras' own export, torch.onnx.

    python benchmarks/latency.py [--models resnet50 mobilenet_v2] [--threads 1 2] [--rounds 30]

Input 224x224, batch 1. All files of a model are loaded in one process and take turns, a few calls
each, round after round, so that whatever else the machine does meets them all alike. A ratio is the
median over the rounds of one file's time by another's in the same round. Needs torch, torchvision
and onnxscript.
"""

import argparse
import tempfile
from pathlib import Path

# Above the next import: it sets the backend.
import numpy as np
from export_time import by_keras, by_torch, called

from tiffin.export import export, runtime
from tiffin.export.benchmark import random_batch, time_calls
from tiffin.export.documents import table
from tiffin.recipes import build

CALLS = 3


def files(name: str, folder: Path) -> dict[str, Path]:
    """Export one network by everyone; return the files by what the table calls them."""
    images = np.random.default_rng(0).integers(0, 256, (32, 7, 7, 3), dtype=np.uint8)
    images = images.repeat(32, axis=1).repeat(32, axis=2)
    model = called(build(name))
    export(
        model,
        folder,
        precisions=("fp32", "int8"),
        calibration=images.astype(np.float32),
        input_dtype="float32",
        say=lambda line: None,
    )
    by_keras(model, "onnx", folder / "keras.onnx")
    by_keras(model, "tflite", folder / "keras.tflite")
    by_torch(name, folder / "torch.onnx")
    return {
        "tiffin ONNX fp32": folder / f"{name}_fp32.onnx",
        "Keras ONNX fp32": folder / "keras.onnx",
        "torch.onnx fp32": folder / "torch.onnx",
        "tiffin TFLite fp32": folder / f"{name}_fp32.tflite",
        "Keras TFLite fp32": folder / "keras.tflite",
        "tiffin ONNX int8": folder / f"{name}_int8.onnx",
        "tiffin TFLite int8": folder / f"{name}_int8.tflite",
    }


def race(paths: dict[str, Path], threads: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the best milliseconds of a few calls in each round, by file."""
    runners = {what: runtime.load(path, threads) for what, path in paths.items()}
    inputs = {what: random_batch(runner) for what, runner in runners.items()}
    times = {what: [] for what in runners}
    for turn in range(rounds + 1):
        for what, runner in runners.items():
            best = min(time_calls(runner, inputs[what], 0, CALLS))
            if turn:  # the first round warms up
                times[what].append(best * 1e3)
    return {what: np.array(values) for what, values in times.items()}


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    print("## Latency beside Keras' own export and torch.onnx\n")
    print("```bash\npython benchmarks/latency.py\n```\n")
    rows = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            paths = files(name, Path(folder))
            for threads in options.threads:
                times = race(paths, threads, options.rounds)
                others = [w for w in times if "tiffin" not in w]
                rival = np.minimum.reduce([times[w] for w in others])
                base = times["tiffin TFLite fp32"]
                for what, values in times.items():
                    int8 = f"{np.median(values / base):.2f}" if "int8" in what else "-"
                    rows.append(
                        [
                            name,
                            threads,
                            what,
                            f"{np.median(values):.2f}",
                            f"{np.median(values / rival):.2f}",
                            int8,
                        ]
                    )
    header = [
        "model",
        "threads",
        "file",
        "ms",
        "by the best of the others",
        "by tiffin TFLite fp32",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
