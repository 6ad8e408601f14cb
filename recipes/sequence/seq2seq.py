"""Sequence to sequence: read one text, write another, with four kinds of decoder.

An encoder reads the source in both directions. A decoder writes the target token by token, and
the kinds differ in what it sees of the source: its summary as the first state only; the same,
learning from its own words in the place of the right ones; the summary again at every step; or,
by attention, another weighted mean of all the encoder's states at every step.

Sutskever, Vinyals, Le: Sequence to Sequence Learning with Neural Networks, 2014, arXiv 1409.3215.
Bengio, Vinyals, Jaitly, Shazeer: Scheduled Sampling, 2015, arXiv 1506.03099.
Cho et al.: Learning Phrase Representations using RNN Encoder-Decoder, 2014, arXiv 1406.1078.
Bahdanau, Cho, Bengio: Neural Machine Translation by Jointly Learning to Align and Translate, 2015,
arXiv 1409.0473.
Luong, Pham, Manning: Effective Approaches to Attention-based Neural Machine Translation, 2015,
arXiv 1508.04025.

The papers' figures are for millions of sentences; ours, for the same encoder and width under every
decoder, stand in docs/results.md. Where Bahdanau et al. differ in themselves on the state that the
features see, section 3.1 (the new one) is followed, not A.2.2 (the last one).

Run it:
    python recipes/sequence/seq2seq.py --export
    python recipes/sequence/seq2seq.py --data multi30k/ --languages en de --tokens pieces
"""

import dataclasses
from typing import Literal

import keras
from keras import layers, ops

from tiffin.layers import (
    BahdanauAttention,
    Decoder,
    GRUCell,
    LSTMCell,
    LuongAttention,
    Maxout,
    Recurrent,
)
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.translation import TranslationRecipe

VARIANTS = {
    # name: (year, steps, parameters, MACs, error, measured on)
    "seq2seq_context": (2014, 20, 4_391_584, 44_204_032, None, "Multi30k"),
    "seq2seq_feedback": (2015, 20, 4_391_584, 44_204_032, None, "Multi30k"),
    "seq2seq_peeky": (2014, 20, 5_309_600, 62_554_112, None, "Multi30k"),
    "seq2seq_bahdanau": (2015, 20, 5_506_464, 66_793_472, None, "Multi30k"),
    "seq2seq_luong": (2015, 20, 4_719_264, 51_167_232, None, "Multi30k"),
}
ATTENTION = ("seq2seq_bahdanau", "seq2seq_luong")
CELLS = {"gru": GRUCell, "lstm": LSTMCell}
STATES = {"gru": ("h",), "lstm": ("h", "c")}


def seq2seq(
    variant: str = "seq2seq_luong",
    input_shape: tuple[int | None] = (None,),
    classes: int = 4000,
    *,
    sources: int | None = None,
    units: int = 256,
    embedding: int = 256,
    cell: Literal["gru", "lstm"] = "gru",
    dropout: float = 0.0,
    mixed: bool = False,
) -> keras.Model:
    """Build the network.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(steps,)` of both texts; None for any number.
        classes: different tokens of the target; 0 is padding.
        sources: different tokens of the source; None: as many.
        units: of the decoder, and of the encoder in each direction.
        embedding: numbers that stand for a token.
        cell: of encoder and decoder.
        dropout: rate for embeddings, for the encoder's states and the decoder's features.
        mixed: whether the decoder learns from its own tokens, too (see `tiffin.layers.Decoder`).

    Returns:
        A model from `source` and `target`, int32 `[batch, steps]`, the target shifted by a step, to
        `logits`, float32 `[batch, steps, classes]`.
    """
    source = keras.Input(input_shape, dtype="int32", name="source")
    target = keras.Input(input_shape, dtype="int32", name="target")
    mask = ops.not_equal(source, 0)
    x = layers.Embedding(sources or classes, embedding, name="source_words")(source)
    x = layers.Dropout(dropout, name="source_dropout")(x) if dropout else x
    encoder = Recurrent(CELLS[cell](units), return_sequences=True, return_state=True)
    keys, *ends = layers.Bidirectional(encoder, name="encoder")(x, mask=mask)
    summary = layers.Concatenate(name="summary")(ends)
    states = [
        layers.Dense(units, activation="tanh", name=f"first_{name}")(summary)
        for name in STATES[cell]
    ]
    memory = {}
    if variant == "seq2seq_peeky":
        memory = {"context": summary}
    elif variant in ATTENTION:
        seen = ops.cast(mask, "float32")
        keys = layers.Dropout(dropout, name="keys_dropout")(keys) if dropout else keys
        memory = {"keys": keys * seen[..., None], "mask": seen}
    if variant == "seq2seq_bahdanau":
        keys = layers.Dense(units, use_bias=False, name="projected_keys")(memory["keys"])
        memory["projected_keys"] = keys
    shapes = {name: part.shape[1:] for name, part in memory.items()}
    step = decoder_step(variant, units, embedding, cell, shapes)
    decoder = Decoder(step, classes, len(states), dropout, mixed, name="logits")
    logits = decoder([target, *states, *memory.values()])
    return keras.Model({"source": source, "target": target}, logits, name=variant)


