"""Recurrent cells against torch, in float64: outputs, states, and gradients through time."""

import keras
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from numerics import examples, gradients, normal, values

from tiffin.layers import (
    CoupledLSTMCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTMCell,
    Recurrent,
    SimpleRNNCell,
)

BATCH, STEPS, FEATURES, UNITS = 3, 12, 4, 5
KINDS = {
    "simple_rnn": (SimpleRNNCell, {}),
    "lstm": (LSTMCell, {}),
    "peephole_lstm": (PeepholeLSTMCell, {}),
    "coupled_lstm": (CoupledLSTMCell, {}),
    "gru": (GRUCell, {}),
    "gru_reset_before": (GRUCell, {"reset_after": False}),
}
KINDS |= {f"{name}_norm": (cell, {**o, "layer_norm": True}) for name, (cell, o) in KINDS.items()}
KINDS |= {f"{name}_no_bias": (KINDS[name][0], {"use_bias": False}) for name in ("lstm", "gru")}


def norm(x, gain):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-5) * gain


def reference(kind: str, x, states, w: dict):
    """One step by torch.nn's cells, or by the papers' equations where torch has none."""
    h, u = states[0], UNITS
    ln = "kernel_gain" in w or "gain" in w
    b = w.get("bias", torch.zeros(1, dtype=torch.float64))
    if kind in ("lstm", "gru") and not ln:
        module = torch.nn.LSTMCell if kind == "lstm" else torch.nn.GRUCell
        # torch's gates: i f g o as here, and r z n where these are z r n.
        order = (0, 1, 2, 3) if kind == "lstm" else (1, 0, 2)
        rows = [
            torch.cat([k.T[i * u : (i + 1) * u] for i in order])
            for k in (w["kernel"], w["recurrent_kernel"])
        ]
        both = [b, torch.zeros_like(b)] if b.ndim == 1 else [*b]
        if "bias" in w:
            rows += [torch.cat([v[i * u : (i + 1) * u] for i in order]) for v in both]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        cell = module(FEATURES, u, bias="bias" in w, dtype=torch.float64)
        given = (x, tuple(states) if kind == "lstm" else h)
        new = torch.func.functional_call(cell, dict(zip(names, rows)), given)
        return [*new] if kind == "lstm" else [new]
    wx, uh = x @ w["kernel"], h @ w["recurrent_kernel"]
    if kind == "simple_rnn":
        return [torch.tanh((norm(wx + uh, w["gain"]) if ln else wx + uh) + b)]
    if kind.startswith("gru"):
        gx, gh = w.get("kernel_gain"), w.get("recurrent_gain")
        bx, bh = b if kind == "gru" else (b, torch.zeros(3 * u, dtype=torch.float64))

        def part(v, gain, columns):
            return norm(v[:, columns], gain[columns]) if ln else v[:, columns]

        gates, last = slice(0, 2 * u), slice(2 * u, 3 * u)
        zr = torch.sigmoid(part(wx, gx, gates) + part(uh, gh, gates) + bx[gates] + bh[gates])
        z, r = zr[:, :u], zr[:, u:]
        if kind == "gru":
            inner = r * (part(uh, gh, last) + bh[last])
        else:
            inner = part((r * h) @ w["recurrent_kernel"], gh, last)
        return [z * h + (1 - z) * torch.tanh(part(wx, gx, last) + bx[last] + inner)]
    c = states[1]
    a = (norm(wx, w["kernel_gain"]) + norm(uh, w["recurrent_gain"]) if ln else wx + uh) + b
    if kind == "coupled_lstm":
        i, g, o = a.split(u, 1)
        f = 1 - torch.sigmoid(i)
    else:
        i, f, g, o = a.split(u, 1)
        if kind == "peephole_lstm":
            i, f = i + w["peepholes"][0] * c, f + w["peepholes"][1] * c
        f = torch.sigmoid(f)
    c = f * c + torch.sigmoid(i) * torch.tanh(g)
    o = o + w["peepholes"][2] * c if kind == "peephole_lstm" else o
    seen = norm(c, w["state_gain"]) + w["state_shift"] if ln else c
    return [torch.sigmoid(o) * torch.tanh(seen), c]


def unrolled(kind, arrays, names, mask):
    """All steps of `reference`; a masked one repeats the output and leaves the states."""
    x, *rest = arrays
    count = 2 if "lstm" in kind else 1
    states, w = [*rest[:count]], dict(zip(names, rest[count:]))
    output, outputs = torch.zeros_like(states[0]), []
    for t in range(STEPS):
        new = reference(kind, x[:, t], states, w)
        here = mask[:, t, None]
        output = torch.where(here, new[0], output)
        states = [torch.where(here, n, s) for n, s in zip(new, states)]
        outputs.append(output)
    return [torch.stack(outputs, 1), *states]


