"""The readers of files that others made: good files for each, and how they are read.

A target writes good files into a folder; then one of them is replaced by a spoiled one, and all is
read. Whatever then happens must be a good result, which is looked at, or an InputError.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tiffin.export.errors import InputError


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader, or several of the same files.

    Attributes:
        name: of it.
        write: writes good files into an empty folder, and returns those that may be spoiled, by
            their paths in it, each with its kind for `spoil`.
        read: reads the folder, and checks what it gets; the second argument is the file's path.
        native: whether foreign machine code goes through the bytes, so that a fault ends the
            process.
        writes: whether reading leaves files in the folder.
        examples: tried by default.
    """

    name: str
    write: Callable[[Path], dict[str, str]]
    read: Callable[[Path, Path], None]
    native: bool = False
    writes: bool = False
    examples: int = 40


TARGETS: dict[str, Target] = {}


def _target(write: Callable[[Path], dict[str, str]], **options):
    def register(read):
        name = read.__name__.removeprefix("_")
        TARGETS[name] = Target(name, write, read, **options)
        return read

    return register


class Folder:
    """Good files of a target, of which one at a time is replaced.

    Args:
        target: one of `TARGETS`.
        place: an empty folder to work in.
    """

    def __init__(self, target: Target, place: Path):
        self.target, self.good, self.work = target, place / "good", place / "work"
        self.good.mkdir()
        kinds = target.write(self.good)
        self.files = [(name, kind, (self.good / name).read_bytes()) for name, kind in kinds.items()]

    def read(self, index: int, content: bytes) -> None:
        """Read the folder with other content in one of its files.

        Raises:
            InputError: the reader refuses it.
            Exception: whatever should not happen.
        """
        if self.target.writes or not self.work.exists():
            shutil.rmtree(self.work, ignore_errors=True)
            shutil.copytree(self.good, self.work)
        name, _, good = self.files[index]
        path = self.work / name
        path.write_bytes(content)
        # As `cli.run` sets it.
        said = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
        try:
            with contextlib.redirect_stdout(said):
                self.target.read(self.work, path)
        finally:
            path.write_bytes(good)


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# ---------------------------------------------------------------- pictures and videos


