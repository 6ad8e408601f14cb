"""Weights from elsewhere: read, named, converted, fetched; and what is refused."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import signal
import struct
import sys
import threading
import zipfile
from pathlib import Path

import h5py
import hypothesis
import keras
import numpy as np
import pytest
import torch
from hypothesis import strategies
from keras import layers
from safetensors.torch import save_file

from tiffin import recipes
from tiffin.export.errors import InputError
from tiffin.layers import GroupedConv2D, PReLU
from tiffin.recipes.engine import published, registry, training, weights
from tiffin.recipes.engine.torch_file import read_torch
from tiffin.recipes.engine.weights import Collection, load_weights

sys.path.insert(0, str(Path(__file__).parent))
import parity
import tiny_recipe

MUTATIONS = hypothesis.settings(
    max_examples=300, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)


class Theirs(torch.nn.Module):
    """One of each kind of layer, as torch has them."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8, eps=1e-3)
        self.act1 = nn.PReLU(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(16, affine=False)
        self.act2 = nn.PReLU()
        self.conv3 = nn.Conv2d(16, 8, 1, groups=4, bias=False)
        self.bn3 = nn.BatchNorm2d(8, eps=1e-3)
        self.fc1 = nn.Linear(8 * 4 * 5, 6)
        self.norm = nn.BatchNorm1d(8 * 4 * 5)
        self.fc2 = nn.Conv2d(6, 7, 1)
        self.classifier = nn.Linear(7, 5, bias=False)

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x = self.fc1(self.norm(x.flatten(1)))
        x = self.fc2(x[:, :, None, None]).flatten(1)
        return self.classifier(x)


NAMES = (
    (r"(conv|bn|act)(\d)", "block{2+10}_{1}"),
    (r"fc1", "hidden"),
    (r"norm", "flat_bn"),
    (r"fc(\d)", "hidden_{1-1}"),
    (r"classifier", "logits"),
)
TABLE = {
    "keras.applications": Collection(names=((r".*", "logits"),)),
    "wrong": Collection(names=((r"fc1", "hidden"),), epsilon=7),
    "theirs": Collection(names=NAMES, epsilon=1e-3),
}


def ours(classes=5, **head):
    """The same function as layers of ours, with biases and scales elsewhere."""
    image = x = keras.Input((4, 5, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="block11_conv")(x)
    x = layers.BatchNormalization(epsilon=1e-5, name="block11_bn")(x)
    x = PReLU(name="block11_act")(x)
    x = layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=2, use_bias=False, name="block12_conv"
    )(x)
    x = layers.BatchNormalization(epsilon=1e-2, name="block12_bn")(x)
    x = PReLU(name="block12_act")(x)
    x = GroupedConv2D(8, 1, groups=4, name="block13_conv")(x)
    x = layers.BatchNormalization(scale=False, center=False, name="block13_bn")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.BatchNormalization(epsilon=1e-3, name="flat_bn")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    x = layers.Dense(6, name="hidden")(x)
    x = layers.Dense(7, name="hidden_1")(x)
    if head.get("include_top", True):
        x = layers.Dense(classes, name="logits")(x)
    return keras.Model(image, x, name="ours")


@pytest.fixture(scope="module")
def theirs():
    model = Theirs()
    parity.randomise(model)
    with torch.no_grad():
        # Folding a scale into a variance needs it to be positive.
        model.bn3.weight.abs_()
        model.eval()
    return model


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).normal(size=(3, 4, 5, 3)).astype("float32")


def set_epsilons(model, epsilon):
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.eps = epsilon


def checkpoint(state):
    return {"epoch": 3, "best": torch.tensor(1.0), "lr": (0.1, None), "state_dict": state}


