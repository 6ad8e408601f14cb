"""A few held-out pictures beside the exported files, to try them on."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tiffin.export import files
from tiffin.export.metadata import MANIFEST

KEY, FOLDER = "pictures", "held_out"  # in the manifest, and of the files
_COUNT = 8


def write(
    folder: Path,
    images: np.ndarray,
    targets: object = None,
    labels: Sequence[str] | None = None,
    pairs: bool = False,
) -> list[dict]:
    """Write some of an evaluation's pictures as .png files, named `1.png` and so on.

    Args:
        folder: where they go; created.
        images: raw pixels 0-255, `[n, height, width, 1 or 3]`.
        targets: of pictures with a class each, integers `[n]`; others are of no use here.
        labels: names of the classes.
        pairs: choose two pictures of each class, to compare, in the place of many classes.

    Returns:
        The manifest's `pictures`: `file`, its name in the folder, `bytes`, `sha256`, and, where
        known, the picture's `label`.
    """
    from PIL import Image

    files.make_folder(folder)
    classes = None if isinstance(targets, Mapping) else np.asarray(targets)
    if classes is not None and (classes.shape != (len(images),) or classes.dtype.kind not in "iu"):
        classes = None
    entries = []
    for number, index in enumerate(_chosen(len(images), classes, pairs), 1):
        pixels = images[index].round().clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "png")
        content = buffer.getvalue()
        entry = {"file": f"{number}.png", "bytes": len(content)}
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        if labels and classes is not None and 0 <= classes[index] < len(labels):
            entry["label"] = labels[classes[index]]
        (folder / entry["file"]).write_bytes(content)
        entries.append(entry)
    return entries


def publish(source: Path, directory: Path, entries: Sequence[Mapping]) -> None:
    """Rename pictures into their folder, and remove those that an older export left there.

    Args:
        source: the folder that `write` wrote to.
        directory: of the exported files, with an older export's manifest or none.
        entries: what `write` returned; empty for no pictures.
    """
    folder = directory / FOLDER
    for path in _older(directory):
        path.unlink()
    if entries:
        files.make_folder(folder)
    for entry in entries:
        (source / entry["file"]).replace(folder / entry["file"])
    if not entries and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _older(directory: Path) -> list[Path]:
    """Return the pictures of the manifest that lies in a folder, as far as they are still there."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        entries = {entry["file"]: entry["sha256"] for entry in manifest[KEY]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [
        path
        for path in sorted((directory / FOLDER).glob("*.png"))
        if files.sha256(path) == entries.get(path.name)
    ]


def _chosen(count: int, classes: np.ndarray | None, pairs: bool) -> list[int]:
    """Return the places of a few pictures, of classes as different as can be."""
    if classes is None:
        return np.unique(np.linspace(0, count - 1, min(count, _COUNT)).astype(int)).tolist()
    found = {kind: np.flatnonzero(classes == kind) for kind in np.unique(classes)}
    if pairs:
        found = {kind: places for kind, places in found.items() if len(places) > 1} or found
    each = 2 if pairs else max(1, _COUNT // len(found))
    kinds = np.linspace(0, len(found) - 1, min(len(found), _COUNT // each)).astype(int)
    places = [*found.values()]
    return [int(place) for kind in kinds for place in places[kind][:each]]
