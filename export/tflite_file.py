"""A traced model to TFLite."""

import collections
import contextlib
import functools
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tiffin.export import runtime
from tiffin.export.convert import Interface, Traced
from tiffin.export.errors import ExportError
from tiffin.export.sensitivity import Step, Unit, units

SIGNATURE = "serving_default"
# XNNPACK refuses a whole file in which a step of a kernel's input times one of its weights makes so
# many steps of its result (256; a little less, as it computes the ratio in its own way).
_MOST_STEPS = 255.0


def to_tflite(interface: Interface, traced: Traced) -> bytes:
    """Convert a model traced with a batch of 1.

    Only operations that every LiteRT interpreter has are allowed (no TensorFlow Select operations).

    Returns:
        A float32 `.tflite` file with one signature that names the interface's inputs and outputs.

    Raises:
        ExportError: an operation has no TFLite form; the message names the layer that made it.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import ConverterError, convert_graphdef

    frozen = traced.with_constants({*traced.weights})
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(traced.graph, name="")
        inputs = [graph.get_tensor_by_name(f"{name}:0") for name in traced.inputs]
        outputs = [graph.get_tensor_by_name(name) for name in traced.outputs]
    try:
        # What it writes, its exception says as well.
        with runtime.quiet(everything=True):
            model = convert_graphdef(
                frozen, inputs, outputs, target_ops=[tf.lite.OpsSet.TFLITE_BUILTINS]
            )
    except ConverterError as error:
        raise _unsupported(str(error), traced) from error
    return _with_signature(model, interface)


def reduce(model: bytes, precision: str, interface: Interface, calibration) -> bytes:
    """Return a float32 model in another precision.

    Args:
        model: from `to_tflite`.
        precision: `fp32`; `fp16` (16-bit weights, computed with in 32 bits unless the device does
            better); `int8` (static, weights per channel; a softmax, inputs and outputs stay as they
            are); `int8_dynamic`.
        interface: what leaves.
        calibration: arrays by input name, for `int8`.

    Raises:
        ExportError: the model holds a loop, which cannot be calibrated.
    """
    if precision == "fp32":
        return model
    if precision == "int8":
        return Quantizer(model, calibration, interface.is_exact)()
    from litert_quantizer import algorithm_manager, qtyping, quantizer, recipe

    names, operations = algorithm_manager.AlgorithmName, qtyping.TFLOperationName
    work = quantizer.Quantizer(bytearray(model))
    with _quietly():
        match precision:
            case "fp16":
                half = qtyping.TensorQuantizationConfig(
                    num_bits=16, dtype=qtyping.TensorDataType.FLOAT
                )
                work.update_quantization_recipe(
                    ".*",
                    operations.ALL_SUPPORTED,
                    qtyping.OpQuantizationConfig(
                        weight_tensor_config=half,
                        compute_precision=qtyping.ComputePrecision.FLOAT,
                        explicit_dequantize=True,
                    ),
                    names.FLOAT_CASTING,
                )
                result = work.quantize()
            case "int8_dynamic":
                work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
                result = work.quantize()
    return _finished(bytes(result.quantized_model))


class Quantizer:
    """Makes int8 files of one float32 model, whole or in part, from one calibration.

    Args:
        model: a `.tflite` file from `to_tflite`.
        calibration: arrays by input name.
        exact: see `sensitivity.units`.

    Attributes:
        refused: the units that stay in float32 in any case: exact ones, and those that no runtime
            would take in int8, such as a SPLIT of which a part is not read.

    Raises:
        ExportError: the model holds a loop, which cannot be calibrated.
    """

    def __init__(
        self,
        model: bytes,
        calibration: dict[str, np.ndarray],
        exact: Callable[[str], bool | None] = lambda name: False,
    ):
        _refuse_loops(model)
        self.model = model
        self._exposed = functools.lru_cache(1)(functools.partial(exposed, model))
        with _quietly():
            self._ranges = _ranges(model, calibration)
        self._exact = exact
        unread = {*_unread(model)}
        exactly = [
            unit
            for unit in self.units
            if unit.exact or unread & {name for node in unit.nodes for name in node.split(";")}
        ]
        self.refused = [*exactly, *_refused(self._quantized(keep=exactly), self.units)]

    def __call__(
        self, only: Unit | None = None, keep: Sequence[Unit] = (), outputs: Sequence[str] = ()
    ) -> bytes:
        """Return the model in int8: weights per channel; a softmax, inputs and outputs in float32.

        Args:
            only: the one unit to quantise; None for all.
            keep: units to leave in float32.
            outputs: names of tensors that the file shall return, too, as by `exposed`.
        """
        result = self._quantized(only, [*keep, *self.refused], outputs)
        apart = only and not {f"{tensor};" for tensor in outputs} & {*only.nodes}
        if apart and _is_signed(result):
            # No client but this one will open it, and packing a large net costs a second.
            return result
        return _finished(result, _places(self._exposed(tuple(outputs))))

    def _quantized(self, only=None, keep=(), outputs=()) -> bytes:
        """Return what the quantizer writes."""
        from litert_quantizer import algorithm_manager, qtyping, quantizer, recipe

        never, operations = algorithm_manager.AlgorithmName.NO_QUANTIZE, qtyping.TFLOperationName
        model = self._exposed(tuple(outputs))
        work = quantizer.Quantizer(bytearray(model))
        rules = recipe.static_wi8_ai8()
        if only:
            rules = [rule | {"regex": _matching([only])} for rule in rules]
        with _quietly():
            work.load_quantization_recipe(rules)
            # In int8 a probability could move in steps of 1/256 only.
            free = [operations.SOFTMAX]
            if only or keep:
                # A unit in float at an end must not meet rounded values there.
                free += [operations.INPUT, operations.OUTPUT]
            for operation in free:
                work.update_quantization_recipe(".*", operation, algorithm_key=never)
            if keep:
                work.update_quantization_recipe(
                    _matching(keep), operations.ALL_SUPPORTED, algorithm_key=never
                )
            return bytes(work.quantize(self._ranges).quantized_model)

    @functools.cached_property
    def units(self) -> list[Unit]:
        """The parts of the model that are int8 or float as a whole."""
        from litert_quantizer import algorithm_manager, qtyping, recipe, recipe_manager
        from litert_quantizer.utils import tfl_flatbuffer_utils as known

        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe.static_wi8_ai8())
        never = algorithm_manager.AlgorithmName.NO_QUANTIZE
        kinds = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        content = schema.ModelT.InitFromPackedBuf(self.model)
        graph, steps = content.subgraphs[0], []
        made = {int(i) for operator in graph.operators for i in operator.outputs}
        made |= {int(i) for i in graph.inputs}
        for operator in graph.operators:
            code = content.operatorCodes[operator.opcodeIndex].builtinCode
            key = known.TFL_OP_CODE_TO_NAME.get(code)
            taken = key not in (None, qtyping.TFLOperationName.SOFTMAX)
            sources = [int(i) for i in operator.inputs if i >= 0]
            fixed = [graph.tensors[i] for i in sources if i not in made]
            fixed = [t for t in fixed if t.type == schema.TensorType.FLOAT32]
            sizes = {_name(t): int(np.prod(t.shape)) for t in fixed}
            largest = max(sizes, key=sizes.__getitem__, default="")
            steps.append(
                Step(
                    known.get_op_scope(operator, graph.tensors),
                    kinds[code],
                    [_name(graph.tensors[i]) for i in sources if i in made],
                    [_name(graph.tensors[i]) for i in operator.outputs],
                    sizes.get(largest, 0),
                    taken and manager.get_quantization_configs(key, "")[0] != never,
                    # Results are named after all that was fused into them, kernels after one layer.
                    largest if "/" in largest else "",
                )
            )
        return units(steps, self._exact)

    def ends(self) -> list[str]:
        """Return the model's outputs, before their softmax or sigmoid if they have one."""
        content = schema.ModelT.InitFromPackedBuf(self.model)
        graph, last = content.subgraphs[0], schema.BuiltinOperator
        makers = {int(i): operator for operator in graph.operators for i in operator.outputs}
        result = []
        for index in graph.outputs:
            maker = makers.get(int(index))
            if maker is not None:
                code = content.operatorCodes[maker.opcodeIndex].builtinCode
                index = maker.inputs[0] if code in (last.SOFTMAX, last.LOGISTIC) else index
            result.append(_name(graph.tensors[index]))
        return result


