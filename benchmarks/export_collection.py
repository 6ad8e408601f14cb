"""Every recipe of the collection through one export: files, sizes, differences, latencies.

    python benchmarks/export_collection.py [--only NAME ...] [--all] [--runs FOLDER]

Each recipe is trained and exported as by `tiffin train NAME --export`, on fewer examples: an
untrained network gives all classes about the same score, and whether int8 keeps the first of them
would be chance. Where pictures of a network's own size would take too long, it learns on small ones
and leaves with these weights at its own size. Large pictures show their digit over and over.
`--runs` takes what was trained already: the newest finished run of a variant. Each recipe has a
process of its own, and a line in `--lines` once it is done: started again, the script goes on with
what is missing there or was refused. Ends with 1 if any file was refused.
"""

import argparse
import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tiffin.export.documents import detections_text, table
from tiffin.recipes.engine import registry

# What a network learns by: forward passes over pictures, in multiply-accumulates, at most.
WORK = 2e12
DIGITS, PASSES, LEAST = 1258, 10, 960  # to train on, how often at most, and at least
# Pixels along a side that networks for larger pictures learn on. Of 64 the Inceptions for 299,
# which do not pad, leave a single cell, and are lost where there are many.
SMALL, UNPADDED = 64, 139
TRIED = 100  # held-out examples that each file is run on
SCENES = (480, 40, TRIED)  # to train, validate, test detectors on
# Their fully connected layers are made for one size of picture.
FIXED = ("vgg", "zfnet", "a_softmax", "am_softmax", "arcface", "center_loss", "contrastive")
FIXED += ("l_softmax", "lenet")


def tiled(split, size: int, count: int | None = None):
    """Return the first pictures of a split, each side by side with itself up to a size."""
    images, labels = split.images[:count], split.labels[:count]
    times = math.ceil(size / images.shape[1])
    images = np.tile(images, (1, times, times, 1))[:, :size, :size]
    return dataclasses.replace(split, images=images, labels=labels, size=(size, size))


def shortened(config, size: int, count: int):
    """Let a configuration load the digits at a size, and no more of them than it needs."""
    config.image_size = min(size, 32)
    whole = config.load_data

    def load_data():
        data = whole()
        few = np.linspace(0, len(data.test) - 1, TRIED).round().astype(int)
        return dataclasses.replace(
            data,
            train=tiled(data.train, size, count),
            validation=tiled(data.validation, size, 40),
            test=tiled(data.test.take(few), size),
        )

    config.load_data = load_data


def hand_out(config, model, data, metrics: dict, folder: Path) -> dict:
    """Export a trained network as its recipe does; return the metrics with the manifest."""
    from tiffin.export.errors import ExportError

    options = {"name": config.model, "task": config.task}
    options |= config.export_options(data, metrics["test"])
    try:
        manifest = config.hand_out(model, data, folder, **options)
    except ExportError as error:
        if not hasattr(error, "manifest"):
            raise
        manifest = error.manifest
    return metrics | {"export": manifest}


def train(entry: registry.Entry, name: str, folder: Path) -> tuple[dict, str]:
    """Train a variant briefly and export it; return its metrics and what it learnt on."""
    import keras

    from tiffin.recipes.engine import box_data, weights

    row = entry.variants[name]
    config = entry.load().Config(model=name, epochs=1, output=folder / "run")
    said = {"generative": "digits", "detection": "scenes of digits"}.get(entry.task, config.data)
    size = row.size
    if entry.task == "detection":
        # After 3 epochs the scores of a class can lie within 1e-7, and which boxes stay is chance.
        box_data.SCENES, config.epochs = SCENES, 8
        said = f"{SCENES[0]} {said}"
    elif entry.task in ("classification", "embedding"):
        own = entry.name in FIXED or PASSES * DIGITS * row.macs <= WORK
        size = row.size if own else UNPADDED if row.size == 299 else min(row.size, SMALL)
        affordable = max(LEAST, int(WORK / (row.macs * (size / row.size) ** 2)))
        config.epochs = min(PASSES, math.ceil(affordable / DIGITS))
        count = min(DIGITS, affordable)
        config.batch_size = 16  # twice the steps of 32
        if config.optimizer == "momentum":
            # Adam is there in fewer steps; what learns with care keeps its tenth of the rate.
            config.optimizer, config.learning_rate = "adam", config.learning_rate / 100
        shortened(config, size, count)
        said = f"{count} {said} of {size} pixels"
    metrics = config.run()
    best = config.output / "model.keras"
    if size != row.size:
        source = weights.read(best)
        config = entry.load().Config(model=name, output=config.output)
        shortened(config, row.size, TRIED)
        data = config.load_data()
        model = config.make_model(data, source.normalization)
        config.load(model, source)
        model = config.inference(model)
    else:
        data, model = config.load_data(), keras.saving.load_model(best, compile=False)
    passes = "once" if metrics["epochs"] == 1 else f"{metrics['epochs']} times"
    return hand_out(config, model, data, metrics, folder / "export"), f"{said}, {passes}"


