"""Who is it? Embeddings of pictures, compared by distance."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiffin.export.documents import MANIFEST
from tiffin.export.errors import InputError
from tiffin.export.files import replacing, sha256
from tiffin.export.runtime import Runner
from tiffin.export.verify import EMBEDDINGS


def embed(runner: Runner, images: np.ndarray) -> np.ndarray:
    """Return the embeddings of pictures, float64 `[n, dimensions]`, of length 1.

    Args:
        runner: a model with one output `[batch, dimensions]`, or one called `embeddings`.
        images: `[n, height, width, channels]`, as the model takes them.

    Raises:
        InputError: the model has no such output, or gives an embedding without a length.
    """
    flat = [t.name for t in runner.outputs if len(t.shape) == 2]
    name = EMBEDDINGS if EMBEDDINGS in flat else flat[0] if len(flat) == 1 else None
    if name is None or name in ("probabilities", "logits"):
        found = ", ".join(f"'{t.name}'" for t in runner.outputs)
        raise InputError(f"{runner} embeds nothing: its outputs are {found}.")
    values = np.asarray(runner(images)[name], np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InputError(f"{runner} gives embeddings that are zero or not finite.")
    return values / lengths


def find_threshold(path: Path) -> float:
    """Return the distance up to which pictures count as the same, from a model's manifest.

    Args:
        path: the model file; `manifest.json` lies beside it, or in `export/` beside it.

    Raises:
        InputError: there is none, or it holds no threshold.
    """
    for manifest in (path.parent / MANIFEST, path.parent / "export" / MANIFEST):
        if not manifest.exists():
            continue
        try:
            stored = json.loads(manifest.read_text(encoding="utf-8"))
            threshold = float(stored["verification"]["threshold"])
            if not 0 <= threshold <= 2:
                raise ValueError(f"{threshold} is none")
            return threshold
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{manifest} holds no threshold of an embedder ({error!r}): give one with "
                "--threshold, a distance from 0 to 2."
            ) from error
    raise InputError(
        f"There is no {MANIFEST} beside {path} that tells up to which distance two pictures are "
        "the same: give it with --threshold, from 0 to 2."
    )


def save_gallery(path: Path, names: Sequence[str], embeddings: np.ndarray, model: Path) -> None:
    """Write enrolled embeddings, with the checksum of the model that made them."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            names=np.array(names),
            embeddings=embeddings.astype(np.float32),
            model=np.array(sha256(model)),
        )


def load_gallery(path: Path, model: Path) -> tuple[list[str], np.ndarray]:
    """Read what `save_gallery` wrote: a name for each embedding, and the embeddings.

    Raises:
        InputError: it is no gallery, or one of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names, embeddings, made_by = file["names"], file["embeddings"], str(file["model"])
        if embeddings.ndim != 2 or names.shape != embeddings.shape[:1] or names.dtype.kind != "U":
            raise ValueError("names and embeddings do not pair up")
        if not embeddings.size or not np.isfinite(embeddings).all():
            raise ValueError("it holds no embeddings, or some that are no numbers")
    except Exception as error:
        # NumPy, zipfile and zlib raise all sorts of errors on broken bytes.
        raise InputError(
            f"{path} is no gallery: name a folder of folders of pictures, or what --save wrote."
        ) from error
    if made_by != sha256(model):
        raise InputError(
            f"{path} was made by another model than {model}, whose embeddings are not comparable: "
            "enrol the folder again."
        )
    return names.tolist(), embeddings.astype(np.float64)
