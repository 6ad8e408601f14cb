"""Which layers int8 costs most in, and which few of them are left in float32.

Two figures tell a layer's own error from what it inherits, both as the ratio of signal to
quantisation noise in decibels (10 log10 of the power of float32's values over that of the
difference; 20 dB are a tenth, 0 dB means that the error is as large as the value):

- `sqnr_db`, at the layer's result in the int8 file: its own error and that of all before it;
- `alone_db`, at the model's outputs (before a softmax; of a detector, before boxes and choice) when
  this layer alone is int8 and all others are float32: what it adds, weighed by how much the model
  minds. Layers are ranked by this one.

Both formats are asked through their real quantisers and runtimes, one file a layer; nothing is
simulated. An activation that int8 cannot hold shows in the layer that makes it and in those that
read it, as its result is float32 only if they all are.
"""

import csv
import dataclasses
import io
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tiffin.export import documents, runtime, verify
from tiffin.export.convert import layer_in
from tiffin.export.errors import InputError

# The figures settle within a decibel or two, and a large net is run once a layer.
_EXAMPLES, _LARGE_EXAMPLES = 16, 8
_LARGE = 100_000
_HIGHEST = 120.0
_KERNELS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "CONV_2D", "DEPTHWISE_CONV_2D"}
_KERNELS |= {"CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"}
_MOVES = {"Transpose", "Reshape", "Squeeze", "Pad", "TRANSPOSE", "RESHAPE", "SQUEEZE", "PAD"}
_ARITHMETIC = {"Add", "Mul", "Sub", "Div", "ADD", "MUL", "SUB", "DIV"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a file's graph.

    Attributes:
        name: what the format's quantiser knows it by.
        operation: its type.
        sources: the tensors that it reads, without constants.
        results: the tensors that it makes.
        constant: number of elements of the largest constant that it computes with.
        quantized: whether int8 takes it.
        label: a name that tells its layer better than `name`.
    """

    name: str
    operation: str
    sources: Sequence[str]
    results: Sequence[str]
    constant: int
    quantized: bool
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is int8 or float32 as a whole: an operation and what only reshapes or limits its result.

    Attributes:
        operation: the type of the first operation.
        nodes: the names of those that int8 takes.
        result: the tensor that the last of them makes.
        weighted: whether it is a convolution or a matrix product.
        label: a name of its first operation that tells the layer.
        exact: whether it is float32 in any case.
        last: whether one that is exact reads it, such as what makes boxes of a detector's heads.
    """

    operation: str
    nodes: tuple[str, ...]
    result: str
    weighted: bool
    label: str
    exact: bool = False
    last: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer in the table.

    Attributes:
        layer: name of the Keras layer; of a layer with several, `NAME (2)` and so on.
        operation: as the format calls it.
        sqnr_db: signal over noise at its result, inherited noise included.
        alone_db: signal over noise at the model's outputs when it alone is int8.
        kept: whether the file has it in float32.
    """

    layer: str
    operation: str
    sqnr_db: float
    alone_db: float
    kept: bool


def units(
    steps: Sequence[Step], exact: Callable[[str], bool | None] = lambda name: False
) -> list[Unit]:
    """Divide a graph into the parts that are quantised, or not, as a whole.

    A convolution, a matrix product, arithmetic with a constant of several numbers, and whatever
    joins several branches begin a part; activations, pooling, padding and the like, which see
    nothing but one part's results, belong to it.

    Args:
        steps: the operations, each behind those that it reads from.
        exact: whether an operation of this name stays in float32 in any case; None where its name
            tells no layer: then it does as what it reads from.
    """
    owner: dict[str, int] = {}
    parts: list[list[Step]] = []
    kept: list[bool] = []
    last: set[int] = set()
    for step in steps:
        origins = {owner.get(source) for source in step.sources}
        exactly = exact(step.label or step.name)
        if exactly is None:
            exactly = bool(origins) and all(i is not None and kept[i] for i in origins)
        begins = step.operation in _KERNELS
        begins |= step.operation in _ARITHMETIC and step.constant > 1
        begins |= len(origins) != 1 or None in origins
        if begins or kept[next(iter(origins))] != exactly:
            parts.append([])
            kept.append(exactly)
            index = len(parts) - 1
        else:
            index = origins.pop()
        if exactly:
            last |= {i for i in origins if i is not None and not kept[i]}
        parts[index].append(step)
        owner |= dict.fromkeys(step.results, index)
    result = []
    for i, (part, exactly) in enumerate(zip(parts, kept, strict=True)):
        taken = [step for step in part if step.quantized]
        # What only moves the model's own input does not round it.
        working = [step for step in taken if step.operation not in _MOVES]
        if working or (taken and exactly):
            head = (working or taken)[0]
            nodes = tuple(step.name for step in taken)
            weighted = head.operation in _KERNELS and head.constant > 0
            label = head.label or head.name
            end = taken[-1].results[0]
            result.append(Unit(head.operation, nodes, end, weighted, label, exactly, i in last))
    return result


def named(units: Sequence[Unit], name: Callable[[str], str | None]) -> dict[Unit, str]:
    """Return the units' layers; the second of one layer is `NAME (2)`, and so on.

    Args:
        units: the parts of a model.
        name: the name of a layer by the name of one of its operations; None where it knows none.
    """
    seen: Counter[str] = Counter()
    names = {}
    for unit in units:
        text = name(unit.label) or unit.result
        seen[text] += 1
        names[unit] = text if seen[text] == 1 else f"{text} ({seen[text]})"
    return names


class Study:
    """What int8 costs, layer by layer, in one float32 model of either format.

    Args:
        kind: `onnx` or `tflite`.
        quantizer: the format's `Quantizer` of that model.
        inputs: arrays by input name; at most 16 examples are used, 8 large ones.
        name: the name of a layer by the name of one of its operations.
    """

    def __init__(
        self,
        kind: str,
        quantizer,
        inputs: Mapping[str, np.ndarray],
        name: Callable[[str], str | None],
    ):
        self._home, self._kind, self._quantizer = home(kind), kind, quantizer
        size = sum(array[:1].size for array in inputs.values())
        most = _LARGE_EXAMPLES if size > _LARGE else _EXAMPLES
        self._inputs, _ = verify.examples(inputs, most)
        self.units = [unit for unit in quantizer.units if not unit.exact]
        self.names = named(self.units, name)
        # Of detections another order would be noise; of the heads before them it is none.
        ends = [unit.result for unit in self.units if unit.last] or quantizer.ends()
        wanted = self._run(self._home.exposed(quantizer.model, ends))
        self.alone: dict[Unit, float] = {}
        for unit in self.units:
            if unit in quantizer.refused:
                self.alone[unit] = -_HIGHEST
                continue
            got = self._run(quantizer(only=unit, outputs=ends))
            noise = [_noise(wanted[f"inner/{i}"], got[f"inner/{i}"]) for i in range(len(ends))]
            self.alone[unit] = _decibels(float(np.mean(noise)))

    def _run(self, content, inputs=None) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model.{self._kind}"
            path.write_bytes(self._home.serialized(content))
            return runtime.load(path)(inputs or self._inputs)

    def ranked(self) -> list[Unit]:
        """Return the units, the one that costs most first."""
        return sorted(self.units, key=self.alone.__getitem__)

    def choices(self) -> Iterator[list[Unit]]:
        """Yield what to leave in float32: the worst 1, 2, 4, 8, ... units.

        At most a quarter as many as there are layers with weights; two in a small model, too, as an
        activation between two layers is float32 only if both are. Those that are so in any case do
        not count.
        """
        most, count = max(2, sum(unit.weighted for unit in self.units) // 4), 1
        ranked = [unit for unit in self.ranked() if unit not in self._quantizer.refused]
        while True:
            yield [*self._quantizer.refused, *ranked[: min(count, most)]]
            if count >= min(most, len(ranked)):
                return
            count *= 2

    def rows(self, content, kept: Sequence[Unit]) -> list[Row]:
        """Compare an int8 file with float32 layer by layer.

        Args:
            content: the file, as the format's `Quantizer` returns it.
            kept: the units that it has in float32.
        """
        tensors = [unit.result for unit in self.units]
        signal, noise = np.zeros(len(tensors)), np.zeros(len(tensors))
        with tempfile.TemporaryDirectory() as folder:
            runners = []
            for i, model in enumerate((self._quantizer.model, content)):
                path = Path(folder) / f"{i}.{self._kind}"
                path.write_bytes(self._home.serialized(self._home.exposed(model, tensors)))
                runners.append(runtime.load(path))
            # All activations of many pictures at once would need gigabytes.
            for start in range(len(next(iter(self._inputs.values())))):
                feed = {name: array[start : start + 1] for name, array in self._inputs.items()}
                wanted, got = (runner(feed) for runner in runners)
                for i in range(len(tensors)):
                    value = np.float64(wanted[f"inner/{i}"])
                    signal[i] += np.sum(value**2)
                    noise[i] += np.sum((np.float64(got[f"inner/{i}"]) - value) ** 2)
        return [
            Row(
                self.names[unit],
                unit.operation,
                _decibels(noise[i] / max(signal[i], 1e-30)),
                self.alone[unit],
                unit in kept,
            )
            for i, unit in enumerate(self.units)
        ]


def explain(float_file, int8_file, inputs, model=None) -> list[Row]:
    """Compare an exported pair layer by layer, as `tiffin export --explain` does.

    One thing is left out that the command shows: a batch normalisation that stands alone in the
    float ONNX file, as before an activation, has no row.

    Args:
        float_file: the `_fp32.onnx` or `_fp32.tflite` file.
        int8_file: its int8 twin.
        inputs: raw inputs like those that were calibrated with, `[examples, ...]`, or one array per
            input name. They set the ranges of the single layers, too.
        model: the `keras.Model` that was exported, to name the layers by; without it they are named
            as the file names its operations.

    Raises:
        InputError: a file is missing or damaged, or they are no pair.
    """
    float_file, int8_file = Path(float_file), Path(int8_file)
    kind = float_file.suffix[1:]
    if kind not in ("onnx", "tflite") or int8_file.suffix != float_file.suffix:
        raise InputError(
            f"{float_file.name} and {int8_file.name} are no pair: name the fp32 and the int8 file "
            "of one export, both .onnx or both .tflite."
        )
    runner = runtime.load(float_file)
    runtime.load(int8_file)
    if not isinstance(inputs, Mapping):
        inputs = {runner.inputs[0].name: inputs}
    runner({name: array[:1] for name, array in inputs.items()})
    place = home(kind)
    float_content, int8_content = place.read(float_file), place.read(int8_file)
    layers = frozenset(layer.name for layer in model._flatten_layers()) if model else ()
    calibration, _ = verify.examples(inputs, 100)
    quantizer = place.Quantizer(float_content, calibration)
    study = Study(kind, quantizer, inputs, lambda name: layer_in(name, layers) or path_in(name))
    try:
        return study.rows(int8_content, place.kept(int8_content, study.units))
    except (KeyError, InputError) as error:
        raise InputError(
            f"{int8_file.name} was not made from {float_file.name}: an operation of the one is "
            "missing in the other. Name the two files of one export."
        ) from error


def table(rows: Sequence[Row]) -> str:
    """Return the table for people, the layers in the order of the graph."""
    header = ["layer", "operation", "SQNR dB", "alone dB", "kept in"]
    cells = [
        [
            row.layer,
            row.operation,
            f"{row.sqnr_db:z.1f}",
            f"{row.alone_db:z.1f}",
            "float" if row.kept else "int8",
        ]
        for row in rows
    ]
    return documents.table(header, cells)


def csv_text(tables: Mapping[str, Sequence[Row]]) -> str:
    """Return the tables of several files as one CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "layer", "operation", "sqnr_db", "alone_db", "kept_in"])
    for file, rows in tables.items():
        for row in rows:
            figures = [f"{row.sqnr_db:z.2f}", f"{row.alone_db:z.2f}"]
            kept = "float32" if row.kept else "int8"
            writer.writerow([file, row.layer, row.operation, *figures, kept])
    return text.getvalue()


def home(kind: str):
    """Return the module of a format."""
    if kind == "onnx":
        from tiffin.export import onnx_file

        return onnx_file
    from tiffin.export import tflite_file

    return tflite_file


def _noise(wanted: np.ndarray, got: np.ndarray) -> float:
    wanted, got = np.float64(wanted), np.float64(got)
    return float(np.sum((got - wanted) ** 2) / max(float(np.sum(wanted**2)), 1e-30))


def _decibels(noise: float) -> float:
    """Return the ratio of signal to noise, noise given as a share of the signal."""
    if not math.isfinite(noise):
        return -_HIGHEST
    ratio = -10 * math.log10(max(noise, 1e-30))
    return float(np.clip(ratio, -_HIGHEST, _HIGHEST))


def path_in(operation: str) -> str:
    """Return the part of an operation's name that tells its layer, where no layer is known."""
    parts = operation.rstrip(";").split(";")[-1].split(":")[0].split("/")
    return "/".join(parts[1:-1]) or parts[-1]
