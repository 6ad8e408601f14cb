"""Scenes to detect objects in, made of scikit-learn's handwritten digits.

One to twelve digits of all sizes lie on coloured, uneven ground among bits of other strokes; they
overlap, but none is hidden. No digit of the test scenes occurs in the training.
"""

from collections.abc import Sequence

import numpy as np

CLASSES = [str(digit) for digit in range(10)]
_MOST = 12  # objects in a scene
_HIDDEN = 0.25  # IoU beyond which a new digit is put elsewhere


def make(counts: Sequence[int], size: int, seed: int = 0):
    """Draw scenes for splits that share no digit.

    Args:
        counts: scenes in each split.
        size: height and width in pixels, 64 or more.
        seed: of everything.

    Returns:
        For each split (uint8 images `[n, size, size, 3]`, list of float32 boxes `[k, 4]` in
        pixels, list of int32 classes `[k]`).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    ink = (bunch.images * (255 / 16)).round().astype(np.uint8)
    random = np.random.default_rng(seed)
    order = random.permutation(len(ink))
    edges = (np.cumsum(counts)[:-1] / sum(counts) * len(ink)).astype(int)
    result = []
    for count, mine in zip(counts, np.split(order, edges), strict=True):
        drawn = [_scene(ink[mine], bunch.target[mine], size, random) for _ in range(count)]
        images, boxes, classes = zip(*drawn, strict=True)
        result.append((np.stack(images), list(boxes), list(classes)))
    return result


def _scene(ink: np.ndarray, target: np.ndarray, size: int, random):
    picture = _ground(size, random)
    for _ in range(random.integers(0, 5)):
        _clutter(picture, ink, random)
    boxes, classes = np.zeros((0, 4), np.float32), []
    for _ in range(random.integers(1, _MOST + 1)):
        which = random.integers(len(ink))
        # Sides from 1/8 to 3/8 of the picture's, small ones as often as large ones.
        side = int(size * np.exp(random.uniform(np.log(1 / 8), np.log(3 / 8))))
        mask = _grown(ink[which], side)
        rows, columns = (np.flatnonzero((mask > 0.3).any(axis)) for axis in (1, 0))
        tight = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float32)
        for _ in range(10):
            y, x = random.integers(0, size - side + 1, 2)
            box = np.add(tight, [y, x, y, x])
            if not len(boxes) or _largest_iou(box, boxes) <= _HIDDEN:
                _blend(picture, mask, y, x, random)
                boxes = np.append(boxes, box[None].astype(np.float32), 0)
                classes.append(target[which])
                break
    noisy = picture + random.normal(0, 4, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8), boxes, np.array(classes, np.int32)


def _ground(size: int, random) -> np.ndarray:
    """Return a smooth, uneven, rather dark colour field, float32 `[size, size, 3]`."""
    from PIL import Image

    coarse = random.uniform(0, 40, (4, 4, 3)) + random.uniform(0, 80, 3)
    bands = [
        Image.fromarray(coarse[..., i].astype(np.float32)).resize((size, size), Image.BICUBIC)
        for i in range(3)
    ]
    return np.stack([np.asarray(band) for band in bands], -1)


def _grown(ink: np.ndarray, side: int) -> np.ndarray:
    from PIL import Image

    # A margin, as the strokes touch the frame.
    grown = Image.fromarray(np.pad(ink, 1)).resize((side, side), Image.BICUBIC)
    return np.asarray(grown, np.float32) / 255


def _blend(picture: np.ndarray, mask: np.ndarray, y: int, x: int, random) -> None:
    color = random.uniform(140, 255, 3).astype(np.float32)
    height, width = mask.shape
    place = picture[y : y + height, x : x + width]
    place += mask[..., None] * (color - place)


def _clutter(picture: np.ndarray, ink: np.ndarray, random) -> None:
    """Lay a quarter of a digit somewhere: strokes that are no digit."""
    size = len(picture)
    side = random.integers(size // 10, size // 4)
    part = ink[random.integers(len(ink))][:4, :4] if random.random() < 0.5 else None
    mask = _grown(ink[random.integers(len(ink))][4:, 4:] if part is None else part, side)
    y, x = random.integers(0, size - side + 1, 2)
    _blend(picture, mask * 0.7, y, x, random)


def _largest_iou(box: np.ndarray, boxes: np.ndarray) -> float:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return float((shared / (areas - shared)).max())
