"""A decoder: the network of one step, run along a sequence."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("tiffin")
class Decoder(keras.layers.Layer):
    """Tells at every step which token comes next, from those before and from what an encoder left.

    It is taught with the right tokens before each (teacher forcing), or, where it is `mixed`, with
    a share of the tokens that it has told itself (scheduled sampling, Bengio et al. 2015, arXiv
    1506.03099, with the likeliest token): `truth`, a weight that is not trained, is the
    probability of the right one, drawn for each example and step. At inference all are given.

    Args:
        step: a `keras.Model` from `[word, *states, *memory]` to `[features, *states, *others]`:
            the last token's embedding, float `[batch, n]`, states, float `[batch, m]` each, and
            what stays the same at all steps, `[batch, ...]`; others are of no concern here.
        tokens: how many different tokens there are.
        states: how many states the step has.
        dropout: rate for words and for features, one mask for all steps of a sequence (Gal and
            Ghahramani 2016, arXiv 1512.05287).
        mixed: see above.
        seed: of the dropout and of the mixture.
        **kwargs: `name`, `dtype`.

    Call arguments:
        inputs: `[tokens, *states, *memory]`: int `[batch, steps]`, the tokens before each step,
            and what the step takes beside words, the states before the first step.

    Returns:
        `logits`, float `[batch, steps, tokens]`.

    Raises:
        ValueError: `dropout` outside [0, 1).
    """

    def __init__(
        self,
        step: keras.Model,
        tokens: int,
        states: int = 1,
        dropout: float = 0.0,
        mixed: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1).")
        self.step, self.tokens, self.states = step, tokens, states
        self.dropout, self.mixed, self.seed = dropout, mixed, seed
        self.embedding = keras.layers.Embedding(tokens, step.inputs[0].shape[-1], name="words")
        self.head = keras.layers.Dense(tokens, dtype="float32", name="logits")
        self.random = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        self.embedding.build(input_shape[0])
        self.head.build(self.step.outputs[0].shape)
        if self.mixed:
            self.truth = self.add_weight((), "ones", trainable=False, name="truth")

    def compute_output_shape(self, input_shape):
        return (*input_shape[0], self.tokens)

    def call(self, inputs, training=False):
        tokens, states, memory = inputs[0], inputs[1 : 1 + self.states], inputs[1 + self.states :]
        masks = [
            self._mask(ops.shape(tokens)[0], tensor.shape[-1], training)
            for tensor in (self.step.inputs[0], self.step.outputs[0])
        ]

        def step(word, states):
            features, *rest = self.step([word, *states, *memory], training=training)
            return features, rest[: self.states]

        def tell(given, states):
            own, *states = states
            own = ops.where(given[:, 0] < 0, own[:, 0], given[:, 0])
            features, states = step(self.embedding(own) * masks[0], states)
            logits = self.head(features * masks[1])
            own = ops.cast(ops.argmax(logits, axis=-1), tokens.dtype)
            return logits, [own[:, None], *states]

        if self.mixed and training:
            # The right token, or -1 for its own; before the first there is none of its own.
            chance = keras.random.uniform(ops.shape(tokens), seed=self.random) < self.truth
            first = ops.arange(ops.shape(tokens)[1])[None] == 0
            given = ops.where(ops.logical_or(chance, first), tokens, -1)
            return _along(tell, given[..., None], [tokens[:, :1], *states], self.tokens)
        words = self.embedding(tokens) * masks[0][:, None]
        features = _along(step, words, [*states], self.step.outputs[0].shape[-1])
        return self.head(features * masks[1][:, None])

    def _mask(self, batch, features: int, training):
        """Return what dropout multiplies with, `[batch, features]`."""
        mask = ops.ones((batch, features), self.compute_dtype)
        if not training or not self.dropout:
            return mask
        return keras.random.dropout(mask, self.dropout, seed=self.random)

    def get_config(self):
        names = ("tokens", "states", "dropout", "mixed", "seed")
        own = {name: getattr(self, name) for name in names}
        own["step"] = keras.saving.serialize_keras_object(self.step)
        return super().get_config() | own

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"step": keras.saving.deserialize_keras_object(config["step"])})


class _Cell:
    """A function of one step, in the form that `keras.layers.RNN` runs along a sequence."""

    def __init__(self, function, states: list, output_size: int):
        self.function, self.output_size = function, output_size
        self.state_size = [state.shape[-1] for state in states]

    def call(self, inputs, states):
        return self.function(inputs, states)

    __call__ = call


def _along(function, sequences, states: list, size: int):
    """Return a function's outputs at all steps, its states handed on.

    Args:
        function: from a step's input and states to an output `[batch, size]` and the next states.
        sequences: `[batch, steps, ...]`.
        states: before the first step.
        size: see above.
    """
    runner = keras.layers.RNN(_Cell(function, states, size), return_sequences=True)
    return runner.inner_loop(sequences, states, mask=None)[1]
