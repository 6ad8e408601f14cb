"""Spoiled files of every kind are read or refused; `run.py` goes on with that for minutes."""

import contextlib
import functools
import gzip
import io
import struct
import sys
import zipfile
import zlib

import hypothesis
import numpy as np
import pytest
import readers
from hypothesis import strategies
from spoil import spoil

from tiffin.export import cli, metadata
from tiffin.export.errors import InputError

SETTINGS = {"deadline": None, "suppress_health_check": [*hypothesis.HealthCheck]}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    @functools.cache
    def of(name: str) -> readers.Folder:
        return readers.Folder(readers.TARGETS[name], tmp_path_factory.mktemp(name))

    return of


@pytest.mark.parametrize("name", readers.TARGETS)
def test_good_files_are_read_and_spoiled_ones_read_or_refused(folders, name):
    folder = folders(name)
    for i, (_, _, good) in enumerate(folder.files):
        folder.read(i, good)

    @hypothesis.settings(max_examples=folder.target.examples, **SETTINGS)
    @hypothesis.given(strategies.randoms(use_true_random=False))
    def rounds(chance):
        i = chance.randrange(len(folder.files))
        with contextlib.suppress(InputError):
            folder.read(i, spoil(folder.files[i][2], folder.files[i][1], chance))

    rounds()


