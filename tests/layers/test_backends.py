"""The layer tests once more, on the backends that this process does not run."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

OTHERS = {"jax", "tensorflow", "torch"} - {keras.backend.backend()}


@pytest.mark.parametrize("backend", sorted(OTHERS))
def test_layers_on(backend):
    tests = Path(__file__).with_name("test_layers.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
