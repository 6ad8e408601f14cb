"""Boxes `[y1, x1, y2, x2]`: overlap, and the forms in which networks predict them."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

# exp(4.135) = 62.5: one step beyond it is no box any more (Detectron's limit).
LARGEST_LOG_SCALE = math.log(1000 / 16)


def tensors(*arrays):
    """Return arrays as tensors: not every backend's operators take both at once."""
    return tuple(ops.convert_to_tensor(a) for a in arrays)


def take_rows(values, index):
    """Return rows of each example's own table.

    Args:
        values: `[batch, n, ...]`.
        index: int `[batch, ...]`, in [0, n).

    Returns:
        `[batch, ..., ...]`: the axes of `index`, then those of a row.
    """
    batch, n = ops.shape(values)[0], values.shape[1]
    start = ops.arange(batch, dtype="int32") * n
    start = ops.reshape(start, (-1, *[1] * (len(index.shape) - 1)))
    return ops.take(ops.reshape(values, (-1, *values.shape[2:])), index + start, axis=0)


def box_area(boxes):
    """Return the area of boxes, 0 where one is inverted.

    Args:
        boxes: float `[..., 4]`.

    Returns:
        Float `[...]`.
    """
    y1, x1, y2, x2 = ops.unstack(ops.convert_to_tensor(boxes), 4, axis=-1)
    return ops.maximum(y2 - y1, 0) * ops.maximum(x2 - x1, 0)


def intersection(boxes, others):
    """Return the area that each box shares with each other one.

    Args:
        boxes: float `[..., n, 4]`.
        others: float `[..., m, 4]`, the leading axes as in `boxes` or to be broadcast.

    Returns:
        Float `[..., n, m]`.
    """
    boxes, others = tensors(boxes, others)
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    sides = ops.minimum(a[..., 2:], b[..., 2:]) - ops.maximum(a[..., :2], b[..., :2])
    sides = ops.maximum(sides, 0)
    return sides[..., 0] * sides[..., 1]


def iou(boxes, others):
    """Return the intersection over union of each box with each other one.

    Args:
        boxes: float `[..., n, 4]`.
        others: float `[..., m, 4]`.

    Returns:
        Float `[..., n, m]` in [0, 1]; 0 for a box without area, which overlaps nothing.
    """
    shared = intersection(boxes, others)
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - shared
    # The divisor of the branch not taken is 1, so that its gradient is finite too.
    return ops.where(shared > 0, shared / ops.where(shared > 0, union, 1.0), 0.0)


def clip_boxes(boxes, height: float, width: float):
    """Return boxes cut at the border of a picture.

    Args:
        boxes: float `[..., 4]`.
        height, width: of the picture, in the unit of the boxes.
    """
    y1, x1, y2, x2 = ops.unstack(ops.convert_to_tensor(boxes), 4, axis=-1)
    y1, y2 = ops.clip(y1, 0, height), ops.clip(y2, 0, height)
    return ops.stack([y1, ops.clip(x1, 0, width), y2, ops.clip(x2, 0, width)], axis=-1)


def to_centers(boxes):
    """Turn `[y1, x1, y2, x2]` into `[y, x, height, width]`, the centre first."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return ops.concatenate([(low + high) / 2, high - low], axis=-1)


def to_corners(boxes):
    """Turn `[y, x, height, width]`, the centre first, into `[y1, x1, y2, x2]`."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return ops.concatenate([center - half, center + half], axis=-1)


def encode_boxes(boxes, anchors, variances=(1.0, 1.0)):
    """Return boxes as shifts and scales of their anchors.

    Girshick et al. 2014 (arXiv 1311.2524), appendix C, and Ren et al. 2015 (arXiv 1506.01497),
    equation 2: `t_y = (y - y_a) / h_a`, `t_h = log(h / h_a)`; x and w likewise. SSD (Liu et al.
    2016, arXiv 1512.02325) divides them by its variances, Fast R-CNN's code by deviations.

    Args:
        boxes: float `[..., 4]`, corners.
        anchors: float `[..., 4]`, corners, each with an area.
        variances: divisors of shifts and scales; (0.1, 0.2) in SSD and in Fast R-CNN's code.

    Returns:
        Float `[..., 4]`: `[t_y, t_x, t_h, t_w]`. A box without a side is given one of 1e-6 of its
        anchor's, so that its logarithm is finite.
    """
    boxes, anchors = map(to_centers, tensors(boxes, anchors))
    sides = anchors[..., 2:]
    shift = (boxes[..., :2] - anchors[..., :2]) / sides
    scale = ops.log(ops.maximum(boxes[..., 2:] / sides, 1e-6))
    return ops.concatenate([shift / variances[0], scale / variances[1]], axis=-1)


