"""Annotations in three forms, and what hostile ones end in: a message or a counted skip."""

import json

import numpy as np
import pytest
from PIL import Image

from tiffin.export.errors import InputError
from tiffin.recipes.engine import annotations, box_data

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"
TAGS = ("xmin", "ymin", "xmax", "ymax")


def thing(name="cat", corners=(1, 1, 10, 20), difficult=0):
    box = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(TAGS, corners, strict=True))
    return OBJECT.format(name, difficult, box)


def picture(path, height=40, width=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 99, np.uint8)).save(path)


def voc(root, files, lists=None):
    """Write a VOC folder: XML text by name, names by split."""
    (root / "Annotations").mkdir(parents=True)
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        picture(root / "JPEGImages" / f"{name}.png")
    for part, names in (lists or {}).items():
        place = root / "ImageSets" / "Main" / f"{part}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n".join(names))
    return root


def read(root):
    problems = annotations.Problems()
    _, parts, classes = annotations.read(root, problems)
    return parts, problems.counts, classes


def test_voc_counts_from_one_and_knows_difficult_objects(tmp_path):
    whole = f"<annotation>{thing()}{thing('dog', (1, 1, 60, 40), 1)}</annotation>"
    voc(tmp_path, {"a": whole, "b": "<annotation/>", "c": f"<a>{thing()}</a>"},
        {"train": ["a 1", "b -1"], "test": ["c"]})  # fmt: skip
    parts, counts, _ = read(tmp_path)
    first, empty = parts["train"]
    assert first.boxes.tolist() == [[0, 0, 20, 10], [0, 0, 40, 60]] and first.size == (40, 60)
    assert first.names == ["cat", "dog"] and first.difficult.tolist() == [False, True]
    assert len(empty.names) == 0 and len(parts["test"]) == 1 and not +counts


@pytest.mark.parametrize(
    "corners, dropped, cut",
    [
        ((1, 1, 90, 20), 0, 1),  # over the border
        ((-20, 5, 10, 20), 0, 1),
        ((10, 10, 5, 20), 1, 0),  # inverted
        ((10, 10, 9, 30), 1, 0),  # no area: from 9 to 9
        ((70, 5, 90, 20), 1, 0),  # all of it outside
        (("nan", 5, 9, 20), 1, 0),
        (("1e999", 5, 9, 20), 1, 0),
        (("ten", 5, 9, 20), 1, 0),
    ],
)
def test_boxes_that_are_none_are_dropped_and_named(tmp_path, capsys, corners, dropped, cut):
    voc(tmp_path, {"a": f"<annotation>{thing()}{thing('dog', corners)}</annotation>"})
    parts, counts, _ = read(tmp_path)
    assert len(parts["train"][0].names) == 2 - dropped
    assert counts["Box dropped"] == dropped and counts["Boxes cut at the border"] == cut
    said = capsys.readouterr().out
    assert ("'dog' in" in said and "a.png" in said) == bool(dropped)
    boxes = parts["train"][0].boxes
    assert (boxes >= 0).all() and (boxes[:, 2:] <= [40, 60]).all()


BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;">]><annotation>&c;</annotation>'
)
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    "text", [BOMB, FILE, "<annotation><object>", "", "\0\1"], ids=["bomb", "file", *"abc"]
)
def test_hostile_xml_is_skipped_and_named(tmp_path, capsys, text):
    voc(tmp_path, {"a": f"<annotation>{thing()}</annotation>", "b": text})
    parts, counts, _ = read(tmp_path)
    assert len(parts["train"]) == 1 and counts["Picture skipped"] == 1
    assert "b.xml cannot be read" in capsys.readouterr().out


def test_missing_and_broken_pictures_and_ways_out_are_skipped(tmp_path, capsys):
    one = f"<annotation>{thing()}</annotation>"
    names = ["a", "b", "c", "../../outside", "gone"]
    voc(tmp_path / "set", {n: one for n in "abc"}, {"train": names})
    (tmp_path / "outside.xml").write_text(one)
    (tmp_path / "set" / "JPEGImages" / "b.png").unlink()
    (tmp_path / "set" / "JPEGImages" / "c.png").write_bytes(b"no picture")
    parts, counts, _ = read(tmp_path / "set")
    assert [p.path.name for p in parts["train"]] == ["a.png"]
    assert counts["Picture skipped"] == 4
    said = capsys.readouterr().out
    assert "leads out of" in said and "no picture of b.xml" in said and "c.png" in said


def test_the_file_says_how_large_it_is_not_the_annotation(tmp_path):
    lie = f"<annotation><size><width>6</width></size>{thing(corners=(1, 1, 60, 40))}</annotation>"
    voc(tmp_path, {"a": lie})
    parts, counts, _ = read(tmp_path)
    assert parts["train"][0].boxes.tolist() == [[0, 0, 40, 60]] and not +counts


