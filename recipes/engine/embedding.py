"""The task of metric learning: an embedder, trained under a head or a loss that stays behind."""

import abc
import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import keras
import numpy as np

from tiffin.export.errors import InputError
from tiffin.layers import EmbeddingTrainer, MarginAnnealing, flat_embedding
from tiffin.recipes.engine import registry, report, verification
from tiffin.recipes.engine.data import ImageData, hold_out, in_pairs, load_images
from tiffin.recipes.engine.image_recipe import ImageRecipe, predictions

CLASSIFIER = "classifier.keras"
_MAP = 7  # cells along a side of ArcFace's last map
_SHOWN = 1000  # points of the embedding picture


@dataclasses.dataclass
class Embedding(ImageRecipe):
    """A network from images to embeddings, near each other where they show the same."""

    dimensions: int | None = 128
    """Length of an embedding."""
    backbone: str | None = None
    """A network in the place of the recipe's own: another embedder's, such as arcface_r18, or one
    of the classification collection, such as resnet18; `tiffin list` shows all."""
    alpha: float | None = None
    """Width multiplier, of networks that have one; default: the network's own, mostly 1."""
    neck: Literal["pool", "flatten"] = "pool"
    """From a classification network's last map to the embedding: its mean over the picture, or all
    of it, averaged down to 7x7 cells at most, which keeps where things are: for faces."""
    dropout: float = 0.0
    """Rate before the embedding, of ArcFace's networks and --neck flatten; 0.4 in the paper."""
    unseen: float | None = None
    """Share of the identities that are kept for the test (open set); 0: test on other pictures of
    the same ones. Default: a quarter for a folder, none for digits and TFDS."""
    pairs: Path | None = None
    """Test pairs in LFW's form (name i j, name i other j); default: 6,000 are drawn."""
    in_a_row: int = 1
    """Pictures of an identity that come together in a batch."""

    task: ClassVar[str] = "embedding"
    limits: ClassVar = ImageRecipe.limits | {"dimensions": (1, math.inf)}
    monitor: ClassVar[tuple[str, str]] = ("val_loss", "min")

    def check(self) -> None:
        super().check()
        if self.unseen is not None and not 0 <= self.unseen < 1:
            raise InputError(f"--unseen {self.unseen}: it is a share, from 0 to below 1.")
        if not 1 <= self.in_a_row <= self.batch_size:
            raise InputError(f"--in-a-row {self.in_a_row}: from 1 to the batch size.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout} must lie in [0, 1).")
        if self.backbone and registry.find(self.backbone).task not in ("classification", self.task):
            raise InputError(f"--backbone {self.backbone} neither embeds nor classifies pictures.")
        if self.alpha is not None and "alpha" not in registry.options_of(self._network().builder):
            raise InputError(f"--alpha: {self.backbone or self.model} has no width multiplier.")

    def load_data(self) -> ImageData:
        data = load_images(
            self.data, self.data_dir, self.image_size, self.default_size, self.seed, leaves=True
        )
        folder = Path(self.data).expanduser().is_dir()
        share = self.unseen if self.unseen is not None else 0.25 if folder else 0.0
        data = hold_out(data, share, self.seed) if share else data
        self._pairs(data, data.test.labels)  # a bad pairs file is told before the training
        return data

    def embedder(self, input_shape: tuple[int, int, int], normalization: tuple) -> keras.Model:
        """Return the network from raw 0-255 RGB pixels to embeddings, not normalised."""
        network = self._network()
        if network.task == self.task:
            return network.call_builder(input_shape, normalization)
        options = {"include_top": False, "pooling": None, **self.built_with}
        if self.neck == "pool":
            options["pooling"] = "avg"
        body = network.build(input_shape, 2, normalization, **options)
        x, dimensions = body.output, self.dimensions or 128
        if self.neck == "flatten":
            shrink = math.ceil(max(x.shape[1:3]) / _MAP)
            x = keras.layers.AveragePooling2D(shrink)(x) if shrink > 1 else x
            x = flat_embedding(x, dimensions, self.dropout)
        else:
            x = keras.layers.Dense(dimensions, name="embedding")(x)
        return keras.Model(body.input, x, name=body.name)

    def _network(self) -> ImageRecipe:
        """Return the recipe that the network is of, with this one's options for it."""
        if not self.backbone:
            return self
        network = registry.find(self.backbone).load().Config()
        if self.backbone in network.variants():
            network.model = self.backbone
        if network.task == self.task:
            network.dimensions, network.dropout = self.dimensions or 128, self.dropout
        if self.alpha is not None:
            network.alpha = self.alpha
        return network

    def published(self):
        if not self.backbone:
            return super().published()
        return getattr(registry.find(self.backbone).load(), "WEIGHTS", {}), self.backbone

    def body(self, model: keras.Model) -> keras.Model:
        return model.embedder if isinstance(model, EmbeddingTrainer) else model

    def inference(self, model: keras.Model) -> keras.Model:
        embedder = self.body(model)
        x = keras.layers.UnitNormalization(name="embeddings")(embedder.output)
        return keras.Model(embedder.input, x, name=embedder.name)

    def callbacks(self, model, data: ImageData, directory: Path) -> list:
        return [EmbeddingPicture(self.body(model), data.validation, directory)]

    def evaluate(self, model: keras.Model, data: ImageData, directory: Path) -> dict[str, Any]:
        """Return verification, recall, one-shot accuracy, and what the head makes of it."""
        embeddings, labels = predictions(model, data.test)
        pairs = self._pairs(data, labels)
        result = verification.verify(verification.distances(embeddings, pairs), pairs)
        report.roc(*result.pop("roc"), directory / "roc.png")
        result["recall_at"] = verification.recall_at(embeddings, labels)
        result["one_shot_5_way"] = verification.one_shot(embeddings, labels)
        if (directory / CLASSIFIER).exists() and not data.test_classes:
            classifier = keras.saving.load_model(directory / CLASSIFIER, compile=False)
            logits, _ = predictions(classifier, data.test)
            result["accuracy"] = float((logits.argmax(1) == labels).mean())
            # What the head sees: the length of an embedding says something there.
            inner = keras.Model(classifier.input, classifier.get_layer("logits").input)
            embeddings, _ = predictions(inner, data.test)
            result |= spread(embeddings, labels)
        names = data.test_classes or data.classes
        few = np.random.default_rng(self.seed).permutation(len(labels))[:_SHOWN]
        report.scatter(embeddings[few], labels[few], names, directory / "embeddings.png")
        result["examples"] = len(labels)
        said = f"accuracy {result['accuracy']:.2%}, " if "accuracy" in result else ""
        print(
            f"Test: {said}verification {result['verification_accuracy']:.2%} "
            f"± {result['verification_accuracy_std']:.2%} of {result['pairs']} pairs, equal error "
            f"rate {result['equal_error_rate']:.2%}, threshold {result['threshold']:.3f}"
        )
        return result

    def export_options(self, data: ImageData, test: dict[str, Any]) -> dict[str, Any]:
        return super().export_options(data, test) | {
            "metric": verification.pair_accuracy,
            "threshold": test["threshold"],
        }

    def _pairs(self, data: ImageData, labels: np.ndarray) -> verification.Pairs:
        """Return the pairs to verify, of the test pictures that have these labels."""
        if self.pairs is None:
            return verification.make_pairs(labels, seed=self.seed)
        if data.test.paths is None:
            raise InputError("--pairs names files: it goes with --data FOLDER only.")
        if len(labels) != len(data.test):
            raise InputError(
                f"{len(data.test) - len(labels)} test pictures turned out to be unreadable, and "
                "--pairs counts on them: remove them, and go on with --resume."
            )
        return verification.read_pairs(self.pairs, list(map(str, data.test.paths)))


