"""Which recipes and variants there are, read from the files without importing them.

A recipe is a file `recipes/<task>/<recipe>.py` with a literal table `VARIANTS`, one row a model
that it builds, a builder function that bears the file's name, and a configuration class `Config`.
"""

import ast
import dataclasses
import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from tiffin.export.errors import InputError, nearest

_ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Entry:
    """One recipe file.

    Attributes:
        name: the file's stem, such as `resnet`.
        task: the folder it lies in, such as `classification`.
        path: the file.
        variants: the literal `VARIANTS` table: variant name to its row (year, parameters, ...).
        title: the first line of the docstring.
    """

    name: str
    task: str
    path: Path
    variants: dict[str, dict[str, Any]]
    title: str

    def load(self) -> ModuleType:
        """Import the recipe's module."""
        return importlib.import_module(f"tiffin.recipes.{self.task}.{self.name}")


@functools.cache
def recipes() -> dict[str, Entry]:
    """Return all recipes by file name, in the order of task and name."""
    found = {}
    for path in sorted(_ROOT.glob("*/*.py")):
        if path.parent.name == "engine" or path.stem.startswith("_"):
            continue
        tree = ast.parse(path.read_text(), str(path))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARIANTS":
                title = (ast.get_docstring(tree) or "").partition("\n")[0]
                variants = ast.literal_eval(node.value)
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
    name: str, input_shape: tuple[int, int, int] = (224, 224, 3), classes: int = 1000, **options
):
    """Build a variant with fresh weights.

    Args:
        name: one of `names()`.
        input_shape: `(height, width, channels)` in pixels.
        classes: width of the last layer.
        **options: the builder's own, such as `alpha` or `dropout`.

    Returns:
        A `keras.Model` from images, normalised as the recipe says, to logits `[batch, classes]`.

    Raises:
        InputError: an unknown name or option; the message has the nearest ones.
    """
    import inspect

    recipe = find(name)
    if name not in recipe.variants:
        raise InputError(
            f"'{name}' is a recipe with several variants: {', '.join(recipe.variants)}. Name one."
        )
    builder = getattr(recipe.load(), recipe.name)
    known = [p for p in inspect.signature(builder).parameters if p != "variant"]
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option '{option}'{nearest(option, known)}")
    variant = {"variant": name} if len(recipe.variants) > 1 else {}
    return builder(**variant, input_shape=input_shape, classes=classes, **options)
