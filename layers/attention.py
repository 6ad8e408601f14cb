"""Attention of a decoder over what an encoder read."""

import abc

import keras
from keras import ops


class Attention(keras.layers.Layer, abc.ABC):
    """What the kinds share: from scores to weights to a context.

    Args:
        **kwargs: `name`, `dtype`.

    Call arguments:
        query: float `[batch, features]` of one step, or `[batch, steps, features]` of all.
        keys: float `[batch, length, key features]`, the encoder's outputs.
        mask: bool `[batch, length]`, False where there is padding; None: none.
        values: float `[batch, length, value features]`, what is summed up; None: the keys.

    Returns:
        `context`, the values' weighted sum, float `[batch, value features]` or `[batch, steps,
        value features]`, and `weights`, `[batch, length]` or `[batch, steps, length]`: none
        negative, zero on padding, 1 in sum unless all is padding.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, *arguments):
        return None, None

    def call(self, query, keys, mask=None, values=None):
        steps = query if len(query.shape) == 3 else query[:, None]
        mask = None if mask is None else ops.cast(mask, self.compute_dtype)[:, None]
        weights = self.weigh(steps, keys, mask)
        context = ops.matmul(weights, keys if values is None else values)
        if len(query.shape) == 3:
            return context, weights
        return ops.squeeze(context, 1), ops.squeeze(weights, 1)

    def weigh(self, query, keys, mask):
        """Return the weights `[batch, steps, length]` for queries of all steps.

        The mask is float `[batch, 1, length]`, 0 where there is padding, or None.
        """
        return self.masked_softmax(self.score(query, keys), mask)

    @staticmethod
    def masked_softmax(scores, mask):
        """Return softmax over the last axis, as if what a mask has as 0 were not there."""
        if mask is None:
            return ops.softmax(scores)
        # Not minus a billion: in int8 no two other scores would differ then. With the least score
        # in the place of what is masked the softmax is in range, and what it gets is taken away.
        least = ops.min(scores, axis=-1, keepdims=True)
        weights = ops.softmax(ops.where(mask > 0, scores, least)) * mask
        # No less than a share of 1 / length is left, but where all is padding.
        total = ops.sum(weights, axis=-1, keepdims=True)
        return weights / ops.maximum(total, 1e-6)

    @abc.abstractmethod
    def score(self, query, keys):
        """Return how well each key fits each query: `[batch, steps, length]`."""

    def compute_output_shape(self, query_shape, keys_shape, mask_shape=None, values_shape=None):
        steps = query_shape[:-1]
        return (*steps, (values_shape or keys_shape)[-1]), (*steps, keys_shape[1])


def additive_score(query, keys, v):
    """Return v^T tanh(query + key) for each pair.

    Args:
        query: float `[batch, steps, units]`.
        keys: float `[batch, length, units]`.
        v: float `[units]`.

    Returns:
        Float `[batch, steps, length]`.
    """
    return ops.sum(ops.tanh(query[:, :, None] + keys[:, None]) * v, axis=-1)


@keras.saving.register_keras_serializable("tiffin")
class BahdanauAttention(Attention):
    """Additive attention (Bahdanau et al. 2015, arXiv 1409.0473, section A.1.2).

    e = v^T tanh(W s + U h), for the decoder's state s (the last step's) and each encoder output h.

    Args:
        units: rows of W and U.
        project_keys: False where the keys come as U h, float `[batch, length, units]`, with the h
            as `values`: U h is the same at every step of a decoder.
        **kwargs: `name`, `dtype`.

    Weights: `query_kernel` W, float `[query features, units]`; `key_kernel` U, `[key features,
    units]`; `v`, `[units]`. Call arguments and results: see `Attention`.
    """

    def __init__(self, units: int, project_keys: bool = True, **kwargs):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"units={units} must be 1 or more.")
        self.units, self.project_keys = units, project_keys

    def build(self, query_shape, keys_shape, mask_shape=None, values_shape=None):
        self.query_kernel = self.add_weight((query_shape[-1], self.units), name="query_kernel")
        if self.project_keys:
            self.key_kernel = self.add_weight((keys_shape[-1], self.units), name="key_kernel")
        self.v = self.add_weight((self.units,), name="v")

    def score(self, query, keys):
        keys = ops.matmul(keys, self.key_kernel) if self.project_keys else keys
        return additive_score(ops.matmul(query, self.query_kernel), keys, self.v)

    def get_config(self):
        return super().get_config() | {"units": self.units, "project_keys": self.project_keys}


@keras.saving.register_keras_serializable("tiffin")
class LuongAttention(Attention):
    """Multiplicative attention (Luong et al. 2015, arXiv 1508.04025, section 3).

    Scores of the decoder's state h (this step's) and an encoder output s, by equation 8:
    dot h^T s, general h^T W s, concat v^T tanh(W [h; s]).

    Local-p attention (section 3.2) looks at p - window <= position <= p + window only, with p = S
    sigmoid(vp^T tanh(Wp h)) for a source of length S, padding not counted, and positions from 0.
    The weights there are multiplied by exp(-(position - p)^2 / (2 (window / 2)^2)), equation 10,
    and, as in the paper, sum up to less than 1.

    Args:
        kind: of score: "dot", "general" or "concat".
        units: rows of concat's W; None: as many as the query has features.
        window: D of local-p attention, in positions; None: global attention.
        **kwargs: `name`, `dtype`.

    Weights: of general `kernel`, float `[query features, key features]`; of concat `query_kernel`
    and `key_kernel`, the two blocks of W, transposed, and `v`; of local-p `position_kernel` Wp,
    transposed, `[query features, query features]`, and `position_v`. Call arguments and results:
    see `Attention`.

    Raises:
        ValueError: an unknown kind, `units` or `window` below 1, or dot with features that differ.
    """

    def __init__(
        self, kind: str = "general", units: int | None = None, window: int | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        if kind not in ("dot", "general", "concat"):
            raise ValueError(f"kind='{kind}': it can be 'dot', 'general' or 'concat'.")
        for name, value in (("units", units), ("window", window)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more.")
        self.kind, self.units, self.window = kind, units, window

    def build(self, query_shape, keys_shape, mask_shape=None, values_shape=None):
        features, key_features = query_shape[-1], keys_shape[-1]
        if self.kind == "dot" and features != key_features:
            raise ValueError(
                f"The dot product of a query of {features} features and keys of {key_features} is "
                "not defined: make them equal, or take kind='general'."
            )
        if self.kind == "general":
            self.kernel = self.add_weight((features, key_features), name="kernel")
        elif self.kind == "concat":
            units = self.units or features
            self.query_kernel = self.add_weight((features, units), name="query_kernel")
            self.key_kernel = self.add_weight((key_features, units), name="key_kernel")
            self.v = self.add_weight((units,), name="v")
        if self.window:
            self.position_kernel = self.add_weight((features, features), name="position_kernel")
            self.position_v = self.add_weight((features,), name="position_v")

    def score(self, query, keys):
        if self.kind == "concat":
            query, keys = ops.matmul(query, self.query_kernel), ops.matmul(keys, self.key_kernel)
            return additive_score(query, keys, self.v)
        query = ops.matmul(query, self.kernel) if self.kind == "general" else query
        return ops.matmul(query, ops.transpose(keys, (0, 2, 1)))

    def weigh(self, query, keys, mask):
        if not self.window:
            return super().weigh(query, keys, mask)
        scores = self.score(query, keys)
        here = ops.ones_like(scores[:, :1]) if mask is None else mask
        hidden = ops.tanh(ops.matmul(query, self.position_kernel))
        p = ops.sigmoid(ops.sum(hidden * self.position_v, axis=-1, keepdims=True))
        # Half precision cannot count that far: in bfloat16 256 is followed by 258.
        exact = keras.backend.result_type(scores.dtype, "float32")
        p = ops.sum(ops.cast(here, exact), axis=-1, keepdims=True) * ops.cast(p, exact)
        away = ops.cast(ops.arange(ops.shape(scores)[-1]), exact) - p
        near = ops.cast(ops.abs(away) <= self.window, scores.dtype)
        weights = self.masked_softmax(scores, here * near)
        return weights * ops.cast(ops.exp(-2 * ops.square(away / self.window)), weights.dtype)

    def get_config(self):
        own = {"kind": self.kind, "units": self.units, "window": self.window}
        return super().get_config() | own
