"""Weights as they lie in files: arrays by layer, whoever wrote them."""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from tiffin.export.errors import InputError
from tiffin.layers import ImageNormalization
from tiffin.recipes.engine.darknet_file import PARTIAL
from tiffin.recipes.engine.torch_file import read_torch, widen_bfloat16

KINDS = (".keras", ".weights.h5", ".h5", ".safetensors", ".pth", ".pt", ".weights")
DARKNET = (0.0, 255.0)  # the mean and the std that all of its networks take
# What Keras calls variables; files from before Keras 2 have other words, which count by position.
_WORDS = {
    *("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "alpha"),
    *("depthwise_kernel", "pointwise_kernel", "mean", "variance", "count"),
}
# All that malformed bytes raise on their way through h5py, JSON and NumPy.
_FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError)
_FAULTS += (ValueError,)
_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


@dataclasses.dataclass
class Tensors:
    """What a file holds.

    Attributes:
        layout: whose order of axes and whose words, "keras", "torch" or "darknet".
        layers: by layer, or by a module's path, the arrays by the last word of their names, or by
            their position where the file keeps no words; both in the file's order, or, where it
            has none (.weights.h5, .safetensors), as people count. None for a
            file that keeps no names at all, an old `.weights.h5` or one of Darknet.
        ours: whether a network of this collection was saved.
        normalization: the `(mean, std)` that the file says its network was trained with.
        epsilons: of batch normalisations, where the file says them.
        partial: whether it holds the first layers of a network only.
    """

    layout: str
    layers: dict[str, dict[str, np.ndarray]] | None
    ours: bool = False
    normalization: tuple | None = None
    epsilons: dict[str, float] = dataclasses.field(default_factory=dict)
    partial: bool = False


def read_file(path: Path) -> Tensors:
    """Read a file of weights; its ending says which kind it is.

    Raises:
        InputError: no such file, another kind of file, or a damaged one.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}: check the path given to --weights.")
    if path.suffix == ".keras":
        return _read_keras(path)
    if path.name.endswith(".weights.h5"):
        with _opened(path) as file:
            # Some that are published have the old form under the new ending.
            return _read_old(file) if _is_old(file) else _read_new(file)
    if path.suffix == ".h5":
        with _opened(path) as file:
            return _read_old(file)
    if path.suffix == ".safetensors":
        return _by_module(_read_safetensors(path))
    if path.suffix in (".pth", ".pt"):
        return _by_module(read_torch(path))
    partial = bool(PARTIAL.fullmatch(path.name))
    if path.suffix == ".weights" or partial:
        return Tensors("darknet", None, normalization=DARKNET, partial=partial)
    raise InputError(
        f"Weights come from a {', '.join(KINDS[:-1])} or {KINDS[-1]} file, not {path}."
    )


def variables(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return a layer's variables by position, those of inner layers as `attribute/position`."""
    inner = {
        f"{attribute}/{position}": variable
        for attribute, value in sorted(vars(layer).items())
        if isinstance(value, keras.layers.Layer)
        for position, variable in variables(value).items()
    }
    taken = {id(variable) for variable in inner.values()}
    own = [variable for variable in layer.weights if id(variable) not in taken]
    return {str(i): variable for i, variable in enumerate(own)} | inner


def _read_keras(path: Path) -> Tensors:
    from tiffin.export import runtime

    model = runtime.read_keras(path)
    found = Tensors("keras", {}, ours=any(t.name == "image" for t in model.inputs))
    for layer in _flatten(model):
        if isinstance(layer, ImageNormalization):
            config = layer.get_config()
            found.normalization, found.ours = (config["mean"], config["std"]), True
        if layer.weights:
            by_position = variables(layer)
            words = [variable.name for variable in by_position.values()]
            if len(set(words)) < len(words) or not _WORDS.issuperset(words):
                words = list(by_position)
            values = [keras.ops.convert_to_numpy(v) for v in by_position.values()]
            found.layers[layer.name] = dict(zip(words, values, strict=True))
        if isinstance(layer, keras.layers.BatchNormalization):
            found.epsilons[layer.name] = layer.epsilon
    return found


def _flatten(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _flatten(layer)
        else:
            yield layer


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path) as file:
            yield file
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(f"{path} cannot be read as weights ({error}).") from error


def _read_new(file: h5py.File) -> Tensors:
    """Read what `save_weights` writes since Keras 3: variables by position, names as attributes."""
    found = Tensors("keras", {})
    named = True

    def visit(group: h5py.Group) -> None:
        nonlocal named
        for name in sorted(group, key=_natural):
            part = _inside(group, name)
            if "layers" in part:
                visit(_inside(part, "layers"))
                continue
            label = part["vars"].attrs.get("name") if "vars" in part else None
            found.ours |= label == "image"
            values = dict(_positions(part, ""))
            if values:
                named &= label is not None
                found.layers[str(label)] = values

    visit(_inside(file, "layers"))
    if not named:
        found.layers, found.ours = None, True
    return found


