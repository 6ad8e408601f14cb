"""Generate what the documents say about recipes and results; nothing in them is typed by hand.

    python docs/build.py                     rewrite the lists and tables in place
    python docs/build.py --add RUN [NAME]    take in the figures of a finished run or study first
    python docs/build.py --check             exit 1 if anything written is out of date

A run's figures are its own metrics.json, kept as docs/results/NAME.json; a study's its study.json,
kept as docs/results/studies/NAME.json with its picture; a benchmark's are the Markdown that its
script prints, kept as docs/results/NAME.md.
"""

import argparse
import json
import math
import re
import shutil
import sys
from pathlib import Path

from tiffin.export.documents import files_table, table
from tiffin.recipes.engine import registry, report

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RESULTS = DOCS / "results"
STUDIES, PICTURES = RESULTS / "studies", DOCS / "pictures" / "studies"


def recipe_list() -> str:
    """Return the table of recipes for the README."""
    rows = []
    for entry in registry.recipes().values():
        link = f"[{entry.name}]({entry.path.relative_to(ROOT).as_posix()})"
        rows.append([link, entry.title.rstrip("."), ", ".join(f"`{v}`" for v in entry.variants)])
    return table(["recipe", "what it is", "variants"], rows)


def runs() -> dict[str, dict]:
    """Return the figures of the kept runs by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def of_files(run: dict) -> list[str]:
    """Return a run's int8 loss, sizes and milliseconds: TFLite's, on one thread."""
    export = run.get("export", {"files": []})
    entries = [f for f in export["files"] if f["format"] == "tflite"]
    whole, small = ([f for f in entries if f["precision"] == p] for p in ("fp32", "int8"))
    if not whole or not small:
        return ["-"] * 3
    kinds = {(p["format"], p["precision"]): p for p in export.get("pairs", [])}
    metric = kinds["tflite", "int8"]["bleu"] if kinds else small[0]["metric"]
    loss = export["reference"]["value"] - metric
    if run["task"] == "language":
        loss = math.expm1(loss)
    # Of a translator the size of both halves, and the time of the one that runs for every word.
    sizes = [sum(f["bytes"] for f in files) / 1e6 for files in (whole, small)]
    times = [files[-1]["latency_ms"]["median"] for files in (whole, small)]
    return [
        f"{loss if kinds else 100 * loss:+.2f}",
        " / ".join(f"{size:.2f}" for size in sizes),
        " / ".join(f"{time:.2f}" for time in times),
    ]


def percent(share: float | None) -> str:
    """Return a share, 0 to 1, in percent."""
    return "-" if share is None else f"{share:.2%}"


# By task: the columns of its table, what stands in them, and the sentence of a run's section.
TASKS = {
    "classification": (
        ["top-1"],
        lambda test: [percent(test["accuracy"])],
        "top-1 {accuracy:.2%}, top-5 {top5:.2%} of {examples:,} images",
    ),
    "embedding": (
        ["accuracy", "verification", "equal error rate", "5-way one-shot"],
        lambda test: [
            percent(test.get("accuracy")),
            f"{test['verification_accuracy']:.2%} ± {100 * test['verification_accuracy_std']:.2f}",
            percent(test["equal_error_rate"]),
            percent(test["one_shot_5_way"]),
        ],
        "verification {verification_accuracy:.2%} of {pairs:,} pairs from {examples:,} images, "
        "equal error rate {equal_error_rate:.2%}, threshold {threshold:.3f}",
    ),
    "detection": (
        ["mAP50", "COCO AP", "images/s"],
        lambda test: [
            percent(test["map50"]),
            percent(test["coco"]["AP"]),
            f"{test['images_per_second']:.1f}",
        ],
        "mAP50 {map50:.2%} (11 points {map50_11_points:.2%}), COCO AP {coco[AP]:.2%} of "
        "{examples:,} images, {images_per_second:.1f} images a second",
    ),
    "language": (
        ["nats a token", "bits", "perplexity"],
        lambda test: [f"{test[name]:.4f}" for name in ("nats", "bits", "perplexity")],
        "{nats:.4f} nats a token, {bits:.4f} bits, perplexity {perplexity:.3f} over {examples:,} "
        "tokens",
    ),
    "translation": (
        ["BLEU, greedy", "BLEU, beam", "exact, greedy", "exact, beam", "perplexity"],
        lambda test: [
            f"{test['bleu_greedy']:.2f}",
            f"{test['bleu_beam']:.2f}",
            percent(test["exact_greedy"]),
            percent(test["exact_beam"]),
            f"{test['perplexity']:.3f}",
        ],
        "BLEU {bleu_greedy:.2f} greedily, {bleu_beam:.2f} with a beam of {beam_size} and a length "
        "penalty of {length_penalty}; exact {exact_greedy:.2%} and {exact_beam:.2%}; perplexity "
        "{perplexity:.3f} of {examples:,} texts",
    ),
    "generation": (
        ["classes", "Fréchet distance", "of real pictures", "spread"],
        lambda test: [
            f"{test['classes_covered']} of {test['classes_there']}"
            if "classes_there" in test
            else "-",
            *(f"{test[name]:.3f}" for name in ("frechet", "frechet_of_real", "spread")),
        ],
        "Fréchet distance {frechet:.3f} in the judge's features, {frechet_of_real:.3f} between as "
        "many training pictures and the test's; spread {spread:.3f} of {examples:,} samples",
    ),
}
UNITS = {"language": "% of perplexity", "translation": "BLEU"}


def results() -> str:
    """Return docs/results.md."""
    parts = [
        "# Results",
        "Generated by `python docs/build.py` from the runs' own `metrics.json` and the benchmarks' "
        "own output. Two cores, no GPU where none is named; minutes are by the clock, also where a "
        "run shared its cores or was suspended. int8 loss is Keras' figure less that of the int8 "
        "file on the same test pictures; loss, sizes and milliseconds (one thread) are "
        "TFLite's.",
    ]
    sections = []
    for task, (columns, figures, sentence) in TASKS.items():
        rows = []
        for name, run in runs().items():
            if run["task"] != task:
                continue
            test = run["test"]
            rows.append(
                [
                    f"[{name}](#{name})",
                    run["model"],
                    run["data"],
                    f"{run['parameters']:,}",
                    run["epochs"],
                    f"{run['minutes']:.1f}",
                    *figures(test),
                    *of_files(run),
                ]
            )
            size = "x".join(str(n or "any length") for n in run["input_shape"])
            sections.append(f"## {name}\n\n```bash\n{run['command']}\n```")
            sections.append(
                f"Test split: {sentence.format(**test)}; {run['parameters']:,} parameters at "
                f"{size}; {run['epochs']} epochs in "
                f"{run['minutes']:.1f} minutes on {run['backend']}."
            )
            if "export" in run:
                sections.append(files_table(run["export"]))
        if rows:
            header = ["run", "model", "data", "parameters", "epochs", "minutes", *columns]
            header += [
                f"int8 loss, {UNITS.get(task, 'points')}",
                "MB fp32 / int8",
                "ms fp32 / int8",
            ]
            parts += [f"## {task.capitalize()}", table(header, rows)]
    benchmarks = [path.read_text().strip() for path in sorted(RESULTS.glob("*.md"))]
    return "\n\n".join([*parts, *benchmarks, "# The runs", *sections]) + "\n"


def studies() -> str:
    """Return docs/studies.md."""
    parts = [
        "# Studies",
        "What textbooks and interviews say of deep networks, each as an experiment that one "
        "command repeats. Generated by `python docs/build.py` from the studies' own results: means "
        "and standard deviations over the seeds, two cores, no GPU. Where a claim does not hold "
        "here, it says so.",
    ]
    verdicts, sections = [], []
    for name, entry in registry.studies().items():
        path = STUDIES / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        holds = [outcome["holds"] for outcome in result["outcomes"]]
        link = f"[{name}](#{name})"
        verdicts.append([link, entry.claim, f"{sum(holds)} of {len(holds)} claims hold"])
        text = report.study(result).partition("\n\n")[2]
        picture = (PICTURES / f"{name}.png").relative_to(DOCS).as_posix()
        source = f"[{entry.title}](../recipes/studies/{name}.py)"
        sections.append(f"## {name}\n\n{source}\n\n![{entry.title}]({picture})\n\n{text}")
    return "\n\n".join([*parts, table(["study", "claim", "outcome"], verdicts), *sections]) + "\n"


def in_short(run: dict) -> str:
    """Return a run's figures in half a sentence."""
    columns, figures, _ = TASKS[run["task"]]
    names = dict(zip(columns, figures(run["test"]), strict=True))
    said = [f"{name} {value}" for name, value in names.items() if value != "-"][:2]
    said.append(f"{run['minutes']:.0f} min" if run["minutes"] >= 1 else "1 min")
    _, size, time = of_files(run)
    if size != "-":
        said.append(f"int8 {size.split(' / ')[1]} MB, {time.split(' / ')[1]} ms")
    return f"{run['data']}: {', '.join(said)}"


