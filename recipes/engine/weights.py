"""Starting from weights that exist: matched by layer, a head of another size replaced and said."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiffin.export.errors import InputError, nearest
from tiffin.layers import ImageNormalization

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

Rules = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Collection:
    """How one library names the layers of a recipe's networks, and what it publishes.

    Attributes:
        names: `(regular expression, layer)` rules, the first that matches a whole path counts. The
            path is a tensor's name without its last word. In a layer, `{1}` is group 1, and
            `{1+1}`, `{2-1}` are groups with a number added. A layer "" is dropped on purpose. Or
            a function of the list of paths, in the file's order, that returns path -> layer.
        options: of the builder, that such files need where they differ from its defaults.
        epsilon: of the library's batch normalisation.
        normalization: the `(mean, std)` it was trained with, in units of 0-255 pixels.
        licence: of the published weights.
        url: folder of the published files, ending in a slash.
        files: the published file by variant, as "name-12345678.pth", whose digits begin the
            SHA-256, or as `("name.h5", checksum)`, the checksum an MD5 or SHA-256 in hex.
        bgr: whether the first convolution takes blue, green, red; it is turned round.
    """

    names: Rules | Callable[[list[str]], Mapping[str, str]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epsilon: float = 1e-5
    normalization: tuple | None = IMAGENET
    licence: str = "BSD-3-Clause"
    url: str = "https://download.pytorch.org/models/"
    files: Mapping[str, str | tuple[str, str]] = dataclasses.field(default_factory=dict)
    bgr: bool = False


@dataclasses.dataclass
class Source:
    """Weights read from a file.

    Attributes:
        path: the file.
        model: the model of a `.keras` file; None for `.weights.h5`, which holds no layer names.
    """

    path: Path
    model: keras.Model | None = None

    @property
    def normalization(self) -> tuple | None:
        """The (mean, std) that the weights were trained with, where the file says so."""
        for layer in self.model.layers if self.model else ():
            if isinstance(layer, ImageNormalization):
                config = layer.get_config()
                return config["mean"], config["std"]
        return None


def read(path: Path) -> Source:
    """Open a file of weights.

    Raises:
        InputError: no such file, another kind of file, or a damaged one.
    """
    from tiffin.export import runtime

    if not path.is_file():
        raise InputError(f"There is no file {path}: check the path given to --weights.")
    if path.name.endswith(".weights.h5"):
        return Source(path)
    if path.suffix == ".keras":
        return Source(path, runtime.read_keras(path))
    raise InputError(f"--weights takes a .keras or a .weights.h5 file, not {path}.")


def apply(model: keras.Model, source: Source) -> list[str]:
    """Copy weights into `model`; the last layer may differ in size and then keeps its fresh ones.

    Args:
        model: a built model.
        source: from `read`.

    Returns:
        Sentences for people: what was loaded, replaced, or left over.

    Raises:
        InputError: any other layer is missing from the file or has another shape.
    """
    values = _by_name(model, source) if source.model else _from_h5(model, source.path)
    weighted = [layer for layer in model.layers if layer.weights]
    head = weighted[-1]
    problems = []
    for layer in weighted:
        found = values.get(layer.name)
        wanted = [tuple(v.shape) for v in layer.weights]
        if found is not None and [np.shape(v) for v in found] == wanted:
            continue
        have = "not in the file" if found is None else f"{[np.shape(v) for v in found]} in the file"
        problems.append((layer, f"{layer.name}: {have}, {wanted} in the model"))
    wrong = [text for layer, text in problems if layer is not head]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"{source.path} does not fit {model.name}: {'; '.join(wrong[:3])}{more}. Give the file "
            "of the same network, built with the same options (alpha, variant)."
        )
    said = []
    for layer in weighted:
        if problems and layer is head:
            said.append(f"Head replaced: {problems[0][1]}; it starts fresh.")
        else:
            layer.set_weights(values[layer.name])
    loaded = len(weighted) - len(problems)
    said.insert(0, f"Weights of {loaded} layers loaded from {source.path}.")
    if not source.model:
        said.append(
            "The file does not say how pixels were normalised: the new data's mean and std."
        )
    extra = sorted(set(values) - {layer.name for layer in weighted})
    if extra:
        said.append(f"In the file but not in the model: {', '.join(extra)}.")
    return said


def _by_name(model: keras.Model, source: Source) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.get_weights() for layer in source.model.layers if layer.weights}


def _from_h5(model: keras.Model, path: Path) -> dict[str, list[np.ndarray]]:
    """Read a `.weights.h5` by Keras' own loader; what it left untouched is what the file lacks."""
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    try:
        for layer in model.layers:
            layer.set_weights([_blank(value) for value in layer.get_weights()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would print every blank weight; we say which
            model.load_weights(path, skip_mismatch=True)
        after = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} cannot be read as weights ({error}).") from error
    finally:
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(before[layer.name])
    return {
        name: values
        for name, values in after.items()
        if not any(np.isnan(v).all() for v in values if v.dtype.kind == "f" and v.size)
    }


def _blank(value: np.ndarray) -> np.ndarray:
    return np.full_like(value, np.nan) if value.dtype.kind == "f" else value


def freeze(model: keras.Model, until: str) -> None:
    """Stop training every layer up to and including `until`.

    Raises:
        InputError: no such layer; the message has the nearest names. Or nothing is left to train.
    """
    names = [layer.name for layer in model.layers]
    if until not in names:
        raise InputError(f"{model.name} has no layer '{until}'{nearest(until, names)}")
    for layer in model.layers[: names.index(until) + 1]:
        layer.trainable = False
    if not model.trainable_variables:
        raise InputError(f"--freeze {until} leaves nothing to train: name an earlier layer.")