@pytest.mark.parametrize("name", KINDS)
def test_steps_states_and_gradients_through_time_equal_torch_in_float64(name):
    cell, options = KINDS[name]
    layer = keras.layers.RNN(cell(UNITS, **options), return_sequences=True, return_state=True)
    layer.build((BATCH, STEPS, FEATURES))
    paths = [v.path.split("/")[-1] for v in layer.trainable_variables]
    weights = [normal(*v.shape) * 0.7 for v in layer.trainable_variables]
    states = [normal(BATCH, UNITS) for _ in range(layer.cell.state_count)]
    arrays = [normal(BATCH, STEPS, FEATURES), *states, *weights]
    mask = np.ones((BATCH, STEPS), bool)
    mask[0, 7:], mask[1, :3], mask[2, 4:6] = False, False, False
    towards = [normal(BATCH, STEPS, UNITS), *(normal(BATCH, UNITS) for _ in states)]
    # Before a first unmasked step Keras returns zeros, but the initial state under JAX.
    towards[0][1, :3] = 0

    def results(x, *rest):
        given, own = [*rest[: len(states)]], [*rest[len(states) :]]
        frozen = [v.value for v in layer.non_trainable_variables]
        x, seen = ops.convert_to_tensor(x), ops.convert_to_tensor(mask)
        return layer.stateless_call(own, frozen, x, initial_state=given, mask=seen)[0]

    def loss(*arrays):
        return sum(ops.sum(ops.multiply(r, t)) for r, t in zip(results(*arrays), towards))

    kind = name.removesuffix("_norm").removesuffix("_no_bias")
    exact = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]
    expected = unrolled(kind, exact, paths, torch.tensor(mask))
    sum((r * torch.tensor(t)).sum() for r, t in zip(expected, towards)).backward()
    for got, wanted, seen in zip(results(*arrays), expected, towards):
        got, wanted = values(got) * (seen != 0), wanted.detach().numpy() * (seen != 0)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    for path, got, wanted in zip(("x", *states, *paths), gradients(loss, *arrays), exact):
        scale = max(1.0, float(wanted.grad.abs().max()))
        np.testing.assert_allclose(got, wanted.grad, atol=1e-5 * scale, err_msg=str(path))


def plain(name: str, **options) -> keras.layers.RNN:
    cell, own = KINDS[name]
    return keras.layers.RNN(cell(UNITS, **own), return_sequences=True, **options)


def twins(name: str, **options):
    """The same weights in keras.layers.RNN and in Recurrent."""
    slow = plain(name, **options)
    slow.build((BATCH, STEPS, FEATURES))
    fast = Recurrent(slow.cell, return_sequences=True, **options)
    fast.build((BATCH, STEPS, FEATURES))
    return slow, fast


@pytest.mark.parametrize(
    "name, options",
    [(name, {}) for name in KINDS] + [("lstm", {o: True}) for o in ("go_backwards", "unroll")],
    ids=str,
)
def test_all_steps_at_once_are_what_one_step_after_the_other_is(name, options):
    slow, fast = twins(name, **options)
    x, mask = normal(BATCH, STEPS, FEATURES), np.ones((BATCH, STEPS), bool)
    mask[0, 7:], mask[1, 4:6] = False, False
    for seen in (None, ops.convert_to_tensor(mask)):
        expected = values(slow(x, mask=seen, training=False))
        for training in (True, False):
            got = values(fast(x, mask=seen, training=training))
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (SimpleRNNCell, keras.layers.SimpleRNN),
        (LSTMCell, keras.layers.LSTM),
        (GRUCell, keras.layers.GRU),
    ],
)
def test_weights_of_keras_own_layers_fit(ours, theirs):
    x = normal(BATCH, STEPS, FEATURES)
    theirs, ours = theirs(UNITS), Recurrent(ours(UNITS))
    expected = values(theirs(x))
    ours.build(x.shape)
    theirs_first = [values(w) for w in theirs.trainable_variables]
    for one, other in zip(theirs_first, ours.trainable_variables):
        assert one.shape == tuple(other.shape)
    ours.set_weights(theirs_first)
    np.testing.assert_allclose(values(ours(x)), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [keras.layers.RNN, Recurrent])
