"""Weights that torch saved, read without torch and without running what a pickle asks for.

A pickle is a program. Here a small interpreter of its own goes through it, which knows dictionaries,
lists, tuples, strings, numbers and tensors, and calls nothing: whatever else a file names, it is
refused by name. Sizes that a file declares are held against the bytes that it has.
"""

import pickletools
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tiffin.export.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_DICTIONARY = "collections OrderedDict"
_PARAMETER = "torch._utils _rebuild_parameter"
_TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
_SIZE = "torch Size"
# What a checkpoint with more than weights calls them.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")
_CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING")


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict, from the zip format or from the one before torch 1.6.

    Args:
        path: a `.pth` or `.pt` file: a state dict, or a checkpoint that holds one as `state_dict`,
            `model` or the like.

    Returns:
        The tensors by name, in the file's order, without the prefixes of parallel or compiled
        modules; bfloat16 becomes float32. They may share memory, and are read-only.

    Raises:
        InputError: the file is no such thing, is damaged, or holds anything but plain data.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                top, storages = _read_zip(path)
            else:
                file.seek(0)
                top, storages = _read_legacy(path, file)
        arrays = {}
        tensors = {}
        for name, tensor in _state_dict(path, top).items():
            key = tensor.storage
            if key not in arrays:
                arrays[key] = _array(key, storages(key))
            tensors[name] = _view(name, tensor, arrays[key])
        return tensors
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(
            f"{path} cannot be read as a file of torch ({error or type(error).__name__}): it is "
            "damaged or incomplete; fetch it again."
        ) from error


# All that malformed bytes can raise on their way through struct, zipfile, pickletools and NumPy.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
