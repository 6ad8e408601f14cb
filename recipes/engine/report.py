"""What a run shows to a person: curves, pictures, tables, `report.md`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiffin.export.documents import files_table, table
from tiffin.export.files import replacing

if TYPE_CHECKING:
    import tensorflow as tf

REPORT = "report.md"


def _save(figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")


def _figure(width: float, height: float):
    # The object interface needs no display and leaks no figures, unlike pyplot.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw loss, metrics and learning rate by epoch; training and validation side by side."""
    names = [n for n in rows[-1] if n not in ("epoch", "seconds") and not n.startswith("val_")]
    figure = _figure(4.2 * len(names), 3.4)
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        single = "." if len(rows) == 1 else ""
        axes.plot(epochs, [row[name] for row in rows], single, color="black", label="training")
        if f"val_{name}" in rows[-1]:
            values = [row[f"val_{name}"] for row in rows]
            axes.plot(epochs, values, single or "--", color="tab:orange", label="validation")
            axes.legend()
        axes.set(xlabel="epoch", title=name.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    _save(figure, path)


def confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, shares of each true class; numbers are written where they fit."""
    count = len(classes)
    side = min(max(4.0, 0.45 * count), 16.0)
    figure = _figure(side + 1.2, side)
    axes = figure.subplots()
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    if count <= 40:
        axes.set_xticks(range(count), classes, rotation=90)
        axes.set_yticks(range(count), classes)
    if count <= 20:
        for true, guess in np.argwhere(matrix):
            color = "white" if shares[true, guess] > 0.5 else "black"
            number = f"{matrix[true, guess]}"
            axes.text(guess, true, number, ha="center", va="center", color=color, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion on the test split")
    _save(figure, path)


def pictures(images, titles: Sequence[str], heading: str, path: Path) -> None:
    """Draw up to 25 pictures with a title each; an empty list says so."""
    columns = 5
    rows = max(1, -(-len(images) // columns))
    figure = _figure(2.1 * columns, 2.2 * rows + 0.4)
    figure.suptitle(heading if len(images) else f"{heading}: none")
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(np.asarray(image).clip(0, 255).astype(np.uint8))
        axes.set_title(title, fontsize=8, wrap=True)
    _save(figure, path)


def sheet(batches: "tf.data.Dataset", classes: Sequence[str], path: Path) -> None:
    """Draw the first training batch as the network will see it."""
    images, labels = next(iter(batches.take(1).as_numpy_iterator()))[:2]
    titles = [classes[label] for label in labels[:25]]
    pictures(images[:25], titles, "A training batch, augmented", path)


def read_history(directory: Path) -> list[dict[str, float]]:
    """Return the rows of `history.csv`."""
    with open(directory / "history.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def markdown(metrics: dict[str, Any], directory: Path) -> str:
    """Return `report.md` for a run's metrics."""
    test = metrics["test"]
    numbers = [[k, f"{v:.4f}"] for k, v in test.items() if isinstance(v, float)]
    parts = [
        f"# {metrics['model']} on {metrics['data']}",
        f"`{metrics['command']}`",
        f"{metrics['parameters']:,} parameters, {metrics['epochs']} epochs, "
        f"{metrics['minutes']:.1f} minutes of training on {metrics['backend']}, "
        f"{test['examples']} test examples.",
        table(["test", "value"], numbers),
    ]
    if classes := test.get("classes"):
        columns = list(next(iter(classes.values())))
        parts += [
            "## By class",
            table(["class", *columns], [[n, *(r[c] for c in columns)] for n, r in classes.items()]),
        ]
    if manifest := metrics.get("export"):
        parts += ["## Exported files (in `export/`)", files_table(manifest)]
    drawn = sorted(p.name for p in directory.glob("*.png"))
    parts += ["## Pictures", *(f"![{name.removesuffix('.png')}]({name})" for name in drawn)]
    return "\n\n".join(parts) + "\n"
