"""Selective search: what it finds, and that it searches a data set once."""

import numpy as np
import pytest

from tiffin.export.proposals import selective_search
from tiffin.recipes.engine import region_proposals, scenes
from tiffin.recipes.engine.box_data import BoxData, load_boxes


def overlap(box, boxes):
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared)


def test_objects_are_among_the_regions():
    ((images, boxes, _),) = scenes.make((12,), 96, 0)
    best = []
    for image, real in zip(images, boxes, strict=True):
        found = selective_search(image, 200)
        assert found.shape == (200, 4) and found.dtype == np.float32
        assert (found >= 0).all() and (found <= 96).all()
        count = (found[:, 2:] > found[:, :2]).all(1).sum()
        assert count > 10 and not found[count:].any()
        best += [overlap(box, found[:count]).max() for box in real]
    assert np.mean(np.array(best) > 0.5) > 0.9


def test_of_too_many_the_same_are_left_out():
    ((images, _, _),) = scenes.make((1,), 96, 1)
    found = [selective_search(images[0], 20) for _ in range(3)]
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert (found[0][:, 2:] > found[0][:, :2]).all()
    assert not selective_search(np.full((40, 40, 3), 7, np.uint8), 5)[2:].any()


@pytest.fixture
def few(tmp_path, monkeypatch) -> BoxData:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("tiffin.recipes.engine.box_data.SCENES", (4, 2, 2))
    return load_boxes("digits", None, 64, 0)


def test_a_data_set_is_searched_once(few, tmp_path, monkeypatch):
    region_proposals.propose(few, 30)
    first = few.train.proposals
    assert first.shape == (4, 30, 4) and few.test.proposals.shape == (2, 30, 4)
    files = sorted((tmp_path / "proposals").iterdir())
    assert len(files) == 3
    searches = []
    search = region_proposals.selective_search
    monkeypatch.setattr(
        region_proposals, "selective_search", lambda *x: searches.append(1) or search(*x)
    )
    region_proposals.propose(few, 30)
    assert not searches and (few.train.proposals == first).all()
    # A damaged file is made again; other pictures and numbers have files of their own.
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    region_proposals.propose(few, 30)
    assert len(searches) == 8 and (few.train.proposals == first).all()
    few.train.images[0, 0, 0] ^= 1
    region_proposals.propose(few, 30)
    assert len(searches) == 12


def test_they_go_with_their_pictures(few):
    region_proposals.propose(few, 30)
    some = few.train.take(np.array([2, 0]))
    assert (some.proposals == few.train.proposals[[2, 0]]).all()
    inputs, index = few.train.inputs(2, 0)
    assert (inputs["proposals"] == few.train.proposals[index]).all()
    images, targets = next(iter(some.batches(2)))
    assert (np.asarray(targets["proposals"]) == some.proposals).all() and len(images) == 2