WRITERS = {
    "zip.pth": torch.save,
    "legacy.pth": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "wrapped.pt": lambda state, path: torch.save(checkpoint(state), path),
    "parallel.pth": lambda state, path: torch.save(
        {"model": {f"module.{k}": torch.nn.Parameter(v, False) for k, v in state.items()}}, path
    ),
    "a.safetensors": lambda state, path: save_file(dict(state), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_layer_from_torch(theirs, pictures, tmp_path, name):
    set_epsilons(theirs, 1e-3)
    WRITERS[name](theirs.state_dict(), tmp_path / name)
    wanted = parity.answer(theirs, pictures)
    model = ours()
    said = load_weights(model, tmp_path / name, TABLE)
    parity.agree(np.asarray(model(pictures)), wanted)
    assert said[0].startswith("Weights of 12 layers loaded") and said[0].endswith("in theirs.")
    assert "trained on pixels of 0-255 normalised by mean (123.675" in said[-1]
    # The new head keeps its size, the body is loaded.
    small = ours(classes=2)
    said = load_weights(small, tmp_path / name, TABLE)
    assert "Head replaced: logits: [(5, 7)] in the file, [(7, 2), (2,)] in the model" in said[1]
    # A network without head leaves that of the file out, and says so.
    body = ours(include_top=False)
    # Its last layer gives the output and is fully connected, but it is not a head.
    body = keras.Model(body.input, layers.Activation("linear", name="out")(body.output))
    said = load_weights(body, tmp_path / name, TABLE)
    assert "In the file but not in the model: classifier." in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "a.safetensors"])
def test_other_precisions(theirs, tmp_path, dtype, name):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    WRITERS[name](state, tmp_path / name)
    model = ours()
    load_weights(model, tmp_path / name, TABLE)
    wanted = state["fc2.weight"].float().numpy()[:, :, 0, 0].T
    np.testing.assert_array_equal(model.get_layer("hidden_1").kernel, wanted)


def foreign(padded=False):
    """A network of somebody else's in Keras, with a bias before a normalisation without scale."""
    image = x = keras.Input((4, 5, 3), name="input_layer")
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization(scale=False, epsilon=1e-3, name="stem_norm")(x)
    x = layers.DepthwiseConv2D(1, name="filter")(x)
    x = layers.SeparableConv2D(6, 2, padding="same", name="separable")(x)
    x = layers.LayerNormalization(name="layer_norm")(x)
    x = layers.Conv2D(7, 1, name="project")(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.1)(x)
    x = layers.Dense(8, name="hidden")(x)
    x = layers.Dense(5, name="predictions")(x)
    return keras.Model(image, x, name="foreign")


def own(pool=False):
    """The same with other layers where they compute the same."""
    image = x = keras.Input((4, 5, 3), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="stem_conv")(x)
    x = layers.BatchNormalization(epsilon=1e-5, name="stem_norm")(x)
    x = GroupedConv2D(4, 1, groups=4, name="filter")(x)
    x = layers.SeparableConv2D(6, 2, padding="same", name="separable")(x)
    x = layers.LayerNormalization(name="layer_norm")(x)
    x = layers.Dense(7, name="project")(x)
    x = layers.Conv2D(8, (2, 3), name="hidden")(x)
    x = layers.Conv2D(5, 1, name="last")(x)
    x = layers.GlobalAveragePooling2D(name="logits")(x)
    return keras.Model(image, x, name="own")


def save_old(model, path):
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)
        # Long lists lie in parts.
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:3], names[3:]


KERAS = {
    "keras.applications": Collection(
        names=((r"stem", "stem_conv"), (r"predictions", "last")),
        epsilon=1e-3,
        normalization=(0.0, 255.0),
    )
}


@pytest.mark.parametrize("name", ["a.keras", "a.weights.h5", "whole.h5", "old.h5"])
def test_every_kind_of_file_from_keras(pictures, tmp_path, name):
    model, target = foreign(), own()
    parity.randomise(model)
    save_old(model, tmp_path / name) if name == "old.h5" else parity.save(model, tmp_path / name)
    said = load_weights(target, tmp_path / name, KERAS)
    parity.agree(np.asarray(target(pictures)), np.asarray(model(pictures)))
    assert "named as in keras.applications" in said[0]
    reds = Collection(**vars(KERAS["keras.applications"]) | {"bgr": True})
    load_weights(target, tmp_path / name, {"keras.applications": reds})
    parity.agree(np.asarray(target(pictures[..., ::-1])), np.asarray(model(pictures)))


