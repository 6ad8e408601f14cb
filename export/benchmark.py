"""How fast and how large a model file is in its real runtime, measured in a process of its own."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError
from tiffin.export.runtime import Runner, load

SUFFIXES = (".keras", ".onnx", ".tflite")
_WARM_UP, _LEAST_RUNS = 0.4, 5  # part of the time, and calls that are measured in any case
HANDED_OUT = 0.5  # seconds to measure each file of an export for


def measure(
    path: str | os.PathLike, threads: int = 1, seconds: float = 1.0, imports: Sequence[str] = ()
) -> dict:
    """Measure a model file at batch 1 (or its own fixed one) on random input, in a fresh process.

    Args:
        path: a `.keras`, `.onnx` or `.tflite` file.
        threads: how many threads one call may use (a `.keras` file uses all cores).
        seconds: for how long to measure, after the warm-up; at least 5 calls are measured.
        imports: modules to import first, for custom layers of a `.keras` file.

    Returns:
        `median_ms` and `p95_ms` of one call in milliseconds, `runs` (their number), `threads`,
        `peak_memory_mb` (what loading and running add to the runtime's own memory, in 1e6 bytes)
        and `bytes` (of the file).

    Raises:
        InputError: the file cannot be read or run, or its runtime crashed on it.
    """
    task = json.dumps([os.fspath(path), threads, seconds, list(imports)])
    code = "from tiffin.export.benchmark import _child; _child()"
    process = subprocess.run(
        [sys.executable, "-c", code, task], capture_output=True, text=True, check=False
    )
    if process.returncode == 2:
        raise InputError(process.stderr.strip().splitlines()[-1])
    if process.returncode:
        raise InputError(
            f"{path} could not be measured: its process ended with status {process.returncode} "
            f"({(process.stderr.strip().splitlines() or ['no message'])[-1]})."
        )
    return json.loads(process.stdout.splitlines()[-1])


def _child() -> None:
    path, *options = json.loads(sys.argv[1])
    try:
        result = _measure_here(Path(path), *options)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(json.dumps(result))


def _measure_here(path: Path, threads: int, seconds: float, imports: Sequence[str]) -> dict:
    runtime = {".onnx": "onnxruntime", ".tflite": "ai_edge_litert.interpreter", ".keras": "keras"}
    for module in (runtime.get(path.suffix.lower(), "json"), *imports):
        importlib.import_module(module)
    before = _peak_bytes()
    runner = load(path, threads)
    arrays = _random_batch(runner)
    runner.step(arrays)
    _time_calls(runner, arrays, _WARM_UP * seconds, 1)
    times = _time_calls(runner, arrays, seconds, _LEAST_RUNS)
    return {
        "median_ms": round(float(np.median(times)) * 1e3, 4),
        "p95_ms": round(float(np.percentile(times, 95)) * 1e3, 4),
        "runs": len(times),
        "threads": threads,
        "peak_memory_mb": round((_peak_bytes() - before) / 1e6, 1),
        "bytes": path.stat().st_size,
    }


def _time_calls(runner: Runner, arrays: list, seconds: float, least: int) -> list[float]:
    """Return the seconds of single calls: for so many seconds, and at least so many calls."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        runner.step(arrays)
        times.append(time.perf_counter() - start)
    return times


def _random_batch(runner: Runner) -> list[np.ndarray]:
    """Return the smallest batch: pixels or small numbers, any other free axis of length 1."""
    random = np.random.default_rng(0)
    arrays = []
    for tensor in runner.inputs:
        shape = [n or (1 if axis else runner.batch or 1) for axis, n in enumerate(tensor.shape)]
        kind = np.dtype(tensor.dtype)
        # Integers stay below 2: they may be indices into a table of unknown length.
        top = 256 if kind == np.uint8 else 2
        value = random.uniform(0, 1, shape) if kind.kind == "f" else random.integers(0, top, shape)
        arrays.append(value.astype(kind))
    return runner.prepare({t.name: a for t, a in zip(runner.inputs, arrays, strict=True)})


def _peak_bytes() -> int:
    """Return the most memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss would start from the parent's: it is inherited through fork and exec.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def find_models(paths: Sequence[Path]) -> list[Path]:
    """Return the files as they are, and for each folder all model files in it.

    Raises:
        InputError: a folder holds no model.
    """
    found = []
    for path in paths:
        if path.is_dir():
            models = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not models:
                raise InputError(f"There is no {', '.join(SUFFIXES)} file in the folder {path}.")
            found += models
        else:
            found.append(path)
    return found


def show(rows: Sequence[tuple[Path, dict]]) -> None:
    """Print files and what `measure` returned for each as one table."""
    from rich import box, console, table

    grid = table.Table(box=box.SIMPLE_HEAD)
    grid.add_column("file", no_wrap=True)
    for title in ("MB", "threads", "median ms", "p95 ms", "runs", "peak memory MB"):
        grid.add_column(title, justify="right", no_wrap=True)
    folders = {path.parent for path, _ in rows}
    for path, result in rows:
        grid.add_row(
            path.name if len(folders) == 1 else str(path),
            f"{result['bytes'] / 1e6:.2f}",
            str(result["threads"]),
            f"{result['median_ms']:.3g}",
            f"{result['p95_ms']:.3g}",
            str(result["runs"]),
            f"{result['peak_memory_mb']:.1f}",
        )
    # A file name must stay whole, for people and scripts alike, even on a narrow terminal.
    needed = console.Console(width=1000).measure(grid).maximum
    output = console.Console()
    output.width = max(output.width, needed)
    output.print(grid)
