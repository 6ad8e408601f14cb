"""Fast R-CNN against published counts, torch's VGG16 and truncated SVD written out."""

import keras
import numpy as np
import parity
import pytest
import torch

from tiffin.export import InputError
from tiffin.recipes.detection import fast_rcnn
from tiffin.recipes.engine import backbones, weights

VGG16 = 14_714_688  # its convolutions; then fc6, fc7 and the two heads


@pytest.mark.parametrize(
    "name, count",
    [
        (
            "fast_rcnn_vgg16",
            VGG16 + 4096 * (49 * 512 + 1) + 4096 * 4097 + (21 + 84) * 4097,
        ),
        ("fast_rcnn_small", 497_705),
    ],
)
def test_published_counts(name, count):
    model = parity.check_counts(name, count, proposals=300)
    assert [tuple(x.shape) for x in model.inputs][1:] == [(None, 300, 4)]
    assert model.output["logits"].shape == (None, 21) and model.output["deltas"].shape == (None, 84)


def pooled(features, region, cells):
    """Return the paper's RoI max pooling of one region, `[cells, cells, channels]`, by loops."""
    y1, x1, y2, x2 = np.floor(np.asarray(region) / 16 + 0.5).astype(int)
    height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    result = np.zeros((cells, cells, features.shape[-1]), "float32")
    for i in range(cells):
        for j in range(cells):
            rows = slice(
                max(y1 + i * height // cells, 0), max(y1 - (-(i + 1) * height // cells), 0)
            )
            columns = slice(
                max(x1 + j * width // cells, 0), max(x1 - (-(j + 1) * width // cells), 0)
            )
            part = features[rows, columns]
            result[i, j] = part.max((0, 1)) if part.size else 0
    return result


@pytest.mark.full
def test_published_vgg16_makes_the_features_of_regions(tmp_path):
    theirs = parity.torchvision_models().vgg16(weights=None).eval()
    parity.randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    config = fast_rcnn.Config(model="fast_rcnn_vgg16", proposals=3)
    ours = config.body(config.network((96, 128, 3), 4, None))
    table = backbones.collections("vgg16")
    source = weights.read(tmp_path / "vgg16.pth", table, "vgg16")
    said = " ".join(backbones.load(ours, "vgg16", {}, source))
    assert "fc6 and fc7" in said and "start fresh: deltas, logits" in said
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 96, 128, 3)).astype("float32")
    regions = np.array([[[0, 0, 90, 120], [20, 30, 61, 70], [64, 0, 95, 127]]], "float32")
    found = ours.predict_on_batch({"image": x, "proposals": regions})
    with torch.no_grad():
        maps = theirs.features[:30](torch.from_numpy(x).permute(0, 3, 1, 2))[0].permute(1, 2, 0)
        cells = np.stack([pooled(maps.numpy(), region, 7) for region in regions[0]])
        flat = torch.from_numpy(cells).permute(0, 3, 1, 2).flatten(1)
        hidden = torch.relu(theirs.classifier[0](flat))
        hidden = torch.relu(theirs.classifier[3](hidden)).numpy()
    for name in ("logits", "deltas"):
        kernel, bias = ours.get_layer(name).get_weights()
        wanted = hidden @ kernel + bias
        np.testing.assert_allclose(
            found[name] / wanted.std(), wanted / wanted.std(), atol=1e-3 * np.abs(wanted).max()
        )


def test_the_heads_learn_from_sampled_regions():
    config = fast_rcnn.Config(proposals=20, regions=6)
    model = config.network((64, 64, 3), 3, (127.5, 60.0))
    assert set(model.trained.output) == {"map0"}
    model.compile("sgd", loss=None)
    boxes = np.array([[[10, 10, 30, 30], [0, 0, 0, 0]]] * 2, "float32")
    random = np.random.default_rng(0)
    corners = random.uniform(0, 40, (2, 20, 2))
    proposals = np.concatenate([corners, corners + random.uniform(5, 20, (2, 20, 2))], -1)
    targets = {"boxes": boxes, "classes": np.array([[1, -1]] * 2)}
    targets["proposals"] = proposals.astype("float32")
    images = random.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    before = {v.path: np.array(v) for v in model.trainable_variables}
    assert np.isfinite(model.train_on_batch(images, targets)).all()
    moved = {v.path for v in model.trainable_variables if np.any(before[v.path] != np.array(v))}
    assert any("fc6" in path for path in moved) and any("conv" in path for path in moved)
    # What the file says of these regions is what the trained heads say.
    body, maps = config.body(model), model.trained(images, training=False)["map0"]
    seen = {"map0": maps, "proposals": keras.ops.convert_to_tensor(targets["proposals"][:, :6])}
    few = config.judge(seen, training=False)["logits"]
    said = body({"image": images, "proposals": targets["proposals"]}, training=False)["logits"]
    said = np.reshape(keras.ops.convert_to_numpy(said), (2, 20, 4))[:, :6].reshape(12, 4)
    np.testing.assert_allclose(few, said, atol=1e-5)


def test_exported_files_are_thinner():
    config = fast_rcnn.Config(proposals=5, regions=4, svd=(9,))
    config.check()
    whole = config.inference(config.network((32, 32, 3), 3, (127.5, 60.0)))
    thin = config.exported(whole)
    kernel = whole.get_layer("fc6").kernel
    dropped = np.prod(kernel.shape) - 9 * sum(kernel.shape)
    assert whole.count_params() - thin.count_params() == dropped
    assert set(thin.output) == {"boxes", "scores", "classes", "count"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"svd": (10, 10)}, "takes one number for each of its layers of 256 units"),
        ({"low": 0.6}, "--low 0.6: it is an IoU, from 0 to below 0.5"),
        ({"svd": (300,)}, "from 1 to that"),
        ({"regions": 300}, "--regions 300 are drawn from --proposals 200"),
        ({"proposals": 0}, "--proposals 0: it must be at least 1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        fast_rcnn.Config(**options).check()
