"""Between the stages of Faster R-CNN: proposals, and features of regions on a pyramid of maps."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers, ops

from tiffin.layers.boxes import box_area, clip_boxes, decode_boxes, take_rows
from tiffin.layers.regions import RoIAlign
from tiffin.layers.suppression import suppress


@keras.saving.register_keras_serializable("tiffin")
class Proposals(keras.layers.Layer):
    """The regions that are most likely to hold an object of any kind.

    Ren et al. 2015 (Faster R-CNN, arXiv 1506.01497), section 3.3: the boxes of the highest scores,
    cut at the border, less those that overlap a surer one. Of each map of a pyramid as many enter,
    and boxes of different maps do not compete (Lin et al. 2017, arXiv 1612.03144).

    Args:
        anchors: float `[n, 4]`, corners in pixels, map by map.
        counts: anchors on each map.
        size: `(height, width)` of the picture, in pixels.
        number: proposals to return.
        candidates: boxes of each map that enter the suppression.
        iou_threshold: of the suppression, 0.7 in the paper.
        rounds: of `suppress`.
        **kwargs: `name`.

    Call arguments:
        logits: float `[batch, n]`, of there being an object.
        deltas: float `[batch, n, 4]`, of the anchors.

    Returns:
        Float32 `[batch, number, 4]`, corners in pixels, the surest first; without gradient. Where
        fewer are left, boxes without area follow.
    """

    keeps_float = True  # in int8 a proposal would lie on one of 256 places

    def __init__(
        self,
        anchors,
        counts: Sequence[int],
        size: Sequence[int],
        number: int = 300,
        candidates: int = 1000,
        iou_threshold: float = 0.7,
        rounds: int = 16,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.anchors = np.asarray(anchors, np.float32)
        self.counts, self.size = tuple(int(n) for n in counts), tuple(size)
        if sum(self.counts) != len(self.anchors):
            raise ValueError(f"counts={counts} are of {len(self.anchors)} anchors.")
        self.number, self.candidates = number, candidates
        self.iou_threshold, self.rounds = iou_threshold, rounds

    def call(self, logits, deltas):
        logits, deltas = (ops.stop_gradient(ops.cast(x, "float32")) for x in (logits, deltas))
        chosen, scores, groups, start = [], [], [], 0
        for level, count in enumerate(self.counts):
            most = min(self.candidates, count)
            best, place = ops.top_k(logits[:, start : start + count], most)
            place = ops.cast(place, "int32")
            anchors = ops.take(self.anchors[start : start + count], place, axis=0)
            moved = take_rows(deltas[:, start : start + count], place)
            chosen.append(clip_boxes(decode_boxes(moved, anchors), *self.size))
            scores.append(best)
            groups.append(ops.zeros_like(place) + level)
            start += count
        boxes, scores, groups = (ops.concatenate(x, axis=1) for x in (chosen, scores, groups))
        if len(self.counts) > 1:
            scores, order = ops.top_k(scores, scores.shape[1])
            order = ops.cast(order, "int32")
            boxes, groups = take_rows(boxes, order), take_rows(groups, order)
        sides = boxes[..., 2:] - boxes[..., :2]
        real = suppress(boxes, self.iou_threshold, groups, self.rounds)
        real = real & (ops.min(sides, axis=-1) >= 1e-3)
        # By place, so that the order by score stays: not every backend keeps it among equals.
        place = ops.arange(real.shape[1], 0, -1, dtype="float32")
        rank, order = ops.top_k(ops.where(real, place, 0.0), min(self.number, real.shape[1]))
        boxes = ops.where(rank[..., None] > 0, take_rows(boxes, ops.cast(order, "int32")), 0.0)
        missing = self.number - boxes.shape[1]
        return ops.pad(boxes, [(0, 0), (0, missing), (0, 0)]) if missing else boxes

    def compute_output_shape(self, logits_shape, deltas_shape):
        return (logits_shape[0], self.number, 4)

    def get_config(self):
        return super().get_config() | {
            "anchors": self.anchors.tolist(),
            "counts": list(self.counts),
            "size": list(self.size),
            "number": self.number,
            "candidates": self.candidates,
            "iou_threshold": self.iou_threshold,
            "rounds": self.rounds,
        }


def feature_pyramid(maps: Sequence[keras.KerasTensor], filters: int = 256):
    """Carry what coarse maps know into the fine ones.

    Lin et al. 2017 (arXiv 1612.03144), section 3.

    Args:
        maps: float `[batch, height, width, channels]`, the finest first, each half as high and wide
            as the one before.
        filters: channels of all results.

    Returns:
        As many maps of the same sides.
    """
    inner = [
        layers.Conv2D(filters, 1, name=f"fpn_inner{i}")(x) for i, x in enumerate(maps, start=1)
    ]
    for i in range(len(inner) - 2, -1, -1):
        above = layers.UpSampling2D(2, name=f"fpn_up{i + 1}")(inner[i + 1])
        inner[i] = layers.Add(name=f"fpn_sum{i + 1}")([inner[i], above])
    return [
        layers.Conv2D(filters, 3, padding="same", name=f"fpn_layer{i}")(x)
        for i, x in enumerate(inner, start=1)
    ]


@keras.saving.register_keras_serializable("tiffin")
class PyramidRoIAlign(keras.layers.Layer):
    """RoIAlign of each region on the map that suits its size.

    Lin et al. 2017 (arXiv 1612.03144), equation 1: `k = floor(4 + log2(sqrt(w h) / 224))`.

    Args:
        size: rows and columns of bins.
        strides: of the maps in pixels, powers of two, the finest first.
        samples: see `RoIAlign`.
        **kwargs: `name`, `dtype`.

    Call arguments:
        features: a list of float `[batch, height, width, channels]`.
        regions: float `[batch, n, 4]`, corners in pixels.

    Returns:
        `[batch, n, size, size, channels]`.
    """

    keeps_float = True

    def __init__(self, size: int = 7, strides: Sequence[int] = (4, 8, 16, 32), samples=2, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.size, self.strides, self.samples = size, tuple(strides), samples
        policy = self.dtype_policy
        self._pools = [RoIAlign(size, 1 / n, samples, dtype=policy) for n in self.strides]

    def build(self, features_shape, regions_shape):
        for pool, shape in zip(self._pools, features_shape, strict=True):
            pool.build(shape)

    def call(self, features, regions):
        regions = ops.cast(regions, "float32")
        sides = ops.maximum(regions[..., 2:] - regions[..., :2], 0.0)
        side = ops.sqrt(sides[..., 0] * sides[..., 1])
        # Between limits, so that no logarithm of zero is needed: level k from 224 * 2^(k - 4).
        levels = [round(math.log2(n)) for n in self.strides]
        result = 0.0
        for level, pool, x in zip(levels, self._pools, features, strict=True):
            low, high = 224 * 2.0 ** (level - 4), 224 * 2.0 ** (level - 3)
            mine = side >= 0
            if level != levels[0]:
                mine = mine & (side >= low)
            if level != levels[-1]:
                mine = mine & (side < high)
            weight = ops.cast(mine, self.compute_dtype)[..., None, None, None]
            result = result + pool(x, regions) * weight
        return result

    def compute_output_shape(self, features_shape, regions_shape):
        return (*regions_shape[:2], self.size, self.size, features_shape[0][-1])

    def get_config(self):
        return super().get_config() | {
            "size": self.size,
            "strides": list(self.strides),
            "samples": self.samples,
        }


@keras.saving.register_keras_serializable("tiffin")
class DecodeRegions(keras.layers.Layer):
    """What the second stage says of its regions, as boxes in the picture and scores.

    Girshick et al. 2014 (arXiv 1311.2524), appendix C: every class has a box of its own.

    Args:
        size: `(height, width)` of the picture, in pixels.
        variances: see `encode_boxes`.
        activation: of the logits: "softmax", whose first class is the background, or "sigmoid" of
            logits without one.
        **kwargs: `name`.

    Call arguments:
        logits: float `[batch, n, 1 + classes]` or, region by region, `[batch * n, 1 + classes]`;
            `classes` for a sigmoid.
        deltas: float, as many rows with four for each class, the last ones for the `classes`; those
            of a background are not looked at.
        regions: float `[batch, n, 4]`, corners in pixels.

    Returns:
        (float32 boxes `[batch, n, classes, 4]`, cut at the picture's border; float32 scores
        `[batch, n, classes]`, 0 for regions without area).

    Raises:
        ValueError: another activation.
    """

    keeps_float = True

    def __init__(
        self,
        size: Sequence[int],
        variances: Sequence[float] = (0.1, 0.2),
        activation: str = "softmax",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(f"activation={activation!r} must be 'softmax' or 'sigmoid'.")
        self.size, self.variances, self.activation = tuple(size), tuple(variances), activation

    def call(self, logits, deltas, regions):
        logits, deltas, regions = (ops.cast(x, "float32") for x in (logits, deltas, regions))
        count = regions.shape[1]
        logits = ops.reshape(logits, (-1, count, logits.shape[-1]))
        background = self.activation == "softmax"
        scores = ops.softmax(logits, axis=-1)[..., 1:] if background else ops.sigmoid(logits)
        scores = scores * ops.cast(box_area(regions) > 0, "float32")[..., None]
        deltas = ops.reshape(deltas, (-1, count, deltas.shape[-1] // 4, 4))
        deltas = deltas[:, :, -scores.shape[-1] :]
        boxes = decode_boxes(deltas, regions[:, :, None], self.variances)
        return clip_boxes(boxes, *self.size), scores

    def compute_output_shape(self, logits_shape, deltas_shape, regions_shape):
        classes = logits_shape[-1] - (self.activation == "softmax")
        shape = (*regions_shape[:2], classes)
        return (*shape, 4), shape

    def get_config(self):
        return super().get_config() | {
            "size": list(self.size),
            "variances": list(self.variances),
            "activation": self.activation,
        }
