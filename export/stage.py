"""The export stage: convert, run, compare, and only then hand out."""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import itertools
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from tiffin.export import (
    documents,
    files,
    metadata,
    pictures,
    proposals,
    recurrent,
    runtime,
    sensitivity,
    suppression,
    text,
    verify,
)
from tiffin.export.convert import Interface, Port, layer_in, trace
from tiffin.export.errors import ExportError, InputError, nearest

FORMATS = ("onnx", "tflite")
PRECISIONS = ("fp32", "fp16", "int8", "int8_dynamic")
# More examples narrow no bound that matters and cost minutes on a large net.
_CALIBRATION, _RANDOM = 100, 8
_CALIBRATION_STEPS = 500  # of a step function, over all sequences
_GREEDY = 200  # tokens that a language model's files have to go on with as Keras does
_PROMPTS, _PROMPT = 4, 40  # example prompts, tokens of each
# Values that the evaluation's inputs may hold: 3,255 pictures of 32x32, and never below 500.
_EVALUATION = 10_000_000
_PROBED = 2**30  # bytes of inner results, at most, of more examples than one to find a fault by
_PACKAGES = ("tiffin", "keras", "tensorflow", "onnx", "tf2onnx", "onnxruntime", "ai_edge_litert")
_PACKAGES += ("litert_quantizer",)
_QUANTIZATION = {
    "fp16": {"weights": "float16", "activations": "float32"},
    ("onnx", "int8"): {"weights": "int8 per channel, of 7 bits", "activations": "uint8"},
    ("tflite", "int8"): {"weights": "int8 per channel", "activations": "int8"},
    ("onnx", "int8_dynamic"): {
        "weights": "int8 per channel in matrix products and recurrent layers",
        "activations": "quantised while running",
    },
    ("tflite", "int8_dynamic"): {
        "weights": "int8 per channel",
        "activations": "quantised while running",
    },
}


def export(
    model,
    directory,
    *,
    formats: Sequence[str] = ("onnx", "tflite"),
    precisions: Sequence[str] = ("fp32", "fp16", "int8"),
    calibration=None,
    evaluation=None,
    metric: Callable = verify.accuracy,
    labels: Sequence[str] | None = None,
    input_dtype: str = "uint8",
    normalization=None,
    logits: bool = False,
    name: str | None = None,
    task: str | None = None,
    max_loss: float = 0.01,
    description: str | None = None,
    threshold: float | None = None,
    vocabulary: Mapping | None = None,
    explain: bool = False,
    say: Callable[[str], None] = print,
) -> dict:
    """Export a Keras model to ONNX and TFLite files that were run and compared before.

    Each file is run in onnxruntime or LiteRT and held against Keras on evaluation data (else on
    calibration data, else on seeded random inputs). What keeps its bound is published under
    `{name}_{precision}.{format}`, with `manifest.json`, documents and code samples; all at once, at
    the end. An older export of the same name is replaced. An int8 file that misses its bound is
    made again with the few layers in float32 that cost most; the manifest lists them as the file's
    `float_layers`, and the table of all layers is written to `explain.csv`. Of pictures to evaluate
    on up to eight are written to `held_out/`, of texts the manifest has some as `examples`.

    A step function (`steps.step_model`) is run along sequences, each state that it returns
    handed to it at the next step: examples have an axis of steps behind the batch then, and there
    are none of states. A language model's also has to go on greedily as Keras does.

    Args:
        model: a `keras.Model` whose inputs are static but for the batch, on any backend. Inputs
            `[batch, height, width, 1 or 3]` are images: raw pixels 0-255.
        directory: where the files go; created if missing.
        formats: of `onnx` and `tflite`.
        precisions: of `fp32`, `fp16`, `int8` (static, needs `calibration`) and `int8_dynamic`.
        calibration: real training inputs, raw: an array `[examples, ...]`, or one per input name;
            at most 100 are used.
        evaluation: `(inputs, targets)`, inputs like `calibration`; of many, evenly spaced ones are
            used (3,255 of 32x32x3, 500 of 224x224x3).
        metric: `metric(outputs, targets) -> float`, higher is better; outputs by name. With the
            backends jax and torch it must be a function that can be imported.
        labels: names of the classes, in the order of the output.
        input_dtype: `uint8` or `float32`, what image inputs take.
        normalization: `(mean, std)` in pixel values, each a scalar or one per channel, that is put
            before a model that lacks it: `(pixels - mean) / std`.
        logits: leave a single output `logits` as it is; by default it gets a softmax and is called
            `probabilities`.
        name: start of the files' names; the model's name by default.
        task: such as `classification`, for the manifest.
        max_loss: how much of the metric fp16 and int8 may lose, absolute.
        description: one or more sentences for the manifest, the model card and the files.
        threshold: of an embedder, the Euclidean distance between embeddings of length 1 up to
            which two inputs count as the same; for the manifest.
        vocabulary: of a language model, `text.Vocabulary.describe()`, to lie beside the files.
        explain: say, layer by layer, what int8 costs, and write it to `explain.csv`.
        say: called with each line of progress.

    Returns:
        The manifest, as in `manifest.json`.

    Raises:
        InputError: something given is wrong, or the directory cannot be written to.
        ExportError: some or all files cannot leave; those that can were published. If the stage got
            as far as trying them, its `manifest` attribute holds the manifest.
    """
    if keras.backend.backend() != "tensorflow":
        from tiffin.export import worker

        options = {k: v for k, v in locals().items() if k not in ("model", "worker")}
        return worker.run("stage.export", model, options)
    check_kinds(formats, precisions)
    directory = files.make_folder(directory)
    name = file_stem(name, model)
    with workshop(directory) as folder:
        manifest, tables = make_files(
            model,
            folder,
            name,
            formats,
            precisions,
            calibration=calibration,
            evaluation=evaluation,
            metric=metric,
            labels=labels,
            input_dtype=input_dtype,
            normalization=normalization,
            logits=logits,
            task=task,
            max_loss=max_loss,
            description=description,
            explain=explain,
            say=say,
        )
        if threshold is not None:
            distance = "Euclidean, between embeddings of length 1"
            manifest["verification"] = {"distance": distance, "threshold": threshold}
        if vocabulary is not None and evaluation is not None:
            manifest["examples"] = _prompts(vocabulary, evaluation[0])
        publish(folder, directory, [name], manifest, tables, vocabulary)
    if manifest["failed"]:
        raise failure(manifest, directory)
    return manifest


