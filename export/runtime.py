"""One way to run a `.keras`, `.onnx` or `.tflite` file: named arrays in, named arrays out."""

import abc
import contextlib
import dataclasses
import logging
import mmap
import os
import re
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError, nearest

# 200 pictures at once through MobileNetV2 would need 1 GB in one layer.
_CHUNK = 32
_NOISE = re.compile(
    rb"INFO:|[IW]0000 |E0000 .*cuda|WARNING: All log messages before absl|To enable the following"
)
_ONNX_TYPES = {"float": "float32", "double": "float64"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        name: its name in the file.
        shape: one entry an axis; None where any size is taken (the batch, above all).
        dtype: a numpy name, such as `uint8` or `float32`.
        quantized: whether the file itself holds integers with a scale and a zero point there.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    quantized: bool = False


class Runner(abc.ABC):
    """A loaded model. Call it with a batch of any size.

    Attributes:
        path: the file, or None for a model in memory.
        inputs: what it takes. A batch that is fixed in the file is shown as None: the runner loops.
        batch: the file's own fixed batch, of which a call takes multiples; None if any will do.
        outputs: what it returns; quantised integers are returned, and shown, as float32.
    """

    def __init__(self, path: Path | None, inputs: Sequence[Tensor], outputs: Sequence[Tensor]):
        free = any(t.shape and t.shape[0] is None for t in inputs)
        fixed = next((t.shape[0] for t in inputs if t.shape), None)
        self.path = path
        self.batch = None if free else fixed or 1
        self._batched = [bool(t.shape) and (t.shape[0] is None or not free) for t in inputs]
        self.inputs = tuple(
            _any_batch(t) if batched else t
            for t, batched in zip(inputs, self._batched, strict=True)
        )
        self.outputs = tuple(outputs if free else map(_any_batch, outputs))

    def __call__(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """Run the model on a batch.

        Args:
            inputs: an array for each name of `self.inputs`, the batch first, shapes as in
                `self.inputs`; a bare array if there is one input. Integers are taken where floats
                are expected (raw uint8 pixels, say), and floats where the file holds a quantised
                integer with scale and zero point; nothing else is converted.

        Returns:
            An array for each name of `self.outputs`, the batch first.

        Raises:
            InputError: a missing or unknown name, a wrong shape, dtype or batch size.
        """
        arrays = self.prepare(inputs)
        sizes = {len(a) for a, batched in zip(arrays, self._batched, strict=True) if batched}
        if len(sizes) > 1:
            raise InputError(f"The inputs of {self} differ in batch size: {sorted(sizes)}.")
        size = sizes.pop() if sizes else 1
        step = self.batch or _CHUNK
        if size == 0 or size % (self.batch or 1):
            raise InputError(f"{self} takes a multiple of {self.batch or 1} examples, not {size}.")
        parts = [
            self.step(
                [a[i : i + step] if b else a for a, b in zip(arrays, self._batched, strict=True)]
            )
            for i in range(0, size, step)
        ]
        join = [np.concatenate if np.ndim(value) else np.stack for value in parts[0]]
        columns = zip(*parts, strict=True)
        return {
            tensor.name: part[0] if len(parts) == 1 else together(part)
            for tensor, together, part in zip(self.outputs, join, columns, strict=True)
        }

    def __str__(self) -> str:
        return str(self.path or "the model")

    def prepare(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """Return the arrays in the order of `self.inputs`, checked and in the file's dtypes."""
        if not isinstance(inputs, Mapping):
            if len(self.inputs) != 1:
                names = ", ".join(t.name for t in self.inputs)
                raise InputError(f"{self} has several inputs: give a dictionary of {names}.")
            inputs = {self.inputs[0].name: inputs}
        known = [t.name for t in self.inputs]
        for name in inputs:
            if name not in known:
                raise InputError(f"{self} has no input '{name}'{nearest(name, known)}")
        if missing := [name for name in known if name not in inputs]:
            raise InputError(f"{self} needs the input '{missing[0]}' too.")
        return [self._convert(i, t, np.asarray(inputs[t.name])) for i, t in enumerate(self.inputs)]

    def _convert(self, index: int, tensor: Tensor, array: np.ndarray) -> np.ndarray:
        fits = array.ndim == len(tensor.shape) and all(
            want in (None, have) for want, have in zip(tensor.shape, array.shape, strict=True)
        )
        if not fits:
            shape = ["batch" if i == 0 and n is None else n for i, n in enumerate(tensor.shape)]
            raise InputError(
                f"{self} takes '{tensor.name}' in shape [{', '.join(map(str, shape))}], "
                f"not {list(array.shape)}."
            )
        if not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
            raise InputError(
                f"{self} takes '{tensor.name}' as {tensor.dtype}, not {array.dtype}: convert it."
            )
        return np.ascontiguousarray(array, tensor.dtype)

    @abc.abstractmethod
    def step(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Run once on arrays from `prepare`, of a batch that the file itself takes."""


def _any_batch(tensor: Tensor) -> Tensor:
    return dataclasses.replace(tensor, shape=(None, *tensor.shape[1:])) if tensor.shape else tensor


class _Onnx(Runner):
    def __init__(self, path: Path, threads: int | None):
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            inputs = [_onnx_tensor(v) for v in self._session.get_inputs()]
            outputs = [_onnx_tensor(v) for v in self._session.get_outputs()]
        except Exception as error:
            # onnxruntime's errors share no base but Exception.
            raise _unreadable(path, "an ONNX model that onnxruntime can run", error) from error
        super().__init__(path, inputs, outputs)

    def step(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        feed = {t.name: a for t, a in zip(self.inputs, arrays, strict=True)}
        try:
            return self._session.run(None, feed)
        except Exception as error:
            raise _unreadable(self.path, "an ONNX model that runs to its end", error) from error


def _onnx_tensor(value) -> Tensor:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(n if isinstance(n, int) else None for n in value.shape)
    return Tensor(value.name, shape, _ONNX_TYPES.get(kind, kind))


class _TFLite(Runner):
    def __init__(self, path: Path, threads: int | None):
        from ai_edge_litert.interpreter import Interpreter

        with open(path, "rb") as file:
            if file.read(8)[4:] != b"TFL3":
                raise _unreadable(path, "a TFLite model", "its identifier TFL3 is missing")
        _check_tflite(path)
        try:
            with quiet():
                interpreter = Interpreter(
                    model_path=str(path), num_threads=threads or os.cpu_count()
                )
                interpreter.allocate_tensors()
            ins, outs = _named_details(interpreter)
        except (ValueError, RuntimeError) as error:
            raise _unreadable(path, "a TFLite model that LiteRT can run", error) from error
        self._interpreter, self._ins, self._outs = interpreter, [*ins.values()], [*outs.values()]
        super().__init__(
            path,
            [_tflite_tensor(n, d, np.dtype(d["dtype"]).name) for n, d in ins.items()],
            [
                _tflite_tensor(n, d, "float32" if _scale(d) else np.dtype(d["dtype"]).name)
                for n, d in outs.items()
            ],
        )

    def _convert(self, index: int, tensor: Tensor, array: np.ndarray) -> np.ndarray:
        detail = self._ins[index]
        if array.dtype.kind == "f" and (scale := _scale(detail)):
            limits = np.iinfo(tensor.dtype)
            array = np.rint(array / scale) + detail["quantization"][1]
            array = array.clip(limits.min, limits.max).astype(tensor.dtype)
        return super()._convert(index, tensor, array)

    def step(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            return self._step(arrays)
        except (ValueError, RuntimeError) as error:
            raise _unreadable(self.path, "a TFLite model that runs to its end", error) from error

    def _step(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        resized = False
        for detail, array in zip(self._ins, arrays, strict=True):
            if tuple(detail["shape"]) != array.shape:
                self._interpreter.resize_tensor_input(detail["index"], array.shape)
                detail["shape"], resized = array.shape, True
        if resized:
            self._interpreter.allocate_tensors()
        for detail, array in zip(self._ins, arrays, strict=True):
            self._interpreter.set_tensor(detail["index"], array)
        self._interpreter.invoke()
        values = []
        for detail in self._outs:
            value = self._interpreter.get_tensor(detail["index"])
            if scale := _scale(detail):
                value = (value.astype(np.float32) - detail["quantization"][1]) * np.float32(scale)
            values.append(value)
        return values


def _check_tflite(path: Path) -> None:
    """Refuse a file without a graph, on which LiteRT would crash, and the process with it."""
    from ai_edge_litert.schema_py_generated import Model

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            root = Model.GetRootAs(content, 0)
            whole = root.SubgraphsLength() > 0 and root.OperatorCodesLength() > 0
        except (struct.error, IndexError, TypeError, ValueError):
            whole = False
    if not whole:
        raise _unreadable(path, "a TFLite model", "it holds no graph")


def _named_details(interpreter) -> tuple[dict[str, dict], dict[str, dict]]:
    """Return the details of inputs and outputs by name.

    A lone signature names the tensors of the main graph; without it their own names must do.
    """
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        return runner.get_input_details(), runner.get_output_details()
    ins, outs = interpreter.get_input_details(), interpreter.get_output_details()
    return {d["name"]: d for d in ins}, {d["name"]: d for d in outs}


def _scale(detail: dict) -> float:
    """Return a quantised integer tensor's scale, 0 for any other."""
    return detail["quantization"][0] if np.dtype(detail["dtype"]).kind in "iu" else 0.0


def _tflite_tensor(name: str, detail: dict, dtype: str) -> Tensor:
    shape = tuple(int(n) if n >= 0 else None for n in detail["shape_signature"])
    return Tensor(name, shape, dtype, bool(_scale(detail)))


@contextlib.contextmanager
def quiet(everything: bool = False) -> Iterator[None]:
    """Drop the lines of mere information that TensorFlow and LiteRT write while they load.

    They write to the process' standard error itself, past `sys.stderr` and every setting. All other
    lines pass when the block ends.

    Args:
        everything: drop them, too.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            for line in caught:
                if line.strip() and not everything and not _NOISE.match(line):
                    os.write(2, line)


class _Keras(Runner):
    def __init__(self, path: Path | None, model):
        import keras

        if not getattr(model, "inputs", None):
            raise InputError(
                f"{path or model.name} does not say what it takes: it was never built. Save "
                "keras.Model(inputs, model(inputs)) instead, with inputs = keras.Input(SHAPE)."
            )
        self.model = model
        if isinstance(model, keras.Sequential):  # it has no output names: the same layers have
            self.model = keras.Model(model.inputs, model.outputs)
        output = self.model.output
        names = sorted(output) if isinstance(output, dict) else self.model.output_names
        super().__init__(
            path,
            [_keras_tensor(t.name, t) for t in model.inputs],
            [_keras_tensor(n, t) for n, t in zip(names, self.model.outputs, strict=True)],
        )

    def step(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        import keras

        feed = keras.tree.pack_sequence_as(self.model.input, arrays)
        return keras.tree.flatten(self.model.predict_on_batch(feed))


def _keras_tensor(name: str, tensor) -> Tensor:
    return Tensor(name, tuple(tensor.shape), tensor.dtype)


def read_keras(path: str | os.PathLike):
    """Load a `.keras` file, without its optimizer and without running code that it carries.

    Returns:
        The `keras.Model`.

    Raises:
        InputError: the file is missing, damaged or no Keras model, holds a Lambda layer, or a layer
            whose module was not imported.
    """
    with quiet():
        import keras

    path = _existing(path)
    if not zipfile.is_zipfile(path):
        raise _unreadable(path, "a Keras 3 model", "it is no zip archive")
    try:
        with quiet():
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        # Loading runs the constructor of every layer: anything may be raised.
        cause = str(error)
        if unknown := re.search(r"Could not locate (?:class|function) '([^']+)'", cause):
            raise InputError(
                f"{path} holds the custom layer or function '{unknown[1]}', not known here. "
                "Import the module that defines it (on the command line: --imports MODULE); there "
                "it must be decorated with @keras.saving.register_keras_serializable()."
            ) from error
        if "Lambda" in cause or "unsafe" in cause:
            raise InputError(
                f"{path} holds a Lambda layer, Python code inside the file. It is not run, as it "
                "could do anything: put the function into a registered custom layer and save again."
            ) from error
        raise _unreadable(path, "a Keras 3 model", error) from error


def load(path: str | os.PathLike, threads: int | None = None) -> Runner:
    """Load a model file into the runtime of its kind: Keras, onnxruntime or LiteRT, on the CPU.

    Args:
        path: a `.keras`, `.onnx` or `.tflite` file.
        threads: how many threads one call may use (not for `.keras`); None means all cores.

    Returns:
        The model, to be called with batches of any size.

    Raises:
        InputError: no such file, no model, of an unknown kind, or one that its runtime cannot run.
    """
    path = _existing(path)
    match path.suffix.lower():
        case ".keras":
            return _Keras(path, read_keras(path))
        case ".onnx":
            return _Onnx(path, threads)
        case ".tflite":
            return _TFLite(path, threads)
    raise InputError(
        f"{path} is of no kind that can be run here: .keras, .onnx and .tflite are. "
        "Save a Keras model of another kind with model.save('NAME.keras')."
    )


def allow_retracing() -> None:
    """Keep TensorFlow from warning that it makes graphs of many shapes or models."""
    logging.getLogger("tensorflow").addFilter(
        lambda record: "tf.function retracing" not in record.getMessage()
    )


def of_model(model) -> Runner:
    """Wrap a `keras.Model` in memory as a `Runner`.

    Raises:
        InputError: a subclassed model that was never built.
    """
    return _Keras(None, model)


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a .keras, .onnx or .tflite file.")
    if not path.exists():
        siblings = [p.name for p in path.parent.glob(f"*{path.suffix}")]
        raise InputError(f"There is no file {path}{nearest(path.name, siblings) or '.'}")
    return path


def _unreadable(path: Path, kind: str, cause: object) -> InputError:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    why = lines[-1][:300].rstrip(".") if lines else type(cause).__name__
    return InputError(
        f"{path} cannot be read as {kind} ({why}): the file is damaged, or is no such model. "
        "Copy or export it again."
    )
