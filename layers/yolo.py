"""YOLO but for its convolutions: boxes of a grid's cells, joint scores, Darknet's reorg, losses."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tiffin.layers.box_losses import binary_cross_entropy, sparse_cross_entropy
from tiffin.layers.boxes import (
    box_area,
    clip_boxes,
    decode_cells,
    decode_roots,
    encode_cells,
    encode_roots,
    iou,
    take_rows,
    tensors,
    to_centers,
)


class _Cells(keras.layers.Layer):
    """What the forms share: some predictions for each cell of one or several grids.

    Predictions stand grid by grid, row by row; those of a cell are neighbours.

    Attributes:
        cells: float32 `[n, 2]`, row and column of each prediction's cell.
        strides: float32 `[n, 2]`, sides of its cell in pixels.
    """

    keeps_float = True  # left in float32 by the exporter: a 256th of a picture is no place

    def __init__(self, grids, each: Sequence[int], size: Sequence[int], **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.grids = tuple((int(rows), int(columns)) for rows, columns in grids)
        self.each, self.size = tuple(each), tuple(size)
        cells, strides, self.starts = [], [], [0]
        for grid, count in zip(self.grids, self.each, strict=True):
            place = np.stack(np.indices(grid), -1).reshape(-1, 2).repeat(count, 0)
            cells.append(place)
            strides.append(np.broadcast_to(np.divide(self.size, grid), place.shape))
            self.starts.append(self.starts[-1] + len(place))
        self.cells = np.concatenate(cells).astype(np.float32)
        self.strides = np.concatenate(strides).astype(np.float32)

    def call(self, outputs):
        return clip_boxes(self.decode(ops.cast(outputs, "float32")), *self.size)

    def compute_output_shape(self, outputs_shape):
        return (outputs_shape[0], len(self.cells), 4)

    def row(self, boxes, grid, slot):
        """Return which prediction is that of a box's cell on some grid, at some place in the cell.

        Args:
            boxes: float `[..., 4]`, corners in pixels.
            grid, slot: int `[...]`.

        Returns:
            Int32 `[...]`.
        """
        table = np.array(
            [(*g, n, s) for g, n, s in zip(self.grids, self.each, self.starts, strict=False)]
        )
        table = ops.take(ops.convert_to_tensor(table.astype("int32")), grid, axis=0)
        shape = table[..., :2]
        center = to_centers(boxes)[..., :2] / ops.convert_to_tensor(self.size, dtype="float32")
        cell = ops.cast(ops.floor(center * ops.cast(shape, "float32")), "int32")
        cell = ops.clip(cell, 0, shape - 1)
        return table[..., 3] + (cell[..., 0] * shape[..., 1] + cell[..., 1]) * table[..., 2] + slot


@keras.saving.register_keras_serializable("tiffin")
class DecodeCells(_Cells):
    """Boxes in a picture from the outputs of YOLO v2 and v3; see `decode_cells`.

    Args:
        grids: (rows, columns) of each map.
        anchors: heights and widths in pixels for each map, `[maps][k][2]`.
        size: `(height, width)` of the picture, in pixels.
        **kwargs: `name`.

    Call arguments:
        outputs: float `[batch, n, 4]`: `[t_y, t_x, t_h, t_w]`; map by map, row by row, in a cell
            anchor by anchor.

    Returns:
        Float32 `[batch, n, 4]`, corners in pixels, cut at the picture's border.
    """

    def __init__(self, grids, anchors, size: Sequence[int], **kwargs):
        self.anchors = [[tuple(map(float, a)) for a in some] for some in anchors]
        super().__init__(grids, [len(some) for some in self.anchors], size, **kwargs)
        sides = [
            np.tile(np.array(some, np.float32), (rows * columns, 1))
            for some, (rows, columns) in zip(self.anchors, self.grids, strict=True)
        ]
        self.sides = np.concatenate(sides) / self.strides

    def decode(self, outputs):
        boxes = decode_cells(outputs, self.cells, self.sides)
        return boxes * np.tile(self.strides, 2)

    def encode(self, boxes, rows):
        """Return what the predictions `rows`, int `[...]`, ought to say of boxes `[..., 4]`."""
        cells, sides, strides = (
            ops.take(ops.convert_to_tensor(a), rows, axis=0)
            for a in (self.cells, self.sides, self.strides)
        )
        return encode_cells(boxes / ops.tile(strides, [1] * (len(rows.shape)) + [2]), cells, sides)

    def responsible(self, boxes, found=None):
        """Return the prediction for each object: that of the anchor most like it in shape.

        Redmon and Farhadi 2018 (YOLOv3), section 2.1: of all anchors of all maps one.

        Args:
            boxes: float `[batch, n, 4]`, corners in pixels.
            found: not looked at.

        Returns:
            Int32 `[batch, n]`.
        """
        anchors = np.concatenate([np.array(some, np.float32) for some in self.anchors])
        anchors = np.concatenate([-anchors / 2, anchors / 2], -1)
        half = to_centers(boxes)[..., 2:] / 2
        overlap = iou(ops.concatenate([-half, half], axis=-1), anchors)
        best = ops.cast(ops.argmax(overlap, axis=-1), "int32")
        place = [(g, s) for g, count in enumerate(self.each) for s in range(count)]
        place = ops.take(ops.convert_to_tensor(np.array(place, "int32")), best, axis=0)
        return self.row(boxes, place[..., 0], place[..., 1])

    def get_config(self):
        config = {"grids": self.grids, "anchors": self.anchors, "size": self.size}
        return super().get_config() | config


@keras.saving.register_keras_serializable("tiffin")
class DecodeRoots(_Cells):
    """Boxes in a picture from the outputs of YOLO v1; see `decode_roots`.

    Args:
        grid: cells along a side, S in the paper.
        count: boxes of a cell, B in the paper.
        size: `(height, width)` of the picture, in pixels.
        **kwargs: `name`.

    Call arguments:
        outputs: float `[batch, S * S * B, 4]`: `[y, x, sqrt(h), sqrt(w)]`.

    Returns:
        Float32 `[batch, S * S * B, 4]`, corners in pixels, cut at the picture's border.
    """

    def __init__(self, grid: int, count: int, size: Sequence[int], **kwargs):
        self.grid, self.count = grid, count
        super().__init__([(grid, grid)], [count], size, **kwargs)

    def decode(self, outputs):
        boxes = decode_roots(outputs, self.cells, self.grid)
        return boxes * np.tile(np.array(self.size, np.float32), 2)

    def encode(self, boxes, rows):
        """Return what the predictions `rows`, int `[...]`, ought to say of boxes `[..., 4]`."""
        cells = ops.take(ops.convert_to_tensor(self.cells), rows, axis=0)
        boxes = boxes / np.tile(np.array(self.size, np.float32), 2)
        return encode_roots(boxes, cells, self.grid)

    def responsible(self, boxes, found):
        """Return the prediction for each object: of its cell's the one that overlaps it most.

        Redmon et al. 2015 (arXiv 1506.02640), section 2.2.

        Args:
            boxes: float `[batch, n, 4]`, corners in pixels.
            found: float `[batch, S * S * B, 4]`, the boxes as predicted.

        Returns:
            Int32 `[batch, n]`.
        """
        zero = ops.zeros_like(boxes[..., 0], dtype="int32")
        first = self.row(boxes, zero, zero)
        rivals = take_rows(found, first[..., None] + ops.arange(self.count, dtype="int32"))
        overlap = iou(boxes[..., None, :], rivals)[..., 0, :]
        return first + ops.cast(ops.argmax(overlap, axis=-1), "int32")

    def get_config(self):
        config = {"grid": self.grid, "count": self.count, "size": self.size}
        return super().get_config() | config


@keras.saving.register_keras_serializable("tiffin")
class JointScores(keras.layers.Layer):
    """Scores of classes: how likely there is an object, times what it is likely to be.

    Args:
        objects: `sigmoid`, or `linear` for YOLO v1, whose outputs are meant to be shares as they
            are, and are cut to [0, 1].
        kinds: `sigmoid` (v3), `softmax` (v2) or `linear` (v1).
        **kwargs: `name`.

    Call arguments:
        logits: float `[..., 1 + classes]`, objectness first.

    Returns:
        Float32 `[..., classes]` in [0, 1].
    """

    keeps_float = True

    def __init__(self, objects: str = "sigmoid", kinds: str = "sigmoid", **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.objects, self.kinds = objects, kinds

    def call(self, logits):
        logits = ops.cast(logits, "float32")
        known = {
            "sigmoid": ops.sigmoid,
            "softmax": ops.softmax,
            "linear": lambda x: ops.clip(x, 0.0, 1.0),
        }
        return known[self.objects](logits[..., :1]) * known[self.kinds](logits[..., 1:])

    def get_config(self):
        return super().get_config() | {"objects": self.objects, "kinds": self.kinds}


@keras.saving.register_keras_serializable("tiffin")
class Reorg(keras.layers.Layer):
    """A map of half the height and width with four times the channels, as Darknet does it.

    Redmon and Farhadi 2016 (arXiv 1612.08242), section 2, "fine-grained features", say that
    neighbouring features are stacked in channels. Darknet's `reorg` moves them otherwise: it reads
    the map, channels first, as one of a quarter of the channels and twice the sides. Its weights
    are good for that order only.

    Args:
        **kwargs: `name`, `dtype`.

    Input: float `[batch, height, width, channels]`, sides even, channels a multiple of 4.
    Output: `[batch, height / 2, width / 2, 4 * channels]`.
    """

    def call(self, x):
        height, width, channels = x.shape[1:]
        x = ops.transpose(x, (0, 3, 1, 2))
        x = ops.reshape(x, (-1, channels // 4, height, 2, width, 2))
        x = ops.transpose(x, (0, 3, 5, 1, 2, 4))
        x = ops.reshape(x, (-1, 4 * channels, height // 2, width // 2))
        return ops.transpose(x, (0, 2, 3, 1))

    def build(self, input_shape):
        _, height, width, channels = input_shape
        if height % 2 or width % 2 or channels % 4:
            raise ValueError(f"Reorg takes even sides and 4n channels, not {tuple(input_shape)}.")

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, height // 2, width // 2, 4 * channels)


# Weights of the errors of boxes, of confidence where an object is, and of confidence elsewhere;
# and the overlap with any object from which another prediction is not told that it is empty.
_WEIGHTS = {1: (5.0, 1.0, 0.5, 1.0), 2: (1.0, 5.0, 1.0, 0.6), 3: (1.0, 1.0, 1.0, 0.5)}


def yolo_losses(version: int, decoder, targets, outputs) -> dict:
    """Return YOLO's loss in three parts, each a sum over a picture, the mean over the batch.

    Version 1 is equation 3 of Redmon et al. 2015 (arXiv 1506.02640). Versions 2 and 3 are as in
    the authors' code, whose papers give no formula: halves of squares in version 2, cross-entropy
    of places, objects and classes in version 3; in both a box counts 2 minus its share of the
    picture. Of several objects that one prediction is responsible for the last counts.

    Args:
        version: 1, 2 or 3.
        decoder: a `DecodeRoots` for version 1, else a `DecodeCells`.
        targets: `boxes`, float `[batch, n, 4]`, corners in pixels, and `classes`, int `[batch, n]`,
            -1 where there is nothing to learn.
        outputs: `deltas`, float `[batch, predictions, 4]`, and `logits`, float
            `[batch, predictions, 1 + classes]`, objectness first.

    Returns:
        `box_loss`, `object_loss`, `class_loss`, scalars.
    """
    box_weight, object_weight, background_weight, limit = _WEIGHTS[version]
    boxes, kinds = tensors(targets["boxes"], targets["classes"])
    outputs = {name: ops.convert_to_tensor(value) for name, value in outputs.items()}
    found = ops.stop_gradient(decoder(outputs["deltas"]))
    rows = decoder.responsible(boxes, found)
    later = ops.convert_to_tensor(np.triu(np.ones((kinds.shape[1],) * 2, bool), 1))
    same = (rows[:, :, None] == rows[:, None]) & (kinds >= 0)[:, None] & later
    mine = (kinds >= 0) & ~ops.any(same, axis=2)
    hit = (rows[:, :, None] == ops.arange(found.shape[1], dtype="int32")) & mine[..., None]
    positive = ops.any(hit, axis=1)

    def error(wanted, said):
        if version == 1:
            return ops.square(wanted - said)
        if version == 2:
            return ops.square(wanted - ops.sigmoid(said)) / 2
        return binary_cross_entropy(wanted, said)

    def total(errors, where):
        return ops.sum(ops.where(where, errors, 0.0)) / ops.cast(ops.shape(kinds)[0], "float32")

    wanted, said = decoder.encode(boxes, rows), take_rows(outputs["deltas"], rows)
    if version == 1:
        box = ops.sum(error(wanted, said), axis=-1)
    else:
        box = ops.sum(error(wanted[..., :2], said[..., :2]), axis=-1)
        box = box + ops.sum(ops.square(wanted[..., 2:] - said[..., 2:]), axis=-1) / 2
        box = box * (2 - box_area(boxes) / np.prod(decoder.size))
    which, said = ops.maximum(kinds, 0), take_rows(outputs["logits"], rows)[..., 1:]
    if version == 2:
        kind = sparse_cross_entropy(which, said)
    else:
        kind = ops.sum(error(ops.one_hot(which, said.shape[-1]), said), axis=-1)
    confidence = ops.cast(positive, "float32")
    if version < 3:  # how well the box fits, not only that there is an object
        fit = iou(boxes[:, :, None], take_rows(found, rows)[:, :, None])[..., 0]
        confidence = ops.sum(ops.where(hit, fit, 0.0), axis=1)
    objects = error(confidence, outputs["logits"][..., 0])
    empty = ~positive & (ops.max(iou(found, boxes), axis=-1) <= limit)
    return {
        "box_loss": box_weight * total(box, mine),
        "object_loss": object_weight * total(objects, positive)
        + background_weight * total(objects, empty),
        "class_loss": total(kind, mine),
    }
