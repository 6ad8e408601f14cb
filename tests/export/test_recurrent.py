"""Recurrent networks as files: one step at a time, or a whole sequence."""

import keras
import numpy as np
import onnx
import pytest
from keras import layers

import tiffin.export
from tiffin.export import ExportError, InputError, recurrent, runtime
from tiffin.export.steps import step_model, with_length
from tiffin.layers import CoupledLSTMCell, LSTMCell, PeepholeLSTMCell, Recurrent

WORDS, UNITS, STEPS = 11, 6, 9
RNNS = {
    "lstm": lambda: layers.LSTM(UNITS, return_sequences=True),
    "gru": lambda: layers.GRU(UNITS, return_sequences=True),
    "simple_rnn": lambda: layers.SimpleRNN(UNITS, return_sequences=True),
    "stacked": lambda: layers.RNN(
        [layers.LSTMCell(UNITS), layers.GRUCell(UNITS)], return_sequences=True
    ),
    "peephole": lambda: Recurrent(PeepholeLSTMCell(UNITS, layer_norm=True), return_sequences=True),
    "coupled": lambda: Recurrent(CoupledLSTMCell(UNITS), return_sequences=True),
}


def language_model(*rnns, steps=None):
    """A language model; a layer of its own adds what skips the recurrent ones."""
    tokens = keras.Input((steps,), dtype="int32", name="words")
    x = layers.Embedding(WORDS, UNITS)(tokens)
    y = x
    for rnn in rnns:
        y = layers.Dropout(0.2)(rnn(y))
    x = layers.LayerNormalization()(x * 2 + y)
    return keras.Model(tokens, layers.Dense(WORDS, name="logits")(x), name="writer")


def sentences(count=8, steps=STEPS):
    return np.random.default_rng(0).integers(0, WORDS, (count, steps)).astype("int32")


@pytest.mark.parametrize("name", RNNS)
def test_steps_with_states_handed_on_are_the_sequence(name):
    model = language_model(RNNS[name](), RNNS["lstm"]())
    step = step_model(model)
    assert step.inputs[0].name == "token" and step.output["logits"].shape == (None, 11)
    run, states = recurrent.of_keras(step)
    assert len(states) == {"gru": 1, "simple_rnn": 1, "stacked": 3}.get(name, 2) + 2
    tokens = sentences()
    outputs, fed = recurrent.run_along(run, {"token": tokens}, states)
    whole = np.asarray(model(tokens)).reshape(-1, WORDS)
    np.testing.assert_allclose(outputs["logits"], whole, atol=1e-5)
    assert all(not fed[state][::STEPS].any() for state in states)
    np.testing.assert_array_equal(fed["token"].ravel(), tokens.ravel())


def test_features_and_dictionaries_are_stepped_too():
    series, more = keras.Input((None, 3), name="series"), keras.Input((None, 2), name="more")
    x = layers.GRU(4, return_sequences=True, name="memory")(layers.Concatenate()([series, more]))
    model = keras.Model([series, more], {"level": layers.Dense(1)(x), "state": x})
    step = step_model(model)
    assert [t.name for t in step.inputs] == ["series", "more", "memory_h"]
    run, states = recurrent.of_keras(step)
    x, y = np.random.default_rng(0).normal(size=(2, 2, 5, 3)).astype("float32")
    outputs, _ = recurrent.run_along(run, {"series": x, "more": y[..., :2]}, states)
    for name, expected in model([x, y[..., :2]]).items():
        flat = np.asarray(expected).reshape(-1, expected.shape[-1])
        np.testing.assert_allclose(outputs[name], flat, atol=1e-5)


