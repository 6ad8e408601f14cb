"""SqueezeNet beside torchvision and pytorchcv; its counts beside the paper's."""

import keras
import numpy as np
import parity
import pytest

from tiffin import recipes
from tiffin.recipes.engine import summary

TORCHVISION = "torchvision.models, SqueezeNet1_*_Weights.IMAGENET1K_V1.meta['num_params']"
PUBLISHED = {
    "squeezenet1_0": (1_248_424, f"Iandola et al. 2016, table 1, total; {TORCHVISION}"),
    "squeezenet1_0_bypass": (1_248_424, "pytorchcv, squeezeresnet_v1_0"),
    "squeezenet1_0_complex_bypass": (1_589_672, "figure 2: the 1x1 convolutions added below"),
    "squeezenet1_1": (1_235_496, TORCHVISION),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    count, source = PUBLISHED[name]
    assert parity.check_counts(name, count), source


def test_complex_bypass_adds_a_1x1_convolution_where_channels_change():
    """Figure 2. Table 3 has 7.7 MB, 1.6 more than these weights take; it does not say of what."""
    added = sum(
        inside * out + out for inside, out in ((96, 128), (128, 256), (256, 384), (384, 512))
    )
    counts = {name: count for name, (count, _) in PUBLISHED.items()}
    assert counts["squeezenet1_0_complex_bypass"] == counts["squeezenet1_0"] + added
    model = recipes.build("squeezenet1_0_complex_bypass", (32, 32, 3))
    names = [layer.name for layer in model.layers]
    assert [n for n in names if n.endswith("_bypass")] == [f"fire{n}_bypass" for n in (2, 4, 6, 8)]
    assert sum(n.endswith("_add") for n in names) == 8
    model = recipes.build("squeezenet1_0_bypass", (32, 32, 3))
    names = [layer.name for layer in model.layers if layer.name.endswith("_add")]
    assert names == [f"fire{n}_add" for n in (3, 5, 7, 9)]


@pytest.mark.parametrize("size", [75, 86, *parity.full((64,), (97,))])
@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_squeezenet_is_torchvisions(name, size, tmp_path):
    """At sizes that leave odd and even maps before every pooling."""
    theirs = getattr(parity.torchvision_models(), name)(weights=None)
    parity.check_weights(name, theirs, tmp_path / "theirs.pth", size)


@pytest.mark.parametrize(("size", "name"), [(21, "squeezenet1_0"), (17, "squeezenet1_1")])
def test_smallest_pictures_are_torchvisions(size, name, tmp_path):
    models = parity.torchvision_models()
    weights = getattr(models, name.replace("squeezenet", "SqueezeNet") + "_Weights")
    assert weights.IMAGENET1K_V1.meta["min_size"] == (size, size)
    theirs = getattr(models, name)(weights=None)
    parity.check_weights(name, theirs, tmp_path / "theirs.safetensors", size)
    with pytest.raises(ValueError, match=f"at least {size} x {size} pixels"):
        recipes.build(name, (size, size - 1, 3))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("squeezenet1_0", "squeezenet_v1_0"),
        ("squeezenet1_1", "squeezenet_v1_1"),
        ("squeezenet1_0_bypass", "squeezeresnet_v1_0"),
    ],
)
def test_full_size_squeezenet_is_pytorchcvs(name, theirs, tmp_path):
    parity.check_weights(name, parity.pytorchcv(theirs), tmp_path / "theirs.pth")


def test_bypass_is_pytorchcvs(tmp_path):
    theirs = parity.pytorchcv("squeezeresnet_v1_0")
    theirs.output.final_pool.kernel_size = 1  # made for a map of 13 pixels, here there is one
    parity.check_weights("squeezenet1_0_bypass", theirs, tmp_path / "theirs.pth", 32)


def test_scores_are_means_behind_a_relu():
    model = recipes.build("squeezenet1_1", (32, 32, 3), 7)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    maps = keras.Model(model.input, model.get_layer("conv10").output)(images)
    wanted = np.maximum(np.asarray(maps), 0).mean((1, 2))
    assert wanted.max() > 0
    np.testing.assert_allclose(np.asarray(model(images)), wanted, atol=1e-6)


def test_feature_maps():
    shapes = {
        "squeezenet1_0": {2: (109, 96), 4: (54, 256), 8: (27, 512), 16: (13, 512)},
        "squeezenet1_1": {2: (111, 64), 4: (55, 128), 8: (27, 256), 16: (13, 512)},
    }
    for name, wanted in shapes.items():
        model = recipes.build(name, (224, 224, 3), features=True)
        assert {key: tuple(map_.shape[1:]) for key, map_ in model.output.items()} == {
            f"stride_{stride}": (size, size, channels)
            for stride, (size, channels) in wanted.items()
        }


def test_without_top():
    for pooling, shape in ((None, (None, 13, 13, 512)), ("avg", (None, 512)), ("max", (None, 512))):
        model = recipes.build("squeezenet1_0", include_top=False, pooling=pooling)
        assert model.output_shape == shape
        assert summary.trainable(model) == PUBLISHED["squeezenet1_0"][0] - 513 * 1000
    assert recipes.build("squeezenet1_1", (None, None, 3), 5).output_shape == (None, 5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("squeezenet1_1", {"pooling": "mean"}, "pooling='mean'"),
        ("squeezenet1_1", {"stem_stride": 3}, "stem_stride=3"),
        (
            "squeezenet1_0",
            {"input_shape": (13, 13, 3), "stem_stride": 1},
            "at least 14 x 14 pixels",
        ),
        ("squeezenet1_2", {}, "did you mean 'squeezenet1_1'"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, **{"input_shape": (32, 32, 3), **options})
