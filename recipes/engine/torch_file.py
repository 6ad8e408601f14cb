"""Weights that torch saved, read without torch and without running what a pickle asks for.

A pickle is a program. Here a small interpreter of our own goes through it, which knows
dictionaries, lists, tuples, strings, numbers and tensors, and calls nothing: whatever else a file
names, it is refused by name. Sizes that a file declares are held against the bytes that it has.
"""

import io
import math
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
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
_PREFIXES = ("module.", "_orig_mod.", "module.")
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_VALUES += ("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING")
_MOST_OPERATIONS = 2_000_000  # some 40 a tensor


class _Short(io.BufferedReader):
    """A file that is asked for no more bytes than it has: else Python makes room for them first."""

    def read(self, size: int = -1) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size < 0 else min(size, max(left, 0)))


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
        with _Short(io.FileIO(path)) as file:
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                top, content = _read_zip(path, file)
            elif start[:1] == b"\x80":
                top, content = _read_legacy(path, file)
            else:
                raise _foreign(path)
            arrays, tensors = {}, {}
            for name, tensor in _state_dict(path, top).items():
                storage = tensor.storage
                if storage not in arrays:
                    arrays[storage] = _array(storage, content(storage))
                tensors[name] = _view(name, tensor, arrays[storage])
            return tensors
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(
            f"{path} cannot be read as a file of torch ({error or type(error).__name__}): it is "
            "damaged or incomplete; fetch it again."
        ) from error


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path} is no file of torch: a .pth or .pt file comes from torch.save(). If it holds "
        "weights of another kind, give it that kind's ending, such as .safetensors."
    )


