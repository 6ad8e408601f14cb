"""What recipes for texts share, whether they go on with one or translate it."""

import dataclasses
import math
from typing import Any, ClassVar

import keras

from tiffin.export.errors import InputError
from tiffin.recipes.engine.optimizers import OptimizerName
from tiffin.recipes.engine.training import Recipe


@dataclasses.dataclass
class TextRecipe(Recipe):
    """A network that tells tokens one after the other."""

    encoding: str = "utf-8"
    """Of the text files."""
    optimizer: OptimizerName = "adam"
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    weights: str | None = None
    """Start from a .keras or .weights.h5 file of the same network."""
    dropout: float = 0.0
    """Rate between layers, in [0, 1)."""
    max_loss: float = math.log(1.03)
    """How much log-likelihood of a token, in nats, an fp16 or int8 file may lose: 3 % of the
    perplexity by default."""

    monitor: ClassVar[tuple[str, str]] = ("val_loss", "min")

    def check(self) -> None:
        super().check()
        if self.weights in ("imagenet", "coco"):
            raise InputError(f"--weights {self.weights} is for pictures: name a .keras file.")

    def call_builder(self, classes: int, **options: Any) -> keras.Model:
        """Build the recipe's network by its own function, for texts of any length.

        Args:
            classes: different tokens that it tells.
            **options: further arguments.

        Raises:
            InputError: they do not go together.
        """
        try:
            return self.builder(self.model, (None,), classes, **self.builder_options | options)
        except ValueError as error:
            raise InputError(f"{self.model} cannot be built: {error}") from error