def _write_images(folder: Path) -> dict[str, str]:
    whole = Image.fromarray(_noise(9, 14, 3) // 4)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    whole.save(folder / "a.jpg", exif=exif, quality=70)
    whole.save(folder / "progressive.jpg", progressive=True, comment=b"said")
    whole.convert("CMYK").save(folder / "cmyk.jpg")
    whole.save(folder / "a.png", exif=exif, dpi=(72, 72))
    whole.quantize(5).save(folder / "palette.png", transparency=2)
    Image.fromarray(_noise(9, 14).astype(np.uint16) * 200).save(folder / "grey16.png")
    whole.convert("LA").save(folder / "alpha.png")
    frames = [Image.fromarray(_noise(8, 8, seed=i)) for i in range(3)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    whole.save(folder / "a.bmp")
    whole.quantize(5).save(folder / "palette.bmp")
    whole.save(folder / "a.webp", exif=exif)
    whole.save(folder / "lossless.webp", lossless=True)
    whole.save(folder / "a.ppm")
    whole.convert("L").save(folder / "a.pgm")
    (folder / "plain.pgm").write_text("P2\n# said\n3 2\n255\n0 1 2 3 4 255\n")
    for kind in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        whole.save(folder / f"{kind}.tiff", compression=kind)
    Image.fromarray(_noise(9, 14).astype(np.float32)).save(folder / "float.tif")
    names = sorted(path.name for path in folder.iterdir())
    return {name: "png" if name.endswith("png") else "bytes" for name in names}


@_target(_write_images, native=True, examples=60)
def image(folder: Path, path: Path) -> None:
    from tiffin.export.images import image_size, load_image

    small = load_image(path, (6, 5))
    assert small.shape == (6, 5, 3) and small.dtype == np.uint8
    whole = load_image(path)
    assert whole.ndim == 3 and whole.shape[2] == 3 and whole.dtype == np.uint8
    assert image_size(path) == whole.shape[:2]


def _write_videos(folder: Path) -> dict[str, str]:
    import cv2

    codecs = {"a.mp4": "mp4v", "a.avi": "MJPG", "b.avi": "XVID", "a.webm": "VP80"}
    for name, codec in codecs.items():
        code = cv2.VideoWriter_fourcc(*codec)
        writer = cv2.VideoWriter(str(folder / name), cv2.CAP_FFMPEG, code, 10, (32, 24))
        for i in range(4):
            writer.write(_noise(24, 32, 3, seed=i))
        writer.release()
    names = sorted(path.name for path in folder.iterdir() if path.stat().st_size)
    return dict.fromkeys(names, "bytes")


@_target(_write_videos, native=True, examples=10)
def video(folder: Path, path: Path) -> None:
    from tiffin.export.videos import Video

    film = Video(path)
    assert 0 < film.rate < math.inf and film.count >= 0
    for i, frame in enumerate(film):
        assert frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8
        if i > 20:
            break


# ---------------------------------------------------------------- boxes


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_noise(20, 30, 3)).save(path)


def _annotated(folder: Path) -> None:
    from tiffin.recipes.engine import annotations

    problems = annotations.Problems()
    kind, parts, classes = annotations.read(folder, problems)
    assert kind and (classes is None or all(isinstance(name, str) for name in classes))
    for picture in (picture for part in parts.values() for picture in part):
        assert picture.path.resolve().is_relative_to(folder.resolve())
        assert len(picture.boxes) == len(picture.names) == len(picture.difficult)
        assert all(isinstance(name, str) for name in picture.names)
        assert classes is None or set(picture.names) <= {*classes}
        assert np.isfinite(picture.boxes).all() and (picture.boxes >= 0).all()
        assert (picture.boxes[:, 2:] <= picture.size).all()
        assert (picture.boxes[:, 2:] > picture.boxes[:, :2]).all()
    str(problems)


def _write_voc(folder: Path) -> dict[str, str]:
    _picture(folder / "JPEGImages" / "a.png")
    _picture(folder / "JPEGImages" / "b.png")
    lines = ["<?xml version='1.0' encoding='utf-8'?>", "<annotation><filename>a.png</filename>"]
    lines += ["<size><width>30</width><height>20</height><depth>3</depth></size>"]
    for i, name in enumerate(("cat", "dög")):
        box = f"<xmin>{2 + i}</xmin><ymin>3</ymin><xmax>9.5</xmax><ymax>12</ymax>"
        inside = f"<name>{name}</name><difficult>{i}</difficult><bndbox>{box}</bndbox>"
        lines.append(f"<object>{inside}</object>")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "a.xml").write_text("\n".join([*lines, "</annotation>"]))
    (folder / "Annotations" / "b.xml").write_text("<annotation/>")
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a 1\nb -1\n")
    return {"Annotations/a.xml": "xml", "ImageSets/Main/train.txt": "text"}


@_target(_write_voc)
def voc(folder: Path, path: Path) -> None:
    _annotated(folder)


def _write_coco(folder: Path) -> dict[str, str]:
    _picture(folder / "images" / "a.png")
    _picture(folder / "images" / "b.png")
    named = {"a": 1, "b": 7}
    table = {
        "info": {"year": 2017},
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
        "images": [
            {"id": i, "file_name": f"{name}.png", "width": 30, "height": 20}
            for name, i in named.items()
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10.5, 7], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 90, "bbox": [0, 0, 30, 20], "iscrowd": 1},
            {"id": 3, "image_id": 1, "category_id": 90, "bbox": [5, 5, 90, 90]},
        ],
    }
    (folder / "instances.json").write_text(json.dumps(table))
    return {"instances.json": "json"}


@_target(_write_coco)
def coco(folder: Path, path: Path) -> None:
    _annotated(folder)


def _write_yolo(folder: Path) -> dict[str, str]:
    for top in ("a", "b"):
        _picture(folder / top / "images" / "train" / "a.png")
        place = folder / top / "labels" / "train" / "a.txt"
        place.parent.mkdir(parents=True)
        outline = "1 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4"
        place.write_text(f"0 0.5 0.5 0.25 0.5\n{outline}\n\n1 0.9 0.9 0.4 0.4\n")
    _picture(folder / "a" / "images" / "val" / "b.png")
    names = "names:\n  0: cat\n  1: dog\n"
    settings = f"path: .\ntrain: list.txt\nval: [images/val]\nnc: 2\n{names}"
    (folder / "a" / "data.yaml").write_text(settings)
    (folder / "a" / "list.txt").write_text("images/train/a.png\n")
    (folder / "b" / "classes.txt").write_text("cat\ndog\n")
    kinds = {"a/data.yaml": "yaml", "a/list.txt": "text", "b/classes.txt": "text"}
    return kinds | {"a/labels/train/a.txt": "text"}