def found(runs: Path, name: str) -> Path | None:
    """Return the newest finished run of a variant in a folder of runs."""
    done = []
    for path in runs.glob("*/*/metrics.json"):
        if json.loads(path.read_text())["model"] == name and (path.parent / "model.keras").exists():
            done.append(path.parent)
    return max(done, key=lambda path: path.name) if done else None


def again(entry: registry.Entry, run: Path, folder: Path) -> tuple[dict, str]:
    """Export what a run has trained; return its metrics and what it learnt on."""
    import keras

    from tiffin.recipes.engine import training

    config = training.from_json(entry.load().Config, run / "config.json")
    config.output = run
    metrics = json.loads((run / "metrics.json").read_text())
    os.chdir(run.parents[2])  # where the run was started: its data is named from there
    best = keras.saving.load_model(run / "model.keras", compile=False)
    metrics = hand_out(config, best, config.load_data(), metrics, folder)
    return metrics, f"{Path(config.data).name}, {metrics['epochs']} times (a whole run)"


def one(name: str, runs: Path | None, lines: Path) -> None:
    """Train, or find, and export one variant; add its line."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `tiffin train` does
    entry, start = registry.find(name), time.monotonic()
    run = runs and found(runs.resolve(), name)
    with tempfile.TemporaryDirectory() as folder:
        learn = (again, entry, run) if run else (train, entry, name)
        metrics, said = learn[0](*learn[1:], Path(folder))
    metrics["test"].pop("classes", None)
    line = {"variant": name, "recipe": entry.name, "trained": said}
    line |= {"seconds": round(time.monotonic() - start), "load": os.getloadavg()[0]} | metrics
    with lines.open("a") as file:
        file.write(json.dumps(line) + "\n")


def known(lines: Path) -> dict[str, dict]:
    """Return the last line of each variant; `again` in it: a file was refused before."""
    found: dict[str, dict] = {}
    for line in map(json.loads, lines.read_text().splitlines() if lines.exists() else []):
        before = found.get(line["variant"])
        line["again"] = before is not None and (before["again"] or bool(refused(before)))
        found[line["variant"]] = line
    return found


def refused(line: dict) -> list[dict]:
    """Return the files of a variant that were not handed out."""
    if "export" not in line:
        return [{"file": line["variant"], "reason": line["reason"]}]
    return line["export"]["failed"]


def likeness(file: dict) -> str:
    """Return how many of a file's answers are those of Keras."""
    if "mean_cosine" in file:
        return f"cosine {file['mean_cosine']:.5f}"
    if "same_tokens" in file:
        return f"{file['same_tokens']} of 200 tokens"
    if "matched" in file:
        return f"detections: {detections_text(file)}"
    return "-" if file["agreement"] is None else f"{file['agreement']:.1%} of classes"


def rows(line: dict) -> list[list[str]]:
    """Return a row of the table for each file of a variant."""
    if "export" not in line:
        return [[line["variant"], *["-"] * 10, "**no**"]]
    whole, made = line["export"], []
    for part in whole.get("parts", {"": whole}).values():
        given = part["inputs"][0]
        shape = "x".join(map(str, given["shape"][1:]))
        first = [line["variant"], f"{given['name']} {shape}".strip(), f"{line['parameters']:,}"]
        for file in part["files"]:
            apart = [file["max_difference"], file["mean_difference"]]
            figures = ["-" if value is None else f"{value:.1e}" for value in apart]
            latency = f"{file['latency_ms']['median']:.3g}"
            size = f"{file['bytes'] / 1e6:.2f}"
            reached = [f"{file['metric']:.4g}", f"{part['reference']['value']:.4g}"]
            verified = "yes" if file["verified"] else "**no**"
            made.append([*first, file["file"], size, *figures, likeness(file), *reached])
            made[-1] += [latency, verified]
        for file in part["failed"]:
            made.append([*first, file["file"], *["-"] * 7, "**no**"])
    return made


