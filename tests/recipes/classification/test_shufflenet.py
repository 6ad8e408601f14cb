"""ShuffleNet against published counts, the authors' widths, torchvision and pytorchcv."""

import parity
import pytest

from tiffin import recipes
from tiffin.recipes.engine import summary

PYTORCHCV = "pytorchcv 0.0.74, models/shufflenet.py, _test"
TORCHVISION = "torchvision.models, ShuffleNet_V2_*_Weights.IMAGENET1K_V1.meta['num_params']"
# Trainable parameters; multiply-adds in millions from the papers' table 1 (V1: column Complexity).
PUBLISHED = {
    "shufflenet_v1_g1": (1_531_936, 143, PYTORCHCV),
    "shufflenet_v1_g2": (1_733_848, 140, PYTORCHCV),
    "shufflenet_v1_g3": (1_865_728, 137, PYTORCHCV),
    "shufflenet_v1_g4": (1_968_344, 133, PYTORCHCV),
    "shufflenet_v1_g8": (2_434_768, 137, PYTORCHCV),
    "shufflenet_v2_x0_5": (1_366_792, 41, TORCHVISION),
    "shufflenet_v2_x1_0": (2_278_604, 146, TORCHVISION),
    "shufflenet_v2_x1_5": (3_503_624, 299, TORCHVISION),
    "shufflenet_v2_x2_0": (7_393_996, 591, TORCHVISION),
}
# pytorchcv's other widths of V1, from the same place.
NARROW = {
    "shufflenet_g1_w3d4": (1, 0.75, 975_214),
    "shufflenet_g3_w3d4": (3, 0.75, 1_238_266),
    "shufflenet_g1_wd2": (1, 0.5, 534_484),
    "shufflenet_g3_wd2": (3, 0.5, 718_324),
    "shufflenet_g1_wd4": (1, 0.25, 209_746),
    "shufflenet_g3_wd4": (3, 0.25, 305_902),
}
# Channels of the authors' code, megvii-model/ShuffleNet-Series, ShuffleNetV1/network.py.
AUTHORS = {
    (3, 0.5): (12, 120, 240, 480),
    (3, 1.0): (24, 240, 480, 960),
    (3, 1.5): (24, 360, 720, 1440),
    (3, 2.0): (48, 480, 960, 1920),
    (8, 0.5): (16, 192, 384, 768),
    (8, 1.0): (24, 384, 768, 1536),
    (8, 1.5): (24, 576, 1152, 2304),
    (8, 2.0): (48, 768, 1536, 3072),
}


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "shufflenet_v1_g3", "shufflenet_v2_x1_0"))
def test_published_counts(name):
    count, millions, source = PUBLISHED[name]
    model = parity.check_counts(name, count)
    macs = sum(row.macs for row in summary.rows(model)) / 1e6
    assert abs(macs / millions - 1) < 0.02, source


@pytest.mark.parametrize("name", parity.quick(NARROW, next(iter(NARROW))))
def test_narrow_forms_of_v1(name):
    groups, alpha, count = NARROW[name]
    model = recipes.build(f"shufflenet_v1_g{groups}", (32, 32, 3), alpha=alpha)
    assert summary.trainable(model) == count


@pytest.mark.parametrize(("groups", "alpha"), [(8, 2.0), *parity.full(*AUTHORS)])
def test_widths_are_the_authors(groups, alpha):
    name = f"shufflenet_v1_g{groups}"
    maps = recipes.build(name, (64, 64, 3), alpha=alpha, features=True).output
    widths = tuple(maps[f"stride_{n}"].shape[-1] for n in (4, 8, 16, 32))
    assert widths == AUTHORS[groups, alpha]


@pytest.mark.parametrize(("groups", "alpha"), [(4, 0.25), (8, 0.25)])
def test_odd_widths_are_rounded_to_multiples_of_the_groups(groups, alpha):
    model = recipes.build(f"shufflenet_v1_g{groups}", (32, 32, 3), alpha=alpha)
    assert model.get_layer("stage2_unit1_out").output.shape[-1] % (4 * groups) == 0