def _prompts(vocabulary: Mapping, tokens) -> list[str]:
    """Return beginnings of held-out texts, for a language model to go on with."""
    rows = np.asarray(next(iter(tokens.values())) if isinstance(tokens, Mapping) else tokens)
    known = text.from_description(vocabulary)
    # Excerpts begin and end anywhere: the first and the last word may be half of one.
    begun = [" ".join(known.decode(row[:_PROMPT]).split()[1:-1]) for row in rows[:_PROMPTS]]
    return [*dict.fromkeys(words for words in begun if " " in words)]


def file_stem(name: str | None, model) -> str:
    """Return the start of the files' names: one that was given, or the model's.

    Raises:
        InputError: the one that was given cannot be part of a file name everywhere.
    """
    name = name or re.sub(r"[^\w.-]+", "_", model.name)
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"The name '{name}' must be letters, digits, '_', '-' and '.' only.")
    return name


def make_files(
    model,
    folder: Path,
    name: str,
    formats: Sequence[str],
    precisions: Sequence[str],
    *,
    calibration=None,
    evaluation=None,
    metric: Callable = verify.accuracy,
    labels: Sequence[str] | None = None,
    input_dtype: str = "uint8",
    normalization=None,
    logits: bool = False,
    task: str | None = None,
    max_loss: float = 0.01,
    description: str | None = None,
    explain: bool = False,
    say: Callable[[str], None] = print,
) -> tuple[dict, dict[str, list[sensitivity.Row]]]:
    """Make and judge all files of a model in a folder; see `export` for the arguments.

    Returns:
        The manifest, and the tables of layers of int8 files by file name.
    """
    interface = Interface(model, input_dtype, normalization, logits)
    _check_labels(labels, interface)
    if "int8" in precisions and calibration is None:
        raise InputError(
            "int8 needs calibration data: about 100 real training inputs, raw, as "
            "calibration=ARRAY (on the command line --calibration FOLDER). Give them, or leave "
            "int8 out: precisions=('fp32', 'fp16') or 'int8_dynamic'."
        )
    tried = None  # what files are held against Keras on, where there is no evaluation data
    if calibration is not None:
        calibration = _checked(calibration, interface, "calibration")
        tried, _ = verify.examples(calibration, _CALIBRATION)
        calibration = tried
        if interface.states:
            _, calibration = _along(interface.keras(), tried, interface)
            calibration, _ = verify.examples(calibration, _CALIBRATION_STEPS)
    judge = _Judge(interface, calibration, tried, evaluation, metric, max_loss, precisions)
    manifest = {
        "format_version": 1,
        "name": name,
        "task": task,
        "description": description,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
        "inputs": [port.describe() for port in interface.inputs],
        "outputs": [port.describe() for port in interface.outputs],
        "labels": list(labels) if labels else None,
        "reference": judge.summary,
        "verified_on": judge.verified_on,
        "bounds": judge.bounds,
        "files": [],
        "failed": [],
    }
    states = {name: f"{recurrent.NEXT}{name}" for name in interface.states}
    if states:
        manifest["states"] = states
    if evaluation is not None:
        manifest |= _to_try(interface, judge, folder, labels)
    manifest["preprocessing"] = metadata.preprocessing(manifest["inputs"], states)
    tables: dict[str, list[sensitivity.Row]] = {}
    for kind in formats:
        source = _Source(kind, interface, calibration)
        for precision in precisions:
            path = folder / f"{name}_{precision}.{kind}"
            entry = {"file": path.name, "format": kind, "precision": precision}
            try:
                entry |= _check_file(source, path, precision, judge, manifest, tables, explain, say)
            except ExportError as error:
                path.unlink(missing_ok=True)
                manifest["failed"].append(entry | {"reason": str(error)})
                say(f"{path.name}: not published. {error}")
            else:
                manifest["files"].append(entry)
                say(_line(entry, judge.summary))
            if explain and path.name in tables:
                for line in sensitivity.table(tables[path.name]).splitlines():
                    say(line)
    return manifest, tables


