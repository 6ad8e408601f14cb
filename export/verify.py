"""Is a file what it claims to be? Its outputs in the real runtime, held against Keras' own."""

from collections.abc import Callable, Mapping

import numpy as np

from tiffin.export.errors import InputError

EMBEDDINGS = "embeddings"  # an output of this name is compared by its direction
# Outputs of these names are compared detection by detection: two of about the same score may
# change places.
_OF_EACH = frozenset({"boxes", "scores", "classes"})
DETECTIONS = _OF_EACH | {"count"}
_SURE = 0.3  # score from which a detection has to have a counterpart, whatever the precision
_LEAST_MATCHED = 0.99
_LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99, "int8_dynamic": 0.99}
# A class is decided where Keras' own probability leads the next by this much.
DECIDED = 0.1
_ENOUGH = 10


def accuracy(outputs: Mapping[str, np.ndarray], targets: np.ndarray) -> float:
    """Return top-1 accuracy, 0 to 1, of the first output.

    Args:
        outputs: name to float array; the first is `[examples, classes]`.
        targets: classes `[examples]`, or one-hot `[examples, classes]`.
    """
    scores = next(iter(outputs.values()))
    targets = np.asarray(targets)
    if targets.ndim == 2 and targets.shape[1] > 1:
        targets = targets.argmax(1)
    return float(np.mean(scores.argmax(-1) == targets.ravel()))


def bound(
    precision: str,
    max_loss: float,
    evaluated: bool,
    embeds: bool = False,
    detects: bool = False,
    paints: bool = False,
) -> dict:
    """Return the limits that a file of this precision has to keep, as the manifest states them.

    Args:
        precision: `fp32`, `fp16`, `int8` or `int8_dynamic`.
        max_loss: how much of the task's metric fp16 and int8 may lose.
        evaluated: whether there is evaluation data for that metric.
        embeds: whether an output is called `embeddings`.
        detects: whether the outputs are a detector's, `DETECTIONS`.
        paints: whether an output is a picture, uint8: its levels are rounded, up or down.
    """
    if detects:
        if precision == "fp32":
            return {
                "detections_matched": _LEAST_MATCHED,
                "matched": "same class, corners within 1 (pixel), score within 0.001 of Keras'",
            }
        if evaluated:
            return {"metric_loss": max_loss}
        return {
            "sure_detections_found": 0.98 if precision == "fp16" else 0.9,
            "found": f"those of score {_SURE} or more: same class, IoU 0.5 or corners within 1, "
            "score within 0.1",
        }
    limits = {"mean_cosine_of_embeddings": _LEAST_COSINE[precision]} if embeds else {}
    if precision == "fp32":
        limits |= {"max_difference": 1e-4, "relative_to": "max(1, largest absolute output)"}
        return limits | ({"levels_of_pictures": 1} if paints else {})
    if evaluated:
        return limits | {"metric_loss": max_loss}
    half = precision == "fp16"
    return limits | {
        "agreement_where_decided": 0.99 if half else 0.95,
        "decided": f"class probabilities whose first leads by {DECIDED} in Keras",
        "relative_rms_error": 0.02 if half else 0.25,
        "relative_rms_applies_to": "outputs without 10 decided examples",
    }


