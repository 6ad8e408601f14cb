"""Augmentation against NumPy and SciPy."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tiffin.export.errors import InputError
from tiffin.recipes.engine import augmentation
from tiffin.recipes.engine.augmentation import AUGMENTATIONS, Chance, augmenter

SEED = Chance(tf.constant([3, 5]))


@pytest.fixture
def images():
    noise = np.random.default_rng(0).uniform(0, 255, (6, 17, 14, 3))
    return ndimage.gaussian_filter(noise, (0, 2, 2, 0)).astype(np.float32)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_keeps_shape_and_range_and_repeats_by_seed(name, images):
    function = augmenter([name])
    once, again = function(images, SEED).numpy(), function(images, SEED).numpy()
    assert once.shape == images.shape and once.min() >= 0 and once.max() <= 255
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - images).max() > 1e-3


def test_flips_equal_numpy(images):
    flipped = augmenter(["horizontal_flip:1"])(images, SEED)
    np.testing.assert_array_equal(flipped, images[:, :, ::-1])
    flipped = augmenter(["vertical_flip:1"])(images, SEED)
    np.testing.assert_array_equal(flipped, images[:, ::-1])
    some = augmenter(["horizontal_flip:0.5"])(np.repeat(images, 30, 0), SEED).numpy()
    share = np.mean([np.array_equal(a, b) for a, b in zip(some, np.repeat(images, 30, 0))])
    assert 0.35 < share < 0.65


@pytest.mark.parametrize("degrees", [-33.0, 10.0, 90.0])
def test_rotation_equals_scipy(images, degrees):
    angle = np.full((len(images), 1), np.deg2rad(degrees), np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = augmentation._matrix(images, cos, -sin, 0.0, sin, cos)
    ours = augmentation._moved(images, [matrix]).numpy()
    # In (y, x) order the matrix that samples the input is the transpose.
    matrix = np.array([[cos[0, 0], sin[0, 0]], [-sin[0, 0], cos[0, 0]]])
    center = (np.array(images.shape[1:3]) - 1) / 2
    for image, turned in zip(images, ours):
        for channel in range(3):
            expected = ndimage.affine_transform(
                image[..., channel], matrix, center - matrix @ center, order=1, mode="reflect"
            )
            # Half a pixel of the border is interpolated differently.
            inner = np.abs(turned[2:-2, 2:-2, channel] - expected[2:-2, 2:-2])
            assert np.percentile(inner, 95) < 0.5


def test_random_crop_moves_by_whole_pixels_and_fills_with_black(images):
    moved = augmenter(["random_crop:0.2"])(images, SEED).numpy()
    reach = round(0.2 * 17)
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    offsets = set()
    for source, result in zip(padded, moved):
        fits = [
            (y, x)
            for y in range(2 * reach + 1)
            for x in range(2 * reach + 1)
            if np.abs(source[y : y + 17, x : x + 14] - result).max() < 1e-2
        ]
        assert len(fits) == 1
        offsets.add(fits[0])
    assert len(offsets) > 2


def test_translation_moves_and_mirrors(images):
    by_two = augmentation._matrix(images, to_x=2.0, to_y=-3.0)
    moved = augmentation._moved(images, [by_two]).numpy()
    np.testing.assert_allclose(moved[:, 3:, :-2], images[:, :-3, 2:], atol=1e-3)
    np.testing.assert_allclose(moved[:, :3, :-2], images[:, 2::-1, 2:], atol=1e-3)
    assert not np.allclose(augmenter(["translation:0"])(images, SEED), moved)


def test_moves_in_a_row_are_one_interpolation(images):
    names = ["rotation:20", "scale:0.3", "translation:0.1", "shear:0.2"]
    once = augmenter(names)(images, SEED).numpy()
    each = images
    for place, name in enumerate(names):
        key = SEED.fold_in(place)
        kind, strength = augmentation.parse([name])[0]
        each = augmentation._moved(each, [augmentation._MOVES[kind](each, key, strength)])
    # The same picture but for the blur of three further interpolations, and the border.
    inner = np.abs(once - each)[:, 5:-5, 4:-4]
    assert inner.mean() < 2 < np.abs(once - images)[:, 5:-5, 4:-4].mean()


def test_center_crop_enlarges_the_middle(images):
    cropped = augmenter(["center_crop:0.5"])(images, SEED).numpy()
    middle = ndimage.map_coordinates(images[0, :, :, 0], [[8, 6], [6.5, 4.5]], order=1)
    np.testing.assert_allclose(cropped[0, [8, 4], [6, 2], 0][0], middle[0], atol=12)
    np.testing.assert_allclose(cropped[0, 4, 2, 0], images[0, 6, 4, 0], atol=12)


def test_noise_has_its_deviation_and_jitter_its_reach():
    grey = np.full((8, 32, 32, 3), 128, np.float32)
    noisy = augmenter(["noise:10"])(grey, SEED).numpy()
    assert abs(noisy.std() - 10) < 0.3 and abs(noisy.mean() - 128) < 0.3
    jittered = augmenter(["color_jitter:0.2"])(grey, SEED).numpy()
    means = jittered.mean((1, 2, 3))
    assert 128 * 0.8 <= means.min() < 124 and 132 < means.max() <= 128 * 1.2


def test_order_is_kept_and_mistakes_are_named(images):
    both = augmenter(["horizontal_flip:1", "vertical_flip:1"])(images, SEED)
    np.testing.assert_array_equal(both, images[:, ::-1, ::-1])
    assert augmenter([]) is None
    with pytest.raises(InputError, match="no augmentation 'rotate'; did you mean 'rotation'"):
        augmenter(["rotate:10"])
    for wrong in ("noise:loud", "noise:-1", "scale:nan", "center_crop:0"):
        with pytest.raises(InputError, match="is no strength"):
            augmenter([wrong])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_rows_of_a_batch_are_changed_as_in_the_whole(images, name):
    many = np.repeat(images, 3, 0)
    function = augmenter([name])
    whole = function(many, SEED).numpy()
    for first, last in ((0, 4), (4, len(many))):
        part = function(many[first:last], Chance(SEED.seed, first, len(many))).numpy()
        np.testing.assert_array_equal(part, whole[first:last])
