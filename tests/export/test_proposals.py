"""Files that take proposals beside the picture: exported and used from the command line."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from tiffin import layers
from tiffin.export import cli, load
from tiffin.export.detections import find

SIDE, LABELS = 64, ("red", "green", "blue")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a folder with a detector of bright regions, six files of it, and some pictures."""
    folder = tmp_path_factory.mktemp("proposals")
    image, given = (
        keras.Input((SIDE, SIDE, 3), name="image"),
        keras.Input((40, 4), name="proposals"),
    )
    x = layers.RoIAlign(1, samples=6)(keras.layers.Rescaling(1 / 255)(image), given)
    x = ops.reshape(x, (-1, 3))
    logits, deltas = keras.layers.Dense(3, name="logits"), keras.layers.Dense(12, name="deltas")
    judged = layers.DecodeRegions((SIDE, SIDE), activation="sigmoid")
    boxes, scores = judged(logits(x), deltas(x), given)
    found = layers.NonMaxSuppression(8, 0.3, 0.3, 40, name="detections")(boxes, scores)
    model = keras.Model({"image": image, "proposals": given}, found, name="bright")
    logits.set_weights([20 * np.eye(3, dtype="float32"), np.full(3, -12.0)])
    deltas.set_weights([np.zeros((3, 12)), np.zeros(12)])
    model.save(folder / "bright.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(12):
        Image.fromarray(picture(i)[0]).save(pictures / f"{i:02}.png")
    words = [str(folder / "bright.keras"), str(folder / "out"), "--calibration", str(pictures)]
    cli.parse(cli.Export, words, "export")
    return folder


def picture(seed: int):
    """Return a dark picture with two bright rectangles, and for each its class and box."""
    random = np.random.default_rng(seed)
    pixels = np.full((SIDE, SIDE, 3), 20, np.uint8)
    objects = []
    for left in (4, 36):
        y, height, width = random.integers(4, 30), random.integers(16, 28), random.integers(16, 24)
        kind = random.integers(3)
        pixels[y : y + height, left : left + width, kind] = random.integers(210, 245)
        objects.append((int(kind), [y, left, y + height, left + width]))
    noise = random.integers(-2, 3, pixels.shape)  # no two regions are equally bright
    return (pixels + noise).astype(np.uint8), objects


def test_all_files_find_the_objects_among_the_proposals(exported):
    manifest = json.loads((exported / "out" / "manifest.json").read_text())
    assert manifest["task"] == "detection" and manifest["verified_on"] == "12 calibration inputs"
    assert [(port["name"], port["dtype"]) for port in manifest["inputs"]] == [
        ("image", "uint8"),
        ("proposals", "float32"),
    ]
    assert manifest["inputs"][1]["units"] == "pixels"
    sample = (exported / "out" / "samples" / "python_litert.py").read_text()
    assert '"proposals": np.zeros([1, 40, 4], np.float32)' in sample
    assert "regions [y1, x1, y2, x2] in pixels of the image" in sample
    files = [exported / "out" / file["file"] for file in manifest["files"]]
    assert len(files) == 6 and not manifest["failed"]
    for file in [exported / "bright.keras", *files]:
        runner = load(file)
        for seed in range(20, 24):
            pixels, objects = picture(seed)
            found = find(runner, pixels, 0.5)
            for kind, box in objects:
                apart = [
                    np.abs(np.subtract(one.box, box)).max() for one in found if one.kind == kind
                ]
                assert min(apart) <= 3
            for one in found:  # a strip of an object is bright, too
                y, x = np.add(one.box[:2], one.box[2:]) / 2
                assert any(
                    kind == one.kind and top - 2 < y < bottom + 2 and left - 2 < x < right + 2
                    for kind, (top, left, bottom, right) in objects
                )


def test_predict_searches_for_proposals_itself(exported, tmp_path, capsys):
    for file in ("bright.keras", "out/bright_int8.onnx", "out/bright_int8.tflite"):
        words = [str(exported / file), str(exported / "pictures" / "03.png")]
        cli.parse(cli.Predict, [*words, "--output", str(tmp_path)], "predict")
        said = capsys.readouterr().out
        assert "found, drawn in" in said
        assert all(LABELS[kind] in said for kind, _ in picture(3)[1])
    assert Image.open(tmp_path / "03.png").size == (SIDE, SIDE)
