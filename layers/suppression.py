"""Non-maximum suppression: of boxes that overlap, the surest."""

import keras
import numpy as np
from keras import ops

from tiffin.layers.boxes import iou, take_rows


def suppress(boxes, threshold: float, groups=None, rounds: int | None = None):
    """Say which boxes greedy non-maximum suppression keeps.

    A box goes when it overlaps a kept one before it by more than the threshold. Instead of one box
    after the other all are decided at once and again, until nothing changes; the first n decisions
    are right after n rounds, and a chain of boxes that oust each other is seldom longer than five.

    Args:
        boxes: float `[batch, n, 4]`, the surest first.
        threshold: IoU, in [0, 1].
        groups: int `[batch, n]`, such as classes; boxes of different ones do not compete. None: all
            do.
        rounds: of deciding, without a loop; None: until nothing changes, which is exact.

    Returns:
        Bool `[batch, n]`.
    """
    count = boxes.shape[1]
    earlier = ops.convert_to_tensor(np.tri(count, k=-1, dtype=bool))
    ousts = (iou(boxes, boxes) > threshold) & earlier[None]
    if groups is not None:
        ousts = ousts & (groups[:, :, None] == groups[:, None, :])
    ousts = ops.cast(ousts, "float32")
    kept = ops.ones_like(boxes[..., 0], dtype="float32")

    def decide(kept, before=None):
        ousted = ops.squeeze(ops.matmul(ousts, kept[..., None]), -1)
        return ops.cast(ousted < 0.5, "float32"), kept

    if rounds is not None:
        for _ in range(rounds):
            kept, _ = decide(kept)
        return kept > 0.5
    kept, _ = ops.while_loop(
        lambda kept, before: ops.any(kept != before),
        decide,
        (kept, ops.zeros_like(kept)),
        maximum_iterations=count + 1,
    )
    return kept > 0.5


