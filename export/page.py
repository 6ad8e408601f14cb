"""A static page that runs an export in the visitor's own browser: what lies in its folder."""

import base64
import contextlib
import errno
import functools
import hashlib
import http.server
import json
import os
import shutil
import string
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiffin.export import files, pictures
from tiffin.export.documents import MANIFEST, VOCABULARY
from tiffin.export.errors import InputError, optional
from tiffin.export.metadata import LABELS_FILE, labels_text

MARKER = "page.json"  # beside a page: what it consists of, and where its runtime comes from
RUNTIME_VERSION = "1.30.0"
ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"
# The SHA-384 of onnxruntime-web's files: its script, the WebAssembly's own, and that itself.
RUNTIME = {
    "wasm": {
        "ort.wasm.min.mjs": "SfFfy/pvthiOsgaw3KX0bV5TfQ6Iq+oY9KutMe4SxIuHH4cl+DCSD4rTsYOoG1tJ",
        "ort-wasm-simd-threaded.mjs": (
            "XcXA/MtAf0WpB8e023xQH9CM7RIjiugakT7x99DIwpFf7k56BIFFcAPerIF7FDad"
        ),
        "ort-wasm-simd-threaded.wasm": (
            "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"
        ),
    },
    "webgpu": {
        "ort.webgpu.min.mjs": "FPQBMbud8ICuP0Ii+Gr95KWEX9pKHtUC3lacIp0aPI8WYluKvTsEGQ3AE2Ze3QlL",
        "ort-wasm-simd-threaded.asyncify.mjs": (
            "qViEcCGzsR/m8nlQwIsbYh7afN4thuraqFYDQY6huvmoLVoZq/eYawQ1wrv8nnhA"
        ),
        "ort-wasm-simd-threaded.asyncify.wasm": (
            "EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR"
        ),
    },
}
_PRECISIONS = ("fp32", "fp16", "int8")
_SOURCE = Path(__file__).parent / "templates" / "page"
_FORMAT_VERSION = 1
# What is raised where JSON, or what it holds, is not as it should be.
_FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_RUNTIME = "runtime"
_STATIC = ("page.js", "style.css")
# What browsers insist on, and not every system's own table has.
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}


def write(export: Path, directory: Path, runtime: Path | None = None) -> dict:
    """Write a page that runs an export's .onnx files; a page that stands there is replaced.

    Args:
        export: the folder of an export.
        directory: where the page goes: missing, empty, or the folder of a page.
        runtime: folder with onnxruntime-web's files, its `dist`, to be copied beside the page;
            None: the page fetches them from a public address.

    Returns:
        The page's manifest: the export's, with the files that a browser runs.

    Raises:
        InputError: the export is none, is damaged or has no .onnx file; the runtime is of another
            version; or the directory holds something else, or cannot be written to.
    """
    manifest = _for_browsers(_read(export), export)
    vocabulary = _vocabulary(export, manifest)
    older = _files_of_page(directory)
    directory = files.make_folder(directory)
    with (
        files.writing(directory),
        tempfile.TemporaryDirectory(dir=directory, prefix=".page-") as name,
    ):
        folder = Path(name)
        for entry in manifest["files"]:
            _copy(export, folder, entry["file"], entry["sha256"])
        for entry in manifest.get(pictures.KEY, ()):
            place = pictures.FOLDER
            _copy(export / place, folder / place, entry["file"], entry["sha256"])
        if manifest["labels"]:
            files.write_text(folder / LABELS_FILE, labels_text(manifest["labels"]))
        if vocabulary:
            files.write_json(folder / VOCABULARY, vocabulary)
        files.write_json(folder / MANIFEST, manifest)
        if runtime is not None:
            _copy_runtime(runtime, folder / _RUNTIME)
        for static in _STATIC:
            shutil.copyfile(_SOURCE / static, folder / static)
        index = string.Template((_SOURCE / "index.html").read_text(encoding="utf-8"))
        policy = _policy(public=runtime is None)
        files.write_text(folder / "index.html", index.substitute(policy=policy))
        marker = {
            "format_version": _FORMAT_VERSION,
            "runtime": _runtime(public=runtime is None),
            "vocabulary": bool(vocabulary),
        }
        _publish(folder, directory, older, marker)
    return manifest


