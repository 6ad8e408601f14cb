"""Starting from weights that exist: matched by layer, a head of another size replaced and said."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tiffin.export.errors import InputError, nearest
from tiffin.recipes.engine import published, registry
from tiffin.recipes.engine.conversion import convert
from tiffin.recipes.engine.darknet_file import from_darknet
from tiffin.recipes.engine.names import Rules
from tiffin.recipes.engine.weight_files import Tensors, read_file

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclasses.dataclass(frozen=True)
class Collection:
    """How one library names the layers of a recipe's networks, and what it publishes.

    Attributes:
        names: `(regular expression, layer)` rules, the first that matches a whole path counts. The
            path is a tensor's name without its last word. In a layer, `{1}` is group 1, and
            `{1+1}`, `{2-1}` are groups with a number added. A layer "" is dropped on purpose. Or
            a function of the list of paths, in the file's order (sorted as people count from
            .weights.h5 and .safetensors), that returns path -> layer.
        options: of the builder, that such files need where they differ from its defaults.
        epsilon: of the library's batch normalisation.
        normalization: the `(mean, std)` it was trained with, in units of 0-255 pixels.
        licence: of the published weights.
        url: folder of the published files, ending in a slash.
        files: the published file by variant, as "name-12345678.pth", whose digits begin the
            SHA-256, or as `("name.h5", checksum)`, the checksum an MD5 or SHA-256 in hex.
        bgr: whether the first convolution takes blue, green, red; it is turned round.
        boxes: regular expression of those of our layers whose outputs come in fours, and there as
            x, y, width, height: ours have y and height first.
        trained_on: what `--weights` calls the published files by.
    """

    names: Rules | Callable[[list[str]], Mapping[str, str]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epsilon: float = 1e-5
    normalization: tuple | None = IMAGENET
    licence: str = "BSD-3-Clause"
    url: str = "https://download.pytorch.org/models/"
    files: Mapping[str, str | tuple[str, str]] = dataclasses.field(default_factory=dict)
    bgr: bool = False
    boxes: str = ""
    trained_on: str = "imagenet"


@dataclasses.dataclass
class Source:
    """Weights read from a file.

    Attributes:
        path: the file.
        tensors: what it holds.
        name: whose names its layers have; empty where they are the model's own.
        collection: the table that goes with `name`.
        origin: a sentence on where a published file came from.
    """

    path: Path
    tensors: Tensors
    name: str = ""
    collection: Collection | None = None
    origin: str | None = None

    @property
    def normalization(self) -> tuple | None:
        """The (mean, std) that the weights were trained with, as far as it is known."""
        if self.tensors.normalization or not self.collection:
            return self.tensors.normalization
        return self.collection.normalization

    @property
    def options(self) -> Mapping[str, Any]:
        """The builder's options that a network for these weights is built with."""
        return self.collection.options if self.collection else {}


def read(
    source: str | Path,
    collections: Mapping[str, Collection] | None = None,
    variant: str = "",
    model: keras.Model | None = None,
) -> Source:
    """Read weights and find out whose names their layers have.

    Args:
        source: a file, or `imagenet` or `coco` for the one that a collection publishes for the
            variant.
        collections: a recipe's table `WEIGHTS`; keys that begin with "keras" are for files of
            Keras, the others for those of torch. The one whose rules match most paths counts.
        variant: the model's name, for what is published.
        model: where it exists already; it decides between collections of equal names.

    Raises:
        InputError: no such file, another kind of file, or a damaged one; nothing published, or
            no way to fetch it.
    """
    collections = collections or {}
    if str(source) in published.NAMES:
        fitting = {n: c for n, c in collections.items() if c.trained_on == str(source)}
        others = {c.trained_on for c in collections.values() if variant in c.files} - {str(source)}
        if others and not fitting:
            raise InputError(
                f"Nothing trained on {source} is published for {variant}: take --weights "
                f"{min(others)}."
            )
        name, path, origin = published.fetch(variant, fitting)
        return Source(path, read_file(path), name, collections[name], origin)
    path = Path(source)
    tensors = read_file(path)
    if tensors.ours or not collections:
        return Source(path, tensors)
    if tensors.layout in collections:
        return Source(path, tensors, tensors.layout, collections[tensors.layout])
    # Files of Keras name layers as keras.applications does, all others as some module of torch.
    alike = {
        name: collection
        for name, collection in collections.items()
        if name.startswith("keras") == (tensors.layout == "keras")
    }
    if tensors.layers is None or not alike:
        return Source(path, tensors)
    paths = list(tensors.layers)
    layers = {layer.name for layer in model.layers if layer.weights} if model else set()

    def unlike(name: str) -> tuple[int, int]:
        names = _layer_names(paths, alike[name])
        return names.count(None), len(layers.symmetric_difference(names)) if model else 0

    name = min(alike, key=unlike)
    return Source(path, tensors, name, alike[name])


