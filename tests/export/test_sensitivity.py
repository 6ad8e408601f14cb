"""Layers that int8 breaks: they are found, named, and left in float32, and no others."""

import csv
import re

import keras
import numpy as np
import pytest
from keras import layers

from tiffin.export import cli, explain, export, sensitivity
from tiffin.export.errors import ExportError, InputError
from tiffin.export.sensitivity import Step, units

pytestmark = pytest.mark.usefixtures("without_speed")


def silent(line):
    pass


def broken(what: str):
    """Name the strongest colour, through a depthwise layer that float32 holds and int8 does not.

    Args:
        what: `weights` (taps of 1000 beside taps of 1 that never see anything but padding) or
            `activations` (a channel of 10,000 beside those that decide, which the layer behind it
            all but ignores).
    """
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(4, 1, name="colour")(layers.Rescaling(8 / 255)(image))
    x = layers.AveragePooling2D(16, name="pool")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.Conv2D(3, 1, use_bias=False, name="point")(x)
    x = layers.Conv2D(3, 1, use_bias=False, name="last")(x)
    outputs = layers.Softmax(name="probabilities")(layers.Flatten()(x))
    model = keras.Model(image, outputs, name=what)
    colour = np.zeros((1, 1, 3, 4), np.float32)
    colour[0, 0, :, :3] = 1.5 * np.eye(3) - 0.5
    colour[0, 0, :, 3] = 0.01
    model.get_layer("colour").set_weights([colour, np.float32([0, 0, 0, 1])])
    taps = np.zeros((3, 3, 4, 1), np.float32)
    taps[1, 1] = 1
    if what == "weights":
        taps[0, 0] = 1000
    else:
        taps[1, 1, 3] = 10_000
    model.get_layer("depthwise").set_weights([taps])
    point = np.zeros((1, 1, 4, 3), np.float32)
    point[0, 0, :3] = np.eye(3)
    point[0, 0, 3] = 1e-4
    model.get_layer("point").set_weights([point])
    model.get_layer("last").set_weights([np.eye(3, dtype=np.float32)[None, None]])
    return model


# The depthwise layer's result is float32 only if the layer that reads it is, too.
CULPRITS = {"weights": ["depthwise"], "activations": ["depthwise", "point"]}


def int8(model, folder, colours, kind, **options):
    data = {"evaluation": (colours.images[30:], colours.targets[30:])}
    return export(
        model,
        folder,
        formats=(kind,),
        precisions=("int8",),
        calibration=colours.images[:30],
        **data | {"say": silent} | options,
    )


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
@pytest.mark.parametrize("what", CULPRITS)
def test_what_int8_breaks_is_left_in_float(what, kind, tmp_path, colours, monkeypatch):
    said = []
    manifest = int8(broken(what), tmp_path, colours, kind, say=said.append)
    (entry,) = manifest["files"]
    assert manifest["reference"]["value"] == 1.0 and entry["metric"] >= 0.99
    assert entry["float_layers"] == CULPRITS[what]
    assert f"in float32: {', '.join(CULPRITS[what])}" in said[-1]
    assert all(f"`{name}`" in (tmp_path / "README.md").read_text() for name in CULPRITS[what])
    with (tmp_path / "explain.csv").open() as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    assert {"colour", "depthwise", "point", "last"} <= set(rows)
    assert [n for n, r in rows.items() if r["kept_in"] == "float32"] == CULPRITS[what]
    alone = {name: float(row["alone_db"]) for name, row in rows.items()}
    assert max(alone[n] for n in CULPRITS[what]) + 15 < min(
        alone[n] for n in alone if n not in CULPRITS[what]
    )
    # The file that was published answers well in every layer.
    assert min(float(row["sqnr_db"]) for row in rows.values()) > 25

    monkeypatch.setattr(sensitivity.Study, "choices", lambda self: iter(()))
    with pytest.raises(ExportError, match=r"(?s)costs .*'depthwise' \(.* dB\)|same for every") as e:
        int8(broken(what), tmp_path, colours, kind)
    assert "'depthwise'" in str(e.value) and "explain.csv has all layers" in str(e.value)
    assert not list(tmp_path.glob("*int8*")) and (tmp_path / "explain.csv").exists()


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_without_evaluation_the_other_bounds_decide(kind, tmp_path, colours):
    (entry,) = int8(broken("weights"), tmp_path, colours, kind, evaluation=None)["files"]
    assert entry["float_layers"] == ["depthwise"] and entry["agreement"] >= 0.95


