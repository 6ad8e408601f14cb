"""BN-Inception beside TensorFlow slim's and pytorchcv's."""

import keras
import numpy as np
import parity
import pytest

from tiffin import recipes
from tiffin.recipes.classification import inception_v2

# nets/inception_v2_test.py counts all variables of the network without its last layer, and has no
# gamma; its first convolution was left out of the scope that adds batch normalisation, and has 64
# biases instead of 64 offsets, means and variances.
SLIM = 10_173_112
PUBLISHED = {
    "inception_v2": (11_188_288, "slim's, with gamma and a last layer: see SLIM"),
    "bninception": (11_295_240, "pytorchcv's own test, and Cadene's"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts(name):
    parity.check_counts(name, PUBLISHED[name][0])


def test_the_papers_form_has_the_count_of_tensorflow_slim():
    model = recipes.build("inception_v2", include_top=False)
    bn = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    gammas = sum(layer.gamma.shape[0] for layer in bn)
    assert model.count_params() - gammas - 2 * 64 == SLIM


@pytest.mark.parametrize("ending", ["pth", pytest.param("safetensors", marks=pytest.mark.full)])
def test_pytorchcv(ending, tmp_path):
    # Its last pooling is 7x7 whatever the picture's size: no other size is possible.
    theirs = parity.pytorchcv("bninception")
    parity.check_weights("bninception", theirs, tmp_path / f"a.{ending}", 224)


def test_the_modules_are_the_papers():
    model = recipes.build("inception_v2")
    shapes = {
        name: model.get_layer(f"inception_{name}_output").output.shape[1:]
        for name, *_ in inception_v2.MODULES
    }
    # The end points of nets/inception_v2_test.py, which counts 3a as Mixed_3b and 3c as Mixed_4a.
    assert shapes == {
        "3a": (28, 28, 256),
        "3b": (28, 28, 320),
        "3c": (14, 14, 576),
        "4a": (14, 14, 576),
        "4b": (14, 14, 576),
        "4c": (14, 14, 576),
        "4d": (14, 14, 576),
        "4e": (7, 7, 1024),
        "5a": (7, 7, 1024),
        "5b": (7, 7, 1024),
    }
    depthwise = model.get_layer("conv1_depthwise")
    assert depthwise.depth_multiplier == 8 and depthwise.output.shape[1:] == (112, 112, 24)


@pytest.mark.full
def test_features():
    model = recipes.build("inception_v2", (64, 96, 3), features=True)
    assert {name: output.shape[1:] for name, output in model.output.items()} == {
        "stride_2": (32, 48, 64),
        "stride_4": (16, 24, 192),
        "stride_8": (8, 12, 320),
        "stride_16": (4, 6, 576),
        "stride_32": (2, 3, 1024),
    }


@pytest.mark.full
def test_the_smallest_picture():
    for least, stride in ((7, 2), (4, 1)):
        options = {"alpha": 0.25, "stem_stride": stride}
        model = recipes.build("inception_v2", (least, least, 3), 10, **options)
        assert model(np.zeros((1, least, least, 3), "float32")).shape == (1, 10)
        with pytest.raises(ValueError, match=f"at least {least} x {least} pixels"):
            recipes.build("inception_v2", (least, least - 1, 3), **options)


@pytest.mark.full
def test_small_pictures_keep_the_stems_resolution():
    config = inception_v2.Config(alpha=0.25)
    shapes = {
        size: config.build((size, size, 3), 10, None).get_layer("inception_3a_output").output.shape
        for size in (32, 64)
    }
    assert [shape[1] for shape in shapes.values()] == [8, 8]


@pytest.mark.parametrize("option", [{"alpha": -1}, {"stem_stride": 4}, {"variant": "inception"}])
def test_wrong_options(option):
    (value,) = option
    with pytest.raises(ValueError, match=value):
        inception_v2.inception_v2(**option)
