"""What survives a run that ends early: the best model, the last state, the history."""

import contextlib
import csv
import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from tiffin.export.errors import InputError
from tiffin.export.files import replacing, require_space, write_text
from tiffin.recipes.engine.distribution import alone

LAST, BEST, HISTORY = "last.weights.h5", "model.keras", "history.csv"


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Put the moving average of the weights in the model's place, where the optimizer keeps one."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    variables = optimizer._trainable_variables
    raw = [keras.ops.convert_to_numpy(v) for v in variables]
    for variable, average in zip(variables, optimizer._model_variables_moving_average, strict=True):
        variable.assign(average)
    try:
        yield
    finally:
        for variable, value in zip(variables, raw, strict=True):
            variable.assign(value)


class Checkpoint(keras.callbacks.Callback):
    """After each epoch: the history, the best model so far, and all that is needed to go on.

    Args:
        directory: the run's folder.
        kept: the networks to keep of the best epoch, uncompiled, by file name; they share their
            weights with the trained one. None: another process keeps them, and the state.
        monitor: name of the metric that says which epoch is best.
        mode: `max` or `min`.
        patience: epochs without a better one after which training stops; 0 for never.
    """

    def __init__(
        self,
        directory: Path,
        kept: dict[str, keras.Model] | None,
        monitor: str,
        mode: str,
        patience: int = 0,
    ):
        super().__init__()
        self.directory = directory
        self.kept = kept
        self.monitor = monitor
        self.sign = 1 if mode == "max" else -1
        self.patience = patience
        self.rows: list[dict[str, float]] = []

    def best(self) -> tuple[int, int]:
        """Return the places in `rows` of the first and the last of the equally best epochs."""
        scores = np.array([self.sign * row[self.monitor] for row in self.rows])
        scores[np.isnan(scores)] = -np.inf  # no number is no score
        places = np.flatnonzero(scores == scores.max())
        return int(places[0]), int(places[-1])

    def exhausted(self) -> bool:
        """Whether so many epochs brought nothing better that training should end."""
        return bool(self.patience and self.rows) and (
            len(self.rows) - 1 - self.best()[0] >= self.patience
        )

    def restore(self, path: Path) -> int:
        """Load the last state into the compiled model and return the epoch to go on with.

        Args:
            path: of the state, `LAST` in a run's folder.

        Raises:
            InputError: the state is damaged, or belongs to another model.
        """
        import h5py

        try:
            with h5py.File(path) as file:
                state = json.loads(file.attrs["tiffin"])
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(path)
            # What runs of an earlier version left has none.
            for variable, seed in zip(self._seeds(), state.get("seeds", ()), strict=False):
                variable.assign(np.array(seed, variable.dtype))
            self.rows = state["history"]
            if not all(isinstance(v, int | float) for row in self.rows for v in row.values()):
                raise TypeError("its history has more than numbers")
            self.best()
        except Exception as error:
            # h5py, Keras and JSON raise all sorts of errors on broken bytes.
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{path} does not belong to this model, or is damaged ({cause}): resume with the "
                "options that the run was started with (config.json has them)."
            ) from error
        return len(self.rows)

    def _seeds(self) -> list[keras.Variable]:
        """Return where dropout and the like stand in their random numbers: no weights to Keras."""
        return [v for v in self.model.variables if v.path.endswith("seed_generator_state")]

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        row = {name: float(value) for name, value in (logs or {}).items()}
        rate = self.model.optimizer.learning_rate
        row = {"epoch": epoch + 1, **row, "learning_rate": float(rate)}
        self.rows.append(row | {"seconds": time.perf_counter() - self.started})
        first, last = self.best()
        # Of equals the last is kept: a small validation split cannot tell them apart, and it has
        # learned for longer. Waiting counts from the first.
        if last == len(self.rows) - 1:
            with averaged(self.model), alone():
                for name, network in (self.kept or {}).items():
                    with replacing(self.directory / name) as temporary:
                        network.save(temporary)
        if self.kept is not None:
            self._save_last()
        self._save_history()
        if self.exhausted():
            print(
                f"\nNo better {self.monitor} than {self.rows[first][self.monitor]:.4f} of epoch "
                f"{first + 1} in {self.patience} epochs: stopping early."
            )
            self.model.stop_training = True

    def _save_last(self) -> None:
        import h5py

        variables = [*self.model.variables, *self.model.optimizer.variables]
        size = sum(math.prod(v.shape) * 4 for v in variables)
        seeds = [keras.ops.convert_to_numpy(v).tolist() for v in self._seeds()]
        require_space(self.directory, size + size // 10 + 100_000)
        with replacing(self.directory / LAST) as temporary, alone():
            self.model.save_weights(temporary)
            # One file, one rename: weights and their epoch can never disagree after a crash.
            with h5py.File(temporary, "a") as file:
                file.attrs["tiffin"] = json.dumps({"history": self.rows, "seeds": seeds})

    def _save_history(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.rows[-1], lineterminator=os.linesep)
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.directory / HISTORY, text.getvalue())


class StopOnInterrupt(keras.callbacks.Callback):
    """End a training at the end of the batch in which Ctrl-C was pressed; a second one, at once.

    Raised wherever it happens to strike, the interrupt may hit a write, or be lost in native code
    that calls back into Python.
    """

    asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT for the time of a block, where Python lets this thread do so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _ask(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def _answer(self, number, logs=None):
        if self.asked:
            raise KeyboardInterrupt

    on_train_batch_end = on_test_batch_end = on_epoch_end = _answer


class StopOnNaN(keras.callbacks.Callback):
    """End a training whose loss is no longer a number, saying what to change."""

    def __init__(self, directory: Path):
        super().__init__()
        self.directory = directory

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if np.isfinite(loss):
            return
        kept = (
            f"The best model of the epochs before is {self.directory / BEST}. "
            if (self.directory / BEST).exists()
            else ""
        )
        raise InputError(
            f"The loss became {loss} in epoch {self.epoch + 1}, batch {batch + 1}: training has "
            f"diverged. {kept}Lower --learning-rate (a third is a good next try), add "
            "--warmup-epochs 1, or leave --mixed-precision out."
        )
