"""DenseNet beside keras.applications, torchvision and pytorchcv; its counts beside the paper's."""

import keras
import numpy as np
import parity
import pytest

from tiffin import recipes
from tiffin.recipes.engine import summary

TORCHVISION = "torchvision.models, DenseNet*_Weights.IMAGENET1K_V1.meta['num_params']"
PYTORCHCV = "pytorchcv, models/densenet_cifar.py, and table 2 of the paper in millions"
# No library has this form: see test_plain_form_is_the_papers.
DERIVED = "table 2 of the paper in millions; to the unit by the channels of section 3"
PUBLISHED = {
    "densenet121": (7_978_856, TORCHVISION),
    "densenet169": (14_149_480, TORCHVISION),
    "densenet201": (20_013_928, TORCHVISION),
    "densenet264": (33_337_704, "lucid.models.densenet_264, documentation"),
    "densenet161": (28_681_000, TORCHVISION),
    "densenet40_k12": (1_019_722, "titu1994/DenseNet, and table 2 of the paper: 1.0M"),
    "densenet100_k12": (6_979_642, DERIVED),
    "densenet100_k24": (27_249_082, DERIVED),
    "densenet40_k12_bc": (176_122, "pytorchcv, models/densenet_cifar.py"),
    "densenet100_k12_bc": (769_162, PYTORCHCV),
    "densenet250_k24_bc": (15_324_406, PYTORCHCV),
    "densenet190_k40_bc": (25_624_430, PYTORCHCV),
}
MILLIONS = {  # table 2
    "densenet40_k12": 1.0,
    "densenet100_k12": 7.0,
    "densenet100_k24": 27.2,
    "densenet100_k12_bc": 0.8,
    "densenet250_k24_bc": 15.3,
    "densenet190_k40_bc": 25.6,
}


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "densenet121", "densenet40_k12_bc"))
def test_published_parameter_counts(name):
    count, source = PUBLISHED[name]
    assert parity.check_counts(name, count), source
    assert round(count / 1e6, 1) == MILLIONS.get(name, round(count / 1e6, 1))


