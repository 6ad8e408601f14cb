"""ResNeXt beside torchvision's and pytorchcv's."""

import parity
import pytest
import torch

from tiffin import recipes

TORCHVISION = "torchvision.models, ResNeXt*_Weights.IMAGENET1K_V1.meta['num_params']"
PYTORCHCV = "pytorchcv, the count asserted in resnext.py and resnext_cifar.py"
PUBLISHED = {
    "resnext50_32x4d": (25_028_904, TORCHVISION),
    "resnext101_32x4d": (44_177_704, PYTORCHCV),
    "resnext101_64x4d": (83_455_272, TORCHVISION),
    # The paper's table 7: 34.4 M and 68.1 M.
    "resnext29_8x64d": (34_426_698, "pytorchcv's class with 8 groups; test_pytorchcvs_cifar_form"),
    "resnext29_16x64d": (68_155_210, PYTORCHCV),
}


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "resnext50_32x4d", "resnext29_8x64d"))
def test_counts(name):
    count, source = PUBLISHED[name]
    assert source
    parity.check_counts(name, count)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "size", "file"),
    [
        ("resnext50_32x4d", 64, "a.safetensors"),
        *parity.full(("resnext50_32x4d", 224, "a.pth"), ("resnext101_64x4d", 224, "a.pth")),
    ],
)
def test_torchvision(name, size, file, tmp_path):
    theirs = getattr(parity.torchvision_models(), name)(weights=None)
    parity.check_weights(name, theirs, tmp_path / file, size)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnext50_32x4d", 75),
        *parity.full(*((name, 224) for name in PUBLISHED if "29" not in name)),
    ],
)
def test_pytorchcv(name, size, tmp_path):
    theirs = parity.pytorchcv(name)
    theirs.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # theirs is of one size alone
    parity.check_weights(name, theirs, tmp_path / "a.pth", size)


@pytest.mark.parametrize(
    ("name", "cardinality"), parity.full(("resnext29_8x64d", 8), ("resnext29_16x64d", 16))
)
def test_pytorchcvs_cifar_form(name, cardinality, tmp_path):
    parity.torchvision_models()
    from pytorchcv.models.resnext_cifar import get_resnext_cifar

    theirs = get_resnext_cifar(10, blocks=29, cardinality=cardinality, bottleneck_width=64)
    assert sum(p.numel() for p in theirs.parameters()) == PUBLISHED[name][0]
    parity.check_weights(name, theirs.eval(), tmp_path / "a.pth")


def test_widths_are_table_1s():
    model = recipes.build("resnext50_32x4d", (32, 32, 3))
    for stage, width in zip((2, 3, 4, 5), (128, 256, 512, 1024), strict=True):
        layer = model.get_layer(f"conv{stage}_block1_2_conv")
        assert (layer.groups, layer.filters, layer.kernel.shape[2]) == (32, width, width // 32)


def test_alpha_narrows_channels_and_paths():
    model = recipes.build("resnext50_32x4d", (32, 32, 3), alpha=0.5)
    assert model.get_layer("conv1_conv").filters == 32
    for stage, width in zip((2, 3, 4, 5), (64, 128, 256, 512), strict=True):
        layer = model.get_layer(f"conv{stage}_block1_2_conv")
        assert (layer.groups, layer.filters) == (32, width)
        assert model.get_layer(f"conv{stage}_block1_out").output.shape[-1] == 2 * width


@pytest.mark.full
def test_maps():
    deep = recipes.build("resnext50_32x4d", (65, 96, 3), features=True)
    assert {name: output.shape[1:] for name, output in deep.output.items()} == {
        "stride_2": (33, 48, 64),
        "stride_4": (17, 24, 256),
        "stride_8": (9, 12, 512),
        "stride_16": (5, 6, 1024),
        "stride_32": (3, 3, 2048),
    }
    halved = recipes.build("resnext50_32x4d", (28, 28, 3), alpha=0.25, stem_stride=1, features=True)
    assert {name: output.shape[1:3] for name, output in halved.output.items()} == {
        "stride_1": (28, 28),
        "stride_2": (14, 14),
        "stride_4": (7, 7),
        "stride_8": (4, 4),
        "stride_16": (2, 2),
    }
    small = recipes.build("resnext29_8x64d", (28, 28, 3), features=True)
    assert {name: output.shape[1:] for name, output in small.output.items()} == {
        "stride_1": (28, 28, 256),
        "stride_2": (14, 14, 512),
        "stride_4": (7, 7, 1024),
    }


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnext50_32x8d", {}, "did you mean 'resnext50_32x4d'"),
        ("resnext50_32x4d", {"groups": 2}, "no option 'groups'"),
        ("resnext50_32x4d", {"stem_stride": 3}, "stem_stride=3"),
        ("resnext50_32x4d", {"alpha": 0.2}, "alpha=0.2: resnext50_32x4d needs at least 0.25"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, (32, 32, 3), **options)