@keras.saving.register_keras_serializable("tiffin")
class NonMaxSuppression(keras.layers.Layer):
    """From all boxes and their scores to a fixed number of detections, class by class.

    Only the `candidates` pairs of box and class with the highest scores compete, as in every
    detector; boxes of different classes never do.

    Args:
        size: detections to return.
        iou_threshold: a box goes that overlaps a surer one of its class by more.
        score_threshold: a score has to be above this.
        candidates: pairs of box and class that enter.
        rounds: of `suppress`: right for chains of so many boxes that oust each other, and without
            a loop, which no file could have in int8.
        **kwargs: `name`.

    Call arguments:
        boxes: float `[batch, n, 4]`, corners, or `[batch, n, classes, 4]` where each class has its
            own.
        scores: float `[batch, n, classes]`, without a background.

    Returns:
        A dictionary: `boxes`, float32 `[batch, size, 4]`; `scores`, float32 `[batch, size]`, the
        highest first; `classes`, int32 `[batch, size]`; `count`, int32 `[batch]`. Beyond `count`
        boxes, scores and classes are 0.

    Raises:
        ValueError: a size or a threshold out of range.
    """

    # The exporter leaves such layers in float32 whatever the rest of the file is in.
    keeps_float = True

    def __init__(
        self,
        size: int = 100,
        iou_threshold: float = 0.45,
        score_threshold: float = 0.01,
        candidates: int = 300,
        rounds: int = 16,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if not 1 <= size <= candidates:
            raise ValueError(f"size={size} must lie between 1 and candidates={candidates}.")
        if not 0 <= iou_threshold <= 1 or not 0 <= score_threshold < 1:
            raise ValueError(
                f"iou_threshold={iou_threshold} and score_threshold={score_threshold} are shares, "
                "from 0 to 1."
            )
        self.size, self.candidates, self.rounds = size, candidates, rounds
        self.iou_threshold, self.score_threshold = iou_threshold, score_threshold

    def call(self, boxes, scores):
        boxes, scores = ops.cast(boxes, "float32"), ops.cast(scores, "float32")
        n, classes = scores.shape[1:]
        flat = ops.reshape(scores, (-1, n * classes))
        best, place = ops.top_k(flat, min(self.candidates, n * classes))
        place = ops.cast(place, "int32")
        kinds = place % classes
        if len(boxes.shape) == 4:
            chosen = take_rows(ops.reshape(boxes, (-1, n * classes, 4)), place)
        else:
            chosen = take_rows(boxes, place // classes)
        alive = best > self.score_threshold
        # What does not count must not oust anybody; it does not, as it comes last.
        kept = suppress(chosen, self.iou_threshold, kinds, self.rounds) & alive
        size = min(self.size, best.shape[1])
        # Of top_k's equals the first comes first, so that the order by score stays.
        values, order = ops.top_k(ops.where(kept, best, -1.0), size)
        order = ops.cast(order, "int32")
        return self._found(values, take_rows(chosen, order), take_rows(kinds, order))

    def _found(self, values, boxes, kinds):
        """Return the detections, the surest first; what has no score is none."""
        real = values > 0
        found = {
            "boxes": ops.where(real[..., None], boxes, 0.0),
            "scores": ops.where(real, values, 0.0),
            "classes": ops.where(real, kinds, 0),
        }
        if missing := self.size - values.shape[1]:
            found = {
                key: ops.pad(value, [(0, 0), (0, missing)] + [(0, 0)] * (len(value.shape) - 2))
                for key, value in found.items()
            }
        return found | {"count": ops.sum(ops.cast(real, "int32"), axis=1)}

    def get_config(self):
        return super().get_config() | {
            "size": self.size,
            "iou_threshold": self.iou_threshold,
            "score_threshold": self.score_threshold,
            "candidates": self.candidates,
            "rounds": self.rounds,
        }


@keras.saving.register_keras_serializable("tiffin")
class RuntimeSuppression(NonMaxSuppression):
    """`NonMaxSuppression` that exported files leave to the runtime's own operator.

    All pairs of box and class compete, as they do in the operators: where overlapping boxes take
    most of the other layer's `candidates`, this one has more detections of low scores.

    Args:
        size, iou_threshold, score_threshold: see `NonMaxSuppression`.
        **kwargs: `name`.

    Call arguments:
        boxes, scores: see `NonMaxSuppression`.

    Returns:
        As `NonMaxSuppression`.

    Raises:
        ValueError: a size or a threshold out of range.
    """

    left_to_runtime = True  # what the exporter knows such layers by

    def __init__(
        self, size: int = 100, iou_threshold: float = 0.45, score_threshold: float = 0.01, **kwargs
    ):
        super().__init__(size, iou_threshold, score_threshold, size, **kwargs)

    def call(self, boxes, scores):
        boxes, scores = ops.cast(boxes, "float32"), ops.cast(scores, "float32")
        n, classes = scores.shape[1:]
        own = len(boxes.shape) == 4
        boxes = ops.reshape(boxes, (-1, n * classes, 4)) if own else boxes
        kinds = ops.arange(classes, dtype="int32")
        pairs = ops.arange(n * classes, dtype="int32")
        turns = ops.arange(self.size, dtype="int32")

        # One after the other: all overlaps of all boxes would not fit into memory.
        def choose(turn, state):
            left, values, places = state
            best = ops.max(left, axis=1, keepdims=True)
            place = ops.cast(ops.argmax(left, axis=1, keepdims=True), "int32")
            near = iou(boxes, take_rows(boxes, place if own else place // classes))
            near = ops.reshape(near > self.iou_threshold, (-1, n, classes if own else 1))
            near = ops.reshape(near & (kinds == place % classes)[:, None], (-1, n * classes))
            left = ops.where(near | (pairs == place), 0.0, left)
            now = turns == turn
            return left, ops.where(now, best, values), ops.where(now, place, places)

        left = ops.reshape(ops.where(scores > self.score_threshold, scores, 0.0), (-1, n * classes))
        values = ops.zeros_like(left[:, :1]) + ops.zeros(self.size)
        state = left, values, ops.cast(values, "int32")
        _, values, places = ops.fori_loop(0, self.size, choose, state)
        chosen = take_rows(boxes, places if own else places // classes)
        return self._found(values, chosen, places % classes)

    def get_config(self):
        config = super().get_config()
        return {key: config[key] for key in config if key not in ("candidates", "rounds")}


@keras.saving.register_keras_serializable("tiffin")
class RelativeDetections(keras.layers.Layer):
    """Detections as TFLite's own detectors give them: numbers alone, boxes as shares of the sides.

    Args:
        size: `(height, width)` of the picture, in pixels.
        **kwargs: `name`.

    Call arguments:
        detections: as from `NonMaxSuppression`.

    Returns:
        The same dictionary, all float32, `boxes` in [0, 1].
    """

    keeps_float = True

    def __init__(self, size, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.size = tuple(size)

    def call(self, detections):
        sides = np.tile(np.array(self.size, np.float32), 2)
        return {
            "boxes": detections["boxes"] / sides,
            "scores": detections["scores"],
            "classes": ops.cast(detections["classes"], "float32"),
            "count": ops.cast(detections["count"], "float32"),
        }

    def get_config(self):
        return super().get_config() | {"size": list(self.size)}


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    sigma: float | None = 0.5,
    threshold: float = 0.3,
    least: float = 0.001,
) -> tuple[np.ndarray, np.ndarray]:
    """Lower the scores of overlapping boxes instead of dropping them: for evaluation.

    Bodla et al. 2017 (arXiv 1704.04503), equation 3 (Gaussian) or, without sigma, the linear rule.

    Args:
        boxes: `[n, 4]`, of one class.
        scores: `[n]`.
        sigma: `s_i *= exp(-iou^2 / sigma)`; None: `s_i *= 1 - iou` where the IoU is `threshold` or
            more.
        threshold: of the linear rule.
        least: boxes whose score falls below are dropped.

    Returns:
        (indices of the kept boxes, their new scores), the highest first.
    """
    scores = np.array(scores, np.float64)
    overlap = ops.convert_to_numpy(
        iou(np.asarray(boxes, np.float64), np.asarray(boxes, np.float64))
    )
    left = np.ones(len(scores), bool)
    kept = []
    while left.any():
        first = int(np.where(left, scores, -np.inf).argmax())
        if scores[first] < least:
            break
        kept.append(first)
        left[first] = False
        decay = (
            np.exp(-(overlap[first] ** 2) / sigma)
            if sigma is not None
            else np.where(overlap[first] >= threshold, 1 - overlap[first], 1.0)
        )
        scores[left] *= decay[left]
    return np.array(kept, int), scores[kept]
