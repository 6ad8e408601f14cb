"""From a feature map and regions of any size to features of one size."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tiffin.layers.boxes import take_rows, to_centers, to_corners


class _Regions(keras.layers.Layer):
    """What the poolings share: a grid of bins for each region.

    Args:
        size: rows and columns of bins, or their number for both.
        scale: cells of the feature map in one unit of the regions: 1/16 for regions in pixels and
            a map of stride 16.
        **kwargs: `name`, `dtype`.
    """

    keeps_float = True  # left in float32 by the exporter: a 256th of a picture is no place

    def __init__(self, size: int | Sequence[int], scale: float = 1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)  # half precision would move the regions
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if min(self.size) < 1 or not scale > 0:
            raise ValueError(f"size={size} must be 1 or more, scale={scale} positive.")
        self.scale = scale

    def compute_output_shape(self, features_shape, regions_shape):
        return (*regions_shape[:2], *self.size, features_shape[-1])

    def get_config(self):
        return super().get_config() | {"size": list(self.size), "scale": self.scale}


@keras.saving.register_keras_serializable("tiffin")
class RoIPool(_Regions):
    """The largest feature in each bin of a region.

    Girshick 2015 (Fast R-CNN, arXiv 1504.08083), section 2.1, with the rounding of the authors'
    code: corners to whole cells, both included, and bins from floor to ceil, so that they overlap.

    Args:
        size: rows and columns of bins, or their number for both.
        scale: cells of the feature map in one unit of the regions.
        **kwargs: `name`, `dtype`.

    Call arguments:
        features: float `[batch, height, width, channels]`.
        regions: float `[batch, n, 4]`, corners.

    Returns:
        `[batch, n, rows, columns, channels]`; 0 where a bin holds no cell.
    """

    def call(self, features, regions, training=False):
        features = ops.cast(features, self.compute_dtype)
        pooled = _pooled(features, regions, self.scale, (self.size,), training)
        return ops.reshape(pooled, (-1, regions.shape[1], *self.size, features.shape[-1]))


def _pooled(features, regions, scale: float, sizes, training: bool):
    """Return the largest feature in each bin of grids of several sizes, laid over each region.

    The maximum over any bin is that of four windows whose sides are powers of two; those windows'
    maxima are made once for the whole map.

    Args:
        features: float `[batch, height, width, channels]`.
        regions: float `[batch, n, 4]`, corners.
        scale: cells of the map in one unit of these.
        sizes: rows and columns of each grid.
        training: whether to find the places of the maxima first, which makes gradients cheap.

    Returns:
        `[batch, n, bins, channels]`, grid by grid, row by row; 0 where a bin holds no cell.
    """
    height, width, channels = features.shape[1:]
    regions = ops.cast(regions, "float32") * scale
    regions = ops.sign(regions) * ops.floor(ops.abs(regions) + 0.5)
    powers = [np.floor(np.log2(np.arange(1, n + 1))).astype("int32") for n in (height, width)]
    down, across = (int(p[-1]) + 1 for p in powers)
    # Of each map of windows the maxima and, in training, the cells that these are in.
    rows = (ops.stop_gradient(features), _cells(features)) if training else (features,)
    tables = []
    for i in range(down):
        columns = rows
        for j in range(across):
            tables.append(columns)
            columns = _doubled(columns, 2**j, 2)
        rows = _doubled(rows, 2**i, 1)
    shape = (-1, len(tables) * height * width, channels)
    tables = [ops.reshape(ops.stack(kind, axis=1), shape) for kind in zip(*tables, strict=True)]
    places, filled = [], []
    for size in sizes:
        y = _Bins(regions[..., 0], regions[..., 2], size[0], powers[0])
        x = _Bins(regions[..., 1], regions[..., 3], size[1], powers[1])
        bins = (-1, regions.shape[1], size[0] * size[1])
        level = y.level[:, :, :, None] * across + x.level[:, :, None, :]
        for row in (y.first, y.last):
            for column in (x.first, x.last):
                place = (level * height + row[:, :, :, None]) * width + column[:, :, None, :]
                places.append(ops.reshape(place, bins))
        filled.append(ops.reshape(y.filled[:, :, :, None] & x.filled[:, :, None, :], bins))
    corners = [ops.concatenate(places[i::4], axis=2) for i in range(4)]
    found = [tuple(take_rows(table, corner) for table in tables) for corner in corners]
    most = _larger(_larger(found[0], found[1]), _larger(found[2], found[3]))
    pooled = _at(features, most[1]) if training else most[0]
    return ops.where(ops.concatenate(filled, axis=2)[..., None], pooled, ops.zeros_like(pooled))


def _cells(features):
    """Return the index of each value's cell in its map, int `[batch, height, width, channels]`."""
    height, width = features.shape[1:3]
    index = ops.reshape(ops.arange(height * width, dtype="int32"), (1, height, width, 1))
    return ops.zeros_like(features, dtype="int32") + index


