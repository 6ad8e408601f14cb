"""Faster R-CNN against published counts and torchvision's raw heads."""

import keras
import numpy as np
import parity
import pytest
import torch

from tiffin.export import InputError
from tiffin.recipes.detection import faster_rcnn
from tiffin.recipes.engine import registry
from tiffin.recipes.engine.weights import load_weights


@pytest.mark.parametrize(
    "name, count, anchors",
    [
        # The authors' network for VOC, layer by layer; 38 x 38 cells with nine anchors
        ("faster_rcnn_vgg16", 137_078_239, 12_996),
        *parity.full(("faster_rcnn_resnet50", 28_469_983, 12_996)),
        ("faster_rcnn_small", 537_558, 5184),
        # torchvision's, but for ten classes of COCO that never occur and a frozen batch norm
        ("faster_rcnn_resnet50_fpn", 41_755_286 - 10 * 5 * 1025 + 53_120, 159_882),
    ],
)
def test_published_counts(name, count, anchors):
    model = parity.check_counts(name, count)
    classes = registry.find(name).variants[name].classes
    assert model.output["shifts"].shape == (None, anchors, 4)
    assert model.output["logits"].shape == (
        None,
        100,
        1 + classes,
    )
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
    # By the recipe, whose second stage is a model of its own, too.
    config = faster_rcnn.Config(model="faster_rcnn_resnet50_fpn", proposals=40)
    ours = config.body(config.network((128, 160, 3), 6, None))
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


def test_first_stage_starts_as_in_the_paper():
    """Section 3.1.3: from a normal distribution of 0.01; so its first proposals are the anchors."""
    scale = (127.5, 127.5)
    model = faster_rcnn.faster_rcnn("faster_rcnn_small", (96, 96, 3), 3, normalization=scale)
    for name in ("rpn_conv", "rpn_objectness", "rpn_shifts"):
        kernel, bias = (np.array(v) for v in model.get_layer(name).weights)
        assert np.std(kernel) == pytest.approx(0.01, rel=0.1) and not bias.any()
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype("float32")
    assert np.abs(model(images)["shifts"]).max() < 0.2


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
