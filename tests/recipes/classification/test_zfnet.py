"""AlexNet and ZFNet beside torchvision's and pytorchcv's."""

import keras
import parity
import pytest
import torch

from tiffin import recipes
from tiffin.layers import GroupedConv2D
from tiffin.recipes.classification.zfnet import WEIGHTS, Config
from tiffin.recipes.engine import summary
from tiffin.recipes.engine.weights import Collection

# pytorchcv's own test asserts its counts in pytorchcv/models/zfnet.py.
PUBLISHED = {
    "alexnet": (60_965_224, "Krizhevsky et al. 2012, section 3.5: summed up below; Caffe's model"),
    "alexnet_owt": (61_100_840, "torchvision, AlexNet_Weights.IMAGENET1K_V1.meta['num_params']"),
    "zfnet": (62_357_608, "pytorchcv, zfnet"),
    "zfnetb": (107_627_624, "pytorchcv, zfnetb"),
}
PYTORCHCV = WEIGHTS["pytorchcv"].options
full = pytest.mark.full


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "zfnet", "alexnet"))
def test_counts(name):
    count, source = PUBLISHED[name]
    assert parity.check_counts(name, count), source


def test_two_groups_halve_the_filters_of_layers_2_4_and_5():
    """Krizhevsky et al. 2012, section 3.5: kernels of 5x5x48, 3x3x256, 3x3x192 and 3x3x192."""
    kernels = ((11, 11, 3, 96), (5, 5, 48, 256), (3, 3, 256, 384), (3, 3, 192, 384))
    kernels += ((3, 3, 192, 256), (6 * 6 * 256, 4096), (4096, 4096), (4096, 1000))
    model = recipes.build("alexnet")
    assert [tuple(x.kernel.shape) for x in model.layers if x.weights] == [*kernels]
    count = sum(torch.Size(kernel).numel() + kernel[-1] for kernel in kernels)
    assert count == PUBLISHED["alexnet"][0]
    one_tower = recipes.build("alexnet", groups=1)
    assert summary.trainable(one_tower) == 62_378_344  # pytorchcv, alexnet
    assert {x.groups for x in one_tower.layers if isinstance(x, GroupedConv2D)} == {1}


def test_maps_are_figure_3s():
    shapes = {name: x.shape[1:] for name, x in recipes.build("zfnet", features=True).output.items()}
    assert shapes == {
        "stride_2": (110, 110, 96),
        "stride_4": (55, 55, 96),
        "stride_8": (26, 26, 256),
        "stride_16": (13, 13, 256),
        "stride_32": (6, 6, 256),
    }
    model = recipes.build("alexnet", features=True)
    sizes = {name: x.shape[1] for name, x in model.output.items()}
    assert sizes == {"stride_4": 55, "stride_8": 27, "stride_16": 13, "stride_32": 6}
    model = recipes.build("alexnet", (None, None, 3), include_top=False)
    assert model.output_shape == (None, None, None, 256)


def test_response_normalisation_stands_where_each_paper_has_it():
    def order(*args, **options):
        model = recipes.build(*args, (64, 64, 3), 10, hidden=8, **options)
        return [x.name for x in model.layers if x.name.startswith(("conv", "norm", "pool"))]

    behind = ["conv1_pad", "conv1", "pool1", "norm1", "conv2", "pool2", "norm2"]
    before = ["conv1_pad", "conv1", "norm1", "pool1", "conv2", "norm2", "pool2"]
    assert order("zfnet")[:7] == order("alexnet", lrn="pool")[:7] == behind
    assert order("alexnet")[:7] == order("zfnetb", lrn="conv")[:7] == before
    assert not any(name.startswith("norm") for name in order("alexnet_owt", lrn="conv"))


def test_torchvision(tmp_path):
    theirs = parity.torchvision_models().alexnet(weights=None)
    theirs.avgpool = torch.nn.Identity()
    theirs.classifier[1] = torch.nn.Linear(2 * 2 * 256, 4096)
    parity.check_weights("alexnet_owt", theirs, tmp_path / "a.safetensors", 95)


@full
def test_torchvision_at_full_size(tmp_path):
    theirs = parity.torchvision_models().alexnet(weights=None)
    parity.check_weights("alexnet_owt", theirs, tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["zfnet", *parity.full(("alexnet",))])
