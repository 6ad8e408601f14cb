"""Entropy, cross-entropy and KL divergence, and how they hang together.

For a true distribution p and a predicted one q over the same classes, in nats:

    H(p)       = -sum p log p        what p itself costs at best          (`entropy`)
    H(p, q)    = -sum p log q        what p costs in a code made for q    (`cross_entropy`)
    KL(p || q) = H(p, q) - H(p)      what the wrong code costs more       (`kl_divergence`)

KL is never negative, and 0 only where q = p; it is not symmetric. H(p) does not depend on the
network: minimising cross-entropy and minimising KL are the same, and of a one-hot p, whose entropy
is 0, they are equal. Kullback and Leibler 1951; Cover and Thomas, Elements of Information Theory,
equations 2.1 and 2.26.
"""

import keras
from keras import ops


def _x_log_y(x, y):
    """Return `x log y`, and 0 where x is 0, with finite gradients there."""
    x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    taken = x > 0
    return ops.where(taken, x * ops.log(ops.where(taken, y, 1.0)), 0.0)


def entropy(p):
    """Return H(p) in nats.

    Args:
        p: probabilities, float `[..., classes]`, which sum to 1.

    Returns:
        Float `[...]`, from 0 (one class is certain) to log(classes) (all alike).
    """
    return -ops.sum(_x_log_y(p, p), axis=-1)


def cross_entropy(p, q, from_logits: bool = False):
    """Return H(p, q) in nats.

    Args:
        p: true probabilities, float `[..., classes]`, which sum to 1.
        q: predicted ones of the same shape, or logits.
        from_logits: whether q holds logits: exact, however large they are.

    Returns:
        Float `[...]`, infinite where q rules out what p does not.
    """
    if from_logits:
        return -ops.sum(ops.multiply(p, ops.log_softmax(q, axis=-1)), axis=-1)
    return -ops.sum(_x_log_y(p, q), axis=-1)


def kl_divergence(p, q, from_logits: bool = False):
    """Return KL(p || q) = H(p, q) - H(p) in nats.

    Args:
        p, q, from_logits: as for `cross_entropy`.

    Returns:
        Float `[...]`, at least 0 but for rounding, infinite where q rules out what p does not.
    """
    return cross_entropy(p, q, from_logits) - entropy(p)


@keras.saving.register_keras_serializable("tiffin")
class KLDivergence(keras.losses.Loss):
    """`kl_divergence` as a loss: from soft labels, such as a teacher's, to probabilities or logits.

    Args:
        from_logits: whether predictions are logits.
        **kwargs: `name`, `reduction`, `dtype`.

    Call arguments:
        y_true: probabilities, float `[batch, ..., classes]`.
        y_pred: probabilities or logits of the same shape.
    """

    def __init__(self, from_logits: bool = False, name: str = "kl_divergence", **kwargs):
        super().__init__(name=name, **kwargs)
        self.from_logits = from_logits

    def call(self, y_true, y_pred):
        y_pred = ops.convert_to_tensor(y_pred)
        return kl_divergence(ops.cast(y_true, y_pred.dtype), y_pred, self.from_logits)

    def get_config(self):
        return super().get_config() | {"from_logits": self.from_logits}
