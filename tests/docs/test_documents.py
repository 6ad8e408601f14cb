"""The documents: current, and true to the letter."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text()
PAGES = (*REPO.glob("*.md"), *REPO.glob("docs/*.md"))


BUILD = runpy.run_path(str(REPO / "docs/build.py"))


def test_generated_parts_are_current():
    for path, text in BUILD["documents"]().items():
        assert path.read_text() == text, f"{path.name} is out of date: run python docs/build.py"


def headings(page: Path) -> set[str]:
    """Return what links to a page's headings are called, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_link_leads_somewhere():
    for page in PAGES:
        text = page.read_text()
        for link in re.findall(r"\]\(([^):]+)\)|<img src=\"([^\"]+)\"", text):
            file, _, heading = "".join(link).partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name} links to {file}"
            assert not heading or heading in headings(target), f"{page.name}: {file}#{heading}"


def test_every_page_is_linked_from_the_readme():
    linked = {(REPO / link).resolve() for link in re.findall(r"\]\((docs/[^)#]+\.md)", README)}
    assert linked == {*REPO.glob("docs/*.md")}


def test_pictures_are_small():
    for picture in REPO.glob("docs/pictures/*.png"):
        assert picture.stat().st_size < 150_000, picture.name


SAMPLES = [
    pytest.param(code, id=f"{page.stem}{i}")
    for page in REPO.glob("docs/*.md")
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M))
]


@pytest.mark.full
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_samples_run(sample, tmp_path):
    assert len(sample.splitlines()) <= 35
    subprocess.run([sys.executable, "-c", sample], check=True, cwd=tmp_path)
    if "tiffin.export.export" in sample:
        for ending in ("onnx", "tflite"):
            assert len(list(tmp_path.glob(f"exported/*.{ending}"))) == 3


@pytest.mark.parametrize("heading", ["Quick start", "Tests"])
def test_each_command_block_follows_its_heading(heading):
    assert re.search(rf"## {heading}\n\n```bash\n(pip install [^\n]+\n)(\S[^\n]+\n)```", README)


def test_one_version_everywhere():
    version = re.search(r'^version = "(.+)"$', (REPO / "pyproject.toml").read_text(), re.M)[1]
    assert f"\nversion: {version}\n" in (REPO / "CITATION.cff").read_text()
    assert re.search(r"^## \[(.+?)\]", (REPO / "CHANGELOG.md").read_text(), re.M)[1] == version
    assert f"dist/tiffin-{version}-py3-none-any.whl" in README


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
