"""Inception v4 and Inception-ResNet v2 beside pytorchcv's and keras.applications'."""

import re

import keras
import parity
import pytest
import torch

from tiffin import recipes
from tiffin.recipes.classification import inception_resnet_v2, inception_v4
from tiffin.recipes.engine.names import within
from tiffin.recipes.engine.weights import Collection, _layer_names

PUBLISHED = {
    "inception_v4": (42_679_816, "pytorchcv's inceptionv4, asserted at the end of its file"),
    "inception_resnet_v2": (55_843_464, "pytorchcv's inceptionresnetv2, likewise"),
}
PYTORCHCV = {"inception_v4": "inceptionv4", "inception_resnet_v2": "inceptionresnetv2"}


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "inception_v4"))
def test_counts(name):
    parity.check_counts(name, PUBLISHED[name][0])


@pytest.mark.full
def test_without_gamma_inception_resnet_v2_has_the_count_of_keras_applications():
    ours = recipes.build("inception_resnet_v2", (75, 75, 3), include_top=False, bn_scale=False)
    theirs = keras.applications.InceptionResNetV2(
        include_top=False, weights=None, input_shape=(75, 75, 3)
    )
    assert ours.count_params() == theirs.count_params() == 54_336_736


@pytest.mark.full
@pytest.mark.parametrize("name", PUBLISHED)
def test_pytorchcv(name, tmp_path):
    parity.check_weights(name, parity.pytorchcv(PYTORCHCV[name]), tmp_path / "a.pth")


@pytest.mark.parametrize("name", parity.full(("inception_v4",), ("inception_resnet_v2",)))
def test_pytorchcv_with_a_smaller_picture(name, tmp_path):
    theirs = parity.pytorchcv(PYTORCHCV[name])
    theirs.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # it is 8 x 8, made for 299 pixels
    parity.check_weights(name, theirs, tmp_path / "a.safetensors", 75)


@pytest.mark.full
@pytest.mark.parametrize("size", [75, 299])
@pytest.mark.parametrize("ending", ["h5", "keras", "weights.h5"])
def test_keras_applications(size, ending, tmp_path):
    theirs = keras.applications.InceptionResNetV2(
        input_shape=(size, size, 3), weights=None, classifier_activation=None
    )
    parity.check_weights("inception_resnet_v2", theirs, tmp_path / f"a.{ending}", size)


# Paths in timm 1.0's files, and what they are there.
TIMM = {
    "inception_v4": {
        "features.0.conv": "Conv2d_1a_3x3_conv",
        "features.3.conv.bn": "Mixed_3a_branch2_bn",
        "features.4.branch1.3.conv": "Mixed_4a_branch2_4_conv",
        "features.5.conv.conv": "Mixed_5a_branch1_conv",
        "features.9.branch3.1.bn": "Inception_A_4_branch4_bn",
        "features.10.branch0.conv": "Reduction_A_branch1_conv",
        "features.17.branch2.4.conv": "Inception_B_7_branch3_5_conv",
        "features.18.branch0.1.bn": "Reduction_B_branch1_2_bn",
        "features.19.branch1_0.conv": "Inception_C_1_branch2_1_conv",
        "features.20.branch1_1b.conv": "Inception_C_2_branch2_3x1_conv",
        "features.21.branch2_3a.bn": "Inception_C_3_branch3_1x3_bn",
        "last_linear": "logits",
    },
    "inception_resnet_v2": {
        "conv2d_2a.bn": "Conv2d_2a_3x3_bn",
        "conv2d_3b.conv": "Conv2d_3b_1x1_conv",
        "mixed_5b.branch3.1.conv": "Mixed_5b_branch4_conv",
        "repeat.9.branch2.2.bn": "block35_10_branch3_3_bn",
        "repeat.0.conv2d": "block35_1_conv",
        "mixed_6a.branch0.conv": "Mixed_6a_branch1_conv",
        "repeat_1.19.branch0.conv": "block17_20_branch1_conv",
        "mixed_7a.branch2.2.conv": "Mixed_7a_branch3_3_conv",
        "repeat_2.8.conv2d": "block8_9_conv",
        "block8.branch1.0.bn": "block8_10_branch2_1_bn",
        "block8.conv2d": "block8_10_conv",
        "conv2d_7b.conv": "Conv2d_7b_1x1_conv",
        "classif": "logits",
    },
}


@pytest.mark.full
@pytest.mark.parametrize("name", TIMM)
def test_names_of_timm(name):
    module = {"inception_v4": inception_v4, "inception_resnet_v2": inception_resnet_v2}[name]
    model = recipes.build(name, (75, 75, 3), 3)
    paths = list(TIMM[name])
    assert _layer_names(paths, module.WEIGHTS["timm"]) == list(TIMM[name].values())
    assert all(model.get_layer(layer).weights for layer in TIMM[name].values())


def test_rules_within_rules():
    rules = within(((r"a(\d)(\d)", "x{2}"),), ((r"b(\d)", "y{1+1}"), ("c", "z")))
    assert rules == ((r"a(\d)(\d)\.b(\d)", "x{2}_y{3+1}"), (r"a(\d)(\d)\.c", "x{2}_z"))
    assert _layer_names(["a12.b3", "a45.c", "d"], Collection(rules)) == ["x2_y4", "x5_z", None]


@pytest.mark.full
@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "inception_v4"))
def test_feature_maps(name):
    outputs = recipes.build(name, (299, 299, 3), features=True).output
    sizes = {2: 147, 4: 71, 8: 35, 16: 17, 32: 8}
    channels = {
        "inception_v4": (64, 192, 384, 1024, 1536),  # figure 9
        "inception_resnet_v2": (64, 192, 320, 1088, 1536),
    }
    shapes = zip(sizes.items(), channels[name])
    found = {key: x.shape[1:] for key, x in outputs.items()}
    assert found == {f"stride_{s}": (n, n, c) for (s, n), c in shapes}


@pytest.mark.full
def test_residuals_are_scaled_but_for_the_last():
    model = recipes.build("inception_resnet_v2", (75, 75, 3), 3, alpha=0.1)
    adds = [layer for layer in model.layers if re.fullmatch(r"block\d+_\d+_add", layer.name)]
    assert [layer.scale for layer in adds] == [0.17] * 10 + [0.1] * 20 + [0.2] * 9 + [1.0]
    activated = {layer.name for layer in model.layers if re.search(r"block.*\d_relu", layer.name)}
    assert "block8_9_relu" in activated and "block8_10_relu" not in activated


@pytest.mark.full
@pytest.mark.parametrize(
    "name, stride, least",
    [
        ("inception_v4", 8, 75),
        *parity.full(
            ("inception_v4", 4, 39), ("inception_v4", 2, 23), ("inception_resnet_v2", 2, 23)
        ),
    ],
)
def test_smallest_pictures(name, stride, least):
    options = {"stem_stride": stride, "alpha": 0.1, "classes": 3}
    model = recipes.build(name, (least, least, 3), features=True, **options)
    assert model.output[f"stride_{4 * stride}"].shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=f"{least} pixels"):
        recipes.build(name, (200, least - 1, 3), **options)


@pytest.mark.parametrize("options", [{"alpha": -1}, {"stem_stride": 1}])
@pytest.mark.parametrize("name", PUBLISHED)
def test_wrong_options(name, options):
    with pytest.raises(ValueError, match="must be"):
        recipes.build(name, (75, 75, 3), **options)