def coco(root, boxes, name="a.png", **more):
    table = {
        "images": [{"id": 7, "file_name": name}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 9, "bbox": box, "id": i} for i, box in enumerate(boxes)
        ],
    } | more
    root.mkdir(parents=True, exist_ok=True)
    (root / "instances_train.json").write_text(json.dumps(table))
    return root


def test_coco_has_corners_and_sides_and_crowds(tmp_path):
    crowd = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1}
    usual = {"image_id": 7, "category_id": 9, "bbox": [5, 10, 20, 30]}
    coco(tmp_path / "annotations", [], annotations=[usual, crowd])
    picture(tmp_path / "images" / "a.png")
    for where in (tmp_path, tmp_path / "annotations" / "instances_train.json"):
        if where.is_file():
            picture(tmp_path / "annotations" / "a.png")
        parts, _, classes = read(where)
        (only,) = parts["train"]
        assert only.boxes.tolist() == [[10, 5, 40, 25], [0, 0, 40, 60]]
        assert only.difficult.tolist() == [False, True] and classes == ["cat", "dog"]


def test_coco_names_say_which_split_a_file_is_and_the_folders_own_does_not(tmp_path):
    root = coco(tmp_path / "latest_train_val", [[1, 1, 5, 5]])
    picture(root / "a.png")
    table = root / "instances_train.json"
    (root / "val2017.json").write_text(table.read_text())
    table.rename(root / "device.json")
    parts, _, _ = read(root)
    assert {part: len(found) for part, found in parts.items()} == {"train": 1, "validation": 1}
    (root / "device.json").rename(root / "test.json")
    with pytest.raises(InputError, match="no .json file to train on"):
        read(root)


@pytest.mark.parametrize(
    "box", [None, [1, 2, 3], ["a", 1, 2, 3], [1, 1, -5, 5], [float("nan")] * 4]
)
def test_coco_boxes_that_are_none_are_dropped(tmp_path, box):
    coco(tmp_path, [[1, 1, 5, 5], box])
    picture(tmp_path / "a.png")
    parts, counts, _ = read(tmp_path)
    assert len(parts["train"][0].names) == 1 and counts["Box dropped"] == 1


