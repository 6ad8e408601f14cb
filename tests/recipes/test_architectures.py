"""Architectures against published counts, and against keras.applications and torchvision."""

import keras
import numpy as np
import parity
import pytest
import torch

from tiffin import recipes
from tiffin.recipes.engine.summary import trainable

# Trainable parameters at 1000 classes (10 for the CIFAR form), and where the number is published.
TORCHVISION = "torchvision.models, ResNet*_Weights.IMAGENET1K_V1.meta['num_params']"
MOBILENET = "torchvision.models, MobileNet_V2_Weights.IMAGENET1K_V1.meta['num_params']"
# The paper counts in millions; to the unit: pytorchcv's, less the projections that it adds.
CIFAR = "He et al. 2015, table 6, and test_cifar_form_is_pytorchcvs_but_for_the_shortcut"
PUBLISHED = {
    "resnet18": (11_689_512, TORCHVISION),
    "resnet34": (21_797_672, TORCHVISION),
    "resnet50": (25_557_032, TORCHVISION),
    "resnet101": (44_549_160, TORCHVISION),
    "resnet152": (60_192_808, TORCHVISION),
    "mobilenet_v2": (3_504_872, MOBILENET),
    "resnet20": (269_722, CIFAR),
    "resnet32": (464_154, CIFAR),
    "resnet44": (658_586, CIFAR),
    "resnet56": (853_018, CIFAR),
    "resnet110": (1_727_962, CIFAR),
}
PAPER_MILLIONS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    count, source = PUBLISHED[name]
    assert source
    parity.check_counts(name, count)
    if name in PAPER_MILLIONS:
        assert round(count / 1e6, 2) == PAPER_MILLIONS[name]


@pytest.mark.parametrize("alpha", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_mobilenet_v2_widths_are_keras_applications(alpha):
    theirs = keras.applications.MobileNetV2((96, 96, 3), alpha, weights=None)
    ours = recipes.build("mobilenet_v2", (96, 96, 3), alpha=alpha)
    assert trainable(ours) == trainable(theirs)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]


def images(size):
    return np.random.default_rng(2).normal(size=(2, size, size, 3)).astype("float32")


def from_keras_applications(ours, theirs):
    """Copy by layer name; a bias before batch normalisation moves into its mean."""
    biases = {}
    for layer in theirs.layers:
        values = layer.get_weights()
        if not values:
            continue
        target = ours.get_layer("logits" if layer.name == "predictions" else layer.name)
        if isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            biases[layer.name.replace("_conv", "_bn")] = values.pop()
        elif layer.name in biases:
            values[2] = values[2] - biases.pop(layer.name)
        target.set_weights(values)
    assert not biases
    copied = {layer.name for layer in theirs.layers if layer.weights} - {"predictions"}
    assert copied == {layer.name for layer in ours.layers if layer.weights} - {"logits"}


def compare_with_keras(name, class_name, size, **options):
    options_theirs = {"weights": None, "classifier_activation": None, **options}
    theirs = getattr(keras.applications, class_name)(input_shape=(size, size, 3), **options_theirs)
    ours = recipes.build(name, (size, size, 3), **options)
    parity.randomise(theirs)
    from_keras_applications(ours, theirs)
    x = images(size)
    parity.agree(np.asarray(ours(x)), np.asarray(theirs(x)))


@pytest.mark.parametrize("size", [64, 75])
def test_resnet50_is_keras_applications(size):
    compare_with_keras("resnet50", "ResNet50", size)


@pytest.mark.parametrize("alpha", [0.35, 1.0, 1.4])
def test_mobilenet_v2_is_keras_applications(alpha):
    compare_with_keras("mobilenet_v2", "MobileNetV2", 96, alpha=alpha)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("resnet50", "ResNet50"),
        ("resnet101", "ResNet101"),
        ("resnet152", "ResNet152"),
        ("mobilenet_v2", "MobileNetV2"),
    ],
)
def test_full_size_is_keras_applications(name, class_name):
    compare_with_keras(name, class_name, 224)


@pytest.fixture(scope="module")
def torchvision_models():
    return parity.torchvision_models()


