"""Losses of detectors, element by element: which of them count is the caller's affair."""

import keras
from keras import ops

from tiffin.layers.boxes import tensors


def smooth_l1(target, predicted, beta: float = 1.0):
    """Return a loss that is quadratic near zero and linear beyond.

    Girshick 2015 (Fast R-CNN, arXiv 1504.08083), equation 3, for beta = 1: `0.5 d^2 / beta` where
    `|d| < beta`, else `|d| - 0.5 beta`.

    Args:
        target, predicted: float, of one shape.
        beta: where it changes, positive; sigma^-2 in the authors' later code.
    """
    target, predicted = tensors(target, predicted)
    d = ops.abs(predicted - target)
    return ops.where(d < beta, 0.5 * ops.square(d) / beta, d - 0.5 * beta)


def focal_loss(target, logits, alpha: float = 0.25, gamma: float = 2.0):
    """Return binary cross-entropy that counts what is nearly right for little.

    Lin et al. 2017 (RetinaNet, arXiv 1708.02002), equation 5: `-alpha_t (1 - p_t)^gamma log(p_t)`.

    Args:
        target: float in [0, 1], of the shape of `logits`.
        logits: float.
        alpha: weight of the positive class, in [0, 1]; that of the negative one is 1 - alpha.
        gamma: of the focus, 0 or more; 0: cross-entropy, weighted.
    """
    (logits,) = tensors(logits)
    target = ops.cast(target, logits.dtype)
    loss = binary_cross_entropy(target, logits)
    p = ops.sigmoid(logits)
    wrong = p * (1 - target) + (1 - p) * target
    weight = alpha * target + (1 - alpha) * (1 - target)
    # A power's gradient at 0 is not finite for gamma < 1.
    return weight * ops.power(ops.maximum(wrong, 1e-7), gamma) * loss


def binary_cross_entropy(target, logits):
    """Return the cross-entropy of probabilities `target` and `sigmoid(logits)`, of their shape."""
    target, logits = tensors(target, logits)
    return ops.maximum(logits, 0) - logits * target + ops.log1p(ops.exp(-ops.abs(logits)))


def sparse_cross_entropy(target, logits):
    """Return `-log softmax(logits)` of the target class.

    Args:
        target: int `[...]`, in [0, classes).
        logits: float `[..., classes]`.

    Returns:
        `[...]`.
    """
    target, logits = tensors(target, logits)
    chosen = ops.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    return ops.logsumexp(logits, axis=-1) - ops.sum(chosen * logits, axis=-1)


@keras.saving.register_keras_serializable("tiffin")
class L2Normalization(keras.layers.Layer):
    """Every cell's channels to length 1, times a learned scale for each channel.

    Liu et al. 2016 (SSD, arXiv 1512.02325), section 3.1, after ParseNet: conv4_3's features are
    larger than those of the maps after it; a scale of 20 brings them near.

    Args:
        initial_scale: 20 in the paper.
        epsilon: the smallest length that is divided by.
        **kwargs: `name`, `dtype`.

    Call arguments:
        x: float `[..., channels]`.

    Returns:
        The same shape.
    """

    def __init__(self, initial_scale: float = 20.0, epsilon: float = 1e-12, **kwargs):
        super().__init__(**kwargs)
        self.initial_scale, self.epsilon = initial_scale, epsilon

    def build(self, input_shape):
        self.scale = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_scale),
            name="scale",
        )

    def call(self, x):
        squares = ops.sum(ops.square(ops.cast(x, "float32")), axis=-1, keepdims=True)
        inverse = ops.rsqrt(ops.maximum(squares, self.epsilon**2))
        return x * ops.cast(inverse, x.dtype) * ops.cast(self.scale, x.dtype)

    def get_config(self):
        return super().get_config() | {
            "initial_scale": self.initial_scale,
            "epsilon": self.epsilon,
        }