def plain_count(depth, growth):
    """Count a DenseNet without bottleneck and compression, by the sentences of section 3."""
    channels, count = 16, 3 * 9 * 16
    for block in range(3):
        for _ in range((depth - 4) // 3):
            count += 2 * channels + 9 * channels * growth
            channels += growth
        if block < 2:
            count += 2 * channels + channels * channels
    return count + 2 * channels + 10 * channels + 10


@pytest.mark.parametrize(("depth", "growth"), [(40, 12), (100, 12), (100, 24)])
def test_plain_form_is_the_papers(depth, growth):
    assert plain_count(depth, growth) == PUBLISHED[f"densenet{depth}_k{growth}"][0]


@pytest.mark.parametrize(
    ("depth", "growth", "count"), parity.full((40, 12, 599_050), (100, 12, 4_068_490))
)
def test_pytorchcvs_plain_form_is_reachable(depth, growth, count):
    ours = recipes.build(f"densenet{depth}_k{growth}", (32, 32, 3), 10, compression=0.5)
    theirs = parity.pytorchcv(f"densenet{depth}_k{growth}_cifar10")
    assert summary.trainable(ours) == sum(p.numel() for p in theirs.parameters()) == count


def keras_applications(name):
    theirs = getattr(keras.applications, name.replace("densenet", "DenseNet"))
    return theirs(weights=None, classifier_activation=None)


@pytest.mark.parametrize("name", parity.full(*((f"densenet{depth}",) for depth in (121, 169, 201))))
@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_densenet_is_keras_applications(name, ending, tmp_path):
    parity.check_weights(name, keras_applications(name), tmp_path / f"theirs{ending}")


@pytest.mark.parametrize("size", [75, *parity.full((64,))])
def test_densenet121_is_torchvisions(size, tmp_path):
    theirs = parity.torchvision_models().densenet121(weights=None)
    parity.check_weights("densenet121", theirs, tmp_path / "theirs.pth", size)


@pytest.mark.parametrize(
    "name", parity.full(*((f"densenet{depth}",) for depth in (121, 161, 169, 201)))
)
def test_full_size_densenet_is_torchvisions(name, tmp_path):
    theirs = getattr(parity.torchvision_models(), name)(weights=None)
    parity.check_weights(name, theirs, tmp_path / "theirs.safetensors")


@pytest.mark.full
def test_old_names_of_the_published_files(tmp_path):
    """They were written when a layer could be called norm.1."""
    import torch

    theirs = parity.torchvision_models().densenet121(weights=None).eval()
    parity.randomise(theirs)
    old = {
        key.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1", "conv.1")
        .replace("conv2", "conv.2"): value
        for key, value in theirs.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "theirs.pth")
    ours = recipes.build("densenet121", (32, 32, 3))
    recipes.load_weights(ours, tmp_path / "theirs.pth")
    images = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype("float32")
    parity.agree(np.asarray(ours(images)), parity.answer(theirs, images))


@pytest.mark.parametrize(
    "name",
    [
        "densenet40_k12_bc",
        *parity.full(("densenet40_k12",), ("densenet100_k12",), ("densenet190_k40_bc",)),
    ],
)
def test_cifar_form_is_pytorchcvs(name, tmp_path):
    theirs = parity.pytorchcv(f"{name}_cifar10")
    parity.check_weights(name, theirs, tmp_path / "theirs.pth", compression=0.5)


@pytest.mark.full
def test_densenet121_is_pytorchcvs(tmp_path):
    parity.check_weights("densenet121", parity.pytorchcv("densenet121"), tmp_path / "theirs.pth")


@pytest.mark.full
def test_feature_maps_enter_the_transitions():
    model = recipes.build("densenet121", (64, 64, 3), features=True)
    assert {name: tuple(map_.shape[1:]) for name, map_ in model.output.items()} == {
        "stride_2": (32, 32, 64),
        "stride_4": (16, 16, 256),
        "stride_8": (8, 8, 512),
        "stride_16": (4, 4, 1024),
        "stride_32": (2, 2, 1024),
    }
    names = {k: t._keras_history.operation.name for k, t in model.output.items()}
    assert names["stride_16"] == "conv4_block24_concat" and names["stride_32"] == "relu"
    model = recipes.build("densenet100_k12_bc", (32, 32, 3), features=True)
    assert {name: tuple(map_.shape[1:]) for name, map_ in model.output.items()} == {
        "stride_1": (32, 32, 216),
        "stride_2": (16, 16, 300),
        "stride_4": (8, 8, 342),
    }


@pytest.mark.full
def test_dropout_follows_every_convolution_but_the_first():
    model = recipes.build("densenet100_k12_bc", (32, 32, 3), 10, drop_rate=0.2, dropout=0.5)
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    # L counts 99 convolutions and the classifier, before which the last rate stands.
    assert rates == [0.2] * 98 + [0.5]


@pytest.mark.full
def test_small_pictures():
    for name, size, options, left in (
        ("densenet121", 29, {}, 1),
        ("densenet121", 15, {"stem_stride": 1}, 1),
        ("densenet40_k12", 28, {}, 7),
        ("densenet40_k12", 4, {}, 1),
    ):
        model = recipes.build(name, (size, size, 3), include_top=False, **options)
        assert model.output_shape[1:3] == (left, left)
    model = recipes.build("densenet40_k12", (None, None, 3), include_top=False)
    assert model.compute_output_shape((1, 33, 32, 3))[1:3] == (8, 8)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("densenet121", {"input_shape": (28, 28, 3)}, "at least 29 x 29 pixels, not 28 x 28"),
        ("densenet40_k12", {"input_shape": (3, 8, 3)}, "at least 4 x 4 pixels"),
        ("densenet121", {"compression": 0}, "compression=0"),
        ("densenet121", {"drop_rate": 1}, "drop_rate=1"),
        ("densenet121", {"stem_stride": 4}, "stem_stride=4"),
        ("densenet122", {}, "did you mean 'densenet121'"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, **{"input_shape": (32, 32, 3), **options})


@pytest.mark.full
def test_training_below_64_pixels_keeps_the_stems_size():
    from tiffin.recipes.classification.densenet import Config

    model = Config(model="densenet121").build((28, 28, 3), 10, (127, 60))
    assert model.get_layer("conv1_conv").output.shape[1] == 28
