"""Latency of detectors with suppression in the file, side by side in one run with torch.onnx.

    python benchmarks/detection_latency.py [--threads 1] [--rounds 5]

SSDLite with MobileNetV2 at 320 and YOLOv3-tiny at 416, float32 and int8, beside torchvision's
SSDLite with MobileNetV3 at 320 through torch.onnx; and SSD300 of 20 classes with and without the
suppression of its 8,732 boxes. The networks are untrained. Ours take the same time whatever is in
the picture; torchvision's suppression takes longer the more boxes pass its score threshold, so that
it stands twice: when all do, and when only those of its coarsest map do (6 boxes of 90 classes).
Needs torch, torchvision and onnxscript.
"""

import argparse
import tempfile
from pathlib import Path

import keras

# Above the next import: it sets the backend.
import numpy as np
from latency import converted, race
from peers import declare_operators

from tiffin.export import convert
from tiffin.export.documents import table
from tiffin.recipes.engine import registry

THEIRS = ("torchvision SSDLite fp32, all boxes pass", "torchvision SSDLite fp32, few pass")
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


def by_torch(path: Path, seldom_sure: bool) -> None:
    """Convert torchvision's SSDLite; its scores all pass the threshold, or those of one cell."""
    import torch

    if declare_operators():

        @torch.library.impl("torchvision::nms", "CPU")
        def nms(boxes, scores, threshold):  # runs in the tracing only, where any choice will do
            return scores.argsort(descending=True)[:300]

    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    from torchvision.ops import boxes as box_ops

    def batched_nms(boxes, scores, classes, threshold):
        """As torchvision's, which refuses to be traced where its operators are lacking."""
        apart = classes.to(boxes) * (boxes.max() + 1)
        return torch.ops.torchvision.nms(boxes + apart[:, None], scores, threshold)

    box_ops.batched_nms = batched_nms
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    if seldom_sure:
        for head in model.head.classification_head.module_list[:-1]:
            with torch.no_grad():
                head[-1].bias.view(-1, 91)[:, 0] += 20.0
    torch.onnx.export(model, ([torch.rand(3, 320, 320)],), path, dynamo=False, opset_version=17)


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
        paths = {name: home / f"torch{i}.onnx" for i, name in enumerate(THEIRS)}
        for path, seldom_sure in zip(paths.values(), (False, True), strict=True):
            by_torch(path, seldom_sure)
        for name, (size, classes) in OURS.items():
            (home / name).mkdir()
            made = converted(detector(name, size, classes), home / name)
            paths |= {f"{name} {what}": path for what, path in made.items()}
        times = race(paths, options.threads, options.rounds)
        for what, values in times.items():
            ratios = [f"{np.median(values / times[rival]):.2f}" for rival in THEIRS]
            rows.append([what, f"{np.median(values):.2f}", *ratios])
        print(table(["file", "ms", "by theirs, all boxes", "by theirs, few"], rows))
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
