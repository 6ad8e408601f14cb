"""GoogLeNet beside torchvision's, Caffe's and slim's."""

import keras
import numpy as np
import parity
import pytest
import torch
from torch.nn import functional as F

from tiffin import recipes
from tiffin.recipes.classification import googlenet
from tiffin.recipes.engine import summary

PUBLISHED = {
    "googlenet": (6_998_552, "Caffe's bvlc_googlenet as netscope counts it"),
    "googlenet_bn": (6_624_904, "torchvision's num_params"),
}
# With both heads: Caffe's train_val.prototxt; torchvision's GoogLeNet(aux_logits=True).
AUXILIARY = {"googlenet": 13_378_280, "googlenet_bn": 13_004_888}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts(name):
    parity.check_counts(name, PUBLISHED[name][0])
    model = recipes.build(name, auxiliary=True)
    assert summary.trainable(model) == AUXILIARY[name]
    assert set(model.output) == {"logits", "auxiliary_1", "auxiliary_2"}


def test_torchvisions_form_has_the_count_of_tensorflow_slim():
    model = recipes.build("googlenet_bn", include_top=False)
    bn = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    gammas = sum(layer.gamma.shape[0] for layer in bn)
    # nets/inception_v1_test.py: all model variables; its batch normalisation has no gamma.
    assert model.count_params() - gammas == 5_607_184


def theirs(**options):
    """Return torchvision's network with random weights."""
    models = parity.torchvision_models()
    return models.googlenet(weights=None, init_weights=False, **options).eval()


@pytest.mark.parametrize("size", [95, *parity.full((64,), (224,))])
def test_torchvision(size, tmp_path):
    parity.check_weights("googlenet_bn", theirs(aux_logits=False), tmp_path / "a.pth", size)


@pytest.mark.parametrize("size", [48, pytest.param(224, marks=pytest.mark.full)])
def test_torchvisions_auxiliary_heads(size, tmp_path):
    model = theirs(aux_logits=True)
    parity.randomise(model)
    parity.save(model, tmp_path / "a.safetensors")
    ours = recipes.build("googlenet_bn", (size, size, 3), auxiliary=True)
    recipes.load_weights(ours, tmp_path / "a.safetensors")
    images = np.random.default_rng(2).normal(size=(2, size, size, 3)).astype("float32")
    model.training = True  # of the network alone: its layers still infer
    with torch.no_grad():
        logits, second, first = model._forward(torch.from_numpy(images).permute(0, 3, 1, 2))
    wanted = {"logits": logits, "auxiliary_1": first, "auxiliary_2": second}
    for name, output in ours(images, training=False).items():
        parity.agree(np.asarray(output), wanted[name].numpy())


@pytest.mark.full
def test_torchvisions_heads_are_left_out(tmp_path):
    model = theirs(aux_logits=True)
    parity.check_weights("googlenet_bn", model, tmp_path / "a.pth", 48)


