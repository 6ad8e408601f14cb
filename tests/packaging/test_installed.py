"""The wheel as it is installed: in a folder far from the repository, with what the base has."""

import os
import subprocess
import sys
import sysconfig

import pytest

from tiffin.export.errors import OPTIONAL

# Without network the libraries are those of this environment; those of the extras are hidden.
HIDDEN = f"""
import sys

class Hidden:
    def find_spec(name, path=None, target=None):
        if name in {sorted(OPTIONAL)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
"""


@pytest.fixture(scope="module")
def tiffin(built, tmp_path_factory):
    """A function that runs a command line of an installed wheel in an empty folder."""
    home, environment = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("environment")
    script = "import sys, venv; venv.create(sys.argv[1], with_pip=True)"
    subprocess.run([sys.executable, "-c", script, environment], check=True)
    python = environment / "bin/python"
    install = [python, "-m", "pip", "install", "--no-index", "--no-deps", built.wheel]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = environment.glob("lib/*/site-packages")
    (packages / "sitecustomize.py").write_text(HIDDEN)
    # As a path alone, so that this repository's own editable install stays out.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*words, **more):
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        given = os.environ | {"HOME": str(home), "PATH": path} | more
        given.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(word) for word in words], cwd=home, env=given, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    run.home = home
    return run


@pytest.mark.full
def test_an_installed_wheel_does_all_of_it_without_the_extras(tiffin):
    def works(*words):
        status, said, complaints = tiffin(*words)
        assert status == 0, complaints
        return said

    code = "import tiffin.layers, tiffin.export as e; print(tiffin.layers.__file__, e.__file__)"
    assert works("python", "-c", code).count("/environment0/lib/") == 2
    assert "resnet50" in works("tiffin", "list")
    assert "parameters" in works("tiffin", "summary", "resnet20")
    train = ("--alpha", "0.35", "--epochs", "1", "--output", "run", "--export")
    assert "All 6 files verified" in works("tiffin", "train", "mobilenet_v2", *train)
    export = tiffin.home / "run/export"
    picture = sorted(export.rglob("*.png"))[0]
    for model in (
        "model.keras",
        "export/mobilenet_v2_int8.onnx",
        "export/mobilenet_v2_fp16.tflite",
    ):
        assert "%" in works("tiffin", "predict", f"run/{model}", picture)
    works("tiffin", "page", export, "page")
    assert (tiffin.home / "page/index.html").exists()
    works("tiffin", "export", "run/model.keras", "again", "--precisions", "fp32")
    works("tiffin", "copy", "lenet5", "mine.py")
    works("python", "mine.py", "--epochs", "1", "--output", "own")
    works("tiffin", "study", "divergence", "--output", "study")
    status, _, said = tiffin("tiffin", "train", "ssd")
    assert status == 2 and said.endswith('needs pycocotools: pip install "tiffin[detection]"\n')
