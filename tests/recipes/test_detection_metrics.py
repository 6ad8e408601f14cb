"""Detection figures against pycocotools and the VOC development kit's definition."""

import numpy as np
import pytest
from pycocotools import coco as coco_library
from pycocotools.cocoeval import COCOeval

from tiffin.recipes.engine import detection_metrics as metrics


def scene(seed, pictures=12, classes=3, hard=0.1):
    """Return random truth, and detections of which many are near it."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for picture in range(pictures):
        n = 0 if picture == 3 else random.integers(1, 9)
        start = random.uniform(0, 200, (n, 2))
        boxes = np.concatenate([start, start + random.uniform(8, 120, (n, 2))], 1)
        kinds = random.integers(0, classes, n)
        difficult = random.random(n) < hard
        truth.append({"boxes": boxes, "classes": kinds, "difficult": difficult})
        again = np.concatenate([boxes, boxes]) + random.normal(0, 6, (2 * n, 4))
        far = random.uniform(0, 200, (3, 2))
        again = np.concatenate([again, np.concatenate([far, far + 40], 1)])
        said = np.concatenate([kinds, kinds, random.integers(0, classes, 3)])
        wrong = random.random(len(said)) < 0.2
        said = np.where(wrong, random.integers(0, classes, len(said)), said)
        scores = random.permutation(len(said)) / len(said) + random.random(len(said)) / 100
        found.append({"boxes": again, "classes": said, "scores": scores})
    return truth, found


def devkit(truth, found, kind, iou, points):
    """Return VOCevaldet.m's average precision, line by line, for one class."""
    images = [(i, s, b) for i, seen in enumerate(found)
              for s, b, c in zip(seen["scores"], seen["boxes"], seen["classes"], strict=True)
              if c == kind]  # fmt: skip
    images.sort(key=lambda item: -item[1])
    objects = [
        [
            [box, hard, False]
            for box, c, hard in zip(t["boxes"], t["classes"], t["difficult"], strict=True)
            if c == kind
        ]
        for t in truth
    ]
    positives = sum(not hard for things in objects for _, hard, _ in things)
    tp, fp = np.zeros(len(images)), np.zeros(len(images))
    for d, (i, _, bb) in enumerate(images):
        most, which = -np.inf, None
        for thing in objects[i]:
            gt = thing[0]
            low, high = np.maximum(bb[:2], gt[:2]), np.minimum(bb[2:], gt[2:])
            height, width = high - low + 1
            if height > 0 and width > 0:
                union = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)
                union += (gt[2] - gt[0] + 1) * (gt[3] - gt[1] + 1) - height * width
                if height * width / union > most:
                    most, which = height * width / union, thing
        if most >= iou:
            if not which[1]:
                if not which[2]:
                    tp[d], which[2] = 1, True
                else:
                    fp[d] = 1
        else:
            fp[d] = 1
    fp, tp = np.cumsum(fp), np.cumsum(tp)
    recall, precision = tp / positives, tp / np.maximum(fp + tp, 1e-300)
    if points == 11:
        total = 0
        for t in np.arange(0, 1.1, 0.1):
            p = precision[recall >= t]
            total += (p.max() if len(p) else 0) / 11
        return total
    mrec = np.concatenate([[0], recall, [1]])
    mpre = np.concatenate([[0], precision, [0]])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    i = np.flatnonzero(mrec[1:] != mrec[:-1]) + 1
    return np.sum((mrec[i] - mrec[i - 1]) * mpre[i])


@pytest.mark.parametrize("points", ["all", 11])
@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(5))
def test_voc_is_the_development_kits(seed, iou, points):
    truth, found = scene(seed)
    values, _ = metrics.voc(truth, found, 3, iou, points, pixel=1.0)
    wanted = [devkit(truth, found, kind, iou, points) for kind in range(3)]
    np.testing.assert_allclose(values, wanted, atol=1e-12)


