"""The sdist and the wheel, built once."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

REPO = Path(__file__).parents[2]


def build(what, folder, output):
    """Build by setuptools as pip does, but without a network."""
    script = f"from setuptools import build_meta; build_meta.build_{what}({str(output)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """`given`, a copy of the repository; `sdist`, the folder that the sdist made of it unpacks to;
    and `wheel`, the file that was made of that.
    """
    folder = tmp_path_factory.mktemp("built")
    given, output = folder / "given", folder / "output"
    skip = shutil.ignore_patterns("__pycache__", "runs", "node_modules", "*.egg-info")
    for name in ("layers", "recipes", "export", "tests", "docs", "benchmarks", ".ci"):
        shutil.copytree(REPO / name, given / name, ignore=skip)
    for path in REPO.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, given)
    build("sdist", given, output)
    (archive,) = output.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    sdist = folder / archive.name.removesuffix(".tar.gz")
    said = build("wheel", sdist, output)
    assert "is absent from the `packages` configuration" not in said
    (wheel,) = output.glob("*.whl")
    return SimpleNamespace(given=given, sdist=sdist, wheel=wheel)