@_target(_write_yolo)
def yolo(folder: Path, path: Path) -> None:
    _annotated(folder / path.relative_to(folder).parts[0])


# ---------------------------------------------------------------- weights


@functools.cache
def _small():
    """Return a small classifier with the layers that most files tell of."""
    import keras

    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv1")(image)
    x = keras.layers.BatchNormalization(name="bn1")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.ReLU(name="relu")(x))
    return keras.Model(image, keras.layers.Dense(3, name="logits")(x), name="small")


def _load(model, path: Path) -> None:
    from tiffin.recipes.engine import weights

    before = [(v.shape, v.dtype) for v in model.weights]
    weights.load_weights(model, path, {})
    assert before == [(v.shape, v.dtype) for v in model.weights]


@functools.cache
def _small_darknet():
    import keras

    image = keras.Input((8, 8, 3), name="image")
    x = image
    for i, filters in enumerate((4, 8)):
        x = keras.layers.Conv2D(filters, 3, use_bias=False, name=f"layer{i}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"layer{i}_bn")(x)
        x = keras.layers.LeakyReLU(0.1, name=f"layer{i}_leaky")(x)
    ends = {
        "deltas": keras.layers.Conv2D(2 * 4, 1, name="head_deltas")(x),
        "logits": keras.layers.Conv2D(2 * (1 + 3), 1, name="head_logits")(x),
    }
    return keras.Model(image, ends, name="small_yolo")


def _write_darknet(folder: Path) -> dict[str, str]:
    count = 4 * (4 + 27) + 8 * (4 + 36) + 2 * (5 + 3) * (1 + 8)
    numbers = np.random.default_rng(0).random(count).astype("<f4").tobytes()
    (folder / "a.weights").write_bytes(struct.pack("<iiiq", 0, 2, 5, 1000) + numbers)
    (folder / "old.weights").write_bytes(struct.pack("<iiii", 0, 1, 0, 1000) + numbers)
    first = numbers[: 4 * 4 * (4 + 27)]
    (folder / "a.conv.1").write_bytes(struct.pack("<iiiq", 0, 2, 5, 1000) + first)
    return dict.fromkeys(("a.weights", "old.weights", "a.conv.1"), "bytes")


@_target(_write_darknet)
def darknet(folder: Path, path: Path) -> None:
    _load(_small_darknet(), path)


def _state() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"conv1.weight": (4, 3, 3, 3), "logits.weight": (3, 4), "logits.bias": (3,)}
    shapes |= {f"bn1.{n}": (4,) for n in ("weight", "bias", "running_mean", "running_var")}
    return {name: random.random(shape).astype("f4") for name, shape in shapes.items()}


def _write_safetensors(folder: Path) -> dict[str, str]:
    from safetensors.numpy import save_file

    save_file(_state(), folder / "a.safetensors", {"format": "pt"})
    save_file({k: v.astype("f2") for k, v in _state().items()}, folder / "half.safetensors")
    return dict.fromkeys(("a.safetensors", "half.safetensors"), "safetensors")


@functools.cache
def _collections() -> tuple:
    from tiffin.recipes.engine import registry

    found = (getattr(entry.load(), "WEIGHTS", {}) for entry in registry.recipes().values())
    return tuple(collection for table in found for collection in table.values())


@_target(_write_safetensors)
def safetensors(folder: Path, path: Path) -> None:
    from tiffin.recipes.engine import weights

    read = weights.read(path)
    for collection in _collections():  # whose rules go over the file's names
        weights.named(dataclasses.replace(read, collection=collection))
    _load(_small(), path)


