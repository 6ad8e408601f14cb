"""The three commands, as a user types them."""

import importlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tiffin.export import cli
from tiffin.export.errors import InputError


def command(*words, cwd=None) -> subprocess.CompletedProcess:
    """Run in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tiffin.export", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


def here(capsys, *words) -> tuple[int, str, str]:
    """Run in this process, where Keras is loaded already."""
    name, *rest = map(str, words)
    status = cli.run(lambda: cli.parse(cli.COMMANDS[name], rest, f"tiffin {name}"))
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def pictures(tmp_path, colours):
    """Ten pictures a class, in folders named like the labels, and one that is broken."""
    for index, (image, target) in enumerate(zip(colours.images, colours.targets, strict=True)):
        folder = tmp_path / "pictures" / colours.labels[target]
        folder.mkdir(parents=True, exist_ok=True)
        if index < 30:
            Image.fromarray(image).resize((40, 30)).save(folder / f"{index}.png")
    (tmp_path / "pictures" / "red" / "broken.jpg").write_text("no picture")
    return tmp_path / "pictures"


@pytest.mark.parametrize("file", ["model.keras", "colours_int8.onnx", "colours_fp16.tflite"])
def test_predict_names_the_class(file, exported, pictures, capsys):
    status, out, err = here(capsys, "predict", exported / file, pictures)
    assert status == 0
    blocks = re.findall(r"^(\S.*)\n +([\d.]+)%  (\S+)", out, re.MULTILINE)
    assert len(blocks) == 30
    for path, percent, label in blocks:
        assert os.path.basename(os.path.dirname(path)) == label
        assert float(percent) > 34
    assert err.count("Skipped:") == 1 and "broken.jpg" in err


def test_predict_agrees_between_kinds(exported, pictures, capsys):
    picture = pictures / "blue" / "2.png"
    shown = [
        here(capsys, "predict", exported / file, picture)[1].split()[1]
        for file in ("model.keras", "colours_fp32.onnx", "colours_fp32.tflite")
    ]
    assert len(set(shown)) == 1


def test_predict_applies_softmax_to_logits(tmp_path, capsys):
    import keras

    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, keras.ops.concatenate([x, -x], axis=-1), name="two")
    model.save(tmp_path / "two.keras")
    # Grey 1 of 255: logits 1 and -1, of which a softmax makes 88.1 %.
    Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / "grey.png")
    status, out, _ = here(capsys, "predict", tmp_path / "two.keras", tmp_path / "grey.png")
    assert status == 0
    assert "88.1%  class 0" in out and "11.9%  class 1" in out
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    status, _, err = here(capsys, "predict", tmp_path / "two.keras", tmp_path / "grey.png")
    assert status == 2 and "2 classes, but there are 3 labels" in err


def test_predict_refuses(exported, tmp_path, capsys):
    file = exported / "colours_fp32.onnx"
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "more.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for images, reason in (
        ([tmp_path / "text.jpg"], "text.jpg is no image"),
        ([tmp_path / "text.jpg", tmp_path / "more.jpg"], "None of the 2 images could be read"),
        ([tmp_path / "empty"], "There is no image in the folder"),
        ([], "Name the images"),
    ):
        status, out, err = here(capsys, "predict", file, *images)
        assert (status, out) == (2, "") and reason in err
        assert "Traceback" not in err


def test_benchmark_prints_one_table(exported, capsys):
    words = ("--threads", 1, 2, "--seconds", 0.05)
    files = (exported / "colours_fp32.onnx", exported / "colours_int8.tflite")
    status, out, _ = here(capsys, "benchmark", *files, *words)
    assert status == 0
    rows = [line.split() for line in out.splitlines() if "colours_" in line]
    assert [(r[0], r[2]) for r in rows] == [(f.name, t) for f in files for t in "12"]
    for row in rows:
        median, p95, runs, memory = map(float, row[3:])
        assert 0 < median <= p95 and runs >= 5 and 1 < memory < 500


def test_benchmark_goes_on_after_a_bad_file(exported, tmp_path, capsys):
    bad = tmp_path / "bad.onnx"
    bad.write_text("no model")
    file = exported / "colours_fp32.onnx"
    status, out, err = here(capsys, "benchmark", bad, file, "--seconds", 0.05)
    assert status == 2 and "bad.onnx cannot be read" in err and "colours_fp32.onnx" in out
    status, _, err = here(capsys, "benchmark", exported / "samples")
    assert status == 2 and "no .keras, .onnx, .tflite file in the folder" in err


def test_peak_memory_is_that_of_the_file(tmp_path):
    """40 MB of weights must show; a large parent process must not hide them."""
    import onnx

    from tiffin.export.benchmark import measure

    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((3200, 3200), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, 1, ["batch", 3200]) for n in "xy")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "wide", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "wide.onnx")
    result = measure(tmp_path / "wide.onnx", seconds=0.05)
    assert 40 < result["peak_memory_mb"] < 400
    assert result["bytes"] == (tmp_path / "wide.onnx").stat().st_size


def test_export_a_run_folder_with_labelled_pictures(exported, pictures, colours, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.keras").write_bytes((exported / "model.keras").read_bytes())
    (run / "labels.txt").write_text("\n".join(colours.labels), encoding="utf-8")
    words = ("--calibration", pictures, "--precisions", "fp32", "int8", "--formats", "onnx")
    status, out, err = here(capsys, "export", run, tmp_path / "phone", *words, "--name", "c")
    assert status == 0, err
    assert "Keras itself: accuracy 100.00%" in out
    assert f"Labels: {run / 'labels.txt'}" in out
    names = {p.name for p in (tmp_path / "phone").iterdir()}
    assert {"c_fp32.onnx", "c_int8.onnx", "labels.txt", "manifest.json", "README.md"} <= names
    assert "broken.jpg" in err


def test_calibration_and_evaluation_are_different_pictures(pictures, colours):
    from tiffin.export.runtime import Tensor

    tensor = Tensor("image", (None, 16, 16, 3), "uint8")
    calibration, (images, targets) = cli._read_calibration(pictures, colours.labels, tensor)
    assert len(calibration) == 16 and len(images) == 14
    seen = {image.tobytes() for image in calibration}
    assert not seen & {image.tobytes() for image in images}
    np.testing.assert_array_equal(images.mean((1, 2)).argmax(1), targets)
    calibration, evaluation = cli._read_calibration(pictures, None, tensor)
    assert len(calibration) == 30 and evaluation is None


def test_export_needs_calibration_for_int8(exported, tmp_path, capsys):
    status, _, err = here(capsys, "export", exported / "model.keras", tmp_path / "phone")
    assert status == 2 and "--calibration FOLDER" in err


def test_custom_layers_come_from_a_named_module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('mine')\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2.0 * x\n"
    )
    import keras

    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")
    pool = keras.layers.GlobalAveragePooling2D()
    keras.Sequential([keras.Input((8, 8, 3)), mine.Twice(), pool]).save(tmp_path / "m.keras")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    done = command("predict", "m.keras", "red.png", "--imports", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "100.0%  class 0" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["tf"], ((127.5,), (127.5,))),
        (["imagenet"], ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))),
        (["0", "255"], ((0.0,), (255.0,))),
        (["1", "2", "3", "4", "5", "6"], ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))),
    ],
)
def test_normalization(words, expected):
    assert cli.parse_normalization(words) == expected


@pytest.mark.parametrize("words", [["imagnet"], ["1"], ["1", "0"], ["1", "2", "3", "4"]])
def test_wrong_normalization(words):
    with pytest.raises(InputError, match=r"did you mean 'imagenet'|2 or 6 numbers"):
        cli.parse_normalization(words)


def test_endings(capsys):
    def interrupted():
        raise KeyboardInterrupt

    def mistaken():
        raise InputError("What, where, how to mend.")

    assert cli.run(lambda: None) == 0
    assert cli.run(interrupted) == 130
    assert cli.run(mistaken) == 2
    assert capsys.readouterr().err == "\nInterrupted.\nerror: What, where, how to mend.\n"


def test_help_loads_no_runtime():
    heavy = "{'keras', 'tensorflow', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'tyro'}"
    code = f"import sys, tiffin.export.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"
    done = command("predict", "--help")
    assert done.returncode == 0 and "tiffin predict phone/" in done.stdout
    done = command("predct")
    assert done.returncode == 2 and "did you mean 'predict'?" in done.stderr
    done = command("predict", "a.onnx", "b.png", "--import", "x")
    assert done.returncode == 2 and "--imports" in done.stderr


def test_labels_of_any_editor(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n\r\n")
    assert cli.read_label_file(tmp_path / "labels.txt") == ["cat", "dog"]
