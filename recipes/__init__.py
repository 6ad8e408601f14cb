"""Runnable recipes: `names()` lists what can be built, `build(name)` builds one.

`load_weights(model, source)` loads other people's weights.
"""

from tiffin.recipes.engine.registry import build, names

__all__ = ["build", "load_weights", "names"]


def __getattr__(name: str):
    # Names and tables answer without Keras, whose import takes seconds.
    if name == "load_weights":
        from tiffin.recipes.engine.weights import load_weights

        return load_weights
    raise AttributeError(f"module 'tiffin.recipes' has no attribute '{name}'")
