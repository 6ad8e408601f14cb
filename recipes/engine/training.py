"""The one way a recipe runs: data, model, dry export, fit, evaluation, report, export."""

import abc
import contextlib
import dataclasses
import itertools
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import keras
import tyro

from tiffin.export.documents import files_table
from tiffin.export.errors import InputError, nearest
from tiffin.export.files import make_folder, write_json, write_text
from tiffin.recipes.engine import distribution, registry, report, weights
from tiffin.recipes.engine.checkpoints import BEST, LAST, Checkpoint, StopOnInterrupt, StopOnNaN
from tiffin.recipes.engine.optimizers import (
    OptimizerName,
    ScheduleName,
    WarmupSchedule,
    make_optimizer,
)
from tiffin.recipes.engine.weights import Collection, Source

PLACED = ("devices", "coordinator", "processes", "process")  # what a resumed run may change


@dataclasses.dataclass
class Recipe(abc.ABC):
    """What every training can be told.

    A task derives from it and gives the abstract methods: its data, loss, metrics and pictures.
    """

    model: str = ""
    """Variant to train, by name: `tiffin list` shows all."""
    data: str = "digits"
    """`digits` (embedded), a TFDS name such as cifar10, or a folder."""
    data_dir: Path | None = None
    """Where TFDS keeps its prepared data sets (its own default: ~/tensorflow_datasets)."""
    epochs: int | None = None
    """Passes over the training data; default: as many as make 2,000 steps, from 4 to 60."""
    batch_size: int = 128
    """Examples in a step."""
    optimizer: OptimizerName = "momentum"
    """gradient_descent takes one step an epoch, with the gradient of all training data."""
    learning_rate: float = 0.1
    """Highest learning rate."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls: not at all, in steps at --milestones, or along a cosine."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises from zero."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """For --schedule step: shares of the training after which --decay-factor applies."""
    decay_factor: float = 0.1
    """For --schedule step: what the learning rate is multiplied by."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of kernels; biases and batch norm are left alone."""
    ema: float = 0.0
    """Decay of a moving average of the weights, the kept ones then; for long trainings. 0: off."""
    clip_norm: float | None = None
    """Gradients that are longer than this, all together, are scaled down to it."""
    early_stopping: int = 0
    """Epochs without improvement after which training ends; 0: never."""
    mixed_precision: Literal["no", "float16", "bfloat16"] = "no"
    """Compute in 16 bits where it is safe; for GPUs."""
    weights: str | None = None
    """Start from `imagenet` or `coco`, what others publish for the variant, or from a file: .keras,
    .weights.h5, .h5, .safetensors, .pth, .weights; a head of another size is replaced. Of a
    detector, imagenet is its backbone's."""
    freeze: str | None = None
    """Keep all layers up to and including this one as they are."""
    seed: int = 0
    """Of the weights, the split, the order and the augmentation."""
    export: bool = False
    """Export the trained model to checked files; a dry export comes before the training."""
    formats: tuple[Literal["onnx", "tflite"], ...] = ("onnx", "tflite")
    """File formats of --export."""
    precisions: tuple[Literal["fp32", "fp16", "int8", "int8_dynamic"], ...] = (
        "fp32",
        "fp16",
        "int8",
    )
    """Precisions of --export."""
    output: Path | None = None
    """Folder of this run; default: runs/<recipe>/<time>."""
    resume: bool = False
    """Go on with the run in --output, or with the newest of this recipe, with its own options."""
    devices: int | None = None
    """Devices of this machine to train on, each with its share of every batch; default: one, of
    several processes all. Under TensorFlow GPUs, under JAX parts of the processor, too."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where those of one training find each other; under JAX. Default for
    all three: what torchrun, SLURM or a Kubernetes indexed job have set."""
    processes: int | None = None
    """How many processes, mostly machines, train together."""
    process: int | None = None
    """Which of them this is, from 0. Process 0 alone writes, into a folder that all can read."""
    built_with: Annotated[dict[str, Any], tyro.conf.Fixed, tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict
    )
    """Options of the builder that no field here has, and that --weights asked for."""

    task: ClassVar[str]
    builder: ClassVar[Callable[..., keras.Model]]
    monitor: ClassVar[tuple[str, str]]
    momentum: ClassVar[float] = 0.9
    least_steps: ClassVar[int] = 1  # in an epoch, which passes over small data more than once
    usual_steps: ClassVar[int] = 2000  # of a training: enough for a small network on small data
    mirrored: ClassVar[bool] = True  # whether Keras computes the loss, as MirroredStrategy needs
    place: ClassVar[distribution.Place] = distribution.ALONE  # in `run`, where it stands then
    # The least and the largest value of an option, where it has one.
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "batch_size": (1, math.inf),
        "epochs": (1, math.inf),
        "warmup_epochs": (0, math.inf),
        "early_stopping": (0, math.inf),
        "decay_factor": (0, 1),
        "seed": (0, 2**32 - 1),
    }

    @abc.abstractmethod
    def load_data(self) -> Any:
        """Return the data: an object with `train`, `validation`, `summary()`."""

    @abc.abstractmethod
    def training_batches(
        self, data: Any, batch_size: int, first_epoch: int, drop_remainder: bool
    ) -> Any:
        """Return endless batches for `fit`, whose order depends on the seed and the epoch alone."""

    @abc.abstractmethod
    def make_model(self, data: Any, normalization: tuple | None) -> keras.Model:
        """Return the untrained network for this data."""

    def inference(self, model: keras.Model) -> keras.Model:
        """Return what is kept, evaluated and exported of a trained network, without its losses."""
        return keras.Model(model.input, model.output, name=model.name)

    def exported(self, model: keras.Model) -> keras.Model:
        """Return what leaves of a network from `inference`."""
        return model

    def dry_export(self, model: keras.Model, data: Any) -> None:
        """Prove that a network from `inference` can leave."""
        from tiffin.export import stage

        stage.dry_run(self.exported(model), self.formats)

    def hand_out(self, model: keras.Model, data: Any, directory: Path, **options) -> dict[str, Any]:
        """Export a network from `inference` as `tiffin.export.export` does; return the manifest."""
        from tiffin import export

        return export.export(self.exported(model), directory, **options)

    def published(self) -> tuple[dict[str, Collection], str]:
        """Return the table of weights that others publish, and which network there it is."""
        return getattr(sys.modules[type(self).__module__], "WEIGHTS", {}), self.model

    def body(self, model: keras.Model) -> keras.Model:
        """Return the part of an untrained network that `weights` and `freeze` are for."""
        return model

    def load(self, model: keras.Model, source: Source) -> list[str]:
        """Copy weights into an untrained network; return what was done, in sentences."""
        return weights.apply(self.body(model), source)

    def companions(self, model: keras.Model) -> dict[str, keras.Model]:
        """Return further networks to keep beside `inference`, by file name."""
        return {}

    def complete(self, model: keras.Model, data: Any, path: Path) -> None:  # noqa: B027
        """Find what gradient descent has left of a trained network, which lies in a file."""

    def callbacks(self, model: keras.Model, data: Any, directory: Path) -> list:
        """Return what else watches the training."""
        return []

    @abc.abstractmethod
    def objective(self) -> dict[str, Any]:
        """Return `loss` and `metrics` for `compile`."""

    @abc.abstractmethod
    def introduce(self, batches: Any, data: Any, directory: Path) -> None:
        """Leave what belongs beside the model from the start: labels, a picture of a batch."""

    @abc.abstractmethod
    def evaluate(self, model: keras.Model, data: Any, directory: Path) -> dict[str, Any]:
        """Measure the trained model on the test split, draw the task's pictures."""

    @abc.abstractmethod
    def export_options(self, data: Any, test: dict[str, Any]) -> dict[str, Any]:
        """Return the task's arguments for `tiffin.export.export`; `test` is what it measured."""

    @classmethod
    def family(cls) -> str:
        """Return the name of the recipe: that of its file, also of a copy that a user owns."""
        return Path(sys.modules[cls.__module__].__file__).stem

    @classmethod
    def variants(cls) -> list[str]:
        """Return the models that the recipe's file lists in its `VARIANTS`."""
        return list(sys.modules[cls.__module__].VARIANTS)

    @property
    def builder_options(self) -> dict[str, Any]:
        """The fields that bear the name of a builder's argument; None is left to the builder."""
        known = registry.options_of(self.builder)
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in known}
        return {name: value for name, value in given.items() if value is not None}

    def check(self) -> None:
        """Refuse what cannot work before anything is loaded.

        Raises:
            InputError: an unknown variant or augmentation, a number out of range.
        """
        if self.model not in self.variants():
            near = nearest(self.model, self.variants())
            raise InputError(f"{self.family()} has no model '{self.model}'{near}")
        for field, (least, most) in self.limits.items():
            value = getattr(self, field)
            if value is not None and not least <= value <= most:
                bound = f"at least {least}" if most == math.inf else f"from {least} to {most}"
                raise InputError(f"--{field.replace('_', '-')} {value}: it must be {bound}.")
        if not 0 <= self.ema < 1:
            raise InputError(
                f"--ema {self.ema} must lie in [0, 1); 0.999 averages over about 1,000 steps."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(
                f"--weight-decay {self.weight_decay} must not be negative; 0.0001 is usual."
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InputError(f"--clip-norm {self.clip_norm}: it must be above zero; 5 is usual.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--learning-rate {self.learning_rate}: it must be above zero.")
        if not all(0 < share < 1 for share in self.milestones):
            raise InputError(
                f"--milestones {' '.join(map(str, self.milestones))}: they are shares of the "
                "training, between 0 and 1, such as 0.5 0.75."
            )

    def run(self) -> dict[str, Any]:
        """Train, evaluate, report and, with `export`, hand out checked files.

        Returns:
            What `metrics.json` holds.

        Raises:
            InputError: whatever a user can mend.
            KeyboardInterrupt: after Ctrl-C, once what was trained is kept.
        """
        self.check()
        asked = distribution.Request(*(getattr(self, name) for name in PLACED))
        with distribution.join(asked) as self.place:
            directory, data, command, interrupted, minutes = self._train()
        if not self.place.leads:
            print(f"Process {self.place.index} has trained; process 0 evaluates and writes.")
            return {}
        if not (directory / BEST).exists():
            print("Stopped by Ctrl-C before the first epoch ended: there is nothing to keep yet.")
            raise KeyboardInterrupt
        best = keras.saving.load_model(directory / BEST, compile=False)
        self.complete(best, data, directory / BEST)
        print("Evaluating ...")
        metrics = self._summarise(best, data, directory, minutes, command)
        if interrupted:
            print(f"Stopped by Ctrl-C. {directory / BEST} is the best model so far; go on with:")
            print(f"  {self._resume_command(directory)}")
            raise KeyboardInterrupt
        if self.export:
            metrics["export"] = self._export(best, data, directory, metrics)
        print(f"All of it is in {directory} ({report.REPORT} is the summary).")
        return metrics

    def _train(self) -> tuple[Path, Any, str, bool, float]:
        """Return where, on what and by which command it was trained, and what `_fit` says."""
        self.place.check_batch(self.batch_size)
        if self.place.strategy and not self.mirrored:
            raise InputError(
                f"{self.model} trains on several devices under JAX: set KERAS_BACKEND=jax."
            )
        if self.place.devices > 1 and self.optimizer == "gradient_descent":
            raise InputError("--optimizer gradient_descent is for one device: its batches differ.")
        directory, made = self._open()
        try:
            data, model = self._prepare(directory)
        except BaseException:
            # A run that never began leaves nothing, neither its folder nor those made above it.
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()
            raise
        command = self._remember(directory)
        interrupted, minutes = self._fit(model, data, directory)
        if interrupted and self.place.count > 1:
            print(f"Go on, with any number of processes: {self._resume_command(self.output)}")
            raise KeyboardInterrupt
        return directory, data, command, interrupted, minutes

    def _prepare(self, directory: Path) -> tuple[Any, keras.Model]:
        """Return the data and the model, ready to train and, as far as can be told, to export."""
        keras.utils.set_random_seed(self.seed)
        policies = {"no": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
        keras.config.set_dtype_policy(policies[self.mixed_precision])
        # Before the data, which may take long: a wrong name is told at once.
        origin = self.output / BEST if self.resume else self.weights
        source = weights.read(origin, *self.published()) if origin else None
        data = self.load_data()
        print(f"Data: {data.summary()}")
        self.place.require_same("data", data.summary())
        if source and not self.resume:
            print("".join(f"{said}\n" for said in weights.adopt(self, source)), end="")
        with self.place.scope():
            model = self.make_model(data, source.normalization if source else None)
        if self.weights and not self.resume:
            print("\n".join(self.load(model, source)))
        if self.freeze:
            weights.freeze(self.body(model), self.freeze)
        trained = sum(math.prod(v.shape) for v in model.trainable_variables)
        print(f"Model: {model.name}, {model.count_params():,} parameters, {trained:,} to train")
        if self.export and self.place.leads:
            with distribution.alone():
                self.dry_export(self.inference(model), data)
            print(f"Dry export: {' and '.join(self.formats)} work")
        self.place.wait()
        return data, model

    def _open(self) -> tuple[Path, list[Path]]:
        """Return the run's folder, proven writable, and which folders had to be made for it."""
        runs = Path("runs") / self.family()
        if not self.place.leads:
            self.output = Path(self.place.agreed(""))
            if self.resume and not (self.output / LAST).exists():
                raise InputError(
                    f"Process {self.place.index} does not see {self.output / LAST}: to resume, all "
                    "processes need the run's folder, on a disk that they share."
                )
            return self.place.folder, []
        if self.resume:
            directory = self.output or newest(runs)
            if directory is None or not (directory / LAST).exists():
                raise InputError(
                    f"There is no run to resume in {directory or runs}, that is, none with a "
                    "finished epoch: name its folder with --output, or start without --resume."
                )
        else:
            directory = self.output or unused(runs / time.strftime("%Y-%m-%d_%H-%M-%S"))
            if (directory / LAST).exists() or (directory / BEST).exists():
                raise InputError(
                    f"{directory} holds a run already: go on with it by --resume, or name another "
                    "folder with --output."
                )
        made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        make_folder(directory)
        self.output = directory
        self.place.agreed(str(directory.resolve()))
        print(f"Run: {directory}")
        return directory, made

    def compile(self, model: keras.Model, steps: int, epochs: int) -> None:
        """Compile a model as configured, for a training of so many epochs of so many steps."""
        total = epochs * steps
        schedule = WarmupSchedule(
            self.learning_rate,
            total,
            round(self.warmup_epochs * steps),
            self.schedule,
            [round(share * total) for share in self.milestones],
            self.decay_factor,
        )
        optimizer = make_optimizer(
            self.optimizer,
            schedule,
            model.trainable_variables,
            self.weight_decay,
            self.ema,
            steps,
            self.clip_norm,
            self.momentum,
        )
        # XLA makes depthwise networks 8 times slower on a CPU under TensorFlow.
        jit = False if keras.backend.backend() == "tensorflow" else "auto"
        model.compile(optimizer=optimizer, jit_compile=jit, **self.objective())

    def _fit(self, model: keras.Model, data: Any, directory: Path) -> tuple[bool, float]:
        """Train; return (whether Ctrl-C ended it, minutes of training over all sessions)."""
        whole = self.optimizer == "gradient_descent"
        batch = self.place.whole(min(self.batch_size, len(data.train)))
        steps = (math.ceil if whole else math.floor)(len(data.train) / batch)
        passes = math.ceil(self.least_steps / steps)
        steps *= passes
        epochs = self.epochs or max(4, min(60, math.ceil(self.usual_steps / steps)))
        with self.place.scope():
            self.compile(model, steps, epochs)
            kept = {BEST: self.inference(model), **self.companions(model)}
        checkpoint = Checkpoint(
            directory, kept if self.place.leads else None, *self.monitor, self.early_stopping
        )
        checkpoint.set_model(model)
        first = checkpoint.restore(self.output / LAST) if self.resume else 0
        if first:
            print(f"Resuming after epoch {first} of {epochs}")
        callbacks = [
            *([keras.callbacks.SwapEMAWeights()] if self.ema else []),
            StopOnNaN(directory),
            checkpoint,
            *self.callbacks(model, data, directory),
            keras.callbacks.TensorBoard(directory / "logs", write_graph=False),
            interrupt := StopOnInterrupt(),
        ]
        batches = self.training_batches(data, batch, first * passes, drop_remainder=not whole)
        self.introduce(batches, data, directory)
        size = self._validation_batch(data, batch)
        validation = data.validation.batches(size, self.place)
        # Of files that are read one by one no length is known, and Keras would wonder at each end.
        known = int(validation.cardinality()) >= 0
        count = None if known else math.ceil(self.place.whole(len(data.validation)) / size)
        if first < epochs and not checkpoint.exhausted():
            with contextlib.suppress(KeyboardInterrupt), interrupt.listening():
                model.fit(
                    batches,
                    epochs=epochs,
                    initial_epoch=first,
                    steps_per_epoch=steps,
                    shuffle=False,
                    verbose=0 if not self.place.leads else "auto" if sys.stdout.isatty() else 2,
                    validation_data=validation,
                    validation_steps=count,
                    callbacks=callbacks,
                )
            if interrupt.asked:
                print(f"\nCtrl-C after {len(checkpoint.rows)} of {epochs} epochs")
        if checkpoint.rows:
            report.curves(checkpoint.rows, directory / "curves.png")
        return interrupt.asked, sum(row["seconds"] for row in checkpoint.rows) / 60

    def _validation_batch(self, data: Any, batch: int) -> int:
        """Return how many examples a step of the validation takes; say which it leaves out."""
        devices = self.place.devices
        left = len(data.validation) - self.place.whole(len(data.validation), devices)
        if left:
            print(
                f"Validation leaves out {left} of {len(data.validation)} examples, as {devices} "
                "devices take equal shares; training leaves out what fills no batch of an epoch."
            )
        return math.ceil(max(batch, 64) / devices) * devices

    def _remember(self, directory: Path) -> str:
        """Write the configuration; return the command that the run was started with."""
        name, command = "config.json", command_line()
        if self.resume:
            command = json.loads((self.output / name).read_text()).get("command", command)
        write_json(directory / name, to_json(self) | {"command": command})
        return command

    def _summarise(
        self, model, data, directory: Path, minutes: float, command: str
    ) -> dict[str, Any]:
        history = report.read_history(directory)
        metrics = {
            "recipe": self.family(),
            "model": self.model,
            "task": self.task,
            "data": self.data,
            "command": command,
            "parameters": model.count_params(),
            "input_shape": list(model.inputs[0].shape[1:]),
            "epochs": len(history),
            "minutes": round(minutes, 2),
            "backend": keras.backend.backend(),
            "test": self.evaluate(model, data, directory),
        }
        self._publish(metrics, directory)
        return metrics

    def _publish(self, metrics: dict[str, Any], directory: Path) -> None:
        write_json(directory / "metrics.json", metrics)
        write_text(directory / report.REPORT, report.markdown(metrics, directory))

    def _export(self, model, data, directory: Path, metrics: dict[str, Any]) -> dict[str, Any]:
        from tiffin.export.errors import ExportError

        options = self.export_options(data, metrics["test"])
        try:
            manifest = self.hand_out(
                model,
                data,
                directory / "export",
                formats=self.formats,
                precisions=self.precisions,
                name=self.model,
                task=self.task,
                **options,
            )
        except ExportError as error:
            manifest = getattr(error, "manifest", None)
            if manifest:
                self._publish(metrics | {"export": manifest}, directory)
            raise
        self._publish(metrics | {"export": manifest}, directory)
        print(files_table(manifest))
        return manifest

    def _resume_command(self, directory: Path) -> str:
        base = command_line().split(" --")[0]
        return f"{base} --resume --output {shlex.quote(str(directory))}"


def unused(path: Path) -> Path:
    """Return the path, numbered if another run of the same second has taken it."""
    names = (path.with_name(f"{path.name}_{n}" if n > 1 else path.name) for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def newest(runs: Path) -> Path | None:
    """Return the run in a folder of runs that last finished an epoch."""
    states = sorted(runs.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    return states[-1].parent if states else None


def command_line() -> str:
    """Return the command that started this process, as a person would type it."""
    program = Path(sys.argv[0])
    start = ["python", sys.argv[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*start, *sys.argv[1:]])


def to_json(recipe: Recipe) -> dict[str, Any]:
    """Return a configuration's fields as JSON values."""
    fields = dataclasses.asdict(recipe)
    return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items() if k not in PLACED}


def from_json(kind: type[Recipe], path: Path) -> Recipe:
    """Read the configuration of an earlier run.

    Raises:
        InputError: a damaged file, or one of another recipe.
    """
    try:
        stored = json.loads(path.read_text())
        stored.pop("command", None)
        hints = get_type_hints(kind)
        values = {}
        for name, value in stored.items():
            path_like = "Path" in str(hints[name])
            value = Path(value) if path_like and value is not None else value
            values[name] = tuple(value) if isinstance(value, list) else value
            if not _fits(values[name], hints[name]):
                raise TypeError(f"{name} is {value!r:.60}")
        return kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not the configuration of a run of this recipe ({error!r}): resume with the "
            "recipe that the run was started with."
        ) from error


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a field's type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if inner and origin is not dict:
        return any(_fits(value, kind) for kind in inner)
    return isinstance(value, int | float if hint is float else origin or hint)


def parse(
    kind: type[Recipe], arguments: list[str], prog: str | None = None, model: str | None = None
) -> Recipe:
    """Read a recipe's command line; with --resume the stored configuration gives the defaults.

    Args:
        kind: the recipe's configuration class.
        arguments: the command line's words.
        prog: how the command is called, for the help.
        model: the variant that was asked for by name; a run of another is not resumed.
    """
    default = kind(**({"model": model} if model else {}))
    config = tyro.cli(kind, args=arguments, prog=prog, default=default)
    if not config.resume:
        return config
    directory = config.output or newest(Path("runs") / kind.family())
    stored = (directory or Path()) / "config.json"
    if not stored.exists():
        return config  # _open says what is missing
    default = from_json(kind, stored)
    if model not in (None, default.model):
        raise InputError(
            f"{directory} holds a run of {default.model}, not of {model}: name the run's folder "
            f"with --output, or resume {default.model}."
        )
    return dataclasses.replace(
        tyro.cli(kind, args=arguments, prog=prog, default=default), resume=True, output=directory
    )


def main(kind: type[Recipe], model: str | None = None, prog: str | None = None, arguments=None):
    """Run a recipe from the command line and exit: 0, 2 for a user's mistake, 130 for Ctrl-C.

    Args:
        kind: the recipe's configuration class.
        model: a variant that takes the place of the class's default.
        prog: how the command is called, for the help.
        arguments: instead of `sys.argv[1:]`.
    """
    from tiffin.export import cli

    given = sys.argv[1:] if arguments is None else arguments
    sys.exit(cli.run(lambda: parse(kind, given, prog, model).run()))
