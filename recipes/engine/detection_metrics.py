"""How good detections are: average precision of VOC and COCO, and which mistakes there are.

Truth and detections are lists with a dictionary for each picture: `boxes` float `[n, 4]`, corners
`y1, x1, y2, x2`; `classes` int `[n]`; the truth also `difficult` bool `[n]`, objects that count
neither way; detections also `scores` float `[n]`.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tiffin.export.errors import optional

Found = Sequence[dict[str, np.ndarray]]
KINDS = ("localisation", "class", "both", "duplicate", "background", "missed")


def overlaps(boxes: np.ndarray, others: np.ndarray, pixel: float = 0.0) -> np.ndarray:
    """Return the IoU of all pairs, float64 `[n, m]`; `pixel` is added to every side (VOC's 1)."""
    a, b = np.asarray(boxes, np.float64)[:, None], np.asarray(others, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + pixel
    shared = sides.clip(0).prod(-1)
    areas = [(x[..., 2:] - x[..., :2] + pixel).clip(0).prod(-1) for x in (a, b)]
    return np.divide(
        shared, areas[0] + areas[1] - shared, out=np.zeros_like(shared), where=shared > 0
    )


def judged(
    truth: Found, found: Found, kind: int, iou: float = 0.5, pixel: float = 0.0
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tell right from wrong detections of one class, by the rules of the VOC development kit.

    The surest first, each is held against the object of its class that it overlaps most. It is
    right if it does by `iou` or more and the object was not found before; one that meets a
    difficult object so is passed over.

    Args:
        truth, found: see above.
        kind: the class.
        iou: least overlap.
        pixel: added to every side; 1 as in the kit, where a box includes its last pixel.

    Returns:
        (scores, highest first; whether each is right; number of objects that count).
    """
    scores, right, objects = [], [], 0
    for real, seen in zip(truth, found, strict=True):
        mine = real["classes"] == kind
        boxes, hard = real["boxes"][mine], real["difficult"][mine]
        objects += int((~hard).sum())
        theirs = np.flatnonzero(seen["classes"] == kind)
        theirs = theirs[np.argsort(-seen["scores"][theirs], kind="stable")]
        table = overlaps(seen["boxes"][theirs], boxes, pixel)
        taken = np.zeros(len(boxes), bool)
        for row, place in zip(table, theirs, strict=True):
            best = int(row.argmax()) if len(row) else -1
            hit = best >= 0 and row[best] >= iou
            if hit and hard[best]:
                continue
            scores.append(seen["scores"][place])
            right.append(hit and not taken[best])
            if hit:
                taken[best] = True
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    return np.array(scores, np.float64)[order], np.array(right, bool)[order], objects


def precision_recall(right: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall after each detection, the surest first."""
    hits = np.cumsum(right)
    return hits / np.arange(1, len(right) + 1), hits / max(objects, 1)


def average_precision(
    precision: np.ndarray, recall: np.ndarray, points: Literal["all", 11] = "all"
) -> float:
    """Return the area under the curve of the best precision at each recall and beyond.

    Args:
        precision, recall: after each detection.
        points: "all", as VOC since 2010; 11, the mean at recalls 0, 0.1, ..., 1 as before.
    """
    if points == 11:
        # The kit's own steps: 0.1 times i in doubles.
        levels = [precision[recall >= t] for t in np.arange(0.0, 1.1, 0.1)]
        return float(np.mean([p.max(initial=0.0) for p in levels]))
    best = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    edges = np.concatenate([[0.0], recall, recall[-1:]])
    return float(np.sum(np.diff(edges[: len(precision) + 1]) * best[:-1]))


def voc(
    truth: Found,
    found: Found,
    classes: int,
    iou: float = 0.5,
    points: Literal["all", 11] = "all",
    pixel: float = 0.0,
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Return VOC's average precision of each class and its curve.

    Args:
        truth, found: see above.
        classes: their number.
        iou: least overlap of a right detection.
        points: see `average_precision`.
        pixel: see `judged`.

    Returns:
        (float `[classes]`, NaN for a class without objects; for each class scores, precision and
        recall).
    """
    values, curves = np.full(classes, np.nan), []
    for kind in range(classes):
        scores, right, objects = judged(truth, found, kind, iou, pixel)
        precision, recall = precision_recall(right, objects)
        curves.append((scores, precision, recall))
        if objects:
            values[kind] = average_precision(precision, recall, points)
    return values, curves


def coco(truth: Found, found: Found, classes: int) -> dict[str, float]:
    """Return COCO's figures by its own library.

    Args:
        truth, found: see above, in pixels of the original pictures: sizes count. Difficult objects
            are treated as COCO's crowds.
        classes: their number.

    Returns:
        `AP` (IoU 0.50 to 0.95), `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large` (areas below
        32^2, to 96^2, above), `AR_1`, `AR_10`, `AR_100`; NaN where there are no such objects.
    """
    COCO = optional("pycocotools.coco", "Detection").COCO
    COCOeval = optional("pycocotools.cocoeval", "Detection").COCOeval

    def corners_to_sides(boxes):
        y1, x1, y2, x2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
        return np.stack([x1, y1, x2 - x1, y2 - y1], 1)

    annotations, results = [], []
    for i, (real, seen) in enumerate(zip(truth, found, strict=True), 1):
        for box, kind, hard in zip(
            corners_to_sides(real["boxes"]), real["classes"], real["difficult"], strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(kind) + 1,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(hard),
                }
            )
        for box, kind, score in zip(
            corners_to_sides(seen["boxes"]), seen["classes"], seen["scores"], strict=True
        ):
            results.append(
                {
                    "image_id": i,
                    "category_id": int(kind) + 1,
                    "bbox": box.tolist(),
                    "score": float(score),
                }
            )
    names = [f"AP{end}" for end in ("", "50", "75", "_small", "_medium", "_large")]
    names += [f"AR_{most}" for most in (1, 10, 100)]
    if not annotations:
        return dict.fromkeys(names, float("nan"))
    table = COCO()
    table.dataset = {
        "images": [{"id": i} for i in range(1, len(truth) + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(1, classes + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        table.createIndex()
        if not results:
            return dict.fromkeys(names, 0.0)
        evaluation = COCOeval(table, table.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(v) if v >= 0 else float("nan") for v in evaluation.stats[:9]]
    return dict(zip(names, stats, strict=True))


def mistakes(
    truth: Found, found: Found, classes: int, least_score: float, iou: float = 0.5
) -> tuple[dict[str, int], np.ndarray]:
    """Count the kinds of mistakes, and confusion with background.

    After Hoiem et al. 2012 and TIDE (Bolya et al. 2020, arXiv 2008.08115): a wrong detection is
    `localisation` (the right class, an IoU from 0.1 to `iou`), `class` (IoU enough), `both`
    (another class, 0.1 to `iou`), `duplicate` (the object was found before) or `background`; an
    object that no detection above touches is `missed`.

    Args:
        truth, found: see above; difficult objects, and what meets them, are left out.
        classes: their number.
        least_score: detections below are left out.
        iou: of a right detection.

    Returns:
        (count of each kind; int `[classes + 1, classes + 1]`, rows the truth, columns what was
        said, the last one of each the background).
    """
    counts = dict.fromkeys(KINDS, 0)
    matrix = np.zeros((classes + 1, classes + 1), int)
    for real, seen in zip(truth, found, strict=True):
        kept = np.flatnonzero(seen["scores"] >= least_score)
        kept = kept[np.argsort(-seen["scores"][kept], kind="stable")]
        boxes, kinds, hard = real["boxes"], real["classes"], real["difficult"]
        table = overlaps(seen["boxes"][kept], boxes)
        hit, touched = np.zeros(len(kinds), bool), np.zeros(len(kinds), bool)
        for row, place in zip(table, kept, strict=True):
            said = seen["classes"][place]
            best = int(row.argmax()) if len(row) else -1
            overlap = row[best] if len(row) else 0.0
            own = np.where(kinds == said, row, -1.0)
            mine = int(own.argmax()) if len(row) else -1
            if len(row) and own[mine] >= iou:
                if hard[mine]:
                    continue
                if hit[mine]:
                    counts["duplicate"] += 1
                    continue
                hit[mine] = touched[mine] = True
                matrix[said, said] += 1
            elif overlap >= iou:
                if hard[best]:
                    continue
                counts["class"] += 1
                touched[best] = True
                matrix[kinds[best], said] += 1
            else:
                if overlap >= 0.1:
                    near = mine if own[mine] >= 0.1 else best
                    counts["localisation" if own[mine] >= 0.1 else "both"] += 1
                    touched[near] = True
                else:
                    counts["background"] += 1
                matrix[-1, said] += 1
        counts["missed"] += int((~touched & ~hard).sum())
        for kind in kinds[~hit & ~hard]:
            matrix[kind, -1] += 1
    return counts, matrix
