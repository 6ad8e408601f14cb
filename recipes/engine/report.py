"""What a run shows to a person: curves, pictures, tables, `report.md`."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiffin.export.documents import files_table, table
from tiffin.export.errors import InputError
from tiffin.export.files import replacing

if TYPE_CHECKING:
    import tensorflow as tf

REPORT = "report.md"
STUDY, FIGURE = "study.json", "figure.png"  # of a study
_LABEL = {"facecolor": "yellow", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}


def save(figure, path: Path) -> None:
    """Write a figure."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")


def new_figure(width: float, height: float):
    """Return an empty figure of so many inches."""
    # The object interface needs no display and leaks no figures, unlike pyplot.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _grid(count: int, columns: int, width: float, height: float, heading: str = ""):
    """Return a figure and `count` axes in rows of so many, each of so many inches."""
    rows = max(1, -(-count // columns))
    figure = new_figure(width * columns, height * rows + (0.4 if heading else 0))
    if heading:
        figure.suptitle(heading)
    every = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axes in every[count:]:
        axes.axis("off")
    return figure, every[:count]


def curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw loss, metrics and learning rate by epoch; training and validation side by side."""
    names = [n for n in rows[-1] if n not in ("epoch", "seconds")]
    names = list(dict.fromkeys(name.removeprefix("val_") for name in names))
    down = -(-len(names) // 5)
    figure, grid = _grid(len(names), -(-len(names) // down), 4.2, 3.4)
    epochs = [row["epoch"] for row in rows]
    single = "." if len(rows) == 1 else ""
    for axes, name in zip(grid, names, strict=True):
        kinds = {"training": (name, "", "black"), "validation": (f"val_{name}", "--", "tab:orange")}
        drawn = {kind: given for kind, given in kinds.items() if given[0] in rows[-1]}
        for kind, (column, line, color) in drawn.items():
            values = [row[column] for row in rows]
            axes.plot(epochs, values, single or line, color=color, label=kind)
        if len(drawn) > 1:
            axes.legend()
        axes.set(xlabel="epoch", title=name.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    save(figure, path)


def confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, shares of each true class; numbers are written where they fit."""
    count = len(classes)
    side = min(max(4.0, 0.45 * count), 16.0)
    figure = new_figure(side + 1.2, side)
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
    save(figure, path)


def pictures(images, titles: Sequence[str], heading: str, path: Path) -> None:
    """Draw up to 25 pictures with a title each; an empty list says so."""
    heading = heading if len(images) else f"{heading}: none"
    figure, grid = _grid(len(images), 5, 2.1, 2.2, heading)
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.axis("off")
        axes.imshow(np.asarray(image).clip(0, 255).astype(np.uint8))
        axes.set_title(title, fontsize=8, wrap=True)
    save(figure, path)


def tiles(images: np.ndarray, columns: int, path: Path) -> None:
    """Write pictures side by side as they are, enlarged by a whole factor, without a frame.

    Args:
        images: uint8 `[n, height, width, 1 or 3]`.
        columns: in a row.
        path: of the picture, about 512 pixels along its longer side.
    """
    from PIL import Image

    _, height, width, channels = images.shape
    rows = -(-len(images) // columns)
    page = np.zeros((rows * columns, height, width, channels), np.uint8)
    page[: len(images)] = images
    page = page.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    page = page.reshape(rows * height, columns * width, channels)
    factor = max(1, 512 // max(page.shape[:2]))
    page = page.repeat(factor, 0).repeat(factor, 1)
    with replacing(path) as temporary:
        Image.fromarray(page[..., 0] if channels == 1 else page).save(temporary, format="PNG")


def animation(folder: Path, path: Path, most: int) -> None:
    """Make a GIF of a folder's PNGs in the order of their names, of `most` of them at most."""
    from PIL import Image

    files = sorted(folder.glob("*.png"))
    if not files:
        return
    chosen = np.unique(np.linspace(0, len(files) - 1, most).astype(int))
    first, *others = (Image.open(files[i]) for i in chosen)
    with replacing(path) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=120, loop=0
        )


def bars(axes, names: Sequence[str], heights: Mapping[str, Sequence[float]], rotation=0) -> None:
    """Draw bars side by side, at each name one of each kind, from light to black."""
    places, width = np.arange(len(names)), 0.8 / len(heights)
    for i, (kind, values) in enumerate(heights.items()):
        grey = 0.83 * (1 - i / max(1, len(heights) - 1))
        shift = (i - (len(heights) - 1) / 2) * width
        axes.bar(places + shift, values, width, color=f"{grey:.2f}", label=kind)
    axes.set_xticks(places, names, rotation=rotation)


def shares(classes: Sequence[str], made, usual, path: Path) -> None:
    """Draw each class' share of generated pictures beside its share of real ones, in percent."""
    figure = new_figure(max(5.0, 0.5 * len(classes) + 2), 3.6)
    axes = figure.subplots()
    heights = {"real": 100 * np.asarray(usual), "generated": 100 * np.asarray(made)}
    bars(axes, classes, heights, 90 if max(map(len, classes)) > 3 else 0)
    axes.set(xlabel="class, by the judge", ylabel="share, %")
    axes.set_title("Which classes the generator makes")
    axes.legend()
    save(figure, path)


def attention(maps: Sequence[tuple], path: Path) -> None:
    """Draw what a decoder looks at: a picture a translation, a row a word that it writes.

    Args:
        maps: of each: the source's tokens, the target's, weights `[target, source]`, 0 to 1.
        path: of the picture.
    """
    heading = "Attention: where a row's word comes from; white is all of it"
    figure, grid = _grid(len(maps), 2, 6.4, 5.2, heading)
    for axes, (source, target, weights) in zip(grid, maps, strict=True):
        axes.imshow(weights[:, : len(source)], cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), source, rotation=90, fontsize=7)
        axes.set_yticks(range(len(target)), target, fontsize=7)
    save(figure, path)


def boxes(images, drawn: Sequence[tuple], heading: str, path: Path) -> None:
    """Draw up to 20 pictures with boxes.

    Args:
        images: uint8 or float pictures.
        drawn: of each: boxes that are there, boxes that were found, float `[n, 4]` in pixels, and
            what to write at the latter.
        heading, path: of the whole.
    """
    from matplotlib.patches import Rectangle

    figure, grid = _grid(len(images), 4, 3.6, 3.6, heading)
    for axes, image, (real, found, names) in zip(grid, images, drawn, strict=False):
        axes.axis("off")
        axes.imshow(np.asarray(image).clip(0, 255).astype(np.uint8))
        for these, color, width in ((real, "white", 0.8), (found, "yellow", 1.4)):
            for y1, x1, y2, x2 in these:
                sides = x2 - x1, y2 - y1
                axes.add_patch(Rectangle((x1, y1), *sides, fill=False, color=color, lw=width))
        for (y1, x1, *_), name in zip(found, names, strict=True):
            axes.text(x1, y1, name, fontsize=6, color="black", va="bottom", bbox=_LABEL)
    save(figure, path)


def precision_recall(curves, ap: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw precision over recall of up to 20 classes; curves are scores, precision, recall."""
    figure = new_figure(6.4, 5)
    axes = figure.subplots()
    for kind in np.argsort(-np.nan_to_num(ap), kind="stable")[:20]:
        if np.isfinite(ap[kind]):
            _, precision, recall = curves[kind]
            axes.plot(recall, precision, label=f"{classes[kind]} {ap[kind]:.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("Precision over recall on the test split, IoU 0.5, with the AP")
    axes.grid(alpha=0.3)
    axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left", fontsize=8)
    save(figure, path)


def roc(false: Sequence[float], true: Sequence[float], path: Path) -> None:
    """Draw true against false accepts of verification, the false ones on a logarithmic axis."""
    figure = new_figure(5, 4)
    axes = figure.subplots()
    false = np.asarray(false)
    least = false[false > 0].min(initial=1)
    axes.semilogx(false.clip(least / 2), true, color="black", drawstyle="steps-post")
    axes.set(
        xlabel="false accept rate",
        ylabel="true accept rate",
        title="Verification on the test split",
    )
    axes.set(xlim=(least / 2, 1), ylim=(0, 1.01))
    axes.grid(alpha=0.3, which="both")
    save(figure, path)


def plane(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle and the two directions `[dimensions, 2]` in which embeddings differ most.

    Two dimensions are taken as they are.
    """
    if embeddings.shape[1] == 2:
        return np.zeros(2), np.eye(2)
    middle = embeddings.mean(0)
    _, _, directions = np.linalg.svd(embeddings - middle, full_matrices=False)
    return middle, directions[:2].T


def _draw_points(axes, points: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> None:
    from matplotlib import colormaps

    known = np.unique(labels)
    colors = colormaps["tab10" if len(known) <= 10 else "hsv"]
    for place, label in enumerate(known):
        color = colors(place if len(known) <= 10 else place / len(known))
        mine = points[labels == label]
        name = names[label] if names and len(known) <= 20 else None
        axes.scatter(mine[:, 0], mine[:, -1], s=6, color=color, label=name, linewidths=0)
    axes.set_aspect("equal", "datalim")
    axes.grid(alpha=0.3)


def scatter(embeddings: np.ndarray, labels: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw embeddings, `[n, dimensions]`, in two dimensions, a colour for each class."""
    middle, directions = plane(embeddings)
    figure = new_figure(6.4, 5)
    axes = figure.subplots()
    _draw_points(axes, (embeddings - middle) @ directions, labels, names)
    if len(np.unique(labels)) <= 20:
        axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left", markerscale=2, fontsize=8)
    how = "" if embeddings.shape[1] == 2 else ", the two main directions"
    axes.set_title(f"Embeddings of the test split{how}")
    save(figure, path)


def strip(embeddings: dict[str, np.ndarray], labels: np.ndarray, heading: str, path: Path) -> None:
    """Draw up to eight sets of embeddings by title side by side, in the last one's directions."""
    titles = list(embeddings)
    chosen = [titles[i] for i in np.unique(np.linspace(0, len(titles) - 1, 8).round().astype(int))]
    middle, directions = plane(embeddings[titles[-1]])
    figure, grid = _grid(len(chosen), min(4, len(chosen)), 3, 3.1, heading)
    for axes, title in zip(grid, chosen, strict=True):
        _draw_points(axes, (embeddings[title] - middle) @ directions, labels, None)
        axes.set_title(title, fontsize=9)
    save(figure, path)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an `.npz` file in one go."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def sheet(batches: "tf.data.Dataset", classes: Sequence[str], path: Path) -> None:
    """Draw the first training batch as the network will see it."""
    images, labels = next(iter(batches.take(1).as_numpy_iterator()))[:2]
    titles = [classes[label] for label in labels[:25]]
    pictures(images[:25], titles, "A training batch, augmented", path)


def read_history(directory: Path) -> list[dict[str, float]]:
    """Return the rows of `history.csv`.

    Raises:
        InputError: it is damaged.
    """
    path = directory / "history.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    except (csv.Error, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): copy the run anew.") from error


def _shown(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def markdown(metrics: dict[str, Any], directory: Path) -> str:
    """Return `report.md` for a run's metrics."""
    test = metrics["test"]
    flat = test | {f"COCO {name}": value for name, value in test.get("coco", {}).items()}
    numbers = [[k, _shown(v)] for k, v in flat.items() if isinstance(v, float)]
    numbers += [[f"mistakes: {k}", v] for k, v in test.get("mistakes", {}).items()]
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
            table(
                ["class", *columns],
                [[name, *(_shown(row[c]) for c in columns)] for name, row in classes.items()],
            ),
        ]
    if manifest := metrics.get("export"):
        parts += ["## Exported files (in `export/`)", files_table(manifest)]
    drawn = sorted(p.name for p in directory.glob("*.png"))
    parts += ["## Pictures", *(f"![{name.removesuffix('.png')}]({name})" for name in drawn)]
    return "\n\n".join(parts) + "\n"


def _with_spread(mean: float, spread: float, seeds: int) -> str:
    """Return a number and its spread over the seeds, as a person would write them."""
    digits = 0 if abs(mean) >= 1000 else 3
    if mean and abs(mean) < 1e-3:
        return f"{mean:.1e}" if not spread else f"{mean:.1e} ± {spread:.0e}"
    if seeds < 2 or not spread:
        return f"{mean:,.{digits}f}".rstrip("0").rstrip(".") if digits else f"{mean:,.0f}"
    return f"{mean:,.{digits}f} ± {spread:,.{digits}f}"


def study(result: dict[str, Any]) -> str:
    """Return a study's title, its table and its claims beside what was measured."""
    rows, spread = result["rows"], result["spread"]
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    cells = [
        [
            row,
            *(
                _with_spread(given[c], spread[row][c], result["seeds"]) if c in given else "-"
                for c in columns
            ),
        ]
        for row, given in rows.items()
    ]
    parts = [
        result["title"],
        f"`{result['command']}`: {result['seeds']} seeds, {result['minutes']:.1f} minutes.",
        table(["", *columns], cells),
    ]
    for outcome in result["outcomes"]:
        verdict = "It holds." if outcome["holds"] else "It does not hold here."
        parts.append(f"> {outcome['claim']}\n\n{outcome['measured']} **{verdict}**")
    return "\n\n".join(parts)
