"""MobileNet against published counts, keras.applications and pytorchcv."""

import keras
import numpy as np
import parity
import pytest

from tiffin import recipes
from tiffin.recipes.engine import summary

# Trainable parameters and multiply-adds in millions by alpha; the papers' table 6 rounds both.
PYTORCHCV = "pytorchcv 0.0.74, models/mobilenet.py, _test; Howard et al. 2017, table 6"
PUBLISHED = {
    1.0: (4_231_976, 569, PYTORCHCV),
    0.75: (2_585_560, 325, PYTORCHCV),
    0.5: (1_331_592, 149, PYTORCHCV),
    0.25: (470_072, 41, PYTORCHCV),
}
PYTORCHCV_NAMES = {1.0: "w1", 0.75: "w3d4", 0.5: "wd2", 0.25: "wd4"}
TORCH = {"padding": "symmetric", "activation": "relu"}


def test_published_count():
    parity.check_counts("mobilenet_v1", PUBLISHED[1.0][0])


@pytest.mark.parametrize("alpha", [0.25, *parity.full((0.5,), (0.75,), (1.0,))])
def test_published_widths(alpha):
    count, millions, source = PUBLISHED[alpha]
    model = recipes.build("mobilenet_v1", alpha=alpha)
    assert summary.trainable(model) == count, source
    macs = sum(row.macs for row in summary.rows(model))
    assert round(macs / 1e6) == millions, source


# Table 7: multiply-adds in millions of 1.0 MobileNet by resolution.
@pytest.mark.parametrize(("size", "millions"), [(128, 186), *parity.full((192, 418))])
def test_published_resolutions(size, millions):
    model = recipes.build("mobilenet_v1", (size, size, 3))
    assert abs(sum(row.macs for row in summary.rows(model)) / 1e6 - millions) < 1


@pytest.mark.parametrize(("alpha", "size"), [(0.25, 96), *parity.full((0.5, 64))])
def test_keras_applications(alpha, size, tmp_path):
    check_keras_applications(alpha, size, tmp_path / "theirs.h5")


@pytest.mark.full
@pytest.mark.parametrize("alpha", PUBLISHED)
@pytest.mark.parametrize("size", [128, 160, 192, 224])
def test_keras_applications_at_full_size(alpha, size, tmp_path):
    check_keras_applications(alpha, size, tmp_path / "theirs.keras")


def check_keras_applications(alpha, size, path):
    theirs = keras.applications.MobileNet(
        (size, size, 3), alpha, weights=None, classifier_activation=None
    )
    parity.check_weights("mobilenet_v1", theirs, path, size, alpha=alpha)


@pytest.mark.full
@pytest.mark.parametrize("alpha", PUBLISHED)
def test_pytorchcv(alpha, tmp_path):
    theirs = parity.pytorchcv(f"mobilenet_{PYTORCHCV_NAMES[alpha]}")
    parity.check_weights("mobilenet_v1", theirs, tmp_path / "theirs.pth", alpha=alpha, **TORCH)


def test_pytorchcv_of_quarter_width(tmp_path):
    theirs = parity.pytorchcv("mobilenet_wd4")
    path = tmp_path / "theirs.safetensors"
    parity.check_weights("mobilenet_v1", theirs, path, alpha=0.25, **TORCH)


def test_feature_maps():
    maps = recipes.build("mobilenet_v1", (64, 96, 3), alpha=0.5, features=True).output
    assert {name: tensor.shape[1:] for name, tensor in maps.items()} == {
        "stride_2": (32, 48, 32),
        "stride_4": (16, 24, 64),
        "stride_8": (8, 12, 128),
        "stride_16": (4, 6, 256),
        "stride_32": (2, 3, 512),
    }


@pytest.mark.full
def test_small_pictures_and_paddings():
    for padding in ("same", "symmetric"):
        for stride, size in ((2, 1), (1, 2)):
            options = {"include_top": False, "padding": padding, "stem_stride": stride}
            model = recipes.build("mobilenet_v1", (32, 32, 3), **options)
            assert model.output_shape == (None, size, size, 1024)
    assert recipes.build("mobilenet_v1", (8, 9, 3), alpha=0.1).get_layer("conv1").filters == 8


def test_activations_saturate_or_not():
    image = np.full((1, 32, 32, 3), 1e3, "float32")
    for activation, bounded in (("relu6", True), ("relu", False)):
        options = {"activation": activation, "include_top": False}
        model = recipes.build("mobilenet_v1", (32, 32, 3), alpha=0.25, **options)
        stem = keras.Model(model.input, model.get_layer("conv1_relu").output)
        assert (float(np.max(stem(image))) <= 6) == bounded


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0}, "alpha=0"),
        ({"padding": "valid"}, "padding='valid'"),
        ({"activation": "swish"}, "activation='swish'"),
        ({"stem_stride": 3}, "stem_stride=3"),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build("mobilenet_v1", (32, 32, 3), **options)
