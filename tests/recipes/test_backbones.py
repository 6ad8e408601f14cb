"""Weights of classification networks under detectors."""

import dataclasses
import hashlib

import keras
import numpy as np
import parity
import pytest
import torch

from tiffin import recipes
from tiffin.export import InputError
from tiffin.export.images import Frame
from tiffin.recipes.classification import resnet
from tiffin.recipes.detection import faster_rcnn, ssd, yolo
from tiffin.recipes.engine import backbones, registry, scenes, weights
from tiffin.recipes.engine.box_data import BoxData, BoxSplit
from tiffin.recipes.engine.weight_files import Tensors
from tiffin.recipes.engine.weights import Collection, Source

DETECTORS = [entry for entry in registry.recipes().values() if entry.task == "detection"]


def prepared(config, path, size=64):
    """Return the network of a configuration that starts from a file, and what was said."""
    config.weights = str(path)
    source = weights.read(config.weights, *config.published())
    said = weights.adopt(config, source)
    model = config.network((size, size, 3), 3, source.normalization)
    said += config.load(model, source)
    return config.body(model), "\n".join(said)


@pytest.mark.full
def test_maps_are_torchvisions(tmp_path):
    theirs = parity.torchvision_models().resnet50(weights=None)
    parity.randomise(theirs)
    parity.settle(theirs, 64)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    config = faster_rcnn.Config(model="faster_rcnn_resnet50")
    ours, said = prepared(config, tmp_path / "a.pth", 96)
    assert config.built_with == {"stride_in": "3x3"}
    assert "resnet50 is the backbone of faster_rcnn_resnet50. These start fresh: rpn_conv" in said
    assert "logits" in said and "not in the model: fc." in said
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 96, 96, 3)).astype("float32")
    mean, std = (np.array(part, "float32") for part in weights.IMAGENET)
    x = torch.from_numpy((pixels - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        x = theirs.layer3(theirs.layer2(theirs.layer1(x)))
    found = keras.Model(ours.input, ours.output["map0"]).predict_on_batch(pixels)
    x = x.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found / x.std(), x / x.std(), atol=1e-3)
    # The second stage goes on with ResNet's last, region by region.
    region = np.tile(x, (1, 3, 3, 1))[:, :14, :14]
    with torch.no_grad():
        judged = theirs.layer4(torch.from_numpy(region).permute(0, 3, 1, 2))
    judged = judged.permute(0, 2, 3, 1).numpy()
    first, last = ours.get_layer("conv5_block1_1_conv"), ours.get_layer("conv5_block3_out")
    behind = keras.Model(first.input, last.output).predict_on_batch(region)
    np.testing.assert_allclose(behind / judged.std(), judged / judged.std(), atol=1e-3)


def test_imagenet_is_of_the_backbone(tmp_path, monkeypatch, capsys):
    theirs = parity.torchvision_models().resnet18(weights=None)
    (tmp_path / "models").mkdir()
    torch.save(theirs.state_dict(), path := tmp_path / "models" / "resnet18.pth")
    files = {"resnet18": (path.name, hashlib.sha256(path.read_bytes()).hexdigest())}
    table = dataclasses.replace(resnet.WEIGHTS["torchvision"], files=files)
    monkeypatch.setitem(resnet.WEIGHTS, "torchvision", table)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (images, boxes, classes), *_ = scenes.make((6, 1, 1), 64)
    frames, hard = [Frame.around((64, 64), (64, 64))] * 6, [np.zeros(len(c), bool) for c in classes]
    split = BoxSplit.of(boxes, classes, hard, frames, images)
    data = BoxData("scenes", scenes.CLASSES, split, split, split, None)
    monkeypatch.setattr(ssd.Config, "load_data", lambda self: data)
    config = ssd.Config(backbone="resnet18", weights="imagenet", freeze="conv2_block2_out")
    _, model = config._prepare(tmp_path)
    said = capsys.readouterr().out
    assert "Published by torchvision (resnet18) at https://download.pytorch.org" in said
    assert "resnet18 is the backbone of ssd_small. These start fresh: extra1_squeeze" in said
    network = config.body(model)
    kernel = theirs.layer2[0].conv1.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(network.get_layer("conv3_block1_1_conv").get_weights()[0], kernel)
    mean = network.get_layer("normalization").get_config()["mean"]
    assert list(mean) == list(weights.IMAGENET[0])


def test_files_of_this_collection_are_told_apart(tmp_path):
    body = recipes.build("vgg11_bn", (64, 64, 3), 7, alpha=0.25, normalization=(9.0, 200.0))
    body.save(tmp_path / "body.keras")
    ours, said = prepared(ssd.Config(), tmp_path / "body.keras")
    assert "vgg11_bn is the backbone of ssd_small" in said
    found, wanted = (m.get_layer("block3_conv2").get_weights()[0] for m in (ours, body))
    np.testing.assert_array_equal(found, wanted)
    assert ours.get_layer("normalization").get_config()["std"] == 200.0
    ours.save(tmp_path / "detector.keras")
    again, said = prepared(ssd.Config(), tmp_path / "detector.keras")
    assert "backbone" not in said and "fresh" not in said
    for a, b in zip(ours.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("entry", DETECTORS, ids=[entry.name for entry in DETECTORS])
def test_options_of_a_backbone_are_none_of_the_detectors(entry):
    """`adopt` would set the detector's field otherwise."""
    fields = {field.name for field in dataclasses.fields(entry.load().Config)}
    for body in registry.recipes().values():
        if body.task == "classification":
            for collection in getattr(body.load(), "WEIGHTS", {}).values():
                assert not fields & set(collection.options)


@pytest.mark.parametrize("layout", ["torch", "keras"])
def test_hidden_layers_of_vgg_are_taken_whole_or_thinned(layout):
    random = np.random.default_rng(0)
    fc1, fc2 = random.normal(size=(8, 5, 7, 7)), random.normal(size=(8, 8))  # outputs, inputs, y, x
    biases = random.normal(size=(2, 8))
    arrays = {
        "torch": [fc1.reshape(8, -1), fc2],
        "keras": [fc1.transpose(2, 3, 1, 0).reshape(-1, 8), fc2.T],
    }[layout]
    names = ("classifier.0", "classifier.3") if layout == "torch" else ("fc1", "fc2")
    rules = ((r"classifier\.0", "fc1"), (r"classifier\.3", "fc2"))
    found = {n: {"bias": b, "weight": w} for n, w, b in zip(names, arrays, biases, strict=True)}
    source = Source("a", Tensors(layout, found), "theirs", Collection(rules))
    conv = [keras.layers.Conv2D(2, 3, name="fc6"), keras.layers.Conv2D(2, 1, name="fc7")]
    conv[0].build((None, 3, 3, 5))
    conv[1].build((None, 1, 1, 2))
    values = backbones.hidden_layers(conv, source)
    np.testing.assert_array_equal(values["fc6"][0], fc1[::4, :, ::3, ::3].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(values["fc7"][0][0, 0], fc2[::4, ::4].T)
    np.testing.assert_array_equal(values["fc7"][1], biases[1, ::4])
    dense = [keras.layers.Dense(8, name="fc6"), keras.layers.Dense(9, name="fc7")]
    dense[0].build((None, 245))
    dense[1].build((None, 8))
    values = backbones.hidden_layers(dense, source)
    assert set(values) == {"fc6"}  # the other has nine neurons
    x = random.normal(size=(5, 7, 7))
    answers = x.transpose(1, 2, 0).ravel() @ values["fc6"][0]
    np.testing.assert_allclose(answers, np.einsum("oiyx,iyx->o", fc1, x))


@pytest.mark.full
def test_ssd300_and_faster_rcnn_on_torchvisions_vgg16(tmp_path):
    theirs = parity.torchvision_models().vgg16(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    whole = theirs.classifier[0].weight.detach().numpy().reshape(4096, 512, 7, 7)
    ours, said = prepared(ssd.Config(model="ssd300_vgg16"), tmp_path / "a.pth", 300)
    assert "whose fc6 and fc7 come from its fully connected layers" in said
    kernel = ours.get_layer("fc6").get_weights()[0]
    np.testing.assert_array_equal(kernel, whole[::4, :, ::3, ::3].transpose(2, 3, 1, 0))
    kernel = theirs.features[28].weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(ours.get_layer("block5_conv3").get_weights()[0], kernel)
    ours, _ = prepared(faster_rcnn.Config(model="faster_rcnn_vgg16"), tmp_path / "a.pth", 224)
    kernel = ours.get_layer("fc6").get_weights()[0].reshape(7, 7, 512, 4096)
    np.testing.assert_array_equal(kernel, whole.transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    "config, message",
    [
        (ssd.Config(), "vgg11_bn at its full width, and ssd_small has it at alpha 0.25: add"),
        (yolo.Config(model="yolov3"), "yolov3 has a body of its own.*--backbone"),
        (ssd.Config(backbone="mobilenet_v1"), "No weights are published for mobilenet_v1"),
    ],
)
def test_what_is_not_published(config, message, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    config.weights, config.output = "imagenet", tmp_path / "run"
    with pytest.raises(InputError, match=message):
        config.run()
    assert not list(tmp_path.iterdir())


def test_another_networks_file_changes_nothing(tmp_path):
    theirs = parity.torchvision_models().resnet34(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    config = ssd.Config(backbone="resnet18", weights=str(tmp_path / "a.pth"))
    source = weights.read(config.weights, *config.published())
    model = config.network((64, 64, 3), 3, None)
    before = [np.array(value) for value in model.weights]
    with pytest.raises(InputError, match=r"does not fit resnet18: layer1\.2\.conv1: in the file"):
        config.load(model, source)
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
