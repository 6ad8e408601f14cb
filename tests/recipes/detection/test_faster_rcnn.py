"""Faster R-CNN against published counts, torchvision's raw heads, and torchvision's losses."""

import keras
import numpy as np
import parity
import pytest
import torch

from tiffin import layers, recipes
from tiffin.export import InputError
from tiffin.recipes.detection import faster_rcnn
from tiffin.recipes.engine import registry, summary
from tiffin.recipes.engine.weights import load_weights


@pytest.mark.parametrize(
    "name, count, anchors",
    [
        # The authors' network for VOC, layer by layer; 38 x 38 cells with nine anchors
        ("faster_rcnn_vgg16", 137_078_239, 12_996),
        ("faster_rcnn_resnet50", 28_469_983, 12_996),
        ("faster_rcnn_small", 1_282_646, 1296),
        # torchvision's, but for ten classes of COCO that never occur and a frozen batch norm
        ("faster_rcnn_resnet50_fpn", 41_755_286 - 10 * 5 * 1025 + 53_120, 159_882),
    ],
)
def test_published_counts(name, count, anchors):
    row = registry.find(name).variants[name]
    model = recipes.build(name)
    assert summary.trainable(model) == row.parameters == count
    assert sum(layer.macs for layer in summary.rows(model)) == row.macs
    assert model.output["shifts"].shape == (None, anchors, 4)
    assert model.output["logits"].shape == (None, 100, 1 + row.classes)
    assert len(model.get_layer("proposals").anchors) == anchors


@pytest.mark.full
def test_torchvisions_weights_and_raw_heads(tmp_path):
    parity.torchvision_models()
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    from torchvision.models.detection.image_list import ImageList

    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7).eval()
    random = np.random.default_rng(0)
    state = theirs.state_dict()
    for name, value in state.items():
        shape = tuple(value.shape)
        if name.endswith("running_var"):
            new = random.uniform(0.5, 1.5, shape)
        elif "bn" in name or "downsample.1" in name:
            new = random.normal(0.6 * name.endswith("weight"), 0.1, shape)
        else:
            fan = max(1, value[0].numel()) if value.ndim > 1 else 400
            new = random.normal(0, (2 / fan) ** 0.5, shape)
        state[name] = torch.from_numpy(np.asarray(new, "float32"))
    theirs.load_state_dict(state)
    for module in theirs.modules():
        if hasattr(module, "running_var"):
            module.eps = 0.0  # as for the published weights
    torch.save(state, tmp_path / "a.pth")
    ours = recipes.build("faster_rcnn_resnet50_fpn", (128, 160, 3), 6, proposals=40)
    load_weights(ours, tmp_path / "a.pth")
    x = random.normal(size=(1, 128, 160, 3)).astype("float32")
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    found = {name: keras.ops.convert_to_numpy(v) for name, v in ours.predict_on_batch(x).items()}
    with torch.no_grad():
        maps = theirs.backbone(tensor)
        objectness, shifts = theirs.rpn.head(list(maps.values()))
        images = ImageList(tensor, [(128, 160)])
        (anchors,) = theirs.rpn.anchor_generator(images, list(maps.values()))
        regions = torch.from_numpy(found["proposals"][0][:, [1, 0, 3, 2]])
        pooled = theirs.roi_heads.box_roi_pool(maps, [regions], [(128, 160)])
        logits, deltas = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))

    def near(mine, other):
        other = other.numpy()
        np.testing.assert_allclose(mine, other, atol=1e-3 * max(1, np.abs(other).max()))

    for i in range(4):
        near(found[f"map{i}"], maps[str(i)].permute(0, 2, 3, 1))
    near(found["objectness"][0], torch.cat([o.permute(0, 2, 3, 1).flatten() for o in objectness]))
    moved = torch.cat([s.permute(0, 2, 3, 1).reshape(-1, 4) for s in shifts])
    near(found["shifts"][0], moved[:, [1, 0, 3, 2]])
    near(ours.get_layer("proposals").anchors, anchors[:, [1, 0, 3, 2]])
    near(found["logits"][0], logits)
    near(found["deltas"][0].reshape(40, 7, 4), deltas.reshape(40, 7, 4)[..., [1, 0, 3, 2]])
    area = np.prod(found["proposals"][0][:, 2:] - found["proposals"][0][:, :2], axis=1)
    assert (area > 0).sum() > 20


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
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.roi_heads import fastrcnn_loss

    random = np.random.default_rng(1)
    boxes, kinds, regions = scene(random)
    noise = random.uniform(size=regions.shape[:2]).astype("float32")
    sampled = layers.sample_regions(regions, boxes, kinds, noise, 24)
    chosen, owner, counted = (keras.ops.convert_to_numpy(x) for x in sampled)
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
    assert float(found[0]) == pytest.approx(float(theirs[0]), rel=1e-5)
    mine = torch.cat(labels) > 0
    said = flip(deltas.reshape(48, 5, 4))[mine, torch.cat(labels)[mine]]
    box = torch.nn.functional.smooth_l1_loss(said, torch.cat(wanted)[mine], reduction="sum") / 48
    assert float(found[1]) == pytest.approx(float(box), rel=1e-4)


def test_first_stages_losses_are_torchvisions():
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
    assert float(found[0]) == pytest.approx(float(cross) / number, rel=1e-5)
    assert float(found[1]) == pytest.approx(float(smooth) / number, rel=1e-4)


def test_proposals_are_suppressed_level_by_level():
    anchors = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [0, 0, 10, 10.0]])
    layer = layers.Proposals(anchors, (3, 1), (100, 100), number=4)
    logits = np.array([[1.0, 2.0, 0.5, 3.0]], "float32")
    found = keras.ops.convert_to_numpy(layer(logits, np.zeros((1, 4, 4), "float32")))[0]
    # Of the first map's two that overlap by 0.68 none goes; at 0.6 the less sure one does.
    np.testing.assert_allclose(found, anchors[[3, 1, 0, 2]], atol=1e-4)
    layer = layers.Proposals(anchors, (3, 1), (100, 100), number=4, iou_threshold=0.6)
    found = keras.ops.convert_to_numpy(layer(logits, np.zeros((1, 4, 4), "float32")))[0]
    np.testing.assert_allclose(found, [*anchors[[3, 1, 2]], [0, 0, 0, 0]], atol=1e-4)


def test_the_second_stage_learns_from_sampled_regions():
    config = faster_rcnn.Config(proposals=8)
    model = config.network((64, 64, 3), 3, (127.5, 60.0))
    assert set(model.trained.output) == {"objectness", "shifts", "proposals", "map0"}
    model.compile("sgd", loss=None)
    boxes = np.array([[[10, 10, 30, 30], [0, 0, 0, 0]]] * 2, "float32")
    targets = {"boxes": boxes, "classes": np.array([[1, -1]] * 2)}
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    before = {v.path: np.array(v) for v in model.trainable_variables}
    assert np.isfinite(model.train_on_batch(images, targets)).all()
    moved = {v.path for v in model.trainable_variables if np.any(before[v.path] != np.array(v))}
    assert any("fc6" in path for path in moved) and any("rpn_conv" in path for path in moved)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input_shape": (100, 100, 3)}, "multiples of 16"),
        ({"pooling": "aligned"}, "pooling"),
        ({"backbone": "resnet20", "input_shape": (64, 64, 3)}, "no map of stride 16"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises((InputError, ValueError), match=message):
        faster_rcnn.faster_rcnn(**options)