def report(lines: list[dict], command: str) -> str:
    """Return the Markdown of all that is known."""
    header = ["variant", "input", "parameters", "file", "MB", "max difference", "mean difference"]
    header += ["same answer as Keras", "metric", "in Keras", "ms on one thread", "verified"]
    body = [row for line in lines for row in rows(line)]
    tried, total = {line["recipe"] for line in lines}, len(registry.recipes())
    extent = "" if len(tried) == total else f"So far {len(tried)} of {total} recipes. "
    parts = [
        "## One export of every recipe",
        f"```bash\n{command}\n```",
        f"{extent}Each file was run in onnxruntime or LiteRT on held-out examples and held against "
        "Keras. The networks are trained, but briefly: how long, and how good Keras itself is by "
        "then, stands below the table. Where that is little, the same bounds say less. "
        "Differences are of probabilities, embeddings, logits or grey "
        "levels, the largest and the mean one over all examples. Detections are the same where "
        "corners are within a pixel and scores within 0.001; one that Keras is sure of, with a "
        "score of 0.3 or more, is found again at an IoU of 0.5, or with corners within a pixel, "
        "and a score within 0.1. A translator leaves as two files.",
        table(header, body),
    ]
    files = [file for line in lines for file in line.get("export", {"files": []})["files"]]
    verified = sum(file["verified"] for file in files)
    failures = [file for line in lines for file in refused(line)]
    if failures:
        parts.append("\n".join(f"- Not handed out: {f['file']}: {f['reason']}" for f in failures))
    for line in lines:
        if pairs := line.get("export", {}).get("pairs"):
            same = ", ".join(
                f"{p['same_as_keras']:.0%} in {p['format']} {p['precision']}" for p in pairs
            )
            parts.append(
                f"{line['variant']} translates {same} of the held-out texts as Keras does."
            )
    if again := [line["variant"] for line in lines if line["again"]]:
        parts.append(f"Trained anew, as a file was refused at first: {', '.join(again)}.")
    floats = [
        f"{file['file']} ({len(file['float_layers'])})"
        for file in files
        if file.get("float_layers")
    ]
    if floats:
        parts.append(f"With layers left in float32, and how many: {', '.join(floats)}.")
    learnt = [
        [line["variant"], line.get("trained", "-"), quality(line), line.get("seconds", "-")]
        for line in lines
    ]
    parts.append(
        table(["variant", "trained on", "Keras' own figure", "seconds, export and all"], learnt)
    )
    if loads := [line["load"] for line in lines if "load" in line]:
        parts.append(
            f"Milliseconds are medians on a machine of {os.cpu_count()} cores that had other work "
            f"too: at the end of each export {min(loads):.0f} to {max(loads):.0f} processes wanted "
            "to run. They tell files apart by their size, not by a few per cent."
        )
    if left := [name for name in registry.recipes() if name not in tried]:
        parts.append(f"Left out are {len(left)} recipes: {', '.join(left)}.")
    parts.append(
        f"{len(tried)} of {total} recipes, {len(lines)} of "
        f"{len(registry.names())} variants, {len(files) + len(failures)} files: {verified} "
        f"verified, {len(failures)} refused."
    )
    return "\n\n".join(parts)


def quality(line: dict) -> str:
    """Return what Keras itself reaches on what the files were tried on."""
    reference = line.get("export", {}).get("reference")
    return f"{reference['metric']} {reference['value']:.4g}" if reference else "-"


def defaults() -> list[str]:
    """Return the default variant of every recipe."""
    return [entry.load().Config().model for entry in registry.recipes().values()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants to export")
    parser.add_argument("--all", action="store_true", help="every variant, not the defaults alone")
    parser.add_argument("--runs", type=Path, help="folder of runs to take trained networks from")
    parser.add_argument("--lines", type=Path, default=Path("runs/export_collection.jsonl"))
    parser.add_argument(
        "--under", type=shlex.split, default=[], help="what to start processes by: 'taskset -c 0'"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one, given.runs, given.lines)
        return
    variants = registry.names() if given.all else given.only or defaults()
    sizes = {n: row.macs for e in registry.recipes().values() for n, row in e.variants.items()}
    variants = sorted(variants, key=lambda name: sizes[name])
    given.lines.parent.mkdir(parents=True, exist_ok=True)
    for name in variants:
        line = known(given.lines).get(name)
        if line and not refused(line):
            continue
        command = [*given.under, sys.executable, __file__, "--one", name]
        command += ["--lines", str(given.lines)]
        command += ["--runs", str(given.runs)] if given.runs else []
        log = given.lines.with_name(f"{name}.log")
        with log.open("w") as said:
            child = subprocess.run(command, stdout=said, stderr=said, check=False)
        if child.returncode:
            reason = (log.read_text().strip().splitlines() or ["no message"])[-1]
            line = {"variant": name, "recipe": registry.find(name).name, "reason": reason}
            with given.lines.open("a") as file:
                file.write(json.dumps(line) + "\n")
        line = known(given.lines)[name]
        files = line.get("export", {"files": []})["files"]
        print(f"{name}: {len(files)} files, {len(refused(line))} refused", file=sys.stderr)
    done = known(given.lines)
    lines = [done[name] for name in variants if name in done]
    command = ["python", "benchmarks/export_collection.py", *(["--all"] if given.all else [])]
    command += ["--runs", given.runs.name] if given.runs else []
    print(report(lines, shlex.join(command)))
    sys.exit(any(refused(line) for line in lines))


if __name__ == "__main__":
    main()