def test_what_has_no_step_is_told():
    x = keras.Input((5, 3))
    for y, said in (
        (layers.Bidirectional(layers.LSTM(2))(x), "reads a sequence from its end"),
        (layers.GRU(2, go_backwards=True)(x), "reads a sequence from its end"),
        (layers.GRU(3)(x, initial_state=layers.GRU(3)(x)), "begins with what another layer gives"),
        (layers.Dense(2)(x), "has no recurrent layer"),
    ):
        with pytest.raises(InputError, match=said):
            step_model(keras.Model(x, y))


@pytest.mark.parametrize(
    "name",
    ["stacked", *(pytest.param(name, marks=pytest.mark.full) for name in ("gru", "peephole"))],
)
def test_step_functions_leave_and_go_on_as_keras_does(name, tmp_path):
    model = language_model(RNNS[name]())
    tokens, said = sentences(12, 30), []
    manifest = tiffin.export.export(
        step_model(model),
        tmp_path,
        precisions=("fp32", "fp16", "int8", "int8_dynamic"),
        calibration=tokens,
        evaluation=(tokens[:, :-1], tokens[:, 1:]),
        metric=recurrent.log_likelihood,
        say=said.append,
    )
    assert len(manifest["files"]) == 8 and not manifest["failed"]
    assert manifest["reference"]["metric"] == "log_likelihood" and manifest["states"]
    for file in manifest["files"]:
        assert file["same_tokens"] == 200 or file["precision"] != "fp32"
        runner = runtime.load(tmp_path / file["file"])
        states = recurrent.of_language(runner)
        outputs, _ = recurrent.run_along(runner, {"token": tokens}, states)
        expected = np.asarray(model(tokens)).reshape(-1, WORDS)
        if atol := {"fp32": 1e-4, "fp16": 5e-2}.get(file["precision"]):
            np.testing.assert_allclose(outputs["logits"], expected, atol=atol)
        if file["format"] == "onnx":
            said_of = onnx.load(tmp_path / file["file"]).metadata_props
            assert {p.key: p.value for p in said_of}["preprocessing"] == manifest["preprocessing"]
    assert "'next_" in manifest["preprocessing"]
    assert any("200 of 200 tokens" in line for line in said)


def test_a_file_that_forgets_is_not_handed_out(tmp_path, monkeypatch):
    """The state is what a single step cannot show: a file that drops it fails along a sequence."""
    model, tokens = language_model(RNNS["lstm"]()), sentences(6, 12)
    for weight in model.weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    real = recurrent.run_along

    def forgetful(run, sequences, states):
        if not isinstance(run, runtime.Runner):
            return real(run, sequences, states)
        return real(lambda feed: run(feed | {n: 0 * feed[n] for n in states}), sequences, states)

    monkeypatch.setattr(recurrent, "run_along", forgetful)
    with pytest.raises(ExportError, match="'logits' is .* off, more than"):
        tiffin.export.export(
            step_model(model),
            tmp_path,
            precisions=("fp32",),
            calibration=tokens,
            say=lambda line: None,
        )
    assert not [*tmp_path.glob("*.onnx")]


@pytest.mark.parametrize("bidirectional", [pytest.param(False, marks=pytest.mark.full), True])
def test_whole_sequences_are_onnx_own_lstm(bidirectional, tmp_path):
    for rnn in (Recurrent(LSTMCell(UNITS), return_sequences=True), layers.LSTM(4)):
        tokens = keras.Input((None,), dtype="int32")
        x = layers.Embedding(WORDS, UNITS)(tokens)
        x = layers.Bidirectional(rnn)(x) if bidirectional else rnn(x)
        model = with_length(keras.Model(tokens, layers.Dense(3, name="scores")(x)), STEPS)
        options = {"precisions": ("fp32",), "name": "m", "say": lambda line: None}
        tiffin.export.export(model, tmp_path, **options)
        kinds = [n.op_type for n in onnx.load(tmp_path / "m_fp32.onnx").graph.node]
        assert "Loop" not in kinds and "LSTM" in kinds


