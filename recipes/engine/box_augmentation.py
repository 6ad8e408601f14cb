"""Augmentation that moves boxes and pixels together: each a function of a whole batch.

What crops, enlarges or shrinks only chooses a window, and a picture is interpolated once. Boxes are
float32 `[batch, n, 4]` in pixels, classes int32 `[batch, n]` with -1 for nothing. An object whose
centre leaves the picture is dropped, as in SSD (Liu et al. 2016, section 2.2); what remains of the
others is cut at the border.
"""

from collections.abc import Callable, Sequence

from tiffin.export.images import FRAME
from tiffin.export.proposals import PROPOSALS
from tiffin.recipes.engine import augmentation

# name: (default strength, what it is)
AUGMENTATIONS = {
    "mosaic": (0.5, "probability of four pictures in one"),
    "iou_crop": (0.8, "probability of a crop that overlaps an object by a random IoU"),
    "zoom_out": (4.0, "largest side of the grey canvas on which a picture may be laid"),
    "scale": (0.3, "largest relative change of size and place"),
    "horizontal_flip": (0.5, "probability"),
    "vertical_flip": (0.5, "probability"),
    "color_jitter": (0.3, "largest relative change of brightness, contrast and saturation"),
    "noise": (8.0, "standard deviation of Gaussian noise in grey levels"),
}
_TRIALS = 50  # crops that are drawn for a picture, of which the first fitting one is taken
_PROPOSED = 1 << 20  # the class of proposals
_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # the last: any crop


def augmenter(names: Sequence[str]) -> Callable | None:
    """Return a function of (float32 images, targets, `Chance`), or None for no names.

    Args:
        names: names from `AUGMENTATIONS`, each with an optional strength after a colon, applied in
            this order.

    Returns:
        A function to (images, targets) that a tf.data pipeline maps over batches; targets is a
        dictionary with `boxes` and `classes`.

    Raises:
        InputError: an unknown name, or a strength that is none.
    """
    chosen = augmentation.parse(names, AUGMENTATIONS)
    if not chosen:
        return None

    def augment(images, targets, chance: augmentation.Chance):
        import tensorflow as tf

        boxes, classes = targets["boxes"], targets["classes"]
        objects = boxes.shape[1]
        if PROPOSALS in targets:
            boxes, classes = _joined(boxes, classes, targets[PROPOSALS])
        alone = boxes.shape[1]
        for place, (name, strength) in enumerate(chosen):
            key = chance.fold_in(place)
            if name in _FUNCTIONS:
                images, boxes, classes = _FUNCTIONS[name](images, boxes, classes, key, strength)
            else:
                images = augmentation.FUNCTIONS[name](images, key, strength)
        images = tf.clip_by_value(images, 0.0, 255.0)
        moved = {"boxes": boxes, "classes": classes}
        if PROPOSALS in targets:
            moved = _parted(boxes, classes, objects, alone)
        return images, targets | moved

    return augment


def _joined(boxes, classes, proposals):
    """Let proposals move as objects do, of a class that none has."""
    import tensorflow as tf

    real = tf.reduce_any(proposals > 0, axis=-1)
    classes = tf.concat([classes, tf.where(real, _PROPOSED, -1)], 1)
    return tf.concat([boxes, proposals], 1), classes


def _parted(boxes, classes, objects: int, alone: int) -> dict:
    """Undo `_joined` in each of the pictures that a mosaic has put into one."""
    import tensorflow as tf

    pictures = boxes.shape[1] // alone
    boxes = tf.reshape(boxes, [-1, pictures, alone, 4])
    classes = tf.reshape(classes, [-1, pictures, alone])
    return {
        "boxes": tf.reshape(boxes[:, :, :objects], [-1, pictures * objects, 4]),
        "classes": tf.reshape(classes[:, :, :objects], [-1, pictures * objects]),
        PROPOSALS: tf.reshape(boxes[:, :, objects:], [-1, pictures * (alone - objects), 4]),
    }


