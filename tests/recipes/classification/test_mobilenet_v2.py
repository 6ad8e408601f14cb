"""MobileNetV2 against published counts, keras.applications, torchvision and pytorchcv."""

import keras
import parity
import pytest

from tiffin import recipes
from tiffin.recipes.engine import summary

ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
# pytorchcv 0.0.74, models/mobilenetv2.py, _test; its logits have no bias. Not rounded to multiples
# of 8; without b, the first block has a convolution more.
PYTORCHCV = {
    "mobilenetv2_w1": (1.0, 3_504_960),
    "mobilenetv2_w3d4": (0.75, 2_627_592),
    "mobilenetv2_wd2": (0.5, 1_964_736),
    "mobilenetv2_wd4": (0.25, 1_516_392),
    "mobilenetv2b_w1": (1.0, 3_503_872),
    "mobilenetv2b_w3d4": (0.75, 2_626_968),
    "mobilenetv2b_wd2": (0.5, 1_964_448),
    "mobilenetv2b_wd4": (0.25, 1_516_312),
}


def test_published_count():
    # torchvision.models, MobileNet_V2_Weights.IMAGENET1K_V1.meta["num_params"]
    parity.check_counts("mobilenet_v2", 3_504_872)


@pytest.mark.parametrize("alpha", [0.35, *parity.full((0.5,), (0.75,), (1.0,), (1.3,), (1.4,))])
def test_widths_are_keras_applications(alpha):
    theirs = keras.applications.MobileNetV2((96, 96, 3), alpha, weights=None)
    ours = recipes.build("mobilenet_v2", (96, 96, 3), alpha=alpha)
    assert summary.trainable(ours) == summary.trainable(theirs)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]


def pytorchcv_options(name):
    first = not name.startswith("mobilenetv2b")
    alpha = PYTORCHCV[name][0]
    return {"alpha": alpha, "divisor": 1, "expand_first": first, "padding": "symmetric"}


@pytest.mark.parametrize(
    "name", ["mobilenetv2b_wd2", *parity.full(("mobilenetv2_w3d4",), ("mobilenetv2b_w1",))]
)
def test_widths_are_pytorchcvs(name):
    ours = recipes.build("mobilenet_v2", (32, 32, 3), **pytorchcv_options(name))
    assert summary.trainable(ours) - 1000 == PYTORCHCV[name][1]


def check_keras_applications(alpha, size, path):
    theirs = keras.applications.MobileNetV2(
        (size, size, 3), alpha, weights=None, classifier_activation=None
    )
    parity.check_weights("mobilenet_v2", theirs, path, size, alpha=alpha)


@pytest.mark.parametrize(("alpha", "size"), [(1.4, 75), *parity.full((0.35, 96))])
def test_keras_applications(alpha, size, tmp_path):
    check_keras_applications(alpha, size, tmp_path / "theirs.h5")


@pytest.mark.full
@pytest.mark.parametrize("alpha", ALPHAS)
def test_keras_applications_at_full_size(alpha, tmp_path):
    check_keras_applications(alpha, 224, tmp_path / "theirs.keras")


@pytest.mark.full
@pytest.mark.parametrize(("width", "size"), [(0.5, 75), (1.0, 64)])
def test_torchvision(width, size, tmp_path):
    theirs = parity.torchvision_models().mobilenet_v2(width_mult=width)
    options = {"alpha": width, "padding": "symmetric"}
    parity.check_weights("mobilenet_v2", theirs, tmp_path / "theirs.pth", size, **options)


@pytest.mark.full
def test_torchvision_at_full_size(tmp_path):
    theirs = parity.torchvision_models().mobilenet_v2()
    path = tmp_path / "theirs.safetensors"
    parity.check_weights("mobilenet_v2", theirs, path, padding="symmetric")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "mobilenetv2b_wd4" else pytest.mark.full)
        for name in PYTORCHCV
    ],
)
def test_pytorchcv(name, tmp_path):
    theirs, path = parity.pytorchcv(name), tmp_path / "theirs.pth"
    parity.check_weights("mobilenet_v2", theirs, path, **pytorchcv_options(name))


def test_feature_maps():
    maps = recipes.build("mobilenet_v2", (64, 96, 3), features=True).output
    assert {name: tensor.shape[1:] for name, tensor in maps.items()} == {
        "stride_2": (32, 48, 16),
        "stride_4": (16, 24, 24),
        "stride_8": (8, 12, 32),
        "stride_16": (4, 6, 96),
        "stride_32": (2, 3, 1280),
    }


@pytest.mark.full
def test_small_pictures_and_headless_forms():
    shapes = {
        (None, 2, "same"): (None, 1, 1, 1280),
        (None, 1, "symmetric"): (None, 2, 2, 1280),
        ("max", 2, "symmetric"): (None, 1280),
    }
    for (pooling, stride, padding), shape in shapes.items():
        options = {"pooling": pooling, "stem_stride": stride, "padding": padding}
        model = recipes.build("mobilenet_v2", (32, 32, 3), include_top=False, **options)
        assert model.output_shape == shape


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0}, "alpha=0"),
        ({"divisor": 0}, "divisor=0"),
        ({"padding": "valid"}, "padding='valid'"),
        ({"stem_stride": 3}, "stem_stride=3"),
        ({"pooling": "mean"}, "pooling='mean'"),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build("mobilenet_v2", (32, 32, 3), **options)
