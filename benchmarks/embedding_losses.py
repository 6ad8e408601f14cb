"""What the embedding losses reach, side by side: tables of whole runs of the recipes.

    python benchmarks/embedding_losses.py center --data mnist --epochs 5
    python benchmarks/embedding_losses.py margin --data mnist --epochs 3 --seeds 0 1 2
    python benchmarks/embedding_losses.py faces --data FOLDER --backbone resnet20 --dimensions 128

`center`: center loss by its weight lambda. `margin`: L-softmax by m, at one schedule, over seeds.
`faces`: each loss on people that it never saw, and what int8 costs. Every run is a command of its
own, kept under --runs; one that is there already is not run again. What is not known here, such as
--image-size, is handed on to all. Markdown is printed at the end.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tiffin.export.documents import table

LAMBDAS = ("0", "0.001", "0.01", "0.1", "1")
MARGINS = ("1", "2", "3", "4")
FACES = {
    # What differs is the loss; the network and the schedule are the command line's.
    "softmax": ["l_softmax", "--margin", "1"],
    "center loss": ["center_loss", "--center-weight", "0.01"],
    "contrastive": ["contrastive", "--learning-rate", "0.001"],
    "triplets, batch hard": ["contrastive", "--loss", "batch_hard", "--margin", "0.3"],
    "L-softmax, m = 2": ["l_softmax", "--margin", "2", "--annealing", "100", "0.05", "1", "0"],
    "A-softmax, m = 4": ["a_softmax", "--annealing", "100", "0.1", "1", "5"],
    "AM-softmax": ["am_softmax"],
    "ArcFace": ["arcface", "--scale", "30"],
}


def run(name: str, arguments: list[str], options: argparse.Namespace) -> dict:
    """Return the metrics of one training, from an earlier time if it is there."""
    folder = options.runs / name
    if not (folder / "metrics.json").exists():
        command = [Path(sys.executable).with_name("tiffin"), "train", *arguments]
        command += ["--data", options.data, "--output", folder]
        command += ["--epochs", str(options.epochs)] if options.epochs else []
        command += ["--data-dir", options.data_dir] if options.data_dir else []
        subprocess.run(list(map(str, [*command, *options.more])), check=True, stdout=sys.stderr)
    return json.loads((folder / "metrics.json").read_text())


def center(options: argparse.Namespace) -> str:
    """Return the table of accuracy and distances by lambda."""
    rows = []
    for weight in LAMBDAS:
        test = run(f"center_{weight}", ["center_loss", "--center-weight", weight], options)["test"]
        rows.append(
            [
                weight,
                f"{test['accuracy']:.2%}",
                *(f"{test[k]:.3f}" for k in ("intra_class_distance", "inter_class_distance")),
                f"{test['intra_to_inter']:.4f}",
                f"{test['verification_accuracy']:.2%}",
            ]
        )
    header = ["lambda", "accuracy", "intra-class distance", "inter-class distance", "their ratio"]
    return table([*header, "verification"], rows)


def margin(options: argparse.Namespace) -> str:
    """Return the table of test errors by m, over the seeds."""
    rows = []
    for m in MARGINS:
        errors = []
        for seed in options.seeds:
            arguments = ["l_softmax", "--margin", m, "--seed", str(seed)]
            test = run(f"margin_{m}_{seed}", arguments, options)["test"]
            errors.append(100 * (1 - test["accuracy"]))
        each = ", ".join(f"{e:.2f}" for e in errors)
        rows.append([m, f"{np.mean(errors):.3f}", f"{np.std(errors):.3f}", each])
    return table(["m", "test error, %", "its deviation", f"seeds {options.seeds}"], rows)


def faces(options: argparse.Namespace) -> str:
    """Return the table of verification on unseen people by loss."""
    rows = []
    for loss, arguments in FACES.items():
        name = "faces_" + "".join(c if c.isalnum() else "_" for c in loss)
        metrics = run(name, [*arguments, "--export"], options)
        test, export = metrics["test"], metrics["export"]
        lost = [
            100 * (export["reference"]["value"] - file["metric"])
            for file in export["files"]
            if file["precision"] == "int8"
        ]
        rows.append(
            [
                loss,
                f"{test['verification_accuracy']:.2%}",
                f"{100 * test['verification_accuracy_std']:.2f}",
                f"{test['equal_error_rate']:.2%}",
                f"{test['recall_at']['1']:.2%}",
                f"{test['one_shot_5_way']:.2%}",
                " / ".join(f"{points:+.2f}" for points in lost),
            ]
        )
    header = ["loss", "verification", "deviation", "equal error rate", "recall@1"]
    return table([*header, "5-way one-shot", "int8 loss, points: ONNX / TFLite"], rows)


def main() -> None:
    """Run what is missing and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("center", "margin", "faces"))
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/embedding_losses"))
    options, options.more = parser.parse_known_args()
    text = {"center": center, "margin": margin, "faces": faces}[options.what](options)
    words = " ".join(word for word in sys.argv[1:] if word not in ("--runs", str(options.runs)))
    titles = {
        "center": "Center loss by its weight",
        "margin": "L-softmax by its margin",
        "faces": "Verification of unseen people by loss",
    }
    print(f"## {titles[options.what]}\n")
    print(f"```bash\npython benchmarks/embedding_losses.py {words}\n```\n")
    print(text)


if __name__ == "__main__":
    main()