def test_words_of_the_first_keras_count_by_position(tmp_path):
    kernel, bias = np.random.default_rng(0).normal(size=(3, 3, 3, 4)), np.ones(4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv", b"relu"]
        for layer in ("conv", "relu"):
            file.create_group(layer).attrs["weight_names"] = []
        file["conv"].attrs["weight_names"] = [b"conv_W_1:0", b"conv_b_1:0"]
        file["conv/conv_W_1:0"], file["conv/conv_b_1:0"] = kernel, bias
    x = image = keras.Input((3, 3, 3))
    model = keras.Model(image, layers.Conv2D(4, 3, name="conv")(x))
    load_weights(model, tmp_path / "a.h5", {"keras.applications": Collection(names=())})
    np.testing.assert_allclose(model.get_layer("conv").kernel, kernel, rtol=1e-6)


def test_nested_networks_and_layers_within_layers(tmp_path):
    from tiffin.layers import MaxoutConv2D

    def build(name):
        image = keras.Input((4, 4, 3), name="image")
        x = layers.Dropout(0.5)(MaxoutConv2D(4, 3, 2, name="maxout")(image))
        return keras.Model(image, layers.Dense(2, name="logits")(x), name=name)

    source = build("inner")
    inputs = keras.Input((4, 4, 3), name="image")
    outer = keras.Model(inputs, source(inputs))
    for path in (tmp_path / "a.keras", tmp_path / "a.weights.h5"):
        for saved in (source, outer):
            parity.save(saved, path)
            target = build("target")
            load_weights(target, path)
            for a, b in zip(source.weights, target.weights):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "table", "said"),
    [
        (lambda s: s.pop("conv2.weight"), TABLE, "block12_conv: not in the file"),
        (lambda s: s.pop("bn2.running_var"), TABLE, r"block12_bn: \[\(16,\)\] in the file"),
        (
            lambda s: s.update({"conv4.weight": torch.ones(1)}),
            TABLE,
            "conv4: in the file, not in the model.*were taken for those of theirs",
        ),
        (lambda s: s.update({"conv3.bias": torch.ones(8)}), TABLE, None),
        (lambda s: s.update({"extra.weight": torch.ones(8)}), TABLE, "extra: in the file, not"),
        (lambda s: s.update({"fc1.weight": torch.ones(6, 96)}), TABLE, r"\[\(6, 96\), \(6,\)\] in"),
        (lambda s: s.update({"bn3.weight": -torch.ones(8)}), TABLE, "negative scale in the file"),
        (lambda s: s.update({"bn1.running_var": -torch.ones(8)}), TABLE, "negative variance"),
        (lambda s: s.update({"bn1.running_mean": torch.ones(3)}), TABLE, r"block11_bn: .*\(3,\)"),
        (
            lambda s: s.update({"hidden.weight": torch.ones(6, 160)}),
            TABLE,
            "hidden and another layer both go to hidden, with kernel|with weight each",
        ),
        (lambda s: None, {"wrong": TABLE["wrong"]}, "were taken for those of wrong"),
        (lambda s: None, {}, "does not fit ours"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(theirs, tmp_path, change, table, said):
    state = dict(theirs.state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    model = ours()
    before = [np.array(v) for v in model.weights]
    if said is None:
        load_weights(model, tmp_path / "a.pth", table)
        return
    with pytest.raises(InputError, match=said):
        load_weights(model, tmp_path / "a.pth", table)
    for a, b in zip(before, model.weights):
        np.testing.assert_array_equal(a, b)


def test_another_networks_head_is_no_excuse_for_more_layers(tmp_path):
    def chain(count, head=True):
        image = x = keras.Input((4, 4, 3), name="image")
        for i in range(count):
            x = layers.Dense(3, name=f"layer{i}")(x)
        return keras.Model(image, layers.Dense(2, name="logits")(x) if head else layers.ReLU()(x))

    chain(3).save(tmp_path / "a.keras")
    with pytest.raises(InputError, match="layer2: in the file, not in the model"):
        load_weights(chain(2), tmp_path / "a.keras")
    assert "In the file but not in the model: logits." in load_weights(
        chain(3, head=False), tmp_path / "a.keras"
    )


def test_names_by_a_function_and_parts_left_out(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "a.pth")

    def names(paths):
        assert paths[:3] == ["conv1", "bn1", "act1"]
        found = dict(zip(paths, "abcdefghijkl"))
        return {path: "" for path in found} | {"conv2": "conv"}

    image = keras.Input((4, 5, 8))
    model = keras.Model(image, layers.DepthwiseConv2D(3, depth_multiplier=2, name="conv")(image))
    said = load_weights(model, tmp_path / "a.pth", {"theirs": Collection(names=names)})
    assert (
        said[1]
        == "In the file but not in the model: conv1, bn1, act1, bn2, act2, conv3 and 5 more."
    )
    # A function that stumbles over the paths of another library is none that fits.
    broken = Collection(names=lambda paths: {paths[99]: ""})
    with pytest.raises(InputError, match="does not fit"):
        load_weights(model, tmp_path / "a.pth", {"broken": broken})


def test_tensors_without_an_order_come_as_people_count(tmp_path):
    save_file({f"f.{i}.weight": torch.ones(1) for i in range(12)}, tmp_path / "a.safetensors")
    seen = []
    table = {"theirs": Collection(names=lambda paths: seen.extend(paths) or {})}
    weights.read(tmp_path / "a.safetensors", table)
    assert seen == [f"f.{i}" for i in range(12)]


def test_auxiliary_heads_are_loaded_left_out_or_fresh(tmp_path):
    def build(auxiliary, classes=3):
        image = keras.Input((4,), name="image")
        x = layers.Dense(5, name="body")(image)
        outputs = {"logits": layers.Dense(classes, name="logits")(x)}
        if auxiliary:
            y = layers.Dense(6, name="auxiliary_1_fc")(x)
            outputs["auxiliary_1"] = layers.Dense(classes, name="auxiliary_1_logits")(y)
        return keras.Model(image, outputs)

    build(True).save(tmp_path / "with.keras")
    build(False).save(tmp_path / "without.keras")
    assert "of 4 layers" in load_weights(build(True), tmp_path / "with.keras")[0]
    names = "auxiliary_1_fc, auxiliary_1_logits"
    left = load_weights(build(False), tmp_path / "with.keras")
    assert f"In the file but not in the model: {names}." in left
    fresh = load_weights(build(True), tmp_path / "without.keras")
    assert f"Of the auxiliary heads, these start fresh: {names}." in fresh
    other = load_weights(build(True, classes=2), tmp_path / "with.keras")
    assert "Head replaced: logits: " in other[1] and "fresh: auxiliary_1_logits." in other[2]


def test_equal_names_are_told_apart_by_the_model(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    longer = Collection(names=((r"conv2", "another"), *NAMES))
    said = load_weights(ours(), tmp_path / "a.pth", {"longer": longer, **TABLE})
    assert said[0].endswith("named as in theirs.")


# ---------------------------------------------------------------- files of torch


def tensors_of_all_kinds():
    shared = torch.arange(24.0).reshape(2, 3, 4)
    return {
        "shared": shared,
        "transposed": shared.permute(2, 0, 1),
        "part": shared[1, 1:, ::2],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
        "byte": torch.arange(3, dtype=torch.uint8),
        "half": torch.linspace(-1, 1, 7, dtype=torch.float16),
        "bfloat": torch.linspace(-1e30, 1, 7, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_files_hold_what_torch_reads(tmp_path, zipped, protocol):
    state = collections.OrderedDict(tensors_of_all_kinds())
    state._metadata = {"": {"version": 1}}
    path = tmp_path / "a.pth"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = read_torch(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        wanted = tensor.detach()
        wanted = wanted.float() if wanted.dtype == torch.bfloat16 else wanted
        np.testing.assert_array_equal(found[name], wanted.numpy())
        assert found[name].dtype == wanted.numpy().dtype


def test_files_of_python_2(tmp_path):
    """Byte strings, and dictionaries as lists of pairs: some published files are that old."""
    tensor = (
        b"ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\nFloatStorage\nU\x0294U\x03cpu"
        b"K\x04NtQK\x01K\x02\x85K\x02\x85tR"
    )
    top = b"\x80\x02ccollections\nOrderedDict\n](](U\x04biasq\x00" + tensor + b"ee\x85R."
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001))
    head += pickle.dumps({"little_endian": True, "protocol_version": 1001, "type_sizes": {}}, 2)
    keys = b"\x80\x02]q\x00U\x0294q\x01a."
    path = tmp_path / "a.pth"
    path.write_bytes(head + top + keys + struct.pack("<q4f", 4, 1, 2, 3, 4))
    assert torch.load(path, weights_only=False)["bias"].tolist() == [2, 4]
    assert read_torch(path)["bias"].tolist() == [2, 4]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/tiffin_was_here",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"a": torch.ones(1), "b": Evil()},
            r"asks for (posix|os)\.system: that is code.*state_dict",
        ),
        (torch.nn.Linear(2, 2), "asks for torch.nn.modules.linear.Linear|whole module"),
        ({"args": Path("a")}, r"asks for pathlib\.\w*PosixPath|asks for pathlib"),
        ({"a": np.float64(1)}, r"asks for numpy\._core\.multiarray\.scalar"),
        ({"a": 1}, "no tensors by name"),
        ([torch.ones(1)], "no tensors by name|list where dict belongs"),
        (torch.ones(3), "no tensors by name|_Tensor where dict belongs"),
        ({("a", "b"): torch.ones(1)}, "dictionary's key is a tuple"),
        ({"a": torch.ones(1).expand(10**9)}, "outside its storage"),
    ],
)
def test_torch_files_with_anything_else_are_refused(tmp_path, content, said, zipped):
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=said):
        read_torch(path)
    assert not Path("/tmp/tiffin_was_here").exists()


def rewritten(path, **parts):
    """Write a torch archive anew with other parts."""
    with zipfile.ZipFile(path) as old:
        content = {info.filename: old.read(info) for info in old.infolist()}
    root = next(iter(content)).partition("/")[0]
    kind = parts.pop("compression", zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "w", kind) as new:
        for name, old in content.items():
            key = name.removeprefix(f"{root}/")
            if (value := parts.get(key, old)) is not None:
                new.writestr(name, value)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"data/0": b"1234"}, "storage 0 is not as long as declared"),
        ({"data/0": None}, "no item named"),
        ({"data.pkl": None}, "without a data.pkl"),
        ({"data.pkl": b"\x80\x02}q\x00"}, "damaged or incomplete"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
    ],
)
def test_damaged_archives_of_torch(tmp_path, parts, said):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1000)}, path)
    rewritten(path, **parts)
    with pytest.raises(InputError, match=said):
        read_torch(path)


