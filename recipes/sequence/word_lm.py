"""Word-level language models: LSTMs that drop what goes up, not what goes on.

Two layers of LSTM read a text word by word. Dropout acts on what a layer hands to the next and
never on what it hands to its own next step, so that memory lasts and the network is regularised
all the same.

Zaremba, Sutskever, Vinyals: Recurrent Neural Network Regularization, 2014, arXiv 1409.2329.
Tied embeddings: Press and Wolf 2016, arXiv 1608.05859.

Reproduces table 1 (Penn Treebank, test perplexity): small without dropout 114.5, medium 82.7,
large 78.4. Ours: see docs/results.md.

Run it:
    python recipes/sequence/word_lm.py --data ptb/ --export

The paper adds the loss up over the steps of a window; here it is their mean, as everywhere. Steps
of the same size come from rates times, and gradient norms divided by, the number of steps.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import keras
from keras import layers

from tiffin.layers import LSTMCell, Recurrent
from tiffin.recipes.engine.language import Language
from tiffin.recipes.engine.optimizers import OptimizerName, ScheduleName
from tiffin.recipes.engine.text_data import TextData, load_text
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, steps, parameters, MACs, error, measured on)
    "word_lm_small": (2014, 20, 4_651_600, 52_800_000, None, "PTB"),
    "word_lm_medium": (2014, 35, 19_775_200, 464_100_000, None, "PTB"),
    "word_lm_large": (2014, 35, 66_022_000, 1_785_000_000, None, "PTB"),
}
SIZES = {  # section 4.1
    # units, dropout, begins within, steps, epochs, at the full rate, decay, clip_norm
    "word_lm_small": (200, 0.0, 0.1, 20, 13, 4, 1 / 2, 5.0),
    "word_lm_medium": (650, 0.5, 0.05, 35, 39, 6, 1 / 1.2, 5.0),
    "word_lm_large": (1500, 0.65, 0.04, 35, 55, 14, 1 / 1.15, 10.0),
}


def word_lm(
    variant: str = "word_lm_small",
    input_shape: tuple[int | None] = (None,),
    classes: int = 10_000,
    *,
    units: int | None = None,
    depth: int = 2,
    dropout: float | None = None,
    tied: bool = False,
) -> keras.Model:
    """Build the network.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(steps,)`; None for any number.
        classes: different words.
        units: of the embedding and of each layer; None: the variant's.
        depth: layers of LSTM.
        dropout: rate behind the embedding and behind each layer; None: the variant's.
        tied: one matrix to read words and to tell them, without a bias.

    Returns:
        A model from `tokens`, int32 `[batch, steps]`, to `logits`, float32 `[batch, steps,
        classes]`.
    """
    width, rate, bound, *_ = SIZES[variant]
    width, rate = width if units is None else units, rate if dropout is None else dropout
    begin = keras.initializers.RandomUniform(-bound, bound)
    tokens = keras.Input(input_shape, dtype="int32", name="tokens")
    embedding = layers.ReversibleEmbedding(
        classes, width, embeddings_initializer=begin, name="embedding", reverse_dtype="float32"
    )
    x = layers.Dropout(rate, name="dropout_0")(embedding(tokens))
    for i in range(1, depth + 1):
        cell = LSTMCell(
            width,
            kernel_initializer=begin,
            recurrent_initializer=begin,
            bias_initializer=begin,
            unit_forget_bias=False,
            name=f"cell_{i}",
        )
        x = Recurrent(cell, return_sequences=True, name=f"lstm_{i}")(x)
        x = layers.Dropout(rate, name=f"dropout_{i}")(x)
    if tied:
        x = layers.Identity(name="logits", dtype="float32")(embedding(x, reverse=True))
    else:
        last = {"kernel_initializer": begin, "bias_initializer": begin, "dtype": "float32"}
        x = layers.Dense(classes, name="logits", **last)(x)
    return keras.Model(tokens, x, name=variant)


@dataclasses.dataclass
class Config(Language):
    """Train a word-level language model (Zaremba et al. 2014, arXiv 1409.2329), on any text.

    examples:
      tiffin train word_lm --data ptb/ --export
      tiffin train word_lm_medium --data ptb/ --tied
    """

    model: Literal[tuple(VARIANTS)] = "word_lm_small"
    """Which size."""
    vocabulary: int = 10_000
    """Most words that it knows, the frequent ones; all others are <unk>."""
    units: int | None = None
    """Of the embedding and of each layer; default: the variant's."""
    depth: int = 2
    """Layers of LSTM."""
    tied: bool = False
    """One matrix to read words and to tell them."""
    batch_size: int = 20
    steps: int | None = None
    """Words that are read between two updates; default: the variant's, 20 or 35."""
    epochs: int | None = None
    """Passes over the training text; default: the variant's, 13, 39 or 55."""
    dropout: float | None = None
    """Rate between layers, in [0, 1); default: the variant's, 0, 0.5 or 0.65."""
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 1.0
    """Highest learning rate, of a loss that is summed over the steps."""
    clip_norm: float | None = None
    """Length down to which gradients of the summed loss are scaled; default: the variant's."""
    schedule: ScheduleName = "step"
    milestones: tuple[float, ...] | None = None
    """Shares of the training after which --decay-factor applies; default: the variant's epochs."""
    decay_factor: float | None = None
    """What the learning rate is multiplied by; default: the variant's, once an epoch."""

    builder = staticmethod(word_lm)
    limits: ClassVar = Language.limits | {"vocabulary": (2, math.inf)}

    def run(self) -> dict[str, Any]:
        if self.model in SIZES:  # else `check` has the nearest names
            self.take_defaults()
        return super().run()

    def take_defaults(self) -> None:
        """Take over what the variant has for all options that were not given."""
        _, rate, _, steps, epochs, full, decay, norm = SIZES[self.model]
        every_epoch = tuple(i / epochs for i in range(full, epochs))
        defaults = {"dropout": rate, "steps": steps, "epochs": epochs, "clip_norm": norm}
        defaults |= {"milestones": every_epoch, "decay_factor": decay}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def load_data(self) -> TextData:
        given = self.data, self.encoding, self.batch_size, self.steps
        return load_text(*given, "words", self.vocabulary)

    def compile(self, model: keras.Model, steps: int, epochs: int) -> None:
        rate, norm = self.learning_rate * self.steps, self.clip_norm / self.steps
        scaled = dataclasses.replace(self, learning_rate=rate, clip_norm=norm)
        Language.compile(scaled, model, steps, epochs)


if __name__ == "__main__":
    main(Config)