def _refused(model: bytes, units: Sequence[Unit]) -> list[Unit]:
    """Return the units of an int8 file in which a channel has next to no range beside its weights.

    Batch normalisation makes such weights of a channel that hardly varies.
    """
    kinds = schema.BuiltinOperator
    kernels = {kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.FULLY_CONNECTED}
    content = schema.Model.GetRootAs(model)
    graph, names = content.Subgraphs(0), set()
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        if content.OperatorCodes(operator.OpcodeIndex()).BuiltinCode() not in kernels:
            continue
        tensors = [graph.Tensors(j) for j in (*operator.InputsAsNumpy()[:2], operator.Outputs(0))]
        known = [t.Quantization() for t in tensors if t.Quantization()]
        scales = [q.ScaleAsNumpy() for q in known if q.ScaleLength()]
        if len(scales) == 3 and (scales[0] * scales[1] / scales[2]).max() >= _MOST_STEPS:
            names.add(f"{tensors[2].Name().decode()};")
    return [unit for unit in units if names & {*unit.nodes}]


def _matching(units: Sequence[Unit]) -> str:
    """Return the regular expression that the operations of these units match, and no others."""
    return "^(?:" + "|".join(re.escape(n) for unit in units for n in unit.nodes) + ")$"


def _name(tensor) -> str:
    return tensor.name.decode() if isinstance(tensor.name, bytes) else tensor.name


