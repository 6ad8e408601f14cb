"""Export in a process of its own under TensorFlow, for models that live on jax or torch.

Parent and child share a folder: `model.keras`, `arrays.npz`, `options.json`, then `result.json`.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tiffin.export.errors import ExportError, InputError


def run(task: str, model, options: dict) -> dict | None:
    """Do a task of the export in a child process under TensorFlow.

    Args:
        task: module and function of this package, such as `stage.export`.
        model: a `keras.Model` on any backend.
        options: the function's other arguments, by name.

    Returns:
        What it returns: the manifest, if any.

    Raises:
        InputError, ExportError: as it does; or the model holds what a process cannot be handed.
    """
    say: Callable = options.pop("say", print)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        modules = _modules(model)
        model.save(folder / "model.keras")
        if "directory" in options:
            options["directory"] = str(Path(options["directory"]).resolve())
        arrays: dict[str, np.ndarray] = {}
        for name in ("calibration", "evaluation"):
            options[name] = _stow(options.get(name), name, arrays)
        np.savez(folder / "arrays.npz", **arrays)
        if options.get("normalization") is not None:
            options["normalization"] = [np.asarray(v).tolist() for v in options["normalization"]]
        if (metric := options.get("metric")) is not None:
            options["metric"] = f"{metric.__module__}:{metric.__qualname__}"
            if metric.__module__ == "__main__" or "<" in metric.__qualname__:
                raise InputError(
                    f"The metric {metric.__qualname__} cannot be imported by the process that "
                    "exports under TensorFlow: put it into a module, at its top level."
                )
        job = {"task": task, "modules": modules, "options": options}
        (folder / "options.json").write_text(json.dumps(job))
        status = _child(folder, say)
        result = folder / "result.json"
        if not result.exists():
            raise ExportError(
                f"The process that exports {model.name} under TensorFlow ended with status "
                f"{status}; its last lines stand above."
            )
        answer = json.loads(result.read_text())
    if "error" in answer:
        error = (ExportError if answer["kind"] == "ExportError" else InputError)(answer["error"])
        error.manifest = answer["manifest"]
        raise error
    return answer["manifest"]


def _modules(model) -> list[str]:
    """Return the modules that must be imported before the model's own classes can be loaded."""
    names = {type(layer).__module__ for layer in model._flatten_layers()}
    names = {n for n in names if n.split(".")[0] != "keras"}
    if "__main__" in names:
        raise InputError(
            f"{model.name} holds a layer that is defined in the script itself, which the process "
            "that exports under TensorFlow cannot import: move the class into a module."
        )
    return sorted(names)


def _stow(value, name: str, arrays: dict[str, np.ndarray]):
    """Put the arrays of a structure into `arrays`; return the structure with their names."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: _stow(item, f"{name}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_stow(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
    arrays[name] = np.asarray(value)
    if arrays[name].dtype.kind == "O":
        raise InputError(f"{name} holds arrays of different shapes: pad them to one shape.")
    return name


def _fetch(value, arrays):
    if isinstance(value, str):
        return arrays[value]
    if isinstance(value, dict):
        return {key: _fetch(item, arrays) for key, item in value.items()}
    return value if value is None else tuple(_fetch(item, arrays) for item in value)


def _child(folder: Path, say: Callable) -> int:
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "tiffin.export.worker", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            for line in process.stdout:
                say(line.rstrip("\n"))
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def main(folder: Path) -> int:
    """Do the job that lies in a folder, and leave the result there."""
    job = json.loads((folder / "options.json").read_text())
    options = job["options"]
    for module in job["modules"]:
        importlib.import_module(module)
    import keras

    module, _, name = job["task"].partition(".")
    task = getattr(importlib.import_module(f"tiffin.export.{module}"), name)
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        for name in ("calibration", "evaluation"):
            value = _fetch(options.pop(name), arrays)
            if value is not None:
                options[name] = value
    if metric := options.get("metric"):
        module, _, name = metric.partition(":")
        options["metric"] = getattr(importlib.import_module(module), name)
    # Written a moment ago by the process that waits, from a model that it ran itself.
    model = keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=False)
    result = folder / "result.json"
    try:
        manifest = task(model, **options)
    except InputError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
        answer["manifest"] = getattr(error, "manifest", None)
        result.write_text(json.dumps(answer))
        return 1
    result.write_text(json.dumps({"manifest": manifest}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
