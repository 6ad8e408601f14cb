"""Pre-activation ResNet beside keras.applications' and pytorchcv's."""

import keras
import parity
import pytest
import torch

from tiffin import recipes
from tiffin.recipes.engine.summary import trainable

PYTORCHCV = "pytorchcv, the count asserted in preresnet.py for preresnet*"
PYTORCHCV_CIFAR = "pytorchcv, the count asserted in preresnet_cifar.py for preresnet*_cifar10"
PUBLISHED = {
    "preact_resnet18": (11_687_848, PYTORCHCV),
    "preact_resnet34": (21_796_008, PYTORCHCV),
    "preact_resnet50": (25_549_480, PYTORCHCV),
    "preact_resnet101": (44_541_608, PYTORCHCV),
    "preact_resnet152": (60_185_256, PYTORCHCV),
    "preact_resnet200": (64_666_280, PYTORCHCV),
    "preact_resnet110": (1_730_522, PYTORCHCV_CIFAR),
    "preact_resnet164": (1_703_258, PYTORCHCV_CIFAR),
    "preact_resnet1001": (10_327_706, PYTORCHCV_CIFAR + "; the paper's table 4: 10.2 M"),
}


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "preact_resnet18", "preact_resnet50"))
def test_counts(name):
    count, source = PUBLISHED[name]
    assert source
    parity.check_counts(name, count)


@pytest.mark.full
def test_the_papers_stem_is_normalised_once():
    twice, once = (
        trainable(recipes.build("preact_resnet50", (32, 32, 3), form=form))
        for form in ("pytorchcv", "paper")
    )
    assert twice == PUBLISHED["preact_resnet50"][0] == once + 2 * 64


@pytest.mark.parametrize(
    ("name", "size", "file"),
    [
        *parity.full(("preact_resnet50", 75, "a.keras"), ("preact_resnet50", 64, "a.h5")),
        *parity.full(*((f"preact_resnet{depth}", 224, "a.h5") for depth in (50, 101, 152))),
    ],
)
def test_keras_applications(name, size, file, tmp_path):
    theirs = getattr(keras.applications, f"ResNet{name.removeprefix('preact_resnet')}V2")(
        input_shape=(size, size, 3), weights=None, classifier_activation=None
    )
    parity.check_weights(name, theirs, tmp_path / file, size, form="keras")


@pytest.mark.parametrize(
    ("depth", "theirs", "size"),
    [
        (18, "preresnet18", 64),
        *parity.full((50, "preresnet50", 64), (110, "preresnet110_cifar10", 32)),
        *parity.full((164, "preresnet164bn_cifar10", 32), (1001, "preresnet1001_cifar10", 32)),
        *parity.full(*((depth, f"preresnet{depth}", 224) for depth in (18, 34, 50, 101, 152, 200))),
    ],
)
def test_pytorchcv(depth, theirs, size, tmp_path):
    model = parity.pytorchcv(theirs)
    model.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # theirs is of one size alone
    name = f"preact_resnet{depth}"
    # With random statistics a thousand layers leave float32's range.
    path, deep = tmp_path / "a.pth", depth == 1001
    parity.check_weights(name, model, path, size, settled=deep, double=deep, form="pytorchcv")


@pytest.mark.parametrize("form", ["paper", *parity.full(("pytorchcv",), ("keras",))])
def test_maps_are_activations(form):
    model = recipes.build("preact_resnet50", (65, 96, 3), form=form, features=True)
    assert {name: output.shape[1:] for name, output in model.output.items()} == {
        "stride_2": (33, 48, 64),
        "stride_4": (17, 24, 256),
        "stride_8": (9, 12, 512),
        "stride_16": (5, 6, 1024),
        "stride_32": (3, 3, 2048),
    }
    last = {"paper": "conv3_block1", "pytorchcv": "conv3_block1", "keras": "conv2_block3"}[form]
    assert model.output["stride_4"] is model.get_layer(f"{last}_preact_relu").output
    assert model.output["stride_32"] is model.get_layer("post_relu").output


@pytest.mark.full
def test_small_maps():
    model = recipes.build("preact_resnet110", (28, 28, 3), features=True)
    assert {name: output.shape[1:] for name, output in model.output.items()} == {
        "stride_1": (28, 28, 16),
        "stride_2": (14, 14, 32),
        "stride_4": (7, 7, 64),
    }


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("preact_resnet50", {"form": "slim"}, "form='slim'"),
        ("preact_resnet18", {"form": "keras"}, "has no form='keras'"),
        ("preact_resnet164", {"form": "keras"}, "has no form='keras'"),
        ("preact_resnet18", {"stride_in": "3x3"}, "no option 'stride_in'"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, (32, 32, 3), **options)