def load_weights(
    model: keras.Model,
    source: str | Path,
    collections: Mapping[str, Collection] | None = None,
) -> list[str]:
    """Load weights into a model, whoever trained them.

    Args:
        model: from `tiffin.recipes.build`, or any other.
        source: a file: `.keras` or `.weights.h5` (of this collection or of keras.applications),
            `.h5` (keras.applications), `.pth`, `.pt` or `.safetensors` (torchvision and others),
            `.weights` (Darknet). Or `imagenet` or `coco`: what is published for the model, fetched
            once into Keras' cache.
        collections: how others name the layers; default: the table `WEIGHTS` of the recipe whose
            variant the model is, by its name.

    Returns:
        Sentences for people: what was loaded, from whom, replaced, or left out.

    Raises:
        InputError: the file cannot be had or read, or fits the model in no way; the model is as
            it was.
    """
    if collections is None:
        known = model.name in registry.names()
        module = registry.find(model.name).load() if known else None
        collections = getattr(module, "WEIGHTS", {})
    found = read(source, collections, model.name, model)
    said = apply(model, found)
    if found.options:
        wanted = ", ".join(f"{name}={value!r}" for name, value in found.options.items())
        said.append(f"Weights of {found.name} want a network that was built with {wanted}.")
    if found.collection and found.normalization:
        mean, std = found.normalization
        said.append(f"They were trained on pixels of 0-255 normalised by mean {mean}, std {std}.")
    return said


def apply(model: keras.Model, source: Source) -> list[str]:
    """Copy weights into `model`; a head may differ in size and then keeps its fresh ones.

    Args:
        model: a built model.
        source: from `read`.

    Returns:
        Sentences for people: what was loaded, replaced, or left out.

    Raises:
        InputError: any other layer is missing from the file or has another shape, or the file has
            a layer that the model has no place for; the model is as it was.
    """
    weighted = {layer.name: layer for layer in model.layers if layer.weights}
    heads = _heads(model)
    auxiliary = {name for name in weighted if name.startswith("aux")}
    if source.tensors.layers is None:
        nameless = from_darknet if source.tensors.layout == "darknet" else _from_nameless
        values, problems = nameless(model, source.path)
        extra, dropped, spare = [], [], []
    else:
        places, extra, dropped = _places(weighted, source)
        spare = _spare(list(source.tensors.layers), places, extra, headless=not heads)
        epsilons = {}
        found: dict[str, dict[str, Any]] = {}
        for path, layer in places.items():
            arrays = found.setdefault(layer, {})
            if clash := arrays.keys() & source.tensors.layers[path]:
                raise InputError(
                    f"{source.path}: {path} and another layer both go to {layer}, with "
                    f"{', '.join(sorted(clash))} each. It holds another network than {model.name}."
                )
            arrays.update(source.tensors.layers[path])
            if source.collection:
                epsilons[layer] = source.collection.epsilon
            if path in source.tensors.epsilons:
                epsilons[layer] = source.tensors.epsilons[path]
        bgr = bool(source.collection and source.collection.bgr)
        values, problems = convert(model, found, source.tensors.layout, epsilons, bgr)
        if source.collection and source.collection.boxes:
            for name in values:
                if re.fullmatch(source.collection.boxes, name):
                    values[name] = [_y_first(array) for array in values[name]]
    fresh = set(problems) & auxiliary
    if source.tensors.partial:
        fresh |= set(problems)
    wrong = [f"{name}: {why}" for name, why in problems.items() if name not in heads | fresh]
    wrong += [f"{path}: in the file, not in the model" for path in extra if path not in spare]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"{source.path} does not fit {model.name}: {'; '.join(wrong[:3])}{more}. Give the file "
            "of the same network, built with the same options (alpha, variant, input size)."
            + (f" The names were taken for those of {source.name}." if source.name else "")
        )
    for name, arrays in values.items():
        weighted[name].set_weights(arrays)
    whose = f", named as in {source.name}" if source.name else ""
    said = [f"Weights of {len(values)} layers loaded from {source.path}{whose}."]
    if source.origin:
        said.append(source.origin)
    said += [
        f"Head replaced: {name}: {why}; it starts fresh."
        for name, why in problems.items()
        if name not in fresh
    ]
    if fresh:
        what = "further layers" if source.tensors.partial else "auxiliary heads"
        said.append(f"Of the {what}, these start fresh: {several(sorted(fresh))}.")
    if not source.normalization:
        said.append(
            "The file does not say how pixels were normalised: the new data's mean and std."
        )
    if left := [*extra, *dropped]:
        said.append(f"In the file but not in the model: {several(left)}.")
    return said


