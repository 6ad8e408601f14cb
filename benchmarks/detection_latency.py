"""Latency of detectors with suppression in the file, side by side in one run with torch.onnx.

    python benchmarks/detection_latency.py [--threads 1] [--rounds 5]

SSDLite with MobileNetV2 at 320 and YOLOv3-tiny at 416, float32 and int8, beside torchvision's
SSDLite with MobileNetV3 at 320 through torch.onnx; and SSD300 of 20 classes with and without the
suppression of its 8,732 boxes. Untrained networks: all boxes pass the score threshold, so that the
suppression has all it can have to do. Needs torch, torchvision and onnxscript.
"""

import argparse
import tempfile
from pathlib import Path

import keras

# Above the next import: it sets the backend.
import numpy as np
from latency import converted, race

from tiffin.export import convert
from tiffin.export.documents import table
from tiffin.recipes.engine import registry

OURS = {"ssdlite320_mobilenet_v2": (320, 90), "yolov3_tiny": (416, 80)}


def detector(name: str, size: int, classes: int, suppress: bool = True) -> convert.Interface:
    """Return a detector, raw pixels in; without suppression up to all boxes and scores."""
    config = registry.find(name).load().Config(model=name)
    network = config.network((size, size, 3), classes, (127.5, 127.5))
    if suppress:
        model = config.inference(network)
    else:
        body = config.body(network)
        decoded = config.decode(body.output)
        model = keras.Model(body.input, dict(zip(("all", "sure"), decoded, strict=True)))
    model(np.zeros((1, size, size, 3), np.float32))
    return convert.Interface(model, input_dtype="float32")


def by_torch(path: Path) -> None:
    """Convert torchvision's SSDLite."""
    import torch
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    picture = torch.rand(3, 320, 320)
    torch.onnx.export(model, ([picture],), path, dynamo=False, opset_version=17)


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("## Latency of detectors\n")
    print("```bash\npython benchmarks/detection_latency.py\n```\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        paths = {"torchvision SSDLite ONNX fp32": home / "torch.onnx"}
        by_torch(paths["torchvision SSDLite ONNX fp32"])
        for name, (size, classes) in OURS.items():
            (home / name).mkdir()
            made = converted(detector(name, size, classes), home / name)
            paths |= {f"{name} {what}": path for what, path in made.items()}
        times = race(paths, options.threads, options.rounds)
        theirs = times["torchvision SSDLite ONNX fp32"]
        for what, values in times.items():
            rows.append([what, f"{np.median(values):.2f}", f"{np.median(values / theirs):.2f}"])
        print(table(["file", "ms", "by torchvision's"], rows))
        paths = {}
        for suppress in (True, False):
            place = home / f"ssd{suppress}"
            place.mkdir()
            made = converted(detector("ssd300_vgg16", 300, 20, suppress), place)
            paths |= {(what, suppress): path for what, path in made.items()}
        times = race(paths, options.threads, options.rounds)
    print("\nSSD300, 8,732 boxes of 20 classes: what suppression takes of the whole.\n")
    kinds = [what for what, suppress in paths if suppress]
    rows = [
        [
            what,
            f"{np.median(times[what, True]):.1f}",
            f"{1 - np.median(times[what, False] / times[what, True]):.1%}",
        ]
        for what in kinds
    ]
    print(table(["file", "ms", "suppression"], rows))


if __name__ == "__main__":
    main()
