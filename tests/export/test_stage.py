"""The whole stage: what is published, what is refused and why, and what stays as it was."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import layers

import tiffin.export
from tiffin.export import export, onnx_file, pictures, runtime, stage, tflite_file, verify
from tiffin.export.errors import ExportError, InputError

LABELS = [f"class {i}" for i in range(10)]


def classifier(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, activation="relu", name="first"),
            layers.Conv2D(8, 3, activation="relu", name="second"),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ],
        name="small",
    )


def pixels(count=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)


def silent(line):
    pass


def test_six_files_with_their_measurements(tmp_path):
    model, inputs = classifier(), pixels(40)
    targets = model(inputs.astype("float32")).numpy().argmax(1)
    said = []
    manifest = export(
        model,
        tmp_path,
        calibration=inputs,
        evaluation=(inputs, targets),
        max_loss=0.1,
        labels=LABELS,
        name="net",
        say=said.append,
    )
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["reference"] == {"metric": "accuracy", "value": 1.0, "examples": 40}
    assert manifest["verified_on"] == "40 evaluation inputs"
    assert manifest["inputs"][0]["dtype"] == "uint8" and manifest["inputs"][0]["layout"] == "NHWC"
    assert manifest["outputs"] == [
        {"name": "probabilities", "shape": ["batch", 10], "dtype": "float32"}
    ]
    assert len(manifest["files"]) == len(said) == 6 and not manifest["failed"]
    assert said[0].startswith("net_fp32.onnx: verified, ") and "accuracy 100.00%, " in said[0]
    wanted = keras.ops.softmax(model(inputs.astype("float32"))).numpy()
    for entry in manifest["files"]:
        content = (tmp_path / entry["file"]).read_bytes()
        assert entry["file"] == f"net_{entry['precision']}.{entry['format']}"
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content) and entry["verified"]
        assert entry["latency_ms"]["median"] > 0 and entry["peak_memory_mb"] > 0
        outputs = runtime.load(tmp_path / entry["file"])({"image": inputs})["probabilities"]
        difference = float(np.abs(np.float64(outputs) - wanted).max())
        assert entry["max_difference"] == pytest.approx(difference, abs=1e-5)
        assert entry["agreement"] == np.mean(outputs.argmax(1) == targets) == entry["metric"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("probed, examples", [(2**30, 4), (1, 1)])
def test_a_broken_file_is_not_published_and_its_layer_is_named(
    probed, examples, tmp_path, monkeypatch, without_speed
):
    """The kernel of one layer is damaged on its way; only that format's files must fail."""
    model, real, drawn, counts = classifier(), onnx_file.to_onnx, verify.examples, []

    def counted(feeds, count):
        counts.append(count)
        return drawn(feeds, count)

    def damaged(interface, traced):
        for name, value in traced.weights.items():
            if value.shape == (3, 3, 8, 8):
                traced.weights[name] = value * 1.5
        return real(interface, traced)

    export(model, tmp_path, precisions=("fp32",), say=silent)
    assert (tmp_path / "small_fp32.onnx").exists()
    monkeypatch.setattr(onnx_file, "to_onnx", damaged)
    monkeypatch.setattr(stage, "_PROBED", probed)  # bytes of inner results: one example is enough
    monkeypatch.setattr(verify, "examples", counted)
    with pytest.raises(ExportError, match=r"'probabilities' is .* off.*'second'") as caught:
        export(model, tmp_path, precisions=("fp32",), say=silent)
    assert counts[-1] == examples
    manifest = caught.value.manifest
    assert [e["file"] for e in manifest["files"]] == ["small_fp32.tflite"]
    assert [e["file"] for e in manifest["failed"]] == ["small_fp32.onnx"]
    assert not (tmp_path / "small_fp32.onnx").exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["failed"] == manifest["failed"]