def _entry(name: str, tensor: int):
    """Return a signature's entry."""
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, int(tensor)
    return entry


def _is_signed(model: bytes) -> bool:
    """Say whether the graph returns what its signature names; see `_finished`."""
    root = schema.Model.GetRootAs(model)
    signature, returned = root.SignatureDefs(0), {*map(int, root.Subgraphs(0).OutputsAsNumpy())}
    named = {signature.Outputs(i).TensorIndex() for i in range(signature.OutputsLength())}
    return named <= returned


def exposed(model: bytes, tensors: Sequence[str]) -> bytes:
    """Return a copy that returns inner tensors as further outputs, named `inner/0` and so on."""
    if not tensors:
        return model
    content = schema.ModelT.InitFromPackedBuf(model)
    graph, signature = content.subgraphs[0], content.signatureDefs[0]
    places = {_name(tensor): index for index, tensor in enumerate(graph.tensors)}
    outputs = [*map(int, graph.outputs)]
    for i, tensor in enumerate(tensors):
        signature.outputs.append(_entry(f"inner/{i}", places[tensor]))
        if places[tensor] not in outputs:
            outputs.append(places[tensor])
    graph.outputs = outputs
    return _packed(content, len(model))


def kept(model: bytes, units: Sequence[Unit]) -> list[Unit]:
    """Return the units that an int8 file has in float32."""
    tensors = schema.ModelT.InitFromPackedBuf(model).subgraphs[0].tensors
    plain = {_name(t) for t in tensors if t.type == schema.TensorType.FLOAT32}
    return [unit for unit in units if unit.result in plain]


def read(path: Path) -> bytes:
    """Return a file's content as `Quantizer` and `exposed` take it."""
    return path.read_bytes()


def serialized(model: bytes) -> bytes:
    """Return the bytes of a file."""
    return model


def _ranges(model: bytes, calibration) -> dict:
    """Return the range of each tensor over the calibration data.

    The quantizer's own way, a moving average of each example's range, cuts off what exceeds the
    average: ten times the error on a trained MobileNetV2, and a point of its accuracy.
    """
    from litert_quantizer import calibrator, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    # The calibrator asks for every result, and XNNPACK keeps none that nobody reads.
    model = exposed(model, _unread(model))
    observer = calibrator.Calibrator(model, num_threads=2, qsv_update_func=qsv_utils.min_max_update)
    count = len(next(iter(calibration.values())))
    feeds = [{name: array[i : i + 1] for name, array in calibration.items()} for i in range(count)]
    observer.calibrate({SIGNATURE: feeds}, manager)
    ranges = observer.get_model_qsvs()
    for seen in ranges.values():
        # XNNPACK fails, or brings its process down, where a result of next to no range is made
        # from integers of usual size. What was nothing but zero, as behind a dead ReLU, has no
        # range to keep.
        if not np.any(seen["min"]) and not np.any(seen["max"]):
            seen["max"] = np.ones_like(seen["max"])
    return ranges


