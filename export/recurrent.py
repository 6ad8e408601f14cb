"""Step functions of recurrent networks: their states are inputs and outputs of the file."""

from collections.abc import Callable, Mapping

import numpy as np

from tiffin.export import runtime
from tiffin.export.errors import InputError

NEXT = "next_"  # before the name of the input that an output is handed to at the next step
TOKEN = "token"
LOGITS = "logits"

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def initial(inputs, outputs) -> dict[str, np.ndarray]:
    """Return a step function's states before the first step, float32 `[1, units]`, by input.

    An input `NAME` is a state where there is an output `next_NAME`.

    Args:
        inputs, outputs: of the function; each has a `name`, and a `shape` that ends in the units.
    """
    handed = {port.name for port in outputs}
    return {
        port.name: np.zeros((1, port.shape[-1]), np.float32)
        for port in inputs
        if f"{NEXT}{port.name}" in handed
    }


def of_keras(model) -> tuple[Run, dict[str, np.ndarray]]:
    """Return a step function that Keras runs, and its states before the first step.

    Args:
        model: from `steps.step_model`.
    """
    runner = runtime.of_model(model)
    return runner, initial(runner.inputs, runner.outputs)


def of_language(runner) -> dict[str, np.ndarray]:
    """Return the states of a language model's step function before the first step.

    Raises:
        InputError: the model is none.
    """
    states = initial(runner.inputs, runner.outputs)
    others = {t.name for t in runner.inputs} - {*states}
    if not states or others != {TOKEN} or LOGITS not in {t.name for t in runner.outputs}:
        raise InputError(
            f"{runner} is no step function of a language model: that takes '{TOKEN}' and states, "
            f"and returns '{LOGITS}' and their next values. Export the run's model.keras anew."
        )
    return states


def run_along(
    run: Run, sequences: Mapping[str, np.ndarray], begin: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run a step function along sequences, its own states handed on.

    Args:
        run: the function.
        sequences: by input `[batch, steps, ...]`.
        begin: by input `[batch, ...]`, or `[1, ...]` for all alike: its states before the first
            step, as from `initial`, and what stays the same at all steps.

    Returns:
        What it returned, and what it was given, at every step: by name `[batch * steps, ...]`, the
        steps of a sequence in a row.
    """
    batch, steps = next(iter(sequences.values())).shape[:2]
    kept = {name: np.repeat(v, batch // len(v), 0) for name, v in begin.items()}
    outputs, feeds = [], []
    for t in range(steps):
        feeds.append({name: array[:, t] for name, array in sequences.items()} | kept)
        outputs.append(run(feeds[-1]))
        kept = {name: outputs[-1].get(f"{NEXT}{name}", array) for name, array in kept.items()}
    return _flat(outputs), _flat(feeds)


def _flat(steps: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    stacked = {name: np.stack([step[name] for step in steps], 1) for name in steps[0]}
    return {name: a.reshape(-1, *a.shape[2:]) for name, a in stacked.items()}


def log_likelihood(outputs: Mapping[str, np.ndarray], targets: np.ndarray) -> float:
    """Return the mean log-probability of the right tokens, in nats; perplexity is exp of its minus.

    Args:
        outputs: `logits`, float `[n, vocabulary]`, or with the axes of `targets` before the last.
        targets: int, as many as there are rows of logits; -1 where nothing is asked for.
    """
    logits = np.asarray(outputs[LOGITS])
    logits, targets = logits.reshape(-1, logits.shape[-1]), np.asarray(targets).ravel()
    logits, targets = logits[targets >= 0], targets[targets >= 0]
    return float(log_softmax(logits)[np.arange(len(targets)), targets].mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities, float64, along the last axis."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
