"""Weights of other people's layers, put into the shape and the arithmetic of ours."""

import math
from collections.abc import Iterator, Mapping

import keras
import numpy as np
from keras import layers

from tiffin.recipes.engine.weight_files import variables

Arrays = dict[str, np.ndarray]

_NORMALIZATIONS = (layers.BatchNormalization, layers.GroupNormalization, layers.LayerNormalization)
# torch's words for what Keras calls otherwise.
_SCALES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


class Misfit(ValueError):
    """Arrays that are not those of the layer; the message says how they differ."""


def convert(
    model: keras.Model,
    found: Mapping[str, Arrays],
    layout: str,
    epsilons: Mapping[str, float],
    bgr: bool = False,
) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:
    """Return what `set_weights` of each layer takes, for the same answers as in their network.

    A bias in front of a batch normalisation that ours lacks goes into its mean, a missing scale is
    one, a difference of epsilons goes into the scale.

    Args:
        model: a built model.
        found: arrays by layer of the model and by word, as in `weight_files.Tensors`.
        layout: whose words and order of axes, "keras" or "torch".
        epsilons: of the batch normalisations that the arrays come from, by layer of the model;
            where one is missing, that of the model.
        bgr: the first convolution takes blue, green, red.

    Returns:
        The arrays by layer, and the layers that get none, each with why.
    """
    ready, problems = {}, {}
    followers = dict(_normalized(model))
    shifts: dict[str, np.ndarray] = {}
    first = next((x.name for x in model.layers if isinstance(x, layers.Conv2D)), None)
    for layer in model.layers:
        name = layer.name
        if not layer.weights:
            continue
        if name not in found:
            problems[name] = "not in the file"
            continue
        try:
            arrays = _words(layer, found[name], layout)
            if layout == "torch":
                arrays = _from_torch(model, layer, arrays)
            if isinstance(layer, layers.BatchNormalization):
                epsilon = epsilons.get(name, layer.epsilon)
                arrays = _batch_normalization(layer, arrays, epsilon, shifts.get(name))
            elif "kernel" in arrays and hasattr(layer, "kernel"):
                if "bias" in arrays and not layer.use_bias:
                    if name not in followers:
                        raise Misfit("a bias in the file, none in the model")
                    shifts[followers[name]] = arrays.pop("bias")
                elif "bias" not in arrays and layer.use_bias:
                    arrays["bias"] = np.zeros(layer.bias.shape, "float32")
                arrays["kernel"] = _reshaped(layer, arrays["kernel"])
                if bgr and name == first:
                    arrays["kernel"] = arrays["kernel"][:, :, ::-1]
            ready[name] = _in_order(layer, arrays)
        except Misfit as error:
            problems[name] = str(error)
    return ready, problems


def _words(layer: layers.Layer, arrays: Arrays, layout: str) -> Arrays:
    """Return the arrays by the names of the layer's variables, as far as they can be told."""
    if layout == "torch":
        if isinstance(layer, _NORMALIZATIONS):
            return {_SCALES.get(word, word): array for word, array in arrays.items()}
        if len(arrays) == len(layer.weights) == 1:
            return dict(zip([layer.weights[0].name], arrays.values(), strict=True))
        kernel = "kernel" if hasattr(layer, "kernel") else layer.weights[0].name
        return {kernel if word == "weight" else word: a for word, a in arrays.items()}
    if isinstance(layer, layers.DepthwiseConv2D) and "depthwise_kernel" in arrays:
        return {word.removeprefix("depthwise_"): array for word, array in arrays.items()}
    names = list(arrays)
    if "0" in arrays and isinstance(layer, layers.BatchNormalization):
        # What is left out by `scale=False`, and then by `center=False`, stands in front.
        names = list(_SCALES.values())[-len(arrays) :]
    elif "0" in arrays and hasattr(layer, "kernel"):
        names = ["kernel", "bias"]
    return dict(zip(names, arrays.values(), strict=False))


