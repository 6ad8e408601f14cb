"""R-CNN and SPP-net: warped regions, regions to learn from, SVMs and box regression."""

import keras
import numpy as np
import parity
import pytest

from tiffin.export.images import Frame
from tiffin.layers import decode_boxes
from tiffin.recipes.detection import sppnet
from tiffin.recipes.engine import region_svm, weights
from tiffin.recipes.engine.box_data import BoxSplit
from tiffin.recipes.engine.region_svm import Examples


@pytest.mark.parametrize(
    "name, count, pooled",
    [
        # VGG16's convolutions, fc6, fc7 and the softmax
        ("rcnn_vgg16", 14_714_688 + 4096 * (49 * 512 + 1) + 4096 * 4097 + 21 * 4097, 25_088),
        ("rcnn_small", 419_541, 512),
        # ZF-5's convolutions, 50 bins of 256 channels
        (
            "sppnet_zfnet",
            14_208 + 614_656 + 885_120 + 1_327_488 + 884_992 + 4096 * 12_801 + 4117 * 4097,
            12_800,
        ),
        ("sppnet_small", 885_717, 50 * 64),
    ],
)
def test_published_counts(name, count, pooled):
    model = parity.check_counts(name, count, proposals=300)
    assert model.output["pooled"].shape == (None, pooled)


def split():
    """Return two pictures with objects, one difficult, and proposals near and far."""
    random = np.random.default_rng(0)
    boxes = [
        np.array([[10, 10, 40, 40], [60, 60, 90, 80.0]]),
        np.array([[20, 50, 60, 90.0]]),
    ]
    classes = [np.array([0, 2]), np.array([1])]
    difficult = [np.array([False, True]), np.array([False])]
    frames = [Frame.around((96, 96), (96, 96))] * 2
    images = random.integers(0, 256, (2, 96, 96, 3)).astype("uint8")
    result = BoxSplit.of(boxes, classes, difficult, frames, images)
    near = np.stack([result.boxes[:, :1] + shift for shift in (1, -2, 3)], 1)[:, :, 0]
    corner = random.uniform(0, 60, (2, 30, 2))
    others = np.concatenate([corner, corner + random.uniform(8, 30, (2, 30, 2))], -1)
    empty = np.zeros((2, 7, 4))
    result.proposals = np.concatenate([near, others, empty], 1).astype("float32")
    return result


def test_examples_are_objects_and_regions_near_or_far():
    data = split()
    found = region_svm._choose(data, 3, np.random.default_rng(1))
    used, regions = found["used"], found["regions"]
    assert regions.shape == (2, 64, 4) and 20 < used.sum() < 2 * 64
    assert ((regions[..., 2:] > regions[..., :2]).all(-1) == used).all()
    # Objects come first; a difficult one is no positive, and its surroundings no negative.
    assert sorted(found["real"][0][found["real"][0] >= 0]) == [0]
    assert found["real"][1, 0] == 1 and (found["real"][1, 1:] == -1).all()
    best = found["overlap"].max(-1)
    proposed = used & (best < 0.999)
    assert ((best[proposed] < 0.3) | (best[proposed] >= 0.6)).all()
    near = found["near"] & used
    assert near.sum() >= 6
    back = np.asarray(decode_boxes(found["deltas"][near], regions[near], region_svm.VARIANCES))
    owners = np.concatenate([data.boxes[i][data.classes[i] >= 0] for i in range(2)])
    assert all(np.abs(owners - box).max(1).min() < 1e-2 for box in back)


def test_box_regression_is_ridge_regression():
    random = np.random.default_rng(0)
    pooled = random.normal(size=(400, 6)).astype("float32")
    kinds = np.where(np.arange(400) < 300, 0, 2)
    deltas = (pooled @ random.normal(size=(6, 4)) + kinds[:, None]).astype("float32")
    seen = Examples(None, None, None, deltas, kinds, pooled)
    kernel, bias = region_svm.fit_regressors(seen, 3)
    kernel, bias = kernel.reshape(6, 3, 4), bias.reshape(3, 4)
    scale = 20 / np.linalg.norm(pooled, axis=1).mean()
    for kind in (0, 2):
        x, y = pooled[kinds == kind] * scale, deltas[kinds == kind]
        x0, y0 = x.mean(0), y.mean(0)
        solved = np.linalg.solve((x - x0).T @ (x - x0) + 1000 * np.eye(6), (x - x0).T @ (y - y0))
        np.testing.assert_allclose(kernel[:, kind], solved * scale, atol=1e-3)
        np.testing.assert_allclose(bias[kind], y0 - x0 @ solved, atol=1e-3)
    assert not kernel[:, 1].any() and not bias[1].any()


def test_svms_tell_classes_apart_and_mine_hard_negatives(monkeypatch):
    random = np.random.default_rng(0)
    real = np.repeat([0, 1, -1, -1], [80, 80, 3000, 40])
    centers = np.array([[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [2.4, 0, 2.4, 0]])
    features = centers[np.repeat([0, 1, 2, 3], [80, 80, 3000, 40])]
    features = (features + random.normal(0, 0.3, (3200, 4))).astype("float32")
    overlap = np.zeros((3200, 3), "float32")
    overlap[:80, 0] = overlap[80:160, 1] = 1
    seen = Examples(real, overlap, features, None, None, None)
    monkeypatch.setattr(region_svm, "_FIRST", 30)  # so few that hard ones are missed at first
    kernel, bias = region_svm.fit_svms(seen, 3, 0)
    scores = 1 / (1 + np.exp(-(features @ kernel + bias)))
    assert (scores[:80, 0] > 0.5).mean() > 0.95 and (scores[80:160, 1] > 0.5).mean() > 0.95
    assert (scores[160:, :2] < 0.5).mean() > 0.99
    assert (scores[3160:, 0] < 0.5).all(), "hard negatives were not mined"
    assert (scores[:, 2] < 0.01).all(), "a class without objects is found"


@pytest.mark.parametrize("classifier", ["svm", pytest.param("softmax", marks=pytest.mark.full)])
def test_what_is_fitted_lands_in_the_file(classifier, tmp_path):
    config = sppnet.Config(proposals=40, regions=8, classifier=classifier)
    model = config.inference(config.network((96, 96, 3), 3, (127.5, 60.0)))

    class data:
        train, classes = split(), ["a", "b", "c"]

    before = [np.array(v) for v in model.get_layer("regressors").variables]
    config.complete(model, data, tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    names = [layer.name for layer in again.layers]
    assert ("svms" in names) == (classifier == "svm") == ("logits" not in names)
    after = [np.array(v) for v in again.get_layer("regressors").variables]
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    inputs = {"image": data.train.images, "proposals": data.train.proposals}
    ours, theirs = (m.predict_on_batch(inputs) for m in (model, again))
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-4)
    # As the beginning of another training: what was fitted is fitted anew.
    other = sppnet.Config(proposals=40, regions=8)
    network = other.network((96, 96, 3), 5, (127.5, 60.0))
    source = weights.read(tmp_path / "model.keras", *other.published())
    assert "Head replaced: logits" in " ".join(other.load(network, source))
    kernel = other.body(network).get_layer("fc6").kernel
    assert (np.array(kernel) == np.array(model.get_layer("fc6").kernel)).all()
