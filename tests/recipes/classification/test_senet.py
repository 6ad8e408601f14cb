"""SENets beside pytorchcv's, and beside timm's names."""

import parity
import pytest
import torch
from torch import nn

from tiffin import recipes

PYTORCHCV = (
    "pytorchcv, the count asserted in seresnet.py, seresnext.py, senet.py, seresnet_cifar.py"
)
PUBLISHED = {
    "se_resnet50": (28_088_024, PYTORCHCV),
    "se_resnet101": (49_326_872, PYTORCHCV),
    "se_resnet152": (66_821_848, PYTORCHCV),
    "se_resnext50_32x4d": (27_559_896, PYTORCHCV),
    "se_resnext101_32x4d": (48_955_416, PYTORCHCV),
    "senet154": (115_088_984, PYTORCHCV),
    "se_resnet20": (274_847, PYTORCHCV),
}


@pytest.mark.parametrize("name", parity.quick(PUBLISHED, "se_resnet50", "se_resnet20"))
def test_counts(name):
    count, source = PUBLISHED[name]
    assert source
    parity.check_counts(name, count)


@pytest.mark.parametrize(
    ("name", "size", "file"),
    [
        ("se_resnet20", 32, "a.pth"),
        *parity.full(("se_resnext50_32x4d", 64, "a.safetensors"), ("se_resnet50", 64, "a.pth")),
        *parity.full(*((name, 224, "a.pth") for name in PUBLISHED if name != "se_resnet20")),
    ],
)
def test_pytorchcv(name, size, file, tmp_path):
    theirs = {"se_resnet20": "seresnet20_cifar10"}.get(name, name.replace("se_", "se"))
    model = parity.pytorchcv(theirs)
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is of one size alone
    deep = name in ("se_resnet152", "senet154")
    parity.check_weights(name, model, tmp_path / file, size, settled=True, double=deep)


class Legacy(nn.Module):
    """SE-ResNet-50 with the names and the rounding of timm's legacy models, in torch's own layers.

    Source: timm/models/senet.py, after R. Cadene's port of the authors' Caffe files.
    """

    def __init__(self, modern: bool):
        super().__init__()
        self.modern = modern  # the names and the stride of timm's resnet.py instead
        head = nn.Linear(2048, 1000)
        if modern:
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            self.fc = head
        else:
            self.layer0 = nn.Sequential()
            self.layer0.add_module("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False))
            self.layer0.add_module("bn1", nn.BatchNorm2d(64))
            self.last_linear = head
        channels = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 0 else 1
                layer.append(self.block(channels, 64 * 2**stage, stride))
                channels = 256 * 2**stage
            setattr(self, f"layer{stage + 1}", layer)

    def block(self, channels, width, stride):
        block = nn.Module()
        first, second = (1, stride) if self.modern else (stride, 1)
        block.conv1 = nn.Conv2d(channels, width, 1, first, bias=False)
        block.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        block.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        block.bn1, block.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        block.bn3 = nn.BatchNorm2d(4 * width)
        gate = nn.Module()
        gate.fc1, gate.fc2 = (
            nn.Conv2d(4 * width, width // 4, 1),
            nn.Conv2d(width // 4, 4 * width, 1),
        )
        setattr(block, "se" if self.modern else "se_module", gate)
        if channels != 4 * width:
            projection = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            block.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))
        return block

    def forward(self, x):
        if self.modern:
            x = torch.relu(self.bn1(self.conv1(x)))
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        else:
            x = nn.functional.max_pool2d(torch.relu(self.layer0(x)), 3, 2, ceil_mode=True)
        for stage in range(1, 5):
            for block in getattr(self, f"layer{stage}"):
                skip = block.downsample(x) if hasattr(block, "downsample") else x
                x = torch.relu(block.bn1(block.conv1(x)))
                x = torch.relu(block.bn2(block.conv2(x)))
                x = block.bn3(block.conv3(x))
                gate = block.se if self.modern else block.se_module
                weights = gate.fc2(torch.relu(gate.fc1(x.mean((2, 3), keepdim=True))))
                x = torch.relu(x * torch.sigmoid(weights) + skip)
        return (self.fc if self.modern else self.last_linear)(x.mean((2, 3)))


@pytest.mark.parametrize(("modern", "size"), parity.full((True, 75), (False, 64)))
def test_timm(modern, size, tmp_path):
    options = {"stride_in": "3x3"} if modern else {"stem_pool": "end"}
    path = tmp_path / "a.safetensors"
    parity.check_weights("se_resnet50", Legacy(modern), path, size, settled=True, **options)


@pytest.mark.full
def test_senet154s_departures():
    model = recipes.build("senet154", (32, 32, 3), include_top=False)
    kernels = {
        "conv1_conv": (3, 3, 3, 64),
        "conv1_2_conv": (3, 3, 64, 64),
        "conv1_3_conv": (3, 3, 64, 128),
        "conv2_block1_0_conv": (1, 1, 128, 256),
        "conv2_block1_1_conv": (1, 1, 128, 128),
        "conv2_block1_2_conv": (3, 3, 2, 256),
        "conv3_block1_0_conv": (3, 3, 256, 512),
        "conv5_block1_se_reduce": (1, 1, 2048, 128),
    }
    for name, shape in kernels.items():
        assert model.get_layer(name).kernel.shape == shape, name


@pytest.mark.full
def test_maps():
    deep = recipes.build("se_resnext50_32x4d", (65, 96, 3), features=True)
    assert {name: output.shape[1:] for name, output in deep.output.items()} == {
        "stride_2": (33, 48, 64),
        "stride_4": (17, 24, 256),
        "stride_8": (9, 12, 512),
        "stride_16": (5, 6, 1024),
        "stride_32": (3, 3, 2048),
    }
    small = recipes.build("se_resnet20", (28, 28, 3), features=True)
    assert {name: output.shape[1:] for name, output in small.output.items()} == {
        "stride_1": (28, 28, 16),
        "stride_2": (14, 14, 32),
        "stride_4": (7, 7, 64),
    }


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("se_resnet50", {"stride_in": "2x2"}, "stride_in='2x2'"),
        ("se_resnet50", {"stem_pool": "start"}, "stem_pool='start'"),
        ("se_resnet5", {}, "did you mean 'se_resnet5"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    with pytest.raises(ValueError, match=said):
        recipes.build(name, (32, 32, 3), **options)