def _larger(ours: tuple, theirs: tuple) -> tuple:
    """Return the larger of maxima, each with what else is known of it."""
    if len(ours) == 1:
        return (ops.maximum(ours[0], theirs[0]),)
    mine = ours[0] >= theirs[0]
    return tuple(ops.where(mine, a, b) for a, b in zip(ours, theirs, strict=True))


def _at(features, cells):
    """Return the features in cells, channel by channel.

    Args:
        features: `[batch, height, width, channels]`.
        cells: int `[batch, ..., channels]`.
    """
    batch, (height, width, channels) = ops.shape(features)[0], features.shape[1:]
    start = ops.arange(batch, dtype="int32") * (height * width)
    start = ops.reshape(start, (-1, *[1] * (len(cells.shape) - 1)))
    place = (cells + start) * channels + ops.arange(channels, dtype="int32")
    return ops.take(ops.reshape(features, (-1,)), place, axis=0)


class _Bins:
    """Bins along one axis: where the two windows of a power of two begin that cover each.

    Attributes:
        level: int `[batch, n, bins]`, the power of each bin.
        first, last: int `[batch, n, bins]`, where its windows begin.
        filled: bool `[batch, n, bins]`, whether it holds a cell at all.
    """

    def __init__(self, start, end, bins: int, powers: np.ndarray):
        cells = len(powers)
        start = ops.cast(start, "int32")[..., None]
        length = ops.maximum(ops.cast(end, "int32")[..., None] - start + 1, 1)
        number = ops.arange(bins, dtype="int32")
        # In whole numbers: what float32 makes of 57 / 7 * 7 depends on the machine.
        low = ops.clip(start + number * length // bins, 0, cells)
        high = ops.clip(start + ((number + 1) * length + bins - 1) // bins, 0, cells)
        self.filled = high > low
        length = ops.maximum(high - low, 1)
        self.level = ops.take(ops.convert_to_tensor(powers), length - 1)
        window = ops.take(ops.convert_to_tensor(2**powers), length - 1)
        self.first = ops.minimum(low, cells - 1)
        self.last = ops.clip(high - window, 0, cells - 1)


def _doubled(tables: tuple, shift: int, axis: int) -> tuple:
    """Return the maxima of windows twice as long from those of the length `shift`.

    Windows that would reach beyond the border are asked for by nobody, and hold anything.
    """
    length = tables[0].shape[axis]
    if shift >= length:
        return tables
    before = [slice(None)] * axis
    ends = (*before, slice(shift, None)), (*before, slice(length - shift, None))
    moved = tuple(ops.concatenate([t[end] for end in ends], axis=axis) for t in tables)
    return _larger(tables, moved)


@keras.saving.register_keras_serializable("tiffin")
class RoIAlign(_Regions):
    """The mean of bilinear samples in each bin of a region, nothing rounded.

    He et al. 2017 (Mask R-CNN, arXiv 1703.06870), section 3; as torchvision's `roi_align`. Along
    each axis the samples of a bin are one row of weights, so that two matrix products do it.

    Args:
        size: rows and columns of bins, or their number for both.
        scale: cells of the feature map in one unit of the regions.
        samples: along each side of a bin, 1 or more; 2 in the paper's experiments.
        aligned: shift by half a cell, so that the middle of a cell is at .5 (Detectron2), and let
            regions be smaller than a cell.
        **kwargs: `name`, `dtype`.

    Call arguments:
        features: float `[batch, height, width, channels]`.
        regions: float `[batch, n, 4]`, corners.

    Returns:
        `[batch, n, rows, columns, channels]`; a sample more than a cell outside the map counts 0.
    """

    def __init__(self, size, scale: float = 1.0, samples: int = 2, aligned: bool = False, **kwargs):
        super().__init__(size, scale, **kwargs)
        if samples < 1:
            raise ValueError(f"samples={samples} must be 1 or more.")
        self.samples, self.aligned = samples, aligned

    def call(self, features, regions):
        features = ops.cast(features, self.compute_dtype)
        height, width, channels = features.shape[1:]
        regions = ops.cast(regions, "float32") * self.scale - (0.5 if self.aligned else 0.0)
        rows = self._weights(regions[..., 0], regions[..., 2], self.size[0], height)
        columns = self._weights(regions[..., 1], regions[..., 3], self.size[1], width)
        rows, columns = (ops.cast(w, features.dtype) for w in (rows, columns))
        n, down = regions.shape[1], self.size[0]
        # [batch, n * down, height] x [batch, height, width * channels]
        x = ops.matmul(
            ops.reshape(rows, (-1, n * down, height)),
            ops.reshape(features, (-1, height, width * channels)),
        )
        x = ops.reshape(x, (-1, n, down, width, channels))
        return ops.matmul(columns[:, :, None], x)

    def _weights(self, start, end, bins: int, cells: int):
        """Return `[batch, n, bins, cells]`: what each cell weighs in each bin."""
        length = end - start if self.aligned else ops.maximum(end - start, 1.0)
        offset = (ops.arange(bins * self.samples, dtype="float32") + 0.5) / (bins * self.samples)
        at = start[..., None] + length[..., None] * offset
        inside = ops.cast((at >= -1.0) & (at <= cells), "float32")
        at = ops.clip(at, 0.0, cells - 1.0)[..., None]
        weights = ops.maximum(1.0 - ops.abs(at - ops.arange(cells, dtype="float32")), 0.0)
        weights = weights * inside[..., None]
        shape = (-1, start.shape[1], bins, self.samples, cells)
        return ops.mean(ops.reshape(weights, shape), axis=3)

    def get_config(self):
        return super().get_config() | {"samples": self.samples, "aligned": self.aligned}


@keras.saving.register_keras_serializable("tiffin")
class WarpedRegions(RoIAlign):
    """Regions cut out of a picture, with some of what is around them, and warped to squares.

    Girshick et al. 2014 (R-CNN, arXiv 1311.2524), appendix A.

    Args:
        size: side of the squares in pixels.
        context: pixels of the square on each side that show what is around the region.
        **kwargs: `name`, `dtype`.

    Call arguments:
        features: float `[batch, height, width, channels]`, of which 0 is what lies beyond the
            border: the mean, of a normalised picture.
        regions: float `[batch, n, 4]`, corners in pixels.

    Returns:
        `[batch, n, size, size, channels]`.
    """

    def __init__(self, size: int, context: int = 0, **kwargs):
        super().__init__(size, aligned=True, **kwargs)
        if not 0 <= 2 * context < size:
            raise ValueError(f"context={context} must leave something of size={size}.")
        self.context = context

    def call(self, features, regions):
        centers, side = to_centers(regions), self.size[0]
        larger = centers[..., 2:] * (side / (side - 2 * self.context))
        larger = to_corners(ops.concatenate([centers[..., :2], larger], axis=-1))
        return super().call(features, larger)

    def get_config(self):
        config = super().get_config()
        kept = {name: config[name] for name in ("name", "trainable", "dtype")}
        return kept | {"size": self.size[0], "context": self.context}


@keras.saving.register_keras_serializable("tiffin")
class SpatialPyramidPooling(keras.layers.Layer):
    """Max pooling of each region over grids of several sizes, one after the other.

    He et al. 2014 (SPP-net, arXiv 1406.4729), section 2.2: bins from floor to ceil. Without
    regions the whole map is one.

    Args:
        levels: bins along a side of each grid; (6, 3, 2, 1) in the paper's detector.
        scale: cells of the feature map in one unit of the regions.
        **kwargs: `name`, `dtype`.

    Call arguments:
        features: float `[batch, height, width, channels]`.
        regions: float `[batch, n, 4]`, corners; or None.

    Returns:
        `[batch, n, bins * channels]`, level by level; `[batch, bins * channels]` without regions.
    """

    keeps_float = True

    def __init__(self, levels: Sequence[int] = (6, 3, 2, 1), scale: float = 1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.levels, self.scale = tuple(levels), scale

    def call(self, features, regions=None, training=False):
        features = ops.cast(features, self.compute_dtype)
        height, width, channels = features.shape[1:]
        whole = regions is None
        if whole:
            last = ops.convert_to_tensor([[0.0, 0.0, height - 1.0, width - 1.0]]) / self.scale
            regions = ops.zeros_like(features[:, :1, 0, :1], dtype="float32") + last
        pooled = _pooled(features, regions, self.scale, [(n, n) for n in self.levels], training)
        result = ops.reshape(pooled, (-1, *pooled.shape[1:2], pooled.shape[2] * channels))
        return result[:, 0] if whole else result

    def compute_output_shape(self, features_shape, regions_shape=None):
        width = sum(n * n for n in self.levels) * features_shape[-1]
        return (features_shape[0], *(regions_shape[1:2] if regions_shape else ()), width)

    def get_config(self):
        return super().get_config() | {"levels": list(self.levels), "scale": self.scale}
