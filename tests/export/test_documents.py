"""What lies beside the files; every sample is run, compiled, or at least complete."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tiffin.export import documents, samples
from tiffin.export.errors import InputError
from tiffin.export.runtime import load


@pytest.fixture(scope="module")
def manifest(exported) -> dict:
    return json.loads((exported / "manifest.json").read_text(encoding="utf-8"))


def test_labels_and_card(exported, manifest, colours):
    assert (exported / "labels.txt").read_text(encoding="utf-8").splitlines() == [*colours.labels]
    card = (exported / "README.md").read_text(encoding="utf-8")
    for file in manifest["files"]:
        assert f"| {file['file']} " in card
    for word in ("Names the strongest colour.", "16x16", "uint8", "accuracy", "Licence", "limits"):
        assert word in card
    for link in re.findall(r"\]\((.*?)\)", card):
        assert (exported / link).is_file()


@pytest.mark.parametrize("sample", ["python_onnxruntime.py", "python_litert.py"])
def test_python_samples_run(sample, exported, colours, tmp_path):
    """In another folder than their own, on a picture of another size than the model's."""
    Image.new("RGB", (50, 40), (20, 30, 200)).save(tmp_path / "sky.png")
    command = [sys.executable, exported / "samples" / sample, "sky.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "blue"


def test_samples_name_what_the_files_hold(exported, manifest):
    from ai_edge_litert.interpreter import Interpreter

    swift = (exported / "samples" / "ios_litert.swift").read_text()
    interpreter = Interpreter(str(exported / "colours_int8.tflite"))
    (signature,) = interpreter.get_signature_list()
    assert f'signatureRunner(with: "{signature}")' in swift
    runner = load(exported / "colours_int8.tflite")
    for name in {*samples.NAMES} - {"python_translate.py"}:  # of a pair of files
        text = (exported / "samples" / name).read_text()
        assert re.search(r"colours_\w+\.(onnx|tflite)", text)[0] in {
            f["file"] for f in manifest["files"]
        }
        if "mediapipe" not in name:
            assert '"image"' in text and f'"{runner.outputs[0].name}"' in text
        # Every placeholder was filled in, and what opens closes.
        assert not re.search(r"\$(?![\d{])", text)
        for pair in ("()", "[]", "{}"):
            assert text.count(pair[0]) == text.count(pair[1]), (name, pair)


STUB = """
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING };
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
namespace Ort {
struct Env { Env(OrtLoggingLevel, const char*); };
struct SessionOptions { SessionOptions(); };
struct RunOptions { RunOptions(); };
struct MemoryInfo { static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType); };
struct TensorTypeAndShapeInfo { size_t GetElementCount() const; };
struct Value {
  template <typename T> static Value CreateTensor(
      const MemoryInfo&, T*, size_t, const int64_t*, size_t);
  template <typename T> const T* GetTensorData() const;
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
};
struct Session {
  Session(const Env&, const char*, const SessionOptions&);
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, size_t,
                         const char* const*, size_t);
};
}
"""


def rich_manifest(manifest) -> dict:
    """Two images, plain inputs, every type, several outputs, names that need quoting."""
    image = manifest["inputs"][0]
    return manifest | {
        "name": "2-Tower net",
        "task": None,
        "inputs": [
            image,
            image | {"name": "second", "dtype": "float32"},
            {"name": "state/0", "shape": ["batch", 4], "dtype": "float32"},
            {"name": "step", "shape": [], "dtype": "int64"},
        ],
        "outputs": [
            manifest["outputs"][0],
            {"name": 'boxes "100%" $x', "shape": ["batch", 20, 4], "dtype": "float32"},
            {"name": "count", "shape": ["batch"], "dtype": "int32"},
        ],
    }


@pytest.mark.parametrize("rich", [False, True])
def test_cpp_sample_compiles(rich, manifest, tmp_path):
    """Against a copy of the declarations that it uses: onnxruntime's headers are in no wheel."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    text = samples.texts(rich_manifest(manifest) if rich else manifest)["onnxruntime.cc"]
    (tmp_path / "onnxruntime_cxx_api.h").write_text(STUB)
    (tmp_path / "sample.cc").write_text(text)
    command = ["g++", "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", "-I.", "sample.cc"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_sample_of_several_inputs_is_valid(manifest):
    text = samples.texts(rich_manifest(manifest))["python_onnxruntime.py"]
    compile(text, "sample", "exec")
    assert "sys.argv[2]" in text and "np.zeros([], np.int64)" in text
    assert "android_mediapipe.kt" not in samples.texts(rich_manifest(manifest))


def test_an_embedding_without_labels(manifest, tmp_path):
    changed = manifest | {
        "labels": None,
        "task": "embedding",
        "reference": None,
        "files": [f | {"metric": None} for f in manifest["files"] if f["format"] == "onnx"],
        "failed": [{"file": "x.tflite", "reason": "it departs"}],
    }
    (tmp_path / "labels.txt").write_text("stale\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "ios_litert.swift").write_text("stale")
    documents.write(tmp_path, changed)
    assert not (tmp_path / "labels.txt").exists()
    names = {p.name for p in (tmp_path / "samples").iterdir()}
    assert names == {"python_onnxruntime.py", "onnxruntime.cc"}
    card = (tmp_path / "README.md").read_text()
    assert "x.tflite: it departs" in card and "No accuracy was measured" in card
    assert json.loads((tmp_path / "manifest.json").read_text()) == changed


def test_a_label_of_two_lines_is_refused(manifest, tmp_path):
    with pytest.raises(InputError, match="Label 1"):
        documents.write(tmp_path, manifest | {"labels": ["a", "b\nc", "d"]})
    assert not list(tmp_path.iterdir())


def test_table_lines_up(manifest):
    lines = documents.files_table(manifest).splitlines()[:8]
    assert len({len(line) for line in lines}) == 1
    assert np.all([line.count("|") == lines[0].count("|") for line in lines])