def _write_torch(folder: Path) -> dict[str, str]:
    import torch

    state = {name: torch.from_numpy(array) for name, array in _state().items()}
    state["bn1.num_batches_tracked"] = torch.tensor(3)
    half = {f"module.{name}": v.to(torch.bfloat16) for name, v in state.items()}
    torch.save(state, folder / "a.pth")
    torch.save({"epoch": 3, "state_dict": half}, folder / "half.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return {"a.pth": "zip", "half.pth": "zip", "old.pth": "bytes"}


@_target(_write_torch)
def torch_file(folder: Path, path: Path) -> None:
    from tiffin.recipes.engine.torch_file import read_torch

    size = path.stat().st_size
    for array in read_torch(path).values():
        assert array.size <= size
        array.sum()  # touches every element
    _load(_small(), path)


def _write_hdf5(folder: Path) -> dict[str, str]:
    import h5py

    model = _small()
    model.save_weights(folder / "new.weights.h5")
    model.save(folder / "whole.h5")
    with h5py.File(folder / "plain.h5", "w") as file:
        layers = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            (group := file.create_group(layer.name)).attrs["weight_names"] = names
            for name, weight in zip(names, layer.weights):
                group.create_dataset(name, data=np.asarray(weight), compression="gzip")
    return dict.fromkeys(("new.weights.h5", "whole.h5", "plain.h5"), "bytes")


@_target(_write_hdf5, native=True)
def hdf5(folder: Path, path: Path) -> None:
    _load(_small(), path)


def _write_keras(folder: Path) -> dict[str, str]:
    import keras

    from tiffin.layers import ImageNormalization

    inputs = keras.Input((8, 8, 3), name="image")
    x = ImageNormalization((127.0,), (64.0,), name="normalization")(inputs)
    outputs = keras.layers.Dense(3, name="logits")(keras.layers.Flatten(name="flat")(x))
    _small().save(folder / "a.keras")
    keras.Model(inputs, outputs, name="other").save(folder / "b.keras")
    return dict.fromkeys(("a.keras", "b.keras"), "zip")


@_target(_write_keras, native=True, examples=15)
def keras_file(folder: Path, path: Path) -> None:
    from tiffin.export import runtime

    runner = runtime.load(path)
    assert runner.inputs and runner.outputs
    with contextlib.suppress(InputError):
        _load(_small(), path)


# ---------------------------------------------------------------- exports


def _onnx(inputs: dict, outputs: dict, nodes: list, constants: dict, path: Path, **properties):
    import onnx
    from onnx import helper, numpy_helper

    def ports(described: dict) -> list:
        return [helper.make_tensor_value_info(n, *about) for n, about in described.items()]

    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = [helper.make_node(kind, takes, gives, **more) for kind, takes, gives, more in nodes]
    graph = helper.make_graph(made, "graph", ports(inputs), ports(outputs), held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)


def _classifier(path: Path, **properties) -> None:
    random = np.random.default_rng(0)
    nodes = [
        ("Cast", ["image"], ["x"], {"to": 1}),
        ("ReduceMean", ["x"], ["means"], {"axes": [1, 2], "keepdims": 0}),
        ("MatMul", ["means", "w"], ["y"], {}),
        ("Softmax", ["y"], ["probabilities"], {}),
    ]
    _onnx(
        {"image": (2, ["batch", 8, 8, 3])},
        {"probabilities": (1, ["batch", 3])},
        nodes,
        {"w": random.random((3, 3)).astype("f4")},
        path,
        **properties,
    )


def _detector(path: Path, **properties) -> None:
    """Write a model that finds the same two things in every picture."""
    found = {
        "boxes": np.array([[[1, 1, 4, 5], [2, 2, 8, 8]]], "f4"),
        "scores": np.array([[0.9, 0.5]], "f4"),
        "classes": np.array([[2, 0]], "i4"),
        "count": np.array([2], "i4"),
    }
    nodes = [("Identity", [f"kept_{name}"], [name], {}) for name in found]
    outputs = {name: (6 if a.dtype.kind == "i" else 1, [*a.shape]) for name, a in found.items()}
    held = {f"kept_{name}": array for name, array in found.items()}
    _onnx({"image": (2, [1, 8, 8, 3])}, outputs, nodes, held, path, **properties)


_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c", ".", "\n"]


def _decoder(path: Path, size: int = len(_TOKENS)) -> None:
    random = np.random.default_rng(1)
    nodes = [
        ("Gather", ["e", "token"], ["x"], {}),
        ("Add", ["x", "h"], ["sum"], {}),
        ("Tanh", ["sum"], ["next_h"], {}),
        ("MatMul", ["next_h", "w"], ["logits"], {}),
    ]
    _onnx(
        {"token": (6, ["batch"]), "h": (1, ["batch", 4])},
        {"logits": (1, ["batch", size]), "next_h": (1, ["batch", 4])},
        nodes,
        {"e": random.random((size, 4)).astype("f4"), "w": random.random((4, size)).astype("f4")},
        path,
    )


def _encoder(path: Path) -> None:
    nodes = [("Cast", ["source"], ["x"], {"to": 1}), ("MatMul", ["x", "w"], ["h"], {})]
    held = {"w": np.random.default_rng(2).random((6, 4)).astype("f4")}
    _onnx({"source": (6, ["batch", 6])}, {"h": (1, ["batch", 4])}, nodes, held, path)


def _entry(path: Path, precision: str = "fp32") -> dict:
    content = path.read_bytes()
    described = {"file": path.name, "format": "onnx", "precision": precision, "verified": True}
    return described | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write_manifest(folder: Path) -> dict[str, str]:
    for name in ("classifier", "translator", "site"):
        (folder / name).mkdir()
    _classifier(first := folder / "classifier" / "a.onnx")
    _picture(shown := folder / "classifier" / "held_out" / "0.png")
    ports = {
        "inputs": [{"name": "image", "shape": ["batch", 8, 8, 3], "dtype": "uint8"}],
        "outputs": [{"name": "probabilities", "shape": ["batch", 3], "dtype": "float32"}],
    }
    manifest = {"format_version": 1, "name": "a", "task": "classification"}
    manifest["labels"] = ["x", "y", "ü"]
    manifest |= ports | {"files": [_entry(first)], "verification": {"threshold": 0.9}}
    manifest["pictures"] = [_entry(shown) | {"class": 1}]
    (folder / "classifier" / "manifest.json").write_text(json.dumps(manifest))
    halves = {part: folder / "translator" / f"{part}.onnx" for part in ("encoder", "decoder")}
    _encoder(halves["encoder"])
    _decoder(halves["decoder"])
    pair = {"format": "onnx", "precision": "fp32", **{k: p.name for k, p in halves.items()}}
    parts = {part: {"files": [_entry(path)]} for part, path in halves.items()}
    manifest = {"format_version": 1, "name": "t", "task": "translation", "labels": None}
    manifest |= {"parts": parts, "pairs": [pair], "examples": ["a b"]}
    manifest["files"] = [entry for part in parts.values() for entry in part["files"]]
    (folder / "translator" / "manifest.json").write_text(json.dumps(manifest))
    _write_pair_vocabulary(folder / "translator" / "vocabulary.json")
    (folder / "site" / "old.onnx").write_text("old")
    marker = {"format_version": 1, "files": ["old.onnx"]}
    (folder / "site" / "page.json").write_text(json.dumps(marker))
    names = ("classifier/manifest.json", "translator/manifest.json", "site/page.json")
    return dict.fromkeys(names, "json")


def _write_pair_vocabulary(path: Path) -> None:
    side = {"format_version": 1, "kind": "words", "tokens": _TOKENS}
    path.write_text(json.dumps({"format_version": 1, "source": side, "target": side}))


@_target(_write_manifest, writes=True)
def manifest(folder: Path, path: Path) -> None:
    from tiffin.export import page, pictures, similarity, translation

    before = _everything(folder)
    export = folder / "classifier" if path.name == "page.json" else path.parent
    with contextlib.suppress(InputError):
        page.write(export, folder / "site")
    changed = {p for p in before ^ _everything(folder) if not p[0].startswith("site/")}
    assert not changed, changed
    if path.parent.name == "classifier":
        pictures._older(path.parent)
        assert 0 <= similarity.find_threshold(path.parent / "a.onnx") <= 2
    if path.parent.name == "translator":
        translation.load(path.parent / "decoder.onnx").translate(["a b"], 2)


def _everything(folder: Path) -> set[tuple[str, int]]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths}


