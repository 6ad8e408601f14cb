"""How a study runs: seeds, a table with their spread, a figure, claims beside what was measured."""

import abc
import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tyro

from tiffin.export import runtime
from tiffin.export.errors import InputError
from tiffin.export.files import make_folder, write_json, write_text
from tiffin.recipes.engine import report
from tiffin.recipes.engine.data import ImageData, load_images
from tiffin.recipes.engine.training import command_line, unused

Table = dict[str, dict[str, float]]
_LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "v"), ("-", "x"), ("--", "D"), (":", "+"))
# Of lines, told apart without colours; hand one to `plot`.
STYLES = tuple(
    {"linestyle": line, "marker": marker, "markevery": 0.15, "markersize": 4, "color": "black"}
    for line, marker in _LOOKS
)


class Outcome(NamedTuple):
    """A claim and what became of it.

    Attributes:
        claim: as textbooks have it.
        measured: what was found, with its numbers.
        holds: whether that is what the claim says.
    """

    claim: str
    measured: str
    holds: bool


class Examples(NamedTuple):
    """Pictures of a split: float32 `[n, height, width, channels]`, normalised, and int32 labels."""

    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass
class Study(abc.ABC):
    """An experiment, repeated with several seeds."""

    seeds: int = 3
    """Repetitions, each with its own weights, order and draws."""
    output: Path | None = None
    """Folder of the results; default: runs/<study>/<time>."""

    inches: ClassVar[tuple[float, float]] = (10, 4)  # of the figure

    @abc.abstractmethod
    def measure(self, seed: int) -> tuple[Table, Any]:
        """Return one repetition: numbers by row and column, and whatever `draw` takes."""

    @abc.abstractmethod
    def draw(self, figure, rows: Table, drawn: list[Any]) -> None:
        """Draw on a matplotlib figure: `rows` are means, `drawn` is what each repetition left."""

    @abc.abstractmethod
    def judge(self, rows: Table, spread: Table) -> list[Outcome]:
        """Return the claims and what means and standard deviations over the seeds say of them."""

    @classmethod
    def name(cls) -> str:
        """Return the name of the study: that of its file."""
        return Path(sys.modules[cls.__module__].__file__).stem

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: a number out of range.
        """
        if self.seeds < 1:
            raise InputError(f"--seeds {self.seeds}: it must be at least 1; 3 show a spread.")

    def run(self) -> dict[str, Any]:
        """Measure, print the table, draw the figure, and write the claims beside the outcome.

        Returns:
            What `study.json` holds.

        Raises:
            InputError: whatever a user can mend.
        """
        self.check()
        directory = self.output or unused(
            Path("runs") / self.name() / time.strftime("%Y-%m-%d_%H-%M-%S")
        )
        runtime.allow_retracing()  # each repetition has networks of its own
        begin, found = time.perf_counter(), []
        for seed in range(self.seeds):
            print(f"Seed {seed + 1} of {self.seeds} ...", flush=True)
            keras.utils.set_random_seed(seed)
            found.append(self.measure(seed))
            make_folder(directory)  # no later: what cannot be written to is told after one
        tables, drawn = [list(part) for part in zip(*found, strict=True)]
        rows, spread = (_over(tables, function) for function in (np.mean, np.std))
        outcomes = self.judge(rows, spread)
        result = {
            "study": self.name(),
            "title": sys.modules[type(self).__module__].__doc__.partition("\n")[0],
            "command": command_line(),
            "seeds": self.seeds,
            "minutes": round((time.perf_counter() - begin) / 60, 2),
            "backend": keras.backend.backend(),
            "rows": rows,
            "spread": spread,
            "outcomes": [outcome._asdict() for outcome in outcomes],
        }
        figure = report.new_figure(*self.inches)
        self.draw(figure, rows, drawn)
        report.save(figure, directory / report.FIGURE)
        write_json(directory / report.STUDY, result)
        text = report.study(result)
        write_text(directory / report.REPORT, f"# {text}\n\n![figure]({report.FIGURE})\n")
        print(f"\n{text}\n\nAll of it is in {directory} ({report.FIGURE} is the figure).")
        return result


@dataclasses.dataclass
class DataStudy(Study):
    """An experiment with pictures."""

    data: str = "digits"
    """`digits` (embedded), a TFDS name such as mnist, or a folder of class folders."""
    data_dir: Path | None = None
    """Where TFDS keeps its prepared data sets."""
    image_size: int = 16
    """Height and width in pixels."""
    examples: int = 1000
    """Training pictures, at most."""

    def check(self) -> None:
        super().check()
        for name in ("image_size", "examples"):
            if getattr(self, name) < 8:
                raise InputError(f"--{name.replace('_', '-')}: it must be at least 8.")

    def pictures(self, seed: int) -> ImageData:
        """Return the data with so many training pictures."""
        data = load_images(self.data, self.data_dir, self.image_size, self.image_size, seed)
        return dataclasses.replace(
            data, train=data.train.take(data.train.chosen(self.examples, seed))
        )

    @functools.cached_property
    def _prepared(self) -> dict[str, keras.Model]:
        return {}

    def prepared(self, name: str, model: keras.Model, optimizer) -> keras.Model:
        """Return a network with the weights of `model`, ready to train from them.

        The one that was prepared first under a name serves again: compiling takes longer than
        a training does here. Its learning rate becomes this optimizer's, if that is a number.
        """
        if name not in self._prepared:
            prepare(model, optimizer)
            return self._prepared.setdefault(name, model)
        again = self._prepared[name]
        again.set_weights(model.get_weights())
        for variable in again.optimizer.variables:  # all of them start at zero but the rate
            of_rate = variable is again.optimizer.learning_rate
            variable.assign(optimizer.learning_rate if of_rate else np.zeros(variable.shape))
        return again

    def load(self, seed: int) -> tuple[Examples, Examples, int]:
        """Return the training and the test pictures, and how many classes there are.

        Grey pictures have one channel. Mean and spread of the training pictures are 0 and 1.
        """
        data = self.pictures(seed)
        parts = data.train.arrays(), data.test.arrays(max(1000, self.examples), seed)
        grey = (parts[0][0] == parts[0][0][..., :1]).all()
        mean, std = (np.float32(f(parts[0][0])) for f in (np.mean, np.std))
        train, test = (Examples(((x[..., :1] if grey else x) - mean) / std, y) for x, y in parts)
        return train, test, len(data.classes)


def _over(tables: list[Table], function) -> Table:
    return {
        row: {column: float(function([t[row][column] for t in tables])) for column in cells}
        for row, cells in tables[0].items()
    }


def prepare(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Compile a network from pictures to logits, for integer labels."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # TensorFlow would compile each of many small networks for longer than it trains.
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit)


class Losses(keras.callbacks.Callback):
    """Note the training loss at the start and a dozen times on the way.

    Args:
        train: all examples.
        steps: of the whole training.

    Attributes:
        rows: (steps, seconds of training alone, loss of all examples), at each note.
    """

    def __init__(self, train, steps: int):
        super().__init__()
        self.train, self.steps, self.often = train, steps, max(1, steps // 12)
        self.rows, self.step, self.seconds = [], 0, 0.0

    def note(self, logs=None):
        loss, _ = self.model.evaluate(*self.train, batch_size=512, verbose=0)
        self.rows.append((self.step, self.seconds, loss))

    on_train_begin = note

    def on_train_batch_begin(self, batch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if self.step:  # the first is spent on tracing
            self.seconds += time.perf_counter() - self.began
        self.step += 1
        if self.step % self.often == 0 or self.step == self.steps:
            self.note()


def autodiff(function, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return the gradients of a function's scalar by arrays, by the backend that runs."""
    if keras.backend.backend() == "jax":
        import jax

        return [np.asarray(g) for g in jax.grad(function, range(len(arrays)))(*arrays)]
    tensors = [keras.ops.convert_to_tensor(a) for a in arrays]
    if keras.backend.backend() == "torch":
        import torch

        tensors = [t.requires_grad_() for t in tensors]
        return [g.cpu().numpy() for g in torch.autograd.grad(function(*tensors), tensors)]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return [g.numpy() for g in tape.gradient(value, tensors)]


def main(kind: type[Study], prog: str | None = None, arguments: list[str] | None = None) -> None:
    """Run a study from the command line and exit: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    from tiffin.export import cli

    given = sys.argv[1:] if arguments is None else arguments
    sys.exit(cli.run(lambda: tyro.cli(kind, args=given, prog=prog).run()))