def check_torchvision(name, path, size=None):
    theirs = getattr(parity.torchvision_models(), name)()
    parity.check_weights(name, theirs, path, size)


@pytest.mark.parametrize("size", [75, *parity.full((64,))])
def test_torchvision(size, tmp_path):
    check_torchvision("shufflenet_v2_x0_5", tmp_path / "theirs.pth", size)


@pytest.mark.full
@pytest.mark.parametrize("width", ["0_5", "1_0", "1_5", "2_0"])
def test_torchvision_at_full_size(width, tmp_path):
    check_torchvision(f"shufflenet_v2_x{width}", tmp_path / "theirs.safetensors")


def check_pytorchcv(theirs, name, path, **options):
    parity.check_weights(name, parity.pytorchcv(theirs), path, **options)


def test_pytorchcv(tmp_path):
    theirs, name = "shufflenet_g3_wd4", "shufflenet_v1_g3"
    check_pytorchcv(theirs, name, tmp_path / "theirs.pth", alpha=0.25)


@pytest.mark.full
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
def test_pytorchcv_v1(groups, tmp_path):
    theirs = f"shufflenet_g{groups}_w1"
    check_pytorchcv(theirs, f"shufflenet_v1_g{groups}", tmp_path / "theirs.pth")


@pytest.mark.full
@pytest.mark.parametrize("name", NARROW)
def test_pytorchcv_narrow_v1(name, tmp_path):
    groups, alpha, _ = NARROW[name]
    check_pytorchcv(name, f"shufflenet_v1_g{groups}", tmp_path / "theirs.pth", alpha=alpha)


@pytest.mark.full
@pytest.mark.parametrize(("theirs", "width"), [("wd2", "0_5"), ("w1", "1_0")])
def test_pytorchcv_v2(theirs, width, tmp_path):
    name, path = f"shufflenet_v2_x{width}", tmp_path / "theirs.pth"
    check_pytorchcv(f"shufflenetv2_{theirs}", name, path, pool_padding="end")


@pytest.mark.full
def test_feature_maps():
    maps = {
        name: {
            n: t.shape[1:]
            for n, t in recipes.build(name, (64, 96, 3), features=True).output.items()
        }
        for name in ("shufflenet_v1_g4", "shufflenet_v2_x1_5")
    }
    assert maps["shufflenet_v1_g4"] == {
        "stride_2": (32, 48, 24),
        "stride_4": (16, 24, 24),
        "stride_8": (8, 12, 272),
        "stride_16": (4, 6, 544),
        "stride_32": (2, 3, 1088),
    }
    assert maps["shufflenet_v2_x1_5"] == {
        "stride_2": (32, 48, 24),
        "stride_4": (16, 24, 24),
        "stride_8": (8, 12, 176),
        "stride_16": (4, 6, 352),
        "stride_32": (2, 3, 1024),
    }


@pytest.mark.full
@pytest.mark.parametrize("name", ["shufflenet_v1_g3", "shufflenet_v2_x0_5"])
def test_small_and_open_pictures(name):
    for stride, size in ((4, 1), (2, 2), (1, 4)):
        model = recipes.build(name, (32, 32, 3), include_top=False, stem_stride=stride)
        assert model.output_shape[1:3] == (size, size)
    model = recipes.build(name, (None, None, 3), 10)
    assert model.output_shape == (None, 10)
    assert model.compute_output_shape((1, 33, 50, 3)) == (1, 10)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("shufflenet_v1_g3", {"alpha": 0}, "alpha=0"),
        ("shufflenet_v2_x1_0", {"alpha": 0.5}, "variants of their own"),
        ("shufflenet_v2_x1_0", {"pool_padding": "valid"}, "pool_padding='valid'"),
        ("shufflenet_v2_x1_0", {"stem_stride": 3}, "stem_stride=3"),
        ("shufflenet_v1_g5", {}, "did you mean 'shufflenet_v1_g"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, (32, 32, 3), **options)
