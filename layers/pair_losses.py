"""Contrastive and triplet loss over a batch's pairs: `embedder.compile(loss=TripletLoss())`."""

from typing import Literal

import keras
from keras import ops


def pairwise_distances(embeddings, squared: bool = False):
    """Return the Euclidean distances between all rows.

    Args:
        embeddings: float `[batch, dimensions]`.
        squared: return their squares.

    Returns:
        Float `[batch, batch]`, with a gradient of 0 where two rows are the same.
    """
    # Distances do not change with the origin, and near it less is lost to rounding.
    x = embeddings - ops.stop_gradient(ops.mean(embeddings, axis=0, keepdims=True))
    squares = ops.sum(ops.square(x), axis=-1)
    products = ops.matmul(x, ops.transpose(x))
    result = squares[:, None] + squares[None, :] - 2 * products
    apart = (result > 0) & ~_same_row(result)
    result = ops.where(apart, result, 0.0)
    if squared:
        return result
    # Chosen before the root as well: the gradient of the branch not taken would be 0 * inf.
    return ops.where(apart, ops.sqrt(ops.where(apart, result, 1.0)), 0.0)


def _same_row(matrix):
    rows = ops.arange(ops.shape(matrix)[0])
    return rows[:, None] == rows[None, :]


def _prepared(labels, embeddings):
    """Return the embeddings in float32 at least, `positive` and `negative` pairs as booleans."""
    if len(embeddings.shape) != 2:
        raise ValueError(f"Embeddings are [batch, dimensions], not {tuple(embeddings.shape)}.")
    if keras.backend.standardize_dtype(embeddings.dtype) != "float64":
        embeddings = ops.cast(embeddings, "float32")
    labels = ops.reshape(labels, (-1,))
    equal = labels[:, None] == labels[None, :]
    return embeddings, equal & ~_same_row(equal), ~equal


def _mean_where(values, chosen):
    """Return `[batch]` values whose mean is that of the chosen ones; zeros where none is chosen."""
    chosen = ops.cast(chosen, values.dtype)
    share = ops.cast(ops.size(values), values.dtype) / ops.maximum(ops.sum(chosen), 1)
    return values * chosen * share


@keras.saving.register_keras_serializable("tiffin")
class ContrastiveLoss(keras.losses.Loss):
    """Pairs of a class near each other, all others at least a margin apart.

    Hadsell, Chopra and LeCun 2006 (Dimensionality Reduction by Learning an Invariant Mapping),
    equation 4: `1/2 D^2` for a pair of the same class and `1/2 max(0, margin - D)^2` for another,
    D its Euclidean distance; here for all pairs of the batch, and the mean over them.

    Args:
        margin: distance that pairs of different classes should keep, positive.
        balanced: weigh the two kinds of pairs alike, the mean of each counting one half, since of
            n classes only one pair in n is alike. False: every pair counts the same.
        **kwargs: `name`, `reduction`, `dtype`.

    Call arguments:
        y_true: integer labels `[batch]` or `[batch, 1]`.
        y_pred: embeddings, float `[batch, dimensions]`.

    Raises:
        ValueError: a margin that is not positive, or embeddings of another rank.
    """

    def __init__(
        self, margin: float = 1.0, balanced: bool = False, name: str = "contrastive_loss", **kwargs
    ):
        super().__init__(name=name, **kwargs)
        if not margin > 0:
            raise ValueError(f"margin={margin} must be positive.")
        self.margin, self.balanced = margin, balanced

    def call(self, y_true, y_pred):
        x, positive, negative = _prepared(y_true, y_pred)
        near = pairwise_distances(x, squared=True) / 2
        far = ops.square(ops.maximum(self.margin - pairwise_distances(x), 0)) / 2
        if self.balanced:
            losses = (_mean_where(near, positive) + _mean_where(far, negative)) / 2
        else:
            losses = _mean_where(ops.where(positive, near, far), positive | negative)
        return ops.mean(losses, axis=-1)

    def get_config(self):
        return super().get_config() | {"margin": self.margin, "balanced": self.balanced}


@keras.saving.register_keras_serializable("tiffin")
class TripletLoss(keras.losses.Loss):
    """An example nearer to its own class than to any other, by a margin.

    `max(0, D(anchor, positive) - D(anchor, negative) + margin)`, the triplets mined in the batch:

    - `batch_hard`: for each anchor its farthest positive and its nearest negative. Hermans et al.
      2017 (arXiv 1703.07737), equation 5; the mean over the anchors that have both.
    - `semi_hard`: for each anchor and positive the nearest negative beyond the positive, or the
      farthest of all where none is. Schroff et al. 2015 (FaceNet, arXiv 1503.03832), section 3.2,
      as in its ports; the mean over the pairs. It needs memory for batch^3 numbers.

    Classes should have several examples in a batch. Hermans et al. use plain Euclidean distances,
    FaceNet squared ones on embeddings of length 1.

    Args:
        margin: positive; None is Hermans' soft margin, `log(1 + exp(x))` in place of `max(0, x)`.
        mining: `batch_hard` or `semi_hard`.
        squared: use squared distances.
        **kwargs: `name`, `reduction`, `dtype`.

    Call arguments:
        y_true: integer labels `[batch]` or `[batch, 1]`.
        y_pred: embeddings, float `[batch, dimensions]`.

    Raises:
        ValueError: an argument outside its range, or embeddings of another rank.
    """

    def __init__(
        self,
        margin: float | None = 0.2,
        mining: Literal["batch_hard", "semi_hard"] = "batch_hard",
        squared: bool = False,
        name: str = "triplet_loss",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if margin is not None and not margin > 0:
            raise ValueError(f"margin={margin} must be positive, or None for a soft margin.")
        if mining not in ("batch_hard", "semi_hard"):
            raise ValueError(f"mining={mining!r} must be 'batch_hard' or 'semi_hard'.")
        self.margin, self.mining, self.squared = margin, mining, squared

    def call(self, y_true, y_pred):
        x, positive, negative = _prepared(y_true, y_pred)
        distances = pairwise_distances(x, self.squared)
        if self.mining == "batch_hard":
            far = ops.max(ops.where(positive, distances, 0.0), axis=-1)
            # Anchors without a negative are left out below; until then infinity would make NaN.
            beyond = ops.max(distances) + 1
            near = ops.min(ops.where(negative, distances, beyond), axis=-1)
            chosen = ops.any(positive, axis=-1) & ops.any(negative, axis=-1)
            return _mean_where(self._hinge(far - near), chosen)
        # Axes: anchor, positive, negative.
        others = distances[:, None, :]
        negatives = negative[:, None, :]
        beyond = negatives & (others > distances[:, :, None])
        most = ops.max(distances) + 1
        nearest = ops.min(ops.where(beyond, others, most), axis=-1)
        farthest = ops.max(ops.where(negative, distances, 0.0), axis=-1, keepdims=True)
        near = ops.where(ops.any(beyond, axis=-1), nearest, farthest)
        chosen = positive & ops.any(negative, axis=-1, keepdims=True)
        return ops.mean(_mean_where(self._hinge(distances - near), chosen), axis=-1)

    def _hinge(self, x):
        return ops.softplus(x) if self.margin is None else ops.maximum(x + self.margin, 0)

    def get_config(self):
        own = {"margin": self.margin, "mining": self.mining, "squared": self.squared}
        return super().get_config() | own
