"""Weights that others publish: fetched once, checked, kept in Keras' cache."""

import contextlib
import hashlib
import io
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from tiffin.export.errors import InputError
from tiffin.export.files import make_folder, replacing

if TYPE_CHECKING:
    from tiffin.recipes.engine.weights import Collection

NAMES = ("imagenet", "coco")  # what --weights calls them: by what they were trained on
_SILENCE = 60.0  # seconds without a byte after which a server counts as gone


def fetch(variant: str, collections: Mapping[str, "Collection"]) -> tuple[str, Path, str]:
    """Return the published weights of a variant, from Keras' cache or from the network.

    Args:
        variant: the model's name.
        collections: a recipe's table `WEIGHTS`; the first that has a file for it counts.

    Returns:
        The collection's name, the file, and a sentence on origin and licence.

    Raises:
        InputError: nothing is published for the variant; the file cannot be fetched, or is not
            the one that was published.
    """
    name = next((n for n, c in collections.items() if variant in c.files), None)
    if name is None:
        raise _nothing(variant, collections)
    collection = collections[name]
    entry = collection.files[variant]
    file, checksum = (entry, _named_checksum(entry)) if isinstance(entry, str) else entry
    address = f"{collection.url}{file}"
    path = cache("models") / file
    if not path.exists():
        make_folder(path.parent)
        _download(address, path, checksum)
    elif not _is_published(path, checksum):
        raise InputError(
            f"{path} is not the published file: its checksum is not {checksum}. Delete it, and it "
            f"is fetched from {address} again."
        )
    return name, path, f"Published by {name} at {address}, licence {collection.licence}."


def cache(name: str) -> Path:
    """Return a folder of Keras' cache."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser() / name


def _nothing(variant: str, collections: Mapping[str, "Collection"]) -> InputError:
    known = sorted({name for collection in collections.values() for name in collection.files})
    if not known:
        return InputError(
            f"No weights are published for {variant}: give a file of your own, or leave --weights "
            "out and train from the start."
        )
    return InputError(f"No weights are published for {variant}; for {', '.join(known)} there are.")


def _named_checksum(file: str) -> str:
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", file)
    if not match:
        raise ValueError(f"{file}: a published file needs a checksum, in its name or beside it.")
    return match[1]


def _is_published(path: Path, checksum: str) -> bool:
    """Compare with an MD5 (32 digits), a SHA-256 (64), or the first digits of one."""
    digest = hashlib.new("md5" if len(checksum) == 32 else "sha256")
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest().startswith(checksum.lower())


def _download(address: str, path: Path, checksum: str) -> None:
    print(f"Fetching {address}")
    # A file gets no bar: it would be thousands of lines.
    shown = sys.stdout if sys.stdout.isatty() else io.StringIO()
    with replacing(path) as temporary:
        try:
            with _giving_up(), contextlib.redirect_stdout(shown):
                keras.utils.get_file(
                    temporary.name,
                    address,
                    cache_dir=path.parent.parent,
                    cache_subdir=path.parent.name,
                    force_download=True,
                )
        except Exception as error:
            # get_file raises a bare Exception for whatever a network can do.
            raise InputError(
                f"{path.name} cannot be fetched ({error}): without a network, bring it here from "
                f"{address} yourself and put it into {path.parent}."
            ) from error
        if not _is_published(temporary, checksum):
            raise InputError(
                f"What {address} sent is not the published {path.name}: its checksum is not "
                f"{checksum}. Nothing of it was kept; try again, or bring the file from elsewhere "
                f"and put it into {path.parent}."
            )


@contextlib.contextmanager
def _giving_up() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
