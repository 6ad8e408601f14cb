"""What lies beside the exported files: manifest, labels, model card and samples."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiffin.export import files, pictures, samples
from tiffin.export.metadata import LABELS_FILE, MANIFEST, labels_text

CARD = "README.md"
TABLE = "explain.csv"
VOCABULARY = "vocabulary.json"


def write(
    directory: str | os.PathLike,
    manifest: Mapping,
    vocabulary: Mapping | None = None,
    explained: str = "",
) -> None:
    """Write what lies beside the files, `manifest.json` last; what an older export has more goes.

    Args:
        directory: the folder of the exported files.
        manifest: the manifest, format_version 1.
        vocabulary: of a model of texts, for `vocabulary.json`.
        explained: the tables of layers, for `explain.csv`.

    Raises:
        InputError: a label holds a line break, or the folder cannot be written to.
    """
    directory = Path(directory)
    beside = {LABELS_FILE: labels_text(manifest["labels"] or ()), TABLE: explained}
    programs = samples.texts(manifest)
    beside |= {f"samples/{name}": programs.get(name) for name in samples.NAMES}
    files.make_folder(directory / "samples")
    for name, text in beside.items():
        if text:
            files.write_text(directory / name, text)
        else:
            (directory / name).unlink(missing_ok=True)
    if vocabulary is not None:
        files.write_json(directory / VOCABULARY, vocabulary)
    else:
        (directory / VOCABULARY).unlink(missing_ok=True)
    files.write_text(directory / CARD, _card(manifest, sorted(programs)))
    files.write_json(directory / MANIFEST, manifest)


def files_table(manifest: Mapping) -> str:
    """Return the files with size, difference to Keras, accuracy and speed as a Markdown table."""
    if parts := manifest.get("parts"):
        tables = [f"{part.capitalize()}:\n\n{files_table(parts[part])}" for part in parts]
        return "\n\n".join([*tables, _pairs_table(manifest)])
    reference = manifest["reference"]
    embeds = any("mean_cosine" in file for file in manifest["files"])
    detects = any("matched" in file for file in manifest["files"])
    likeness = "mean cosine" if embeds else "same detections" if detects else "same top-1"
    if any("same_tokens" in file for file in manifest["files"]):
        likeness = "same first tokens"
    header = ["file", "MB", "max difference", "mean difference", likeness]
    header += [reference["metric"]] if reference else []
    rows = []
    for file in manifest["files"]:
        row = [
            file["file"],
            f"{file['bytes'] / 1e6:.2f}",
            *(_power(file[name]) for name in ("max_difference", "mean_difference")),
            _likeness(file),
        ]
        if reference:
            row.append("-" if file["metric"] is None else metric_text(file["metric"]))
        latency = file["latency_ms"]
        rows.append([*row, f"{latency['median']:.3g}", f"{file['peak_memory_mb']:.1f}"])
    threads = sorted({file["latency_ms"]["threads"] for file in manifest["files"]})
    count = "/".join(map(str, threads)) or "1"
    header += [f"ms ({count} thread{'s' if count != '1' else ''})", "peak memory MB"]
    text = table(header, rows)
    if count := len(manifest["files"]):
        text += f"\n\nAll {count} files verified: run in onnxruntime or LiteRT, held against Keras."
    if reference:
        value, examples = reference["value"], reference["examples"]
        text += (
            f"\n\nKeras itself: {reference['metric']} {metric_text(value)} of {examples} examples."
        )
    for file in manifest["files"]:
        if kept := file.get("float_layers"):
            text += f"\n\n{file['file']} has in float32 what int8 breaks: {', '.join(kept)}."
    for failure in manifest["failed"]:
        text += f"\n\nNot handed out: {failure['file']}: {failure['reason']}"
    return text


def _pairs_table(manifest: Mapping) -> str:
    """Return what encoders and decoders do together."""
    header, rows = ["together", "precision", "same as Keras"], []
    for pair in manifest["pairs"]:
        rows.append([pair["format"], pair["precision"], f"{pair['same_as_keras']:.1%}"])
    if reference := manifest["reference"]:
        header.append(reference["metric"])
        for row, pair in zip(rows, manifest["pairs"], strict=True):
            row.append(f"{pair['bleu']:.2f}")
    said = table(header, rows)
    if reference:
        value, count = reference["value"], reference["examples"]
        said += f"\n\nKeras itself: {reference['metric']} {value:.2f} of {count} texts, greedily."
    return said


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, aligned so that it also reads well in a terminal."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _card(manifest: Mapping, sample_names: Sequence[str]) -> str:
    """Return the model card."""
    name, task = manifest["name"], manifest["task"]
    data = f"Verified on {manifest['verified_on']}: every file was run in its own runtime and "
    data += "compared with the Keras model; a file outside its bound is not handed out."
    parts = [
        f"# {name}",
        manifest["description"] or f"A {task or 'neural network'} model.",
        "## Files",
        files_table(manifest),
        data,
    ]
    for title, part in manifest.get("parts", {"": manifest}).items():
        parts += _particulars(part, f": {title}" if title else "")
    parts.append(
        f"{manifest['preprocessing']} `batch` is any number in .onnx files, 1 in .tflite files."
    )
    if labels := manifest["labels"]:
        shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        parts.append(f"The {len(labels)} classes, in order (`{LABELS_FILE}`): {shown}")
    if sample_names:
        parts += ["## Use", "\n".join(f"- [`samples/{s}`](samples/{s})" for s in sample_names)]
    if shown := manifest.get(pictures.KEY):
        parts.append(
            f"`{pictures.FOLDER}/` has {len(shown)} of the held-out pictures, to try the files on: "
            "remove it where those may not be passed on."
        )
    versions = ", ".join(f"{key} {value}" for key, value in manifest["versions"].items())
    parts += [
        "## Intended use and limits",
        _limits(manifest),
        "## Licence",
        "The samples may be used freely. The weights carry whatever terms come with the data that "
        "they were trained on: state their licence here before you pass them on.",
        "## Made with",
        f"{versions}; {manifest['created']}. All figures above, machine-readable: `{MANIFEST}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _particulars(manifest: Mapping, title: str) -> list[str]:
    """Return the paragraphs on a model's bounds, quantisation, inputs and outputs."""
    tensors = [
        [side, t["name"], t["dtype"], json.dumps(t["shape"]).replace('"', ""), samples.contents(t)]
        for side, entries in (("input", manifest["inputs"]), ("output", manifest["outputs"]))
        for t in entries
    ]
    bounds = [f"- {precision}: {_words(bound)}" for precision, bound in manifest["bounds"].items()]
    quantized = [
        f"- `{f['file']}`: {_words(f['quantization'])}{_in_float(f)}"
        for f in manifest["files"]
        if f["quantization"]
    ]
    return [
        *([f"Bounds{title}:", "\n".join(bounds)] if bounds else []),
        *([f"Quantisation{title}:", "\n".join(quantized)] if quantized else []),
        f"## What goes in, what comes out{title}",
        table(["", "name", "type", "shape", "contents"], tensors),
    ]


