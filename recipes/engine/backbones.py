"""Networks of the classification collection that stand under detectors, and their weights."""

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

import keras
import numpy as np

from tiffin.export.errors import InputError
from tiffin.recipes.engine import registry, weights
from tiffin.recipes.engine.weights import Collection, Source


class Backbone(TypedDict, total=False):
    """What every builder of a detector takes for the network under it.

    Attributes:
        backbone: a network of the classification collection; its maps of the same strides take the
            place of the variant's own. None: the variant's own network.
        alpha: width multiplier; None: the network's own.
        backbone_options: further ones of its builder, such as `stride_in` of ResNet.
    """

    backbone: str | None
    alpha: float | None
    backbone_options: Mapping[str, Any] | None


def choose(
    own: tuple[str | None, Mapping[str, Any]], **under: Unpack[Backbone]
) -> tuple[str | None, dict[str, Any]]:
    """Return the network that stands under a detector, and its options for `backbone_maps`.

    Args:
        own: the variant's own, None if it is none of the classification collection, and its
            options, which another backbone does without.
        **under: see `Backbone`.
    """
    name, given = (under["backbone"], {}) if under.get("backbone") else own
    width = {} if under.get("alpha") is None else {"alpha": under["alpha"]}
    return name, {**given, **width, **(under.get("backbone_options") or {})}


class _Maps(dict):
    def __missing__(self, key):
        raise InputError(f"{self.network} has no map of {key.replace('_', ' ')}.")


def backbone_maps(name: str, input_shape, normalization, **options) -> Mapping:
    """Return a classification network's input, `image`, and its maps, `stride_8` and the like.

    Args:
        name: of the network.
        input_shape, normalization: of the picture.
        **options: of its builder.

    Raises:
        InputError: one asks the result for a map that the network lacks.
    """
    if name.startswith("vgg"):
        options["pool_padding"] = "same"  # 75 cells become 38, not 37
    options["normalization"] = normalization
    maps = _Maps()
    maps.network = name
    if name == "mobilenet_v2":
        # SSDLite looks inside of the block that makes the last map of stride 16.
        network = registry.build(name, input_shape, include_top=False, **options)
        inside = network.get_layer("block_13_expand_relu").output
        maps |= {"stride_16": inside, "stride_32": network.output}
    else:
        network = registry.build(name, input_shape, features=True, **options)
        maps |= network.output
    maps["image"] = network.input
    return maps


def collections(name: str) -> dict[str, Collection]:
    """Return what others publish for a network, by names that no detector's own table has."""
    table = getattr(registry.find(name).load(), "WEIGHTS", {})
    return {f"{whose} ({name})": collection for whose, collection in table.items()}


def require_published(model: str, name: str | None, options: Mapping[str, Any]) -> None:
    """Refuse to look for a file of ImageNet that cannot fit, before it is fetched.

    Args:
        model: the detector's name.
        name, options: of the network under it, if it is one of the classification collection.

    Raises:
        InputError: it is none, or narrowed or widened.
    """
    if not name:
        raise InputError(
            f"{model} has a body of its own, for which no weights of imagenet are published: name "
            "a network of the classification collection with --backbone (not for YOLO v1), or "
            "leave --weights imagenet out."
        )
    if (alpha := options.get("alpha", 1)) != 1:
        raise InputError(
            f"The weights of imagenet are for {name} at its full width, and {model} has it at "
            f"alpha {alpha}: add --alpha 1, or leave --weights imagenet out."
        )


def load(
    network: keras.Model, name: str, options: Mapping[str, Any], source: Source
) -> list[str] | None:
    """Load a classification network's weights into a detector that stands on it.

    Args:
        network: the detector up to its raw heads; what is not of the backbone stays as it is.
        name, options: of the backbone, as from `choose`.
        source: from `weights.read`.

    Returns:
        Sentences for people; None if the file is a detector's, or nothing like the backbone.

    Raises:
        InputError: the file does not fit the backbone; the detector is as it was.
    """
    if source.tensors.layers is None:
        return None
    maps = backbone_maps(name, network.inputs[0].shape[1:], None, **options)
    body = keras.Model(maps.pop("image"), dict(maps), name=name)
    known = {layer.name: layer for layer in body.layers if layer.weights}
    heads = [layer for layer in network.layers if layer.weights and layer.name not in known]
    theirs = set(weights.named(source).values())
    # Classifiers and two-stage detectors both have `logits`.
    if not theirs & known.keys() or theirs & {x.name for x in heads if x.name != "logits"}:
        return None
    said = weights.apply(body, source)
    values = {n: layer.get_weights() for n, layer in known.items()}
    values |= hidden_layers(heads, source) if name.startswith("vgg") else {}
    fresh = []
    for layer in network.layers:
        if layer.name in values:
            layer.set_weights(values[layer.name])
        elif layer.weights:
            fresh.append(layer.name)
    more = [layer.name for layer in heads if layer.name in values]
    also = f", whose {' and '.join(more)} come from its fully connected layers" if more else ""
    return [
        *said,
        f"{name} is the backbone of {network.name}{also}. These start fresh: "
        f"{weights.several(fresh)}.",
    ]


def hidden_layers(heads: list[keras.layers.Layer], source: Source) -> dict[str, list[np.ndarray]]:
    """Return what VGG's two hidden layers, `fc1` and `fc2`, give a detector's `fc6` and `fc7`.

    All of it to fully connected layers; to convolutions every fourth neuron, and every third of
    7 x 7 pixels (Liu et al. 2016, arXiv 1512.02325, section 3). One that does not fit gets nothing.
    """
    found = {layer: source.tensors.layers[path] for path, layer in weights.named(source).items()}
    rows, values = {"fc6": ("fc1", 7, 1), "fc7": ("fc2", 1, 4)}, {}
    for layer in heads:
        theirs, side, step = rows.get(layer.name, ("", 0, 0))
        arrays = sorted(found.get(theirs, {}).values(), key=np.ndim)
        if len(arrays) != 2 or arrays[1].size % (side**2 * len(arrays[0])):
            continue
        bias, kernel = arrays
        if source.tensors.layout == "torch":
            kernel = kernel.reshape(len(bias), -1, side, side).transpose(2, 3, 1, 0)
        kernel = kernel.reshape(side, side, -1, len(bias))
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = kernel[::3, ::3, ::step, ::4], bias[::4]
        else:
            kernel = kernel.reshape(-1, len(bias))
        if kernel.shape == layer.kernel.shape and bias.shape == layer.bias.shape:
            values[layer.name] = [kernel, bias]
    return values
