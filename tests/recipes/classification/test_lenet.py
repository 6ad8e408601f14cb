"""LeNet-5 beside the paper's own counts, and beside torch, wired map by map."""

import keras
import numpy as np
import parity
import pytest
import torch

from tiffin import recipes
from tiffin.recipes.classification.lenet import C3, Config
from tiffin.recipes.engine import summary

PUBLISHED = {
    "lenet5": (60_000, "LeCun et al. 1998, section II.B: trainable free parameters"),
    "lenet5_plain": (61_706, "156 + 2,416 + 48,120 + 10,164 + 850, layer by layer below"),
}
# LeCun et al. 1998, section II.B, by layer: trainable parameters and connections.
LAYERS = {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
CONNECTIONS = {"c1": 122_304, "c3": 151_600, "c5": 48_120}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    count, source = PUBLISHED[name]
    assert parity.check_counts(name, count), source


def test_each_layer_has_the_papers_parameters_and_connections():
    model = recipes.build("lenet5", (32, 32, 1))
    counts, connections = dict.fromkeys(LAYERS, 0), dict.fromkeys(CONNECTIONS, 0)
    for layer in model.layers:
        name = layer.name.partition("_")[0]
        if layer.trainable_weights:
            counts[name] += layer.count_params()
        if name in connections and layer.trainable_weights:
            pixels = np.prod(layer.output.shape[1:3])
            connections[name] += pixels * layer.count_params()
    assert counts == LAYERS and connections == CONNECTIONS
    plain = recipes.build("lenet5_plain", (32, 32, 1))
    assert [x.count_params() for x in plain.layers if x.weights] == [156, 2416, 48120, 10164, 850]


def test_the_table_is_table_1s():
    """Every map of S2 is seen by ten of C3; three in a row, four in a row, four with a gap, all."""
    assert [sum(channel in row for row in C3) for channel in range(6)] == [10] * 6
    assert [len(row) for row in C3] == [3] * 6 + [4] * 9 + [6]
    assert len(set(C3)) == 16 and all(row == tuple(sorted(set(row))) for row in C3)

    def in_a_row(row):
        return any(set(row) == {(first + i) % 6 for i in range(len(row))} for first in range(6))

    assert [in_a_row(row) for row in C3] == [True] * 12 + [False] * 3 + [True]


class Paper(torch.nn.Module):
    """Section II.B in torch: C3 map by map, subsampling as a sum of four, distances to codes."""

    def __init__(self, ours: keras.Model):
        super().__init__()
        self.ours = ours

    def weights(self, name):
        return [torch.tensor(np.asarray(w)) for w in self.ours.get_layer(name).weights]

    def convolve(self, x, name):
        kernel, bias = self.weights(name)
        return torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias)

    def subsample(self, x, name):
        (coefficient, bias), summed = self.weights(name), 0
        for i in (0, 1):
            for j in (0, 1):
                summed = summed + x[:, :, i::2, j::2]
        return summed * coefficient.reshape(1, -1, 1, 1) / 4 + bias.reshape(1, -1, 1, 1)

    @staticmethod
    def squash(a):
        return 1.7159 * torch.tanh(2 / 3 * a)

    def forward(self, x):
        x = self.squash(self.convolve(x.mean(1, keepdim=True), "c1"))
        x = self.squash(self.subsample(x, "s2"))
        maps = []
        for row in C3:
            kernel, bias = self.weights(f"c3_of_{len(row)}")
            place = [other for other in C3 if len(other) == len(row)].index(row)
            total = sum(
                torch.nn.functional.conv2d(x[:, [channel]], kernel[None, None, :, :, i, place])
                for i, channel in enumerate(row)
            )
            maps.append(total + bias[place])
        x = self.squash(self.subsample(self.squash(torch.cat(maps, 1)), "s4"))
        x = self.squash(self.convolve(x, "c5")).flatten(1)
        kernel, bias = self.weights("f6")
        x = self.squash(x @ kernel + bias)
        codes = self.weights("logits")[0].T / 2
        assert set(codes.unique().tolist()) == {-1.0, 1.0}
        return -((x[:, None] - codes) ** 2).sum(-1)


def test_the_papers_network_in_torch():
    ours = recipes.build("lenet5", (32, 32, 3), 10)
    random = np.random.default_rng(3)
    for weight in ours.trainable_weights:  # biases begin as zeros, which hide where they stand
        weight.assign(np.asarray(weight) + random.normal(0, 0.1, weight.shape))
    images = random.normal(0, 1, (4, 32, 32, 3)).astype("float32")
    with torch.no_grad():
        distances = Paper(ours)(torch.tensor(images).permute(0, 3, 1, 2))
    wanted = torch.softmax(distances, 1).numpy()
    got = keras.ops.convert_to_numpy(keras.ops.softmax(ours(images, training=False)))
    assert (wanted.max(1) > 0.2).all() and (wanted.max(1) < 1 - 1e-6).any()
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_the_plain_form_in_torch(tmp_path):
    from tiffin.recipes.engine.weights import Collection

    convolution, squash, mean = torch.nn.Conv2d, torch.nn.Tanh, torch.nn.AvgPool2d
    theirs = torch.nn.Sequential(
        *(convolution(1, 6, 5), squash(), mean(2), convolution(6, 16, 5), squash(), mean(2)),
        *(convolution(16, 120, 5), squash(), torch.nn.Flatten()),
        *(torch.nn.Linear(120, 84), squash(), torch.nn.Linear(84, 10)),
    )
    assert sum(p.numel() for p in theirs.parameters()) == PUBLISHED["lenet5_plain"][0]
    parity.randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    names = {"0": "c1", "3": "c3", "6": "c5", "9": "f6", "11": "logits"}
    ours = recipes.build("lenet5_plain", (32, 32, 1), 10)
    collection = Collection(names=tuple(names.items()))
    recipes.load_weights(ours, tmp_path / "a.pth", {"torch": collection})
    images = np.random.default_rng(1).normal(size=(4, 32, 32, 1)).astype("float32")
    wanted = parity.answer(theirs, images)
    parity.agree(keras.ops.convert_to_numpy(ours(images, training=False)), wanted)


def test_sizes():
    model = recipes.build("lenet5", features=True)
    shapes = {name: tuple(x.shape[1:]) for name, x in model.output.items()}
    assert shapes == {"stride_1": (28, 28, 6), "stride_2": (14, 14, 6), "stride_4": (5, 5, 16)}
    assert recipes.build("lenet5", (28, 28, 3), padding="same").output_shape == (None, 10)
    assert recipes.build("lenet5", (None, None, 3), 4).output_shape == (None, 4)
    top = recipes.build("lenet5_plain", include_top=False)
    assert top.output_shape == (None, 1, 1, 120)
    assert summary.trainable(top) == 156 + 2416 + 48120
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, not 32 x 31"):
        recipes.build("lenet5", (32, 31, 3))
    with pytest.raises(ValueError, match="at least 28 x 28 pixels"):
        recipes.build("lenet5_plain", (27, 28, 3), padding="same")


def test_small_pictures_are_padded():
    for size, padding in ((28, "same"), (32, "valid"), (64, "valid")):
        model = Config().build((size, size, 3), 10, None)
        assert model.get_layer("c1").padding == padding
    with pytest.raises(ValueError, match="padding='full'"):
        recipes.build("lenet5", padding="full")