def _pieces() -> dict:
    from tiffin.recipes.engine.pair_data import make_vocabulary

    texts = ["a b c abc bca", "cab . ab", "bb aa c"] * 5
    return make_vocabulary("pieces", texts, 16).describe()


def _write_vocabulary(folder: Path) -> dict[str, str]:
    for name in ("characters", "words", "pieces", "pair", "labels"):
        (folder / name).mkdir()
    described = {"kind": "characters", "tokens": [*"ab c\n"]}, {"kind": "words", "tokens": _TOKENS}
    described = {one["kind"]: {"format_version": 1, **one} for one in described}
    described["pieces"] = _pieces()
    for name, one in described.items():
        (folder / name / "vocabulary.json").write_text(json.dumps(one))
        _decoder(folder / name / "step.onnx", len(one["tokens"]))
    _write_pair_vocabulary(folder / "pair" / "vocabulary.json")
    _encoder(folder / "pair" / "encoder.onnx")
    _decoder(folder / "pair" / "decoder.onnx")
    pairs = [{"encoder": "encoder.onnx", "decoder": "decoder.onnx"}]
    (folder / "pair" / "manifest.json").write_text(json.dumps({"pairs": pairs}))
    _classifier(folder / "labels" / "a.onnx")
    _picture(folder / "labels" / "a.png")
    (folder / "labels" / "labels.txt").write_text("red\ngrün\nblue\n")
    names = [f"{name}/vocabulary.json" for name in (*described, "pair")]
    kinds = {name: "pieces" if name.startswith("pieces") else "json" for name in names}
    return kinds | {"labels/labels.txt": "text"}


