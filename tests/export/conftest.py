"""A classifier whose weights are set by hand, its six exported files, and onnxruntime-web."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest


class Colours(NamedTuple):
    """A `keras.Model` that names the strongest colour, with pictures and their classes."""

    model: object
    images: np.ndarray
    targets: np.ndarray
    labels: tuple[str, ...] = ("red", "grün", "blue")


@pytest.fixture(scope="session")
def colours() -> Colours:
    import keras

    image = keras.Input((16, 16, 3), name="image")
    colour = keras.layers.Conv2D(3, 1, use_bias=False, name="colour")
    x = colour(keras.layers.Rescaling(8 / 255)(image))
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Softmax(name="probabilities")(x)
    model = keras.Model(image, outputs, name="colours")
    colour.set_weights([(1.5 * np.eye(3, dtype="float32") - 0.5)[None, None]])
    random = np.random.default_rng(0)
    targets = np.arange(60) % 3
    images = random.integers(0, 90, (60, 16, 16, 3))
    images[np.arange(60), :, :, targets] += 130
    return Colours(model, images.astype(np.uint8), targets)


@pytest.fixture(scope="session")
def exported(colours, tmp_path_factory) -> Path:
    from tiffin.export import stage

    folder = tmp_path_factory.mktemp("exported")
    colours.model.save(folder / "model.keras")
    stage.export(
        colours.model,
        folder,
        calibration=colours.images[:30],
        evaluation=(colours.images[30:], colours.targets[30:]),
        labels=colours.labels,
        task="classification",
        description="Names the strongest colour.",
        say=lambda line: None,
    )
    return folder


@pytest.fixture(scope="session")
def onnxruntime_web() -> Path:
    """onnxruntime-web from npm, installed once into the user's cache."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    from tiffin.export.page import RUNTIME_VERSION

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "tiffin" / f"onnxruntime-web-{RUNTIME_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "node_modules" / "onnxruntime-web"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            package = f"onnxruntime-web@{RUNTIME_VERSION}"
            command = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0", package]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
            )
            if done.returncode:
                pytest.skip(f"npm cannot install {package}: {done.stderr.strip()[-200:]}")
            (folder / "complete").touch()
    return home