def which_recipe() -> str:
    """Return docs/which-recipe.md."""
    text = (DOCS / "which-recipe.md.in").read_text()
    return text.format_map({name: in_short(run) for name, run in runs().items()})


def readme() -> str:
    """Return README.md with its generated parts renewed."""
    text = (ROOT / "README.md").read_text()
    files = files_table(runs()["quickstart"]["export"])
    for name, content in {"recipes": recipe_list(), "quickstart": files}.items():
        before, start, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not end:
            raise ValueError(f"README.md has no <!-- {name} --> ... <!-- /{name} -->.")
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


def documents() -> dict[Path, str]:
    """Return every generated document and what it should hold."""
    return {
        DOCS / "results.md": results(),
        DOCS / "studies.md": studies(),
        DOCS / "which-recipe.md": which_recipe(),
        ROOT / "README.md": readme(),
    }


def add(folder: Path, name: str | None = None) -> None:
    """Keep the figures of a run or a study.

    Args:
        folder: of the run.
        name: to keep it by; None: model and data, or the study's own.
    """
    study = (folder / report.STUDY).exists()
    run = json.loads((folder / (report.STUDY if study else "metrics.json")).read_text())
    # Where somebody keeps runs and data is nobody else's concern.
    run["command"] = re.sub(r" --(output|data-dir|judge) \S+", "", run["command"])
    run["command"] = re.sub(r" --(data|target) \S*/(?=\S)", r" --\1 ", run["command"])
    run["command"] = re.sub(r" --weights \S*/runs/", " --weights runs/", run["command"])
    if study:
        PICTURES.mkdir(exist_ok=True)
        shutil.copy(folder / report.FIGURE, PICTURES / f"{run['study']}.png")
        path = STUDIES / f"{run['study']}.json"
    else:
        run["data"] = Path(run["data"]).name
        path = RESULTS / f"{name or run['model'] + '_' + run['data']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--add", nargs="+", metavar=("RUN", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.add:
        add(Path(given.add[0]), *given.add[1:])
    stale = [
        path for path, text in documents().items() if not path.exists() or path.read_text() != text
    ]
    if given.check:
        print("\n".join(f"{path.relative_to(ROOT)} is out of date" for path in stale))
        sys.exit(bool(stale))
    for path in stale:
        path.write_text(documents()[path])
        print(f"{path.relative_to(ROOT)} rewritten")


if __name__ == "__main__":
    main()