def test_dropout_is_the_same_at_every_step(kind):
    """A cell that adds up what it is shown, so that the masks can be read off its states."""
    cell = SimpleRNNCell(
        40,
        activation="linear",
        use_bias=False,
        kernel_initializer="identity",
        recurrent_initializer="zeros",
        dropout=0.5,
    )
    layer = kind(cell, return_sequences=True)
    seen = values(layer(np.ones((2, 6, 40), "float32"), training=True))
    assert {*np.unique(seen)} == {0.0, 2.0}
    assert (seen == seen[:, :1]).all() and (seen[0] != seen[1]).any()
    assert (values(layer(np.ones((2, 6, 40), "float32"), training=True)) != seen).any()
    assert (values(layer(np.ones((2, 6, 40), "float32"), training=False)) == 1).all()
    cell = SimpleRNNCell(
        40,
        activation="linear",
        use_bias=False,
        kernel_initializer="zeros",
        recurrent_initializer="identity",
        recurrent_dropout=0.5,
    )
    layer = kind(cell, return_sequences=True)
    begin = ops.ones((2, 40))
    seen = values(layer(np.ones((2, 3, 3), "float32"), initial_state=begin, training=True))
    first = seen[:, 0]
    assert {*np.unique(first)} == {0.0, 2.0}
    np.testing.assert_array_equal(seen[:, 1], first * 2)
    np.testing.assert_array_equal(seen[:, 2], first * 4)


@pytest.mark.parametrize("name", KINDS)
def test_states_are_carried_from_call_to_call(name):
    x = normal(BATCH, STEPS, FEATURES)
    _, whole = twins(name)
    carried = Recurrent(whole.cell, return_sequences=True, stateful=True)
    carried.build((BATCH, None, FEATURES))
    pieces = [values(carried(x[:, i : i + 4], training=True)) for i in range(0, STEPS, 4)]
    expected = values(whole(x, training=True))
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected, atol=1e-5)
    carried.reset_state()
    again = values(carried(x[:, :4], training=True))
    np.testing.assert_allclose(again, pieces[0], atol=1e-6)


def test_a_stateful_network_trains_and_carries_its_states():
    inputs = keras.Input(batch_shape=(4, None, FEATURES))
    layer = Recurrent(LSTMCell(UNITS), stateful=True)
    model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))
    model.compile("sgd", "mse")
    model.fit(normal(8, 5, FEATURES), normal(8, 1), batch_size=4, shuffle=False, verbose=0)
    assert all(np.abs(values(state)).max() > 0.01 for state in layer.states)


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x == "peephole_lstm_norm" else pytest.mark.full) for x in KINDS],
)
def test_cells_are_saved_and_loaded_in_both_directions(name, tmp_path):
    cell, options = KINDS[name]
    inputs = keras.Input((STEPS, FEATURES))
    x = keras.layers.Masking()(inputs)
    both = keras.layers.Bidirectional(Recurrent(cell(UNITS, **options), return_sequences=True))
    stacked = Recurrent(cell(UNITS, recurrent_dropout=0.1, **options), return_state=True)
    model = keras.Model(inputs, stacked(both(x)))
    x = normal(2, STEPS, FEATURES)
    x[0, 8:] = 0
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(model(x), again(x)):
        np.testing.assert_allclose(values(one), values(other), atol=1e-6)
    changed = x.copy()
    changed[1, -1] += 1
    assert np.abs(values(model(changed)[0]) - values(model(x)[0]))[1].max() > 1e-4


def test_gates_begin_open_to_the_past():
    for cell, place, value in ((LSTMCell, 1, 1), (CoupledLSTMCell, 0, -1)):
        layer = cell(3)
        layer.build((None, 2))
        blocks = values(layer.bias).reshape(-1, 3)
        assert (blocks[place] == value).all() and not np.delete(blocks, place, 0).any()
        layer = cell(3, unit_forget_bias=False)
        layer.build((None, 2))
        assert not values(layer.bias).any()


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="dropout=1.5"):
        LSTMCell(3, dropout=1.5)
    with pytest.raises(ValueError, match="recurrent_dropout=1 "):
        GRUCell(3, recurrent_dropout=1)
    with pytest.raises(ValueError, match="units"):
        LSTMCell(0)
    with pytest.raises(TypeError, match="not LSTMCell: give that to keras.layers.RNN"):
        Recurrent(keras.layers.LSTMCell(3))


@examples(12)
@given(st.sampled_from([*KINDS]), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_padding_never_changes_an_output(name, length, padding, training):
    cell, options = KINDS[name]
    layer = Recurrent(cell(UNITS, **options), return_sequences=True, return_state=True)
    x = normal(2, length, FEATURES)
    bare, *states = map(values, layer(x, training=training))
    padded = np.concatenate([x, 1e3 * normal(2, padding, FEATURES)], 1)
    mask = ops.convert_to_tensor(np.arange(length + padding)[None].repeat(2, 0) < length)
    seen, *ends = map(values, layer(padded, mask=mask, training=training))
    np.testing.assert_allclose(seen[:, :length], bare, atol=1e-6)
    np.testing.assert_array_equal(seen[:, length:], seen[:, length - 1 : length].repeat(padding, 1))
    for state, end in zip(states, ends):
        np.testing.assert_allclose(end, state, atol=1e-6)
