"""Verification, retrieval and one-shot figures against counting by hand and scikit-learn."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tiffin.export import InputError
from tiffin.recipes.engine import verification
from tiffin.recipes.engine.verification import Pairs

LABELS = np.repeat(np.arange(12), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 40])


@pytest.mark.parametrize("count", [20, 600, 6000])
def test_pairs_are_drawn_as_lfw_has_them(count):
    pairs = verification.make_pairs(LABELS, count, seed=3)
    assert (pairs.left != pairs.right).all()
    np.testing.assert_array_equal(LABELS[pairs.left] == LABELS[pairs.right], pairs.same)
    assert pairs.same.sum() == (~pairs.same).sum() <= count // 2
    both = np.sort(np.stack([pairs.left, pairs.right], 1), axis=1)
    assert len(np.unique(both, axis=0)) == len(both)
    for fold in range(10):
        alike = pairs.same[pairs.fold == fold]
        assert alike.sum() == (~alike).sum() > 0
    again = verification.make_pairs(LABELS, count, seed=3)
    np.testing.assert_array_equal(again.left, pairs.left)
    other = verification.make_pairs(LABELS, count, seed=4)
    assert not np.array_equal(other.left, pairs.left)


def test_many_pictures_of_one_do_not_drown_the_others():
    labels = np.repeat(np.arange(51), [400] + [10] * 50)
    pairs = verification.make_pairs(labels, 600)
    owners = labels[pairs.left[pairs.same]]
    assert (owners == 0).mean() < 0.1


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_pairs_need_two_identities_and_two_pictures(labels):
    with pytest.raises(InputError, match="two identities"):
        verification.make_pairs(np.array(labels))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30))
def test_threshold_is_the_best_there_is(given):
    distance = np.array([d / 3 for d, _ in given])
    same = np.array([s for _, s in given])
    found = verification.best_threshold(distance, same)
    candidates = [-1, *np.unique(distance)]
    best = max(((distance <= t) == same).mean() for t in candidates)
    assert ((distance <= found) == same).mean() == best


def test_verification_of_separable_and_of_hopeless_distances():
    fold = np.arange(200) % 10
    same = np.arange(200) % 20 < 10
    pairs = Pairs(np.arange(200), np.arange(200), same, fold)
    found = verification.verify(np.where(same, 0.2, 1.0) + fold / 100, pairs)
    assert found["verification_accuracy"] == 1 and found["equal_error_rate"] == 0
    assert 0.29 < found["threshold"] < 1 and found["true_accept_at"]["0.1"] == 1
    assert found["true_accept_at"]["0.001"] is None  # a hundred pairs cannot measure it
    found = verification.verify(np.ones(200), pairs)
    assert found["verification_accuracy"] == 0.5 and found["equal_error_rate"] == 0.5


def test_verification_figures_are_those_of_the_curve():
    random = np.random.default_rng(0)
    same = random.random(2000) < 0.5
    distance = random.normal(np.where(same, 0.8, 1.2), 0.3)
    pairs = Pairs(*np.zeros((2, 2000), int), same, np.arange(2000) % 10)
    found = verification.verify(distance, pairs)
    false, true = map(np.array, found["roc"])
    area = float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
    assert area == pytest.approx(roc_auc_score(same, -distance))
    # Two normal distributions, 0.4 apart: the threshold in the middle errs at Phi(-2 / 3).
    assert found["equal_error_rate"] == pytest.approx(0.2525, abs=0.02)
    assert found["verification_accuracy"] == pytest.approx(0.7475, abs=0.02)
    assert found["threshold"] == pytest.approx(1.0, abs=0.1)
    for share, accepted in found["true_accept_at"].items():
        if accepted is not None:
            cut = np.sort(distance[~same])[int(float(share) * (~same).sum())]
            assert accepted == pytest.approx((distance[same] < cut).mean(), abs=0.01)
    # Each fold is judged by a threshold of the others: one bad fold does not choose for itself.
    shifted = distance + np.where(pairs.fold == 0, 5, 0)
    folded = verification.verify(shifted, pairs)
    assert folded["verification_accuracy_std"] > found["verification_accuracy_std"]


def test_recall_counts_each_picture_with_a_like():
    random = np.random.default_rng(1)
    labels = random.integers(0, 6, 40)
    labels[0] = 99  # has no like, and is not asked
    x = random.normal(size=(40, 3))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for k in (1, 5, 10):
        hits = []
        for i in range(1, 40):
            order = sorted((j for j in range(40) if j != i), key=lambda j: -unit[i] @ unit[j])
            hits.append(any(labels[j] == labels[i] for j in order[:k]))
        asked = [h for i, h in zip(range(1, 40), hits) if (labels == labels[i]).sum() > 1]
        found = verification.recall_at(x, labels)[str(k)]
        assert found == pytest.approx(np.mean(asked))
    assert verification.recall_at(x[:2], np.array([0, 0])) == {"1": 1.0, "5": 1.0, "10": 1.0}


def test_one_shot_of_perfect_and_of_random_embeddings():
    labels = np.repeat(np.arange(8), 4)
    assert verification.one_shot(np.eye(8)[labels], labels) == 1.0
    random = np.random.default_rng(0).normal(size=(32, 16))
    assert verification.one_shot(random, labels) == pytest.approx(0.2, abs=0.06)
    assert verification.one_shot(random, labels, ways=9) is None


def test_pair_accuracy_is_the_stages_metric():
    labels = np.repeat(np.arange(5), 6)
    assert verification.pair_accuracy({"embeddings": np.eye(5)[labels] * 3}, labels[:, None]) == 1
    broken = np.full((30, 5), np.nan)
    assert verification.pair_accuracy({"embeddings": broken}, labels) == 0


NAMES = [f"faces/{who}/{who}_{i:04d}.jpg" for who in ("Ann_Lee", "Bo") for i in (1, 2, 3)]


def pairs_file(tmp_path, text):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    return path


def test_pairs_files_in_lfws_form(tmp_path):
    text = "2\t1\nAnn_Lee\t1\t3\nAnn_Lee\t2\tBo\t3\nBo\t1\t2\nBo\t3\tAnn_Lee\t1\n"
    pairs = verification.read_pairs(pairs_file(tmp_path, text), NAMES)
    assert pairs.left.tolist() == [0, 1, 3, 5] and pairs.right.tolist() == [2, 5, 4, 0]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    text = text.partition("\n")[2]
    pairs = verification.read_pairs(pairs_file(tmp_path, text), NAMES)
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    unnumbered = [f"{who}/{name}.png" for who, name in itertools.product(("x", "y"), "ab")]
    pairs = verification.read_pairs(pairs_file(tmp_path, "x 1 2\nx 1 y 2\n"), unnumbered)
    assert pairs.left.tolist() == [0, 0] and pairs.right.tolist() == [1, 3]


@pytest.mark.parametrize(
    "text, message",
    [
        ("Ann_Lee 1 9\n", "no picture 9 of 'Ann_Lee'"),
        ("Ann_Lee 1 Nobody 1\n", "no picture 1 of 'Nobody'"),
        ("Ann_Lee 1\n", "neither 'name i j'"),
        ("Ann_Lee 1 2\n", "both kinds"),
        ("", "both kinds"),
    ],
)
def test_bad_pairs_files_are_named(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        verification.read_pairs(pairs_file(tmp_path, text), NAMES)
    with pytest.raises(InputError, match="cannot be read"):
        verification.read_pairs(tmp_path / "none.txt", NAMES)