def decode_boxes(deltas, anchors, variances=(1.0, 1.0)):
    """Return the boxes that shifts and scales of anchors stand for: the inverse of `encode_boxes`.

    Args:
        deltas: float `[..., 4]`: `[t_y, t_x, t_h, t_w]`.
        anchors: float `[..., 4]`, corners.
        variances: as for `encode_boxes`.

    Returns:
        Float `[..., 4]`, corners; none is more than 62.5 times as large as its anchor.
    """
    deltas, anchors = tensors(deltas, anchors)
    anchors = to_centers(anchors)
    sides = anchors[..., 2:]
    center = anchors[..., :2] + deltas[..., :2] * variances[0] * sides
    scale = ops.minimum(deltas[..., 2:] * variances[1], LARGEST_LOG_SCALE)
    return to_corners(ops.concatenate([center, sides * ops.exp(scale)], axis=-1))


def encode_cells(boxes, cells, anchors):
    """Return boxes as YOLO v2 and v3 predict them, by the cell that their centre falls into.

    Redmon and Farhadi 2016 (arXiv 1612.08242), section 2: `sigmoid(t_y) = y - c_y`,
    `t_h = log(h / p_h)`, in units of cells.

    Args:
        boxes: float `[..., 4]`, corners, in cells.
        cells: float `[..., 2]`, the row and the column of the cell.
        anchors: float `[..., 2]`, height and width of the anchor, in cells.

    Returns:
        Float `[..., 4]`: the place in the cell in [0, 1], y first, which a sigmoid has to reach,
        and `[t_h, t_w]`.
    """
    boxes, cells, anchors = tensors(boxes, cells, anchors)
    boxes = to_centers(boxes)
    scale = ops.log(ops.maximum(boxes[..., 2:] / anchors, 1e-6))
    return ops.concatenate([boxes[..., :2] - cells, scale], axis=-1)


def decode_cells(outputs, cells, anchors):
    """Return the boxes that YOLO v2's and v3's outputs stand for.

    Args:
        outputs: float `[..., 4]`: `[t_y, t_x, t_h, t_w]`.
        cells: float `[..., 2]`, the row and the column of the cell.
        anchors: float `[..., 2]`, height and width of the anchor, in cells.

    Returns:
        Float `[..., 4]`, corners, in cells.
    """
    outputs, cells, anchors = tensors(outputs, cells, anchors)
    center = ops.sigmoid(outputs[..., :2]) + cells
    sides = anchors * ops.exp(ops.minimum(outputs[..., 2:], LARGEST_LOG_SCALE))
    return to_corners(ops.concatenate([center, sides], axis=-1))


def encode_roots(boxes, cells, grid: int):
    """Return boxes as YOLO v1 predicts them.

    Redmon et al. 2015 (arXiv 1506.02640), section 2.2: the centre in its cell, and the square roots
    of the sides as shares of the picture's.

    Args:
        boxes: float `[..., 4]`, corners, as shares of the picture's sides.
        cells: float `[..., 2]`, the row and the column of the cell.
        grid: cells along a side, S in the paper.

    Returns:
        Float `[..., 4]`: `[y, x, sqrt(h), sqrt(w)]`.
    """
    boxes, cells = tensors(boxes, cells)
    boxes = to_centers(boxes)
    sides = ops.sqrt(ops.maximum(boxes[..., 2:], 0))
    return ops.concatenate([boxes[..., :2] * grid - cells, sides], axis=-1)


def decode_roots(outputs, cells, grid: int):
    """Return the boxes that YOLO v1's outputs stand for, as shares of the picture's sides.

    Args:
        outputs: float `[..., 4]`: `[y, x, sqrt(h), sqrt(w)]`.
        cells: float `[..., 2]`, the row and the column of the cell.
        grid: cells along a side.
    """
    outputs, cells = tensors(outputs, cells)
    center = (outputs[..., :2] + cells) / grid
    return to_corners(ops.concatenate([center, ops.square(outputs[..., 2:])], axis=-1))


@keras.saving.register_keras_serializable("tiffin")
class DecodeBoxes(keras.layers.Layer):
    """Boxes in a picture from shifts and scales of fixed anchors, cut at its border.

    Args:
        anchors: float `[n, 4]`, corners in pixels.
        variances: see `encode_boxes`.
        size: `(height, width)` of the picture, in pixels.
        **kwargs: `name`.

    Call arguments:
        deltas: float `[batch, n, 4]`.

    Returns:
        Float32 `[batch, n, 4]`.
    """

    # Left in float32 by the exporter: a 256th of a picture is no place.
    keeps_float = True

    def __init__(self, anchors, variances: Sequence[float], size: Sequence[int], **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.anchors = np.asarray(anchors, np.float32)
        self.variances, self.size = tuple(variances), tuple(size)

    def call(self, deltas):
        boxes = decode_boxes(ops.cast(deltas, "float32"), self.anchors, self.variances)
        return clip_boxes(boxes, *self.size)

    def get_config(self):
        return super().get_config() | {
            "anchors": self.anchors.tolist(),
            "variances": list(self.variances),
            "size": list(self.size),
        }
