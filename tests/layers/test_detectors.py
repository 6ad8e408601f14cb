"""Layers and losses of detectors against Darknet's loops and torchvision's losses."""

import numpy as np
import parity
import pytest
import torch
from darknet import reorg_by_loops
from numerics import values

from tiffin import layers


def test_reorg_is_darknets():
    x = np.random.default_rng(2).normal(size=(2, 4, 6, 8)).astype("float32")
    wanted = np.stack([reorg_by_loops(one.transpose(2, 0, 1)) for one in x]).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(values(layers.Reorg()(x)), wanted)
    with pytest.raises(ValueError, match="even sides"):
        layers.Reorg()(x[:, :3])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def overlap(a, b) -> float:
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = sides.prod()
    areas = [(z[2:] - z[:2]).prod() for z in (a, b)]
    return shared / (sum(areas) - shared) if shared else 0.0


def cross_entropy(wanted, logit):
    p = sigmoid(logit)
    return -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_loss_box_by_box(version):
    """Of two pictures; in the first two objects want the same prediction, one is difficult."""
    random = np.random.default_rng(3)
    size, classes = 128, 3
    few, more = [(20, 20), (60, 40), (30, 90)], [(10, 9), (13, 11), (17, 30)]
    boxes = {
        1: lambda: layers.DecodeRoots(2, 2, (size, size)),
        2: lambda: layers.DecodeCells([(4, 4)], [few], (size, size)),
        3: lambda: layers.DecodeCells([(8, 8), (16, 16)], [few, more], (size, size)),
    }[version]()
    count = len(boxes.cells)
    deltas = random.normal(0, 0.5, (2, count, 4)).astype("float32")
    logits = random.normal(0, 1, (2, count, 1 + classes)).astype("float32")
    if version == 1:
        deltas, logits = np.abs(deltas), np.abs(logits)
    real = np.array(
        [
            [[10, 20, 40, 50], [12, 21, 41, 50], [60, 30, 110, 126], [70, 80, 128, 128]],
            [[90, 5, 120, 22], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        "float32",
    )
    kinds = np.array([[0, 2, 1, -1], [2, -1, -1, -1]], "int32")
    found = layers.yolo_losses(
        version, boxes, {"boxes": real, "classes": kinds}, {"deltas": deltas, "logits": logits}
    )
    found = {k: float(values(v)) for k, v in found.items()}
    sums = {"box_loss": 0.0, "object_loss": 0.0, "class_loss": 0.0}
    for i in range(2):
        predicted, grids = [], []
        for n in range(count):
            (row, column), (sy, sx), d = (
                boxes.cells[n],
                boxes.strides[n],
                deltas[i, n].astype(float),
            )
            if version == 1:
                y, x, h, w = row + d[0], column + d[1], d[2] ** 2 * size / sy, d[3] ** 2 * size / sx
            else:
                h, w = boxes.sides[n] * np.exp(d[2:])
                y, x = row + sigmoid(d[0]), column + sigmoid(d[1])
            box = np.array([y - h / 2, x - w / 2, y + h / 2, x + w / 2]) * [sy, sx, sy, sx]
            predicted.append(box.clip(0, size))
            grids.append((int(row), int(column), float(sy)))
        owner = {}
        for k in np.flatnonzero(kinds[i] >= 0):
            y1, x1, y2, x2 = real[i, k].astype(float)
            best, chosen = -1.0, None
            for n, (row, column, stride) in enumerate(grids):
                if (int((y1 + y2) / 2 // stride), int((x1 + x2) / 2 // stride)) != (row, column):
                    continue
                if version == 1:
                    fit = overlap(predicted[n], real[i, k].astype(float))
                else:
                    h, w = boxes.sides[n] * boxes.strides[n]
                    fit = overlap(np.array([0, 0, y2 - y1, x2 - x1]), np.array([0, 0, h, w]))
                if fit > best + 1e-9:
                    best, chosen = fit, n
            owner[chosen] = k
        for n, k in owner.items():
            y1, x1, y2, x2 = real[i, k].astype(float)
            (row, column), stride = boxes.cells[n], float(boxes.strides[n, 0])
            place = np.array([(y1 + y2) / 2 / stride - row, (x1 + x2) / 2 / stride - column])
            sides, d = np.array([y2 - y1, x2 - x1]), deltas[i, n].astype(float)
            one = np.eye(classes)[kinds[i, k]]
            said = logits[i, n, 1:].astype(float)
            if version == 1:
                roots = np.sqrt(sides / size)
                sums["box_loss"] += (
                    5 * ((place - d[:2]) ** 2).sum() + 5 * ((roots - d[2:]) ** 2).sum()
                )
                sums["class_loss"] += ((one - said) ** 2).sum()
            else:
                small = 2 - sides.prod() / size**2
                log = np.log(sides / boxes.sides[n] / stride)
                if version == 2:
                    error = ((sigmoid(d[:2]) - place) ** 2 / 2).sum()
                    sums["class_loss"] -= np.log(np.exp(said)[kinds[i, k]] / np.exp(said).sum())
                else:
                    error = cross_entropy(place, d[:2]).sum()
                    sums["class_loss"] += cross_entropy(one, said).sum()
                sums["box_loss"] += small * (error + ((d[2:] - log) ** 2).sum() / 2)
        for n in range(count):
            said = float(logits[i, n, 0])
            best = max(overlap(predicted[n], b.astype(float)) for b in real[i])
            fit = overlap(predicted[n], real[i, owner[n]].astype(float)) if n in owner else 0.0
            if version == 1:
                sums["object_loss"] += (1 if n in owner else 0.5) * (fit - said) ** 2
            elif n in owner:
                sums["object_loss"] += (
                    5 * (fit - sigmoid(said)) ** 2 / 2 if version == 2 else cross_entropy(1, said)
                )
            elif best <= {2: 0.6, 3: 0.5}[version]:
                sums["object_loss"] += (
                    sigmoid(said) ** 2 / 2 if version == 2 else cross_entropy(0, said)
                )
    for name, value in sums.items():
        assert found[name] == pytest.approx(value / 2, rel=1e-4), name


def scene(random, anchors=60, objects=4):
    """Boxes that some of the others overlap much and some little."""
    corner = random.uniform(0, 80, (2, objects, 2))
    boxes = np.concatenate([corner, corner + random.uniform(10, 40, (2, objects, 2))], -1)
    boxes = boxes.astype("float32")
    near = boxes[:, random.integers(0, objects, anchors // 2)]
    near = near + random.normal(0, 2, near.shape)
    far = random.uniform(0, 80, (2, anchors - anchors // 2, 2))
    far = np.concatenate([far, far + random.uniform(5, 30, far.shape)], -1)
    kinds = np.array([[0, 2, 1, -1], [3, -1, -1, -1]], "int32")
    boxes[kinds < 0] = 0
    return boxes, kinds, np.concatenate([near, far], 1).astype("float32")


def flip(boxes):
    """Turn y, x into x, y."""
    return torch.from_numpy(np.asarray(boxes)[..., [1, 0, 3, 2]].copy())


def test_second_stages_losses_are_torchvisions():
    parity.torchvision_models()
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.roi_heads import fastrcnn_loss

    random = np.random.default_rng(1)
    boxes, kinds, regions = scene(random)
    noise = random.uniform(size=regions.shape[:2]).astype("float32")
    sampled = layers.sample_regions(regions, boxes, kinds, noise, 24)
    chosen, owner, counted = (values(x) for x in sampled)
    owner = owner.astype(int)
    assert counted.all() and ((owner >= 0).sum(1) <= 6).all() and (owner >= 0).any()
    logits = random.normal(size=(2, 24, 5)).astype("float32")
    deltas = random.normal(size=(2, 24, 20)).astype("float32")
    found = layers.region_losses(boxes, kinds, sampled, logits, deltas)
    labels = [torch.from_numpy(np.where(o >= 0, k[o] + 1, 0)).long() for o, k in zip(owner, kinds)]
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    real = [flip(b[o.clip(0)]) for o, b in zip(owner, boxes)]
    wanted = [coder.encode_single(r, flip(c)) for r, c in zip(real, chosen)]
    theirs = fastrcnn_loss(
        torch.from_numpy(logits).reshape(-1, 5),
        flip(deltas.reshape(48, 5, 4)).reshape(-1, 20),
        labels,
        wanted,
    )
    # Theirs has smooth L1 with a beta of 1/9, ours the paper's 1.
    assert float(values(found[0])) == pytest.approx(float(theirs[0]), rel=1e-5)
    mine = torch.cat(labels) > 0
    said = flip(deltas.reshape(48, 5, 4))[mine, torch.cat(labels)[mine]]
    box = torch.nn.functional.smooth_l1_loss(said, torch.cat(wanted)[mine], reduction="sum") / 48
    assert float(values(found[1])) == pytest.approx(float(box), rel=1e-4)


def test_first_stages_losses_are_torchvisions():
    parity.torchvision_models()
    from torchvision.models.detection._utils import BoxCoder, Matcher
    from torchvision.ops import box_iou

    random = np.random.default_rng(2)
    boxes, kinds, _ = scene(random)
    anchors = np.concatenate([scene(random)[2][0], boxes[0][:3] + 1, boxes[1][:1] + 1])
    objectness = random.normal(size=(2, len(anchors))).astype("float32")
    shifts = random.normal(size=(2, len(anchors), 4)).astype("float32")
    noise = random.uniform(size=objectness.shape).astype("float32")
    # So many that every negative anchor counts.
    found = layers.proposal_losses(anchors, boxes, kinds, objectness, shifts, noise, 400)
    matcher, coder = Matcher(0.7, 0.3, allow_low_quality_matches=True), BoxCoder((1.0,) * 4)
    cross, smooth, number = 0.0, 0.0, 0
    for i in range(2):
        real = flip(boxes[i][kinds[i] >= 0])
        owner = matcher(box_iou(real, flip(anchors)))
        positive, counted = owner >= 0, owner != -2
        said = torch.from_numpy(objectness[i])
        cross += torch.nn.functional.binary_cross_entropy_with_logits(
            said[counted], positive[counted].float(), reduction="sum"
        )
        wanted = coder.encode_single(real[owner.clip(0)], flip(anchors))
        smooth += torch.nn.functional.smooth_l1_loss(
            flip(shifts[i])[positive], wanted[positive], beta=1 / 9, reduction="sum"
        )
        number += int(counted.sum())
    assert float(values(found[0])) == pytest.approx(float(cross) / number, rel=1e-5)
    assert float(values(found[1])) == pytest.approx(float(smooth) / number, rel=1e-4)


def test_proposals_are_suppressed_level_by_level():
    anchors = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [0, 0, 10, 10.0]])
    layer = layers.Proposals(anchors, (3, 1), (100, 100), number=4)
    logits = np.array([[1.0, 2.0, 0.5, 3.0]], "float32")
    found = values(layer(logits, np.zeros((1, 4, 4), "float32")))[0]
    # Of the first map's two that overlap by 0.68 none goes; at 0.6 the less sure one does.
    np.testing.assert_allclose(found, anchors[[3, 1, 0, 2]], atol=1e-4)
    layer = layers.Proposals(anchors, (3, 1), (100, 100), number=4, iou_threshold=0.6)
    found = values(layer(logits, np.zeros((1, 4, 4), "float32")))[0]
    np.testing.assert_allclose(found, [*anchors[[3, 1, 2]], [0, 0, 0, 0]], atol=1e-4)
