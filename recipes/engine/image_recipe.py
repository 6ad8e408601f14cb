"""What recipes for single labelled images share, whatever they make of them."""

import abc
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tiffin.export.errors import InputError
from tiffin.export.files import write_text
from tiffin.export.metadata import LABELS_FILE, labels_text
from tiffin.recipes.engine import report
from tiffin.recipes.engine.augmentation import augmenter
from tiffin.recipes.engine.data import ImageData, load_images
from tiffin.recipes.engine.training import Recipe

SMALL = 64  # pixels along a side below which the strides made for 224 leave too little


@dataclasses.dataclass
class ImageRecipe(Recipe):
    """A network from raw 0-255 RGB images, each with a label."""

    augment: tuple[str, ...] = ()
    """In order, each with an optional strength, such as rotation:10 noise: rotation, scale,
    translation, shear, horizontal_flip, vertical_flip, color_jitter, random_crop, center_crop,
    noise."""
    image_size: int | None = None
    """Height and width in pixels; default: the data's own, or 224 for folders."""

    small: ClassVar[dict[str, Any]] = {}  # the builder's options below SMALL pixels
    default_size: ClassVar[int] = 224
    make_augmenter: ClassVar[Callable] = staticmethod(augmenter)
    in_a_row: ClassVar[int] = 1  # pictures of a class that come together in a batch
    limits: ClassVar = Recipe.limits | {"image_size": (8, math.inf)}

    def call_builder(
        self, input_shape: tuple[int, int, int], normalization: tuple, **options
    ) -> keras.Model:
        """Build the recipe's network by its own function.

        Of small pictures, what the configuration leaves open is taken from `small`.
        """
        options = self.builder_options | options
        if min(input_shape[:2]) < SMALL:
            options = self.small | options
        if len(self.variants()) > 1:
            options["variant"] = self.model
        return self.builder(input_shape=input_shape, normalization=normalization, **options)

    def check(self) -> None:
        super().check()
        self.make_augmenter(self.augment)

    def load_data(self) -> ImageData:
        return load_images(self.data, self.data_dir, self.image_size, self.default_size, self.seed)

    def training_batches(self, data: ImageData, batch_size, first_epoch, drop_remainder):
        augment = self.make_augmenter(self.augment)
        return data.train.training_batches(
            batch_size, self.seed, first_epoch, augment, drop_remainder, self.in_a_row, self.place
        )

    def make_model(self, data: ImageData, normalization: tuple | None) -> keras.Model:
        if normalization is None:
            pixels, _ = data.train.arrays(2000, self.seed)
            # Below one grey level a channel is constant, and dividing by its spread is noise.
            mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2)).clip(1.0)
            normalization = [round(float(m), 3) for m in mean], [round(float(s), 3) for s in std]
        shape = (*data.train.size, 3)
        try:
            return self.network(shape, len(data.classes), normalization)
        except ValueError as error:
            # Layers say what they cannot do, an option out of range or a picture too small.
            raise InputError(f"{self.model} cannot be built for {shape}: {error}") from error

    @abc.abstractmethod
    def network(
        self, input_shape: tuple[int, int, int], classes: int, normalization: tuple
    ) -> keras.Model:
        """Return the untrained network, with all that training it takes."""

    def introduce(self, batches, data: ImageData, directory: Path) -> None:
        write_text(directory / LABELS_FILE, labels_text(data.classes))
        report.sheet(batches, data.classes, directory / "augmented.png")

    def export_options(self, data: ImageData, test: dict[str, Any]) -> dict[str, Any]:
        return {
            "calibration": data.train.inputs(200, self.seed)[0],
            "evaluation": data.test.inputs(5000, self.seed),
            "description": f"{self.model} trained on {data.kind}",
        }


def predictions(model: keras.Model, split) -> tuple[np.ndarray, np.ndarray]:
    """Return (float32 outputs `[n, ...]`, int labels `[n]`) of every readable example."""
    outputs, labels = [], []
    for images, batch_labels in split.batches(256).as_numpy_iterator():
        outputs.append(ops.convert_to_numpy(model.predict_on_batch(images)))
        labels.append(batch_labels)
    return np.concatenate(outputs), np.concatenate(labels)
