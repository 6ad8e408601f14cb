"""Any Keras model to checked ONNX and TFLite files."""

import importlib

_HOMES = {
    "export": "tiffin.export.stage",
    "explain": "tiffin.export.sensitivity",
    "load": "tiffin.export.runtime",
    "load_image": "tiffin.export.images",
    "ExportError": "tiffin.export.errors",
    "InputError": "tiffin.export.errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Load each public name at first use: `tiffin --help` must not wait for TensorFlow."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