def test_pytorchcv(name, tmp_path):
    theirs = parity.pytorchcv(name)
    theirs.output.fc1.fc = torch.nn.Linear(2 * 2 * 256, 4096)
    parity.check_weights(name, theirs, tmp_path / "a.pth", 95, **PYTORCHCV)


@full
@pytest.mark.parametrize("name", PUBLISHED)
def test_pytorchcv_at_full_size(name, tmp_path):
    theirs = parity.pytorchcv("alexnetb" if name == "alexnet_owt" else name)
    parity.check_weights(name, theirs, tmp_path / "a.pth", **PYTORCHCV)


def test_figure_3_in_torch(tmp_path):
    """The paper's order, in which pooling stands before normalisation, beside torch's layers."""

    def normalization():
        return torch.nn.LocalResponseNorm(5, alpha=5e-4, k=2.0)

    def pooling():
        return torch.nn.MaxPool2d(3, 2, ceil_mode=True)

    features = [torch.nn.Conv2d(3, 96, 7, 2, 1), torch.nn.ReLU(), pooling(), normalization()]
    features += [torch.nn.Conv2d(96, 256, 5, 2), torch.nn.ReLU(), pooling(), normalization()]
    for inside, outside in ((256, 384), (384, 384), (384, 256)):
        features += [torch.nn.Conv2d(inside, outside, 3, 1, 1), torch.nn.ReLU()]
    top = [torch.nn.Flatten(), torch.nn.Linear(256, 32), torch.nn.ReLU()]
    top += [torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 7)]
    theirs = torch.nn.Sequential(*features, pooling(), *top)
    parity.randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    names = {0: "conv1", 4: "conv2", 8: "conv3", 10: "conv4", 12: "conv5"}
    names |= {16: "fc6", 18: "fc7", 20: "logits"}
    ours = recipes.build("zfnet", (61, 61, 3), 7, hidden=32)
    collection = Collection(names=tuple((str(n), name) for n, name in names.items()))
    recipes.load_weights(ours, tmp_path / "a.pth", {"torch": collection})
    images = keras.random.normal((2, 61, 61, 3), seed=1)
    images = keras.ops.convert_to_numpy(images) * 30
    wanted = parity.answer(theirs, images)
    parity.agree(keras.ops.convert_to_numpy(ours(images, training=False)), wanted)


@pytest.mark.parametrize(
    ("name", "options", "smallest"),
    [
        ("alexnet", {}, 35),
        ("alexnet", {"stem_stride": 2}, 21),
        ("alexnet_owt", {"stem_stride": 1}, 14),
        ("zfnet", {}, 47),
        ("zfnetb", {"stem_stride": 1}, 26),
    ],
)
def test_smallest_pictures(name, options, smallest):
    model = recipes.build(name, (smallest, smallest, 3), 3, hidden=4, **options)
    assert model.get_layer("pool5").output.shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=f"at least {smallest} x {smallest} pixels, not"):
        recipes.build(name, (64, smallest - 1, 3), 3, hidden=4, **options)


def test_small_pictures_get_a_smaller_stride_and_fewer_hidden_units():
    for name, size, stride, hidden in (
        ("alexnet", 28, 2, 512),
        ("zfnet", 28, 1, 512),
        ("zfnet", 64, 2, 4096),
        ("alexnet", 64, 4, 4096),
    ):
        model = Config(model=name).build((size, size, 3), 10, None)
        assert model.get_layer("conv1").strides[0] == stride
        assert model.get_layer("fc7").units == hidden
    model = Config(model="zfnet", stem_stride=2, hidden=16, dropout=0.1).build(
        (64, 64, 3), 10, None
    )
    assert model.get_layer("conv1").strides[0] == 2 and model.get_layer("fc6").units == 16
    assert {x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)} == {0.1}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("alexnet", {"groups": 3}, "groups=3"),
        ("zfnet", {"lrn": "before"}, "lrn='before'"),
        ("zfnet", {"lrn_alpha": -1}, "alpha=-1"),
        ("zfnet", {"stem_stride": 3}, "stem_stride=3"),
        ("alexnet", {"stem_padding": 5}, "stem_padding=5"),
        ("zfnet", {"hidden": 0}, "hidden=0"),
        ("zfnet", {"input_shape": (None, 64, 3)}, "include_top=False"),
        ("alexnet", {"pooling": "mean"}, "pooling='mean'"),
        ("zfnet_b", {}, "did you mean 'zfnetb'"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, **{"input_shape": (64, 64, 3), **options})
