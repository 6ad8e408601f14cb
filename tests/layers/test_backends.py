"""The layer tests once more, on the backends that this process does not run."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest


@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_layers_on(backend):
    if backend == keras.backend.backend():
        pytest.skip("this process runs it already")
    tests = Path(__file__).with_name("test_layers.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
