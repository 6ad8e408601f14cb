"""What all tests share: a quiet, seeded TensorFlow and pictures to read."""

import gc
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the command does
# Else what the largest network takes in training stays with the process, four times its weights.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")

import hypothesis
import numpy as np
import pytest

# The same examples in every run; `--hypothesis-profile default` looks for others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.register_profile("brief", derandomize=True, max_examples=2)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption(
        "--brief",
        action="store_true",
        help="run the first case of each test that is not slow, and two examples of each property",
    )


def pytest_configure(config):
    if config.getoption("--brief"):
        hypothesis.settings.load_profile("brief")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--brief"):
        return
    first = {}
    for item in items:
        if not any(map(item.get_closest_marker, ("full", "slow"))):
            first.setdefault((item.path, item.originalname), item)
    kept = [*first.values()]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(autouse=True, scope="session")
def _files_are_measured_briefly():
    """No test is about how fast a file is: a moment of each will do."""
    from tiffin.export import benchmark

    benchmark.HANDED_OUT = 0.02


def _without_speed():
    """Measure no latency: it is done in a process of its own, which costs seconds a file."""
    speed = {"median_ms": 1.0, "p95_ms": 2.0, "threads": 1, "peak_memory_mb": 3.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiffin.export.benchmark.measure", lambda *a, **k: speed)
        yield


without_speed = pytest.fixture(_without_speed)
module_without_speed = pytest.fixture(_without_speed, scope="module")


@pytest.fixture(autouse=True)
def _seeded(request):
    if "keras" in __import__("sys").modules:
        import keras

        keras.utils.set_random_seed(7)


@pytest.fixture(autouse=True)
def _large_networks_go_at_once(request):
    """Networks refer to themselves; left to Python, a dozen of VGG's were there at a time."""
    yield
    if request.node.get_closest_marker("full"):
        gc.collect()


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of two class folders, ten 24x20 pictures each, told apart by their colour."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name, color in (("red", (200, 40, 40)), ("teal", (30, 160, 160))):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(random.normal(color, 20, (24, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{number}.png")
    return tmp_path / "photos"