def compare(reference: np.ndarray, output: np.ndarray, embeddings: bool = False) -> dict:
    """Measure how one output departs from Keras'.

    Args:
        reference: `[examples, ...]` from Keras.
        output: the same shape, from the file.
        embeddings: whether they are `[examples, dimensions]` directions, not scores of classes.

    Returns:
        For embeddings `mean_cosine` and `least_cosine` of the angle between the two; for all
        `max_difference`, `mean_difference`, `relative_rms_error` (RMS of the difference over RMS of
        the reference), `agreement` (share of equal top classes; None if no `[examples, classes]`),
        `decided` and `agreement_where_decided` (count, and share among those, of examples whose
        class Keras itself is sure of; only for probabilities).
    """
    reference, output = np.asarray(reference, np.float64), np.asarray(output, np.float64)
    difference = np.abs(output - reference)
    rms = np.sqrt(np.mean(reference**2)) if reference.size else 0.0
    result = {
        "max_difference": float(difference.max(initial=0)),
        "mean_difference": float(difference.mean()) if difference.size else 0.0,
        "relative_rms_error": float(np.sqrt(np.mean(difference**2)) / max(rms, 1e-12)),
        "agreement": None,
    }
    if embeddings:
        axes = tuple(range(1, reference.ndim))
        lengths = np.sqrt((reference**2).sum(axes) * (output**2).sum(axes))
        cosine = (reference * output).sum(axes) / np.maximum(lengths, 1e-30)
        result |= {"mean_cosine": float(cosine.mean()), "least_cosine": float(cosine.min())}
    elif reference.ndim == 2 and reference.shape[1] > 1:
        same = output.argmax(1) == reference.argmax(1)
        result["agreement"] = float(same.mean())
        if np.all(reference >= 0) and np.allclose(reference.sum(1), 1, atol=1e-3):
            second, first = np.sort(reference, axis=1)[:, -2:].T
            decided = first - second >= DECIDED
            result["decided"] = int(decided.sum())
            result["agreement_where_decided"] = (
                float(same[decided].mean()) if any(decided) else None
            )
    return result


def compare_detections(
    reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], pixel: float = 1.0
) -> dict:
    """Measure how a detector's outputs depart from Keras', detection by detection.

    Args:
        reference: `boxes` `[n, size, 4]`, `scores` `[n, size]`, `classes` `[n, size]`, `count`
            `[n]` from Keras.
        outputs: the same from the file.
        pixel: of the input, in the unit of the boxes.

    Returns:
        `matched`, the share of detections on either side with a counterpart on the other of the
        same class, corners within a pixel and scores within 0.001; `sure_found`, the share of
        Keras' detections of score 0.3 or more with one of the same class, an IoU of 0.5 or corners
        within a pixel, and a score within 0.1; None if there are none. `detections`, how many Keras
        has.
    """
    matched = total = found = sure = 0
    for i in range(len(reference["count"])):
        a, b = (
            {name: np.float64(side[name][i][: int(side["count"][i])]) for name in _OF_EACH}
            for side in (reference, outputs)
        )
        same = a["classes"][:, None] == b["classes"][None]
        apart = np.abs(a["scores"][:, None] - b["scores"][None])
        corners = np.abs(a["boxes"][:, None] - b["boxes"][None]).max(-1, initial=0)
        twins = same & (corners <= pixel) & (apart <= 1e-3)
        matched += int(twins.any(1).sum()) + int(twins.any(0).sum())
        total += len(a["scores"]) + len(b["scores"])
        low = np.maximum(a["boxes"][:, None, :2], b["boxes"][None, :, :2])
        high = np.minimum(a["boxes"][:, None, 2:], b["boxes"][None, :, 2:])
        shared = (high - low).clip(0).prod(-1)
        areas = [(x["boxes"][:, 2:] - x["boxes"][:, :2]).clip(0).prod(-1) for x in (a, b)]
        overlap = shared >= 0.5 * (areas[0][:, None] + areas[1][None] - shared)
        there = (overlap & (shared > 0)) | (corners <= pixel)  # or as flat as Keras'
        near = same & there & (apart <= 0.1)
        mine = a["scores"] >= _SURE
        found += int(near[mine].any(1).sum())
        sure += int(mine.sum())
    return {
        "matched": matched / total if total else 1.0,
        "sure_found": found / sure if sure else None,
        "detections": int(np.sum(reference["count"])),
    }


