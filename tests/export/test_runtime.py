"""One runner for three kinds of files, and what it says about files that cannot be run."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from tiffin.export import runtime
from tiffin.export.errors import InputError
from tiffin.export.runtime import Tensor, load, of_model


@pytest.mark.parametrize("file", ["model.keras", "colours_fp32.onnx", "colours_fp32.tflite"])
def test_every_kind_answers_like_keras(file, exported, colours):
    runner = load(exported / file, threads=1)
    # 60 is no multiple of the chunk, and the .tflite file itself takes one image at a time.
    got = runner(colours.images)["probabilities"]
    expected = colours.model(colours.images.astype("float32")).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert runner.inputs[0].name == "image"
    assert runner.inputs[0].shape == (None, 16, 16, 3)
    assert runner.outputs == (Tensor("probabilities", (None, 3), "float32"),)


def test_several_inputs_and_outputs_go_by_name():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    both = keras.layers.Concatenate()([a, b])
    outputs = {"twice": 2.0 * both, "first": a + 0.0}
    for inputs in ([b, a], {"a": a, "b": b}):
        runner = of_model(keras.Model(inputs, outputs))
        x, y = np.random.default_rng(0).normal(size=(2, 40, 4)).astype("float32")
        got = runner({"a": x, "b": y[:, :3]})
        np.testing.assert_allclose(got["twice"], 2 * np.concatenate([x, y[:, :3]], 1), rtol=1e-6)
        np.testing.assert_array_equal(got["first"], x)
    with pytest.raises(InputError, match="needs the input 'b' too"):
        runner({"a": x})
    with pytest.raises(InputError, match="differ in batch size"):
        runner({"a": x, "b": y[:2, :3]})
    with pytest.raises(InputError, match="did you mean"):
        runner({"a": x, "bb": y})


def test_sequential_models_run():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="scores")])
    x = np.ones((3, 4), "float32")
    np.testing.assert_allclose(of_model(model)(x)["scores"], model(x).numpy(), rtol=1e-6)
    with pytest.raises(InputError, match="never built"):
        of_model(keras.Sequential([keras.layers.Dense(2)]))


def test_quantised_interfaces_are_fed_and_read_as_floats(tmp_path):
    """A file with int8 input and output, by TensorFlow's own converter."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    data = random.uniform(-1, 1, (50, 1, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x] for x in data)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    path = tmp_path / "integer.tflite"
    path.write_bytes(converter.convert())
    runner = load(path)
    assert runner.inputs[0].dtype == "int8"
    assert runner.outputs[0].dtype == "float32"
    (got,) = runner(data[:, 0]).values()
    assert np.abs(got - model(data[:, 0]).numpy()).max() < 0.05


def test_onnx_with_a_fixed_batch(tmp_path):
    import onnx

    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(n, 1, [2, 3]) for n in "xy")
    node = helper.make_node("Neg", ["x"], ["y"])
    graph = helper.make_graph([node], "fixed", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "fixed.onnx")
    runner = load(tmp_path / "fixed.onnx")
    value = np.arange(12, dtype="float32").reshape(4, 3)
    np.testing.assert_array_equal(runner(value)["y"], -value)
    with pytest.raises(InputError, match="multiple of 2 examples, not 3"):
        runner(value[:3])


def test_wrong_arrays_are_named(exported, colours):
    runner = load(exported / "colours_fp32.onnx")
    with pytest.raises(InputError, match=r"in shape \[batch, 16, 16, 3\], not \[60, 8, 16, 3\]"):
        runner(colours.images[:, :8])
    with pytest.raises(InputError, match="as uint8, not float64"):
        runner(colours.images / 255)
    with pytest.raises(InputError, match="multiple of 1 examples, not 0"):
        runner(colours.images[:0])


@pytest.mark.parametrize("kind", ["keras", "onnx", "tflite"])
@pytest.mark.parametrize("content", [b"", b"just some text, no model", b"\0\0\0\0TFL3\xff\xff\xff"])
def test_what_is_no_model(kind, content, tmp_path):
    path = tmp_path / f"text.{kind}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="the file is damaged, or is no such model"):
        load(path)


@pytest.mark.parametrize("file", ["model.keras", "colours_fp32.onnx", "colours_int8.tflite"])
def test_truncated_files_do_not_crash(file, exported, tmp_path):
    """In a process of its own: a crash of native code would end this one."""
    whole = (exported / file).read_bytes()
    for part in (0.2, 0.5, 0.7):
        path = tmp_path / f"{part}_{file}"
        path.write_bytes(whole[: int(part * len(whole))])
    code = (
        "import sys; from tiffin.export.runtime import load; from tiffin.export import InputError\n"
        "for path in sys.argv[1:]:\n"
        "    try: load(path)\n"
        "    except InputError as error: print(error)\n"
    )
    paths = sorted(tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the file is damaged") == 3


def test_missing_unknown_and_folders(exported):
    with pytest.raises(InputError, match=r"no file .*did you mean 'colours_fp32\.onnx'"):
        load(exported / "colour_fp32.onnx")
    with pytest.raises(InputError, match=r"of no kind that can be run here"):
        load(exported / "README.md")
    with pytest.raises(InputError, match="is a folder"):
        load(exported)


def test_unknown_layers_and_lambdas(tmp_path):
    with keras.saving.CustomObjectScope({}):

        @keras.saving.register_keras_serializable("elsewhere")
        class Strange(keras.layers.Layer):
            def call(self, x):
                return x

        keras.Sequential([keras.Input((4,)), Strange()]).save(tmp_path / "strange.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x)]).save(
        tmp_path / "lambda.keras"
    )
    code = (
        "import sys; from tiffin.export.runtime import load; from tiffin.export import InputError\n"
        "for path in sys.argv[1:]:\n"
        "    try: load(path)\n"
        "    except InputError as error: print(error)\n"
    )
    paths = [tmp_path / "strange.keras", tmp_path / "lambda.keras"]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    strange, lambda_ = done.stdout.splitlines()
    assert "'Strange'" in strange and "--imports MODULE" in strange
    assert "Lambda layer" in lambda_ and "registered custom layer" in lambda_


def test_quiet_drops_information_only(capfd):
    import os

    with runtime.quiet():
        os.write(2, b"INFO: Created a delegate\nI0000 00:00 port.cc\nERROR: it broke\n")
    assert capfd.readouterr().err == "ERROR: it broke\n"


def test_garbled_names(exported, tmp_path):
    whole = (exported / "colours_fp32.tflite").read_bytes()
    path = tmp_path / "garbled.tflite"
    path.write_bytes(whole.replace(b"probabilities", b"\xff" * 13))
    with pytest.raises(InputError, match="the file is damaged"):
        load(path)
