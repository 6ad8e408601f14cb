"""What a user can do wrong, told in one paragraph: what happened, where, and how to mend it."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

# What only some need, by its module: its name for pip, and the extra of this package that has it.
OPTIONAL = {
    "cv2": ("opencv-contrib-python-headless", "detection"),
    "defusedxml": ("defusedxml", "detection"),
    "importlib_resources": ("importlib_resources", "tfds"),
    "jax": ("jax", "jax"),
    "pycocotools": ("pycocotools", "detection"),
    "sacrebleu": ("sacrebleu", "sequence"),
    "sentencepiece": ("sentencepiece", "sequence"),
    "tensorflow_datasets": ("tensorflow-datasets", "tfds"),
    "torch": ("torch", "torch"),
    "yaml": ("pyyaml", "detection"),
}


class InputError(ValueError):
    """A mistake in what was given: a file, a name, an option. Commands print it and exit 2."""


class ExportError(InputError):
    """A model that cannot leave, or a file that was written and answers wrongly."""


def optional(module: str, user: str) -> ModuleType:
    """Import what only an extra of this package installs.

    Args:
        module: one of `OPTIONAL`, or a module in it.
        user: what needs it, the beginning of the sentence.

    Raises:
        InputError: it is not installed; the message says how to mend it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error, user) from error


def missing(error: ModuleNotFoundError, user: str) -> InputError:
    """Return what to tell of a library that is not installed; `user` as in `optional`.

    Raises:
        ModuleNotFoundError: the same again, of a library that no extra brings.
    """
    name = (error.name or "").partition(".")[0]
    if name not in OPTIONAL:
        raise error
    package, extra = OPTIONAL[name]
    return InputError(f'{user} needs {package}: pip install "tiffin[{extra}]"')


def nearest(name: str, known: Iterable[str]) -> str:
    """Return how to end "There is no X 'name'": the nearest names, or all where none is near."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(name, known, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return f"; there are {', '.join(known)}." if 0 < len(known) <= 40 else "."


def one_of(what: str, value: object, allowed: Iterable) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        InputError: it is not; the message has the allowed values, of many the nearest.
    """
    allowed = list(allowed)
    if value not in allowed:
        if len(allowed) > 4:
            raise InputError(f"{what}={value!r} is unknown{nearest(str(value), allowed)}")
        raise InputError(f"{what}={value!r} must be {' or '.join(map(repr, allowed))}.")