def _in_order(layer: layers.Layer, arrays: Arrays) -> list[np.ndarray]:
    """Return the arrays in the order of the layer's weights.

    Raises:
        Misfit: one is missing, left over, or of another shape.
    """
    named = {variable.name: variable for variable in layer.weights}
    if not named.keys() >= arrays.keys():
        named = variables(layer)
    by_variable = {id(variable): arrays.get(name) for name, variable in named.items()}
    values = [by_variable.get(id(variable)) for variable in layer.weights]
    wanted = [tuple(variable.shape) for variable in layer.weights]
    if [np.shape(v) for v in values] != wanted or len(arrays) != len(values):
        raise _other_shapes(layer, arrays)
    return values


def _other_shapes(layer: layers.Layer, arrays: Arrays) -> Misfit:
    have = [tuple(array.shape) for array in arrays.values()]
    wanted = [tuple(variable.shape) for variable in layer.weights]
    return Misfit(f"{have} in the file, {wanted} in the model")


def _from_torch(model: keras.Model, layer: layers.Layer, arrays: Arrays) -> Arrays:
    """Put axes into Keras' order: height, width, inputs, outputs; features of a flattened map.

    Raises:
        Misfit: the kernel is none of the layer's.
    """
    size = _flattened(model, layer)
    if isinstance(layer, _NORMALIZATIONS) and size:
        # One value for each pixel and channel: torch flattens channels first.
        channels_first = (size[2], *size[:2])
        if any(array.size != math.prod(size) for array in arrays.values()):
            raise _other_shapes(layer, arrays)
        return {w: a.reshape(channels_first).transpose(1, 2, 0).ravel() for w, a in arrays.items()}
    if "kernel" in arrays and hasattr(layer, "kernel"):
        shape, kernel = tuple(layer.kernel.shape), arrays["kernel"]
        if isinstance(layer, layers.DepthwiseConv2D):
            # Outputs are ordered by input channel, and then by multiplier.
            theirs = (shape[2] * shape[3], 1, *shape[:2])
            order = (*shape[2:], *shape[:2])
        elif kernel.ndim == 2 and (len(shape) > 2 or size):
            # A fully connected layer on a flattened map is a convolution as large as the map.
            height, width, channels = shape[:3] if len(shape) > 2 else size
            theirs = (shape[-1], height * width * channels)
            order = (shape[-1], channels, height, width)
        elif kernel.ndim > 2 and len(shape) == 2:
            height, width, channels = size or (1, 1, shape[0])
            theirs = order = (shape[-1], channels, height, width)
        else:
            theirs = order = (*shape[:-3:-1], *shape[:-2])
        if kernel.shape != theirs:
            raise _other_shapes(layer, arrays)
        kernel = kernel.reshape(order)
        kernel = kernel.transpose(*range(2, kernel.ndim), 1, 0)
        if isinstance(layer, layers.DepthwiseConv2D):
            kernel = kernel.swapaxes(-1, -2)
        return {**arrays, "kernel": kernel.reshape(shape)}
    # A slope of PReLU, a scale of a custom layer: one a channel, or one for all.
    loose = {}
    for variable in layer.weights:
        array = arrays.get(variable.name)
        if array is not None and array.size in (1, math.prod(variable.shape)):
            loose[variable.name] = np.broadcast_to(
                array.reshape(variable.shape) if array.size > 1 else array.ravel(), variable.shape
            )
    return {**arrays, **loose}


def _reshaped(layer: layers.Layer, kernel: np.ndarray) -> np.ndarray:
    """Return a kernel in Keras' order of axes in the form that the layer has it, if it can be.

    A 1x1 convolution and a fully connected layer have the same numbers in the same order, and so
    have a depthwise convolution and one with a group for each channel.
    """
    shape = tuple(layer.kernel.shape)
    if kernel.size != math.prod(shape):
        return kernel
    other_rank = kernel.ndim != len(shape) and kernel.shape[-1] == shape[-1]
    grouped = len(shape) == kernel.ndim == 4 and kernel.shape[:2] == shape[:2]
    grouped = grouped and (kernel.shape[2] == 1 or shape[2] == 1)
    return kernel.reshape(shape) if other_rank or grouped else kernel


