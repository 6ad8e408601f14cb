"""What the embedding losses reach on people that they never saw, and what int8 costs.

    python benchmarks/embedding_losses.py --data FOLDER --backbone resnet20 --dimensions 128

Whole runs of the recipes, one for each loss: the network and the schedule are the command line's.
A run that --runs holds is not run again. What is not known here, such as --image-size, is handed on
to all. Markdown is printed at the end.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tiffin.export.documents import table

LOSSES = {
    "softmax": ["l_softmax", "--margin", "1"],
    "center loss": ["center_loss", "--center-weight", "0.01"],
    "contrastive": ["contrastive", "--learning-rate", "0.001"],
    "triplets, batch hard": ["contrastive", "--loss", "batch_hard", "--margin", "0.3"],
    "L-softmax, m = 2": ["l_softmax", "--margin", "2", "--annealing", "100", "0.05", "1", "0"],
    "A-softmax, m = 4": ["a_softmax", "--annealing", "100", "0.1", "1", "5"],
    "AM-softmax": ["am_softmax"],
    "ArcFace": ["arcface", "--scale", "30"],
    "AM-softmax, 100 epochs": ["am_softmax", "--epochs", "100"],
}


def run(name: str, arguments: list[str], options: argparse.Namespace) -> dict:
    """Return the metrics of one training, from an earlier time if it is there."""
    folder = options.runs / name
    if not (folder / "metrics.json").exists():
        command = [Path(sys.executable).with_name("tiffin"), "train", arguments[0]]
        command += ["--data", options.data, "--output", folder, *options.more, *arguments[1:]]
        subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    return json.loads((folder / "metrics.json").read_text())


def faces(options: argparse.Namespace) -> str:
    """Return the table of verification by loss."""
    rows = []
    for loss, arguments in LOSSES.items():
        name = "".join(c if c.isalnum() else "_" for c in loss)
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
    told = (
        f"{test['pairs']} pairs of {test['examples']} pictures of people who are not in the "
        "training; one seed. `deviation` is that of the ten folds."
    )
    header = ["loss", "verification", "deviation", "equal error rate", "recall@1"]
    header += ["5-way one-shot", "int8 loss, points: ONNX / TFLite"]
    return f"{told}\n\n{table(header, rows)}"


def main() -> None:
    """Run what is missing and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder with a folder for each person")
    parser.add_argument("--runs", type=Path, default=Path("runs/embedding_losses"))
    options, options.more = parser.parse_known_args()
    text = faces(options)
    words = " ".join(options.more)
    print("## Verification of unseen people by loss\n")
    print(f"```bash\npython benchmarks/embedding_losses.py --data FOLDER {words}\n```\n")
    print(text)


if __name__ == "__main__":
    main()
