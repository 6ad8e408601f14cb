"""Seconds to export, side by side in one run: ours, Keras' own `model.export`, and torch.onnx.

    python benchmarks/export_time.py [--models resnet50 mobilenet_v2] [--repeat 1]

float32 only, input 224x224, batch open, from a model in memory to a file on disk. The last line is
the whole export stage: six files of MobileNetV2, run and compared, with 100 calibration images.
Needs torch, torchvision and onnxscript for the last column.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np

from tiffin.recipes.engine import registry


def ours(model, form: str, path: Path) -> None:
    """Convert with tiffin, without the verification that `export` adds."""
    from tiffin.export.convert import Interface, trace
    from tiffin.export.onnx_file import to_onnx
    from tiffin.export.tflite_file import to_tflite

    interface = Interface(model, input_dtype="float32", logits=True)
    if form == "onnx":
        path.write_bytes(to_onnx(interface, trace(interface, None)).SerializeToString())
    else:
        path.write_bytes(to_tflite(interface, trace(interface, 1)))


def by_keras(model, form: str, path: Path) -> None:
    """Convert with Keras' own export."""
    if form == "onnx":
        model.export(path, format="onnx", verbose=False)
    else:
        model.export(path, format="litert", verbose=False)


def by_torch(name: str, path: Path) -> None:
    """Convert torchvision's or pytorchcv's model of the same name with torch.onnx."""
    import torch
    from peers import peer

    model = peer(name).eval()
    size = registry.find(name).variants[name].size
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, size, size),),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def called(model):
    """Return a model after one call: Keras refuses to export one that was never called."""
    model(np.zeros((1, *model.input_shape[1:]), np.float32))
    return model


def timed(function, *arguments) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--repeat", type=int, default=1, help="the fastest of so many is shown")
    options = parser.parse_args()
    from tiffin.export.documents import table
    from tiffin.recipes import build

    # Loading the libraries is nobody's conversion.
    warm = called(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)]))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for form in ("onnx", "tflite"):
            ours(warm, form, folder / f"warm.{form}")
            by_keras(warm, form, folder / f"warm_keras.{form}")
        rows = []
        for name in options.models:
            torch_seconds = min(
                timed(by_torch, name, folder / "torch.onnx") for _ in range(options.repeat)
            )
            for form in ("onnx", "tflite"):
                mine, theirs = [], []
                for _ in range(options.repeat):
                    # A model of its own for each: a second trace of the same one is cheaper.
                    mine.append(timed(ours, called(build(name)), form, folder / f"ours.{form}"))
                    theirs.append(
                        timed(by_keras, called(build(name)), form, folder / f"keras.{form}")
                    )
                ratio = f"{min(mine) / min(theirs):.2f}"
                beside = f"{torch_seconds:.1f}" if form == "onnx" else "-"
                rows.append([name, form, f"{min(mine):.1f}", f"{min(theirs):.1f}", ratio, beside])
        print("## Seconds to export beside Keras' own export and torch.onnx\n")
        print("```bash\npython benchmarks/export_time.py\n```\n")
        print(table(["model", "format", "tiffin", "Keras", "ratio", "torch.onnx"], rows))
        from tiffin.export import export

        images = np.random.default_rng(0).integers(0, 256, (100, 7, 7, 3), dtype=np.uint8)
        images = images.repeat(32, axis=1).repeat(32, axis=2)
        seconds = timed(
            lambda: export(
                build("mobilenet_v2"),
                folder / "six",
                calibration=images,
                normalization=(127.5, 127.5),
                say=lambda line: None,
            )
        )
        print(f"\nSix verified files of mobilenet_v2, 100 calibration images: {seconds:.1f} s.")


if __name__ == "__main__":
    main()
