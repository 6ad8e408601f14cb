"""A library that is not installed is asked for in one sentence, before anything else is done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiffin.export.errors import OPTIONAL, InputError, optional

VOC = "<annotation><object><name>a</name></object></annotation>"
# The library, what cannot be done without it, and how the sentence begins.
COMMANDS = {
    "pycocotools": ("train ssd", "Detection"),
    "cv2": ("train fast_rcnn", "Selective search"),
    "defusedxml": ("train ssd --data voc", "A folder in Pascal VOC form"),
    "yaml": ("train ssd --data yolo", "A folder in YOLO form with data.yaml"),
    "sacrebleu": ("train seq2seq", "Translation"),
    "sentencepiece": ("train seq2seq --tokens pieces", "A vocabulary of pieces"),
    "tensorflow_datasets": (
        "train resnet20 --data cifar10",
        "--data cifar10 is neither 'digits', nor a folder here; a TFDS data set",
    ),
    "importlib_resources": (
        "train ssd --data voc/2007",
        "--data voc/2007 is neither 'digits', nor a folder here; a TFDS data set",
    ),
    "jax": ("summary resnet20", "The backend that Keras is set to"),
    "torch": ("train resnet20", "The backend that Keras is set to"),
}
BACKENDS = ("jax", "torch")
SCRIPT = """
import contextlib, io, json, shlex, sys
from tiffin.recipes.engine import cli

class Without:
    def find_spec(name, path=None, target=None):
        if name == without:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without)
told = {}
for without, line in json.loads(sys.argv[1]).items():
    sys.modules.pop(without, None)  # Keras takes along what it finds
    sys.argv = ["tiffin", *shlex.split(line)]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            cli.main()
        except SystemExit as end:
            told[without] = end.code, said.getvalue()
print("told", json.dumps(told))
"""


def run(folder, commands, **environment):
    """Run command lines in one process, each without its library; return status and message."""
    lines = json.dumps({name: line for name, (line, _) in commands.items()})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, lines],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("told ")[2])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("without")
    for name in ("voc/JPEGImages", "voc/Annotations", "yolo/images", "yolo/labels"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "voc/JPEGImages/1.png")
    (folder / "voc/Annotations/1.xml").write_text(VOC)
    Image.new("RGB", (8, 8)).save(folder / "yolo/images/1.png")
    (folder / "yolo/data.yaml").write_text("names: [a]\n")
    told = run(folder, {n: c for n, c in COMMANDS.items() if n not in BACKENDS})
    for name in BACKENDS:
        told |= run(folder, {name: COMMANDS[name]}, KERAS_BACKEND=name)
    told["left"] = sorted(p.name for p in folder.rglob("*") if p.name == "model.keras")
    return told


def test_every_optional_library_is_tried():
    assert {*COMMANDS} == {*OPTIONAL}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_library_is_asked_for_in_one_sentence(told, name):
    package, extra = OPTIONAL[name]
    begins = COMMANDS[name][1]
    assert told[name] == [2, f'error: {begins} needs {package}: pip install "tiffin[{extra}]"\n']


def test_nothing_was_trained_before(told):
    assert told["left"] == []


def test_other_users_of_the_libraries_ask_in_the_same_way(monkeypatch, tmp_path):
    from tiffin.export import text, translation, videos

    (tmp_path / "a.mp4").write_bytes(b"")
    described = {
        "format_version": 1,
        "kind": "pieces",
        "tokens": ["<unk>"],
        "sentencepiece": "AA==",
    }
    (tmp_path / "vocabulary.json").write_text(json.dumps(described))
    for module in ("cv2", "sacrebleu", "sentencepiece"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        InputError, match=r'^A video needs opencv.*pip install "tiffin\[detection\]"$'
    ):
        videos.Video(tmp_path / "a.mp4")
    with pytest.raises(
        InputError, match=r'^BLEU needs sacrebleu: pip install "tiffin\[sequence\]"$'
    ):
        translation.bleu(["a"], ["a"])
    # Not that the file is damaged.
    with pytest.raises(InputError, match=r"^A vocabulary of pieces needs sentencepiece: pip"):
        text.read_vocabularies(tmp_path / "vocabulary.json")


def test_a_library_that_no_extra_brings_is_no_mistake_of_the_user():
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        optional("no_such_library", "Nothing")


def test_a_library_that_is_there_is_imported():
    assert Path(optional("defusedxml.ElementTree", "A test").__file__).name == "ElementTree.py"