@pytest.mark.full
@pytest.mark.parametrize("name", ["peephole", "lstm", "gru"])
def test_loops_leave_in_dynamic_int8(name, tmp_path):
    model, tokens = with_length(language_model(RNNS[name]()), STEPS), sentences()
    options = {"precisions": ("int8_dynamic",), "calibration": tokens, "say": lambda line: None}
    for file in tiffin.export.export(model, tmp_path, **options)["files"]:
        outputs = tiffin.export.load(tmp_path / file["file"])(tokens)["logits"]
        np.testing.assert_allclose(outputs, model(tokens), atol=0.3)


def test_unrolled_sequences_leave_in_int8_and_loops_are_told(tmp_path):
    model, tokens = language_model(RNNS["lstm"]()), sentences(20)
    options = {"precisions": ("int8",), "calibration": tokens, "say": lambda line: None}
    with pytest.raises(ExportError, match="unroll=True, or ask for int8_dynamic"):
        looped = with_length(model, STEPS)
        tiffin.export.export(looped, tmp_path, formats=("tflite",), **options)
    unrolled = with_length(model, STEPS, unroll=True)
    np.testing.assert_allclose(unrolled(tokens), model(tokens), atol=1e-5)
    manifest = tiffin.export.export(unrolled, tmp_path, **options)
    for file in manifest["files"]:
        outputs = tiffin.export.load(tmp_path / file["file"])(tokens)["logits"]
        assert np.abs(outputs - np.asarray(model(tokens))).max() < 0.3


def test_calibration_sequences_are_what_a_step_function_is_tried_along(tmp_path):
    step = step_model(language_model(RNNS["gru"]()))
    options = {"formats": ("tflite",), "precisions": ("fp32",), "say": lambda line: None}
    manifest = tiffin.export.export(step, tmp_path, calibration=sentences(6), **options)
    assert manifest["verified_on"] == "6 calibration inputs"
    assert tiffin.export.export(step, tmp_path, **options)["verified_on"] == "random inputs"


def test_examples_of_a_step_function_are_sequences(tmp_path):
    step = step_model(language_model(RNNS["gru"]()))
    for wrong in (sentences()[0], sentences()[..., None]):
        with pytest.raises(InputError, match=r"along sequences, 'token' as \[examples, steps\]"):
            tiffin.export.export(step, tmp_path, calibration=wrong)


def test_examples_may_say_what_a_step_function_begins_with(tmp_path):
    step = step_model(language_model(RNNS["gru"]()))
    (state,) = recurrent.of_keras(step)[1]
    units = step.get_layer(state).output.shape[-1]
    begin = np.random.default_rng(0).normal(size=(len(sentences()), units)).astype("float32")
    seen = []

    def first(outputs, targets) -> float:
        seen.append(outputs["logits"].reshape(*sentences().shape, -1)[:, 0])
        return 0.0

    given = {"token": sentences(), state: begin}
    tiffin.export.export(
        step, tmp_path, formats=("onnx",), precisions=("fp32",),
        evaluation=(given, np.zeros(len(begin))), metric=first,
    )  # fmt: skip
    run, states = recurrent.of_keras(step)
    for logits in seen:  # Keras' own and the file's
        expected = run({"token": sentences()[:, 0], state: begin})["logits"]
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert len(seen) == 2 and not states[state].any()
    with pytest.raises(InputError, match=f"has 1 examples of '{state}' and .* sequences"):
        tiffin.export.export(step, tmp_path, calibration=given | {state: begin[:1]})


@pytest.mark.full
def test_what_int8_costs_is_told_of_a_network_whose_state_leaves_and_is_read(tmp_path):
    step = step_model(language_model(RNNS["peephole"]()))
    options = {"precisions": ("int8",), "calibration": sentences(), "explain": True}
    manifest = tiffin.export.export(step, tmp_path, **options)
    table = (tmp_path / "explain.csv").read_text()
    assert len(manifest["files"]) == 2
    assert all(file["file"] in table for file in manifest["files"])