def _limits(manifest: Mapping) -> str:
    text = "Meant for inputs like those that the model was trained on"
    if manifest["task"] == "classification" and manifest["labels"]:
        text += (
            f": it names one of {len(manifest['labels'])} classes for every image, also where none "
            "of them is to be seen, and a high probability is no proof"
        )
    text += ". Latency and memory are those of the machine that exported: measure on the device."
    if manifest["reference"] is None:
        text += " No accuracy was measured: the export was given no examples with known answers."
    return text


def _in_float(file: Mapping) -> str:
    """Say which layers an int8 file has in float32, and why."""
    if not (kept := file.get("float_layers")):
        return ""
    names = ", ".join(f"`{name}`" for name in kept)
    return (
        f"; left in float32, as in int8 they cost more than the bound allows: {names} "
        f"([all layers]({TABLE}))"
    )


def _likeness(file: Mapping) -> str:
    """Return how alike a file's answers and Keras' are: cosines, detections or classes."""
    if "mean_cosine" in file:
        return f"{file['mean_cosine']:.5f}"
    if "same_tokens" in file:
        return str(file["same_tokens"])
    if "matched" in file:
        return detections_text(file)
    return "-" if file["agreement"] is None else f"{file['agreement']:.2%}"


def detections_text(file: Mapping) -> str:
    """Return which share of the detections is Keras', of all and of those that Keras is sure of."""
    found = file["sure_found"]
    return f"{file['matched']:.2%}" + ("" if found is None else f", of the sure ones {found:.2%}")


def metric_text(value: float) -> str:
    """Spell a share in percent, and what is none, as the logarithm of a likelihood, as it is."""
    return f"{value:.2%}" if 0 <= value <= 1 else f"{value:.4f}"


def _power(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _words(value: Mapping | str) -> str:
    """Spell a mapping of the manifest as words."""
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{key.replace('_', ' ')} {entry}" for key, entry in value.items())