def test_voc_on_a_worked_case():
    # Two objects and a difficult one; the detections: right, a duplicate, the difficult, right.
    truth = [
        {
            "boxes": np.array([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], float),
            "classes": np.array([0, 0, 0]),
            "difficult": np.array([False, False, True]),
        },
        {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int), "difficult": np.zeros(0, bool)},
    ]
    found = [
        {
            "boxes": np.array(
                [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [20, 20, 30, 29]], float
            ),
            "classes": np.zeros(4, int),
            "scores": np.array([0.9, 0.8, 0.7, 0.6]),
        },
        {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int), "scores": np.zeros(0)},
    ]
    (value, none), curves = metrics.voc(truth, found, 2)
    assert value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3) and np.isnan(none)
    np.testing.assert_allclose(curves[0][1], [1, 1 / 2, 2 / 3])
    (value, _), _ = metrics.voc(truth, found, 2, points=11)
    assert value == pytest.approx((6 + 5 * 2 / 3) / 11)
    counts, matrix = metrics.mistakes(truth, found, 2, 0.5)
    assert counts == dict.fromkeys(metrics.KINDS, 0) | {"duplicate": 1}
    assert matrix[0, 0] == 2 and matrix.sum() == 2
    counts, matrix = metrics.mistakes(truth, found, 2, 0.95)
    assert counts["missed"] == 2 and matrix[0, 2] == 2


def test_nothing_found_and_nothing_there():
    nothing = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int), "scores": np.zeros(0)}
    truth, found = scene(1)
    blind = [nothing] * len(truth)
    assert (metrics.voc(truth, blind, 3)[0] == 0).all()
    assert metrics.coco(truth, blind, 3)["AP"] == 0
    empty = [nothing | {"difficult": np.zeros(0, bool)}] * len(truth)
    assert np.isnan(metrics.voc(empty, found, 3)[0]).all()
    assert np.isnan(metrics.coco(empty, found, 3)["AP"])


@pytest.mark.parametrize("seed", range(3))
def test_coco_is_pycocotools(seed):
    truth, found = scene(seed)
    found[5] = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int), "scores": np.zeros(0)}
    table = coco_library.COCO()
    rows = []
    for i, t in enumerate(truth):
        for (y1, x1, y2, x2), c, hard in zip(t["boxes"], t["classes"], t["difficult"], strict=True):
            row = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            row |= {"image_id": i, "category_id": int(c), "iscrowd": int(hard)}
            rows.append(row | {"id": len(rows) + 7})
    table.dataset = {
        "images": [{"id": i} for i in range(len(truth))],
        "categories": [{"id": c} for c in range(3)],
        "annotations": rows,
    }
    table.createIndex()
    detections = np.array([
        [i, x1, y1, x2 - x1, y2 - y1, s, c] for i, f in enumerate(found)
        for (y1, x1, y2, x2), s, c in zip(f["boxes"], f["scores"], f["classes"], strict=True)
    ])  # fmt: skip
    evaluation = COCOeval(table, table.loadRes(detections), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    ours = metrics.coco(truth, found, 3)
    np.testing.assert_allclose(list(ours.values()), evaluation.stats[:9], atol=1e-6)


def test_voc_equals_coco_at_one_threshold_without_difficult_objects():
    # COCO samples the same curve at 101 recalls: close, not equal.
    truth, found = scene(4, pictures=40, hard=0.0)
    ours = np.mean(metrics.voc(truth, found, 3)[0])
    assert ours == pytest.approx(metrics.coco(truth, found, 3)["AP50"], abs=0.02)


def test_kinds_of_mistakes():
    truth = [{"boxes": np.array([[0, 0, 10, 10], [40, 40, 50, 50], [80, 80, 90, 90]], float),
              "classes": np.array([0, 1, 1]), "difficult": np.zeros(3, bool)}]  # fmt: skip
    found = [{
        "boxes": np.array(
            [[0, 0, 10, 4], [40, 40, 50, 50], [0, 0, 10, 3], [60, 0, 70, 10]], float
        ),
        "classes": np.array([0, 0, 1, 1]),
        "scores": np.array([0.9, 0.8, 0.7, 0.6]),
    }]  # fmt: skip
    counts, matrix = metrics.mistakes(truth, found, 2, 0.5)
    wanted = {"localisation": 1, "class": 1, "both": 1, "duplicate": 0, "background": 1}
    assert counts == wanted | {"missed": 1}
    assert matrix.tolist() == [[0, 0, 1], [1, 0, 2], [1, 2, 0]]
