"""The documents: current, and true to the letter."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text()


def builder():
    spec = importlib.util.spec_from_file_location("docs_build", REPO / "docs/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_current():
    for path, text in builder().documents().items():
        assert path.read_text() == text, f"{path.name} is out of date: run python docs/build.py"


def test_every_linked_file_exists():
    for page in (REPO / "README.md", *REPO.glob("docs/*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_layer_sample_runs():
    sample = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "PReLU" in b)
    script = sample + "\nassert model.output_shape == (None, 10)\n"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.full
def test_the_embedding_sample_runs(tmp_path):
    sample = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "AMSoftmax" in b)
    assert len(sample.splitlines()) <= 30
    subprocess.run([sys.executable, "-c", sample], check=True, cwd=tmp_path)
    assert len(list(tmp_path.glob("exported/digits_*"))) == 6


@pytest.mark.parametrize("heading", ["Quick start", "Tests"])
def test_each_command_block_follows_its_heading(heading):
    assert re.search(rf"## {heading}\n\n```bash\n(pip install [^\n]+\n)(\S[^\n]+\n)```", README)


def test_ruff_has_nothing_to_say():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=REPO, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_requirements_pin_what_the_project_ranges():
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def ranged(*groups):
        return {re.split(r"[<>=[]", entry)[0] for group in groups for entry in group} - {"tiffin"}

    def pinned(name):
        lines = (REPO / name).read_text().split()
        return {line.partition("==")[0] for line in lines if "==" in line}

    user = ranged(project["dependencies"], *(extras[n] for n in ("detection", "sequence", "tfds")))
    assert user <= pinned("requirements.txt") and pinned("requirements.txt") - user <= {"protobuf"}
    assert pinned("tests/requirements.txt") == ranged(*(extras[n] for n in ("jax", "torch", "dev")))
    assert extras["all"] == ["tiffin[detection,sequence,tfds,jax]"]
    assert extras["dev"][0] == "tiffin[all,torch]"
    assert (REPO / "requirements.txt").read_text().endswith("\n-e .\n")
