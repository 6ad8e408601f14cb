"""Boxes drawn by people, from the files they keep them in: Pascal VOC, COCO json, YOLO txt.

What a file says is not trusted: paths must stay inside its folder, XML may not define entities,
a box is cut at the border of the picture and counted, and one that is no box is dropped and named.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError, optional
from tiffin.export.images import image_size
from tiffin.recipes.engine.data import SPLITS, is_image

_SHOWN = 5  # problems of one kind that are told one by one


@dataclasses.dataclass
class Picture:
    """An image file and what is drawn in it.

    Attributes:
        path: the file.
        size: `(height, width)` in pixels, as the file itself has it.
        boxes: float32 `[n, 4]`, corners in pixels.
        names: the class of each.
        difficult: bool `[n]`: not counted in evaluation (VOC's `difficult`, COCO's `iscrowd`).
    """

    path: Path
    size: tuple[int, int]
    boxes: np.ndarray
    names: list[str]
    difficult: np.ndarray


class Problems:
    """What was wrong in annotations: the first of each kind are told one by one, all are counted.

    Attributes:
        counts: how often each kind of problem was met.
    """

    def __init__(self):
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, kind: str, what: str) -> None:
        """Count a problem, and print it if few of its kind came before."""
        self.counts[kind] += 1
        if self.counts[kind] <= _SHOWN:
            print(f"{kind}: {what}")
        elif self.counts[kind] == _SHOWN + 1:
            print(f"{kind}: and more, counted in the summary")

    def __str__(self) -> str:
        return ", ".join(f"{kind.lower()}: {count}" for kind, count in self.counts.items() if count)


def read(root: Path, problems: Problems) -> tuple[str, dict[str, list[Picture]], list[str] | None]:
    """Recognise and read a folder of annotated pictures.

    Args:
        root: a folder in Pascal VOC form (`Annotations/*.xml`), in COCO form (a json file with
            `images`, `annotations`, `categories`) or in YOLO form (`labels/*.txt` beside `images/`,
            with `data.yaml` or `classes.txt`); or a COCO json file.
        problems: where to count what is wrong.

    Returns:
        (what it is, the pictures of each split, the class names if the files list them). Without
        split lists all is in `train`.

    Raises:
        InputError: no such form, or a file that cannot be read at all.
    """
    if root.is_file():
        if root.suffix.lower() != ".json":
            raise InputError(f"{root} is a file; --data takes a folder, or a COCO .json file.")
        return ("COCO json", *_coco({root: _coco_table(root)}, root.parent, problems))
    if (root / "Annotations").is_dir():
        return "Pascal VOC folder", _voc(root, problems), None
    if tables := _coco_tables(root):
        return ("COCO folder", *_coco(tables, root, problems))
    if (root / "data.yaml").exists() or any(root.rglob("labels")):
        return ("YOLO folder", *_yolo(root, problems))
    raise InputError(
        f"{root} holds no annotated pictures: neither a folder Annotations with .xml files (Pascal "
        "VOC), nor a .json file with images, annotations and categories (COCO), nor folders images "
        "and labels with data.yaml or classes.txt (YOLO)."
    )


def inside(root: Path, name: str) -> Path | None:
    """Return the path `name` names under `root`; None if it leads out of it, or is no path."""
    try:
        path = (root / name).resolve()
        path.exists()  # asks the system whether a name is too long
    except (OSError, RuntimeError, ValueError):
        return None
    return path if path.is_relative_to(root.resolve()) else None


def _picture(
    path: Path,
    boxes: Sequence[Sequence[float]],
    names: Sequence[str],
    difficult: Sequence[bool],
    problems: Problems,
    relative: bool = False,
) -> Picture | None:
    """Return a picture with the boxes that are boxes, cut at its border; None if unreadable."""
    try:
        size = image_size(path)
    except InputError as error:
        problems.add("Picture skipped", str(error))
        return None
    found = np.array(boxes, np.float64).reshape(-1, 4)
    height, width = size
    scale = np.array([height, width, height, width], np.float64)
    found = found * scale if relative else found
    kept = np.isfinite(found).all(1)
    for i in np.flatnonzero(~kept):
        problems.add("Box dropped", f"'{names[i]}' in {path} has coordinates that are no numbers")
    cut = np.minimum(np.maximum(np.where(kept[:, None], found, 0), 0), scale)
    flat = kept & ((found[:, 2:] <= found[:, :2]).any(1))
    gone = kept & ~flat & ((cut[:, 2:] - cut[:, :2]) < 1e-3).any(1)
    for which, what in ((flat, "is inverted or has no area"), (gone, "lies outside the picture")):
        for i in np.flatnonzero(which):
            at = ", ".join(f"{v:g}" for v in found[i])
            problems.add("Box dropped", f"'{names[i]}' in {path} {what} (y1, x1, y2, x2: {at})")
    kept &= ~flat & ~gone
    # A pixel over is rounding, or another idea of where counting starts.
    over = kept & (np.abs(cut - found).max(1, initial=0) > 1)
    problems.counts["Boxes cut at the border"] += int(over.sum())
    return Picture(
        path,
        size,
        cut[kept].astype(np.float32),
        [name for name, good in zip(names, kept, strict=True) if good],
        np.array(difficult, bool).reshape(-1)[kept],
    )


def _voc(root: Path, problems: Problems) -> dict[str, list[Picture]]:
    lists = root / "ImageSets" / "Main"
    wanted = {"train": ("train", "trainval"), "validation": ("val",), "test": ("test",)}
    parts: dict[str, list[str]] = {}
    for part, files in wanted.items():
        found = next((lists / f"{n}.txt" for n in files if (lists / f"{n}.txt").exists()), None)
        if found:
            lines = _text(found).splitlines()
            parts[part] = [line.split()[0] for line in lines if line.strip()]
    if "train" not in parts:
        if parts:
            raise InputError(f"{lists} has no train.txt or trainval.txt: add one, or remove it.")
        parts["train"] = [p.stem for p in sorted((root / "Annotations").glob("*.xml"))]
    if not parts["train"]:
        raise InputError(f"{root / 'Annotations'} has no .xml file.")
    pictures = {}
    images = {p.stem: p for p in sorted((root / "JPEGImages").glob("*")) if is_image(p)}
    for part, names in parts.items():
        found = (_voc_picture(root, name, images, problems) for name in names)
        pictures[part] = [picture for picture in found if picture]
    return pictures


def _voc_picture(root: Path, name: str, images: dict, problems: Problems) -> Picture | None:
    xml = optional("defusedxml.ElementTree", "A folder in Pascal VOC form")
    file = inside(root / "Annotations", f"{name}.xml")
    if file is None:
        problems.add("Picture skipped", f"'{name}' leads out of {root / 'Annotations'}")
        return None
    if name not in images:
        problems.add("Picture skipped", f"{root / 'JPEGImages'} has no picture of {file.name}")
        return None
    try:
        tree = xml.parse(file, forbid_dtd=True).getroot()
    except (OSError, xml.ParseError, LookupError, ValueError) as error:  # also its encoding's
        # A picture without a file is not one without objects: somebody forgot it.
        problems.add("Picture skipped", f"{file} cannot be read ({type(error).__name__}: {error})")
        return None
    boxes, names, difficult = [], [], []
    for thing in tree.iter("object"):
        kind, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
        corners = [_number(box, tag) for tag in ("ymin", "xmin", "ymax", "xmax")]
        if not kind:
            problems.add("Box dropped", f"an object in {file} has no name")
            continue
        boxes.append(corners)
        names.append(kind)
        difficult.append((thing.findtext("difficult") or "0").strip() == "1")
    if boxes:
        # VOC counts pixels from 1 and includes the last one (its development kit, section 6).
        boxes = np.array(boxes) - [1, 1, 0, 0]
    return _picture(images[name], boxes, names, difficult, problems)


def _number(element, tag: str) -> float:
    try:
        return float(element.findtext(tag))
    except (TypeError, ValueError, AttributeError):
        return math.nan


def _coco_tables(root: Path) -> dict[Path, dict]:
    """Return the COCO tables under a folder; of COCO's own set those of boxes alone."""
    found = {}
    for path in sorted(root.rglob("*.json")):
        try:
            table = _coco_table(path)
        except InputError:
            continue  # whatever it is, another file tells what the folder holds
        if {"images", "categories"} <= set(table):
            found[path] = table
    boxes = {path: table for path, table in found.items() if path.stem.startswith("instances")}
    return boxes or found