def test_loss_of_the_metric_refuses_a_quantised_file(tmp_path, monkeypatch, without_speed):
    model, inputs = classifier(), pixels()
    targets = model(inputs.astype("float32")).numpy().argmax(1)
    real = tflite_file._ranges

    def ruined(content, calibration):
        return real(content, {"image": calibration["image"] // 100})

    monkeypatch.setattr(tflite_file, "_ranges", ruined)
    with pytest.raises(ExportError, match=r"of the metric .* more than 0.01") as caught:
        export(
            model,
            tmp_path,
            formats=("tflite",),
            calibration=inputs,
            evaluation=(inputs, targets),
            say=silent,
        )
    assert [e["precision"] for e in caught.value.manifest["failed"]] == ["int8"]


def test_interrupted_export_leaves_everything_as_it_was(tmp_path, monkeypatch, without_speed):
    export(classifier(), tmp_path, precisions=("fp32",), say=silent)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(classifier(seed=1), tmp_path, precisions=("fp32",), say=interrupt)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert not list(tmp_path.glob(".*"))


def test_files_of_an_older_export_do_not_stay_beside_the_new(tmp_path, without_speed):
    export(classifier(), tmp_path, precisions=("fp32", "fp16"), say=silent)
    export(classifier(seed=1), tmp_path, formats=("onnx",), precisions=("fp32",), say=silent)
    assert [p.name for p in tmp_path.glob("small_*")] == ["small_fp32.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": ("int8",)}, "calibration data.*calibration=ARRAY"),
        ({"precisions": ("int9",)}, "no precision 'int9'; did you mean 'int8'"),
        ({"formats": ("tflit",)}, "no format 'tflit'; did you mean 'tflite'"),
        ({"formats": "onnx"}, "in a tuple"),
        ({"labels": ["a", "b"]}, "2 labels fit no output.*10 columns"),
        ({"calibration": np.zeros((4, 9, 9, 3))}, r"shape \[4, 9, 9, 3\].*\[examples, 12, 12, 3\]"),
        ({"calibration": pixels() / 255.0}, "raw pixels"),
        ({"calibration": pixels() * np.float32(np.nan)}, "from nan to nan: give raw pixels"),
        (
            {"calibration": {"picture": pixels()}},
            "arrays for picture; the model's inputs are image",
        ),
        ({"evaluation": (pixels(5), [1, 2])}, "5 inputs and 2 targets"),
        ({"name": "a/b"}, "letters, digits"),
    ],
)
def test_mistakes_are_told(options, message, tmp_path):
    with pytest.raises(InputError, match=f"(?s){message}"):
        export(classifier(), tmp_path, **{"precisions": ("fp32",), "say": silent} | options)
    assert not list(tmp_path.iterdir())


def test_diverged_model_is_refused(tmp_path):
    model = classifier()
    model.get_layer("logits").bias.assign(np.full(10, np.nan))
    with pytest.raises(ExportError, match="NaN or infinity.*diverged"):
        export(model, tmp_path, precisions=("fp32",), say=silent)


def test_dry_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stage.dry_run(classifier())
    assert not list(tmp_path.iterdir())


def test_full_disk_is_told_and_nothing_stays(tmp_path, monkeypatch, without_speed):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="disk is full"):
        export(classifier(), tmp_path, precisions=("fp32",), say=silent)
    assert not list(tmp_path.iterdir())


def test_accuracy():
    scores = {"p": np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]])}
    assert verify.accuracy(scores, np.array([1, 0, 1])) == pytest.approx(2 / 3)
    assert verify.accuracy(scores, np.eye(2)[[1, 0, 1]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p, None),
        (lambda p: np.full_like(p, 0.1), "same for every input"),
        (lambda p: np.where(p == p.max(), np.nan, p), "NaN"),
        (lambda p: np.roll(p, 1, axis=1), "another first class in 100.0%"),
        (lambda p: p[:, :5], "shape"),
    ],
)
def test_every_bound_refuses_what_is_broken(change, reason):
    logits = np.random.default_rng(0).normal(size=(50, 10)) * 5
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for precision in ("fp16", "int8", "int8_dynamic"):
        limits = verify.bound(precision, 0.01, evaluated=False)
        _, found = verify.verify({"p": p}, {"p": change(p)}, limits)
        assert found is None if reason is None else reason in found


@pytest.mark.parametrize("share, passes", [(0.98, True), (1.02, False)])
def test_bounds_are_kept_on_either_side(share, passes):
    wanted = np.array([[2.0, -4.0], [1.0, 3.0]])
    limits = verify.bound("fp32", 0.01, evaluated=False)
    _, reason = verify.verify({"p": wanted}, {"p": wanted + share * 4 * 1e-4}, limits)
    assert (reason is None) == passes
    limits = verify.bound("int8", 0.01, evaluated=True)
    given = {"p": wanted}, {"p": wanted + 0.01}, limits, None
    _, reason = verify.verify(*given, lambda *_: 0.9 - share * 0.01, 0.9)
    assert (reason is None) == passes
    limits = verify.bound("int8", 0.01, evaluated=False)
    _, reason = verify.verify({"p": wanted}, {"p": wanted * (1 + share * 0.25)}, limits)
    assert (reason is None) == passes


def test_near_ties_decide_nothing_but_the_sure_do():
    """Keras itself is unsure in the first 20 examples: only the others count."""
    sure, unsure = np.tile([0.9, 0.1], (20, 1)), np.tile([0.51, 0.49], (20, 1))
    reference = np.concatenate([unsure, sure])
    reference[::2] = reference[::2, ::-1]
    flipped = reference.copy()
    flipped[:20] = flipped[:20, ::-1]
    limits = verify.bound("int8", 0.01, evaluated=False)
    entry, reason = verify.verify({"p": reference}, {"p": flipped}, limits)
    assert reason is None and entry["agreement"] == 0.5
    flipped[20:24] = flipped[20:24, ::-1]
    _, reason = verify.verify({"p": reference}, {"p": flipped}, limits)
    assert "20.0% of the examples" in reason


