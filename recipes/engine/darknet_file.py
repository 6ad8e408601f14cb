"""Darknet's `.weights`: numbers without names, in the order of the network's layers."""

import re
from pathlib import Path

import keras
import numpy as np

from tiffin.export.errors import InputError

# What the authors call the weights of a network's first layers: darknet53.conv.74.
PARTIAL = re.compile(r".+\.conv\.\d+")


def from_darknet(
    model: keras.Model, path: Path
) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:
    """Read the weights of a YOLO, version 2 or 3, or, from a `.conv.N`, of its first layers.

    Args:
        model: from `recipes.build`, with convolutions as of `tiffin.layers.DarknetConvolutions`.
        path: the file.

    Returns:
        (values in the order of `get_weights` by layer, why a layer has none by layer).

    Raises:
        InputError: the file is damaged or belongs to another network.
    """
    numbers = _numbers(path)
    plan = _plan(model)
    if not plan:
        raise InputError(
            f"{path} is a file of Darknet, and {model.name} is none of its networks: yolov2, "
            "yolov3 and yolov3_tiny are."
        )
    classes = _classes(plan, len(numbers), partial=bool(PARTIAL.fullmatch(path.name)))
    if classes is None:
        raise InputError(
            f"{path} has {len(numbers):,} numbers, which fit {model.name} for no number of "
            "classes: give the file of the same network."
        )
    values: dict[str, list[np.ndarray]] = {}
    problems: dict[str, str] = {}
    for first, second in plan:
        count = _length(first, second, classes)
        if not len(numbers):
            problems |= dict.fromkeys((first.name, second.name), "not in the file")
            continue
        part, numbers = numbers[:count], numbers[count:]
        if isinstance(second, keras.layers.BatchNormalization):
            beta, gamma, mean, variance = part[: 4 * first.filters].reshape(4, -1)
            values[second.name] = [gamma, beta, mean, variance]
            height, width, channels, filters = first.kernel.shape
            kernel = part[4 * filters :].reshape(filters, channels, height, width)
            values[first.name] = [kernel.transpose(2, 3, 1, 0)]
            continue
        each = first.filters // 4
        bias, kernel = np.split(part, [each * (5 + classes)])
        rows = np.concatenate([kernel.reshape(len(bias), -1), bias[:, None]], 1)
        rows = rows.reshape(each, 5 + classes, -1)
        # x, y, width, height, objectness, classes: here y comes before x.
        for layer, order in ((first, [1, 0, 3, 2]), (second, range(4, 5 + classes))):
            chosen = rows[:, list(order)].reshape(-1, rows.shape[-1])
            if len(chosen) != layer.filters:
                problems[layer.name] = f"the file has {classes} classes"
                continue
            values[layer.name] = [chosen[:, :-1].T[None, None], chosen[:, -1]]
    return values, problems


def _numbers(path: Path) -> np.ndarray:
    data = path.read_bytes()
    try:
        major, minor, _ = np.frombuffer(data, "<i4", 3).tolist()
        # How many pictures were seen: of 8 bytes since version 0.2.
        start = 20 if major * 10 + minor >= 2 else 16
        return np.frombuffer(data, "<f4", offset=start)
    except ValueError as error:
        raise InputError(f"{path} cannot be read as weights of Darknet ({error}).") from error


def _plan(model: keras.Model) -> list[tuple]:
    """Return the layers that the file tells of, in its order.

    Each with its batch normalisation, or, as one of Darknet's, those of boxes and of classes.
    """
    by_name = {layer.name: layer for layer in model.layers}
    plan = {}
    for name, layer in by_name.items():
        if match := re.fullmatch(r"layer(\d+)_conv", name):
            plan[float(match[1])] = layer, by_name.get(f"layer{match[1]}_bn")
        elif name.endswith("_deltas") and name.replace("_deltas", "_logits") in by_name:
            (source,) = layer._inbound_nodes[0].input_tensors
            behind = source._keras_history.operation.name
            if match := re.fullmatch(r"layer(\d+)_leaky", behind):
                plan[float(match[1]) + 0.5] = layer, by_name[name.replace("_deltas", "_logits")]
    rows = [plan[place] for place in sorted(plan)]
    return [] if any(second is None for _, second in rows) else rows


def _length(first, second, classes: int) -> int:
    height, width, channels, filters = first.kernel.shape
    if isinstance(second, keras.layers.BatchNormalization):
        return filters * (4 + height * width * channels)
    return filters // 4 * (5 + classes) * (1 + channels)


def _classes(plan: list[tuple], total: int, partial: bool) -> int | None:
    """Return for how many classes a file of so many numbers was made, None if for none."""
    if partial:
        reached = np.cumsum([_length(*pair, 0) for pair in plan])
        return 0 if total in reached else None
    without = sum(_length(*pair, 0) for pair in plan)
    each = sum(_length(*pair, 1) for pair in plan) - without
    classes, rest = divmod(total - without, each) if each else (0, total - without)
    return classes if classes > 0 and not rest else None
