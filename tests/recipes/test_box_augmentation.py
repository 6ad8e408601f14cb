"""Boxes move as their pixels do: each object is a square of one colour, found again by it."""

import numpy as np
import pytest
import tensorflow as tf

from tiffin.export.errors import InputError
from tiffin.recipes.engine import box_augmentation
from tiffin.recipes.engine.augmentation import Chance
from tiffin.recipes.engine.box_augmentation import AUGMENTATIONS, augmenter

SIZE, MOST = 96, 3
MOVES = ["mosaic:1", "iou_crop:1", "zoom_out:3", "scale:0.4", "horizontal_flip:1"]
MOVES += ["vertical_flip:1"]


@pytest.fixture
def batch():
    """Return dark pictures with up to three squares, red, green or blue as their class says."""
    random = np.random.default_rng(2)
    images = np.full((24, SIZE, SIZE, 3), 10, np.float32)
    boxes = np.zeros((24, MOST, 4), np.float32)
    classes = np.full((24, MOST), -1, np.int32)
    for i in range(24):
        for k in range(i % (MOST + 1)):
            side = random.integers(14, 30)
            y, x = random.integers(0, SIZE // 2 - side, 2) + (k == 1, k == 2) * np.array(SIZE // 2)
            boxes[i, k], classes[i, k] = [y, x, y + side, x + side], k
            images[i, y : y + side, x : x + side, k] = 250
    return images, {"boxes": boxes, "classes": classes, "index": np.arange(24)}


@pytest.mark.parametrize("names", [[name] for name in MOVES] + [MOVES[1:], MOVES[:3]], ids=str)
def test_boxes_stay_at_their_pixels(batch, names):
    images, targets = augmenter(names)(*batch, Chance(tf.constant([4, 5])))
    images, boxes, classes = map(np.asarray, (images, targets["boxes"], targets["classes"]))
    assert images.shape == batch[0].shape and len(targets["index"]) == 24
    seen = checked = 0
    for image, mine, kinds in zip(images, boxes, classes, strict=True):
        assert (mine[kinds < 0] == 0).all()
        for box, kind in zip(mine[kinds >= 0], kinds[kinds >= 0], strict=True):
            assert (box >= -1e-4).all() and (box <= SIZE + 1e-3).all()
            seen += 1
            if (box[2:] - box[:2]).min() < 6:
                continue
            checked += 1
            y1, x1, y2, x2 = np.round(box).astype(int)
            inside = image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
            # All of it has the colour of its class, but where another square lies on it.
            assert np.median(inside[..., kind]) > 200
            ring = [image[max(y1 - 3, 0), x1:x2, kind], image[y1:y2, max(x1 - 3, 0), kind]]
            outer = np.concatenate([ring[0]] * int(y1 > 3) + [ring[1]] * int(x1 > 3) or [[0]])
            assert np.median(outer) < 200
    assert checked > 12 and seen >= checked


@pytest.mark.parametrize("names", [[name] for name in MOVES] + [MOVES], ids=str)
def test_proposals_move_as_objects_do(batch, names):
    images, targets = batch
    around = np.where(targets["classes"][..., None] >= 0, targets["boxes"], 0)
    targets["proposals"] = np.concatenate([around, np.zeros_like(around[:, :1])], axis=1)
    key = Chance(tf.constant([4, 5]))
    _, moved = augmenter(names)(images, targets, key)
    del targets["proposals"]
    _, alone = augmenter(names)(images, targets, key)
    for name in ("boxes", "classes"):
        np.testing.assert_allclose(moved[name], alone[name], atol=1e-4)
    per = moved["boxes"].shape[1] // MOST  # pictures that a mosaic has put into one
    assert moved["proposals"].shape == (24, per * (MOST + 1), 4)
    found = np.reshape(moved["proposals"], (24, per, MOST + 1, 4))
    assert not found[:, :, MOST].any()
    found = found[:, :, :MOST].reshape(24, -1, 4)
    np.testing.assert_allclose(found, moved["boxes"], atol=1e-4)


def test_objects_whose_centre_leaves_are_dropped_and_others_cut():
    images = tf.zeros([1, 10, 10, 3])
    boxes = tf.constant([[[0.0, 0, 4, 4], [2, 2, 9, 9], [4, 4, 6, 6]]])
    classes = tf.constant([[0, 1, -1]])
    window = tf.constant([[3.0, 3, 8, 8]])
    seen, moved, kinds = box_augmentation.look(images, boxes, classes, window)
    assert kinds.numpy().tolist() == [[-1, 1, -1]] and seen.shape == images.shape
    np.testing.assert_allclose(moved[0], [[0] * 4, [0, 0, 10, 10], [0] * 4])


def test_iou_crops_keep_an_object_of_each_picture(batch):
    images, targets = augmenter(["iou_crop:1"])(*batch, Chance(tf.constant([0, 1])))
    before, after = batch[1]["classes"] >= 0, targets["classes"].numpy() >= 0
    # A crop is taken for what it holds; where any crop will do, nothing need be left.
    assert after.any(1)[before.any(1)].mean() > 0.8
    changed = np.abs(images.numpy() - batch[0]).max((1, 2, 3)) > 1
    assert changed[before.any(1)].mean() > 0.3


def test_same_seed_same_batch_and_mistakes_are_named(batch):
    function = augmenter([*MOVES, "color_jitter", "noise"])
    once, again = (function(*batch, Chance(tf.constant([7, 8]))) for _ in range(2))
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_array_equal(once[1]["boxes"], again[1]["boxes"])
    assert augmenter([]) is None
    with pytest.raises(InputError, match="did you mean 'mosaic'"):
        augmenter(["mosaik"])
    assert set(AUGMENTATIONS) >= {name.partition(":")[0] for name in MOVES}
