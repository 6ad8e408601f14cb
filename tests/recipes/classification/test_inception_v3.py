"""Inception v3 beside torchvision's, keras.applications' and pytorchcv's."""

import keras
import numpy as np
import parity
import pytest
import torch

from tiffin import recipes
from tiffin.layers import SMALLEST_WITH_AUXILIARY, largest_stem_stride
from tiffin.layers.factorized_inception import SMALLEST_PICTURE
from tiffin.recipes.classification import inception_v3
from tiffin.recipes.engine import summary

PUBLISHED = {
    "inception_v3": (23_834_568, "pytorchcv's inceptionv3, asserted at the end of its file")
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts(name):
    parity.check_counts(name, PUBLISHED[name][0])


@pytest.mark.full
def test_the_other_published_counts():
    model = recipes.build("inception_v3", (299, 299, 3), auxiliary=True)
    weights = parity.torchvision_models().Inception_V3_Weights.IMAGENET1K_V1
    assert summary.trainable(model) == weights.meta["num_params"] == 27_161_264
    assert set(model.output) == {"logits", "auxiliary"}
    plain = recipes.build("inception_v3", (75, 75, 3), include_top=False, bn_scale=False)
    # nets/inception_v3_test.py of TensorFlow-slim, and keras.applications' without top.
    assert plain.count_params() == 21_802_784


def test_multiply_accumulates_are_torchvisions():
    weights = parity.torchvision_models().Inception_V3_Weights.IMAGENET1K_V1
    macs = inception_v3.VARIANTS["inception_v3"][3]
    assert abs(macs / 1e9 - weights.meta["_ops"]) < 0.001


def torchvision(**options):
    """Return torchvision's network, whose initialisation takes minutes unless it is left out."""
    return parity.torchvision_models().inception_v3(weights=None, init_weights=False, **options)


@pytest.mark.parametrize("size", [75, *parity.full((299,))])
def test_torchvision(size, tmp_path):
    theirs = torchvision(aux_logits=False)
    path = tmp_path / "a.safetensors"
    parity.check_weights("inception_v3", theirs, path, size, count_zeros=True)


@pytest.mark.full
def test_published_file_takes_pixels_from_minus_1_to_1(tmp_path):
    models = parity.torchvision_models()
    transform = models.Inception_V3_Weights.IMAGENET1K_V1.transforms()
    theirs = torchvision(aux_logits=True, transform_input=True).eval()
    parity.randomise(theirs)
    parity.save(theirs, tmp_path / "a.pth")
    collection = inception_v3.WEIGHTS["torchvision"]
    ours = recipes.build(
        "inception_v3",
        (75, 75, 3),
        normalization=collection.normalization,
        **collection.options,
    )
    said = " ".join(recipes.load_weights(ours, tmp_path / "a.pth"))
    assert "AuxLogits.fc" in said  # left out, and said
    pixels = np.random.default_rng(3).integers(0, 256, (2, 75, 75, 3)).astype("float32")
    mean, std = (255 * np.array(values) for values in (transform.mean, transform.std))
    wanted = parity.answer(theirs, ((pixels - mean) / std).astype("float32"))
    parity.agree(np.asarray(ours(pixels, training=False)), wanted)


@pytest.mark.full
def test_torchvisions_auxiliary_head(tmp_path):
    theirs = torchvision(aux_logits=True)
    parity.randomise(theirs)
    parity.save(theirs, tmp_path / "a.pth")
    ours = recipes.build("inception_v3", (299, 299, 3), auxiliary=True, count_zeros=True)
    recipes.load_weights(ours, tmp_path / "a.pth")
    images = np.random.default_rng(2).normal(size=(1, 299, 299, 3)).astype("float32")
    theirs.eval()
    theirs.training = True  # of the network alone: its layers still infer
    with torch.no_grad():
        pictures = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        logits, auxiliary = theirs._forward(pictures)
    outputs = ours(images, training=False)
    parity.agree(np.asarray(outputs["logits"]), logits.numpy())
    parity.agree(np.asarray(outputs["auxiliary"]), auxiliary.numpy())


@pytest.mark.full
@pytest.mark.parametrize("size", [75, 299])
@pytest.mark.parametrize("ending", ["h5", "keras", "weights.h5"])
def test_keras_applications(size, ending, tmp_path):
    theirs = keras.applications.InceptionV3(
        input_shape=(size, size, 3), weights=None, classifier_activation=None
    )
    parity.check_weights("inception_v3", theirs, tmp_path / f"a.{ending}", size)


@pytest.mark.full
def test_pytorchcv(tmp_path):
    theirs = parity.pytorchcv("inceptionv3")
    parity.check_weights("inception_v3", theirs, tmp_path / "a.pth", count_zeros=True)


@pytest.mark.full
def test_pytorchcv_with_a_smaller_picture(tmp_path):
    theirs = parity.pytorchcv("inceptionv3")
    theirs.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # it is 8 x 8, made for 299 pixels
    parity.check_weights("inception_v3", theirs, tmp_path / "a.pth", 75, count_zeros=True)


@pytest.mark.full
def test_feature_maps():
    model = recipes.build("inception_v3", (299, 299, 3), features=True)
    assert {name: map.shape[1:] for name, map in model.output.items()} == {
        "stride_2": (147, 147, 64),
        "stride_4": (71, 71, 192),
        "stride_8": (35, 35, 288),
        "stride_16": (17, 17, 768),
        "stride_32": (8, 8, 2048),
    }


@pytest.mark.full
@pytest.mark.parametrize("stride", [8, 4, 2])
def test_smallest_pictures(stride):
    least, with_head = SMALLEST_PICTURE[stride], SMALLEST_WITH_AUXILIARY[stride]
    options = {"stem_stride": stride, "alpha": 0.1, "classes": 3}
    model = recipes.build("inception_v3", (least, least + 9, 3), features=True, **options)
    assert model.output[f"stride_{4 * stride}"].shape[1] == 1
    with pytest.raises(ValueError, match=f"{least} pixels"):
        recipes.build("inception_v3", (200, least - 1, 3), **options)
    model = recipes.build("inception_v3", (with_head, with_head, 3), auxiliary=True, **options)
    assert model.output["auxiliary"].shape == (None, 3)
    with pytest.raises(ValueError, match=f"{with_head} pixels"):
        recipes.build("inception_v3", (with_head - 1, 200, 3), auxiliary=True, **options)


@pytest.mark.parametrize(
    "size, stride, auxiliary",
    [(28, 2, False), (32, 2, True), (39, 4, False), (64, 4, True), (75, 8, False), (299, 8, True)],
)
def test_training_adapts_to_the_picture(size, stride, auxiliary, monkeypatch):
    given = {}
    config = inception_v3.Config()
    monkeypatch.setattr(inception_v3.Config, "builder", staticmethod(given.update))
    monkeypatch.setattr("tiffin.recipes.engine.registry.options_of", lambda builder: ["alpha"])
    config.build((size, size, 3), 10, None)
    assert given["auxiliary"] == auxiliary and largest_stem_stride((size, size)) == stride


@pytest.mark.full
def test_width():
    model = recipes.build("inception_v3", (75, 75, 3), 10, alpha=0.25)
    assert model.get_layer("Conv2d_1a_3x3_conv").filters == 16  # never fewer
    assert model.get_layer("Conv2d_4a_3x3_conv").filters == 48
    assert model.get_layer("Mixed_7c").output.shape[-1] == 512


@pytest.mark.parametrize("options", [{"alpha": 0}, {"stem_stride": 3}, {"stem_stride": 16}])
def test_wrong_options(options):
    with pytest.raises(ValueError, match="must be"):
        recipes.build("inception_v3", (75, 75, 3), **options)