def from_torchvision(ours, theirs):
    """Copy by position: both create stem, blocks (shortcut aside) and head in the same order."""

    def kernel(module):
        return module.weight.detach().numpy().transpose(2, 3, 1, 0)

    def copy(prefix, conv, bn):
        ours.get_layer(f"{prefix}_conv").set_weights([kernel(conv)])
        values = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
        ours.get_layer(f"{prefix}_bn").set_weights([v.detach().numpy() for v in values])

    copy("conv1", theirs.conv1, theirs.bn1)
    for stage in range(1, 5):
        for number, block in enumerate(getattr(theirs, f"layer{stage}"), 1):
            prefix = f"conv{stage + 1}_block{number}"
            for i in range(1, 4):
                if hasattr(block, f"conv{i}"):
                    copy(f"{prefix}_{i}", getattr(block, f"conv{i}"), getattr(block, f"bn{i}"))
            if block.downsample is not None:
                copy(f"{prefix}_0", *block.downsample)
    head = theirs.fc
    ours.get_layer("logits").set_weights([head.weight.detach().numpy().T, head.bias.detach()])


def compare_with_torch(models, name, size):
    torch.manual_seed(0)
    theirs = getattr(models, name)(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.weight.data, module.running_var):
                value.uniform_(0.5, 1.5)
            for value in (module.bias.data, module.running_mean):
                value.normal_(0, 0.2)
    ours = recipes.build(name, (size, size, 3), stride_in="3x3")
    from_torchvision(ours, theirs)
    x = images(size)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    parity.agree(np.asarray(ours(x)), wanted)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnet_is_torchvisions(torchvision_models, name):
    compare_with_torch(torchvision_models, name, 64)


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_full_size_resnet_is_torchvisions(torchvision_models, name):
    compare_with_torch(torchvision_models, name, 224)


def test_raw_pixels_equal_normalised_input():
    mean, std = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
    raw = recipes.build("resnet20", (32, 32, 3), 10, normalization=(mean, std))
    plain = recipes.build("resnet20", (32, 32, 3), 10)
    plain.set_weights(raw.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    x = ((pixels - np.array(mean)) / np.array(std)).astype("float32")
    np.testing.assert_allclose(raw(pixels), plain(x), rtol=1e-4, atol=1e-4)


def test_logits_are_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = recipes.build("resnet20", (32, 32, 3), 10, normalization=(127, 60))
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("conv2_block1_out").compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(model.output.dtype) == "float32"
    assert np.isfinite(np.asarray(model(np.full((1, 32, 32, 3), 255, "uint8")))).all()


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet110"])
def test_cifar_form_is_pytorchcvs_but_for_the_shortcut(torchvision_models, name):
    from pytorchcv.model_provider import get_model

    theirs = sum(p.numel() for p in get_model(f"{name}_cifar10").parameters())
    assert trainable(recipes.build(name, (32, 32, 3), 10, shortcut="projection")) == theirs
    # Projections 16 -> 32 and 32 -> 64, each with the two parameters a channel of its BN.
    assert PUBLISHED[name][0] == theirs - (16 * 32 + 2 * 32 + 32 * 64 + 2 * 64)


def test_headless_forms_and_small_pictures():
    shapes = {
        ("mobilenet_v2", None, 2): (None, 1, 1, 1280),
        ("mobilenet_v2", None, 1): (None, 2, 2, 1280),
        ("mobilenet_v2", "max", 2): (None, 1280),
    }
    for (name, pooling, stride), shape in shapes.items():
        options = {"include_top": False, "pooling": pooling, "stem_stride": stride}
        assert recipes.build(name, (32, 32, 3), **options).output_shape == shape
    model = recipes.build("resnet20", (None, None, 3), include_top=False)
    assert model.output_shape == (None, None, None, 64)
    assert model.compute_output_shape((1, 33, 32, 3)) == (1, 9, 8, 64)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mobilenet_v2", {"alpha": 0}, "alpha=0"),
        ("mobilenet_v2", {"stem_stride": 3}, "stem_stride=3"),
        ("mobilenet_v2", {"pooling": "mean"}, "pooling='mean'"),
        ("resnet50", {"stride_in": "2x2"}, "stride_in='2x2'"),
        ("resnet20", {"shortcut": "C"}, "shortcut='C'"),
        ("resnet20", {"short_cut": "identity"}, "did you mean 'shortcut'"),
        ("resnet21", {}, "did you mean 'resnet"),
        ("resnet20", {"pooling": "mean"}, "pooling='mean'"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, (32, 32, 3), **options)