def _unread(model: bytes) -> list[str]:
    """Return the results of the main graph that are neither read nor returned."""
    graph = schema.ModelT.InitFromPackedBuf(model).subgraphs[0]
    read = {int(i) for operator in graph.operators for i in operator.inputs}
    made = {int(i) for operator in graph.operators for i in operator.outputs}
    return [_name(graph.tensors[i]) for i in sorted(made - read - {*map(int, graph.outputs)})]


def _places(model: bytes) -> dict[str, int]:
    """Return the place of each of the signature's outputs among those of the main graph."""
    root = schema.Model.GetRootAs(model)
    signature, order = root.SignatureDefs(0), [*root.Subgraphs(0).OutputsAsNumpy()]
    entries = [signature.Outputs(i) for i in range(signature.OutputsLength())]
    return {entry.Name().decode(): order.index(entry.TensorIndex()) for entry in entries}


def _finished(model: bytes, places: Mapping[str, int] | None = None) -> bytes:
    """Make a quantizer's file one that every client opens.

    Weights move from behind the flatbuffer into it, where older runtimes look for them, and
    quantised inputs and outputs get their conversion from and to float as the graph's own.

    Args:
        model: from the quantizer.
        places: of the signature's outputs in the main graph. The quantizer leaves a name with the
            integers where a result both leaves and is read in float.
    """
    content = schema.ModelT.InitFromPackedBuf(model)
    for entry in content.signatureDefs[0].outputs if places else ():
        entry.tensorIndex = int(content.subgraphs[0].outputs[places[_name(entry)]])
    weights = np.frombuffer(model, np.uint8)
    for buffer in content.buffers:
        if buffer.offset > 1:
            buffer.data = weights[buffer.offset : buffer.offset + buffer.size]
            buffer.offset = buffer.size = 0
    for inputs in (True, False):
        _convert_ends(content, inputs)
    return _packed(content, len(model))


def _convert_ends(content, inputs: bool) -> None:
    """Let float32 enter or leave where the main graph's first or last tensors are int8."""
    graph, signature = content.subgraphs[0], content.signatureDefs[0]
    kind = "QUANTIZE" if inputs else "DEQUANTIZE"
    ends = [*(graph.inputs if inputs else graph.outputs)]
    entries = collections.defaultdict(list)  # of one tensor two, where an output is looked at, too
    for entry in signature.inputs if inputs else signature.outputs:
        entries[entry.tensorIndex].append(entry)
    for place, index in enumerate(ends):
        inner = graph.tensors[index]
        if inner.type != schema.TensorType.INT8:
            continue
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
        code.version = 2  # int8 beside uint8
        content.operatorCodes.append(code)
        outer = schema.TensorT()
        outer.name, outer.type, outer.buffer = entries[index][0].name, schema.TensorType.FLOAT32, 0
        outer.shape, outer.shapeSignature = inner.shape, inner.shapeSignature
        graph.tensors.append(outer)
        operator, new = schema.OperatorT(), len(graph.tensors) - 1
        operator.opcodeIndex = len(content.operatorCodes) - 1
        operator.inputs = [new if inputs else index]
        operator.outputs = [index if inputs else new]
        graph.operators.insert(0 if inputs else len(graph.operators), operator)
        ends[place] = new
        for entry in entries[index]:
            entry.tensorIndex = new
    if inputs:
        graph.inputs = ends
    else:
        graph.outputs = ends


