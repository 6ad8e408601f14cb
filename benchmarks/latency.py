"""Latency of the exported files, side by side in one run: ours, Keras' own export, torch.onnx.

    python benchmarks/latency.py [--models resnet50 mobilenet_v2] [--threads 1 2] [--rounds 5]
    python benchmarks/latency.py --collection

`--collection` holds float32 ONNX files alone against torch.onnx, for every network that torchvision
or pytorchcv has too. Native input size, batch 1, each measurement in a fresh process, as files of
two runtimes in one process hinder each other by their threads. The files of a model take turns in
a new order each round, so that whatever else the machine does meets them alike; a ratio is the
median over the rounds of one file's time by another's in the same round. Needs torch, torchvision,
pytorchcv and onnxscript.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

# Above the next import: it sets the backend.
import numpy as np
from export_time import by_keras, by_torch, called
from peers import OPTIONS, PEERS

from tiffin.export import convert, onnx_file, tflite_file
from tiffin.export.benchmark import measure
from tiffin.export.documents import table
from tiffin.recipes import build


def interface(name: str) -> convert.Interface:
    """Return one network, float32 in and logits out."""
    model = called(build(name, **OPTIONS.get(name, {})))
    return convert.Interface(model, input_dtype="float32", logits=True)


def pair(name: str, folder: Path) -> dict[str, Path]:
    """Export one network to float32 ONNX by us and by torch.onnx."""
    ours = interface(name)
    content = onnx_file.reduce(onnx_file.to_onnx(ours, convert.trace(ours, None)), "fp32", ours, {})
    paths = {"tiffin": folder / "tiffin.onnx", "torch.onnx": folder / "torch.onnx"}
    paths["tiffin"].write_bytes(content.SerializeToString())
    by_torch(name, paths["torch.onnx"])
    return paths


def converted(ours: convert.Interface, folder: Path) -> dict[str, Path]:
    """Write a network in both formats, in float32 and int8.

    Past the export stage's verdict: an untrained network need not survive int8, only run as fast.
    """
    height, width = ours.inputs[0].shape[:2]
    images = np.random.default_rng(0).integers(0, 256, (32, 7, 7, 3)).astype(np.float32)
    images = images.repeat(-(-height // 7), axis=1).repeat(-(-width // 7), axis=2)
    images = {"image": images[:, :height, :width]}
    made = {}
    for home, kind, content in (
        (onnx_file, "ONNX", onnx_file.to_onnx(ours, convert.trace(ours, None))),
        (tflite_file, "TFLite", tflite_file.to_tflite(ours, convert.trace(ours, 1))),
    ):
        for precision in ("fp32", "int8"):
            reduced = home.reduce(content, precision, ours, images)
            data = reduced if kind == "TFLite" else reduced.SerializeToString()
            path = made[f"{kind} {precision}"] = folder / f"{precision}.{kind.lower()}"
            path.write_bytes(data)
    return made


def files(name: str, folder: Path) -> dict[str, Path]:
    """Export one network by everyone; return the files by what the table calls them."""
    ours = interface(name)
    made = converted(ours, folder)
    by_keras(ours.model, "onnx", folder / "keras.onnx")
    by_keras(ours.model, "tflite", folder / "keras.tflite")
    by_torch(name, folder / "torch.onnx")
    return {
        "tiffin ONNX fp32": made["ONNX fp32"],
        "Keras ONNX fp32": folder / "keras.onnx",
        "torch.onnx fp32": folder / "torch.onnx",
        "tiffin TFLite fp32": made["TFLite fp32"],
        "Keras TFLite fp32": folder / "keras.tflite",
        "tiffin ONNX int8": made["ONNX int8"],
        "tiffin TFLite int8": made["TFLite int8"],
    }


def race(paths: dict[str, Path], threads: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the median milliseconds of a call in each round, by file."""
    times = {what: [] for what in paths}
    order = [*paths]
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for what in order:
            times[what].append(measure(paths[what], threads, seconds=0.7)["median_ms"])
    return {what: np.array(values) for what, values in times.items()}


def beside_everyone(names: list[str], threads: list[int], rounds: int) -> None:
    """Print the table of every file and precision."""
    print("## Latency beside Keras' own export and torch.onnx\n")
    print("```bash\npython benchmarks/latency.py\n```\n")
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            paths = files(name, Path(folder))
            for count in threads:
                times = race(paths, count, rounds)
                for what, values in times.items():
                    form = what.split()[1]
                    rivals = [f"Keras {form} fp32", "torch.onnx fp32", f"tiffin {form} fp32"]
                    ratios = [
                        f"{np.median(values / times[rival]):.2f}"
                        if what.startswith("tiffin") and rival != what
                        else "-"
                        for rival in rivals
                    ]
                    rows.append([name, count, what, f"{np.median(values):.2f}", *ratios])
    rivals = ["by Keras' same format", "by torch.onnx", "by our fp32"]
    print(table(["model", "threads", "file", "ms", *rivals], rows))


def beside_torch(names: list[str], threads: list[int], rounds: int) -> None:
    """Print the table of the collection, and the ratios' geometric mean."""
    print("## Latency of the collection beside torch.onnx\n")
    print("```bash\npython benchmarks/latency.py --collection\n```\n")
    rows, ratios = [], []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            paths = pair(name, Path(folder))
            for count in threads:
                ours, theirs = race(paths, count, rounds).values()
                ratios.append(np.median(ours / theirs))
                milliseconds = [f"{np.median(values):.2f}" for values in (ours, theirs)]
                rows.append([name, count, *milliseconds, f"{ratios[-1]:.2f}"])
                print(rows[-1], file=sys.stderr)
    print("Float32 ONNX files, milliseconds a picture.\n")
    print(table(["model", "threads", "tiffin", "torch.onnx", "ratio"], rows))
    mean = np.exp(np.mean(np.log(ratios)))
    print(f"\nGeometric mean of the ratios {mean:.3f}, largest {max(ratios):.2f}.")


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--collection", action="store_true", help="ONNX beside torch.onnx, all")
    parser.add_argument("--models", nargs="+", help="default: resnet50 and mobilenet_v2, or all")
    parser.add_argument("--threads", nargs="+", type=int, help="default: 1 2, or 1")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.collection:
        beside_torch(options.models or [*PEERS], options.threads or [1], options.rounds)
    else:
        names = options.models or ["resnet50", "mobilenet_v2"]
        beside_everyone(names, options.threads or [1, 2], options.rounds)


if __name__ == "__main__":
    main()
