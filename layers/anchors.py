"""Where detectors look: anchors and default boxes of the papers, and anchors for a data set."""

import itertools
import math
from collections.abc import Sequence

import numpy as np


def anchor_shapes(scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return anchor sides of every scale and aspect ratio, Faster R-CNN's way.

    Ren et al. 2015 (arXiv 1506.01497), section 3.1.1: areas of 128^2, 256^2 and 512^2 pixels, and
    ratios of 1:1, 1:2 and 2:1.

    Args:
        scales: square roots of the areas, in pixels.
        ratios: height over width.

    Returns:
        Float32 `[scales * ratios, 2]`: height and width; ratios change fastest.
    """
    sides = [(s * math.sqrt(r), s / math.sqrt(r)) for s in scales for r in ratios]
    return np.array(sides, np.float32)


def grid_anchors(
    shapes: np.ndarray, grid: tuple[int, int], strides: tuple[float, float], offset: float = 0.5
) -> np.ndarray:
    """Return anchors of some shapes about every cell of a feature map.

    Args:
        shapes: `[n, 2]`, heights and widths.
        grid: rows and columns of the map.
        strides: distance of its cells, downwards and across, in the unit of `shapes`.
        offset: where in the cell the centre lies: 0.5 its middle, 0 its corner, as in torchvision's
            Faster R-CNN.

    Returns:
        Float32 `[rows * columns * n, 4]`, corners; shapes change fastest, then columns.
    """
    y, x = ((np.arange(n) + offset) * s for n, s in zip(grid, strides, strict=True))
    center = np.stack(np.meshgrid(y, x, indexing="ij"), -1)[:, :, None]
    half = np.asarray(shapes)[None, None] / 2
    return np.concatenate([center - half, center + half], -1).reshape(-1, 4).astype(np.float32)


def ssd_scales(maps: int, least: float = 0.2, most: float = 0.9, first: float = 0.1):
    """Return SSD's scales for so many feature maps, and one more for the last map's extra box.

    Liu et al. 2016 (arXiv 1512.02325), equation 4, with the scale of conv4_3 set apart; as in the
    authors' code whole percents are used, and the step rounded down: for 300 pixels .1, .2, .37,
    .54, .71, .88 and 1.05.

    Args:
        maps: feature maps, 3 or more.
        least, most: s_min and s_max in the paper.
        first: scale of the first map, 0.1 for SSD300.
    """
    step = math.floor((most - least) * 100 / (maps - 2))
    steps = [round(least * 100) + step * i for i in range(maps)]
    return (first, *(n / 100 for n in steps))


def ssd_boxes(
    size: int,
    grids: Sequence[int],
    strides: Sequence[float],
    scales: Sequence[float],
    ratios: Sequence[Sequence[float]],
) -> np.ndarray:
    """Return SSD's default boxes.

    Liu et al. 2016, section 2.2: on each map a square of its scale, one of the geometric mean of
    its scale and the next map's, and boxes of each ratio and its inverse.

    Args:
        size: side of the picture, in pixels.
        grids: cells along a side of each map: 38, 19, 10, 5, 3, 1 for SSD300 (8,732 boxes).
        strides: distance of the cells of each map, in pixels: 8, 16, 32, 64, 100, 300 for SSD300.
        scales: of each map and one more, as shares of the size: see `ssd_scales`.
        ratios: of each map, above 1: (2,) gives 2:1 and 1:2, four boxes a cell in all.

    Returns:
        Float32 `[boxes, 4]`, corners in pixels, not clipped: map by map, row by row, and in a cell
        the two squares, then width:height of each ratio and its inverse.

    Raises:
        ValueError: the lists differ in length.
    """
    if not len(grids) == len(strides) == len(ratios) == len(scales) - 1:
        raise ValueError(
            f"{len(grids)} grids, {len(strides)} strides, {len(ratios)} lists of ratios and "
            f"{len(scales)} scales: one of each for every map, and one scale more."
        )
    boxes = []
    for grid, stride, these, pair in zip(
        grids, strides, ratios, itertools.pairwise(scales), strict=True
    ):
        shapes = [(pair[0], pair[0]), (math.sqrt(pair[0] * pair[1]),) * 2]
        for ratio in these:
            root = math.sqrt(ratio)
            shapes += [(pair[0] / root, pair[0] * root), (pair[0] * root, pair[0] / root)]
        boxes.append(grid_anchors(np.array(shapes) * size, (grid, grid), (stride, stride)))
    return np.concatenate(boxes)


def kmeans_anchors(sizes: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Find anchor sides that fit the boxes of a data set.

    Redmon and Farhadi 2016 (arXiv 1612.08242), section 2: k-means under the distance `1 - IoU` of
    boxes laid corner on corner. The best of ten starts, each drawn as in k-means++.

    Args:
        sizes: `[n, 2]`, heights and widths, positive.
        count: of anchors.
        seed: of the starts.

    Returns:
        Float32 `[count, 2]`, heights and widths, the smallest area first.

    Raises:
        ValueError: fewer different sizes than anchors, or one without a side.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    if len(np.unique(sizes, axis=0)) < count or not (sizes > 0).all():
        raise ValueError(
            f"{count} anchors need as many different sizes, all with sides; there are "
            f"{len(np.unique(sizes, axis=0))}."
        )
    random = np.random.default_rng(seed)
    found = [_kmeans(sizes, count, random) for _ in range(10)]
    best = max(found, key=lambda means: shape_iou(sizes, means).max(1).mean())
    return best[np.argsort(best.prod(1), kind="stable")].astype(np.float32)


def _kmeans(sizes: np.ndarray, count: int, random) -> np.ndarray:
    means = sizes[[random.integers(len(sizes))]]
    while len(means) < count:
        far = (1 - shape_iou(sizes, means).max(1)).clip(0) + 1e-12
        far[(sizes[:, None] == means).all(-1).any(1)] = 0
        means = np.append(means, sizes[[random.choice(len(sizes), p=far / far.sum())]], 0)
    for _ in range(100):
        nearest = shape_iou(sizes, means).argmax(1)
        before, means = means, means.copy()
        for k in {*nearest}:  # a mean that nothing is nearest to stays where it is
            means[k] = sizes[nearest == k].mean(0)
        if (means == before).all():
            break
    return means


def shape_iou(sizes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes laid corner on corner, `[n, m]`, from sides `[n, 2]` and `[m, 2]`."""
    shared = np.minimum(sizes[:, None], others[None]).prod(-1)
    return shared / (sizes.prod(-1)[:, None] + others.prod(-1)[None] - shared)
