"""Converted graphs against Keras' own outputs, in the runtimes that phones and servers use."""

import collections

import keras
import numpy as np
import onnx
import pytest
from keras import layers

from tiffin.export import runtime
from tiffin.export.convert import Interface, float32_clone, trace
from tiffin.export.errors import ExportError, InputError
from tiffin.export.onnx_file import reduce as reduce_onnx
from tiffin.export.onnx_file import to_onnx
from tiffin.export.stage import dry_run, export
from tiffin.export.tflite_file import reduce as reduce_tflite
from tiffin.export.tflite_file import to_tflite


def randomise(model, seed=0):
    """Give batch normalisation statistics that a folding error would show."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        name, shape = variable.path.split("/")[-1], variable.shape
        if name == "moving_variance":
            variable.assign(generator.uniform(0.5, 2, shape))
        elif name in ("moving_mean", "beta", "bias"):
            variable.assign(generator.normal(0, 0.2, shape))
        elif name == "gamma":
            variable.assign(generator.uniform(0.5, 1.5, shape))
    return model


def image_model(*middle, size=16, channels=3):
    return randomise(
        keras.Sequential(
            [
                keras.Input((size, size, channels), name="image"),
                layers.Rescaling(1 / 127.5, -1),
                layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem"),
                layers.BatchNormalization(),
                layers.ReLU(6),
                *middle,
                layers.GlobalAveragePooling2D(),
                layers.Dense(10, name="logits"),
            ],
            name="tiny",
        )
    )


def pixels(count=3, size=16, channels=3):
    generator = np.random.default_rng(1)
    return generator.integers(0, 256, (count, size, size, channels)).astype(np.uint8)


def onnx_of(model, **options):
    interface = Interface(model, **options)
    return interface, to_onnx(interface, trace(interface, None))


def run(interface, content, path, inputs):
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return runtime.load(path, 1)(inputs)


def both(model, inputs, tmp_path, **options):
    """Yield the outputs of the ONNX and of the TFLite file."""
    interface, proto = onnx_of(model, **options)
    yield run(interface, proto, tmp_path / "m.onnx", inputs)
    content = to_tflite(interface, trace(interface, 1))
    yield run(interface, content, tmp_path / "m.tflite", inputs)


def operations(proto):
    return collections.Counter(node.op_type for node in proto.graph.node)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(8, 3, groups=4, name="grouped"),
        layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same"),
        layers.SeparableConv2D(6, 3),
        layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
        layers.LayerNormalization(),
        layers.GroupNormalization(4),
        layers.PReLU(shared_axes=[1, 2]),
        layers.AveragePooling2D(3, 2, padding="same"),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.Conv2D(8, 3, padding="same", dilation_rate=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layer_leaves_as_it_is(layer, tmp_path):
    model = image_model(layer, layers.BatchNormalization())
    inputs = {"image": pixels()}
    wanted = keras.ops.softmax(model(inputs["image"].astype("float32"), training=False)).numpy()
    for outputs in both(model, inputs, tmp_path):
        np.testing.assert_allclose(outputs["probabilities"], wanted, atol=2e-6)


def test_mobilenet_is_clean(tmp_path):
    model = randomise(keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=10))
    interface, proto = onnx_of(model)
    counted = operations(proto)
    assert counted == {
        "Cast": 1,
        "Transpose": 1,
        "Conv": 52,
        "Clip": 35,
        "Add": 10,
        "GlobalAveragePool": 1,
        "Squeeze": 1,
        "Gemm": 1,
        "Softmax": 1,
    }
    assert proto.opset_import[0].version >= 17
    onnx.checker.check_model(proto, full_check=True)
    values = [*proto.graph.input, *proto.graph.output]
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in values] == ["batch", "batch"]
    inputs = {interface.inputs[0].name: pixels(size=32)}
    wanted = model(inputs[interface.inputs[0].name].astype("float32"), training=False).numpy()
    for outputs in both(model, inputs, tmp_path):
        np.testing.assert_allclose(outputs[interface.outputs[0].name], wanted, atol=1e-6)


def test_padding_before_a_pool_is_folded_where_nothing_is_negative(tmp_path):
    pool = [layers.ZeroPadding2D(1), layers.MaxPooling2D(3, 2)]
    after_relu = image_model(*pool)
    after_shift = image_model(layers.Rescaling(1.0, -1.0), *pool)
    for model, pads in ((after_relu, 0), (after_shift, 1)):
        _, proto = onnx_of(model)
        assert operations(proto)["Pad"] == pads
        wanted = keras.ops.softmax(model(pixels().astype("float32"), training=False)).numpy()
        for outputs in both(model, {"image": pixels()}, tmp_path):
            np.testing.assert_allclose(outputs["probabilities"], wanted, atol=2e-6)


def test_shared_kernel_is_not_scaled_twice(tmp_path):
    conv = layers.Conv2D(3, 3, padding="same", use_bias=False)
    x = image = keras.Input((8, 8, 3), name="image")
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(conv(x)))
    model = randomise(keras.Model(image, {"map": x}))
    wanted = model(pixels(size=8).astype("float32"), training=False)["map"].numpy()
    for outputs in both(model, {"image": pixels(size=8)}, tmp_path):
        np.testing.assert_allclose(outputs["map"], wanted, rtol=1e-5, atol=1e-3)


def test_several_inputs_and_named_outputs(tmp_path):
    image = keras.Input((8, 8, 3), name="image")
    numbers = keras.Input((4,), name="numbers")
    features = layers.Concatenate()([layers.Flatten()(image), numbers])
    outputs = {"scores": layers.Dense(3)(features), "boxes": layers.Reshape((2, 2))(numbers)}
    model = keras.Model([image, numbers], outputs)
    inputs = {
        "image": pixels(size=8),
        "numbers": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    }
    wanted = model([inputs["image"].astype("float32"), inputs["numbers"]])
    for got in both(model, inputs, tmp_path):
        assert set(got) == {"scores", "boxes"}
        for name, value in got.items():
            np.testing.assert_allclose(value, wanted[name].numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_recurrent_models_leave(kind, unroll, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6,), name="tokens", dtype="int32"),
            layers.Embedding(11, 5),
            kind(7, unroll=unroll),
            layers.Dense(4, name="logits"),
        ]
    )
    tokens = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)
    wanted = model(tokens).numpy()
    for outputs in both(model, {"tokens": tokens}, tmp_path, logits=True):
        np.testing.assert_allclose(outputs["logits"], wanted, atol=1e-6)


def test_loop_is_refused_in_int8_instead_of_crashing():
    model = keras.Sequential(
        [keras.Input((6, 3), name="series"), layers.LSTM(4), layers.Dense(2, name="logits")]
    )
    interface = Interface(model)
    content = to_tflite(interface, trace(interface, 1))
    with pytest.raises(ExportError, match=r"unroll=True.*int8_dynamic"):
        reduce_tflite(content, "int8", interface, {"series": np.zeros((2, 6, 3), np.float32)})


def test_normalization_softmax_and_float_input(tmp_path):
    model = image_model()
    mean, std = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)
    raw = pixels()
    wanted = model((raw - np.float32(mean)) / np.float32(std), training=False)
    options = {"input_dtype": "float32", "normalization": (mean, std)}
    for outputs in both(model, {"image": raw.astype(np.float32)}, tmp_path, **options):
        wanted_softmax = keras.ops.softmax(wanted).numpy()
        np.testing.assert_allclose(outputs["probabilities"], wanted_softmax, atol=1e-5)
    for outputs in both(model, {"image": raw.astype(np.float32)}, tmp_path, logits=True, **options):
        np.testing.assert_allclose(outputs["logits"], wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_mixed_precision_leaves_in_float32(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = image_model()
    finally:
        keras.config.set_dtype_policy("float32")
    clone = float32_clone(model)
    assert {layer.compute_dtype for layer in clone.layers} == {"float32"}
    wanted = keras.ops.softmax(clone(pixels().astype("float32"), training=False)).numpy()
    for outputs in both(model, {"image": pixels()}, tmp_path):
        np.testing.assert_allclose(outputs["probabilities"], wanted, atol=2e-6)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8_dynamic"])
def test_reduced_precision_is_near_and_smaller(precision, tmp_path):
    model = image_model(layers.Conv2D(64, 3), layers.ReLU(), layers.Conv2D(64, 3), layers.ReLU())
    calibration = {"image": pixels(20)}
    wanted = keras.ops.softmax(model(pixels().astype("float32"), training=False)).numpy()
    interface, proto = onnx_of(model)
    content = to_tflite(interface, trace(interface, 1))
    small = reduce_tflite(content, precision, interface, calibration)
    outputs = run(interface, small, tmp_path / "m.tflite", {"image": pixels()})
    np.testing.assert_allclose(outputs["probabilities"], wanted, atol=0.02)
    assert len(small) < (0.6 if precision == "fp16" else 0.45) * len(content)
    small = reduce_onnx(proto, precision, interface, calibration)
    onnx.checker.check_model(small, full_check=True)
    outputs = run(interface, small, tmp_path / "m.onnx", {"image": pixels()})
    np.testing.assert_allclose(outputs["probabilities"], wanted, atol=0.02)
    if precision != "int8_dynamic":
        assert small.ByteSize() < 0.6 * proto.ByteSize()


@keras.saving.register_keras_serializable("test")
class Odd(layers.Layer):
    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def call(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "refused"),
    [
        (lambda x: keras.ops.arccos(keras.ops.tanh(x)), {"tflite": "Acos"}),
        (
            lambda x: keras.ops.erfinv(keras.ops.tanh(x) * 0.9),
            {"onnx": "Erfinv", "tflite": "Erfinv"},
        ),
        (lambda x: keras.ops.fft((x, x))[0], {"onnx": "FFT", "tflite": "FFT"}),
    ],
    ids=["arccos", "erfinv", "fft"],
)
def test_unsupported_operation_names_its_layer(function, refused, capfd):
    model = image_model(Odd(function, name="odd_one"))
    for form in ("onnx", "tflite"):
        if form in refused:
            with pytest.raises(ExportError, match=rf"(?s)'odd_one'.*{refused[form]}.*Write that"):
                dry_run(model, (form,))
        else:
            dry_run(model, (form,))
    assert "loc(" not in capfd.readouterr().err


def test_interface_refuses_what_cannot_be_exported():
    class Sub(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(InputError, match="subclassed"):
        Interface(Sub())
    open_size = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(1, 1)])
    with pytest.raises(InputError, match="only the batch"):
        Interface(open_size)
    with pytest.raises(InputError, match="uint8"):
        Interface(image_model(), input_dtype="int4")
    with pytest.raises(InputError, match="above zero"):
        Interface(image_model(), normalization=(0, 0))
    with pytest.raises(InputError, match=r"1 means and 2 deviations.*'image' 3 channels"):
        Interface(image_model(), normalization=(0, (1, 2)))
    with pytest.raises(InputError, match="no input of this model is a picture"):
        Interface(keras.Sequential([keras.Input((8,)), layers.Dense(1)]), normalization=(0, 1))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8_dynamic"])
@pytest.mark.parametrize("input_dtype", ["uint8", "float32"])
def test_tflite_takes_pixels_gives_floats_and_aligns_its_weights(precision, input_dtype):
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(12, 3, activation="relu")(layers.Rescaling(1 / 255)(image))
    x = layers.Dense(5, name="logits")(layers.Flatten()(x))
    interface = Interface(keras.Model(image, x), input_dtype)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(input_dtype)
    content = to_tflite(interface, trace(interface, 1))
    content = reduce_tflite(content, precision, interface, {"image": pixels})
    interpreter = Interpreter(model_content=content)
    assert [d["dtype"] for d in interpreter.get_input_details()] == [np.dtype(input_dtype)]
    assert [d["dtype"] for d in interpreter.get_output_details()] == [np.float32]
    root = schema.Model.GetRootAs(content)
    start = np.frombuffer(content, np.uint8).ctypes.data
    places = [
        root.Buffers(i).DataAsNumpy().ctypes.data - start
        for i in range(root.BuffersLength())
        if root.Buffers(i).DataLength()
    ]
    assert len(places) >= 3 and all(place % 16 == 0 for place in places)


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_int8_keeps_the_range_of_the_brightest_calibration_picture(kind, tmp_path):
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, activation="relu")(layers.Rescaling(1 / 255)(image))
    interface = Interface(keras.Model(image, layers.Dense(5)(layers.Flatten()(x))))
    random = np.random.default_rng(0)
    dim = random.integers(0, 20, (24, 8, 8, 3)).astype(np.uint8)
    bright = random.integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    calibration = {"image": np.concatenate([dim[:12], bright, dim[12:]])}
    if kind == "onnx":
        content = to_onnx(interface, trace(interface, None))
        content = reduce_onnx(content, "int8", interface, calibration).SerializeToString()
    else:
        content = to_tflite(interface, trace(interface, 1))
        content = reduce_tflite(content, "int8", interface, calibration)
    path = tmp_path / f"model.{kind}"
    path.write_bytes(content)
    (output,) = runtime.load(path)(bright).values()
    (expected,) = interface.keras()({"image": bright}).values()
    error = np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2))
    assert error < 0.05


def test_int8_survives_a_layer_that_gives_nothing_but_zero(tmp_path):
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="alive")(image)
    # Far below what any picture reaches: its ReLU is dead.
    dead = layers.Conv2D(
        4, 1, activation="relu", bias_initializer=keras.initializers.Constant(-1e3), name="dead"
    )(x)
    x = layers.Add()([x, layers.Conv2D(8, 1, name="after")(dead)])
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(3, name="logits")(x), name="dead")
    x = pixels(count=16)
    manifest = export(
        model, tmp_path, precisions=("int8",), calibration=x, normalization=(127.5, 127.5),
        say=lambda line: None,
    )  # fmt: skip
    assert [entry["float_layers"] for entry in manifest["files"]] == [[], []]


def test_int8_leaves_out_a_layer_that_no_runtime_would_take(tmp_path):
    # A channel that hardly varies, scaled up, as batch normalisation does: one step of the integers
    # before it would be hundreds of steps behind it.
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(4, 1, name="colour")(image)
    x = layers.DepthwiseConv2D(1, use_bias=False, name="depthwise")(x)
    x = layers.Conv2D(3, 1, name="point")(layers.AveragePooling2D(16)(x))
    model = keras.Model(image, layers.Flatten(name="logits")(x), name="refused")
    colour, taps = np.zeros((1, 1, 3, 4), np.float32), np.ones((1, 1, 4, 1), np.float32)
    colour[0, 0, :, :3], taps[0, 0, 3] = np.eye(3), 50_000
    point = np.concatenate([np.eye(3), np.full((1, 3), 1e-3)])[None, None]
    model.get_layer("colour").set_weights([colour, np.float32([0, 0, 0, 1e-5])])
    model.get_layer("depthwise").set_weights([taps])
    model.get_layer("point").set_weights([point, np.zeros(3)])
    manifest = export(
        model, tmp_path, precisions=("int8",), calibration=pixels(count=16),
        normalization=(127.5, 127.5), explain=True, say=lambda line: None,
    )  # fmt: skip
    assert [entry["float_layers"] for entry in manifest["files"]] == [[], ["depthwise"]]
    table = (tmp_path / "explain.csv").read_text().splitlines()
    (row,) = [line for line in table if "int8.tflite,depthwise" in line]
    assert row.endswith("float32")
