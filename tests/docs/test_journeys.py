"""Every command of the documents: the README's journeys walked, all others read by their parsers.

The journeys have no second copy here. Their blocks are taken from the README, and run in order in a
folder with pictures and a model made for it. All that differs from what the README says: to a line
of `tiffin train` `--epochs 1 --batch-size 16` is added, so that it takes a minute.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tiffin.export import cli as export_cli
from tiffin.recipes.engine import cli, registry

REPO = Path(__file__).parents[2]
PAGES = (REPO / "README.md", *sorted(REPO.glob("docs/*.md")), REPO / "CONTRIBUTING.md")
SHORT = "--epochs 1 --batch-size 16"
# Commands that are not ours and stand in blocks of bash.
OTHERS = {"pip", "ls", "cd", "pytest", "ruff", "g++", "convert", "srun", "."}


def blocks(text: str, *kinds: str) -> list[tuple[str, str]]:
    """Return a text's blocks of code, each with its kind."""
    found = re.findall(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", text, re.S | re.M)
    return [(kind, code) for kind, code in found if not kinds or kind in kinds]


def lines(code: str) -> list[str]:
    """Return the command lines of a block of bash, continued ones joined, without comments."""
    joined = re.sub(r"\\\n\s*", " ", code)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def journeys() -> dict[str, list[tuple[str, str]]]:
    """Return the blocks of each of the README's journeys by heading."""
    text = (REPO / "README.md").read_text()
    part = re.search(r"^## Five journeys\n(.*?)^## ", text, re.S | re.M)[1]
    return {
        section.partition("\n")[0]: blocks(section)
        for section in re.split(r"^### ", part, flags=re.M)[1:]
    }


JOURNEYS = journeys()


def test_there_are_five_and_each_can_be_walked():
    assert len(JOURNEYS) == 5
    for heading, found in JOURNEYS.items():
        assert found and {kind for kind, _ in found} <= {"bash", "python"}, heading


def words_of(line: str) -> list[list[str]]:
    """Return the words of each command of a line, without comments and what is set before it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    commands = [[]]
    for word in lexer:
        if set(word) <= set("&;|"):
            commands.append([])
        elif commands[-1] or not re.fullmatch(r"[A-Z_0-9]+=\S*", word):
            commands[-1].append(word)
    return [command for command in commands if command]


COMMANDS = [
    pytest.param(command, id=f"{page.stem}: {' '.join(command)[:60]}")
    for page in PAGES
    for _, code in blocks(page.read_text(), "bash", "sh")
    for line in lines(code)
    for command in words_of(line)
]
COPIED = {c.values[0][3]: c.values[0][2] for c in COMMANDS if c.values[0][:2] == ["tiffin", "copy"]}


@pytest.fixture
def parsed(monkeypatch):
    """Have commands read to their last word, and values checked, but nothing run."""
    from tiffin.recipes.engine.study import Study
    from tiffin.recipes.engine.training import Recipe

    read = []
    monkeypatch.setattr(Recipe, "run", lambda self: read.append(self) or self.check())
    monkeypatch.setattr(Study, "run", lambda self: read.append(self))
    for kind in (*export_cli.COMMANDS.values(), *cli.COMMANDS.values()):
        monkeypatch.setattr(kind, "run", lambda self: read.append(self))
    return read


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one_that_there_is(command, parsed, capsys):
    first, *rest = command
    if first == "python" and rest[0] == "-m":
        assert rest[1] in ("build", "http.server", "tiffin.export", "venv"), command
        return
    if first == "python":
        file, *rest = rest
        if file in COPIED:
            first, rest = "tiffin", ["train", registry.find(COPIED[file]).name, *rest]
        elif file.startswith("recipes/") and "<" not in file:
            first, rest = (
                "tiffin",
                [
                    "train",
                    next(n for n, e in registry.recipes().items() if e.path == REPO / file),
                    *rest,
                ],
            )
        elif "samples/" in file:
            assert (REPO / "export/templates" / f"{Path(file).name}.in").exists(), command
            return
        else:
            assert "<" in file or (REPO / file).exists(), command
            return
    if first == "srun":
        first, *rest = rest
    if first == "export":
        assert re.fullmatch(r"[A-Z_]+=\w+", rest[0])
    elif first == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        known = re.search(r"\[project.optional-dependencies\](.*?)\n\[", PYPROJECT, re.S)[1]
        for extra in ",".join(extras).split(",") if extras else ():
            assert extra == "cuda12" or re.search(rf"^{extra} = ", known, re.M), command
    elif first == "tiffin":
        try:
            cli.command(rest)
        except SystemExit as end:
            assert not end.code, capsys.readouterr()
            assert parsed or {"--help", "list"} & {*rest}, command
    else:
        assert first in OTHERS or first == "./run", command


PYPROJECT = (REPO / "pyproject.toml").read_text()


def test_runtimes_are_those_of_the_samples():
    """Versions of libraries stand in the samples; the page for devices has no others."""
    templates = "".join(p.read_text() for p in (REPO / "export/templates").glob("*.in"))
    text = (REPO / "docs/devices.md").read_text()
    named = re.findall(r'implementation\("[^"]+"\)|pod \'[^\']+\'|pip install ai-edge-litert', text)
    assert len(named) == 4
    assert all(name in templates for name in named), named
    for name in re.findall(r"`samples/(\S+)`", text):
        assert (REPO / f"export/templates/{name}.in").exists(), name


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """An empty folder but for what the journeys say that a reader has."""
    import keras
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("home")
    digits, labels = load_digits(return_X_y=True)
    pixels = np.kron(digits.reshape(-1, 8, 8) * 15, np.ones((4, 4))).astype("uint8")

    def draw(number: int, path: str) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).convert("RGB").save(folder / path, quality=95)

    def take(label: int, count: int, places: str) -> None:
        for i, number in enumerate(np.flatnonzero(labels == label)[:count]):
            draw(number, places.format(i))

    for name, label in (("cat", 0), ("dog", 1)):
        take(label, 60, f"photos/{name}/{{}}.jpg")
    for label in range(8):
        take(label, 10, f"faces/person{label}/{{}}.jpg")
    for name, label in (("anna", 2), ("bert", 3)):
        take(label, 3, f"people/{name}/{{}}.jpg")
    for name, label in (("holiday", 0), ("anna", 2), ("visitor", 3)):
        draw(np.flatnonzero(labels == label)[70], f"{name}.jpg")
    (folder / "animals.txt").write_text("cat\ndog\n")

    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 5, 4, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    two = labels < 2
    colours = np.repeat(pixels[two][..., None] / 255, 3, axis=-1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(colours, labels[two], epochs=5, verbose=0)
    model.save(folder / "my_model.keras")
    return folder


def walk(heading: str, home: Path) -> str:
    """Run a journey's blocks in order; returns what they printed."""
    bin_ = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}"}
    said = ""
    for kind, code in JOURNEYS[heading]:
        if kind == "bash":
            code = "\n".join(
                f"{line} {SHORT}" if line.startswith("tiffin train") else line
                for line in lines(code)
            )
        command = ["bash", "-e", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{heading}: {code}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    return said


def test_use_a_layer_in_your_keras_code(home):
    said = walk("Use a layer in your Keras code", home)
    assert "All 4 files verified" in said
    (output,) = json.loads((home / "mine/manifest.json").read_text())["outputs"]
    assert output["shape"] == ["batch", 10]


def test_export_a_model_that_you_have(home):
    said = walk("Export a model that you have", home)
    assert "All 6 files verified" in said and "Keras itself: accuracy" in said
    shares = re.findall(r"([\d.]+)%\s+(cat|dog)", said)
    assert shares[0][1] == "cat" and float(shares[0][0]) > 50


@pytest.mark.full
def test_train_on_your_photos_and_put_it_on_devices(home):
    said = walk("Train on your photos", home)
    assert "All 6 files verified" in said and re.search(r"[\d.]+%\s+(cat|dog)", said)
    assert "mobilenet_v2_int8.tflite" in said.partition("holiday.jpg")[2]  # measured
    said = walk("Put it on Android, iOS, a Raspberry Pi and a browser", home)
    assert {"android_litert.kt", "ios_litert.swift", "python_litert.py"} <= {*said.split()}
    assert re.search(r"0\.\d+ (cat|dog)", said) and (home / "site/index.html").exists()
    table = re.search(r"\| device .*?\n\n", (REPO / "README.md").read_text(), re.S)[0]
    for sample in re.findall(r"`(\w+\.(?:kt|swift|py))`", table):
        assert sample in said
    for dependency in re.findall(r"`([\w.-]+:[\w.-]+)`|pod `(\w+)`|pip install ([\w-]+)", table):
        (name,) = filter(None, dependency)
        samples = (home / "runs/photos/export/samples").iterdir()
        assert any(name in path.read_text() for path in samples), name


@pytest.mark.full
def test_verify_faces(home):
    said = walk("Verify faces", home)
    assert "All 6 files verified" in said
    assert re.search(r"distance [\d.]+, threshold [\d.]+: (the same|different)", said)
    assert "2 enrolled by 6 pictures" in said and re.search(r"visitor.jpg: \w+ \(nearest", said)