# Caffe's models/bvlc_googlenet/train_val.prototxt: layers in order, and what each works on.
CAFFE = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def caffe(model: keras.Model, images: np.ndarray) -> dict[str, torch.Tensor]:
    """Run Caffe's network by torch's functions, with the weights of `model`."""

    def weights(name):
        kernel, bias = (torch.from_numpy(w) for w in model.get_layer(name).get_weights())
        return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T, bias

    def conv(x, name, padding=0, stride=1):
        return F.relu(F.conv2d(x, *weights(f"{name}_conv"), stride=stride, padding=padding))

    def pool(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    def norm(x):
        return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def head(x, name):
        x = conv(F.avg_pool2d(x, 5, 3), name)
        x = x.permute(0, 2, 3, 1).flatten(1)
        return F.linear(F.relu(F.linear(x, *weights(f"{name}_fc"))), *weights(f"{name}_logits"))

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    x = norm(pool(conv(x, "conv1", 3, 2)))
    x = pool(norm(conv(conv(x, "conv2_reduce"), "conv2", 1)))
    outputs = {}
    for name, filters in CAFFE.items():
        prefix = f"inception_{name}"
        branches = [
            conv(x, f"{prefix}_1x1"),
            conv(conv(x, f"{prefix}_3x3_reduce"), f"{prefix}_3x3", 1),
            conv(conv(x, f"{prefix}_5x5_reduce"), f"{prefix}_5x5", 2),
            conv(F.max_pool2d(x, 3, 1, 1), f"{prefix}_pool_proj"),
        ]
        assert [b.shape[1] for b in branches] == [filters[i] for i in (0, 2, 4, 5)]
        x = torch.cat(branches, 1)
        if name in ("3b", "4e"):
            x = pool(x)
        if name in ("4a", "4d") and x.shape[2:] == (14, 14):
            outputs[f"auxiliary_{len(outputs) + 1}"] = head(x, f"auxiliary_{len(outputs) + 1}")
    outputs["logits"] = F.linear(x.mean((2, 3)), *weights("logits"))
    return outputs


@pytest.mark.parametrize("size", [75, *parity.full((64,), (224,))])
def test_the_papers_form_is_caffes(size):
    model = recipes.build("googlenet", (size, size, 3), 10, auxiliary=size == 224)
    parity.randomise(model)
    images = np.random.default_rng(2).normal(size=(2, size, size, 3)).astype("float32")
    ours = model(images, training=False)
    for name, wanted in caffe(model, images).items():
        parity.agree(np.asarray(ours[name] if size == 224 else ours), wanted.numpy())


def test_features():
    model = recipes.build("googlenet", features=True)
    assert {name: output.shape[1:] for name, output in model.output.items()} == {
        "stride_2": (112, 112, 64),
        "stride_4": (56, 56, 192),
        "stride_8": (28, 28, 480),
        "stride_16": (14, 14, 832),
        "stride_32": (7, 7, 1024),
    }


@pytest.mark.full
@pytest.mark.parametrize(("name", "least"), [("googlenet", 31), ("googlenet_bn", 15)])
def test_the_smallest_picture(name, least):
    model = recipes.build(name, (least, least, 3), 10, alpha=0.25, auxiliary=True)
    outputs = model(np.zeros((1, least, least, 3), "float32"), training=False)
    assert all(output.shape == (1, 10) for output in outputs.values())
    half = least // 2 + 1
    recipes.build(name, (half, half, 3), 10, alpha=0.25, stem_stride=1)
    with pytest.raises(
        ValueError, match=f"at least {least} x {least} pixels, not 64 x {least - 1}"
    ):
        recipes.build(name, (64, least - 1, 3))


@pytest.mark.full
def test_small_pictures_keep_the_stems_resolution():
    config = googlenet.Config(model="googlenet_bn", alpha=0.25)
    shapes = {}
    for size in (32, 64):
        model = config.build((size, size, 3), 10, None)
        assert set(model.output) == {"logits", "auxiliary_1", "auxiliary_2"}
        shapes[size] = model.get_layer("inception_3a_output").output.shape[1]
    assert shapes == {32: 8, 64: 8}


@pytest.mark.full
def test_heads_go_without_the_top_and_the_third_branch_can_be_mended():
    model = recipes.build("googlenet_bn", (32, 32, 3), auxiliary=True, include_top=False)
    assert model.output.shape[-1] == 1024
    model = recipes.build("googlenet_bn", (32, 32, 3), third="5x5")
    assert model.get_layer("inception_5b_5x5_conv").kernel_size == (5, 5)


@pytest.mark.parametrize(
    "option", [{"alpha": 0}, {"third": "7x7"}, {"stem_stride": 4}, {"variant": "inception"}]
)
def test_wrong_options(option):
    (value,) = option
    with pytest.raises(ValueError, match=value):
        googlenet.googlenet(**option)
