"""ResNet beside keras.applications', torchvision's and pytorchcv's."""

import keras
import parity
import pytest

from tiffin import recipes
from tiffin.recipes.engine.summary import trainable

# Trainable parameters at 1000 classes (10 for the CIFAR form), and where the number is published.
TORCHVISION = "torchvision.models, ResNet*_Weights.IMAGENET1K_V1.meta['num_params']"
# The paper counts in millions; to the unit: pytorchcv's, less the projections that it adds.
CIFAR = "He et al. 2015, table 6, and test_cifar_form_is_pytorchcvs_but_for_the_shortcut"
PUBLISHED = {
    "resnet18": (11_689_512, TORCHVISION),
    "resnet34": (21_797_672, TORCHVISION),
    "resnet50": (25_557_032, TORCHVISION),
    "resnet101": (44_549_160, TORCHVISION),
    "resnet152": (60_192_808, TORCHVISION),
    "resnet20": (269_722, CIFAR),
    "resnet32": (464_154, CIFAR),
    "resnet44": (658_586, CIFAR),
    "resnet56": (853_018, CIFAR),
    "resnet110": (1_727_962, CIFAR),
}
PAPER_MILLIONS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85}


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "resnet18", "resnet50", "resnet20"))
def test_counts(name):
    count, source = PUBLISHED[name]
    assert source
    parity.check_counts(name, count)
    if name in PAPER_MILLIONS:
        assert round(count / 1e6, 2) == PAPER_MILLIONS[name]


@pytest.mark.parametrize(
    ("name", "size", "file"),
    [
        ("resnet50", 75, "a.h5"),
        *parity.full(
            ("resnet50", 64, "a.keras"),
            ("resnet50", 224, "a.h5"),
            ("resnet101", 224, "a.h5"),
            ("resnet152", 224, "a.h5"),
        ),
    ],
)
def test_keras_applications(name, size, file, tmp_path):
    theirs = getattr(keras.applications, name.replace("resnet", "ResNet"))(
        input_shape=(size, size, 3), weights=None, classifier_activation=None
    )
    parity.check_weights(name, theirs, tmp_path / file, size)


@pytest.mark.parametrize(
    ("name", "size", "file"),
    [
        ("resnet18", 75, "a.safetensors"),
        *parity.full(("resnet18", 64, "a.pth"), ("resnet50", 75, "a.safetensors")),
        *parity.full(*((f"resnet{depth}", 224, "a.pth") for depth in (18, 34, 50, 101, 152))),
    ],
)
def test_torchvision(name, size, file, tmp_path):
    theirs = getattr(parity.torchvision_models(), name)(weights=None)
    parity.check_weights(name, theirs, tmp_path / file, size, stride_in="3x3")


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet20", "resnet20_cifar10"),
        *parity.full(("resnet56", "resnet56_cifar10"), ("resnet110", "resnet110_cifar10")),
        *parity.full(*((f"resnet{depth}", f"resnet{depth}") for depth in (18, 34, 50, 101, 152))),
    ],
)
def test_pytorchcv(name, theirs, tmp_path):
    model = parity.pytorchcv(theirs)
    parity.check_weights(name, model, tmp_path / "a.pth", shortcut="projection")


@pytest.mark.parametrize("name", parity.quick(["resnet20", "resnet56", "resnet110"], "resnet20"))
def test_cifar_form_is_pytorchcvs_but_for_the_shortcut(name):
    theirs = sum(p.numel() for p in parity.pytorchcv(f"{name}_cifar10").parameters())
    assert trainable(recipes.build(name, (32, 32, 3), 10, shortcut="projection")) == theirs
    # Projections 16 -> 32 and 32 -> 64, each with the two parameters a channel of its BN.
    assert PUBLISHED[name][0] == theirs - (16 * 32 + 2 * 32 + 32 * 64 + 2 * 64)


@pytest.mark.full
def test_maps():
    deep = recipes.build("resnet50", (65, 96, 3), features=True)
    assert {name: output.shape[1:] for name, output in deep.output.items()} == {
        "stride_2": (33, 48, 64),
        "stride_4": (17, 24, 256),
        "stride_8": (9, 12, 512),
        "stride_16": (5, 6, 1024),
        "stride_32": (3, 3, 2048),
    }
    small = recipes.build("resnet20", (None, None, 3), features=True)
    assert set(small.output) == {"stride_1", "stride_2", "stride_4"}
    headless = recipes.build("resnet20", (None, None, 3), include_top=False)
    assert headless.output_shape == (None, None, None, 64)
    assert headless.compute_output_shape((1, 33, 32, 3)) == (1, 9, 8, 64)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
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