def dry_run(model, formats: Sequence[str] = ("onnx", "tflite"), **options) -> None:
    """Prove that a model, trained or not, can leave: convert to fp32 and run it once.

    Args:
        model: as for `export`.
        formats: of `onnx` and `tflite`.
        **options: `input_dtype`, `normalization` and `logits` as for `export`.

    Raises:
        InputError, ExportError: as `export` would.
    """
    if keras.backend.backend() != "tensorflow":
        from tiffin.export import worker

        return worker.run("stage.dry_run", model, {"formats": tuple(formats), **options})
    _known("format", formats, FORMATS)
    interface = Interface(model, **options)
    judge = _Judge(interface, None, None, None, None, 0.0, ("fp32",))
    with tempfile.TemporaryDirectory() as folder:
        for kind in formats:
            source = _Source(kind, interface, None)
            _check_file(source, Path(folder) / f"dry_run.{kind}", "fp32", judge, None)
    return None


def check_kinds(formats: Sequence[str], precisions: Sequence[str]) -> None:
    """Refuse formats and precisions that there are none of.

    Raises:
        InputError: there is one.
    """
    _known("format", formats, FORMATS)
    _known("precision", precisions, PRECISIONS)


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(given, str) or not given:
        raise InputError(f"Give each {what} in a tuple, of {', '.join(known)}; not {given!r}.")
    for item in given:
        if item not in known:
            raise InputError(f"There is no {what} '{item}'{nearest(item, known)}")


def _check_labels(labels: Sequence[str] | None, interface: Interface) -> None:
    if not labels:
        return
    metadata.labels_text(labels)
    sizes = {p.name: p.shape[-1] for p in interface.outputs if p.shape}
    if set(sizes) >= verify.DETECTIONS - {"count"}:
        return  # classes are numbers there, not columns
    if len(labels) not in sizes.values():
        shown = ", ".join(f"'{name}' has {size}" for name, size in sizes.items())
        raise InputError(
            f"{len(labels)} labels fit no output: {shown} columns. Give one label for each class."
        )


