"""A disk that fills up, a limit that is reached: a clear message, and nothing half-written."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tiffin.export import files
from tiffin.export.errors import InputError

SCRIPT = Path(__file__).parent / "tiny_recipe.py"


def run(output: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, "--width", "64", "--epochs", "2", "--output", output]
    # What counts coverage would meet the limit first.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return subprocess.run(command, capture_output=True, text=True, env=env, **options)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_a_run_with_advice(small_disk):
    done = run(small_disk / "run")
    assert done.returncode == 2, done.stderr
    assert "the disk is full: free some space" in done.stderr and "Traceback" not in done.stderr
    assert not leftovers(small_disk)


@pytest.mark.full
def test_a_file_size_limit_ends_a_run_with_advice(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = run(tmp_path / "run", preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert "may not grow so large here" in done.stderr and "Traceback" not in done.stderr
    assert not leftovers(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=f"Cannot write {path}: the disk is full"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