@_target(_write_vocabulary, native=True)
def vocabulary(folder: Path, path: Path) -> None:
    from tiffin.export import cli, text

    if path.name == "labels.txt":
        cli.Predict(path.parent / "a.onnx", (path.parent / "a.png",)).run()
        return
    for found in text.read_vocabularies(path).values():
        with contextlib.suppress(InputError):
            found.encode("ab c. d\n")
        found.decode(range(len(found)))
    if path.parent.name == "pair":
        cli.Translate(path.parent / "decoder.onnx", ("a b",), beam=2).run()
    else:
        cli.Generate(path.parent / "step.onnx", prompt="a", length=4, seed=0).run()


def _write_onnx(folder: Path) -> dict[str, str]:
    labels = json.dumps(["red", "grün", "blue"])
    _classifier(folder / "a.onnx", labels=labels, name="a")
    _detector(folder / "b.onnx", labels=labels)
    _picture(folder / "a.png")
    return {"a.onnx": "bytes", "b.onnx": "bytes"}


def _predict(folder: Path, path: Path) -> None:
    from tiffin.export import cli

    cli.Predict(path, (folder / "a.png",), output=folder / "drawn").run()


@_target(_write_onnx, native=True, writes=True)
def onnx_file(folder: Path, path: Path) -> None:
    _predict(folder, path)


def _write_tflite(folder: Path) -> dict[str, str]:
    import tensorflow as tf

    from tiffin.export import metadata

    random = np.random.default_rng(0)
    weights = tf.Variable(random.normal(size=(3, 3)).astype("f4"))

    def call(image):
        means = tf.reduce_mean(tf.cast(image, tf.float32), (1, 2))
        return {"probabilities": tf.nn.softmax(means @ weights)}

    module = tf.Module()
    module.weights = weights
    spec = tf.TensorSpec((1, 8, 8, 3), tf.uint8, name="image")
    module.call = tf.function(call, input_signature=[spec])
    saved = str(folder / "saved")
    tf.saved_model.save(module, saved, module.call.get_concrete_function())
    model = tf.lite.TFLiteConverter.from_saved_model(saved).convert()
    shutil.rmtree(saved)
    (folder / "plain.tflite").write_bytes(model)
    image = {"name": "image", "shape": ["batch", 8, 8, 3], "dtype": "uint8", "layout": "NHWC"}
    described = metadata.add_tflite(
        model,
        name="a",
        description="Says a colour.",
        labels=["red", "grün", "blue"],
        inputs=[image | {"color": "RGB", "range": [0, 255]}],
        outputs=[{"name": "probabilities", "shape": ["batch", 3], "dtype": "float32"}],
    )
    (folder / "a.tflite").write_bytes(described)
    _picture(folder / "a.png")
    return {"a.tflite": "bytes", "plain.tflite": "bytes"}


@_target(_write_tflite, native=True, writes=True)
def tflite_file(folder: Path, path: Path) -> None:
    _predict(folder, path)


