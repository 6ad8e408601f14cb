"""VGG beside keras.applications', torchvision's and pytorchcv's."""

import keras
import parity
import pytest
import torch

from tiffin import recipes
from tiffin.recipes.classification.vgg import WEIGHTS, Config
from tiffin.recipes.engine import summary

TORCHVISION = "torchvision.models, VGG*_Weights.IMAGENET1K_V1.meta['num_params']"
PUBLISHED = {
    "vgg11": (132_863_336, TORCHVISION),
    "vgg13": (133_047_848, TORCHVISION),
    "vgg16": (138_357_544, TORCHVISION + "; keras.applications"),
    "vgg19": (143_667_240, TORCHVISION + "; keras.applications"),
    "vgg11_bn": (132_868_840, TORCHVISION),
    "vgg13_bn": (133_053_736, TORCHVISION),
    "vgg16_bn": (138_365_992, TORCHVISION),
    "vgg19_bn": (143_678_248, TORCHVISION),
}
# Table 2 of the paper, in millions.
PAPER_MILLIONS = {"vgg11": 133, "vgg13": 133, "vgg16": 138, "vgg19": 144}
# pytorchcv/models/vgg.py: its plain bn_vgg11 and others have no bias.
WITHOUT_BIAS = {"vgg11_bn": 132_866_088, "vgg13_bn": 133_050_792}
WITHOUT_BIAS |= {"vgg16_bn": 138_361_768, "vgg19_bn": 143_672_744}
full = pytest.mark.full


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "vgg16"))
def test_counts(name):
    count, source = PUBLISHED[name]
    model = parity.check_counts(name, count)
    assert source
    if name in PAPER_MILLIONS:
        assert round(count / 1e6) == PAPER_MILLIONS[name]
    else:
        biases = sum(x.filters for x in model.layers if isinstance(x, keras.layers.Conv2D))
        assert count - biases == WITHOUT_BIAS[name]


def test_convolutions_before_batch_normalisation_need_no_bias():
    counts = [
        summary.trainable(recipes.build("vgg13_bn", (32, 32, 3), hidden=8, use_bias=use_bias))
        for use_bias in (True, False)
    ]
    assert counts[0] - counts[1] == PUBLISHED["vgg13_bn"][0] - WITHOUT_BIAS["vgg13_bn"]
    plain = recipes.build("vgg11", (32, 32, 3), hidden=8, use_bias=False)
    assert all(x.use_bias for x in plain.layers if isinstance(x, keras.layers.Conv2D))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param("vgg16", "a.weights.h5", marks=full),
        pytest.param("vgg16", "a.h5", marks=full),
        pytest.param("vgg19", "a.h5", marks=full),
        pytest.param("vgg19", "a.keras", marks=full),
    ],
)
def test_keras_applications(name, file, tmp_path):
    """Their first convolution takes blue, green, red."""
    theirs = getattr(keras.applications, name.upper())(
        input_shape=(64, 64, 3), classes=10, weights=None, classifier_activation=None
    )
    parity.randomise(theirs)
    parity.save(theirs, tmp_path / file)
    images = keras.ops.convert_to_numpy(keras.random.normal((2, 64, 64, 3), seed=2))
    ours = recipes.build(name, (64, 64, 3), 10)
    recipes.load_weights(ours, tmp_path / file)
    ours = keras.ops.convert_to_numpy(ours(images))
    parity.agree(ours, parity.answer(theirs, images[..., ::-1].copy()))


@pytest.mark.full
@pytest.mark.parametrize("name", ["vgg11_bn", "vgg13"])
def test_torchvision(name, tmp_path):
    theirs = getattr(parity.torchvision_models(), name)(weights=None)
    theirs.avgpool = torch.nn.Identity()
    theirs.classifier[0] = torch.nn.Linear(2 * 2 * 512, 4096)
    parity.check_weights(name, theirs, tmp_path / "a.safetensors", 64)


