"""Losses of detectors, element by element: which of them count is the caller's affair."""

from keras import ops

from tiffin.layers.boxes import encode_boxes, tensors
from tiffin.layers.matching import take_objects


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


def matched_smooth_l1(
    boxes, matched, positive, anchors, deltas, variances=(1.0, 1.0), beta: float = 1.0
):
    """Return the smooth L1 of the positive anchors' deltas, summed over each, 0 for the others.

    Args:
        boxes, matched: float `[batch, objects, 4]`, corners, and int `[batch, n]` from `match`.
        positive: bool `[batch, n]`.
        anchors: float `[batch, n, 4]` or `[1, n, 4]`, corners.
        deltas: float `[batch, n, 4]`, as of `encode_boxes` with these `variances`.
        beta: see `smooth_l1`.

    Returns:
        Float `[batch, n]`.
    """
    unit = ops.convert_to_tensor([0.0, 0.0, 1.0, 1.0])  # finite for those that do not count
    anchors = ops.where(positive[..., None], anchors, unit)
    wanted = ops.where(positive[..., None], take_objects(boxes, matched), unit)
    error = smooth_l1(encode_boxes(wanted, anchors, variances), deltas, beta)
    return ops.where(positive, ops.sum(error, axis=-1), 0.0)


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