def test_coco_unknown_classes_and_ways_out(tmp_path, capsys):
    odd = {"image_id": 7, "category_id": 88, "bbox": [1, 1, 5, 5]}
    coco(tmp_path / "a", [], annotations=[odd])
    picture(tmp_path / "a" / "a.png")
    _, counts, _ = read(tmp_path / "a")
    assert counts["Box dropped"] == 1 and "category 88" in capsys.readouterr().out
    picture(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        coco(tmp_path / "b", [[1, 1, 5, 5]], name)
        parts, counts, _ = read(tmp_path / "b")
        assert not parts["train"] and counts["Picture skipped"] == 1
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.json").write_text('{"images": [{}], "categories": [{"no": 1}]}')
    with pytest.raises(InputError, match=r"x\.json is no COCO file"):
        read(tmp_path / "c")


def yolo(root, text, split="train"):
    picture(root / "images" / split / "a.png")
    label = root / "labels" / split / "a.txt"
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(text)
    (root / "data.yaml").write_text("path: /elsewhere\ntrain: images/train\nnames: [cat, dog]\n")
    return root


def test_yolo_has_centres_and_shares(tmp_path):
    yolo(tmp_path, "1 0.5 0.5 0.5 1.0\n\n0 0.1 0.1 0.9 0.1 0.9 0.5 0.1 0.5\n")
    parts, counts, classes = read(tmp_path)
    np.testing.assert_allclose(
        parts["train"][0].boxes, [[0, 15, 40, 45], [4, 6, 20, 54]], atol=1e-4
    )
    assert parts["train"][0].names == ["dog", "cat"] and classes == ["cat", "dog"] and not +counts
    # Without data.yaml the folders' names tell, and without labels there is nothing in a picture.
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    picture(tmp_path / "images" / "val" / "b.png")
    parts, _, _ = read(tmp_path)
    assert len(parts["validation"]) == 1 and parts["validation"][0].names == []


@pytest.mark.parametrize(
    "line", ["2 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "cat .5 .5 .1 .1", "0 .5 .5", "0 .5 .5 nan .1",
             "0 .5 .5 0 .1", "1e999 .5 .5 .1 .1"],
)  # fmt: skip
def test_yolo_lines_that_are_none_are_dropped(tmp_path, line):
    yolo(tmp_path, f"0 .5 .5 .2 .2\n{line}\n")
    parts, counts, _ = read(tmp_path)
    assert len(parts["train"][0].names) == 1 and counts["Box dropped"] == 1


def test_yolo_paths_stay_inside(tmp_path, capsys):
    yolo(tmp_path / "set", "0 .5 .5 .2 .2")
    picture(tmp_path / "out" / "b.png")
    names = "names: {0: cat}\n"
    (tmp_path / "set" / "data.yaml").write_text(
        f"train: images/train\nval: {tmp_path}/out\n{names}"
    )
    parts, counts, _ = read(tmp_path / "set")
    assert "validation" not in parts and counts["Split skipped"] == 1
    code = "train: !!python/object/apply:os.system ['touch /tmp/never']\n"
    (tmp_path / "set" / "data.yaml").write_text(code + names)
    with pytest.raises(InputError, match=r"data\.yaml cannot be read"):
        read(tmp_path / "set")


def test_folders_of_no_kind_are_told_what_is_expected(tmp_path):
    with pytest.raises(InputError, match="neither a folder Annotations"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        read(tmp_path / "a.txt")


def test_from_a_folder_to_splits_in_the_networks_input(tmp_path, capsys):
    files = {f"p{i}": f"<annotation>{thing('cat' if i else 'dog')}</annotation>" for i in range(10)}
    lists = {"train": [f"p{i}" for i in range(8)], "test": ["p8", "p9"]}
    voc(tmp_path, files | {"p9": f"<annotation>{thing('cow')}</annotation>"}, lists)
    data = box_data.load_boxes(str(tmp_path), None, 30, 0)
    assert data.classes == ["cat", "dog"] and len(data.test) == 2 and len(data.validation) == 1
    assert "class 'cow' in" in capsys.readouterr().out and "box dropped: 1" in data.summary()
    # 40 x 60 in 30 x 30: half the size, 5 rows of grey above.
    kept = data.test.boxes[data.test.classes >= 0]
    np.testing.assert_allclose(kept, [[5, 0, 15, 5]], atol=1e-4)
    assert (data.test.images[0][:5] == 114).all() and (data.test.images[0][5:25] == 99).all()
    real = box_data.truth(data.test)
    np.testing.assert_allclose(real[0]["boxes"], [[0, 0, 20, 10]], atol=1e-3)
    assert len(real[1]["classes"]) == 0
    np.testing.assert_allclose(box_data.fitted_anchors(data.train, 1, 0), [[10, 5]], atol=1e-4)
    with pytest.raises(InputError, match="there are 1. Take --anchors paper"):
        box_data.fitted_anchors(data.train, 2, 0)


def test_training_needs_boxes(tmp_path):
    voc(tmp_path, {"a": "<annotation/>", "b": "<annotation/>"})
    with pytest.raises(InputError, match="nothing to learn"):
        box_data.load_boxes(str(tmp_path), None, 32, 0)


def test_scenes_are_the_same_each_time_and_share_no_digit():
    first, again = (box_data.scenes.make((5, 3), 64, seed=1) for _ in range(2))
    for (images, boxes, classes), (other, *_) in zip(first, again, strict=True):
        assert (images == other).all() and images.dtype == np.uint8
        for b, c in zip(boxes, classes, strict=True):
            assert 1 <= len(b) <= 12 and len(b) == len(c)
            assert (b >= 0).all() and (b <= 64).all() and (b[:, 2:] > b[:, :2]).all()


def test_tfds_with_boxes(tmp_path):
    import tensorflow_datasets as tfds

    class TinyBoxes(tfds.core.GeneratorBasedBuilder):
        """As voc/2007: boxes as shares of the sides, some difficult; no validation."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path  # a test's module lies in no package

        def _info(self):
            thing = {
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "is_difficult": np.bool_,
            }
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "objects": tfds.features.Sequence(thing),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(8), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                box = tfds.features.BBox(ymin=0.25, xmin=0.5, ymax=0.75, xmax=1.0)
                things = [{"bbox": box, "label": 1, "is_difficult": i == 2}] * (i % 3)
                yield i, {"image": np.full((20, 40, 3), i, np.uint8), "objects": things}

    TinyBoxes(data_dir=tmp_path).download_and_prepare()
    data = box_data.load_boxes("tiny_boxes", tmp_path, 20, 0)
    assert data.classes == ["cat", "dog"] and len(data.test) == 3 and len(data.validation) == 1
    assert sorted(data.test.labels) == [0, 1, 2] and data.test.difficult.sum() == 2
    one = int(np.flatnonzero(data.test.labels == 1)[0])  # TFDS shuffles
    # 20 x 40 in 20 x 20: half the size, 5 rows of grey above.
    np.testing.assert_allclose(data.test.boxes[one, 0], [7.5, 10, 12.5, 20])
    image = data.test.images[one]
    assert (image[5:15] == 1).all() and (image[:5] == 114).all()


def test_tfds_without_boxes(tmp_path):
    import tensorflow_datasets as tfds

    class TinyLabels(tfds.core.GeneratorBasedBuilder):
        """Labels alone."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path  # a test's module lies in no package

        def _info(self):
            features = {"label": tfds.features.ClassLabel(names=["cat"])}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"label": 0}

    TinyLabels(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(InputError, match="has no boxes"):
        box_data.load_boxes("tiny_labels", tmp_path, 20, 0)
