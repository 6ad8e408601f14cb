"""Character-level language models: the next letter from all letters before.

A recurrent layer reads a text character by character, and a softmax over its state tells the next
one. The state is carried along the whole text, the gradient for a number of steps only (truncated
backpropagation through time). What it has learned shows when its own guess is its next input.

Graves: Generating Sequences With Recurrent Neural Networks, 2013, arXiv 1308.0850.
Karpathy, Johnson, Fei-Fei: Visualizing and Understanding Recurrent Networks, 2015, arXiv
1506.02078, whose comparison of cells at equal parameters (table 1) the variants repeat.

The variants differ in the cell alone, and in its width, so that all have about as many parameters.

Run it:
    python recipes/sequence/char_rnn.py --data shakespeare.txt --epochs 10
"""

import dataclasses
from typing import Literal

import keras
from keras import layers

from tiffin.layers import (
    CoupledLSTMCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTMCell,
    Recurrent,
    SimpleRNNCell,
)
from tiffin.recipes.engine.language import Language
from tiffin.recipes.engine.text_data import TextData, load_text
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, steps, parameters, MACs, error, measured on)
    "char_lstm": (1997, 100, 718_849, 71_308_800, None, "tinyshakespeare"),
    "char_peephole_lstm": (2002, 100, 720_001, 71_308_800, None, "tinyshakespeare"),
    "char_coupled_lstm": (2017, 100, 722_817, 71_724_800, None, "tinyshakespeare"),
    "char_gru": (2014, 100, 724_161, 71_724_800, None, "tinyshakespeare"),
    "char_simple_rnn": (1990, 100, 720_801, 71_579_200, None, "tinyshakespeare"),
}
CELLS = {  # cell, units
    "char_lstm": (LSTMCell, 384),
    "char_peephole_lstm": (PeepholeLSTMCell, 384),
    "char_coupled_lstm": (CoupledLSTMCell, 448),
    "char_gru": (GRUCell, 448),
    "char_simple_rnn": (SimpleRNNCell, 784),
}


def char_rnn(
    variant: str = "char_lstm",
    input_shape: tuple[int | None] = (None,),
    classes: int = 65,
    *,
    units: int | None = None,
    depth: int = 1,
    embedding: int = 64,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    layer_norm: bool = False,
) -> keras.Model:
    """Build the network.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(steps,)`; None for any number.
        classes: different characters.
        units: width of a recurrent layer; None: the variant's.
        depth: recurrent layers.
        embedding: numbers that stand for a character.
        dropout: rate behind the embedding and each recurrent layer, not along time.
        recurrent_dropout: rate along time, one mask for a whole sequence.
        layer_norm: normalise inside the cells.

    Returns:
        A model from `tokens`, int32 `[batch, steps]`, to `logits`, float32 `[batch, steps,
        classes]`.
    """
    cell, width = CELLS[variant]
    tokens = keras.Input(input_shape, dtype="int32", name="tokens")
    x = layers.Embedding(classes, embedding, name="embedding")(tokens)
    for i in range(1, depth + 1):
        x = layers.Dropout(dropout, name=f"dropout_{i}")(x) if dropout else x
        options = {"recurrent_dropout": recurrent_dropout, "layer_norm": layer_norm}
        own = cell(width if units is None else units, name=f"cell_{i}", **options)
        x = Recurrent(own, return_sequences=True, name=f"rnn_{i}")(x)
    x = layers.Dropout(dropout, name="dropout")(x) if dropout else x
    return keras.Model(
        tokens, layers.Dense(classes, name="logits", dtype="float32")(x), name=variant
    )


@dataclasses.dataclass
class Config(Language):
    """Train a character-level language model (Graves 2013, arXiv 1308.0850), on any text.

    examples:
      tiffin train char_lstm --data shakespeare.txt --epochs 14 --dropout 0.2 --export
      tiffin train char_gru --data shakespeare.txt --depth 2 --steps 100
    """

    model: Literal[tuple(VARIANTS)] = "char_lstm"
    """Which cell."""
    units: int | None = None
    """Width of a recurrent layer; default: such that all variants have as many parameters."""
    depth: int = 1
    """Recurrent layers."""
    embedding: int = 64
    """Numbers that stand for a character."""
    recurrent_dropout: float = 0.0
    """Rate along time, in [0, 1): one mask for all steps of a sequence."""
    layer_norm: bool = False
    """Normalise inside the cells."""

    builder = staticmethod(char_rnn)

    def load_data(self) -> TextData:
        return load_text(self.data, self.encoding, self.batch_size, self.steps, "characters")


if __name__ == "__main__":
    main(Config)
