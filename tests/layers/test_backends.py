"""The layer tests once more, on the backends that this process does not run."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from numerics import FAST_XLA

OTHERS = {"jax", "tensorflow", "torch"} - {keras.backend.backend()}


def run(*arguments: str, **environment: str) -> None:
    here = Path(__file__).parent
    names = ("test_layers.py", "test_losses.py", "test_boxes.py", "test_detectors.py")
    names += ("test_recurrent.py", "test_attention.py", "test_decoder.py", "test_adversarial.py")
    names += ("test_im2col.py",)
    tests = [str(here / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, *tests],
        env=os.environ | {"XLA_FLAGS": FAST_XLA} | environment,
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("backend", sorted(OTHERS))
def test_layers_on(backend):
    run("--brief", KERAS_BACKEND=backend)


@pytest.mark.full
@pytest.mark.parametrize("backend", sorted(OTHERS))
def test_all_cases_on(backend):
    run("-m", "full or not full", KERAS_BACKEND=backend)


@pytest.mark.full
def test_grouped_convolution_where_processors_lack_avx512():
    run("-k", "grouped", KERAS_BACKEND="tensorflow", TF_ENABLE_ONEDNN_OPTS="0")