def _detection_reasons(measured: Mapping, limits: Mapping) -> list[str]:
    reasons = []
    if (least := limits.get("detections_matched", 0)) > measured["matched"]:
        reasons.append(
            f"'boxes' and the others match Keras' in {measured['matched']:.1%} of the detections, "
            f"less than {least:.0%}"
        )
    found = measured["sure_found"]
    if found is not None and (least := limits.get("sure_detections_found", 0)) > found:
        reasons.append(
            f"'boxes' and the others have {found:.1%} of the detections that "
            f"Keras is sure of, less than {least:.0%}"
        )
    return reasons


def degenerate(reference: np.ndarray, output: np.ndarray) -> str | None:
    """Say how an output is broken by any bound: not finite, or constant where Keras' is not."""
    if output.shape != reference.shape:
        return f"has the shape {list(output.shape)} instead of {list(reference.shape)}"
    picture = reference.dtype == np.uint8
    if not picture and (output.dtype.kind != "f" or reference.dtype.kind != "f"):
        return None
    if not np.isfinite(output).all() and np.isfinite(reference).all():
        return "holds NaN or infinity where Keras' is finite"
    spread = np.std(np.float64(reference), axis=0).max(initial=0)
    scale = np.abs(reference).max(initial=0)
    if len(reference) > 1 and spread > 1e-4 * scale:
        share = np.std(np.float64(output), axis=0).max(initial=0) / spread
        if share < 0.01:
            return "is the same for every input where Keras' is not"
    return None


def verify(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    limits: Mapping,
    targets=None,
    metric: Callable | None = None,
    reference_metric: float | None = None,
    pixel: float = 1.0,
) -> tuple[dict, str | None]:
    """Measure a file's outputs and judge them by the limits of `bound`.

    Args:
        reference: Keras' outputs by name.
        outputs: the file's.
        limits: from `bound`.
        targets: of the evaluation data, for `metric`.
        metric: `metric(outputs, targets)`, higher is better; None without evaluation data.
        reference_metric: what Keras reaches.
        pixel: see `compare_detections`.

    Returns:
        The entries of the manifest, and why the file must not leave: which output, how far; None
        if it may. The reason starts with the output's name in quotes.
    """
    if missing := set(reference) ^ set(outputs):
        return {}, f"'{min(missing)}' is not an output of both"
    measured, reasons, entry = {}, [], {}
    detects = set(reference) >= DETECTIONS
    for name, wanted in reference.items():
        if broken := degenerate(wanted, outputs[name]):
            reasons.append(f"'{name}' {broken}")
            continue
        if detects:
            continue
        m = measured[name] = compare(wanted, outputs[name], name == EMBEDDINGS)
        least = limits.get("mean_cosine_of_embeddings", -1)
        if m.get("mean_cosine", 1) < least:
            reasons.append(
                f"'{name}' has a mean cosine of {m['mean_cosine']:.5f} to Keras, less than {least}"
            )
        if "max_difference" in limits:
            limit = limits["max_difference"] * max(1.0, float(np.abs(wanted).max(initial=0)))
            if wanted.dtype == np.uint8:
                limit = max(limit, limits.get("levels_of_pictures", 0))
            if m["max_difference"] > limit:
                reasons.append(f"'{name}' is {m['max_difference']:.3g} off, more than {limit:.3g}")
        elif "metric_loss" not in limits:
            if m.get("decided", 0) >= _ENOUGH:
                agreement, limit = m["agreement_where_decided"], limits["agreement_where_decided"]
                if agreement < limit:
                    reasons.append(
                        f"'{name}' has another first class in {1 - agreement:.1%} of the examples "
                        f"that Keras is sure of, more than {1 - limit:.1%}"
                    )
            elif m["relative_rms_error"] > limits["relative_rms_error"]:
                reasons.append(
                    f"'{name}' has a relative RMS error of {m['relative_rms_error']:.3g}, more "
                    f"than {limits['relative_rms_error']}"
                )
    if detects and not reasons:
        entry = compare_detections(reference, outputs, pixel)
        reasons = _detection_reasons(entry, limits)
    # Of several outputs none need be of classes.
    named = [measured[name] for name in ("probabilities", "logits") if name in measured]
    first = (named or [*measured.values(), {}])[0] if named or len(measured) < 2 else {}
    entry |= {
        "max_difference": max((m["max_difference"] for m in measured.values()), default=None),
        "mean_difference": max((m["mean_difference"] for m in measured.values()), default=None),
        "agreement": first.get("agreement"),
        "metric": None,
    }
    if EMBEDDINGS in measured:
        entry |= {k: measured[EMBEDDINGS][k] for k in ("mean_cosine", "least_cosine")}
    if len(measured) > 1:
        entry["by_output"] = measured
    if metric is not None and not reasons:
        value = entry["metric"] = float(metric(dict(outputs), targets))
        loss = reference_metric - value
        if "metric_loss" in limits and not loss <= limits["metric_loss"] + 1e-9:
            worst = max(measured, key=lambda n: measured[n]["relative_rms_error"], default="scores")
            reasons.append(
                f"'{worst}' costs {loss:.3g} of the metric ({value:.4g} against Keras' "
                f"{reference_metric:.4g}), more than {limits['metric_loss']:.3g}"
            )
    return entry, "; ".join(reasons) or None