def server(directory: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of a page to this machine alone.

    Args:
        directory: the folder of the page.
        port: 0 for any that is free.

    Raises:
        InputError: the port is taken, or not allowed.
    """
    reasons = {errno.EADDRINUSE: "is taken", errno.EACCES: "is not allowed"}
    try:
        handler = functools.partial(_Handler, directory=str(directory))
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno not in reasons:
            raise
        raise InputError(
            f"Port {port} {reasons[error.errno]}: name another one with --port, such as 8001."
        ) from error


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | _TYPES

    def end_headers(self):
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *arguments):
        """Say nothing of each file."""


def _policy(public: bool) -> str:
    """Return the Content-Security-Policy of a page with a public runtime, or one of its own."""
    # What was fetched and checked is run from memory, as a blob.
    blob, address = (" blob:", f" {ADDRESS}") if public else ("", "")
    rules = {
        "default-src": "'none'",
        "script-src": f"'self' 'wasm-unsafe-eval'{blob}",
        "connect-src": f"'self'{address}",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "form-action": "'none'",
        "base-uri": "'none'",
    }
    return "; ".join(f"{key} {value}" for key, value in rules.items())


def _runtime(public: bool) -> dict:
    """Return where the page finds its runtime, and the checksums to hold it against."""
    described = {
        device: [
            {"file": name if public else _local(name), "integrity": f"sha384-{sha}"}
            for name, sha in entries.items()
        ]
        for device, entries in RUNTIME.items()
    }
    folder = ADDRESS if public else f"{_RUNTIME}/"
    return {"folder": folder, "local": not public, "files": described}


def _local(name: str) -> str:
    """Return how a runtime's file is called beside the page: not all servers know `.mjs`."""
    return f"{name.removesuffix('.mjs')}.js" if name.endswith(".mjs") else name


def _read(export: Path) -> dict:
    """Read a manifest, and check what of it is relied on here.

    Raises:
        InputError: it is missing, damaged, or of another version.
    """
    path = export / MANIFEST
    if not path.exists():
        run = export / "export"
        hint = f"did you mean {run}?" if (run / MANIFEST).exists() else "name an export's folder."
        raise InputError(f"{export} holds no {MANIFEST}: {hint}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        # The page's own has to be text and JSON: no half of a pair of surrogates, no NaN.
        json.dumps(manifest, ensure_ascii=False, allow_nan=False).encode()
        version = manifest["format_version"]
        if version == _FORMAT_VERSION:
            _check(manifest)
    except _FAULTS as error:
        raise InputError(f"{path} is damaged ({error!r}): export the model anew.") from error
    if version != _FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version}, this Tiffin reads {_FORMAT_VERSION}: take the "
            "Tiffin that exported the model."
        )
    return manifest


def _check(manifest: Mapping) -> None:
    """Touch all that is relied on here of a manifest.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not as it should be.
    """
    parts = manifest.get("parts", {})
    of_parts = [entry for part in parts.values() for entry in part["files"]]
    entries = [*manifest["files"], *of_parts]
    for entry in (*entries, *manifest.get(pictures.KEY, ())):
        if not _is_plain(entry["file"]):
            raise ValueError(f"it names the file {entry['file']!r}")
        if not isinstance(entry["sha256"], str) or not isinstance(entry["bytes"], int):
            raise TypeError(f"size and checksum of {entry['file']}")
    for entry in (*entries, *(manifest["pairs"] if parts else ())):
        if not isinstance(entry["format"], str) or not isinstance(entry["precision"], str):
            raise TypeError("format and precision")
    named = {entry["file"] for entry in of_parts}
    for pair in manifest["pairs"] if parts else ():
        if not {pair[name] for name in parts} <= named:
            raise ValueError("a pair of files that it does not describe")
    if not isinstance(manifest["name"], str):
        raise TypeError("name")
    labels_text(manifest["labels"] or ())


def _is_plain(name: object) -> bool:
    """Whether a name is one of a file in the same folder, and not a hidden one."""
    plain = isinstance(name, str) and bool(name) and name[0] != "." and not {*name} & {*"/\\\0"}
    return plain and len(os.fsencode(name)) <= 255


def _for_browsers(manifest: dict, export: Path) -> dict:
    """Return a manifest of what a browser runs, .onnx files, and of pictures that are there.

    Raises:
        InputError: it names no .onnx file.
    """

    def kept(entries: Sequence[Mapping]) -> list[Mapping]:
        found = {e["precision"]: e for e in entries if e["format"] == "onnx"}
        return [found[precision] for precision in _PRECISIONS if precision in found]

    parts = manifest.get("parts", {})
    parts = {name: part | {"files": kept(part["files"])} for name, part in parts.items()}
    if parts:
        pairs = kept(manifest["pairs"])
        left = [entry for part in parts.values() for entry in part["files"]] if pairs else []
        manifest = manifest | {"parts": parts, "pairs": pairs, "files": left}
    else:
        manifest = manifest | {"files": kept(manifest["files"])}
    if not manifest["files"]:
        raise InputError(
            f"{export} holds no .onnx file that a browser runs: export with --formats onnx and one "
            f"of --precisions {' '.join(_PRECISIONS)}."
        )
    # Whoever passes an export on may have removed its pictures.
    folder = export / pictures.FOLDER
    shown = [e for e in manifest.pop(pictures.KEY, ()) if (folder / e["file"]).exists()]
    return manifest | ({pictures.KEY: shown} if shown else {})