def _with_chunk(chunk: bytes) -> bytes:
    """Return a picture of two colours with another chunk, whatever that says."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0)
    chunks = header, b"PLTE" + bytes(6), chunk, b"IDAT" + zlib.compress(bytes(3)), b"IEND"
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _constant() -> bytes:
    """Return an ONNX model that takes nothing."""
    import onnx

    node = onnx.helper.make_node("Constant", [], ["y"], value_floats=[1.0])
    output = onnx.helper.make_tensor_value_info("y", 1, [1])
    graph = onnx.helper.make_graph([node], "graph", [], [output])
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


LONG, MANY = b"a" * 300, b"9" * 5000
# A table with the version alone.
EMPTY = struct.pack("<I4s4HiI", 16, b"TFL3", 6, 8, 4, 0, 8, 3)
DEEP = b"[" * 100_000
UNFOLDING = b"a: &a [x, x]\nb: &b [*a, *a]\nnames: *b\n"

# Of what the rounds found, the least of each kind: target, file, what is replaced (None: all), by
# what; and the words it is refused with, or None where it is read, the spoiled part left out.
FOUND = {
    "a kind that is a list": (
        "coco",
        "instances.json",
        b'"category_id": 3',
        b'"category_id": []',
        None,
    ),
    "half a pair of surrogates": ("coco", "instances.json", b"a.png", b"\\ud800", None),
    "a file name with a zero byte": ("coco", "instances.json", b"a.png", b"a\\u0000", None),
    "a file name that is too long": ("coco", "instances.json", b"a.png", LONG, None),
    "a corner beyond float": ("coco", "instances.json", b"10.5", b"9" * 400, None),
    "an unknown encoding": ("voc", "Annotations/a.xml", b"utf-8", b"none", None),
    "a name with a zero byte": ("voc", "ImageSets/Main/train.txt", b"a 1", b"\0", None),
    "a listed name too long": ("yolo", "a/list.txt", b"images/train/a.png", LONG, "no pictures"),
    "a date that is none": ("yolo", "a/data.yaml", b"nc: 2", b"nc: 2023-13-45", "cannot be read"),
    "a number of many digits": ("yolo", "a/data.yaml", b"nc: 2", b"nc: " + MANY, "cannot be read"),
    "a number without digits": ("yolo", "a/data.yaml", b"nc: 2", b"nc: !!int", "cannot be read"),
    "splits of splits": ("yolo", "a/data.yaml", b"[images/val]", b"[[a], [b, c]]", None),
    "unfolding YAML": ("yolo", "a/data.yaml", b"nc: 2", UNFOLDING, "has aliases"),
    "deep YAML": ("yolo", "a/data.yaml", b"nc: 2", DEEP, "cannot be read"),
    "an orientation that is none": (
        *(
            "image",
            "a.jpg",
            b"\x01\x12\0\x03\0\0\0\x01\0\x06",
            b"\x01\x12\0\x03\0\0\0\x01A\x06",
            None,
        ),
    ),
    "digits that are no number": ("texts", "pairs.txt", b"2 2\n", "² 2\n".encode(), "is neither"),
    "a deep manifest": ("manifest", "classifier/manifest.json", b'"x"', DEEP, "no threshold"),
    "a threshold that is none": (
        "manifest",
        "classifier/manifest.json",
        b"0.9",
        b"NaN",
        "no threshold",
    ),
    "a label of no text": ("manifest", "classifier/manifest.json", b'"x"', b'"\\ud800"', None),
    "another half elsewhere": (
        *(
            "manifest",
            "translator/manifest.json",
            b'"encoder": "',
            b'"encoder": "../',
            "does not say",
        ),
    ),
    "another half without a name": (
        *("manifest", "translator/manifest.json", b'"encoder": "encoder.onnx"', b'"encoder": {}'),
        "does not say",
    ),
    "a deep list of a page's files": ("manifest", "site/page.json", b'"old.onnx"', DEEP, None),
    "transparency for more than the palette": (
        *("image", "palette.png", None, _with_chunk(b"tRNS" + bytes(302)), "damaged"),
    ),
    "PostScript, which PIL gives to Ghostscript": (
        *("image", "a.jpg", None, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "no image in any known format",
    ),
    "no graph": ("tflite_file", "plain.tflite", None, EMPTY, "holds no graph"),
    "no input": ("onnx_file", "a.onnx", None, _constant(), "takes nothing"),
    "a box that ends before it begins": (
        *(
            "onnx_file",
            "b.onnx",
            np.float32(8).tobytes(),
            np.float32(-8).tobytes(),
            "no detections",
        ),
    ),
    "a class below the first": (
        *(
            "onnx_file",
            "b.onnx",
            np.int32([2, 0]).tobytes(),
            np.int32([-4, 0]).tobytes(),
            "class -4",
        ),
    ),
    "tokens of another model": (
        *("vocabulary", "words/vocabulary.json", b', "b", "c", ".", "\\n"', b"", "not among the 5"),
    ),
    "a configuration of another type": (
        *("run_folder", "config.json", b'"resume": false', b'"resume": "no"', "resume is 'no'"),
    ),
    "a deep configuration": (
        *("run_folder", "config.json", b'"digits"', DEEP, "is not the configuration"),
    ),
    "an input whose name is no text": (
        *("onnx_file", "a.onnx", b"image", b"imag\xff", "cannot be read as an ONNX model"),
    ),
    "a history of words": ("run_folder", "history.csv", b"0.5", b"half", "is damaged"),
    "a state without a history": (
        *("run_folder", "last.weights.h5", b'"history"', b'"histori"', "or is damaged"),
    ),
    "an array in the place of a gallery": (
        *("run_folder", "people.npz", None, _saved(np.ones(3)), "no gallery"),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_read_or_refused(folders, name):
    target, file, old, new, refused = FOUND[name]
    folder = folders(target)
    index = [path for path, _, _ in folder.files].index(file)
    content = folder.files[index][2]
    old = content if old is None else old
    assert old in content
    said = pytest.raises(InputError, match=refused) if refused else contextlib.nullcontext()
    with said:
        folder.read(index, content.replace(old, new))


def test_names_with_numbers_of_many_digits_are_sorted_and_matched(tmp_path):
    from safetensors.numpy import save_file

    from tiffin.recipes.engine import weights

    names = [f"a{'9' * 5000}", f"a1{'0' * 5000}", "a10", "a9"]
    save_file({f"{name}.weight": np.ones(3, "f4") for name in names}, tmp_path / "a.safetensors")
    rules = weights.Collection(names=((r"a(\d+)", "b{1+1}"),))
    read = weights.read(tmp_path / "a.safetensors", {"theirs": rules})
    assert [*read.tensors.layers] == ["a9", "a10", *names[:2]]
    assert weights.named(read)["a9"] == "a9"  # these are no rules for such names


def test_labels_that_unfold_are_refused(tmp_path):
    path = tmp_path / "a.tflite"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", b"a\n" * 6_000_000)
    with pytest.raises(InputError, match="unfold to over 10,000,000 bytes"):
        metadata.read_labels(path)


def test_a_text_that_unfolds_to_no_text_is_refused(tmp_path):
    from tiffin.recipes.engine.text_data import read_bytes

    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"ab\n" * 1_000_000))
    with pytest.raises(InputError, match="texts of its size"):
        read_bytes(path)


def test_a_command_prints_what_no_encoding_has(monkeypatch):
    said = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", said)
    assert cli.run(lambda: print("\ud800")) == 0
    assert said.buffer.getvalue() == b"\\ud800\n"