HOSTILE = {
    "nested tuples as a key": b"}" + b")" + b"\x85" * 500_000 + b"K\x01s.",
    "nested tuples": b")" + b"\x85" * 500_000 + b".",
    "marks": b"(" * 500_000 + b".",
    "endless": b"N" * 2_100_000,
    "a place in memory": b"Nr\xff\xff\xff\xff.",
    "a long string": b"X\xff\xff\xff\x7f.",
    "nothing on the stack": b"0.",
    "an extension": b"\x82\x01.",
    "an instance": b"(ios\nsystem\n.",
    "numbers as text": b"I" + b"9" * 100_000 + b"\n.",
    "itself": b"}q\x00X\x01\x00\x00\x00ah\x00s.",
    "many elements": (
        b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
        b"FloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x08"
        + b"\xff"
        * 7
        + b"\x7ftQK\x00"
        b"K\x01\x85K\x01\x85\x89}tRs."
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.full if x == "endless" else ()) for x in HOSTILE]
)
def test_hostile_pickles(tmp_path, name):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1)}, path)
    rewritten(path, **{"data.pkl": b"\x80\x02" + HOSTILE[name]})
    with pytest.raises(InputError):
        read_torch(path)
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001))
    head += pickle.dumps({"little_endian": True}, 2)
    tail = pickle.dumps(["0"], 2) + struct.pack("<qf", 1, 1.0)
    path.write_bytes(head + b"\x80\x02" + HOSTILE[name] + tail)
    with pytest.raises(InputError):
        read_torch(path)