@full
@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvision_at_full_size(name, tmp_path):
    theirs = getattr(parity.torchvision_models(), name)(weights=None)
    parity.check_weights(name, theirs, tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("theirs", "use_bias"), parity.full(("bn_vgg11b", True), ("bn_vgg11", False))
)
def test_pytorchcv(theirs, use_bias, tmp_path):
    model = parity.pytorchcv(theirs)
    model.output.fc1.fc = torch.nn.Linear(2 * 2 * 512, 4096)
    parity.check_weights("vgg11_bn", model, tmp_path / "a.pth", 64, use_bias=use_bias)


@full
@pytest.mark.parametrize(
    ("name", "theirs", "use_bias"),
    [
        *((f"vgg{depth}", f"vgg{depth}", True) for depth in (11, 13, 16, 19)),
        *((f"vgg{depth}_bn", f"bn_vgg{depth}", False) for depth in (11, 13, 16, 19)),
        ("vgg11_bn", "bn_vgg11", True),
        ("vgg11_bn", "bn_vgg11b", True),
        ("vgg11_bn", "bn_vgg11b", False),
    ],
)
def test_pytorchcv_at_full_size(name, theirs, use_bias, tmp_path):
    parity.check_weights(name, parity.pytorchcv(theirs), tmp_path / "a.pth", use_bias=use_bias)


@pytest.mark.full
@pytest.mark.parametrize(
    ("library", "ends"),
    [
        ("torchvision", ("classifier.0", "classifier.3", "classifier.6")),
        ("timm", ("pre_logits.fc1", "pre_logits.fc2", "head.fc")),
    ],
)
@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "vgg16_bn"))
def test_numbered_layers_are_named(name, library, ends):
    """Whatever their order in the file: safetensors sorts names as texts."""
    theirs = [
        path
        for path, module in getattr(parity.torchvision_models(), name)().named_modules()
        if path.startswith("features.") and next(module.parameters(), None) is not None
    ]
    names = WEIGHTS[library].names(sorted([*theirs, *ends]))
    model = recipes.build(name, (32, 32, 3), hidden=4)
    ours = [layer.name for layer in model.layers if layer.weights]
    assert [names[path] for path in [*theirs, *ends]] == ours


def test_maps():
    model = recipes.build("vgg16", (64, 96, 3), features=True)
    assert {name: x.shape[1:] for name, x in model.output.items()} == {
        "stride_1": (64, 96, 64),
        "stride_2": (32, 48, 128),
        "stride_4": (16, 24, 256),
        "stride_8": (8, 12, 512),
        "stride_16": (4, 6, 512),
        "stride_32": (2, 3, 512),
    }
    headless = recipes.build("vgg11_bn", (None, None, 3), include_top=False)
    assert headless.output_shape == (None, None, None, 512)
    pooled = recipes.build("vgg11", (None, None, 3), include_top=False, pooling="max")
    assert pooled.output_shape == (None, 512)


def test_small_pictures():
    model = Config(alpha=0.25).build((28, 28, 3), 10, None)
    assert model.get_layer("block5_pool").output.shape[1:] == (1, 1, 128)
    assert model.get_layer("fc2").units == 512
    model = Config(model="vgg11").build((32, 32, 3), 10, None)
    assert model.get_layer("block5_pool").output.shape[1:] == (1, 1, 512)
    model = Config(model="vgg11").build((64, 64, 3), 10, None)
    assert model.get_layer("block1_pool").padding == "valid"
    assert model.get_layer("fc1").units == 4096


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vgg11", {"alpha": 0}, "alpha=0"),
        ("vgg11", {"hidden": 0}, "hidden=0"),
        ("vgg11", {"pool_padding": "full"}, "pool_padding='full'"),
        ("vgg11", {"input_shape": (64, 31, 3)}, "at least 32 x 32 pixels, not 64 x 31"),
        ("vgg11", {"input_shape": (None, 64, 3)}, "include_top=False"),
        ("vgg16", {"pooling": "mean"}, "pooling='mean'"),
        ("vgg14", {}, "did you mean 'vgg1"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, **{"input_shape": (32, 32, 3), **options})