def _sides(images):
    import tensorflow as tf

    return tf.cast(tf.tile(tf.shape(images)[1:3], [2]), tf.float32)


def look(images, boxes, classes, windows):
    """Return what is seen of each picture through a window, enlarged to the picture's size.

    Args:
        images: float32 `[batch, height, width, 3]`.
        boxes, classes: the objects.
        windows: float32 `[batch, 4]`, corners in pixels; beyond the picture it is grey.
    """
    import tensorflow as tf

    height, width = tf.unstack(_sides(images)[:2])
    y1, x1, y2, x2 = tf.split(windows, 4, axis=1)
    down, across = (y2 - y1) / height, (x2 - x1) / width
    zero = tf.zeros_like(down)
    # Of centres of pixels: the new one at p shows the old one at start + (p + 0.5) * scale - 0.5.
    rows = (
        *(across, zero, x1 + 0.5 * across - 0.5),
        *(zero, down, y1 + 0.5 * down - 0.5),
    )
    images = augmentation.project(images, rows, "CONSTANT", float(FRAME))
    scale = 1 / tf.concat([down, across, down, across], axis=1)
    moved = (boxes - tf.tile(windows[:, :2], [1, 2])[:, None]) * scale[:, None]
    return images, *_cut(moved, classes, _sides(images))


def _cut(boxes, classes, sides):
    """Drop objects whose centre is outside, and cut the others at the border."""
    import tensorflow as tf

    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    seen = tf.reduce_all((center > 0) & (center < sides[:2]), axis=-1) & (classes >= 0)
    boxes = tf.where(seen[..., None], tf.clip_by_value(boxes, 0.0, sides), 0.0)
    return boxes, tf.where(seen, classes, -1)


def _keys(key: augmentation.Chance, count: int) -> list[augmentation.Chance]:
    return [key.fold_in(i) for i in range(count)]


def _uniform(shape, key: augmentation.Chance, low=0.0, high=1.0):
    return key.uniform(shape[0], shape[1:], low, high)