def _vocabulary(export: Path, manifest: Mapping) -> dict | None:
    """Return the vocabulary of a model of texts as the page reads it: pieces with their scores."""
    if "parts" not in manifest and not (export / VOCABULARY).exists():
        return None
    from tiffin.export.text import read_vocabularies

    found = {
        side: vocabulary.describe() | {"scores": _scores(vocabulary.pieces)}
        for side, vocabulary in read_vocabularies(export / VOCABULARY).items()
    }
    for described in found.values():
        described.pop("sentencepiece", None)
    return found.get("", found)


def _scores(pieces: bytes) -> list[float | None] | None:
    """Return the score of each piece, None for marks, or no list where the page cannot cut so.

    It cuts as SentencePiece's unigram model does, behind Unicode's normal form.
    """
    if not pieces:
        return None
    protos = optional("sentencepiece.sentencepiece_model_pb2", "A vocabulary of pieces")
    model = protos.ModelProto.FromString(pieces)
    kinds, rules = model.SentencePiece, model.normalizer_spec
    cut = model.trainer_spec.model_type == model.trainer_spec.UNIGRAM
    normal = rules.name in ("nmt_nfkc", "nfkc") and rules.add_dummy_prefix
    normal = normal and rules.remove_extra_whitespaces and rules.escape_whitespaces
    plain = {piece.type for piece in model.pieces} <= {kinds.NORMAL, kinds.UNKNOWN, kinds.CONTROL}
    if not (cut and normal and plain):
        return None
    return [piece.score if piece.type == kinds.NORMAL else None for piece in model.pieces]


def _copy(source: Path, folder: Path, name: str, sha256: str) -> None:
    """Copy a file that the manifest names, and hold it against its checksum."""
    path = source / name
    if not path.is_file() or path.resolve().parent != source.resolve():
        raise InputError(f"{path} is missing, though {MANIFEST} names it: copy all of the folder.")
    files.make_folder(folder)
    shutil.copyfile(path, folder / name)
    if files.sha256(folder / name) != sha256:
        raise InputError(
            f"{path} is not the file that {MANIFEST} describes: copy it anew, or export the model "
            "anew."
        )


def _copy_runtime(source: Path, folder: Path) -> None:
    """Copy onnxruntime-web's files, and hold them against their checksums."""
    files.make_folder(folder)
    for name, wanted in (pair for entries in RUNTIME.values() for pair in entries.items()):
        path = source / name
        if not path.is_file():
            raise InputError(
                f"--runtime {source} holds no {name}: name the folder dist of the npm package "
                f"onnxruntime-web@{RUNTIME_VERSION}, such as node_modules/onnxruntime-web/dist."
            )
        content = path.read_bytes()
        if base64.b64encode(hashlib.sha384(content).digest()).decode() != wanted:
            raise InputError(
                f"{path} is not that of onnxruntime-web {RUNTIME_VERSION}, which the page was made "
                f"for: `npm install onnxruntime-web@{RUNTIME_VERSION}` gets it."
            )
        (folder / _local(name)).write_bytes(content)


def _files_of_page(directory: Path) -> list[str]:
    """Return the files of the page that a folder holds, none of a new or empty one.

    Raises:
        InputError: the folder holds something else.
    """
    if not directory.is_dir() or not any(directory.iterdir()):
        return []
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        names = [name for name in marker["files"] if all(map(_is_plain, name.split("/")))]
    except _FAULTS as error:
        raise InputError(
            f"{directory} holds files, and no page that could be replaced: name a new or an empty "
            "folder."
        ) from error
    return names


def _publish(folder: Path, directory: Path, older: Sequence[str], marker: dict) -> None:
    """Rename a page's files into place, and remove those of an older page; others stay.

    The marker names the files of both until the end, so that a page that was cut off in between is
    still known as one.
    """
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    names.sort(key=lambda name: name == "index.html")
    for name in {*names} - {*older}:
        if (directory / name).exists():
            raise InputError(
                f"{directory / name} is in the way, and no page made it: move it, or name another "
                "folder."
            )
    files.write_json(directory / MARKER, marker | {"files": [*dict.fromkeys([*older, *names])]})
    for name in names:
        files.make_folder((directory / name).parent)
        (folder / name).replace(directory / name)
    for name in {*older} - {*names}:
        (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # still holds something, or is gone
            (directory / name).parent.rmdir()
    files.write_json(directory / MARKER, marker | {"files": names})