def _read_zip(path: Path, file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    """Return what `data.pkl` describes, and how to get a storage's bytes."""
    archive = zipfile.ZipFile(file)
    budget = path.stat().st_size

    def member(name: str) -> bytes:
        nonlocal budget
        info = archive.getinfo(name)
        # torch compresses nothing, so that no member is larger than the file and a small file
        # cannot unfold into a large one; nor by many names for the same bytes.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"{name} is compressed, which torch never does")
        budget -= info.file_size
        if budget < 0:
            raise ValueError("its parts overlap")
        return archive.read(info)

    names = set(archive.namelist())
    pickles = [name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive without a data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in names and member(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")

    def persistent(given: Any) -> _Storage:
        return _storage(path, *given[:5])

    top = _interpret(path, io.BytesIO(member(pickles[0])), persistent)
    return top, lambda storage: member(f"{folder}data/{storage.key}")


def _read_legacy(path: Path, file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    """Return what the fourth pickle describes, and how to get a storage's bytes.

    The file is a row of pickles, magic number, version, system, object and storage keys; then for
    each key the number of elements in 8 bytes, and the elements.
    """
    known: dict[str, _Storage] = {}

    def persistent(given: Any) -> _Storage:
        storage = _storage(path, *given[:5])
        if len(given) > 5 and given[5] is not None:
            raise ValueError("it has views of storages, as torch wrote them before 0.4")
        if known.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key} is declared twice")
        return storage

    if _interpret(path, file, persistent) != _MAGIC:
        raise _foreign(path)
    version = _interpret(path, file, persistent)
    system = _interpret(path, file, persistent)
    if version != 1001 or not system["little_endian"]:
        raise ValueError(f"version {version} of its format, or its byte order, is unknown")
    top = _interpret(path, file, persistent)
    keys = _interpret(path, file, persistent)
    size, places = path.stat().st_size, {}
    for key in keys:
        # Only a string: hashing what nests deeply overflows the machine's stack.
        storage = known[_a(str, key)]
        (numel,) = struct.unpack("<q", file.read(8))
        places[storage] = file.tell()
        length = numel * _itemsize(storage.dtype)
        if numel != storage.numel or file.tell() + length > size:
            raise ValueError(f"storage {key} is not as long as declared")
        file.seek(length, io.SEEK_CUR)

    def content(storage: _Storage) -> bytes:
        file.seek(places[storage])
        return file.read(storage.numel * _itemsize(storage.dtype))

    return top, content


def _interpret(path: Path, file: BinaryIO, persistent: Callable[[Any], _Storage]) -> Any:
    """Go through one pickle and return the plain data that it describes.

    Raises:
        InputError: it asks for code.
        ValueError, LookupError, TypeError: it is malformed.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > _MOST_OPERATIONS:
            raise ValueError("its pickle is far longer than any network's")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case name if name in _VALUES:
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                items = tuple(stack[-length:])
                del stack[-length:]
                stack.append(items)
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                _a(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _a(dict, stack[-1])[_key(key)] = value
            case "SETITEMS":
                items = since_mark()
                pairs = zip(items[::2], items[1::2], strict=True)
                _a(dict, stack[-1]).update((_key(key), value) for key, value in pairs)
            case "GLOBAL":
                stack.append(_global(path, argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_global(path, f"{module} {name}"))
            case "BINPERSID":
                stack.append(persistent(_a(tuple, stack.pop())))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_make(_a(_Global, function).name, _a(tuple, arguments)))
            case "BUILD":
                # Attributes of a dictionary: torch keeps versions of modules there.
                stack.pop()
                _a(dict, stack[-1])
            case other:
                raise ValueError(f"its pickle has {other}, which torch does not write")
    raise ValueError("its pickle does not end")


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _key(value: Any) -> Any:
    # Not a tuple, whose hashing overflows the machine's stack where it nests deeply.
    if value is not None and not isinstance(value, str | int | float):
        raise TypeError(f"a dictionary's key is a {type(value).__name__}")
    return value


def _global(path: Path, name: str) -> _Global:
    known = name.removeprefix("torch ") in _DTYPES or name in (
        _DICTIONARY,
        _PARAMETER,
        _SIZE,
        *_TENSORS,
    )
    if not known:
        raise InputError(
            f"{path} asks for {name[:80].replace(' ', '.')}: that is code or an object, not plain "
            "weights, and is not run. If you trust the file, save the weights alone with torch: "
            "torch.save(model.state_dict(), 'weights.pth')."
        )
    return _Global(name)


def _storage(path: Path, kind: Any, dtype: Any, key: Any, location: Any, numel: Any) -> _Storage:
    if kind != "storage":
        raise InputError(
            f"{path} holds a whole {str(kind)[:80]} with its code, not plain weights. Save the "
            "weights alone with torch: torch.save(model.state_dict(), 'weights.pth')."
        )
    if _a(int, numel) < 0:
        raise ValueError(f"storage {key} has {numel} elements")
    name = _a(_Global, dtype).name.removeprefix("torch ")
    return _Storage(_DTYPES[name], _a(str, key), numel)


def _make(name: str, arguments: tuple) -> Any:
    """Return the plain data for a call that torch wrote into the pickle."""
    if name == _DICTIONARY:
        return {_key(key): value for key, value in (arguments[0] if arguments else ())}
    if name in _TENSORS:
        storage, offset, shape, strides = arguments[:4]
        shape, strides = (tuple(_a(int, n) for n in _a(tuple, part)) for part in (shape, strides))
        return _Tensor(_a(_Storage, storage), _a(int, offset), shape, strides)
    if name == _PARAMETER:
        return _a(_Tensor, arguments[0])
    if name == _SIZE:
        return _a(tuple, arguments[0])
    raise TypeError(f"{name} is called")


def _state_dict(path: Path, top: Any) -> dict[str, _Tensor]:
    """Return the tensors of the state dict in a checkpoint, or of the state dict itself."""
    tensors = _tensors(top)
    for _ in range(3):
        inner = (_tensors(top[name]) or top[name] for name in _WRAPPERS if name in _a(dict, top))
        found = next((part for part in inner if isinstance(part, dict) and part), None)
        if found is None:
            break
        top, tensors = found, _tensors(found)
    if not tensors:
        raise InputError(
            f"{path} holds no tensors by name: save the weights in torch by "
            "torch.save(model.state_dict(), 'weights.pth')."
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _tensors(value: Any) -> dict[str, _Tensor]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, _Tensor)}


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def widen_bfloat16(raw: bytes) -> np.ndarray:
    """Return little-endian bfloat16 as float32: its bits are the upper half of theirs."""
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")


def _array(storage: _Storage, raw: bytes) -> np.ndarray:
    if len(raw) != storage.numel * _itemsize(storage.dtype):
        raise ValueError(f"storage {storage.key} is not as long as declared")
    if storage.dtype == "bfloat16":
        return widen_bfloat16(raw)
    return np.frombuffer(raw, np.dtype(storage.dtype).newbyteorder("<"))


def _view(name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """Return a tensor in its storage, without a copy.

    Raises:
        ValueError: it reaches outside the storage, or has more elements.
    """
    _, offset, shape, strides = tensor
    if not len(shape) == len(strides) <= 8 or min((offset, *shape, *strides)) < 0:
        raise ValueError(f"the shape and strides of {name[:80]} are none")
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # An expanded tensor would have more elements than its storage: nobody saves one, and a small
    # file could ask for any amount of memory.
    if count > storage.size or (count and last >= storage.size):
        raise ValueError(f"{name[:80]} reaches outside its storage")
    if not count:
        return np.zeros(shape, storage.dtype)
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