@dataclasses.dataclass
class MarginRecipe(Embedding):
    """An embedder under a softmax head."""

    mirrored: ClassVar[bool] = False
    monitor: ClassVar[tuple[str, str]] = ("val_accuracy", "max")

    @abc.abstractmethod
    def head(self, classes: int) -> keras.layers.Layer:
        """Return the head, named `logits`."""

    def trainer(self, embedder: keras.Model, classes: int) -> EmbeddingTrainer:
        """Return the embedder with all that its training takes."""
        return EmbeddingTrainer(embedder, self.head(classes), name=embedder.name)

    def network(self, input_shape, classes, normalization) -> keras.Model:
        return self.trainer(self.embedder(input_shape, normalization), classes)

    def companions(self, model: EmbeddingTrainer) -> dict[str, keras.Model]:
        head = model.head
        logits = head(model.embedder.output)
        return {CLASSIFIER: keras.Model(model.embedder.input, logits, name=f"{model.name}_head")}

    def objective(self) -> dict[str, Any]:
        return {"loss": None, "metrics": ["accuracy"]}


@dataclasses.dataclass
class AnnealedRecipe(MarginRecipe):
    """An embedder under a margin on a multiple of the angle, which is eased into."""

    margin: Literal[1, 2, 3, 4] = 4
    """m of psi(theta); 1: softmax without a margin."""
    annealing: tuple[float, float, float, float] = (1000.0, 0.12, 1.0, 5.0)
    """Lambda falls with the step t: base, gamma, power, least of max(least, base (1 + gamma
    t)^-power)."""

    def check(self) -> None:
        super().check()
        base, gamma, _, least = self.annealing
        if not (0 <= least <= base < math.inf and 0 <= gamma < math.inf):
            raise InputError(
                f"--annealing {' '.join(map(str, self.annealing))}: base, gamma, power and least, "
                "none negative and the least no larger than the base, such as 1000 0.12 1 5."
            )

    def callbacks(self, model: EmbeddingTrainer, data, directory) -> list:
        return [
            MarginAnnealing(model.head, *self.annealing),
            *super().callbacks(model, data, directory),
        ]