def _packed(content, size: int) -> bytes:
    class Builder(flatbuffers.Builder):
        def CreateNumpyVector(self, x):
            # The schema's force_align for weights, which Python's generated code leaves out.
            self.Prep(16, x.nbytes)
            return super().CreateNumpyVector(x)

    builder = Builder(size + 65536)
    builder.Finish(content.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _refuse_loops(model: bytes) -> None:
    if schema.Model.GetRootAs(model).SubgraphsLength() > 1:
        raise ExportError(
            "TFLite in int8 cannot calibrate a loop (a recurrent layer): build that layer with "
            "unroll=True, or ask for int8_dynamic instead of int8."
        )


@contextlib.contextmanager
def _quietly():
    """Drop the progress bars and sizes that the quantizer prints."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
        runtime.quiet(),
    ):
        warnings.simplefilter("ignore", UserWarning)
        yield


class Editor:
    """A `.tflite` file to put further operations behind.

    Args:
        model: the file.

    Attributes:
        outputs: tensor by the name of an output in the signature.
    """

    def __init__(self, model: bytes):
        self._size = len(model)
        self._content = schema.ModelT.InitFromPackedBuf(model)
        self._graph, self._signature = self._content.subgraphs[0], self._content.signatureDefs[0]
        self.outputs = {_name(entry): entry.tensorIndex for entry in self._signature.outputs}

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(map(int, self._graph.tensors[tensor].shape))

    def constant(self, value: np.ndarray) -> int:
        """Add a constant; returns its tensor."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        self._content.buffers.append(buffer)
        place = len(self._content.buffers) - 1
        return self._tensor(f"constant_{place}", value.shape, value.dtype.name, place)

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        results: Mapping[str, tuple[tuple[int, ...], str]],
        options: bytes | None = None,
    ) -> list[int]:
        """Add an operation behind the others; returns the tensors of its results.

        Args:
            name: of a built-in operation, whose own options are left at their defaults, or of a
                custom one.
            inputs: tensors.
            results: shape and dtype by name.
            options: of a custom operation.
        """
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        if options is not None:
            code.customCode, operator.customOptions = name, np.frombuffer(options, np.uint8)
        kind = getattr(schema.BuiltinOperator, name if options is None else "CUSTOM")
        code.builtinCode = code.deprecatedBuiltinCode = kind
        self._content.operatorCodes.append(code)
        operator.opcodeIndex = len(self._content.operatorCodes) - 1
        operator.inputs = [*inputs]
        operator.outputs = [self._tensor(n, *result) for n, result in results.items()]
        self._graph.operators.append(operator)
        return operator.outputs

    def _tensor(self, name: str, shape: Sequence[int], dtype: str, buffer: int = 0) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, [*shape], buffer
        tensor.type = getattr(schema.TensorType, dtype.upper())
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def end(self, outputs: Mapping[str, int]) -> None:
        """Let these tensors be the outputs, by name."""
        self._graph.outputs = [*outputs.values()]
        self._signature.outputs = [_entry(*item) for item in outputs.items()]

    def packed(self) -> bytes:
        """Return the file."""
        return _packed(self._content, self._size)


def _unsupported(message: str, traced: Traced) -> ExportError:
    known = {node.op for node in traced.graph.node}
    known |= {node.op for f in traced.graph.library.function for node in f.node_def}
    # "Flex ops: Erf, Acos" in the summary, "'tf.Acos' op is neither ..." in the details.
    listed = re.findall(r"(?:Flex|Select|Custom) ops?:\s*([\w, ]+)", message)
    found = {name.strip() for part in listed for name in part.split(",")}
    found |= set(re.findall(r"'tf\.(\w+)' op", message))
    if found := found & known:
        return ExportError(
            f"{traced.origin(found)} uses the TensorFlow operation {', '.join(sorted(found))}, "
            "which LiteRT has no built-in form of. Write that layer with keras.ops that have one, "
            "or export to ONNX only."
        )
    layers = {traced.layer(place) for place in re.findall(r'loc\("([^"]+)"', message)} - {None}
    where = " and ".join(f"'{name}'" for name in sorted(layers)) or "the model"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    why = lines[0][:300] if lines else "no reason given"
    return ExportError(
        f"The TFLite converter cannot convert {where} ({why}). "
        "Write that layer another way, or export to ONNX only."
    )


def _with_signature(model: bytes, interface: Interface) -> bytes:
    """Name the inputs and outputs, both as tensors and in a signature."""
    content = schema.ModelT.InitFromPackedBuf(model)
    graph = content.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    signature.inputs, signature.outputs = [], []
    for indices, ports, maps in (
        (graph.inputs, interface.inputs, signature.inputs),
        (graph.outputs, interface.outputs, signature.outputs),
    ):
        for index, port in zip(indices, ports, strict=True):
            graph.tensors[index].name = port.name
            maps.append(_entry(port.name, index))
    content.signatureDefs = [signature]
    return _packed(content, len(model))