class _Judge:
    """Keras' own answers, and the limits around them."""

    def __init__(self, interface, calibration, tried, evaluation, metric, max_loss, precisions):
        self.interface, self.metric, self.targets = interface, None, None
        self.calibration = calibration
        if evaluation is not None:
            inputs, targets = evaluation
            inputs = _checked(inputs, interface, "evaluation")
            count = len(next(iter(inputs.values())))
            sizes = {len(v) for v in targets.values()} if isinstance(targets, Mapping) else None
            if (sizes or {len(targets)}) != {count}:
                raise InputError(
                    f"evaluation has {count} inputs and {sizes or len(targets)} targets; they must "
                    "pair up."
                )
            size = sum(v[:1].size for v in inputs.values())
            self.inputs, chosen = verify.examples(inputs, max(500, _EVALUATION // size))
            self.targets, self.metric = _take(targets, chosen), metric
            self.verified_on = f"{len(chosen)} evaluation inputs"
        elif tried is not None:
            self.inputs = tried
            self.verified_on = f"{len(next(iter(tried.values())))} calibration inputs"
        else:
            self.inputs = verify.random_inputs(_given(interface), _RANDOM)
            if interface.states:
                self.inputs = {n: np.stack([a] * _RANDOM, 1) for n, a in self.inputs.items()}
            self.verified_on = "random inputs"
        self.keras = interface.keras()
        self.reference, self.feeds = self._run(self.keras)
        for name, value in self.reference.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ExportError(
                    f"Keras' own output '{name}' holds NaN or infinity on {self.verified_on}: the "
                    "training diverged (train again with a lower learning rate), or a layer leaves "
                    "the range of its function."
                )
        self.summary = None
        if self.metric is not None:
            self.summary = {
                "metric": metric.__name__,
                "value": float(metric(dict(self.reference), self.targets)),
                "examples": len(chosen),
            }
        embeds = verify.EMBEDDINGS in self.reference
        detects = set(self.reference) >= verify.DETECTIONS
        paints = any(value.dtype == np.uint8 for value in self.reference.values())
        units = {p.name: p.units for p in interface.outputs}
        relative = units.get("boxes") == "relative"
        self.pixel = 1 / max(interface.inputs[0].shape[:2]) if relative else 1.0
        self.bounds = {
            p: verify.bound(p, max_loss, self.metric is not None, embeds, detects, paints)
            for p in precisions
        }

    def __call__(self, path: Path, precision: str) -> tuple[dict, str | None]:
        try:
            runner = runtime.load(path)
            outputs, _ = self._run(runner)
        except Exception as error:
            # The runtimes raise what they like; whatever it is, this file does not run.
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise ExportError(
                f"{path.name} does not run: {lines[-1] if lines else type(error).__name__}"
            ) from error
        self._check_types(path, runner)
        value = self.summary and self.summary["value"]
        limits = self.bounds[precision]
        given = (self.targets, self.metric, value, self.pixel)
        entry, reason = verify.verify(self.reference, outputs, limits, *given)
        if self.greedy and not reason:
            same = np.array(self._generated(runner)) == self.greedy
            entry["same_tokens"] = count = len(same) if same.all() else int(same.argmin())
            if precision == "fp32" and count < _GREEDY:
                reason = f"'{recurrent.LOGITS}' leads to another token than Keras' after {count}"
        return entry, reason

    def _run(self, run: Callable) -> tuple[dict, Mapping]:
        """Return what a function returns for the inputs, and what it was given."""
        if not self.interface.states:
            return run(self.inputs), self.inputs
        return _along(run, self.inputs, self.interface)

    @functools.cached_property
    def greedy(self) -> list[int]:
        """The tokens that Keras goes on with; none where the model is no language model."""
        names = {port.name for port in _given(self.interface)}
        language = names == {recurrent.TOKEN} and recurrent.LOGITS in self.reference
        return self._generated(self.keras) if language and self.interface.states else []

    def _generated(self, run: Callable) -> list[int]:
        first = [int(self.inputs[recurrent.TOKEN].flat[0])]
        return [*text.generate(run, self.interface.states, first, _GREEDY, temperature=0)]

    def _check_types(self, path: Path, runner) -> None:
        """Refuse a file whose inputs and outputs are not of the types that the manifest names."""
        promised = {p.name: p.dtype for p in (*self.interface.inputs, *self.interface.outputs)}
        for tensor in (*runner.inputs, *runner.outputs):
            if tensor.quantized or tensor.dtype != promised.get(tensor.name):
                raise ExportError(
                    f"'{tensor.name}' of {path.name} is {tensor.dtype}"
                    f"{' stored as scaled integers' if tensor.quantized else ''} instead of "
                    f"{promised.get(tensor.name, 'no part of the model')}."
                )


def _given(interface: Interface) -> list[Port]:
    """Return the inputs that examples are for: all but states."""
    return [port for port in interface.inputs if port.name not in interface.states]


def _along(run: Callable, inputs: Mapping[str, np.ndarray], interface: Interface) -> tuple:
    """Run a step function along sequences; see `_checked` for what is given."""
    ranks = {port.name: len(port.shape) for port in interface.inputs}
    sequences = {name: a for name, a in inputs.items() if a.ndim == ranks[name] + 2}
    kept = {name: array for name, array in inputs.items() if name not in sequences}
    return recurrent.run_along(run, sequences, interface.states | kept)


def _checked(data, interface: Interface, what: str) -> dict[str, np.ndarray]:
    """Return examples as arrays by input name.

    Of a step function they are sequences `[examples, steps, ...]`, and, as `[examples, ...]`,
    states before the first step, which are zeros where none are given, and what stays the same.
    """
    if not interface.states:
        return verify.checked(data, interface.inputs, what)
    data = data if isinstance(data, Mapping) else {_given(interface)[0].name: data}
    ports = [port for port in interface.inputs if port.name in {*data, *_names(_given(interface))}]
    if {*data} != {*_names(ports)}:
        verify.checked(data, ports, what)  # has the words for it
    shapes = {port.name: np.shape(data[port.name]) for port in ports}
    along = [p for p in ports if len(shapes[p.name]) == len(p.shape) + 2]
    if not along or len({shapes[port.name][:2] for port in along}) > 1:
        wanted = [
            f"'{p.name}' as [{', '.join(('examples', 'steps', *map(str, p.shape)))}]"
            for p in _given(interface)
        ]
        raise InputError(
            f"{what} has the shapes {', '.join(map(str, shapes.values()))}: a step function is "
            f"tried along sequences, {' and '.join(wanted)}, all of as many steps."
        )
    steps = {p.name: np.reshape(data[p.name], (-1, *shapes[p.name][2:])) for p in along}
    steps = verify.checked(steps, along, what)
    kept = [port for port in ports if port not in along]
    kept = verify.checked({name: data[name] for name in _names(kept)}, kept, what)
    examples = shapes[along[0].name][0]
    if wrong := [name for name, array in kept.items() if len(array) != examples]:
        raise InputError(
            f"{what} has {len(kept[wrong[0]])} examples of '{wrong[0]}' and {examples} sequences: "
            "give one for each."
        )
    return {name: array.reshape(shapes[name]) for name, array in steps.items()} | kept


def _names(ports: Sequence[Port]) -> list[str]:
    return [port.name for port in ports]


def _take(targets, chosen: np.ndarray):
    if isinstance(targets, Mapping):
        return {name: np.asarray(values)[chosen] for name, values in targets.items()}
    return np.asarray(targets)[chosen]


@contextlib.contextmanager
def workshop(directory: Path):
    """A hidden folder beside the results, so that publishing is renaming."""
    with (
        files.writing(directory),
        tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as folder,
    ):
        yield Path(folder)


class _Source:
    """Makes the files of one format from one trace, one float32 conversion and one calibration.

    A model that cannot be converted fails in each of them.
    """

    def __init__(self, kind: str, interface: Interface, calibration):
        self.kind, self.whole, self.calibration = kind, interface, calibration
        self.interface = interface.body
        self.home = sensitivity.home(kind)

    @functools.cached_property
    def _converted(self):
        try:
            if self.kind == "onnx":
                return self.home.to_onnx(self.interface, trace(self.interface, None))
            return self.home.to_tflite(self.interface, trace(self.interface, 1))
        except ExportError as error:
            return error

    @property
    def model(self):
        """The float32 model."""
        if isinstance(self._converted, ExportError):
            raise self._converted
        return self._converted

    @functools.cached_property
    def quantizer(self):
        return self.home.Quantizer(self.model, self.calibration, self.interface.is_exact)

    def make(self, precision: str, keep: Sequence[sensitivity.Unit] = ()):
        """Return a file; of one in int8, `keep` stays in float32."""
        if precision == "int8":
            content = self.quantizer(keep=keep)
        else:
            content = self.home.reduce(self.model, precision, self.interface, self.calibration)
        if self.whole.suppression is None:
            return content
        return suppression.add(self.kind, content, self.whole)

    def study(self, inputs) -> sensitivity.Study:
        return sensitivity.Study(self.kind, self.quantizer, inputs, self._layer)

    def layers(self, kept: Sequence[sensitivity.Unit]) -> list[str]:
        """Return the names of the layers of some units."""
        names = sensitivity.named(self.quantizer.units, self._layer)
        return [layer for unit, layer in names.items() if unit in kept and not unit.exact]

    def _layer(self, name: str) -> str | None:
        return layer_in(name, self.interface.layers)


def _check_file(
    source: _Source,
    path: Path,
    precision: str,
    judge: _Judge,
    manifest: Mapping | None,
    tables: dict | None = None,
    explain: bool = False,
    say: Callable[[str], None] = print,
) -> dict:
    """Make, describe, write, run and judge one file; returns its entries in the manifest.

    Of an int8 file that misses its bound, those with some layers in float32 are tried. Tables of
    layers, where there are any, are added to `tables`.
    """
    content = source.make(precision)
    written = _write(content, path, source.kind, manifest)
    # In a process of its own and first: a file may bring its runtime down.
    speed = _speed(path) if manifest else {}
    entry, reason = judge(path, precision)
    if precision == "int8":
        kept = [*source.quantizer.refused]
        if reason or explain:
            if reason:
                say(f"{path.name}: {reason}. Looking for the layers that cost most.")
            study = source.study(judge.feeds)
            for kept in study.choices() if reason else ():
                content = source.make(precision, kept)
                written = _write(content, path, source.kind, manifest)
                entry, still = judge(path, precision)
                if not still:
                    reason, speed = None, _speed(path) if manifest else {}
                    break
            tables[path.name] = study.rows(content, kept)
            if reason:
                raise ExportError(f"In {path.name}, {reason}. {_worst(study, len(kept))}")
        entry["float_layers"] = source.layers(kept)
    elif reason:
        raise ExportError(f"In {path.name}, {reason}. {_blame(judge, source.kind, precision)}")
    entry |= written
    entry["quantization"] = _QUANTIZATION.get(
        (source.kind, precision), _QUANTIZATION.get(precision)
    )
    return entry | speed | {"verified": True}


def _to_try(
    interface: Interface, judge: _Judge, folder: Path, labels: Sequence[str] | None
) -> dict:
    """Write a few held-out pictures of a model that takes one; returns the manifest's entry."""
    given = [port for port in interface.inputs if port.name != proposals.PROPOSALS]
    if len(given) != 1 or not given[0].image:
        return {}
    embeds = verify.EMBEDDINGS in judge.reference
    images = judge.inputs[given[0].name]
    place = folder / pictures.FOLDER
    return {pictures.KEY: pictures.write(place, images, judge.targets, labels, pairs=embeds)}


def _speed(path: Path) -> dict:
    """Return latency and memory for the manifest."""
    from tiffin.export import benchmark

    try:
        speed = benchmark.measure(path, threads=1, seconds=benchmark.HANDED_OUT)
    except InputError as error:
        raise ExportError(f"{path.name} does not run: {error}") from error
    return {
        "latency_ms": {
            "median": speed["median_ms"],
            "p95": speed["p95_ms"],
            "threads": speed["threads"],
        },
        "peak_memory_mb": speed["peak_memory_mb"],
    }


def _write(content, path: Path, kind: str, manifest: Mapping | None) -> dict:
    """Describe and write a file; returns what the manifest says about its bytes."""
    keys = ("name", "description", "labels", "outputs")
    described = {key: manifest[key] for key in keys} if manifest else {}
    extra = {}
    if kind == "onnx":
        if manifest:
            metadata.add_onnx(content, **described, preprocessing=manifest["preprocessing"])
        extra = {"opset": content.opset_import[0].version}
        content = content.SerializeToString()
    elif manifest:
        content = metadata.add_tflite(content, **described, inputs=manifest["inputs"])
    with files.writing(path):
        path.write_bytes(content)
    return extra | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _worst(study: sensitivity.Study, tried: int) -> str:
    """Tell of an int8 file that leaving its worst layers in float32 did not help."""
    shown = ", ".join(
        f"'{study.names[unit]}' ({study.alone[unit]:.1f} dB)" for unit in study.ranked()[:4]
    )
    return (
        f"It is no better with the {tried} layers in float32 that cost most; these, with the "
        f"signal over noise that each leaves alone: {shown}. {documents.TABLE} has all layers."
    )


def _blame(judge: _Judge, kind: str, precision: str) -> str:
    """Name the layer where a file departs from Keras: the first whose error jumps.

    The model is converted once more, with the result of each layer as a further output.
    """
    model = judge.interface.body.model
    order = [
        node
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
    ]
    results = {}
    for node in order:
        tensor = node.output_tensors[0]
        if node.operation in model._operations and tensor.dtype == "float32" and node.parent_nodes:
            results[f"{len(results):04d}"] = node.operation.name, tensor
    if not results or None in [n for _, t in results.values() for n in t.shape[1:]]:
        return "No layer can be singled out."
    probe = judge.interface.body.up_to({key: tensor for key, (_, tensor) in results.items()})
    each = sum(4 * math.prod(tensor.shape[1:]) for _, tensor in results.values())
    inputs, _ = verify.examples(judge.feeds, max(1, min(4, _PROBED // each)))
    reference = probe.keras()(inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"probe.{kind}"
        try:
            content = _Source(kind, probe, judge.calibration).make(precision)
        except ExportError:
            return "No layer can be singled out: the model does not convert with its inner results."
        path.write_bytes(content if kind == "tflite" else content.SerializeToString())
        outputs = runtime.load(path)(inputs)
    # What rounding alone does to one layer; a jump is far above it and above all layers before.
    floor = {"fp32": 1e-5, "fp16": 1e-3}.get(precision, 0.02)
    before, worst = floor, ("", 0.0)
    for key, (name, _) in results.items():
        error = verify.compare(reference[key], outputs[key])["relative_rms_error"]
        if not np.isfinite(outputs[key]).all() and np.isfinite(reference[key]).all():
            return f"The layer '{name}' is the first whose result is not finite."
        if error > 5 * before:
            return (
                f"The layer '{name}' is most likely the cause: the relative error jumps there to "
                f"{error:.2g}."
            )
        before = max(before, error)
        worst = max(worst, (name, error), key=lambda pair: pair[1])
    return f"No layer stands out: the error grows step by step, to {worst[1]:.2g} in '{worst[0]}'."


def publish(
    folder: Path,
    directory: Path,
    names: Sequence[str],
    manifest: dict,
    tables: Mapping[str, list],
    vocabulary: Mapping | None,
) -> None:
    """Rename what passed into place, and remove what an older export left under these names.

    Args:
        folder: from `workshop`.
        directory: where the files go.
        names: starts of the files' names.
        manifest, tables: from `make_files`.
        vocabulary: to lie beside the files.
    """
    kept = {entry["file"] for entry in manifest["files"]}
    for name, precision, kind in itertools.product(names, PRECISIONS, FORMATS):
        file = f"{name}_{precision}.{kind}"
        if file in kept:
            (folder / file).replace(directory / file)
        else:
            (directory / file).unlink(missing_ok=True)
    pictures.publish(folder / pictures.FOLDER, directory, manifest.get(pictures.KEY, ()))
    explained = sensitivity.csv_text(tables) if tables else ""
    documents.write(directory, manifest, vocabulary, explained)


def _line(entry: Mapping, reference: Mapping | None) -> str:
    agreement = entry["agreement"]
    parts = [f"{entry['file']}: verified", f"{entry['bytes'] / 1e6:.2f} MB"]
    if entry["max_difference"] is not None:
        parts.append(f"max difference {entry['max_difference']:.2g}")
    if "matched" in entry:
        parts.append(f"same detections {documents.detections_text(entry)}")
    if agreement is not None:
        parts.append(f"agreement {agreement:.1%}")
    if "same_tokens" in entry:
        parts.append(f"{entry['same_tokens']} of {_GREEDY} tokens as Keras")
    if "mean_cosine" in entry:
        parts.append(f"cosine {entry['mean_cosine']:.5f}")
    if entry["metric"] is not None:
        parts.append(f"{reference['metric']} {documents.metric_text(entry['metric'])}")
    if "latency_ms" in entry:
        parts.append(f"{entry['latency_ms']['median']:.3g} ms")
    if kept := entry.get("float_layers"):
        parts.append(f"in float32: {', '.join(kept)}")
    return ", ".join(parts)


def failure(manifest: dict, directory: Path) -> ExportError:
    """Return the error that says which files were not published, and why."""
    count = len(manifest["failed"])
    total = count + len(manifest["files"])
    reasons = dict.fromkeys(item["reason"] for item in manifest["failed"])
    error = ExportError(
        f"{count} of {total} files of {manifest['name']} were not published in {directory}. "
        + " ".join(reasons)
    )
    error.manifest = manifest
    return error
