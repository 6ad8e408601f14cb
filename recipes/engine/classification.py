"""The task of image classification: its data, loss, metrics, pictures and export."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tiffin.export.errors import InputError
from tiffin.recipes.engine import report
from tiffin.recipes.engine.data import ImageData
from tiffin.recipes.engine.image_recipe import ImageRecipe, predictions


class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of integer labels and logits, smoothed (Szegedy et al. 2016, section 7).

    Args:
        smoothing: share of the target that is spread evenly over all classes, in [0, 1).
    """

    def __init__(self, smoothing: float = 0.0, name: str = "crossentropy"):
        super().__init__(name=name)
        self.smoothing = smoothing

    def call(self, y_true, y_pred):
        log_p = ops.log_softmax(ops.cast(y_pred, "float32"))
        target = ops.expand_dims(ops.cast(ops.reshape(y_true, (-1,)), "int32"), -1)
        loss = -ops.squeeze(ops.take_along_axis(log_p, target, axis=-1), -1)
        if self.smoothing:
            loss = (1 - self.smoothing) * loss - self.smoothing * ops.mean(log_p, axis=-1)
        return loss


class WithAuxiliaryHeads(keras.Model):
    """A network whose further heads help in training alone (Szegedy et al. 2014, section 5).

    Its outputs are a dict of `logits` and of each further head's; the loss is that of `logits` and
    0.3 of each other's, as in the paper; metrics and validation know `logits` only.
    """

    share = 0.3

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        def loss(logits):
            return super(WithAuxiliaryHeads, self).compute_loss(
                x, y, logits, sample_weight, training
            )

        total = loss(y_pred["logits"])
        if training:
            others = [logits for name, logits in y_pred.items() if name != "logits"]
            total = total + self.share * sum(loss(logits) for logits in others)
        return total

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred["logits"], sample_weight)


@dataclasses.dataclass
class Classification(ImageRecipe):
    """A network from images to one label each."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    dropout: float | None = None
    """Rate before the last layer, in [0, 1); default: the recipe's own."""

    task: ClassVar[str] = "classification"
    monitor: ClassVar[tuple[str, str]] = ("val_accuracy", "max")

    def build(
        self, input_shape: tuple[int, int, int], classes: int, normalization: tuple, **options
    ) -> keras.Model:
        """Return the recipe's network, from raw 0-255 RGB pixels to logits."""
        return self.call_builder(input_shape, normalization, classes=classes, **options)

    def check(self) -> None:
        super().check()
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"--label-smoothing {self.label_smoothing} must lie in [0, 1); 0.1 is usual."
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout} must lie in [0, 1).")

    def network(self, input_shape, classes, normalization) -> keras.Model:
        model = self.build(input_shape, classes, normalization, **self.built_with)
        if isinstance(model.output, dict):
            model = WithAuxiliaryHeads(model.input, model.output, name=model.name)
        return model

    def inference(self, model: keras.Model) -> keras.Model:
        output = model.output["logits"] if isinstance(model.output, dict) else model.output
        return keras.Model(model.input, output, name=model.name)

    def objective(self) -> dict[str, Any]:
        return {"loss": SmoothedCrossentropy(self.label_smoothing), "metrics": ["accuracy"]}

    def evaluate(self, model: keras.Model, data: ImageData, directory: Path) -> dict[str, Any]:
        """Return top-1, top-5, cross-entropy and a per-class table of the test split."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        logits, labels = predictions(model, data.test)
        order = np.argsort(-logits, axis=1)
        top = order[:, 0]
        known = np.arange(len(data.classes))
        matrix = confusion_matrix(labels, top, labels=known)
        report.confusion(matrix, data.classes, directory / "confusion.png")
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        self._draw_mistakes(data, labels, top, log_p, directory / "mistakes.png")
        table = np.transpose(
            precision_recall_fscore_support(labels, top, labels=known, zero_division=0)
        ).round(4)
        columns = ("precision", "recall", "f1", "support")
        result = {
            "accuracy": float((top == labels).mean()),
            "top5": float((order[:, :5] == labels[:, None]).any(1).mean()),
            "loss": float(-log_p[np.arange(len(labels)), labels].mean()),
            "examples": len(labels),
            "classes": {
                name: dict(zip(columns, map(float, row), strict=True))
                for name, row in zip(data.classes, table, strict=True)
            },
        }
        print(
            f"Test: top-1 {result['accuracy']:.2%}, top-5 {result['top5']:.2%} "
            f"of {len(labels)} images"
        )
        return result

    def _draw_mistakes(self, data, labels, top, log_p, path: Path) -> None:
        """Draw the mistakes that the network is surest of."""
        wrong = np.flatnonzero(top != labels)
        surest = wrong[np.argsort(-log_p[wrong, top[wrong]])][:25]
        titles = [
            f"{data.classes[top[i]]}, {np.exp(log_p[i, top[i]]):.0%}, is {data.classes[labels[i]]}"
            for i in surest
        ]
        images = data.test.take(surest).arrays()[0] if len(surest) else []
        heading = "The surest mistakes on the test split: prediction, its probability, the truth"
        report.pictures(images, titles, heading, path)

    def export_options(self, data: ImageData, test: dict[str, Any]) -> dict[str, Any]:
        return super().export_options(data, test) | {"labels": data.classes}