def decoder_step(
    variant: str, units: int, embedding: int, cell: str, memory: dict[str, tuple]
) -> keras.Model:
    """Build one step: from the last word, states and memory to features of the next word."""
    word = keras.Input((embedding,), name="word")
    states = [keras.Input((units,), name=name) for name in STATES[cell]]
    memory = {name: keras.Input(shape, name=name) for name, shape in memory.items()}
    given, others = [word, *states, *memory.values()], []
    recur = CELLS[cell](units, name="decoder_cell")
    if variant == "seq2seq_peeky":
        # Cho et al., section 2.2, with the maxout of A.1.2: the summary at every step.
        context = memory["context"]
        h, states = recur(layers.Concatenate(name="seen")([word, context]), states)
        x = layers.Concatenate(name="known")([h, word, context])
        x = Maxout(units, name="features")(x)
    elif variant == "seq2seq_bahdanau":
        # The last state looks for what to read before the next word.
        attention = BahdanauAttention(units, project_keys=False, name="attention")
        keys = memory["projected_keys"]
        context, weights = attention(states[0], keys, mask=memory["mask"], values=memory["keys"])
        h, states = recur(layers.Concatenate(name="seen")([word, context]), states)
        x = layers.Concatenate(name="known")([h, word, context])
        x = Maxout(units, name="features")(x)
        others = [weights]
    elif variant == "seq2seq_luong":
        # The new state looks for it (section 3.1), without the input feeding of section 3.3.
        h, states = recur(word, states)
        attention = LuongAttention("general", name="attention")
        context, weights = attention(h, memory["keys"], mask=memory["mask"])
        x = layers.Concatenate(name="known")([context, h])
        x = layers.Dense(units, activation="tanh", use_bias=False, name="features")(x)
        others = [weights]
    else:
        # Sutskever et al.: all that is known of the source is in the first state.
        x, states = recur(word, states)
    return keras.Model(given, [x, *states, *others], name="step")


@dataclasses.dataclass
class Config(TranslationRecipe):
    """Train a translator, on dates, or on any two files that say the same line by line.

    examples:
      tiffin train seq2seq --export
      tiffin train seq2seq_bahdanau --data multi30k/ --languages en de
      tiffin train seq2seq --data english.txt --target german.txt --tokens words
    """

    model: Literal[tuple(VARIANTS)] = "seq2seq_luong"
    """Which decoder."""
    units: int = 256
    """Of the decoder, and of the encoder in each direction."""
    embedding: int = 256
    """Numbers that stand for a token."""
    cell: Literal["gru", "lstm"] = "gru"
    """Of encoder and decoder."""

    builder = staticmethod(seq2seq)

    def truth(self) -> tuple[float, float]:
        if self.teacher_forcing is None and self.model == "seq2seq_feedback":
            return 0.0, 0.0
        return super().truth()


if __name__ == "__main__":
    main(Config)