def test_storage_keys_that_nest_deeply(tmp_path):
    torch.save(
        {"a": torch.ones(1)}, path := tmp_path / "a.pth", _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    start = content.rindex(b"\x80\x02")
    path.write_bytes(content[:start] + b"\x80\x02])" + b"\x85" * 500_000 + b"a.")
    with pytest.raises(InputError, match="tuple where str belongs"):
        read_torch(path)


@functools.cache
def samples():
    found = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(tensors_of_all_kinds(), file, _use_new_zipfile_serialization=zipped)
        found.append(file.getvalue())
    return found


@MUTATIONS
@hypothesis.given(
    zipped=strategies.booleans(),
    changes=strategies.lists(
        strategies.tuples(strategies.floats(0, 1, exclude_max=True), strategies.binary(max_size=4)),
        min_size=1,
        max_size=4,
    ),
    length=strategies.one_of(strategies.just(1.0), strategies.floats(0, 1)),
)
def test_damaged_torch_files_are_refused_or_read(tmp_path_factory, zipped, changes, length):
    content = bytearray(samples()[0 if zipped else 1])
    for place, new in changes:
        # The first three quarters hold names, sizes and strides.
        start = int(place * len(content) * 0.75)
        content[start : start + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    path.write_bytes(content[: int(length * len(content))])
    with contextlib.suppress(InputError):
        for array in read_torch(path).values():
            assert array.size <= 24


@MUTATIONS
@hypothesis.given(strategies.binary(max_size=60), strategies.booleans())
def test_pickles_of_noise_are_refused(tmp_path_factory, noise, archived):
    path = tmp_path_factory.getbasetemp() / "noise.pth"
    if archived:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", b"\x80\x02" + noise)
            file.writestr("a/data/0", b"1234")
    else:
        path.write_bytes(b"\x80\x02" + noise)
    with pytest.raises(InputError):
        read_torch(path)


# ---------------------------------------------------------------- other files


def test_hostile_and_damaged_files_of_other_kinds(tmp_path):
    table = {"keras.applications": Collection(names=())}

    def refused(name, said):
        with pytest.raises(InputError, match=said):
            weights.read(tmp_path / name, table)

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel:0"] = np.ones(3)
    for name, fill in {
        "huge.h5": lambda group: group.create_dataset("kernel:0", (2**40,), "f4"),
        "link.h5": lambda group: group.__setitem__(
            "kernel:0", h5py.ExternalLink(str(tmp_path / "secret.h5"), "kernel:0")
        ),
        "soft.h5": lambda group: group.__setitem__("kernel:0", h5py.SoftLink("/a")),
        "text.h5": lambda group: group.__setitem__("kernel:0", "text"),
        "lacking.h5": lambda group: None,
    }.items():
        with h5py.File(tmp_path / name, "w") as file:
            file.attrs["layer_names"] = [b"a"]
            file.create_group("a").attrs["weight_names"] = [b"kernel:0"]
            fill(file["a"])
    refused("huge.h5", "larger than the file")
    for name in ("link.h5", "soft.h5", "text.h5", "lacking.h5"):
        refused(name, "cannot be read as weights")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = np.ones(3)
    refused("other.h5", "no weights by layer name")
    (tmp_path / "short.h5").write_bytes((tmp_path / "secret.h5").read_bytes()[:700])
    refused("short.h5", "cannot be read as weights")
    save_file({"a": torch.ones(5)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    for cut in (0, 5, 40, len(content) - 1):
        (tmp_path / "b.safetensors").write_bytes(content[:cut])
        refused("b.safetensors", "cannot be read as safetensors")
    save_file({"a": torch.ones(5, dtype=torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    refused("a.safetensors", "stores a as F8_E4M3")
    (tmp_path / "a.pth").write_bytes(content)
    refused("a.pth", "no file of torch")
    (tmp_path / "a.onnx").write_bytes(content)
    refused(
        "a.onnx",
        "Weights come from a .keras, .weights.h5, .h5, .safetensors, .pth, .pt or .weights file",
    )


def test_an_older_keras_kept_no_names(tmp_path):
    source, target, wide = own(), own(), ours()
    source.save_weights(path := tmp_path / "a.weights.h5")
    with h5py.File(path, "a") as file:
        file.visititems(lambda _, part: part.attrs.pop("name", None))
    assert "12 layers" in (said := load_weights(target, path))[0] or "8 layers" in said[0]
    for a, b in zip(source.weights, target.weights):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="not in the file, or of another shape"):
        load_weights(wide, path)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("entry", registry.recipes().values(), ids=registry.recipes())
def test_tables_of_the_collection_can_be_kept(entry):
    module = entry.load()
    options = registry.options_of(module.Config.builder)
    for collection in getattr(module, "WEIGHTS", {}).values():
        fields = {field.name for field in dataclasses.fields(module.Config)}
        assert set(collection.options) <= fields | set(options)
        assert set(collection.files) <= set(entry.variants)
        assert collection.url.startswith("https://") and collection.url.endswith("/")
        assert collection.licence
        for file in collection.files.values():
            checksum = published._named_checksum(file) if isinstance(file, str) else file[1]
            assert set(checksum) <= set("0123456789abcdef") and 8 <= len(checksum) <= 64
        if not callable(collection.names):
            assert all(len(rule) == 2 for rule in collection.names)


def test_resnet18_is_torchvisions_by_the_recipes_table(tmp_path):
    theirs = parity.torchvision_models().resnet18(weights=None)
    parity.check_weights("resnet18", theirs, tmp_path / "a.pth", 33)
    resnet18 = recipes.build("resnet18", (33, 33, 3))
    said = recipes.load_weights(resnet18, tmp_path / "a.pth")
    assert said[1] == "Weights of torchvision want a network that was built with stride_in='3x3'."
    with pytest.raises(InputError, match="does not fit resnet20"):
        recipes.load_weights(recipes.build("resnet20", (32, 32, 3)), tmp_path / "a.pth")


def tiny_table(**options):
    rules = ((r"features\.0", "conv1"), (r"features\.1", "bn1"), (r"fc", "logits"))
    return {"theirs": Collection(names=rules, normalization=([9.0], [200.0]), **options)}


@pytest.fixture
def tiny_file(tmp_path):
    nn = torch.nn
    module = nn.Module()
    module.features = nn.Sequential(nn.Conv2d(3, 6, 5, bias=False), nn.BatchNorm2d(6))
    module.fc = nn.Linear(6 * 3 * 3, 10)
    parity.randomise(module)
    torch.save(module.state_dict(), tmp_path / "tiny-abc.pth")
    return tmp_path / "tiny-abc.pth"


def test_training_takes_options_and_normalisation_along(tiny_file, tmp_path, capsys, monkeypatch):
    table = tiny_table(options={"width": 6, "form": "theirs"})
    monkeypatch.setattr(tiny_recipe, "WEIGHTS", table, raising=False)
    build, seen = tiny_recipe.Config.build, []

    def build_with(self, *arguments, **options):
        seen.append(options)
        return build(self, *arguments)

    monkeypatch.setattr(tiny_recipe.Config, "build", build_with)
    config = tiny_recipe.Config(weights=str(tiny_file), output=tmp_path / "run", epochs=1)
    config.run()
    said = capsys.readouterr().out
    assert "Built with --width 6, as weights of theirs want it." in said
    assert "Built with form='theirs', as weights of theirs want it." in said
    assert "Weights of 3 layers loaded" in said and "normalised" not in said
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["width"] == 6 and stored["weights"] == str(tiny_file)
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert model.get_layer("scaling").get_config()["scale"] == 1 / 200
    # Going on, the file is not needed.
    tiny_file.rename(tmp_path / "moved.pth")
    words = ["--resume", "--output", str(tmp_path / "run"), "--epochs", "2"]
    training.parse(tiny_recipe.Config, words).run()
    assert seen == [{"form": "theirs"}] * 2
    (tmp_path / "moved.pth").rename(tiny_file)
    with pytest.raises(InputError, match="--width 7 contradicts --weights .*built with --width 6"):
        tiny_recipe.Config(weights=str(tiny_file), width=7, output=tmp_path / "new").run()
    with pytest.raises(InputError, match="No weights are published for tiny: give a file"):
        tiny_recipe.Config(weights="imagenet", output=tmp_path / "new").run()


# ---------------------------------------------------------------- published files


@contextlib.contextmanager
def serving(answer):
    """Serve on this machine; `answer(handler)` writes the body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/models/"
    finally:
        server.shutdown()
        server.server_close()


def send(handler, content, length=None, status=200):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(content)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.mark.parametrize("kind", ["in the name", "md5", "sha256"])
def test_imagenet_is_fetched_once_checked_and_loaded(tiny_file, cache, capsys, monkeypatch, kind):
    content = tiny_file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    files = {
        "in the name": f"tiny-{sha256[:8]}.pth",
        "md5": ("tiny.pth", hashlib.md5(content).hexdigest()),
        "sha256": ("tiny.pth", sha256),
    }
    name = files[kind] if isinstance(files[kind], str) else "tiny.pth"
    asked = []

    def answer(handler):
        asked.append(handler.path)
        send(handler, content)

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    model = tiny_recipe.tiny((16, 16, 3), 10, 6, ([0.0], [1.0]))
    with serving(answer) as url:
        table = tiny_table(files={"tiny": files[kind], "wide": "b-12345678.pth"}, url=url)
        said = load_weights(model, "imagenet", table)
    assert asked == [f"/models/{name}"] and [p.name for p in cache.iterdir()] == [name]
    assert f"Published by theirs at {url}{name}, licence BSD-3-Clause." in said
    shown = capsys.readouterr().out
    assert f"Fetching {url}{name}" in shown and f"{len(content)}/{len(content)}" in shown
    wanted = torch.load(tiny_file)["fc.bias"].numpy()
    np.testing.assert_array_equal(model.get_layer("logits").bias, wanted)
    # Without the server: it is there.
    load_weights(model, "imagenet", table)
    (cache / name).write_bytes(content[:-1])
    with pytest.raises(InputError, match="is not the published file.*Delete it"):
        load_weights(model, "imagenet", table)
    other = keras.Model(model.input, model.output, name="other")
    with pytest.raises(InputError, match="published for other; for tiny, wide there are"):
        load_weights(other, "imagenet", table)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda handler: send(handler, b"x", status=404), "cannot be fetched .*404"),
        (lambda handler: send(handler, b"abc"), "is not the published .*Nothing of it was kept"),
        (lambda handler: send(handler, b"abc", length=100), "cannot be fetched"),
        (lambda handler: handler.connection.close(), "cannot be fetched"),
        (None, "cannot be fetched"),
    ],
)
def test_what_a_network_can_do_leaves_nothing(cache, answer, said):
    with serving(answer) as url:
        address = url if answer else "http://127.0.0.1:9/models/"
        table = tiny_table(files={"tiny": "tiny-12345678.pth"}, url=address)
        with pytest.raises(InputError, match=said) as caught:
            weights.read("imagenet", table, "tiny")
    for part in ("tiny-12345678.pth", f"{address}tiny-12345678.pth", str(cache)):
        assert part in str(caught.value)
    assert list(cache.iterdir()) == []


@pytest.fixture
def interruptible():
    """Let SIGINT interrupt, which the workers of a parallel test run ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_download_leaves_nothing(cache, interruptible):
    def answer(handler):
        send(handler, b"x" * 100_000, length=200_000)
        os.kill(os.getpid(), signal.SIGINT)
        handler.rfile.read(1)

    with serving(answer) as url:
        table = tiny_table(files={"tiny": "tiny-12345678.pth"}, url=url)
        with pytest.raises(KeyboardInterrupt):
            weights.read("imagenet", table, "tiny")
    assert list(cache.iterdir()) == []