def test_pictures_may_be_rounded_the_other_way_and_no_further():
    wanted = pixels(5)
    limits = verify.bound("fp32", 0.01, evaluated=False, paints=True)
    for change, said in (
        (lambda x: np.where(x % 7, x, x ^ 1), None),  # a level more, or less
        (lambda x: np.where(x > 200, x - 2, x), "'p' is 2 off, more than 1"),
        (lambda x: np.tile(x[:1], (5, 1, 1, 1)), "'p' is the same for every input"),
        (lambda x: x[:, 1:], "'p' has the shape"),
    ):
        changed = change(wanted).astype(np.uint8)
        _, reason = verify.verify({"p": wanted}, {"p": changed}, limits)
        assert reason is None if said is None else reason.startswith(said)
    assert "levels_of_pictures" not in verify.bound("fp32", 0.01, evaluated=False)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_export_under_tensorflow(backend, tmp_path):
    """The model lives on another backend; messages, files and errors come back to it."""
    pytest.importorskip(backend)
    (tmp_path / "own.py").write_text(
        textwrap.dedent(
            """
            import keras, numpy as np

            @keras.saving.register_keras_serializable("own")
            class Twice(keras.layers.Layer):
                def call(self, x):
                    return x * 2

            def share(outputs, targets):
                return float(np.mean(outputs["probabilities"].argmax(1) == targets))
            """
        )
    )
    script = """
        import json, sys, keras, numpy as np, own
        from tiffin.export import InputError, export
        x = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype("uint8")
        layers = [keras.Input((8, 8, 3), name="image"), own.Twice(), keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(4, name="logits")], name="m")
        said = []
        targets = keras.ops.convert_to_numpy(model(x.astype("float32"))).argmax(1)
        manifest = export(model, "out", precisions=("fp32",), calibration=x, say=said.append,
                          evaluation=(x, targets), metric=own.share)
        assert len(said) == 2, said
        assert manifest["reference"] == {"metric": "share", "value": 1.0, "examples": 16}
        try:
            export(model, "out", precisions=("fp32",), labels=["a"])
        except InputError as error:
            print(error)
    """
    environment = os.environ | {"KERAS_BACKEND": backend}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 labels fit no output" in done.stdout
    assert {p.name for p in (tmp_path / "out").glob("m_*")} == {"m_fp32.onnx", "m_fp32.tflite"}


@pytest.mark.full
def test_mobilenet_at_full_size(tmp_path):
    model = keras.applications.MobileNetV2(weights=None)
    images = np.random.default_rng(0).integers(0, 256, (20, 224, 224, 3)).astype(np.uint8)
    manifest = export(model, tmp_path, calibration=images, say=silent)
    assert len(manifest["files"]) == 6


def test_held_out_pictures_come_along(tmp_path, without_speed):
    """One of each class, as they were; an export without evaluation data takes them away again."""
    model, inputs = classifier(), pixels(40)
    targets = np.arange(40) % 5
    given = {"formats": ("onnx",), "precisions": ("fp32",), "labels": LABELS, "say": silent}
    manifest = export(model, tmp_path, evaluation=(inputs, targets), **given)
    assert [entry["label"] for entry in manifest["pictures"]] == LABELS[:5]
    for number, entry in enumerate(manifest["pictures"], 1):
        content = (tmp_path / "held_out" / entry["file"]).read_bytes()
        assert entry["file"] == f"{number}.png" and entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        picture = tiffin.export.load_image(tmp_path / "held_out" / entry["file"])
        np.testing.assert_array_equal(picture, inputs[number - 1])
    assert "5 of the held-out pictures" in (tmp_path / "README.md").read_text()
    (tmp_path / "held_out" / "2.png").write_text("mine")
    export(model, tmp_path, **given)
    assert [path.read_text() for path in (tmp_path / "held_out").iterdir()] == ["mine"]
    assert "pictures" not in json.loads((tmp_path / "manifest.json").read_text())


def test_pictures_of_an_embedder_come_in_pairs():
    classes = np.array([4, 0, 1, 2, 2, 0, 3, 3, 3, 1, 6, 6, 5, 5])
    chosen = classes[pictures._chosen(14, classes, pairs=True)]
    assert len(chosen) == 8 and (chosen[::2] == chosen[1::2]).all()
    assert len({*chosen}) == 4 and 4 not in chosen
    assert pictures._chosen(100, None, pairs=False) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert pictures._chosen(3, np.array([7, 7, 7]), pairs=False) == [0, 1, 2]
