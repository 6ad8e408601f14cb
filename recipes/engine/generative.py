"""The task of generation: pictures out of random numbers, by two networks against each other."""

import abc
import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import keras
import numpy as np
from keras import ops

from tiffin.export import runtime
from tiffin.export.errors import InputError
from tiffin.export.files import make_folder, write_text
from tiffin.export.metadata import LABELS_FILE, labels_text
from tiffin.layers import ToPixels, discriminator_loss, generator_loss
from tiffin.recipes.engine import distribution, registry, report
from tiffin.recipes.engine.checkpoints import BEST
from tiffin.recipes.engine.data import ImageData, load_images
from tiffin.recipes.engine.optimizers import OptimizerName, ScheduleName
from tiffin.recipes.engine.training import Recipe

SAMPLES, JUDGE = "samples", "judge"
_SIDE = 8  # pictures along a side of a sheet
_COMPARED = 1000  # pictures that an epoch is judged by
_AT_ONCE = 100  # pictures
_FRAMES = 100  # of the animation, at most
_COVERED = 0.1  # share of a class' own share from which it counts as made
_NARROW = 0.25  # share of the data's spread below which samples count as alike
_JUDGE_STEPS = 200


class Adversarial(keras.Model):
    """A generator and a discriminator, each with its own optimizer, that train in turns.

    A step is one of the discriminator on a batch of real and one of generated pictures, then one of
    the generator on new latent numbers (Goodfellow et al. 2014, algorithm 1 with k = 1).

    Args:
        generator: from `latent` to pictures, -1 to 1.
        discriminator: from such pictures to a logit.
        loss: see `tiffin.layers.generator_loss`.
        smoothing: how far the target of real pictures lies below 1 (Salimans et al. 2016, section
            3.4: one-sided label smoothing).
        seed: of the latent numbers.

    Attributes:
        judge: function without arguments whose dict of numbers stands for the validation.
    """

    def __init__(self, generator, discriminator, loss: str, smoothing: float = 0.0, seed: int = 0):
        super().__init__(name=generator.name)
        self.generator, self.discriminator = generator, discriminator
        self.loss_kind, self.smoothing = loss, smoothing
        self.chance = keras.random.SeedGenerator(seed)
        names = ("loss", "generator_loss", "real_accuracy", "fake_accuracy")
        self.trackers = [keras.metrics.Mean(name=name) for name in names]
        self.judge = None
        self.built = True

    def compile(self, optimizer, **kwargs):
        super().compile(optimizer=optimizer, **kwargs)
        self.discriminator_optimizer = type(optimizer).from_config(optimizer.get_config())
        self.optimizer.build(self.trainable_variables)
        self.discriminator_optimizer.build(self.trainable_variables)

    @property
    def metrics(self):
        return self.trackers

    def latent(self, count):
        """Return latent numbers, uniform in [-1, 1], `[count, size]`."""
        shape = (count, self.generator.input.shape[-1])
        return keras.random.uniform(shape, -1.0, 1.0, seed=self.chance)

    @property
    def non_trainable_variables(self):
        # Under JAX a step returns all that it has changed.
        other = getattr(self, "discriminator_optimizer", None)
        return super().non_trainable_variables + (other.variables if other else [])

    def train_step(self, *arguments):
        if keras.backend.backend() != "jax":
            return self._step(*arguments)
        state, data = arguments
        groups = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )
        every = [*itertools.chain(*groups)]
        with keras.StatelessScope([*zip(every, itertools.chain(*state), strict=True)]) as scope:
            logs = self._step(data, scope, every)
        return logs, tuple([scope.get_current_value(v) for v in group] for group in groups)

    def _step(self, data, scope=None, every=()):
        images = data[0]
        channels = self.generator.output.shape[-1]
        real = ops.cast(images[..., :channels], "float32") / 127.5 - 1.0
        count = ops.shape(real)[0]

        def discriminator():
            fake = ops.stop_gradient(self.generator(self.latent(count), training=True))
            # Each kind is a batch of its own, also for batch normalisation.
            seen = self.discriminator(real, training=True)
            made = self.discriminator(fake, training=True)
            loss = discriminator_loss(seen, made) + self.smoothing * ops.mean(seen)
            return loss, (ops.mean(seen > 0), ops.mean(made < 0))

        def generator():
            fake = self.generator(self.latent(count), training=True)
            seen = self.discriminator(fake, training=True)
            return generator_loss(seen, self.loss_kind), ()

        networks = (
            (discriminator, self.discriminator, self.discriminator_optimizer),
            (generator, self.generator, self.optimizer),
        )
        (first, right), (second, _) = (_minimize(*each, scope, every) for each in networks)
        for tracker, value in zip(self.trackers, (first, second, *right), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def evaluate(self, *args, **kwargs):
        return self.judge() if self.judge else {}


def _minimize(loss, network: keras.Model, optimizer, scope=None, every=()):
    """Take a step of one network alone down a loss; return what the loss returns.

    Args:
        loss: a function without arguments to the loss and what else is to be known.
        network: it learns.
        optimizer: its own.
        scope: under JAX, where all variables of `every` have their values.
        every: see above.
    """
    variables = network.trainable_variables
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def pure(values):
            current = [(v, scope.get_current_value(v)) for v in every]
            with keras.StatelessScope([*current, *zip(variables, values, strict=True)]) as inner:
                value, others = loss()
            return value, (others, [inner.get_current_value(v) for v in every])

        values = [scope.get_current_value(v) for v in variables]
        (value, (others, after)), gradients = jax.value_and_grad(pure, has_aux=True)(values)
        for update in zip(every, after, strict=True):
            scope.add_update(update)
        optimizer.apply(gradients, variables)
    elif backend == "torch":
        import torch

        value, others = loss()
        gradients = torch.autograd.grad(value, [v.value for v in variables])
        with torch.no_grad():
            optimizer.apply(gradients, variables)
        value = value.detach()
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value, others = loss()
        optimizer.apply(tape.gradient(value, variables), variables)
    return value, others


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of Gaussians fitted to two sets of features.

    `|m - n|² + tr(C + D - 2 (C D)^½)`: Heusel et al. 2017 (arXiv 1706.08500), equation 6, there of
    Inception v3's features.

    Args:
        a, b: `[examples, features]`, two or more examples.
    """
    means = [x.mean(0, dtype=np.float64) for x in (a, b)]
    first, second = (np.atleast_2d(np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    apart = float(((means[0] - means[1]) ** 2).sum())
    return max(0.0, apart + float(np.trace(first) + np.trace(second) - 2 * shared))


class Judge:
    """Compares pictures with those of the data, by a classifier or, without one, by pixels.

    Args:
        data: the real pictures.
        classifier: from raw RGB pixels to `logits`, trained on such data, or None.
    """

    def __init__(self, data: ImageData, classifier: keras.Model | None):
        self.network = None
        if classifier is not None:
            head = classifier.get_layer("logits")
            tells = {"features": head.input, "logits": head.output}
            self.network = in_batches(keras.Model(classifier.input, tells))
        else:
            pixels = _flat(data.train.arrays(_COMPARED)[0])
            self.middle = pixels.mean(0)
            self.directions = np.linalg.svd(pixels - self.middle, full_matrices=False)[2][:64].T

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (features `[n, size]`, classes `[n]` or None) of uint8 pictures."""
        if images.shape[-1] == 1:
            images = np.repeat(images, 3, -1)
        if self.network is None:
            return (_flat(images) - self.middle) @ self.directions, None
        told = self.network(images)
        return told["features"], told["logits"].argmax(1)

    def compare(self, samples: np.ndarray, real: np.ndarray, labels: np.ndarray, classes: int):
        """Return what samples are beside real pictures.

        Args:
            samples, real: uint8 pictures.
            labels: of the real ones.
            classes: how many there are.

        Returns:
            `frechet`, `spread` (the features' variance over the real ones') and, where there is a
            classifier, `classes`, the number of those whose share of the samples is at least a
            tenth of their share of the data; and the shares of the samples, `[classes]` or None.
        """
        (made, shown), (there, _) = self.features(samples), self.features(real)
        spread = float(made.var(0).sum() / max(there.var(0).sum(), 1e-12))
        result = {"frechet": frechet(made, there), "spread": spread}
        if shown is None:
            return result, None
        share, usual = (
            np.bincount(x, minlength=classes) / len(x) for x in (shown, labels.astype(int))
        )
        result["classes"] = float(((share >= _COVERED * usual) & (share > 0)).sum())
        return result, share


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1.0


def in_batches(model: keras.Model) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function of an array of any length that a network runs by the hundred."""
    run, (name,) = runtime.of_model(model), (tensor.name for tensor in model.inputs)

    def call(array: np.ndarray) -> dict[str, np.ndarray]:
        # Always as many, as each number of examples would be a graph of its own.
        wide = np.concatenate([array, np.repeat(array[-1:], -len(array) % _AT_ONCE, 0)])
        parts = [run({name: part}) for part in wide.reshape(-1, _AT_ONCE, *array.shape[1:])]
        return {key: np.concatenate([p[key] for p in parts])[: len(array)] for key in parts[0]}

    return call


def painter(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return a network from `Generative.inference` as a function of latents, `[n, latents]`."""
    run = in_batches(model)
    return lambda latent: next(iter(run(latent).values()))


class Watch(keras.callbacks.Callback):
    """Draw a sheet of the same latent numbers after each epoch, and say when samples are alike.

    Args:
        generate: makes pictures of latent numbers.
        latent: of the sheet.
        classes: how many there are.
        folder: of the sheets.
    """

    def __init__(self, generate: Callable, latent: np.ndarray, classes: int, folder: Path):
        super().__init__()
        self.generate, self.latent, self.classes, self.folder = generate, latent, classes, folder
        self.told = False

    def on_epoch_end(self, epoch, logs=None):
        path = self.folder / f"epoch_{epoch + 1:04d}.png"
        report.tiles(self.generate(self.latent), _SIDE, path)
        said = collapse(logs or {}, self.classes, "val_")
        if said and not self.told:
            print(f"\nThe generator collapses in epoch {epoch + 1}: {said}.")
        elif self.told and not said:
            print(f"\nThe generator has recovered in epoch {epoch + 1}.")
        self.told = bool(said)


def collapse(numbers: dict[str, float], classes: int, prefix: str = "") -> str | None:
    """Say how samples lack variety by the numbers of `Judge.compare`; None if they do not."""
    made, spread = numbers.get(f"{prefix}classes"), numbers.get(f"{prefix}spread", 1.0)
    said = []
    if made is not None and made <= classes / 2:
        said.append(f"its samples show {made:.0f} of {classes} classes")
    if spread < _NARROW:
        said.append(f"they vary {spread:.0%} as much as the data")
    return " and ".join(said) or None


def likeness(outputs: dict[str, np.ndarray], targets: np.ndarray) -> float:
    """Return how alike pictures are: 1 less their mean difference as a share of 255 grey levels."""
    (pictures,) = outputs.values()
    return 1 - float(np.abs(pictures.astype(np.float64) - targets).mean()) / 255


@dataclasses.dataclass
class Generative(Recipe):
    """A generator of pictures, trained against a discriminator."""

    epochs: int | None = None
    """Passes over the training data; default: as many as make 1,300 steps, from 4 to 60."""
    image_size: int | None = None
    """Height and width in pixels; default: the data's own, or 64 for folders."""
    latents: int = 100
    """Random numbers that a picture is made of, uniform in [-1, 1]."""
    loss: Literal["non_saturating", "minimax"] = "non_saturating"
    """Of the generator."""
    smoothing: float = 0.0
    """How far the target of real pictures lies below 1; 0.1 is usual against a discriminator that
    is too sure."""
    judge: str = "resnet20"
    """What tells which class a sample shows and how like the data it is: a classifier of this
    collection, trained on the same data first, or a .keras file of one. A folder without classes
    needs none: pixels are compared."""
    batch_size: int = 64
    optimizer: OptimizerName = "adam"
    learning_rate: float = 2e-4
    momentum: float = 0.5
    """Adam's first beta, or the momentum."""
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0
    max_loss: float = 2 / 255
    """By how much the pictures of an fp16 or int8 file may differ on average, as a share of white:
    two grey levels by default."""

    task: ClassVar[str] = "generation"
    mirrored: ClassVar[bool] = False
    monitor: ClassVar[tuple[str, str]] = ("val_frechet", "min")
    least_steps: ClassVar[int] = 100
    usual_steps: ClassVar[int] = 1300
    limits: ClassVar = Recipe.limits | {"latents": (1, math.inf), "smoothing": (0, 0.5)}

    def check(self) -> None:
        super().check()
        if not 0 <= self.momentum < 1:
            raise InputError(f"--momentum {self.momentum} must lie in [0, 1).")
        if self.optimizer == "gradient_descent" or self.mixed_precision == "float16" or self.ema:
            raise InputError(
                "--optimizer gradient_descent, --mixed-precision float16 and --ema are for one "
                "network with one loss."
            )
        if self.weights or self.freeze:
            raise InputError("--weights and --freeze are for networks that judge pictures.")
        if self.judge.endswith(".keras"):
            if not Path(self.judge).exists():
                raise InputError(f"There is no file {self.judge}: check the path given to --judge.")
        elif registry.find(self.judge).task != "classification":
            raise InputError(f"--judge {self.judge} is no classifier: `tiffin list` shows some.")

    def load_data(self) -> ImageData:
        return load_images(self.data, self.data_dir, self.image_size, 64, self.seed, loose=True)

    def training_batches(self, data: ImageData, batch_size, first_epoch, drop_remainder):
        batches = data.train.training_batches(
            batch_size, self.seed, first_epoch, None, drop_remainder, place=self.place
        )
        return batches.map(lambda images, labels: (images,))

    @abc.abstractmethod
    def networks(self, image_shape: tuple[int, int, int]) -> tuple[keras.Model, keras.Model]:
        """Return the generator and the discriminator."""

    def make_model(self, data: ImageData, normalization: tuple | None) -> keras.Model:
        pixels = data.train.arrays(200, self.seed)[0]
        grey = (pixels == pixels[..., :1]).all()
        shape = (*data.train.size, 1 if grey else 3)
        try:
            return Adversarial(*self.networks(shape), self.loss, self.smoothing, self.seed)
        except ValueError as error:
            raise InputError(f"{self.model} cannot be built for {shape}: {error}") from error

    def inference(self, model: Adversarial) -> keras.Model:
        generator = model.generator
        return keras.Model(
            generator.input, ToPixels(name="image")(generator.output), name=self.model
        )

    def objective(self) -> dict[str, Any]:
        return {}

    def introduce(self, batches, data: ImageData, directory: Path) -> None:
        if len(data.classes) > 1:
            write_text(directory / LABELS_FILE, labels_text(data.classes))
        report.tiles(data.train.arrays(_SIDE**2, self.seed)[0], _SIDE, directory / "real.png")

    def noise(self, count: int, seed: int) -> np.ndarray:
        """Return latent numbers `[count, latents]`."""
        random = np.random.default_rng([self.seed, seed])
        return random.uniform(-1, 1, (count, self.latents)).astype("float32")

    def callbacks(self, model: Adversarial, data: ImageData, directory: Path) -> list:
        with distribution.alone():
            self._judge = self._make_judge(data, directory)
        real, labels = data.train.arrays(_COMPARED, self.seed)
        latent, generate = self.noise(len(real), 1), painter(self.inference(model))
        count = len(data.classes)
        model.judge = lambda: self._compared(generate(latent), real, labels, count)
        folder = make_folder(directory / SAMPLES)
        return [Watch(generate, self.noise(_SIDE**2, 2), count, folder)]

    def _compared(self, *arguments) -> dict[str, float]:
        # Each process has a judge of its own; rounding may tell them apart.
        with distribution.alone():
            result, _ = self._judge.compare(*arguments)
        return json.loads(self.place.agreed(json.dumps(result)))

    def _make_judge(self, data: ImageData, directory: Path) -> Judge:
        if len(data.classes) == 1:
            return Judge(data, None)
        path = Path(self.judge)
        if path.suffix != ".keras":
            path = directory / JUDGE / BEST
        if not path.exists():
            batch = min(128, len(data.train))
            entry = registry.find(self.judge)
            config = entry.load().Config(
                data=self.data,
                data_dir=self.data_dir,
                image_size=data.train.size[0],
                batch_size=batch,
                epochs=math.ceil(_JUDGE_STEPS / (len(data.train) // batch)),
                seed=self.seed,
                output=directory / JUDGE,
            )
            if self.judge in entry.variants:
                config.model = self.judge
            print(f"First the judge, {self.judge}:")
            config.run()
        classifier = runtime.read_keras(path)
        wanted = [None, *data.train.size, 3], len(data.classes)
        found = [*classifier.input.shape], classifier.output.shape[-1]
        if found != wanted:
            raise InputError(
                f"{path} takes {found[0][1:]} and tells {found[1]} classes; the data has "
                f"{wanted[0][1:]} and {wanted[1]}: train it on this data, at this --image-size."
            )
        return Judge(data, classifier)

    def evaluate(self, model: keras.Model, data: ImageData, directory: Path) -> dict[str, Any]:
        """Return how like the test pictures new ones are, and draw them."""
        real, labels = data.test.arrays(5000, self.seed)
        count = len(data.classes)
        generate = painter(model)
        samples = generate(self.noise(len(real), 3))
        result, shares = self._judge.compare(samples, real, labels, count)
        others, theirs = data.train.arrays(len(real), self.seed)
        between, _ = self._judge.compare(others, real, theirs, count)
        result |= {"frechet_of_real": between["frechet"], "examples": len(real)}
        said = collapse(result, count)
        result["collapse"] = said
        if shares is not None:
            usual = np.bincount(labels, minlength=count) / len(labels)
            result["classes_covered"] = int(result.pop("classes"))
            result["classes_there"] = count
            result["classes"] = {
                name: {"share of samples": float(a), "share of the data": float(b)}
                for name, a, b in zip(data.classes, shares, usual, strict=True)
            }
            report.shares(data.classes, shares, usual, directory / "classes.png")
        report.tiles(samples[: _SIDE**2], _SIDE, directory / "samples.png")
        ends = self.noise(2 * _SIDE, 4).reshape(2, _SIDE, 1, -1)
        way = np.linspace(0, 1, _SIDE, dtype="float32")[:, None]
        between = (ends[0] * (1 - way) + ends[1] * way).reshape(-1, self.latents)
        report.tiles(generate(between), _SIDE, directory / "interpolation.png")
        report.animation(directory / SAMPLES, directory / "samples.gif", _FRAMES)
        shown = f"{result['classes_covered']} of {count} classes, " if shares is not None else ""
        print(
            f"Test: {shown}Fréchet distance {result['frechet']:.3f} (real pictures among "
            f"themselves: {result['frechet_of_real']:.3f}), spread {result['spread']:.2f} of "
            f"{len(real)} samples"
        )
        if said:
            print(f"The generator has collapsed: {said}.")
        return result

    def export_options(self, data: ImageData, test: dict[str, Any]) -> dict[str, Any]:
        model = keras.saving.load_model(self.output / BEST, compile=False)
        latent = self.noise(200, 5)
        return {
            "calibration": self.noise(100, 6),
            "evaluation": (latent, painter(model)(latent)),
            "metric": likeness,
            "max_loss": self.max_loss,
            "description": f"{self.model} trained on {data.kind}: give it {self.latents} random "
            "numbers, uniform in [-1, 1], and it makes a picture.",
        }