def _y_first(array: np.ndarray) -> np.ndarray:
    return array.reshape(*array.shape[:-1], -1, 4)[..., [1, 0, 3, 2]].reshape(array.shape)


def adopt(config: Any, source: Source) -> list[str]:
    """Give a recipe's configuration the options that a network for these weights is built with.

    Args:
        config: what a recipe can be told; options that it has no field for go into `built_with`.
        source: from `read`.

    Returns:
        Sentences for people: what was set.

    Raises:
        InputError: an option was given otherwise.
    """
    said = []
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in source.options.items():
        if name not in defaults:
            config.built_with = {**config.built_with, name: value}
            said.append(f"Built with {name}={value!r}, as weights of {source.name} want it.")
            continue
        given, flag = getattr(config, name), f"--{name.replace('_', '-')}"
        if given == value:
            continue
        if given != defaults[name]:
            raise InputError(
                f"{flag} {given} contradicts --weights {source.path}: networks of {source.name} "
                f"are built with {flag} {value}. Leave {flag} out, or take other weights."
            )
        setattr(config, name, value)
        said.append(f"Built with {flag} {value}, as weights of {source.name} want it.")
    return said


def named(source: Source) -> dict[str, str]:
    """Return the layer of every path in a file that keeps names, "" where it is left out."""
    paths = list(source.tensors.layers)
    names = _layer_names(paths, source.collection) if source.collection else paths
    # Keras' files name most layers as we do.
    return {p: p if name is None else name for p, name in zip(paths, names, strict=True)}


def several(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _places(
    weighted: Mapping[str, Any], source: Source
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return the layer of every path in the file; the same for layers that the model lacks; and
    the paths that are left out on purpose."""
    places, extra, dropped = {}, {}, []
    for path, name in named(source).items():
        if name == "":
            dropped.append(path)
        else:
            (places if name in weighted else extra)[path] = name
    return places, extra, dropped


def _spare(
    paths: list[str], places: Mapping[str, str], extra: Mapping[str, str], headless: bool
) -> set[str]:
    """Return the paths that a model without this head does without; others tell another network."""
    last = max((i for i, path in enumerate(paths) if path in places), default=-1)
    behind = set(paths[last + 1 :]) if headless else set()
    return {
        path
        for path, name in extra.items()
        if name == "logits" or name.startswith("aux") or path in behind
    }


def _layer_names(paths: list[str], collection: Collection) -> list[str | None]:
    """Return the layer of each path by a collection's rules; None where no rule matches."""
    try:
        if callable(collection.names):
            names = collection.names(paths)
            return [names.get(path) for path in paths]
        return [_by_rules(path, collection.names) for path in paths]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # Made for the collection's own paths: others lack the parts that it looks for, or have
        # numbers of more digits than Python reads.
        return [None] * len(paths)


def _by_rules(path: str, rules: Rules) -> str | None:
    for pattern, template in rules:
        if match := re.fullmatch(pattern, path):
            return re.sub(
                r"\{(\d+)([+-]\d+)?\}",
                lambda part, match=match: _group(match, int(part[1]), part[2]),
                template,
            )
    return None


def _group(match: re.Match, number: int, added: str | None) -> str:
    text = match[number] or ""
    return str(int(text) + int(added)) if added else text


def _heads(model: keras.Model) -> set[str]:
    """Return the layers whose size is the number of classes: those that give the logits."""
    heads = set()
    ends = [tensor._keras_history.operation for tensor in model.outputs]
    left = [end for end in ends if isinstance(end, keras.layers.Dense) or end.name == "logits"]
    while left:
        operation = left.pop()
        if getattr(operation, "weights", None):
            heads.add(operation.name)
        else:
            tensors = operation._inbound_nodes[0].input_tensors
            left += [tensor._keras_history.operation for tensor in tensors]
    return heads


def _from_nameless(model: keras.Model, path: Path) -> tuple[dict[str, list], dict[str, str]]:
    """Read a `.weights.h5` of an older Keras, which goes by the order of layers of each class.

    Keras' own loader reads it; what it leaves untouched is what the file lacks.
    """
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
    values, problems = {}, {}
    for name, arrays in after.items():
        if any(np.isnan(v).all() for v in arrays if v.dtype.kind == "f" and v.size):
            problems[name] = "not in the file, or of another shape"
        else:
            values[name] = arrays
    return values, problems


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
