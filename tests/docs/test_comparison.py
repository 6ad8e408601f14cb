"""The comparison: what it says of Tiffin itself is so."""

import ast
import functools
import re
from pathlib import Path

import pytest

from tiffin.recipes.engine import registry

REPO = Path(__file__).parents[2]
PAGE = (REPO / "docs/comparison.md").read_text()
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ")
]
OURS = "\n".join(row[1] for row in ROWS)  # every table's second column is Tiffin's
COMMANDS = {" ".join(span.split()[1:]) for span in re.findall(r"`(tiffin [^`]+)`", PAGE)}
FIELDS = {  # what a command line can set
    node.target.id
    for folder in ("recipes", "export")
    for path in (REPO / folder).rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
}


@functools.cache
def assigned(path: str, name: str) -> ast.expr:
    tree = ast.parse((REPO / path).read_text())
    return next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == name
    )


def keys(table: ast.expr) -> set[str]:
    return {key.value for key in table.keys if key is not None}


@functools.cache
def known() -> set[str]:
    """Return the names of all recipes and their variants."""
    entries = registry.recipes()
    return {*entries, *(variant for entry in entries.values() for variant in entry.variants)}


def test_every_table_has_tiffin_first_and_whole_rows():
    tables = re.findall(r"^(\| \| .*\|)\n(\| -.*\|)\n((?:\|.*\|\n)+)", PAGE, re.M)
    assert len(tables) == 9
    for head, _, rows in tables:
        assert head.startswith("| | Tiffin |") and head.endswith("| how to check |")
        for row in rows.splitlines():
            assert len(re.findall(r"(?<!\\)\|", row)) == head.count("|"), row


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_and_their_options_exist(command):
    verb, *words = command.split()
    verbs = {"list", "train", "study"}
    verbs |= keys(assigned("export/cli.py", "COMMANDS"))
    verbs |= keys(assigned("recipes/engine/cli.py", "COMMANDS"))
    assert verb in verbs
    if verb in ("train", "study") and words:
        assert words[0] in known() | {p.stem for p in (REPO / "recipes/studies").glob("*.py")}
    for option in re.findall(r"--([a-z-]+)", command):
        assert option.replace("-", "_") in FIELDS, f"--{option} of tiffin {command}"


def test_layers_and_networks_exist():
    spans = set(re.findall(r"`(\w+)`", OURS))
    layers = set(ast.literal_eval(assigned("layers/__init__.py", "__all__")))
    classes = {span for span in spans if re.search(r"[a-z]", span) and span[0].isupper()}
    assert len(classes) > 6 and classes <= layers
    networks = {span for span in spans - classes if span not in ("coco",)}
    assert len(networks) > 15 and networks <= known()


def test_counts_are_those_of_the_collection():
    entries = registry.recipes().values()
    variants = [variant for entry in entries for variant in entry.variants.values()]
    found = re.search(r"(\d+) variants in (\d+) recipes, of (\d{4}) to (\d{4})", OURS)
    years = [variant.year for variant in variants]
    assert [*map(int, found.groups())] == [len(variants), len(entries), min(years), max(years)]
    for task, row in (("detection", "networks"), ("sequence", "networks")):
        count = sum(len(entry.variants) for entry in entries if entry.task == task)
        assert any(row == name and f"{count} variants" in cell for name, cell, *_ in ROWS), task
    published = set()
    for entry in entries:
        for node in ast.walk(ast.parse(entry.path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "files":
                table = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
                published |= keys(table)
    assert f"{len(published)} variants have a file" in OURS


def test_figures_stand_in_the_results():
    sections = {}
    for part in re.split(r"^#+ ", (REPO / "docs/results.md").read_text(), flags=re.M):
        title = part.partition("\n")[0]
        sections[re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")] = part
    # A figure belongs to the next link behind it, within its paragraph or cell.
    quoted = 0
    for block in re.split(r"\n\n|(?<!\\)\|", PAGE):
        *said, _ = re.split(r"\]\(results\.md#([^)]+)\)", block)
        for text, anchor in zip(said[::2], said[1::2], strict=True):
            for figure in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text):
                assert figure in sections[anchor], f"{figure} is not in {anchor}"
                quoted += 1
            assert anchor in sections
    assert quoted >= 8