def _batch_normalization(
    layer: layers.BatchNormalization, arrays: Arrays, epsilon: float, bias: np.ndarray | None
) -> Arrays:
    """Return the layer's variables for the function that `arrays` and `epsilon` give.

    Args:
        layer: ours, which may lack a scale (gamma) or an offset (beta).
        arrays: theirs, which may lack them, too.
        epsilon: theirs.
        bias: of their convolution in front of it, where ours has none.

    Raises:
        Misfit: other shapes, or a function that the layer cannot have.
    """
    shape = tuple(layer.moving_mean.shape)
    stray = set(arrays) - set(_SCALES.values())
    given = [*arrays.values(), *([] if bias is None else [bias])]
    statistics = "moving_mean" in arrays and "moving_variance" in arrays
    if stray or not statistics or any(array.shape != shape for array in given):
        raise _other_shapes(layer, arrays)
    exact = {word: np.asarray(array, "float64") for word, array in arrays.items()}
    gamma, beta = exact.get("gamma", np.ones(shape)), exact.get("beta", np.zeros(shape))
    mean, variance = exact["moving_mean"], exact["moving_variance"]
    if (variance + min(epsilon, layer.epsilon) <= 0).any():
        raise Misfit("a negative variance in the file")
    if bias is not None:
        mean = mean - bias
    if epsilon != layer.epsilon:
        gamma = gamma * np.sqrt((variance + layer.epsilon) / (variance + epsilon))
    names = {variable.name for variable in layer.weights}
    if "beta" not in names and beta.any():
        if not gamma.all():
            raise Misfit("an offset in the file, none in the model")
        mean = mean - beta / gamma * np.sqrt(variance + layer.epsilon)
    if "gamma" not in names and (gamma != 1).any():
        if (gamma <= 0).any():
            raise Misfit("a negative scale in the file, none in the model")
        variance = (variance + layer.epsilon) / gamma**2 - layer.epsilon
    result = {
        "gamma": gamma,
        "beta": beta,
        "moving_mean": mean,
        "moving_variance": variance,
    }
    return {word: array.astype("float32") for word, array in result.items() if word in names}


def _sources(operation: keras.Operation) -> list[keras.KerasTensor]:
    # Of several calls the first built the network; `operation.input` would refuse to choose.
    nodes = operation._inbound_nodes[:1]
    return [tensor for node in nodes for tensor in node.input_tensors]


def _normalized(model: keras.Model) -> Iterator[tuple[str, str]]:
    """Yield each layer whose output goes into a batch normalisation alone, and the latter."""
    users: dict[str, list[keras.Operation]] = {}
    for operation in model.operations:
        for tensor in _sources(operation):
            users.setdefault(tensor._keras_history.operation.name, []).append(operation)
    for name, readers in users.items():
        if len(readers) == 1 and isinstance(readers[0], layers.BatchNormalization):
            yield name, readers[0].name


def _flattened(model: keras.Model, layer: layers.Layer) -> tuple[int, int, int] | None:
    """Return the (height, width, channels) that were flattened in front of a layer, if they were.

    Between them may stand what works on each feature by itself.
    """
    while len(sources := _sources(layer)) == 1:
        (tensor,) = sources
        if isinstance(layer, layers.Flatten | layers.Reshape):
            size = tuple(tensor.shape[-3:])
            whole = len(tensor.shape) > 3 and None not in size
            wide = layer._inbound_nodes[0].output_tensors[0].shape[-1]
            return size if whole and math.prod(size) == wide else None
        if len(tensor.shape) > 3:
            return None
        layer = tensor._keras_history.operation
        if isinstance(layer, layers.Dense):
            return None
    return None
