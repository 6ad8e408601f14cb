"""Recurrent cells against torch, in float64: outputs, states, and gradients through time."""

import keras
import numpy as np
import pytest
import torch
from keras import ops
from numerics import gradients, normal, values

from tiffin.layers import (
    CoupledLSTMCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTMCell,
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
