"""Writing files so that nothing half-written ever stands under a final name."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tiffin.export.errors import InputError

_MENDS = {
    errno.ENOSPC: "the disk is full: free some space, or name a folder on another disk",
    errno.EDQUOT: "the disk quota is used up: free some space, or name a folder on another disk",
    errno.EFBIG: "a file may not grow so large here: raise the limit of `ulimit -f`",
    errno.EROFS: "the file system is read-only: name a folder that can be written to",
    errno.EACCES: "permission denied: name a folder that can be written to",
    errno.EPERM: "permission denied: name a folder that can be written to",
    errno.ENOTDIR: "a part of this path is a file, not a folder: name another folder",
    errno.EEXIST: "a file of that name is in the way: name another folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn an operating system's refusal to write at `path` into an InputError with its mend."""
    try:
        yield
    except OSError as error:
        number = error.errno
        # h5py and zipfile bury the cause in their text and carry no errno of their own.
        if number is None and "No space left" in str(error):
            number = errno.ENOSPC
        if number not in _MENDS:
            raise
        raise InputError(f"Cannot write {path}: {_MENDS[number]}.") from error


def make_folder(path: str | os.PathLike) -> Path:
    """Create a folder and its parents, and prove that it can be written to.

    Raises:
        InputError: it cannot be created or written to.
    """
    path = Path(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    return path


def require_space(directory: str | os.PathLike, size: int) -> None:
    """Refuse before it begins a write of `size` bytes for which the disk has no room.

    HDF5 cannot close a file that outgrew its disk: the process would crash at its end.

    Raises:
        InputError: less is free.
    """
    with writing(directory):
        if shutil.disk_usage(directory).free < size:
            raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on any failure.

    The temporary name keeps the suffix of `path`, as Keras chooses its format by it.

    Raises:
        InputError: the disk is full, the folder is read-only, or the like.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write JSON with stable, readable formatting atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