def test_a_sound_model_is_not_studied(tmp_path, colours, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the layers were compared")

    (tmp_path / "explain.csv").write_text("of an older export")
    monkeypatch.setattr(sensitivity, "Study", never)
    for kind in ("onnx", "tflite"):
        (entry,) = int8(colours.model, tmp_path, colours, kind)["files"]
        assert entry["float_layers"] == []
    assert not (tmp_path / "explain.csv").exists()


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
@pytest.mark.parametrize("input_dtype", ["uint8", "float32"])
def test_ends_in_float_stay_unrounded(kind, input_dtype, tmp_path, colours):
    """The first and the last layer in float32: neither pixels nor logits are rounded there."""
    from tiffin.export import stage
    from tiffin.export.convert import Interface

    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(4, 3, name="first")(image)
    x = layers.Conv2D(4, 3, activation="relu", name="second")(x)
    x = layers.Conv2D(4, 3, activation="relu", name="map")(x)
    logits = layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D(name="pool")(x))
    keras.utils.set_random_seed(0)
    model = keras.Model(image, {"map": x, "scores": logits})
    source = stage._Source(kind, Interface(model, input_dtype), {"image": colours.images[:20]})
    source.calibration["image"] = source.calibration["image"].astype(input_dtype)
    study = source.study(source.calibration)
    kept = [unit for unit in study.units if study.names[unit] != "second"]
    content = source.quantizer(keep=kept)
    assert {study.names[unit] for unit in source.home.kept(content, study.units)} == {
        "first",
        "map",
        "scores",
    }
    path = tmp_path / f"m.{kind}"
    path.write_bytes(source.home.serialized(content))
    from tiffin.export import runtime

    inputs = source.calibration["image"]
    got, wanted = runtime.load(path)(inputs), source.interface.keras()({"image": inputs})
    assert set(got) == {"map", "scores"}
    for name, value in got.items():
        assert value.dtype == np.float32
        assert np.sqrt(np.mean((value - wanted[name]) ** 2) / np.mean(wanted[name] ** 2)) < 0.03
        # Rounded to 8 bits there would be 256 values at most.
        if name == "map":
            assert len(np.unique(value)) > 1000


def test_explain_prints_the_table(exported, colours, tmp_path, capsys):
    from PIL import Image

    for index, picture in enumerate(colours.images[:12]):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    words = [exported / "model.keras", tmp_path / "phone", "--calibration", tmp_path]
    words += ["--precisions", "int8", "--explain"]
    command = lambda: cli.parse(cli.COMMANDS["export"], [*map(str, words)], "tiffin export")  # noqa: E731
    assert cli.run(command) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"\| colour +\| (?:Conv|CONV_2D) +\| [\d.]+ +\| [\d.]+ ", out)) == 2
    with (tmp_path / "phone" / "explain.csv").open() as file:
        files = {row["file"] for row in csv.DictReader(file)}
    assert files == {"colours_int8.onnx", "colours_int8.tflite"}


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_an_exported_pair_is_explained(kind, tmp_path, colours):
    model = broken("activations")
    export(
        model,
        tmp_path,
        formats=(kind,),
        precisions=("fp32", "int8"),
        calibration=colours.images[:30],
        evaluation=(colours.images[30:], colours.targets[30:]),
        labels=colours.labels,
        say=silent,
    )
    pair = [tmp_path / f"activations_{precision}.{kind}" for precision in ("fp32", "int8")]
    rows = explain(*pair, colours.images[:30], model)
    with (tmp_path / "explain.csv").open() as file:
        written = [*csv.DictReader(file)]
    assert [row.layer for row in rows] == [row["layer"] for row in written]
    assert [row.layer for row in rows if row.kept] == CULPRITS["activations"]
    for row, text in zip(rows, written, strict=True):
        assert row.alone_db == pytest.approx(float(text["alone_db"]), abs=3)
    named = explain(*pair, colours.images[:30])
    assert any("depthwise" in row.layer and row.kept for row in named)
    with pytest.raises(InputError, match="are no pair"):
        explain(pair[0], pair[1].with_suffix(".keras"), colours.images[:30])


def test_pair_of_two_models(exported, tmp_path, colours):
    other = broken("weights")
    int8(other, tmp_path, colours, "onnx")
    with pytest.raises(InputError, match="was not made from"):
        explain(exported / "colours_fp32.onnx", tmp_path / "weights_int8.onnx", colours.images[:9])


def test_units_of_a_graph():
    """Activations and pooling go with what they follow; sums and scales are parts of their own."""
    steps = [
        Step("cast", "Cast", ["image"], ["i"], 0, False),
        Step("turn", "Transpose", ["i"], ["t"], 0, True),
        Step("conv1", "Conv", ["t"], ["a"], 27, True),
        Step("sigmoid", "Sigmoid", ["a"], ["b"], 0, False),
        Step("swish", "Mul", ["a", "b"], ["c"], 0, True),
        Step("conv2", "Conv", ["c"], ["d"], 27, True),
        Step("sum", "Add", ["c", "d"], ["e"], 0, True),
        Step("scale", "Mul", ["e"], ["f"], 8, True),
        Step("half", "Mul", ["f"], ["g"], 1, True),
        Step("pool", "GlobalAveragePool", ["g"], ["h"], 0, True),
        Step("product", "MatMul", ["h", "g"], ["p"], 0, True),
        Step("softmax", "Softmax", ["p"], ["q"], 0, False),
    ]
    found = [(unit.nodes, unit.result, unit.weighted) for unit in units(steps)]
    assert found == [
        (("conv1", "swish"), "c", True),
        (("conv2",), "d", True),
        (("sum",), "e", False),
        (("scale", "half", "pool"), "h", False),
        (("product",), "p", False),
    ]


def test_what_exact_parts_read_is_an_end():
    """Of a detector the heads before its boxes, not the detections, nor numbers of places."""
    steps = [
        Step("body/conv", "Conv", ["image"], ["a"], 27, True),
        Step("deltas/conv", "Conv", ["a"], ["b"], 27, True),
        Step("logits/conv", "Conv", ["a"], ["c"], 27, True),
        Step("boxes/add", "Add", ["b"], ["d"], 4, True),
        Step("found/where", "Where", ["d", "c"], ["e"], 0, False),
    ]
    found = units(steps, lambda name: name.split("/")[0] in ("boxes", "found"))
    assert [unit.nodes for unit in found if unit.last] == [("deltas/conv",), ("logits/conv",)]
    assert [unit.nodes for unit in found if unit.exact] == [("boxes/add",)]
