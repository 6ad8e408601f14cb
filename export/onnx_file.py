"""A traced model to ONNX."""

import contextlib
import functools
import logging
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tiffin.export.convert import Interface, Traced
from tiffin.export.errors import ExportError
from tiffin.export.sensitivity import Step, Unit, units

# 18 turns a global average pooling into Transpose and ReduceMean.
OPSET = 17
# onnxslim's fusions that would read kernels, which lie elsewhere.
_KERNEL_FUSIONS = ["FusionConvMul", "FusionConvTransposeMul", "FusionConvAdd"]
_KERNEL_FUSIONS += ["FusionConvTransposeAdd", "FusionConvBN", "FusionConvTransposeBN"]
_KERNEL_FUSIONS += ["FusionGemm", "FusionGemmMul", "FusionGemmAdd"]
# Softmax and whatever follows scores and boxes stays float.
_QUANTIZED = ["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "Concat"]
_QUANTIZED += ["MaxPool", "AveragePool", "GlobalAveragePool", "Squeeze", "Reshape", "Transpose"]
_QUANTIZED += ["Pad", "Resize", "Split", "Unsqueeze"]


def to_onnx(interface: Interface, traced: Traced):
    """Convert a model traced with an open batch.

    Returns:
        `onnx.ModelProto`, float32, opset 17, batch axes named `batch`.

    Raises:
        ExportError: an operation has no ONNX form; the message names the layer that made it.
    """
    # Its optimizers otherwise deep-copy the graph before every pass, to survive their own errors.
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    import tensorflow as tf
    from onnxslim import slim
    from tf2onnx import optimizer, tf_loader, tfonnx

    kernels = traced.kernels()
    renamed = {f"{n}:0": p.name for n, p in zip(traced.inputs, interface.inputs, strict=True)}
    renamed |= {t: p.name for t, p in zip(traced.outputs, interface.outputs, strict=True)}
    inputs = [f"{n}:0" for n in (*traced.inputs, *sorted(kernels))]
    with _overheard() as log, tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(traced.with_constants({*traced.weights} - kernels), name="")
        try:
            with tf_loader.tf_session(graph=tf_graph):
                converted = tfonnx.process_tf_graph(
                    tf_graph,
                    opset=OPSET,
                    input_names=inputs,
                    output_names=traced.outputs,
                    tensors_to_rename=renamed,
                )
            proto = optimizer.optimize_graph(converted, catch_errors=False).make_model("tiffin")
        except Exception as error:
            # Each operation's converter raises what it likes.
            raise _failure("\n".join([*log, str(error)]), traced) from error
    _refuse_unknown(proto.graph.node, traced)
    proto = slim(proto, skip_fusion_patterns=_KERNEL_FUSIONS)
    graph = _Graph(proto, {f"{name}:0": traced.weights[name] for name in kernels})
    graph.fold()
    graph.finish(interface)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _failure(str(error), traced) from error
    return proto


@contextlib.contextmanager
def _overheard():
    """Yield the list of what tf2onnx logs as an error, instead of letting it be printed."""
    messages: list[str] = []
    handler, logger = logging.Handler(logging.ERROR), logging.getLogger("tf2onnx")
    handler.emit = lambda record: messages.append(record.getMessage())
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _failure(message: str, traced: Traced) -> ExportError:
    """Explain a converter's error by the Keras layers whose operations it mentions."""
    words = re.findall(r"[\w./-]+/[\w./-]+", message)
    layers = {traced.layer(word) for word in words} - {None}
    where = " and ".join(f"'{name}'" for name in sorted(layers)) or "the model"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    why = lines[-1][:300] if lines else "no reason given"
    return ExportError(
        f"The ONNX converter cannot convert {where} ({why}). Write that layer another way, or "
        "export to TFLite only."
    )


def reduce(proto, precision: str, interface: Interface, calibration):
    """Return a copy of a float32 model in another precision.

    Args:
        proto: from `to_onnx`.
        precision: `fp32`; `fp16` (weights are kept in 16 bits and computed with in 32: half the
            size at full speed, on processors and in browsers without 16-bit kernels too); `int8`
            (QDQ, static, weights per channel, unsigned activations); `int8_dynamic`.
        interface: what leaves.
        calibration: arrays by input name, for `int8`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    if precision in ("fp32", "fp16"):
        _normalise(result)
    match precision:
        case "fp16":
            _halve(result)
        case "int8":
            result = Quantizer(result, calibration, interface.is_exact)()
        case "int8_dynamic":
            result = _quantize_dynamically(result)
    return result


def _normalise(proto) -> None:
    """Write a factor a channel, and a sum behind it, as one batch normalisation.

    They are what is left of one that follows no convolution, as before an activation. onnxruntime
    keeps its own layout across a batch normalisation, but leaves it for a product. int8 keeps the
    two: the quantiser knows no other form.
    """
    graph = proto.graph
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    dims = {v.name: v.type.tensor_type.shape.dim for v in inferred.value_info}
    constants = {t.name: t for t in graph.initializer}
    readers = Counter(_reads(graph.node))
    makers = {name: node for node in graph.node for name in node.output}
    ends = {output.name for output in graph.output}

    def planes(node) -> tuple[str, np.ndarray] | None:
        """Return what a node works on, and its constant, one number a channel."""
        for source, other in (node.input, node.input[::-1]):
            shape = dims.get(source, ())
            if other in constants and source not in constants and len(shape) == 4:
                value = numpy_helper.to_array(constants[other])
                # Of a single channel the product has more than its source: no normalisation.
                fits = value.size > 1 and shape[1].dim_value == value.size
                wide = (1,) * (4 - value.ndim) + value.shape
                if value.dtype == np.float32 and wide == (1, value.size, 1, 1) and fits:
                    return source, value.ravel()
        return None

    for product in [*graph.node]:
        if product.op_type != "Mul" or (scaled := planes(product)) is None:
            continue
        maker = makers.get(scaled[0])
        if maker is None or maker.op_type in ("Cast", "Transpose"):
            continue  # a picture's own normalisation, once a run
        last, scale = product, scaled[1]
        offset = np.zeros_like(scale)
        between = product.output[0]
        follower = next((node for node in graph.node if between in node.input), None)
        alone = follower is not None and readers[between] == 1 and between not in ends
        if alone and follower.op_type == "Add" and (added := planes(follower)) is not None:
            last, offset = follower, added[1]
        if offset.size != scale.size:
            continue
        parts = {"scale": scale, "offset": offset, "mean": 0 * scale, "variance": 0 * scale + 1}
        names = [f"{product.name}/{part}" for part in parts]
        graph.initializer.extend(map(numpy_helper.from_array, parts.values(), names))
        inputs, outputs = [scaled[0], *names], [last.output[0]]
        fused = onnx.helper.make_node(
            "BatchNormalization", inputs, outputs, product.name, epsilon=0.0
        )
        graph.node.insert([*graph.node].index(product), fused)
        graph.node.remove(product)
        if last is not product:
            graph.node.remove(last)
    used = {*_reads(graph.node)} | ends
    for tensor in [*graph.initializer]:
        if tensor.name not in used:
            graph.initializer.remove(tensor)


def _halve(proto) -> None:
    casts = []
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32 or value.ndim < 2:
            continue
        name, half = tensor.name, f"{tensor.name}/fp16"
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), half))
        casts.append(onnx.helper.make_node("Cast", [half], [name], name, to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


class Quantizer:
    """Makes int8 files of one float32 model, whole or in part, from one calibration.

    Args:
        model: `onnx.ModelProto` from `to_onnx`.
        calibration: arrays by input name.
        exact: see `sensitivity.units`.

    Attributes:
        refused: the units that stay in float32 in any case.
    """

    def __init__(
        self,
        model,
        calibration: dict[str, np.ndarray],
        exact: Callable[[str], bool | None] = lambda name: False,
    ):
        from onnxruntime.quantization import CalibrationDataReader, quant_utils
        from onnxruntime.quantization.calibrate import create_calibrator

        class Reader(CalibrationDataReader):
            def __init__(self):
                count = len(next(iter(calibration.values())))
                self.feeds = (
                    {name: array[i : i + 8] for name, array in calibration.items()}
                    for i in range(0, count, 8)
                )

            def get_next(self):
                return next(self.feeds, None)

        with _quietly(), tempfile.TemporaryDirectory() as folder:
            self.model = quant_utils.save_and_reload_model_with_shape_infer(model)
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            observer = create_calibrator(path, _QUANTIZED, str(Path(folder) / "observed.onnx"))
            observer.collect_data(Reader())
            self._ranges = observer.compute_data()
        self._exact = exact
        self.refused = [unit for unit in self.units if unit.exact]

    def __call__(self, only: Unit | None = None, keep: Sequence[Unit] = (), outputs=()):
        """Return the model in int8: QDQ, weights per channel, unsigned activations.

        Args:
            only: the one unit to quantise; None for all.
            keep: units to leave in float32.
            outputs: names of tensors that the file shall return, too, as by `exposed`.
        """
        from onnxruntime import quantization

        model, keep = exposed(self.model, outputs), [*keep, *self.refused]
        with _quietly():
            work = quantization.QDQQuantizer(
                model,
                True,  # per channel
                # Weights in 7 bits: where a processor has AVX2 but no VNNI, onnxruntime adds two
                # products of 8 bits in 16, and what is above 32767 is lost without a word.
                True,
                quantization.QuantType.QInt8,
                quantization.QuantType.QUInt8,
                self._ranges,
                [*only.nodes] if only else [],
                [node for unit in keep for node in unit.nodes],
                _QUANTIZED,
                {},
            )
            work.quantize_model()
        _shield(work.model.model, {unit.nodes[0] for unit in keep})
        work.model.topological_sort()
        return work.model.model

    @functools.cached_property
    def units(self) -> list[Unit]:
        """The parts of the model that are int8 or float as a whole."""
        constants = {t.name: tuple(t.dims) for t in self.model.graph.initializer}
        steps = []
        for node in self.model.graph.node:
            fixed = [name for name in node.input if name in constants]
            operands = [constants[name] for name in fixed]
            steps.append(
                Step(
                    node.name,
                    node.op_type,
                    [name for name in _reads([node]) if name and name not in constants],
                    [*node.output],
                    max((math.prod(shape) for shape in operands), default=0),
                    node.op_type in _QUANTIZED,
                    # A fusion names the node after its last part, or not at all.
                    ";".join([*node.output, node.name, *(n for n in fixed[:1] if "/" in n)]),
                )
            )
        return units(steps, self._exact)

    def ends(self) -> list[str]:
        """Return the model's outputs, before their softmax or sigmoid if they have one."""
        makers = {name: node for node in self.model.graph.node for name in node.output}
        result = []
        for output in self.model.graph.output:
            node = makers.get(output.name)
            last = node is not None and node.op_type in ("Softmax", "Sigmoid")
            result.append(node.input[0] if last else output.name)
        return result


def _shield(proto, names: Collection[str]) -> None:
    """Keep onnxruntime from rounding the weights of these nodes by itself.

    It does so, with one scale for a whole kernel, where a node stands between DequantizeLinear and
    QuantizeLinear. A sum of one term is the copy that its optimizer leaves alone.
    """
    rounded = {n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    for node in [n for n in proto.graph.node if n.name in names and n.input[0] in rounded]:
        copy = f"{node.name}/float32"
        proto.graph.node.append(onnx.helper.make_node("Sum", [node.input[0]], [copy], copy))
        node.input[0] = copy


def exposed(proto, tensors: Sequence[str]):
    """Return a copy that returns inner tensors as further outputs, named `inner/0` and so on.

    What is quantised right behind a tensor is returned as its readers see it: rounded.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    rounding = {n.input[0]: n for n in result.graph.node if n.op_type == "QuantizeLinear"}
    for i, tensor in enumerate(tensors):
        # A second reader of the integers leaves the file's own fused kernels as they are.
        if node := rounding.get(tensor):
            read, operation = [node.output[0], *node.input[1:]], "DequantizeLinear"
        else:
            read, operation = [tensor], "Identity"
        name = f"inner/{i}"
        result.graph.node.append(onnx.helper.make_node(operation, read, [name], name))
        # Of the type that the runtime finds: a look-up of tokens begins with integers.
        result.graph.output.append(onnx.ValueInfoProto(name=name))
    return result


def kept(proto, units: Sequence[Unit]) -> list[Unit]:
    """Return the units that an int8 file has in float32: those that read nothing but unrounded."""
    rounded = {n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    small = {n.name for n in proto.graph.node if rounded.issuperset(filter(None, n.input))}
    present = {n.name for n in proto.graph.node}
    return [u for u in units if u.nodes[0] in present and small.isdisjoint(u.nodes)]


def read(path: Path):
    """Return a file's content as `Quantizer` and `exposed` take it."""
    return onnx.load(path)


def serialized(proto) -> bytes:
    """Return the bytes of a file."""
    return proto.SerializeToString()


def _quantize_dynamically(proto):
    from onnxruntime import quantization

    kinds = ["MatMul", "Gemm", "LSTM"]
    if not any(
        attribute.HasField("g") for node in proto.graph.node for attribute in node.attribute
    ):
        # A loop's body reads what is around it by names that the quantizer would change.
        kinds.append("Gather")
    with _quietly(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantization.quantize_dynamic(
            proto,
            path,
            op_types_to_quantize=kinds,
            per_channel=True,
            reduce_range=True,  # as in Quantizer
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(path)


@contextlib.contextmanager
def _quietly():
    """Silence advice that onnxruntime's quantizer logs about files that it did not see made."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class _Graph:
    """An ONNX graph whose weights lie beside it, so that folding moves numbers and not bytes."""

    def __init__(self, proto, weights: dict[str, np.ndarray]):
        self.proto, self.nodes = proto, list(proto.graph.node)
        self.values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.values |= weights
        for node in self.nodes:
            if node.op_type == "Constant":
                self.values[node.output[0]] = numpy_helper.to_array(_attributes(node)["value"])
        self.nodes = [n for n in self.nodes if n.op_type != "Constant"]
        self.ends = {o.name for o in proto.graph.output}
        inferred = onnx.shape_inference.infer_shapes(proto).graph
        self.ranks = {
            v.name: len(v.type.tensor_type.shape.dim)
            for v in (*inferred.value_info, *inferred.output)
            if v.type.tensor_type.HasField("shape")
        }
        # Names that a loop's body reads from outside count as read, too.
        self.readers = Counter(_reads(self.nodes))
        self.makers = {name: node for node in self.nodes for name in node.output}

    def only(self, name: str) -> bool:
        """Whether one node alone reads a value."""
        return self.readers[name] == 1 and name not in self.ends

    def fold(self) -> None:
        """Fold layouts into kernels, sums and factors into products, padding into windows."""
        for node in [*self.nodes]:
            self._fold_layout(node)
        for node in [*self.nodes]:
            if node.op_type == "Transpose":
                self._lift(node)
        for node in [*self.nodes]:
            match node.op_type:
                case "Add" | "Mul":
                    self._fold_into(node)
                case "MaxPool":
                    self._fold_padding(node)
        for node in self.nodes:
            # A product whose bias was zero is a Gemm like all others.
            if node.op_type == "MatMul" and self.ranks.get(node.input[0]) == 2:
                kernel = self.values.get(node.input[1])
                node.op_type = "Gemm" if kernel is not None and kernel.ndim == 2 else "MatMul"

    def _remove(self, node, replacement: str) -> None:
        """Drop a node; what read its first output reads `replacement`."""
        self.nodes.remove(node)
        for name in node.input:
            self.readers[name] -= 1
        if replacement == node.output[0]:
            return
        for other in self.nodes:
            for slot, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[slot] = replacement
                    self.readers[replacement] += 1

    def _fold_layout(self, node) -> None:
        value = self.values.get(node.input[0]) if node.input else None
        if value is None or node.output[0] in self.ends:
            return
        if node.op_type == "Transpose":
            value = value.transpose(_attributes(node).get("perm"))
        elif node.op_type == "Reshape" and node.input[1] in self.values:
            shape = [int(n) for n in self.values[node.input[1]]]
            value = value.reshape([n or value.shape[i] for i, n in enumerate(shape)])
        else:
            return
        self.values[node.output[0]] = value
        self._remove(node, node.output[0])

    def _lift(self, node) -> None:
        """Change the layout of a picture before it is normalised, not behind.

        Bytes move faster than floats, and a constant a channel is cheap only along whole planes.
        """
        if list(_attributes(node).get("perm", ())) != [0, 3, 1, 2]:
            return
        while (maker := self.makers.get(node.input[0])) is not None and self.only(node.input[0]):
            if maker.op_type not in ("Cast", "Mul", "Add"):
                return
            constants = [i for i, name in enumerate(maker.input) if name in self.values]
            if len(maker.input) - len(constants) != 1:
                return
            for slot in constants:
                value = self.values[maker.input[slot]]
                if value.size > 1 and (value.ndim > 4 or value.shape[-1] != value.size):
                    return
            for slot in constants:
                value = self.values[maker.input[slot]]
                if value.size > 1:
                    self._feed(maker, slot, f"{maker.output[0]}/planes", value.reshape(-1, 1, 1))
            (slot,) = {*range(len(maker.input))} - {*constants}
            before, between = maker.input[slot], maker.output[0]
            maker.input[slot], maker.output[0] = between, node.output[0]
            node.input[0], node.output[0] = before, between
            self.makers |= {between: node, maker.output[0]: maker}
            first, second = self.nodes.index(maker), self.nodes.index(node)
            self.nodes[first], self.nodes[second] = node, maker

    def _fold_into(self, node) -> None:
        """Fold a constant sum or factor into the Conv, Gemm or MatMul before it."""
        for source, other in (node.input[:], node.input[::-1]):
            value, maker = self.values.get(other), self.makers.get(source)
            if value is None or maker is None or not self.only(source):
                continue
            if maker.op_type not in ("Conv", "Gemm", "MatMul"):
                continue
            kernel = self.values.get(maker.input[1])
            if kernel is None or self.readers[maker.input[1]] != 1:
                continue
            rows = maker.op_type == "Conv" or _attributes(maker).get("transB", 0)
            channels = kernel.shape[0 if rows else -1]
            # A convolution's channels are its result's axis 1, a product's the last.
            place = 1 - kernel.ndim if maker.op_type == "Conv" else -1
            per_channel = value.ndim >= -place and value.shape[place] == value.size == channels
            if value.size != 1 and not per_channel:
                continue
            if maker.op_type == "MatMul" and not self.ranks.get(source) == kernel.ndim == 2:
                continue
            value = np.broadcast_to(value.ravel(), (channels,))
            bias = None
            if len(maker.input) > 2 and maker.input[2]:
                bias = self.values.get(maker.input[2])
                if bias is None or bias.size != channels or _attributes(maker).get("beta", 1) != 1:
                    continue
                bias = bias.ravel()
            if node.op_type == "Mul":
                shape = (-1, *[1] * (kernel.ndim - 1)) if rows else (1, -1)
                self._replace(maker, 1, kernel * value.reshape(shape))
                bias = bias if bias is None else bias * value
            else:
                bias = value if bias is None else bias + value
                maker.op_type = "Gemm" if maker.op_type == "MatMul" else maker.op_type
            if bias is not None:
                self._replace(maker, 2, bias)
            # The product takes this node's name, which may be an output of the model.
            self._remove(node, node.output[0])
            maker.output[0] = node.output[0]
            self.makers[node.output[0]] = maker
            return

    def _replace(self, node, slot: int, value: np.ndarray) -> None:
        """Give a convolution or product a kernel or bias of its own."""
        self._feed(node, slot, f"{node.output[0]}/{('kernel', 'bias')[slot - 1]}", value)

    def _feed(self, node, slot: int, name: str, value: np.ndarray) -> None:
        """Let a node read a new constant."""
        if slot < len(node.input):
            self.readers[node.input[slot]] -= 1
            node.input[slot] = name
        else:
            node.input.append(name)
        self.values[name] = np.asarray(value, order="C")
        self.readers[name] += 1

    def _fold_padding(self, node) -> None:
        """Let a MaxPool pad by itself where its input is never below the padding's zero."""
        pad = self.makers.get(node.input[0])
        if pad is None or pad.op_type != "Pad" or not self.only(pad.output[0]):
            return
        before, attributes = self.makers.get(pad.input[0]), _attributes(node)
        positive = before is not None and (
            before.op_type in ("Relu", "Sigmoid")
            or (before.op_type == "Clip" and np.all(self.values.get(before.input[1], -1) >= 0))
        )
        sizes = self.values.get(pad.input[1])
        fill = self.values.get(pad.input[2], 0) if len(pad.input) > 2 and pad.input[2] else 0
        if not positive or sizes is None or np.any(fill) or len(pad.input) > 3:
            return
        if _attributes(pad).get("mode", b"constant") != b"constant" or any(sizes < 0):
            return
        half = len(sizes) // 2
        inner = [int(n) for part in (sizes[:half], sizes[half:]) for n in part[2:]]
        if any(sizes[:2]) or any(sizes[half : half + 2]) or any(attributes.get("pads", ())):
            return
        windows = attributes["kernel_shape"]
        if any(p >= w for p, w in zip(inner, [*windows, *windows], strict=True)):
            return
        kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", inner)])
        self._remove(pad, pad.input[0])

    def finish(self, interface: Interface) -> None:
        """Write nodes and weights back, with the interface's names, shapes and batch axis."""
        graph = self.proto.graph
        used = {name for name, count in Counter(_reads(self.nodes)).items() if count} | self.ends
        for field in (graph.node, graph.initializer, graph.value_info, graph.input, graph.output):
            del field[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, order="C"), name)
            for name, value in self.values.items()
            if name in used
        )
        for field, ports in ((graph.input, interface.inputs), (graph.output, interface.outputs)):
            for port in ports:
                kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))
                shape = ["batch", *port.shape]
                field.append(onnx.helper.make_tensor_value_info(port.name, kind, shape))
        graph.name = interface.model.name
        self.proto.producer_name, self.proto.producer_version = "tiffin", ""


def _attributes(node) -> dict:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _reads(nodes):
    """Yield every name that these nodes read, those in loops' bodies too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _reads(attribute.g.node)
                yield from (o.name for o in attribute.g.output)


def _refuse_unknown(nodes, traced: Traced) -> None:
    unknown = Counter()
    for node in nodes:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, node.domain):
            unknown[node.op_type] += 1
    if unknown:
        operations = ", ".join(sorted(unknown))
        raise ExportError(
            f"{traced.origin(set(unknown))} uses the TensorFlow operation {operations}, which has "
            "no ONNX form. Write that layer with keras.ops that have one, or export to TFLite only."
        )
