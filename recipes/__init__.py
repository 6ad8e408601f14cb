"""Runnable recipes: `names()` lists what can be built, `build(name)` builds one."""

from tiffin.recipes.engine.registry import build, names

__all__ = ["build", "names"]