def _positions(group: h5py.Group, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if "vars" in group:
        values = _inside(group, "vars")
        for position in sorted(values, key=_natural):
            yield prefix + position, _array(values, position)
    for name in sorted(group):
        # Dropout keeps the state of its dice there.
        if name not in ("vars", "seed_generator"):
            yield from _positions(_inside(group, name), f"{prefix}{name}/")


def _is_old(file: h5py.File) -> bool:
    return "model_weights" in file or any(a.startswith("layer_names") for a in file.attrs)


def _read_old(file: h5py.File) -> Tensors:
    """Read what Keras wrote until version 2, weights alone or a whole model; no code is read."""
    if not _is_old(file):
        raise InputError(
            f"{file.filename} holds no weights by layer name, as Keras wrote them into .h5 files; "
            "for the files of Keras 3 the name must end in .weights.h5."
        )
    found = Tensors("keras", {})
    if "model_config" in file.attrs:
        _read_config(file.attrs["model_config"], found)
    group = _inside(file, "model_weights") if "model_weights" in file else file
    for layer in _strings(group, "layer_names"):
        names = _strings(part := _inside(group, layer), "weight_names")
        words = [re.sub(r":\d+$", "", name).rpartition("/")[2] for name in names]
        if len(set(words)) < len(words) or not _WORDS.issuperset(words):
            words = [str(i) for i in range(len(names))]
        found.ours |= layer == "image"
        if names:
            values = [_array(part, name) for name in names]
            found.layers[layer] = dict(zip(words, values, strict=True))
    return found


def _read_config(text: Any, found: Tensors) -> None:
    """Take normalisation and epsilons from a whole model's configuration."""
    parts = json.loads(text)["config"]
    # Sequential models were a plain list once.
    for layer in parts if isinstance(parts, list) else parts["layers"]:
        config = layer["config"]
        kind = layer["class_name"].rpartition(">")[2]  # without the package, as in "tiffin>..."
        if kind == "BatchNormalization":
            found.epsilons[config["name"]] = float(config["epsilon"])
        elif kind == "ImageNormalization":
            found.normalization = config["mean"], config["std"]
            ImageNormalization(*found.normalization)  # refuses what is none


def _strings(group: h5py.Group, name: str) -> list[str]:
    """Return an attribute's list of strings; long ones lie in parts: name0, name1, ..."""
    values = list(group.attrs[name]) if name in group.attrs else []
    part = 0
    while f"{name}{part}" in group.attrs:
        values.extend(group.attrs[f"{name}{part}"])
        part += 1
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def _inside(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return a member, but none that is a link into another file."""
    for part in name.strip("/").split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"there is no {name} in it")
        group = group[part]
    return group


def _array(group: h5py.Group, name: str) -> np.ndarray:
    data = _inside(group, name)
    size = Path(data.file.filename).stat().st_size
    if data.external or data.is_virtual or data.dtype.kind not in "fiub":
        raise ValueError(f"{name} is no array of numbers in this file")
    # HDF5 fills what was never written, so that a small file could ask for any amount of memory.
    if math.prod(data.shape) * data.dtype.itemsize > size:
        raise ValueError(f"{name} of shape {data.shape} is larger than the file")
    return data[()]


def _natural(name: str) -> list:
    """Order conv2d, conv2d_2, conv2d_10 as people count."""
    parts = re.split(r"0*(\d+)", name)  # every other one is a number, here of any length
    return [(len(part), part) if i % 2 else part for i, part in enumerate(parts)]


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        parts = dict(safetensors.deserialize(path.read_bytes()))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}): it is damaged or incomplete; fetch "
            "it again."
        ) from error
    found = {}
    # Its tensors lie by precision and then alphabetically, so that their order says nothing.
    for name in sorted(parts, key=_natural):
        part = parts[name]
        if part["dtype"] == "BF16":
            flat = widen_bfloat16(bytes(part["data"]))
        elif part["dtype"] in _SAFETENSORS:
            flat = np.frombuffer(part["data"], _SAFETENSORS[part["dtype"]])
        else:
            raise InputError(
                f"{path} stores {name} as {part['dtype']}, which no weights here have: save it as "
                "float32, float16 or bfloat16."
            )
        found[name] = flat.reshape(part["shape"])
    return found


def _by_module(arrays: dict[str, np.ndarray]) -> Tensors:
    found = Tensors("torch", {})
    for name, array in arrays.items():
        path, _, word = name.rpartition(".")
        # A counter of batches seen, which inference needs nowhere.
        if word != "num_batches_tracked":
            found.layers.setdefault(path, {})[word] = array
    return found
