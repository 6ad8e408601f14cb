"""Which recipes and variants there are, read from the files without importing them.

A recipe is a file `recipes/<task>/<recipe>.py` with a literal table `VARIANTS`, one `Variant` a
model that it builds, a builder function that bears the file's name, and a configuration class
`Config`.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args

from tiffin.export.errors import InputError, nearest

_ROOT = Path(__file__).resolve().parent.parent


class Variant(NamedTuple):
    """One row of a recipe's `VARIANTS`: what is known of a model without building it.

    Attributes:
        year: of the paper.
        size: of the input that the next columns are for: height and width in pixels, steps, or
            latent numbers.
        parameters: trainable ones, as published.
        macs: multiply-accumulate operations for one input, of convolutions and matrix products.
        error: the paper's top-1 error in percent; None where it gives none.
        data: what the error is measured on, and with it the number of classes.
    """

    year: int
    size: int
    parameters: int
    macs: int
    error: float | None
    data: str

    @property
    def classes(self) -> int:
        """Number of classes that `parameters` and `macs` are for."""
        known = {
            "MNIST": 10,
            "CIFAR-10": 10,
            "CIFAR-100": 100,
            "VOC": 20,
            "COCO": 80,
            "tinyshakespeare": 65,
            "PTB": 10_000,
            "Multi30k": 4000,
        }
        return known.get(self.data, 1000)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One recipe file.

    Attributes:
        name: the file's stem, such as `resnet`.
        task: the folder it lies in, such as `classification`.
        path: the file.
        variants: the literal `VARIANTS` table, by name.
        title: the first line of the docstring.
    """

    name: str
    task: str
    path: Path
    variants: dict[str, Variant]
    title: str

    def input_shape(self, size: int) -> tuple[int, ...]:
        """Return the shape of an input: a picture in colour, tokens, or latent numbers."""
        return (size,) if self.task in ("sequence", "generative") else (size, size, 3)

    def load(self) -> ModuleType:
        """Import the recipe's module."""
        return importlib.import_module(f"tiffin.recipes.{self.task}.{self.name}")


class Claim(NamedTuple):
    """One study file.

    Attributes:
        name: the file's stem, such as `padding`.
        path: the file.
        title: the first line of the docstring.
        claim: the literal `CLAIM`: what it measures, in a sentence.
    """

    name: str
    path: Path
    title: str
    claim: str

    def load(self) -> ModuleType:
        """Import the study's module."""
        return importlib.import_module(f"tiffin.recipes.studies.{self.name}")


def _literal(path: Path, name: str) -> tuple[str, Any]:
    """Return a file's title, and what it gives a name, None where it does not."""
    tree = ast.parse(path.read_text(), str(path))
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return title, ast.literal_eval(node.value)
    return title, None


@functools.cache
def studies() -> dict[str, Claim]:
    """Return all studies by file name, in order."""
    files = sorted((_ROOT / "studies").glob("[!_]*.py"))
    return {path.stem: Claim(path.stem, path, *_literal(path, "CLAIM")) for path in files}


def find_study(name: str) -> Claim:
    """Return a study by its name.

    Raises:
        InputError: there is none; the message has the nearest names.
    """
    if name not in studies():
        raise InputError(
            f"There is no study '{name}'{nearest(name, studies())} `tiffin list` shows all."
        )
    return studies()[name]


@functools.cache
def recipes() -> dict[str, Entry]:
    """Return all recipes by file name, in the order of task and name."""
    found = {}
    for path in sorted(_ROOT.glob("*/[!_]*.py")):
        if path.parent.name == "engine":
            continue
        title, rows = _literal(path, "VARIANTS")
        if rows:
            variants = {name: Variant(*row) for name, row in rows.items()}
            found[path.stem] = Entry(path.stem, path.parent.name, path, variants, title)
    return found


def names() -> list[str]:
    """Return the name of every variant that `build` knows."""
    return [variant for recipe in recipes().values() for variant in recipe.variants]


def find(name: str) -> Entry:
    """Return the recipe that has a variant, or bears the file name, `name`.

    Raises:
        InputError: there is none; the message has the nearest names.
    """
    for recipe in recipes().values():
        if name in recipe.variants or name == recipe.name:
            return recipe
    known = {*names(), *recipes()}
    raise InputError(f"There is no recipe '{name}'{nearest(name, known)} `tiffin list` shows all.")


def build(
    name: str,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    **options,
):
    """Build a variant with fresh weights.

    Args:
        name: one of `names()`.
        input_shape: `(height, width, channels)` in pixels, or `(steps,)`; None: the paper's, in
            colour.
        classes: width of the last layer; None: as many as the paper's data set has. An embedder
            has none.
        **options: the builder's own, such as `alpha`, and those of every image network:
            `include_top`, `pooling`, `dropout` and `features` (see `tiffin.layers.classifier`),
            `normalization` (see `tiffin.layers.image_input`).

    Returns:
        A `keras.Model` from `image`, float `[batch, height, width, channels]`, to `logits`, float32
        `[batch, classes]`; what `pooling` leaves without top; with `features` a dict of feature
        maps by stride, `stride_8` and the like. An embedder ends in float `[batch, dimensions]`. A
        language model goes from `tokens`, int `[batch, steps]`, to `logits` of each step, a
        generator from `latent`, float `[batch, size]`, to `picture`, -1 to 1.

    Raises:
        InputError: an unknown name or option; the message has the nearest ones.
    """
    recipe = find(name)
    if name not in recipe.variants:
        raise InputError(
            f"'{name}' is a recipe with several variants: {', '.join(recipe.variants)}. Name one."
        )
    builder = getattr(recipe.load(), recipe.name)
    known = options_of(builder)
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option '{option}'{nearest(option, known)}")
    row = recipe.variants[name]
    if len(recipe.variants) > 1:
        options["variant"] = name
    if "classes" in known:
        options["classes"] = row.classes if classes is None else classes
    elif classes is not None:
        other = "has `dimensions` instead" if "dimensions" in known else "makes pictures"
        raise InputError(f"{name} does not end in classes: it {other}.")
    return builder(input_shape=input_shape or recipe.input_shape(row.size), **options)


def options_of(builder: Callable) -> list[str]:
    """Return the names of the arguments that a builder takes, the variant's aside."""
    known = []
    for name, parameter in inspect.signature(builder).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            for options in get_args(parameter.annotation):  # Top of **top: Unpack[Top]
                known += options.__annotations__
        elif name != "variant":
            known.append(name)
    return list(dict.fromkeys(known))
