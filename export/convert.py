"""A Keras model as a small TensorFlow graph beside its weights: where both formats start from.

Every variable is traced as an input of the graph, so that no optimizer pass has to carry, copy or
serialise the weights; each format puts them back where it needs them.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Mapping, Sequence

import keras
import numpy as np

from tiffin.export import recurrent
from tiffin.export.errors import ExportError, InputError
from tiffin.export.proposals import PROPOSALS
from tiffin.export.verify import DETECTIONS

_KERNEL_OPS = {"Conv2D", "DepthwiseConv2dNative", "MatMul"}
# What is converted of a model whose suppression is left to the runtime ends in these.
ALL_BOXES, ALL_SCORES = "all_boxes", "all_scores"
# Below this many elements a weight costs the passes nothing and may help them as a constant.
_SMALL = 8192


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a file.

    Attributes:
        name: its name in the file.
        shape: without the batch axis.
        dtype: a numpy name.
        image: whether it takes raw pixels, 0-255, NHWC.
        units: of a detector's boxes and proposals, "pixels" of the input or "relative" to its
            sides.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    image: bool = False
    units: str | None = None

    def describe(self) -> dict:
        """Return its entry in the manifest."""
        entry = {"name": self.name, "shape": ["batch", *self.shape], "dtype": self.dtype}
        if self.image:
            color = "RGB" if self.shape[-1] == 3 else "grey"
            entry |= {"layout": "NHWC", "color": color, "range": [0, 255]}
        if self.units:
            entry["units"] = self.units
        return entry


class Interface:
    """The function that leaves: a model with its preprocessing before and a softmax behind it.

    Args:
        model: a `keras.Model` with known inputs, static but for the batch.
        input_dtype: `uint8` or `float32`, what image inputs take.
        normalization: `(mean, std)` in pixel values, scalars or one per channel, that the model
            itself lacks; None if it takes raw pixels.
        logits: leave a single output `logits` as it is instead of applying a softmax.

    Attributes:
        suppression: the layer in whose place a file has the runtime's own operator, or None: its
            attribute `left_to_runtime` is True, `size`, `iou_threshold` and `score_threshold` are
            the operator's, and its inputs are boxes, corners, `[batch, n, 4]` or `[batch, n,
            classes, 4]`, and scores `[batch, n, classes]`.
        states: of a step function, what each of its states is before the first step, by input.

    Raises:
        InputError: a subclassed model, one with an open axis besides the batch, or one that has
            more outputs than those of the suppression that it leaves to the runtime; a
            normalization without a picture, or for another number of channels.
    """

    def __init__(self, model, input_dtype="uint8", normalization=None, logits=False):
        if not getattr(model, "inputs", None):
            raise InputError(
                f"{model.name} is a subclassed model, whose inputs are not known. Export "
                "keras.Model(inputs, model(inputs)) instead, with inputs = keras.Input(SHAPE)."
            )
        if input_dtype not in ("uint8", "float32"):
            raise InputError(f"input_dtype is '{input_dtype}'; it can be 'uint8' or 'float32'.")
        if isinstance(model, keras.Sequential):
            model = keras.Model(model.inputs, model.outputs, name=model.name)
        self.model = float32_clone(model)
        names = _distinct(t.name for t in model.inputs)
        self.inputs = tuple(
            dataclasses.replace(
                _port(n, t, input_dtype), units="pixels" if n == PROPOSALS else None
            )
            for n, t in zip(names, model.inputs, strict=True)
        )
        struct = model.output
        names = sorted(struct) if isinstance(struct, dict) else _distinct(model.output_names)
        self.outputs = tuple(_port(n, t) for n, t in zip(names, model.outputs, strict=True))
        self.softmax = not logits and [(p.name, len(p.shape)) for p in self.outputs] == [
            ("logits", 1)
        ]
        if self.softmax:
            self.outputs = (dataclasses.replace(self.outputs[0], name="probabilities"),)
        by_name = {port.name: port for port in self.outputs}
        if set(by_name) >= DETECTIONS:
            # As numbers, classes and count come from TFLite's kind of detector.
            relative = by_name["classes"].dtype.startswith("float")
            by_name["boxes"] = dataclasses.replace(
                by_name["boxes"], units="relative" if relative else "pixels"
            )
            self.outputs = tuple(by_name.values())
        self.states = recurrent.initial(self.inputs, self.outputs)
        layers = [*self.model._flatten_layers(include_self=False)]
        self.layers = frozenset(layer.name for layer in layers)
        # A layer whose attribute keeps_float is True computes in float32 in every file.
        self.exact = frozenset(
            layer.name for layer in layers if getattr(layer, "keeps_float", False)
        )
        left = [layer for layer in layers if getattr(layer, "left_to_runtime", False)]
        self.suppression = left[0] if left else None
        if left and (set(by_name) != DETECTIONS or left[0] not in self.model.layers):
            raise InputError(
                f"'{left[0].name}' is left to the runtime, so that a model has to end with it: "
                f"its outputs must be {', '.join(sorted(DETECTIONS))} and nothing else."
            )
        self.normalization = normalization
        if normalization is not None:
            mean, std = (np.asarray(value, np.float32) for value in normalization)
            if not np.all(std > 0):
                raise InputError(f"The std of normalization is {std}: it must be above zero.")
            if not any(port.image for port in self.inputs):
                raise InputError(
                    "normalization is for pixels, and no input of this model is a picture "
                    "[height, width, 1 or 3]: leave it out."
                )
            for port in self.inputs:
                if port.image and {mean.size, std.size} - {1, port.shape[-1]}:
                    raise InputError(
                        f"normalization has {mean.size} means and {std.size} deviations, the "
                        f"input '{port.name}' {port.shape[-1]} channels: give a number for each "
                        "channel, or a single one for all."
                    )
            self.normalization = mean, std

    def __call__(self, tensors: Sequence) -> list:
        """Apply it to tensors in the order of `inputs`; returns them in the order of `outputs`."""
        feed = []
        for port, symbolic, value in zip(self.inputs, self.model.inputs, tensors, strict=True):
            value = keras.ops.cast(value, symbolic.dtype)
            if port.image and self.normalization is not None:
                mean, std = self.normalization
                value = value * (1 / std) - mean / std
            feed.append(value)
        result = self.model(keras.tree.pack_sequence_as(self.model.input, feed), training=False)
        result = keras.tree.flatten(result)
        return [keras.ops.softmax(result[0])] if self.softmax else result

    def up_to(self, outputs: Mapping) -> "Interface":
        """Return the interface with the same inputs that ends in inner tensors of the model."""
        model = keras.Model(self.model.input, outputs, name=self.model.name)
        dtype = next((p.dtype for p in self.inputs if p.image), "uint8")
        return Interface(model, dtype, self.normalization)

    @functools.cached_property
    def body(self) -> "Interface":
        """What is converted: all but a suppression that is left to the runtime."""
        if self.suppression is None:
            return self
        boxes, scores = self.suppression.input
        n, classes = scores.shape[1:]
        if len(boxes.shape) == 4:
            # The operators know boxes that all classes share: each gets a score in one class only.
            boxes = keras.ops.reshape(boxes, (-1, n * classes, 4))
            own = scores[..., None] * np.eye(classes, dtype="float32")
            scores = keras.ops.reshape(own, (-1, n * classes, classes))
        if {port.units for port in self.outputs} & {"relative"}:
            boxes = boxes / np.tile(self.inputs[0].shape[:2], 2).astype("float32")
        return self.up_to({ALL_BOXES: boxes, ALL_SCORES: scores})

    def is_exact(self, operation: str) -> bool | None:
        """Say whether an operation stays in float32 in every file; None where no layer made it."""
        layer = layer_in(operation, self.layers)
        return None if layer is None else layer in self.exact

    def keras(self):
        """Return a function of arrays by input name, for any batch, that Keras itself runs."""
        import tensorflow as tf

        specs = [tf.TensorSpec((None, *p.shape), p.dtype) for p in self.inputs]
        function = tf.function(lambda *x: self(x), input_signature=specs, autograph=False)

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            arrays = [inputs[p.name] for p in self.inputs]
            parts = [
                [
                    t.numpy()
                    for t in function(
                        *(
                            a[i : i + 32].astype(p.dtype, copy=False)
                            for p, a in zip(self.inputs, arrays, strict=True)
                        )
                    )
                ]
                for i in range(0, len(arrays[0]), 32)
            ]
            joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
            return {p.name: value for p, value in zip(self.outputs, joined, strict=True)}

        return run


def _distinct(names) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        result.append(f"{name}_{count}" if count else name)
    return result


def _port(name: str, tensor, input_dtype: str | None = None) -> Port:
    shape = tuple(tensor.shape[1:])
    if None in shape:
        raise InputError(
            f"'{name}' has the shape {tuple(tensor.shape)}: only the batch may stay open in an "
            "export. Build the model with every other size given; a recurrent one can leave as a "
            "single step (--step, steps.step_model) or for one length (--length, with_length)."
        )
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    image = (
        input_dtype is not None
        and len(shape) == 3
        and shape[-1] in (1, 3)
        and dtype in ("float16", "bfloat16", "float32")
    )
    if dtype in ("float16", "bfloat16"):
        dtype = "float32"
    return Port(name, shape, input_dtype if image else dtype, image)


def float32_clone(model):
    """Return the model itself if it computes in float32, else a copy of it that does."""
    policies = {layer.dtype_policy.name for layer in model._flatten_layers(include_self=False)}
    if not any(name.startswith("mixed_") or name in ("float16", "bfloat16") for name in policies):
        return model

    def plain(node):
        if isinstance(node, dict):
            if node.get("class_name") == "DTypePolicy":
                return "float32"
            return {key: plain(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [plain(value) for value in node]
        return "float32" if node in ("float16", "bfloat16") else node

    config = plain(keras.saving.serialize_keras_object(model))
    config.pop("compile_config", None)
    clone = keras.saving.deserialize_keras_object(config)
    clone.set_weights(model.get_weights())
    return clone


@dataclasses.dataclass
class Traced:
    """A traced model.

    Attributes:
        graph: GraphDef whose Placeholders are the model's inputs and its weights.
        inputs: Placeholder names, in the order of the interface's inputs.
        outputs: tensor names, in the order of the interface's outputs.
        weights: value of each weight by its Placeholder's name.
        layers: names of the Keras layers, to tell an operation's origin from its name.
    """

    graph: object
    inputs: list[str]
    outputs: list[str]
    weights: dict[str, np.ndarray]
    layers: frozenset[str]

    def origin(self, operations: set[str]) -> str:
        """Name the Keras layers that made operations of these types, for a message."""
        nodes = [*self.graph.node]
        for function in self.graph.library.function:
            nodes += function.node_def
        found = {self.layer(node.name) for node in nodes if node.op in operations} - {None}
        return " and ".join(f"'{name}'" for name in sorted(found)) or "the model"

    def layer(self, node: str) -> str | None:
        """Return the innermost Keras layer in an operation's name, such as `net/conv1/Relu`."""
        return layer_in(node, self.layers)

    def kernels(self) -> set[str]:
        """Return the weights that only stand as kernels of convolutions and matrix products."""
        kept = {n for n, w in self.weights.items() if w.ndim > 1 and w.dtype == np.float32}
        for node in self.graph.node:
            for slot, source in enumerate(node.input):
                if not (node.op in _KERNEL_OPS and slot == 1):
                    kept.discard(source.split(":")[0].lstrip("^"))
        return kept

    def with_constants(self, names: set[str]):
        """Return the GraphDef with these weights as constants."""
        import tensorflow as tf

        graph = type(self.graph)()
        graph.CopyFrom(self.graph)
        for node in graph.node:
            if node.op == "Placeholder" and node.name in names:
                value = self.weights[node.name]
                node.op = "Const"
                node.attr.clear()
                node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
        return graph


def layer_in(operation: str, layers: Collection[str]) -> str | None:
    """Return the innermost Keras layer in an operation's name, such as `net/conv1/Relu`."""
    parts = re.split(r"[/:;]", operation)
    bases = [re.sub(r"_\d+$", "", part) if part not in layers else part for part in parts]
    return next((part for part in reversed(bases) if part in layers), None)


def trace(interface: Interface, batch: int | None) -> Traced:
    """Trace an interface for inference and fold what is constant into its weights.

    Args:
        interface: what leaves.
        batch: size of the batch axis, None for any.

    Raises:
        ExportError: the model keeps state outside Keras variables.
    """
    import tensorflow as tf
    from tf2onnx.tf_loader import tf_optimize

    variables = [*interface.model.variables]
    specs = [
        tf.TensorSpec((batch, *port.shape), port.dtype, name=f"input_{i}")
        for i, port in enumerate(interface.inputs)
    ]
    specs += [tf.TensorSpec(v.shape, v.dtype, name=f"weight_{i}") for i, v in enumerate(variables)]

    def call(*tensors):
        count = len(interface.inputs)
        state = list(zip(variables, tensors[count:], strict=True))
        with keras.StatelessScope(state_mapping=state):
            results = interface(tensors[:count])
        return [tf.identity(r, name=f"output_{i}") for i, r in enumerate(results)]

    function = tf.function(call, input_signature=specs, autograph=False).get_concrete_function()
    names = [tensor.name.split(":")[0] for tensor in function.inputs]
    inputs = names[: len(interface.inputs)]
    weights = {
        name: np.asarray(v) for name, v in zip(names[len(inputs) :], variables, strict=False)
    }
    for value, placeholder in function.graph.captures:
        if value.dtype in (tf.resource, tf.variant):
            raise ExportError(
                f"{interface.model.name} reads a TensorFlow variable or table that is no Keras "
                f"variable ({placeholder.name}), so its value cannot leave with the model. Make it "
                "with add_weight in a layer."
            )
        weights[placeholder.name.split(":")[0]] = value.numpy()
    graph = function.graph.as_graph_def(add_shapes=True)
    # Keras compiles a grouped convolution on its own; no converter understands the call. And both
    # know a loop as one While, not lowered to switches and merges.
    for node in (*graph.node, *(n for f in graph.library.function for n in f.node_def)):
        for mark in ("_XlaMustCompile", "_lower_using_switch_merge"):
            node.attr.pop(mark, None)
    for part in graph.library.function:
        for mark in ("_XlaMustCompile", "_noinline"):
            part.attr.pop(mark, None)
    outputs = [tensor.name for tensor in function.outputs]
    traced = Traced(graph, inputs, outputs, weights, interface.layers)
    small = {n for n, value in weights.items() if value.ndim < 2 and value.size <= _SMALL}
    traced.graph = traced.with_constants(small)
    traced.weights = {n: value for n, value in weights.items() if n not in small}
    with tf.Graph().as_default():
        tf.import_graph_def(traced.graph, name="")
        feeds = [f"{name}:0" for name in (*inputs, *traced.weights)]
        traced.graph = tf_optimize(feeds, outputs, traced.graph)
    fold_scales(traced)
    return traced


def fold_scales(traced: Traced) -> None:
    """Multiply batch normalisation's scales into the kernels before them.

    Turns `(x * W + b) * s` into `x * (W s) + b s`, for convolutions and matrix products whose
    result goes nowhere else. A shift needs no folding: both converters take it as a bias.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in traced.graph.node}
    readers: dict[str, list] = {}
    for node in traced.graph.node:
        for source in node.input:
            readers.setdefault(source.split(":")[0].lstrip("^"), []).append(node)
    ends = {name.split(":")[0] for name in traced.outputs}

    def constant(name: str) -> np.ndarray | None:
        node = nodes.get(name)
        return tf.make_ndarray(node.attr["value"].tensor) if node and node.op == "Const" else None

    def only(name: str):
        return len(readers.get(name, ())) == 1 and name not in ends

    for node in [n for n in traced.graph.node if n.op == "Mul"]:
        for source, other in (node.input[:], node.input[::-1]):
            scale, product, shift = constant(other), nodes.get(source), None
            if scale is None or product is None or not only(source):
                continue
            if product.op in ("BiasAdd", "AddV2", "Add") and constant(product.input[1]) is not None:
                shift, product = product, nodes.get(product.input[0])
            if product is None or product.op not in _KERNEL_OPS or not only(product.name):
                continue
            kernel = traced.weights.get(product.input[1])
            if kernel is None or not only(product.input[1]):
                continue
            # Reading an attribute that a node lacks would add it.
            flags = {key: product.attr[key] for key in product.attr}
            if "transpose_b" in flags and flags["transpose_b"].b:
                continue
            if "data_format" in flags and flags["data_format"].s == b"NCHW":
                continue
            depthwise = product.op == "DepthwiseConv2dNative"
            channels = math.prod(kernel.shape[-2:]) if depthwise else kernel.shape[-1]
            if scale.size not in (1, channels) or (scale.size > 1 and scale.shape[-1] != channels):
                continue
            scale = np.broadcast_to(scale.ravel(), (channels,))
            traced.weights[product.input[1]] = kernel * (
                scale.reshape(kernel.shape[-2:]) if depthwise else scale
            )
            if shift is not None:
                bias = constant(shift.input[1])
                if not only(shift.input[1]) or bias.shape[-1:] != (channels,):
                    continue
                nodes[shift.input[1]].attr["value"].tensor.CopyFrom(
                    tf.make_tensor_proto((bias * scale).astype(bias.dtype))
                )
            # Left as an Identity: its readers need not be told.
            node.op = "Identity"
            kept = node.attr["T"].type
            node.attr.clear()
            node.attr["T"].type = kept
            node.input[:] = [source]
            break