@dataclasses.dataclass
class PairRecipe(Embedding):
    """An embedder whose loss compares the pictures of a batch, all of length 1."""

    in_a_row: int = 4

    @abc.abstractmethod
    def pair_loss(self) -> keras.losses.Loss:
        """Return the loss, from labels and embeddings."""

    def load_data(self) -> ImageData:
        data = super().load_data()
        validation = in_pairs(data.validation, data.train, self.in_a_row, self.seed)
        return dataclasses.replace(data, validation=validation)

    def network(self, input_shape, classes, normalization) -> keras.Model:
        return super().inference(self.embedder(input_shape, normalization))

    def inference(self, model: keras.Model) -> keras.Model:
        return keras.Model(model.input, model.output, name=model.name)

    def objective(self) -> dict[str, Any]:
        return {"loss": self.pair_loss()}


class EmbeddingPicture(keras.callbacks.Callback):
    """After each epoch, where the validation pictures lie; at the end, all epochs as a strip.

    Args:
        embedder: the network.
        split: pictures of which up to a thousand are shown.
        directory: the run's folder; what was seen so far is kept there for a resumed run.
    """

    def __init__(self, embedder: keras.Model, split, directory: Path):
        super().__init__()
        self.embedder, self.directory = embedder, directory
        self.images, self.labels = split.arrays(_SHOWN)
        self.path = directory / "embeddings.npz"

    def on_train_begin(self, logs=None):
        self.seen = {}
        if self.path.exists():
            with np.load(self.path) as file:
                self.seen = {name: file[name] for name in file.files}

    def on_epoch_end(self, epoch, logs=None):
        found = [
            keras.ops.convert_to_numpy(self.embedder.predict_on_batch(self.images[i : i + 256]))
            for i in range(0, len(self.images), 256)
        ]
        self.seen[f"{epoch + 1:04d}"] = np.concatenate(found).astype(np.float32)
        report.save_arrays(self.path, self.seen)

    def on_train_end(self, logs=None):
        if self.seen:
            by_epoch = {f"epoch {int(epoch)}": points for epoch, points in self.seen.items()}
            heading = "Embeddings of the validation split"
            path = self.directory / "embeddings_by_epoch.png"
            report.strip(by_epoch, self.labels, heading, path)


def spread(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return how far embeddings lie from the mean of their class, and these means from each other.

    Args:
        embeddings: float `[n, dimensions]`.
        labels: int `[n]`.

    Returns:
        `intra_class_distance`, the mean distance to the class's mean; `inter_class_distance`, the
        mean distance between two classes' means; `intra_to_inter`, their ratio.
    """
    known = np.unique(labels)
    means = np.stack([embeddings[labels == i].mean(0) for i in known])
    within = np.linalg.norm(embeddings - means[np.searchsorted(known, labels)], axis=1).mean()
    apart = np.linalg.norm(means[:, None] - means[None], axis=-1)
    between = apart[np.triu_indices(len(known), 1)].mean()
    return {
        "intra_class_distance": float(within),
        "inter_class_distance": float(between),
        "intra_to_inter": float(within / between),
    }
