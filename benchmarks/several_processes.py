"""Training throughput of one process beside two, on a core each and on both, input pipeline on.

    python benchmarks/several_processes.py [--model resnet20] [--batches 64 256] [--rounds 2]

Whole trainings by `tiffin train` under JAX, on random pictures in files with rotation and noise:
decoding, augmentation, steps, metrics, the exchange between the processes. A figure is that of all
epochs but the first, which compiles; the global batch is the same. All take turns, so that whatever
else the machine does meets them alike; a ratio is the median over the rounds. Two processes stand
there twice: pinned to a core each, where the threads that exchange wait for those that compute, and
free to use both cores.
"""

import argparse
import csv
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tiffin.export.documents import table

# How they run: the number of processes, and whether each is pinned to a core.
WAYS = {"1 process": (1, True), "2 processes": (2, True), "2, not pinned": (2, False)}
RUN = "from tiffin.recipes.engine.cli import main; main()"


def pictures(folder: Path, count: int, size: int) -> None:
    """Write random pictures of two classes, of which about two thirds are trained on."""
    from PIL import Image

    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for i in range(count // 2):
            pixels = random.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


def throughput(words: list[str], output: Path, processes: int, pinned: bool, images: int) -> float:
    """Return images a second of the epochs after the first."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    cores = sorted(map(str, os.sched_getaffinity(0)))[:2]
    env = os.environ | {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    running = []
    for i in range(processes):
        where = ["--coordinator", address, "--processes", str(processes), "--process", str(i)]
        command = [sys.executable, "-c", RUN, *words, "--output", str(output)]
        command += where if processes > 1 else []
        # Set before the libraries count them.
        on = ["taskset", "-c", cores[i] if pinned else ",".join(cores)]
        running.append(subprocess.Popen([*on, *command], env=env, stdout=subprocess.DEVNULL))
    if any([process.wait() for process in running]):
        raise SystemExit("A training has failed: its message stands above.")
    with open(output / "history.csv") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)][1:]
    return images / float(np.median(seconds))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as top:
        top = Path(top)
        # A tenth validates, a fifth tests, and some room for rounding.
        pictures(top / "pictures", round(given.images / 0.7) + 8, 32)
        for batch in given.batches:
            words = ["train", given.model, "--data", str(top / "pictures"), "--image-size", "32"]
            words += ["--batch-size", str(batch), "--epochs", "4", "--learning-rate", "0.01"]
            words += ["--augment", "rotation", "noise"]
            found = {way: [] for way in WAYS}
            images = given.images // batch * batch
            for turn in range(given.rounds):
                for number, (way, how) in enumerate(WAYS.items()):
                    output = top / f"{batch}_{number}_{turn}"
                    found[way].append(throughput(words, output, *how, images))
            one, *two = found.values()
            ratios = [np.median(np.divide(rates, one)) for rates in two]
            figures = [f"{np.median(rates):.0f}" for rates in found.values()]
            rows.append([given.model, batch, *figures, *(f"{ratio / 2:.0%}" for ratio in ratios)])
    print(
        "Images a second at 32x32, of processes pinned to one core each and of two free to use "
        "both; whole epochs, validation and checkpoints included.\n"
    )
    print(table(["model", "batch", *WAYS, "efficiency", "efficiency, not pinned"], rows))


if __name__ == "__main__":
    main()
