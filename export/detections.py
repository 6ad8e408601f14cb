"""What a detector finds in a picture of any size, in that picture's own pixels, and drawn on it."""

import colorsys
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError
from tiffin.export.files import replacing
from tiffin.export.images import framed
from tiffin.export.proposals import PROPOSALS, given
from tiffin.export.runtime import Runner
from tiffin.export.verify import DETECTIONS


@dataclasses.dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        box: `(y1, x1, y2, x2)` in pixels of the picture.
        score: 0 to 1.
        kind: index of its class.
    """

    box: tuple[float, float, float, float]
    score: float
    kind: int


def detects(runner: Runner) -> bool:
    """Whether a model has the outputs of a detector: boxes, scores, classes and count."""
    return {t.name for t in runner.outputs} >= DETECTIONS


def find(runner: Runner, image: np.ndarray, least_score: float) -> list[Detection]:
    """Return what a detector finds in a picture, the surest first.

    The picture is laid into the model's input with its sides in proportion, and boxes are mapped
    back.

    Args:
        runner: a detector with an input `[batch, height, width, 3]`, and maybe `proposals`.
        image: uint8 `[height, width, 3]`.
        least_score: detections below are left out.

    Raises:
        InputError: the model's input has no fixed size, or what it returns are no detections.
    """
    from PIL import Image

    (tensor,) = (t for t in runner.inputs if t.name != PROPOSALS)
    if None in tensor.shape[1:] or tensor.shape[3] != 3:
        raise InputError(f"{runner} takes pictures of any size or in grey: it is no such detector.")
    pixels, frame = framed(Image.fromarray(image), tensor.shape[1:3])
    outputs = runner(given(runner.inputs, pixels[None].astype(tensor.dtype)))
    try:
        count = int(outputs["count"][0])
        boxes = outputs["boxes"][0, :count]
        if outputs["classes"].dtype.kind == "f":  # of TFLite's kind, whose boxes are relative
            boxes = boxes * np.tile(tensor.shape[1:3], 2)
        boxes = frame.back(boxes)
        if not (boxes[:, 2:] >= boxes[:, :2]).all():
            raise ValueError("a box ends before it begins, or is no number")
        found = zip(boxes, outputs["scores"][0, :count], outputs["classes"][0, :count], strict=True)
        return [
            Detection(tuple(map(float, box)), float(score), int(kind))
            for box, score, kind in found
            if score >= least_score
        ]
    except (IndexError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{runner} returns no detections ({error}): the file is damaged. Copy or export it "
            "again."
        ) from error


def drawn(
    image: np.ndarray, found: Sequence[Detection], labels: Sequence[str] | None
) -> np.ndarray:
    """Return a picture with boxes, names and scores on it, each class in a colour of its own.

    Args:
        image: uint8 `[height, width, 3]`.
        found: from `find`.
        labels: names of the classes.

    Returns:
        uint8 `[height, width, 3]`.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    unit = max(picture.size) / 640
    font = ImageFont.load_default(max(10, round(13 * unit)))
    for one in reversed(found):  # the surest on top
        # Steps of the golden section keep neighbouring classes apart.
        shade = colorsys.hsv_to_rgb(one.kind * 0.618 % 1, 0.9, 1.0)
        color = tuple(round(255 * part) for part in shade)
        y1, x1, y2, x2 = one.box
        canvas.rectangle((x1, y1, x2, y2), outline=color, width=max(1, round(2 * unit)))
        text = f"{name(one, labels)} {one.score:.0%}"
        left, top, right, bottom = canvas.textbbox((x1, max(0, y1)), text, font)
        canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=color)
        canvas.text((x1, max(0, y1)), text, fill="black", font=font)
    return np.asarray(picture)


def draw(
    image: np.ndarray, found: Sequence[Detection], labels: Sequence[str] | None, path: Path
) -> None:
    """Write what `drawn` returns to an image file."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(drawn(image, found, labels)).save(temporary, "png")


def name(one: Detection, labels: Sequence[str] | None) -> str:
    """Return the name of a detection's class.

    Raises:
        InputError: there are fewer labels than classes.
    """
    if labels and not 0 <= one.kind < len(labels):
        raise InputError(
            f"The model found class {one.kind}, but there are {len(labels)} labels: put the "
            "labels.txt that belongs to it beside it."
        )
    return labels[one.kind] if labels else f"class {one.kind}"
