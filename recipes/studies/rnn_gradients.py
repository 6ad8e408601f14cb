"""Backpropagation through time by hand, and how far gradients reach in recurrent networks.

Werbos: Backpropagation Through Time, 1990; Bengio, Simard, Frasconi: Learning Long-Term
Dependencies with Gradient Descent is Difficult, 1994; Pascanu, Mikolov, Bengio: On the Difficulty
of Training Recurrent Neural Networks, 2013, arXiv 1211.5063, for radius and clipping.

    python recipes/studies/rnn_gradients.py
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from tiffin.layers import GRUCell, LSTMCell, SimpleRNNCell
from tiffin.recipes.engine.study import STYLES, Outcome, Study, autodiff, main

CLAIM = "Gradients of a simple RNN vanish or explode with the time lag; gates carry them further"
CELLS = {
    # name: cell, spectral radius of the recurrent kernel, bias of the gate that keeps the state
    "RNN, radius 0.8": (SimpleRNNCell, 0.8, None),
    "RNN, radius 1.2": (SimpleRNNCell, 1.2, None),
    "RNN, radius 1.2, linear": (lambda n: SimpleRNNCell(n, activation="linear"), 1.2, None),
    "LSTM, forget bias 1": (LSTMCell, 1.0, 1.0),
    "LSTM, forget bias 4": (LSTMCell, 1.0, 4.0),
    "GRU": (GRUCell, 1.0, 0.0),
    "GRU, update bias 4": (GRUCell, 1.0, 4.0),
}


def bptt(u, w, v, x, labels):
    """Return the loss of h' = tanh(U x + W h), o = V h', and its gradients by U, W, V, by hand.

    x is float `[steps, features]`, the loss the cross-entropy of all steps' o and labels, in sum.
    """
    steps, states = len(x), [np.zeros(len(w))]
    for t in range(steps):
        states.append(np.tanh(u @ x[t] + w @ states[-1]))
    scores = np.stack(states[1:]) @ v.T
    p = np.exp(scores - np.logaddexp.reduce(scores, 1, keepdims=True))
    loss = -np.log(p[np.arange(steps), labels]).sum()
    errors = p - np.eye(len(v))[labels]  # by o
    du, dw, dv = np.zeros_like(u), np.zeros_like(w), np.zeros_like(v)
    later = np.zeros(len(w))  # by the state, from all steps behind it
    for t in reversed(range(steps)):
        h, before = states[t + 1], states[t]
        dv += np.outer(errors[t], h)
        inner = (v.T @ errors[t] + later) * (1 - h**2)  # by what tanh is of
        du += np.outer(inner, x[t])
        dw += np.outer(inner, before)
        later = w.T @ inner
    return loss, du, dw, dv


def loss_of(u, w, v, x, labels):
    """Return the loss of `bptt`, for automatic differentiation."""
    h, total = ops.zeros(w.shape[0], x.dtype), 0.0
    for t in range(len(x)):
        h = ops.tanh(ops.matmul(u, x[t]) + ops.matmul(w, h))
        total = total - ops.log_softmax(ops.matmul(v, h))[labels[t]]
    return total


def by_lag(cell, radius: float, gate: float | None, steps: int, random) -> np.ndarray:
    """Return the gradient of the last output by the input of each lag, relative to lag 0."""
    layer = keras.layers.RNN(cell)
    x = 0.1 * random.normal(size=(16, steps, 8)).astype("float32")
    layer.build(x.shape)
    cell.recurrent_kernel.assign(cell.recurrent_kernel * radius)  # from orthogonal blocks
    if gate is not None:
        # LSTM's blocks are i, f, g, o; GRU's z, r, g, of W and of U.
        bias = ops.convert_to_numpy(cell.bias).copy()
        bias[slice(64, 128) if isinstance(cell, LSTMCell) else (0, slice(64))] = gate
        cell.bias.assign(bias)
    towards = random.normal(size=(16, 64)).astype("float32")
    (gradient,) = autodiff(lambda x: ops.sum(ops.multiply(layer(x), towards)), x)
    norms = np.linalg.norm(gradient, axis=-1).mean(0)[::-1]
    return norms / norms[0]


@dataclasses.dataclass
class Config(Study):
    """Hold BPTT by hand against automatic differentiation, and measure how far gradients reach."""

    steps: int = 60
    """Longest time lag."""

    def measure(self, seed):
        random, table = np.random.default_rng(seed), {}
        u, w, v, x = (random.normal(0, 0.5, s) for s in ((7, 4), (7, 7), (5, 7), (12, 4)))
        labels = random.integers(0, 5, 12)
        _, *own = bptt(u, w, v, x, labels)
        found = autodiff(lambda *weights: loss_of(*weights, x, labels), u, w, v)
        apart = max(np.abs(a - b).max() for a, b in zip(own, found, strict=True))
        table["BPTT by hand"] = {"differs from autodiff by": apart}
        # Clipping by the norm of all together, to 1.
        whole = 50 * np.concatenate([g.ravel() for g in own])
        short = whole * min(1.0, 1.0 / (before := np.linalg.norm(whole)))
        length = np.linalg.norm(short)
        cosine = whole @ short / before / length
        table["clipping to 1"] = {"length before": before, "length": length, "cosine": cosine}
        curves, lags = {}, (10, self.steps - 1)
        for name, (kind, radius, gate) in CELLS.items():
            curves[name] = by_lag(kind(64), radius, gate, self.steps, random)
            table[name] = {f"gradient at lag {lag}": curves[name][lag] for lag in lags}
        return table, curves

    def draw(self, figure, rows, drawn):
        axes = figure.subplots()
        for name, style in zip(CELLS, STYLES, strict=True):
            norms = np.mean([curves[name] for curves in drawn], 0)
            axes.semilogy(norms, **style, label=name)
        axes.set(xlabel="time lag, steps", ylabel="gradient norm, relative to lag 0")
        axes.set_title("How far the gradient of the last output reaches back")
        axes.legend()
        axes.grid(alpha=0.3)

    def judge(self, rows, spread):
        apart, clip = rows["BPTT by hand"]["differs from autodiff by"], rows["clipping to 1"]
        low, high, linear, *gated = (rows[n][f"gradient at lag {self.steps - 1}"] for n in CELLS)
        return [
            Outcome(
                "Backpropagation through time is the chain rule along the steps.",
                f"dU, dW, dV by hand differ from automatic differentiation by {apart:.1g}.",
                apart < 1e-6,
            ),
            Outcome(
                "With a spectral radius below 1 the gradient vanishes, above 1 it explodes.",
                f"At lag {self.steps - 1} {low:.1g} of it is left with 0.8; with 1.2 it is "
                f"{linear:.2g} times as large, but {high:.2g} times behind tanh.",
                low < 1e-4 and linear > 100 and high > 100,
            ),
            Outcome(
                "LSTM and GRU carry it further than a simple RNN.",
                f"Untrained, as far as their gates are open: LSTM leaves {gated[0]:.1g}, with a "
                f"forget bias of 4 {gated[1]:.2g}; GRU {gated[2]:.1g}, with 4 {gated[3]:.2g}.",
                min(gated) > 10 * low,
            ),
            Outcome(
                "Clipping by the norm shortens a gradient and keeps its direction.",
                f"From {clip['length before']:.0f} to 1, at a cosine of {clip['cosine']:.6f}.",
                abs(clip["length"] - 1) < 1e-6 and clip["cosine"] > 1 - 1e-9,
            ),
        ]


if __name__ == "__main__":
    main(Config)