# ---------------------------------------------------------------- texts, and what runs leave


def _write_texts(folder: Path) -> dict[str, str]:
    text = "It was the best of times,\nit was the worst of times <unk> .\nÉté, naïve.\n" * 6
    (folder / "a.txt").write_text(text)
    (folder / "a.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "noise.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "a.en").write_text("".join(f"line {i} says {i * i}\n" for i in range(30)))
    (folder / "a.de").write_text("".join(f"Zeile {i} sagt {i * i}\n" for i in range(30)))
    (folder / "pairs.txt").write_text("2 2\nanna 1 2\nbob 1 2\nanna 1 bob 2\nbob 1 anna 2\n")
    kinds = dict.fromkeys(("a.txt", "a.en", "a.de", "pairs.txt"), "text")
    return kinds | {"a.txt.gz": "gzip", "noise.gz": "bytes"}


@_target(_write_texts, native=True)
def texts(folder: Path, path: Path) -> None:
    from tiffin.recipes.engine import pair_data, text_data, verification

    if path.name == "pairs.txt":
        names = [f"{name}/{name}_{i:04}.jpg" for name in ("anna", "bob") for i in (1, 2)]
        pairs = verification.read_pairs(path, names)
        assert len(pairs.same) and max(*pairs.left, *pairs.right) < len(names)
    elif path.name in ("a.en", "a.de"):
        for kind in ("words", "characters", "pieces"):
            with contextlib.suppress(InputError):
                both = str(folder / "a.en"), str(folder / "a.de")
                data = pair_data.load_pairs(*both, ("en", "de"), "utf-8", kind, 40, None, 0)
                data.train.batch(np.arange(len(data.train)))
    else:
        for kind in ("words", "characters"):
            with contextlib.suppress(InputError):
                data = text_data.load_text(str(path), "utf-8", 2, 5, kind, 50)
                assert len(data.train) and data.train.tokens.max() < len(data.vocabulary)


def _trainable(folder: Path):
    from tiffin.recipes.engine.checkpoints import Checkpoint

    model = _small()
    if not model.compiled:
        model.compile("adam", "mse")
    checkpoint = Checkpoint(folder, {}, "val_accuracy", "max")
    checkpoint.set_model(model)
    return checkpoint


def _write_run(folder: Path) -> dict[str, str]:
    from tiffin.export import similarity
    from tiffin.recipes.classification import lenet
    from tiffin.recipes.engine import report, training

    config = lenet.Config(epochs=3, augment=("noise:4",), data_dir=folder)
    stored = training.to_json(config) | {"command": "tiffin"}
    (folder / "config.json").write_text(json.dumps(stored))
    checkpoint = _trainable(folder)
    checkpoint.model.optimizer.build(checkpoint.model.trainable_variables)
    checkpoint.rows = [{"epoch": 1, "loss": 0.5, "val_accuracy": 0.5, "seconds": 1.0}]
    checkpoint._save_last()
    checkpoint._save_history()
    points = np.random.default_rng(0).random((6, 4)).astype("f4")
    report.save_arrays(folder / "embeddings.npz", {"0001": points})
    (folder / "model.onnx").write_text("model")
    people = folder / "people.npz"
    similarity.save_gallery(people, ["anna", "bob"], points[:2], folder / "model.onnx")
    kinds = {"config.json": "json", "last.weights.h5": "bytes", "history.csv": "text"}
    return kinds | {"embeddings.npz": "zip", "people.npz": "zip"}


@_target(_write_run, native=True, examples=25)
def run_folder(folder: Path, path: Path) -> None:
    from tiffin.export import similarity
    from tiffin.recipes.classification import lenet
    from tiffin.recipes.engine import report, training

    match path.name:
        case "config.json":
            with contextlib.redirect_stderr(io.StringIO()):
                config = training.parse(lenet.Config, ["--resume", "--output", str(folder)])
            assert config.resume and config.output == folder
        case "last.weights.h5":
            checkpoint = _trainable(folder)
            assert checkpoint.restore(path) == len(checkpoint.rows)
            checkpoint.best()
        case "history.csv":
            report.read_history(folder)
        case "people.npz":
            names, known = similarity.load_gallery(path, folder / "model.onnx")
            assert len(names) == len(known) and known.dtype == np.float64
