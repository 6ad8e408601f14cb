"""Center loss by lambda and L-softmax by m on MNIST, at the papers' own schedules.

    KERAS_BACKEND=jax python benchmarks/mnist_schedules.py margin --seeds 0 1 2
    KERAS_BACKEND=jax python benchmarks/mnist_schedules.py center
    python benchmarks/mnist_schedules.py margin --epochs 3 --digits 6000 --batch-size 64

The last is a shortened schedule, for a CPU. The recipes' networks, losses and optimizers on all
60,000 training digits, or the first so many, held in memory, tested once at the end: no validation
split, no files on the way, and no TensorFlow, so that it runs on a machine with nothing but JAX or
PyTorch and a GPU. `margin` takes batches of 256 for 85 epochs, the paper's 20,000 iterations. A
training that --runs holds is not run again, so several processes can share the work and --minutes
can end it early. Markdown of all that is there is printed at the end; `center` draws the features
too, as center.png beside the runs.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

from tiffin.export.documents import table
from tiffin.export.files import write_json
from tiffin.layers import MarginAnnealing
from tiffin.recipes.embedding import center_loss, l_softmax
from tiffin.recipes.engine import report
from tiffin.recipes.engine.embedding import MarginRecipe, spread

LAMBDAS = (0.0, 0.001, 0.01, 0.1, 1.0)
MARGINS = (1, 2, 3, 4)
PAPER = {1: "0.40", 2: "0.32", 3: "0.31", 4: "0.31"}  # table 2, test error in percent
WHOLE = 85  # epochs of 235 batches: 19,975 iterations


def load(path: Path | None) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return MNIST's training and test digits as the recipes see them, RGB, and their labels."""
    if path is None:
        parts = keras.datasets.mnist.load_data()
    else:
        with np.load(path) as file:
            parts = [(file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")]
    return tuple((np.repeat(x[..., None], 3, -1), y.astype(np.int32)) for x, y in parts)


def train(config: MarginRecipe, data, epochs: int) -> tuple[dict, np.ndarray]:
    """Return what a training reached, and the features of the test digits."""
    (x, y), (x_test, y_test) = data
    keras.utils.set_random_seed(config.seed)
    mean, std = round(float(x.mean()), 3), round(float(x.std()), 3)
    model = config.network(x.shape[1:], 10, ([mean] * 3, [std] * 3))
    config.compile(model, -(-len(x) // config.batch_size), epochs)
    annealing = getattr(config, "annealing", None)
    callbacks = [MarginAnnealing(model.head, *annealing)] if annealing else []
    start = time.monotonic()
    model.fit(x, y, config.batch_size, epochs, verbose=0, callbacks=callbacks)
    minutes = (time.monotonic() - start) / 60
    found = model.predict(x_test, batch_size=500, verbose=0)
    result = {
        "error": 100 * float((found["logits"].argmax(1) != y_test).mean()),
        "epochs": epochs,
        "digits": len(x),
        "minutes": minutes,
        "backend": keras.backend.backend(),
        **spread(found["embeddings"], y_test),
    }
    return result, found["embeddings"]


def how(runs: list[dict]) -> str:
    """Return the sentence on what the trainings were."""
    epochs, digits = ({run[name] for run in runs} for name in ("epochs", "digits"))
    places = sorted({f"{run['device']} ({run['backend']})" for run in runs})
    text = f"{' or '.join(map(str, sorted(epochs)))} epochs each on {' or '.join(places)}"
    if digits != {60000}:
        text += f", {' or '.join(map(str, sorted(digits)))} training digits of 60,000"
    return text + "."


def center(runs: dict[str, dict], folder: Path, labels: np.ndarray) -> str:
    """Return the table of error and distances by lambda, and draw the features."""
    found = {w: runs[name] for w in LAMBDAS if (name := f"center_{w:g}_0") in runs}
    features = {}
    for weight in found:
        with np.load(folder / f"center_{weight:g}_0.npz") as file:
            features[f"lambda = {weight:g}"] = file["features"][:2000]
    report.strip(features, labels[:2000], "LeNets++: test digits", folder / "center.png")
    distances = ("intra_class_distance", "inter_class_distance")
    rows = [
        [
            f"{weight:g}",
            f"{run['error']:.2f}",
            *(f"{run[name]:.3f}" for name in distances),
            f"{run['intra_to_inter']:.4f}",
        ]
        for weight, run in found.items()
    ]
    header = ["lambda", "test error, %", "intra-class distance", "inter-class distance"]
    return f"{how(list(found.values()))}\n\n{table([*header, 'their ratio'], rows)}"


def margin(runs: dict[str, dict]) -> str:
    """Return the table of test errors by m, over the seeds."""
    rows, shown = [], []
    for m in MARGINS:
        mine = [run for name, run in runs.items() if name.startswith(f"margin_{m}_")]
        errors = [run["error"] for run in mine]
        if errors:
            deviation = f"{np.std(errors, ddof=1):.3f}" if len(errors) > 1 else "-"
            each = ", ".join(f"{error:.2f}" for error in errors)
            rows.append([m, f"{np.mean(errors):.3f}", deviation, each, PAPER[m]])
        shown += mine
    header = ["m", "test error, %", "its deviation", "each seed's", "the paper's"]
    return f"{how(shown)}\n\n{table(header, rows)}"


def main() -> None:
    """Run what is missing and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("center", "margin"))
    parser.add_argument("--arrays", type=Path, help="mnist.npz; default: fetched by Keras")
    parser.add_argument("--epochs", type=int, help=f"default: {WHOLE} of margin, 10 of center")
    parser.add_argument("--digits", type=int, help="to train on, the first; default: all")
    parser.add_argument("--batch-size", type=int, default=256, help="of margin; 256 in the paper")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--margins", type=int, nargs="+", default=MARGINS)
    parser.add_argument("--device", default="two CPU cores", help="what it runs on, to be told")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after that")
    parser.add_argument("--runs", type=Path, default=Path("runs/mnist_schedules"))
    options = parser.parse_args()
    if options.what == "center":
        epochs = options.epochs or 10
        wanted = {f"center_{w:g}_0": center_loss.Config(center_weight=w) for w in LAMBDAS}
    else:
        epochs = options.epochs or WHOLE
        base, gamma, *rest = l_softmax.Config().annealing
        steps = epochs * -(-(options.digits or 60_000) // options.batch_size)
        whole = WHOLE * -(-60_000 // 256)
        shared = {
            "batch_size": options.batch_size,
            # Section 5.1: 0.1, divided by 10 after 12,000 and 15,000 of 20,000 iterations.
            "schedule": "step",
            "milestones": (0.6, 0.75),
            # A shorter training sees the whole of the annealing too.
            "annealing": (base, gamma * whole / steps, *rest),
        }
        wanted = {
            f"margin_{m}_{seed}": l_softmax.Config(margin=m, seed=seed, **shared)
            for seed in options.seeds
            for m in options.margins
        }
    data, start = load(options.arrays), time.monotonic()
    data = tuple(part[: options.digits] for part in data[0]), data[1]
    options.runs.mkdir(parents=True, exist_ok=True)
    for name, config in wanted.items():
        path = options.runs / f"{name}.json"
        if not path.exists() and time.monotonic() - start < 60 * options.minutes:
            result, features = train(config, data, epochs)
            if features.shape[1] == 2:
                report.save_arrays(path.with_suffix(".npz"), {"features": features})
            write_json(path, result | {"device": options.device})
            print(name, json.dumps(result), flush=True)
            keras.utils.clear_session()
    runs = {p.stem: json.loads(p.read_text()) for p in sorted(options.runs.glob("*.json"))}
    if options.what == "center":
        title, text = "Center loss by its weight", center(runs, options.runs, data[1][1])
    else:
        title, text = "L-softmax by its margin", margin(runs)
    if options.epochs or options.digits:
        title += ", a shortened schedule"
    print(f"## {title} (MNIST)\n")
    # Where the digits and the results lie is nobody's affair.
    hidden = {"--arrays", str(options.arrays), "--runs", str(options.runs)}
    kept = [word for word in sys.argv[1:] if word not in hidden]
    command = " ".join(["python benchmarks/mnist_schedules.py", *kept])
    print(f"```bash\n{command}\n```\n\n{text}")


if __name__ == "__main__":
    main()
