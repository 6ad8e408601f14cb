"""What is handed out: the sdist, the wheel that it makes, and under which licences all of it is."""

import ast
import re
import runpy
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiffin.export.errors import OPTIONAL

REPO = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOLDERS = ("layers", "recipes", "export")
STEM = f"tiffin-{PROJECT['version']}"


def sources(top, *folders):
    """Return the files of some folders, by their names in the repository."""
    paths = (path for folder in folders for path in (top / folder).rglob("*"))
    return {path.relative_to(top).as_posix() for path in paths if path.is_file()}


def names(entries):
    return {re.split(r"[<>=[]", entry)[0].replace("_", "-") for entry in entries}


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(built.wheel) as archive:
        yield archive


def test_the_wheel_holds_every_module_and_template_and_nothing_else(built, wheel):
    wanted = sources(built.given, *FOLDERS)
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == {f"tiffin/{name}" for name in wanted}
    for name in wanted:
        assert wheel.read(f"tiffin/{name}") == (built.given / name).read_bytes(), name


def test_the_sdist_holds_tests_and_documents(built):
    held = {path.relative_to(built.sdist).as_posix() for path in built.sdist.rglob("*")}
    wanted = sources(built.given, *FOLDERS, "tests", "docs", "benchmarks")
    wanted |= {path.name for path in built.given.iterdir() if path.is_file()} | {".ci/run"}
    assert wanted <= held


def test_the_metadata_says_what_pip_and_people_ask(wheel):
    text = wheel.read(f"{STEM}.dist-info/METADATA").decode()
    fields = text.partition("\n\n")[0]
    assert "\nLicense-Expression: Apache-2.0\n" in fields
    assert "\nDescription-Content-Type: text/markdown\n" in fields and "# Tiffin" in text
    versions = re.findall(r"Python :: 3\.(\d+)", fields)
    low, high = re.findall(r"Requires-Python: <3\.(\d+),>=3\.(\d+)", fields)[0][::-1]
    assert [int(v) for v in versions] == [*range(int(low), int(high))]
    assert {*re.findall(r"Provides-Extra: (\S+)", fields)} == {*EXTRAS}
    assert b"tiffin = tiffin.recipes.engine.cli:main" in wheel.read(
        f"{STEM}.dist-info/entry_points.txt"
    )


def test_the_table_of_optional_libraries_is_that_of_the_extras():
    said = {}
    for package, extra in OPTIONAL.values():
        said.setdefault(extra, set()).add(package.replace("_", "-"))
    assert said == {n: names(v) for n, v in EXTRAS.items() if n not in ("all", "dev")}


def imported(path):
    """Yield the first name of every module that a file imports by a plain import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_what_is_imported_plainly_is_in_the_base():
    base, known = names(PROJECT["dependencies"]), packages_distributions()
    for path in sorted(path for folder in FOLDERS for path in (REPO / folder).rglob("*.py")):
        for name in {*imported(path)} - sys.stdlib_module_names - {"tiffin"}:
            if name in ("jax", "torch"):  # Keras runs on it, and has imported it
                assert path.parts[-2] == "engine", f"{path} imports {name}"
                continue
            packages = {package.lower().replace("_", "-") for package in known[name]}
            assert packages & base, f"{path} imports {name}, which the base does not install"


LICENCES = SimpleNamespace(**runpy.run_path(str(REPO / "docs/licences.py")))


def test_no_dependency_has_a_licence_that_is_not_permissive():
    found = {name: LICENCES.licence(package) for name, (_, package) in LICENCES.installed().items()}
    assert len(found) > 80
    assert not {name: words for name, words in found.items() if not LICENCES.allowed(words)}
    for words in ("GPL-3.0", "LGPL-2.1-or-later", "MIT AND AGPL-3.0", "Proprietary", "-"):
        assert not LICENCES.allowed(words)
    assert LICENCES.allowed("GPL-2.0 OR MIT")


def test_the_page_of_licences_has_the_pinned_versions():
    rows = re.findall(r"^\| (\S+) +\| (\S+) +\|", LICENCES.PAGE.read_text(), re.M)
    listed = dict(rows)
    pins = (REPO / "requirements.txt").read_text() + (REPO / "tests/requirements.txt").read_text()
    pinned = {n.replace("_", "-"): v for n, v in re.findall(r"^([\w-]+)==(\S+)$", pins, re.M)}
    asked = PROJECT["dependencies"] + [
        e for n, v in EXTRAS.items() if n not in ("dev", "torch") for e in v
    ]
    for name in names(asked) - {"tiffin"}:
        assert listed[name] == pinned[name], f"run python docs/licences.py: {name} is another"