def _coco_table(path: Path) -> dict:
    try:
        table = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no COCO file ({error}).") from error
    return table if isinstance(table, dict) else {}


def _coco(tables: dict[Path, dict], root: Path, problems: Problems):
    parts: dict[str, list[Picture]] = {}
    classes: list[str] = []
    for path, table in tables.items():
        words = f"{path.parent.name if path.parent != root else ''} {path.stem}".lower()
        # Without dev, which is in device, too.
        known = (part for word, part in SPLITS.items() if word in words and word != "dev")
        part = next(known, "train") if len(tables) > 1 else "train"
        found, names = _coco_pictures(path, table, root, problems)
        parts.setdefault(part, []).extend(found)
        classes += [name for name in names if name not in classes]
    if "train" not in parts:
        raise InputError(f"{root} has no .json file to train on: put train into the name of one.")
    return parts, classes


def _coco_pictures(path: Path, table: dict, root: Path, problems: Problems):
    try:
        names = {c["id"]: str(c["name"]) for c in table["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in table["images"]}
        annotations = table.get("annotations", [])
        by_image = collections.defaultdict(list)
        for item in annotations:
            by_image[item["image_id"]].append(item)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no COCO file ({error!r}).") from error
    tops = [path.parent, root, *(p for p in sorted(root.iterdir()) if p.is_dir())]
    tops += [top / "images" for top in tops]
    pictures = []
    for number, name in files.items():
        places = [place for top in tops if (place := inside(top, name))]
        image = next((place for place in places if place.is_file()), None)
        if image is None or not image.is_relative_to(root.resolve()):
            why = "is not under" if places else "leads out of"
            problems.add("Picture skipped", f"'{name}' in {path} {why} {root}")
            continue
        boxes, kinds, difficult = [], [], []
        for item in by_image[number]:
            kind = item.get("category_id")
            if not isinstance(kind, int | float | str):
                kind = f"of type {type(kind).__name__}"
            if kind not in names:
                problems.add("Box dropped", f"category {kind} of {name} is not listed in {path}")
                continue
            try:
                x, y, w, h = (float(v) for v in item["bbox"])
            except (KeyError, OverflowError, TypeError, ValueError):
                x = y = w = h = math.nan
            boxes.append([y, x, y + h, x + w])
            kinds.append(names[kind])
            difficult.append(bool(item.get("iscrowd", 0)))
        pictures.append(_picture(image, boxes, kinds, difficult, problems))
    return [p for p in pictures if p], list(names.values())


def _yolo(root: Path, problems: Problems):
    settings, classes = {}, None
    if (root / "data.yaml").exists():
        yaml = optional("yaml", "A folder in YOLO form with data.yaml")
        text = _text(root / "data.yaml")
        try:
            # By these a small file can unfold into any amount of memory.
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
                raise yaml.YAMLError("it has aliases, *name, which are not read")
            settings = yaml.safe_load(text) or {}
            names = settings.get("names")
            listed = [names[i] for i in sorted(names)] if isinstance(names, dict) else names
            classes = [str(name) for name in listed] if listed else None
        except Exception as error:
            # Of a date, a number or text that is none, PyYAML raises Python's own.
            raise InputError(f"{root / 'data.yaml'} cannot be read ({error}).") from error
    for file in ("classes.txt", "obj.names", "labels/classes.txt"):
        if classes is None and (root / file).exists():
            lines = _text(root / file).splitlines()
            classes = [line.strip() for line in lines if line.strip()]
    if not classes:
        raise InputError(f"{root} names no classes: add data.yaml with `names`, or classes.txt.")
    parts: dict[str, list[Picture]] = {}
    for part, images in _yolo_images(root, settings, problems).items():
        found = (_yolo_picture(root, image, classes, problems) for image in images)
        parts[part] = [picture for picture in found if picture]
    return parts, classes


def _yolo_images(root: Path, settings: dict, problems: Problems) -> dict[str, list[Path]]:
    """Return the image files of each split: as data.yaml has them, else by the folders' names."""
    found: dict[str, list[Path]] = {}
    base = inside(root, str(settings.get("path") or "."))
    if base is None or not base.is_dir():
        base = root  # it names the folder on the machine of whoever made the file
    for key in ("train", "val", "test"):
        entries = settings.get(key) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            # Roboflow writes ../train/images for a folder beside the file.
            tried = [inside(root, str(entry).removeprefix("../")), inside(base, str(entry))]
            place = next((p for p in tried if p and p.exists()), None)
            if place is None:
                problems.add("Split skipped", f"{key}: {entry} of data.yaml is not under {root}")
                continue
            listed = (
                [p for line in _text(place).splitlines() if (p := inside(root, line.strip()))]
                if place.is_file()
                else sorted(place.rglob("*"))
            )
            found.setdefault(SPLITS[key], []).extend(p for p in listed if is_image(p))
    if not found:
        for path in sorted(p for p in root.rglob("*") if is_image(p)):
            words = path.relative_to(root).parent.parts
            part = next((SPLITS[w.lower()] for w in words if w.lower() in SPLITS), "train")
            found.setdefault(part, []).append(path)
    if not found.get("train"):
        raise InputError(f"{root} has no pictures to train on: put them into images/train.")
    return found


def _yolo_picture(root: Path, image: Path, classes: list[str], problems: Problems):
    relative = image.resolve().relative_to(root.resolve())
    # The last folder called images becomes labels.
    words = list(relative.parts)
    places = [i for i, word in enumerate(words[:-1]) if word == "images"]
    if places:
        words[places[-1]] = "labels"
    label = (root / Path(*words)).with_suffix(".txt")
    boxes, names = [], []
    # No file: nothing to see in the picture, as everywhere where YOLO is trained.
    lines = _text(label).splitlines() if label.exists() else []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            kind, *values = [float(word) for word in words]
            name = classes[int(kind)] if kind >= 0 else classes[len(classes)]
        except (ValueError, IndexError, OverflowError):
            problems.add(
                "Box dropped",
                f"{label}, line {number}: '{line[:60]}' is no class from 0 to {len(classes) - 1} "
                "and numbers",
            )
            continue
        if len(values) == 4:
            x, y, w, h = values
            box = [y - h / 2, x - w / 2, y + h / 2, x + w / 2]
        elif len(values) >= 6 and len(values) % 2 == 0:  # an outline
            box = [min(values[1::2]), min(values[::2]), max(values[1::2]), max(values[::2])]
        else:
            problems.add("Box dropped", f"{label}, line {number}: {len(values)} numbers, not 4")
            continue
        boxes.append(box)
        names.append(name)
    return _picture(image, boxes, names, [False] * len(names), problems, relative=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