def examples(data: Mapping[str, np.ndarray], most: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return at most so many evenly spaced examples, and their indices."""
    count = len(next(iter(data.values())))
    indices = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    return {name: array[indices] for name, array in data.items()}, indices


def checked(data, ports, what: str) -> dict[str, np.ndarray]:
    """Return data as arrays by input name in the ports' dtypes.

    Args:
        data: a dictionary of arrays by input name; a bare array if there is one input.
        ports: the interface's inputs.
        what: what the data is called, for messages.

    Raises:
        InputError: a wrong name, shape or count, or images that are not raw pixels.
    """
    if not isinstance(data, Mapping):
        if len(ports) != 1:
            names = ", ".join(p.name for p in ports)
            raise InputError(f"Give {what} as a dictionary with an array for each of {names}.")
        data = {ports[0].name: data}
    if set(data) != {p.name for p in ports}:
        raise InputError(
            f"{what} has arrays for {', '.join(map(str, data)) or 'nothing'}; the model's inputs "
            f"are {', '.join(p.name for p in ports)}."
        )
    result = {}
    for port in ports:
        array = np.asarray(data[port.name])
        if array.shape[1:] != port.shape or len(array) == 0:
            raise InputError(
                f"{what} for '{port.name}' has the shape {list(array.shape)}; it must be "
                f"[examples, {', '.join(map(str, port.shape))}] with at least one example."
            )
        if port.image:
            low, high = float(array.min()), float(array.max())
            # Of NaN neither end is in the range.
            if not (low >= 0 and high <= 255) or (0 < high <= 1 and array.dtype.kind == "f"):
                raise InputError(
                    f"{what} for '{port.name}' has values from {low:g} to {high:g}: give raw "
                    "pixels, 0-255, as the exported file takes them. Scaling belongs into the "
                    "model, or into normalization=(mean, std)."
                )
            array = np.rint(array) if port.dtype == "uint8" else array
        result[port.name] = array.astype(port.dtype)
    if len({len(a) for a in result.values()}) > 1:
        raise InputError(f"The arrays of {what} differ in their number of examples.")
    return result


def random_inputs(ports, count: int) -> dict[str, np.ndarray]:
    """Return seeded random inputs: pixels for images, a normal distribution or 0/1 for others."""
    generator = np.random.default_rng(0)
    result = {}
    for port in ports:
        shape = (count, *port.shape)
        if port.image:
            values = generator.integers(0, 256, shape)
        elif np.dtype(port.dtype).kind == "f":
            values = generator.normal(size=shape)
        else:
            values = generator.integers(0, 2, shape)
        result[port.name] = values.astype(port.dtype)
    return result