def _iou_crop(images, boxes, classes, key, probability):
    """Crop to 0.3 to 1 of each side, at most twice as wide as high or the reverse."""
    import tensorflow as tf

    batch = tf.shape(images)[0]
    keys = _keys(key, 4)
    sides = _sides(images)
    extent = _uniform([batch, _TRIALS, 2], keys[0], 0.3, 1.0)
    start = _uniform([batch, _TRIALS, 2], keys[1]) * (1 - extent)
    crops = tf.concat([start, start + extent], -1) * sides
    ratio = extent[..., 0] / extent[..., 1]
    low = tf.maximum(crops[:, :, None, :2], boxes[:, None, :, :2])
    high = tf.minimum(crops[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = tf.reduce_prod(tf.maximum(high - low, 0), -1)
    areas = tf.reduce_prod(crops[..., 2:] - crops[..., :2], -1)[:, :, None]
    areas += tf.reduce_prod(boxes[..., 2:] - boxes[..., :2], -1)[:, None]
    center = (boxes[..., :2] + boxes[..., 2:])[:, None] / 2
    inside = tf.reduce_all((center > crops[:, :, None, :2]) & (center < crops[:, :, None, 2:]), -1)
    counted = inside & ((classes >= 0) & (classes < _PROPOSED))[:, None]
    overlap = tf.where(counted, shared / tf.maximum(areas - shared, 1e-6), -1.0)
    wanted = tf.gather(
        tf.constant(_OVERLAPS),
        keys[2].uniform(batch, (), 0, len(_OVERLAPS), "int32"),
    )
    fits = (tf.reduce_max(overlap, -1) >= wanted[:, None]) & (ratio >= 0.5) & (ratio <= 2)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
    found = tf.reduce_any(fits, 1) & (_uniform([batch], keys[3]) < probability)
    whole = tf.concat([tf.zeros([batch, 2]), tf.tile(sides[None, :2], [batch, 1])], 1)
    windows = tf.where(found[:, None], tf.gather(crops, first, batch_dims=1), whole)
    return look(images, boxes, classes, windows)


def _zoom_out(images, boxes, classes, key, most):
    """Lay half of the pictures somewhere on a canvas of up to `most` times their sides."""
    import tensorflow as tf

    batch = tf.shape(images)[0]
    keys = _keys(key, 3)
    larger = _uniform([batch, 1], keys[0], 1.0, max(most, 1.0))
    larger = tf.where(_uniform([batch, 1], keys[1]) < 0.5, larger, 1.0)
    start = -_uniform([batch, 2], keys[2]) * (larger - 1)
    return look(images, boxes, classes, tf.concat([start, start + larger], 1) * _sides(images))


def _scale(images, boxes, classes, key, share):
    import tensorflow as tf

    batch = tf.shape(images)[0]
    keys = _keys(key, 2)
    share = min(share, 0.9)
    extent = 1 / _uniform([batch, 1], keys[0], 1 - share, 1 + share)
    start = (1 - extent) / 2 + _uniform([batch, 2], keys[1], -share, share) / 2
    return look(images, boxes, classes, tf.concat([start, start + extent], 1) * _sides(images))


def _flip(axis: int) -> Callable:
    def flip(images, boxes, classes, key, probability):
        import tensorflow as tf

        chosen = _uniform([tf.shape(images)[0]], key) < probability
        images = tf.where(chosen[:, None, None, None], tf.reverse(images, [axis + 1]), images)
        length = _sides(images)[axis]
        y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
        if axis == 0:
            y1, y2 = length - y2, length - y1
        else:
            x1, x2 = length - x2, length - x1
        mirrored = tf.stack([y1, x1, y2, x2], -1)
        chosen = chosen[:, None, None] & (classes >= 0)[..., None]
        return images, tf.where(chosen, mirrored, boxes), classes

    return flip


def _mosaic(images, boxes, classes, key, probability):
    """Put the picture and the next three of the batch, each at half its size, into quarters.

    As in darknet since YOLO v4 (Bochkovskiy et al. 2020, arXiv 2004.10934, section 3.3). Every
    picture has room for four times the objects then.
    """
    import tensorflow as tf

    sides = _sides(images)
    half = tf.shape(images)[1:3] // 2
    small = tf.image.resize(images, half, antialias=True)
    rest = tf.shape(images)[1:3] - half
    scale = tf.tile(tf.cast(half, tf.float32) / sides[:2], [2])
    parts, moved, kinds = [], [], []
    for i, (down, across) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        parts.append(tf.roll(small, -i, axis=0))
        corner = tf.cast(half, tf.float32) * [down, across]
        mine = tf.roll(classes, -i, axis=0)
        at = tf.roll(boxes, -i, axis=0) * scale + tf.tile(corner, [2])
        moved.append(tf.where((mine >= 0)[..., None], at, 0.0))
        kinds.append(mine)
    joined = tf.concat([tf.concat(parts[:2], 2), tf.concat(parts[2:], 2)], 1)
    # Of an odd side the last row is left over.
    joined = tf.pad(
        joined,
        [[0, 0], [0, rest[0] - half[0]], [0, rest[1] - half[1]], [0, 0]],
        constant_values=FRAME,
    )
    chosen = _uniform([tf.shape(images)[0]], key) < probability
    images = tf.where(chosen[:, None, None, None], joined, images)
    alone = tf.shape(classes)[1]
    padded = tf.pad(boxes, [[0, 0], [0, 3 * alone], [0, 0]])
    boxes = tf.where(chosen[:, None, None], tf.concat(moved, 1), padded)
    lonely = tf.pad(classes, [[0, 0], [0, 3 * alone]], constant_values=-1)
    return images, boxes, tf.where(chosen[:, None], tf.concat(kinds, 1), lonely)


_FUNCTIONS = {
    "mosaic": _mosaic,
    "iou_crop": _iou_crop,
    "zoom_out": _zoom_out,
    "scale": _scale,
    "horizontal_flip": _flip(1),
    "vertical_flip": _flip(0),
}
