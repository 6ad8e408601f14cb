"""How well embeddings tell people, characters, things apart: verification and retrieval.

Distances are Euclidean between embeddings of length 1, from 0 (same direction) to 2 (opposite):
`distance^2 = 2 - 2 cos(angle)`, so that a threshold on one is a threshold on the other.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError

FOLDS = 10
RANKS = (1, 5, 10)
EPISODES = 1000
FALSE_ACCEPTS = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclasses.dataclass
class Pairs:
    """Pairs of pictures to verify.

    Attributes:
        left, right: int `[n]`, places of the pictures.
        same: bool `[n]`, whether they show the same identity.
        fold: int `[n]`, which part of the cross-validation a pair belongs to.
    """

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def make_pairs(labels: np.ndarray, count: int = 6000, seed: int = 0) -> Pairs:
    """Draw pairs as LFW has them: ten folds, half of each of the same identity.

    Args:
        labels: int `[pictures]`, the identities.
        count: pairs in all, at most; fewer where there are not so many different ones.
        seed: of the draw.

    Raises:
        InputError: no identity has two pictures, or there is only one identity.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    several = [group for group in groups if len(group) > 1]
    if not several or len(groups) < 2:
        raise InputError(
            "Verification needs two identities or more, and one of them with two pictures: add "
            "pictures, or hold fewer identities out with --unseen."
        )
    possible = sum(len(g) * (len(g) - 1) // 2 for g in several)
    apart = (len(labels) ** 2 - sum(len(g) ** 2 for g in groups)) // 2
    half = min(count // 2, possible, apart)
    if possible <= 4 * half:
        alike = np.concatenate([np.transpose(np.triu_indices(len(g), 1)) for g in several])
        owner = np.repeat(np.arange(len(several)), [len(g) * (len(g) - 1) // 2 for g in several])
        chosen = random.permutation(possible)[:half]
        alike = np.array([several[owner[i]][alike[i]] for i in chosen])
    else:
        # Each identity alike, however many pictures it has: many would otherwise drown few.
        alike = _distinct(half, lambda n: _two_of_one(several, n, random))
    other = _distinct(half, lambda n: _two_of_two(labels, n, random))
    both = np.concatenate([alike, other])
    fold = np.concatenate([np.arange(half) % FOLDS] * 2)
    return Pairs(both[:, 0], both[:, 1], np.arange(2 * half) < half, fold)


def _two_of_one(groups: Sequence[np.ndarray], count: int, random) -> np.ndarray:
    sizes = np.array([len(g) for g in groups])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    group = random.integers(0, len(groups), count)
    first = random.integers(0, sizes[group])
    second = (first + random.integers(1, sizes[group])) % sizes[group]
    joined = np.concatenate(groups)
    return np.stack([joined[starts[group] + first], joined[starts[group] + second]], axis=1)


def _two_of_two(labels: np.ndarray, count: int, random) -> np.ndarray:
    drawn = random.integers(0, len(labels), (2 * count + 8, 2))
    return drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]]


def _distinct(count: int, draw) -> np.ndarray:
    """Draw pairs until there are so many different ones; which comes first does not matter."""
    found = np.zeros((0, 2), int)
    while len(found) < count:
        found = np.concatenate([found, np.sort(draw(count), axis=1)])
        _, first = np.unique(found, axis=0, return_index=True)
        found = found[np.sort(first)]
    return found[:count]


def read_pairs(path: Path, names: Sequence[str]) -> Pairs:
    """Read a pairs file in LFW's form.

    The first line may be `folds  pairs per fold and kind` or the number of pairs. Then a line
    `name  i  j` for two pictures of one identity, `name  i  other  j` for two of different ones, i
    and j counting from 1 as in `name/name_0001.jpg`.

    Args:
        path: the file.
        names: the test pictures as paths, whose folder is the identity and whose name ends in the
            number; else the pictures of a folder are numbered in the order of their names.

    Raises:
        InputError: it cannot be read, or names a picture that the test split lacks.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--pairs {path} cannot be read ({error}).") from error
    known = _numbered(names)
    folds = size = 0
    numbers = lines and all(word.isdecimal() and len(word) < 10 for word in lines[0])
    if numbers and len(lines[0]) in (1, 2):
        folds, size = (int(lines[0][0]), int(lines[0][1])) if len(lines[0]) == 2 else (0, 0)
        lines = lines[1:]
    left, right, same = [], [], []
    for number, words in enumerate((w for w in lines if w), 1):
        if len(words) == 3:
            first, second = (words[0], words[1]), (words[0], words[2])
        elif len(words) == 4:
            first, second = (words[0], words[1]), (words[2], words[3])
        else:
            raise InputError(
                f"{path}, pair {number}: '{' '.join(words)}' is neither 'name i j' nor "
                "'name i other j'."
            )
        for name, picture in (first, second):
            if (name, picture.lstrip("0")) not in known:
                raise InputError(
                    f"{path}, pair {number}: the test split has no picture {picture} of '{name}'."
                )
        left.append(known[first[0], first[1].lstrip("0")])
        right.append(known[second[0], second[1].lstrip("0")])
        same.append(first[0] == second[0])
    if not left or len(set(same)) < 2:
        raise InputError(f"{path} must hold pairs of both kinds, same and different.")
    same = np.array(same)
    if folds > 1 and size and len(same) == 2 * folds * size:
        fold = np.arange(len(same)) // (2 * size)  # the file's own folds stand one after another
    else:
        fold = np.empty(len(same), int)
        for kind in (True, False):
            fold[same == kind] = np.arange((same == kind).sum()) % FOLDS
    return Pairs(np.array(left), np.array(right), same, fold)


def _numbered(names: Sequence[str]) -> dict[tuple[str, str], int]:
    """Return the place of each picture by its identity and number."""
    found, counts = {}, {}
    for place, name in sorted(enumerate(names), key=lambda item: item[1]):
        file = Path(name)
        counts[file.parent] = counts.get(file.parent, 0) + 1
        digits = re.search(r"(\d+)$", file.stem)
        number = digits[1].lstrip("0") if digits else str(counts[file.parent])
        found[file.parent.name, number] = place
    return found


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings `[n, dimensions]` of length 1, float64; zeros stay zeros."""
    embeddings = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths > 0, lengths, 1)


def distances(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the Euclidean distance of each pair, float `[n]`, of embeddings of length 1."""
    x = unit(embeddings)
    return np.linalg.norm(x[pairs.left] - x[pairs.right], axis=1)


def best_threshold(distance: np.ndarray, same: np.ndarray) -> float:
    """Return the distance up to which "same" is said for the highest accuracy.

    Of equally good ones the middle one is taken, halfway between two pairs, so that neither side
    is favoured.
    """
    order = np.argsort(distance, kind="stable")
    sorted_distance, sorted_same = distance[order], same[order]
    # After each place: pairs accepted rightly, and those behind it refused rightly.
    right = np.concatenate([[0], np.cumsum(sorted_same)]) + np.concatenate(
        [np.cumsum(~sorted_same[::-1])[::-1], [0]]
    )
    middles = (sorted_distance[:-1] + sorted_distance[1:]) / 2
    nobody = np.nextafter(sorted_distance[0], -np.inf)
    cuts = np.concatenate([[nobody], middles, [sorted_distance[-1]]])
    # No cut can part equal distances.
    between = np.concatenate([[True], np.diff(sorted_distance) > 0, [True]])
    best = np.flatnonzero(between & (right == right[between].max()))
    return float(cuts[best[len(best) // 2]])


def verify(distance: np.ndarray, pairs: Pairs) -> dict:
    """Measure verification as LFW does: each fold by the threshold that suits the others best.

    Returns:
        `verification_accuracy` and `verification_accuracy_std` over the folds, `threshold` (best on
        all pairs, for use), `equal_error_rate`, `true_accept_at` (share of same pairs accepted
        where that share of different ones is, by the share as text; None where there are too few
        different pairs to measure it), `pairs`, and `roc`: false accept and true accept rates, two
        lists.
    """
    from sklearn.metrics import roc_curve

    accuracies = []
    for fold in np.unique(pairs.fold):
        held_out = pairs.fold == fold
        threshold = best_threshold(distance[~held_out], pairs.same[~held_out])
        right = (distance[held_out] <= threshold) == pairs.same[held_out]
        accuracies.append(right.mean())
    false, true, _ = roc_curve(pairs.same, -distance)
    crossing = np.argmin(np.abs(false - (1 - true)))
    different = int((~pairs.same).sum())
    return {
        "verification_accuracy": float(np.mean(accuracies)),
        "verification_accuracy_std": float(np.std(accuracies)),
        "threshold": best_threshold(distance, pairs.same),
        "equal_error_rate": float((false[crossing] + 1 - true[crossing]) / 2),
        "true_accept_at": {
            f"{share:g}": float(true[false <= share].max()) if share * different >= 1 else None
            for share in FALSE_ACCEPTS
        },
        "pairs": len(distance),
        "roc": [false.tolist(), true.tolist()],
    }


def pair_accuracy(outputs: dict[str, np.ndarray], targets: np.ndarray) -> float:
    """Return the verification accuracy of embeddings, 0 to 1: the export stage's metric.

    Args:
        outputs: name to float array; the first is `[pictures, dimensions]`.
        targets: identities `[pictures]`.
    """
    pairs = make_pairs(np.asarray(targets).ravel())
    distance = distances(next(iter(outputs.values())), pairs)
    if not np.isfinite(distance).all():
        return 0.0
    return verify(distance, pairs)["verification_accuracy"]


def recall_at(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the share of pictures with one of their identity among the 1, 5, 10 nearest others.

    Args:
        embeddings: float `[n, dimensions]`.
        labels: int `[n]`; pictures whose identity has no other are not asked.
    """
    x = unit(embeddings)
    asked = np.flatnonzero(np.bincount(labels)[labels] > 1)
    most = min(max(RANKS), len(x) - 1)
    hits = []
    for start in range(0, len(asked), 1024):
        rows = asked[start : start + 1024]
        similar = x[rows] @ x.T
        similar[np.arange(len(rows)), rows] = -np.inf
        near = np.argpartition(-similar, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(similar, near, 1), axis=1, kind="stable")
        near = np.take_along_axis(near, order, 1)
        hits.append(labels[near] == labels[rows, None])
    hit = np.concatenate(hits) if hits else np.zeros((0, most), bool)
    return {str(k): float(hit[:, :k].any(1).mean()) for k in RANKS} if len(hit) else {}


def one_shot(embeddings: np.ndarray, labels: np.ndarray, ways: int = 5) -> float | None:
    """Return how often the nearest of `ways` single examples has the identity of a query.

    Lake et al. 2011 and Vinyals et al. 2016 (arXiv 1606.04080): each episode draws `ways`
    identities, a picture of each to compare with, and another picture of the first as the query.

    Args:
        embeddings: float `[n, dimensions]`.
        labels: int `[n]`.
        ways: identities an episode.

    Returns:
        The share, 0 to 1; None where there are fewer identities with two pictures than `ways`.
    """
    random = np.random.default_rng(0)
    x = unit(embeddings)
    groups = [np.flatnonzero(labels == i) for i in np.unique(labels)]
    groups = [g for g in groups if len(g) > 1]
    if len(groups) < ways:
        return None
    right = 0
    for _ in range(EPISODES):
        drawn = random.choice(len(groups), ways, replace=False)
        query, first = random.choice(groups[drawn[0]], 2, replace=False)
        shown = [first, *(random.choice(groups[i]) for i in drawn[1:])]
        right += int(np.argmax(x[shown] @ x[query]) == 0)
    return right / EPISODES
