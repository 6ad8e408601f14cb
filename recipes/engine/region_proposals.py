"""Selective search over a whole data set, once: what it finds stays on disk."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tiffin.export.errors import InputError, optional
from tiffin.export.files import make_folder, replacing
from tiffin.export.proposals import selective_search
from tiffin.recipes.engine.box_data import BoxData, BoxSplit
from tiffin.recipes.engine.data import progress
from tiffin.recipes.engine.published import cache

_VERSION = 1  # of what selective_search returns


def propose(data: BoxData, number: int) -> BoxData:
    """Give each picture of a data set its proposals.

    Args:
        data: any; its splits get `proposals`.
        number: regions of each picture.
    """
    for part in ("train", "validation", "test"):
        split = getattr(data, part)
        split.proposals = _kept(split, number, part)
    return data


def _kept(split: BoxSplit, number: int, part: str) -> np.ndarray:
    """Return the proposals of a split, from disk where the same pictures were asked for before."""
    path = cache("proposals") / f"{_fingerprint(split, number)}.npy"
    try:
        found = np.load(path, allow_pickle=False)
        if found.shape == (len(split), number, 4) and found.dtype == np.float32:
            return found
    except (OSError, ValueError, EOFError):
        pass  # none yet, or damaged: made again
    found = _searched(split, number, part)
    make_folder(path.parent)
    with replacing(path) as temporary:
        np.save(temporary, found)
    return found


def _fingerprint(split: BoxSplit, number: int) -> str:
    """Return what tells pictures and settings from others."""
    digest = hashlib.sha256(f"{_VERSION} {split.size} {number} {len(split)} ".encode())
    if split.images is not None:
        digest.update(np.ascontiguousarray(split.images))
    else:
        for path in split.paths:
            state = os.stat(path)
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _searched(split: BoxSplit, number: int, part: str) -> np.ndarray:
    cv2 = optional("cv2", "Selective search")
    cv2.setNumThreads(1)  # a picture a thread is faster

    def search(index: int) -> np.ndarray:
        try:
            here = split.images is not None
            image = split.images[index] if here else split.decode(split.paths[index])
        except InputError:
            return np.zeros((number, 4), np.float32)  # left out when it is read
        return selective_search(image, number)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(search, range(len(split)))
        return np.stack([*progress(found, len(split), f"selective search, {part}")])
