"""Pairs of texts, a source and its target, from wherever `--data` points, as numbers."""

import calendar
import collections
import dataclasses
import datetime
import io
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiffin.export.errors import InputError, optional
from tiffin.export.text import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary, split
from tiffin.recipes.engine.distribution import ALONE, Place
from tiffin.recipes.engine.text_data import TEST_SHARE, VALIDATION_SHARE, part_files, read_text

if TYPE_CHECKING:
    import tensorflow as tf

EMBEDDED = "dates"
LONGEST = 100  # tokens of a source, where nothing else is asked for
Pair = tuple[str, str]
_DATES = 22_000
_MONTHS = calendar.month_name  # English, as Python leaves the locale alone
_FORMS = (
    "{d} {month} {y}",
    "{d}. {month} {y}",
    "{month} {d}, {y}",
    "{weekday} {d} {month} {y}",
    "{weekday}, {month} {d}, {y}",
    "{d}{th} of {month} {y}",
    "{month} the {d}{th}, {y}",
    "{d}-{month}-{y}",
    "{y} {month} {d}",
    "{d}.{m}.{y}",
    "{d:02}.{m:02}.{y}",
    "{m}/{d}/{y}",
    "{m:02}/{d:02}/{y}",
)


def written_dates(count: int, seed: int) -> list[Pair]:
    """Return dates as people write them, all different, and in ISO form.

    With dots the day comes first, with slashes the month.

    Args:
        count: how many, of the years 1900 to 2099.
        seed: of the chance.
    """
    chance = random.Random(seed)
    first = datetime.date(1900, 1, 1).toordinal()
    days = datetime.date(2100, 1, 1).toordinal() - first
    found: dict[str, str] = {}
    while len(found) < count:
        date = datetime.date.fromordinal(first + chance.randrange(days))
        names = _MONTHS[date.month], calendar.day_name[date.weekday()]
        month, weekday = (name[:3] if chance.random() < 0.5 else name for name in names)
        day = date.day
        th = {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day // 10 != 1 else 0, "th")
        written = chance.choice(_FORMS).format(
            d=day, m=date.month, y=date.year, month=month, weekday=weekday, th=th
        )
        written = chance.choice((str, str.lower, str.upper))(written)
        found[written] = date.isoformat()
    return [*found.items()]


def read_pairs(source: str, target: str, encoding: str) -> list[Pair]:
    """Read two parallel files, line by line; pairs with an empty side are left out.

    Raises:
        InputError: as `read_text`, or their lines differ in number.
    """
    sides = [
        read_text(file, encoding)[0].removesuffix("\n").split("\n") for file in (source, target)
    ]
    if len(sides[0]) != len(sides[1]):
        raise InputError(
            f"{source} has {len(sides[0]):,} lines and {target} {len(sides[1]):,}: line by line "
            "one must be the translation of the other. Look where they part ways."
        )
    pairs = [(a.strip(), b.strip()) for a, b in zip(*sides, strict=True)]
    kept = [pair for pair in pairs if all(pair)]
    if len(kept) < len(pairs):
        print(f"{len(pairs) - len(kept):,} pairs with an empty side are left out")
    if not kept:
        raise InputError(f"{source} and {target} have no pair of lines with a text on both sides.")
    return kept


@dataclasses.dataclass
class PairSplit:
    """Pairs of texts, as they are and as tokens.

    Attributes:
        pairs: source and target.
        tokens: of all sources and of all targets, int32, one text behind the other, without marks
            of start and end.
        ends: where each of them ends, int64 `[n]`.
        multiple: batches are padded to a multiple of so many tokens, for compilers that make a
            program for every length.
    """

    pairs: list[Pair]
    tokens: tuple[np.ndarray, np.ndarray]
    ends: tuple[np.ndarray, np.ndarray]
    multiple: int = 1

    @classmethod
    def of(
        cls, pairs: Sequence[Pair], vocabularies: Sequence[Vocabulary], multiple: int = 1
    ) -> "PairSplit":
        """Return the split of some pairs."""
        sides = [
            [vocabulary.encode(text) for text in texts]
            for vocabulary, texts in zip(vocabularies, zip(*pairs, strict=True), strict=True)
        ]
        ends = [np.cumsum([len(text) for text in side]) for side in sides]
        return cls([*pairs], tuple(map(np.concatenate, sides)), tuple(ends), multiple)

    def __len__(self) -> int:
        return len(self.pairs)

    def lengths(self, side: int) -> np.ndarray:
        """Return the number of tokens of each source (0) or target (1), int64 `[n]`."""
        return np.diff(self.ends[side], prepend=0)

    def rows(
        self, side: int, indices: np.ndarray, start: bool, end: bool, mine: slice = slice(None)
    ) -> np.ndarray:
        """Return some texts, padded to the longest or beyond, int32 `[n, steps]`.

        Args:
            side: 0 for sources, 1 for targets.
            indices: which.
            start, end: whether they begin and end with a mark.
            mine: those of them to return.
        """
        lengths = self.lengths(side)[indices]
        steps = -(-(lengths.max() + start + end) // self.multiple) * self.multiple
        indices, lengths = indices[mine], lengths[mine]
        place = np.arange(steps)[None] - start
        lengths, begins = lengths[:, None], (self.ends[side][indices] - lengths)[:, None]
        tokens = self.tokens[side][np.minimum(begins + place.clip(0), len(self.tokens[side]) - 1)]
        tokens = np.where(place < lengths, tokens, PAD)
        if end:
            tokens[place == lengths] = END
        if start:
            tokens[:, 0] = START
        return tokens.astype(np.int32)

    def batch(
        self, indices: np.ndarray, place: Place = ALONE
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return `source` and `target`, which begins with a mark, and what follows each token.

        A process of several gets its rows alone, as long as all.
        """
        mine = place.rows(len(indices))
        given = {"source": self.rows(0, indices, False, True, mine)}
        given["target"] = self.rows(1, indices, True, False, mine)
        return given, self.rows(1, indices, False, True, mine)

    def by_length(self) -> np.ndarray:
        """Return all indices, such that texts of like length stand together."""
        return np.lexsort((self.lengths(0), self.lengths(1)))

    def batches(self, batch_size: int, place: Place = ALONE) -> "tf.data.Dataset":
        """Return all pairs once, as `batch` gives them, short ones first."""
        order = self.by_length()[: place.whole(len(self), 0)]
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        return self._dataset(lambda: iter(parts), len(parts), place)

    def training_batches(
        self,
        batch_size: int,
        seed: int,
        first_epoch: int,
        drop_remainder: bool,
        pool: int = 50,
        place: Place = ALONE,
    ) -> "tf.data.Dataset":
        """Return endless batches, each of texts of like length, so that little of it is padding.

        An epoch shuffles the pairs, cuts them into pools, sorts every pool by length, cuts it into
        batches, and shuffles these.

        Args:
            batch_size: pairs in a batch.
            seed: with the number of the epoch, all that the order depends on.
            first_epoch: to begin with.
            drop_remainder: leave out the pairs of an epoch that fill no batch.
            pool: batches in a pool.
            place: a process of several gets its rows of each batch alone.
        """
        rank = np.empty(len(self), np.int64)
        rank[self.by_length()] = np.arange(len(self))

        def indices():
            for epoch in itertools.count(first_epoch):
                random = np.random.default_rng((seed, epoch))
                order = random.permutation(len(self))
                if drop_remainder:
                    order = order[: len(order) // batch_size * batch_size]
                size = pool * batch_size
                pools = [order[i : i + size] for i in range(0, len(order), size)]
                order = np.concatenate([p[np.argsort(rank[p])] for p in pools])
                count = -(-len(order) // batch_size)
                for i in random.permutation(count):
                    yield order[i * batch_size : (i + 1) * batch_size]

        return self._dataset(indices, None, place)

    def _dataset(self, indices, count: int | None, place: Place) -> "tf.data.Dataset":
        import tensorflow as tf

        text = tf.TensorSpec((None, None), tf.int32)
        signature = {"source": text, "target": text}, text
        batches = tf.data.Dataset.from_generator(
            lambda: (self.batch(i, place) for i in indices()), output_signature=signature
        )
        known = tf.data.INFINITE_CARDINALITY if count is None else count
        batches = batches.apply(tf.data.experimental.assert_cardinality(known))
        return batches.prefetch(tf.data.AUTOTUNE)


@dataclasses.dataclass
class PairData:
    """Pairs of texts in three parts, and the vocabularies of their sides."""

    train: PairSplit
    validation: PairSplit
    test: PairSplit
    source: Vocabulary
    target: Vocabulary
    length: int
    kind: str

    def summary(self) -> str:
        """Return one line for a person."""
        sizes = " / ".join(f"{len(part):,}" for part in (self.train, self.validation, self.test))
        return (
            f"{self.kind}, {sizes} pairs to train / validate / test, {self.source.kind}, "
            f"{len(self.source):,} and {len(self.target):,} different ones, sources of up to "
            f"{self.length} tokens"
        )

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        return {"source": self.source, "target": self.target}


def load_pairs(
    data: str,
    target: str | None,
    languages: tuple[str, str],
    encoding: str,
    kind: str | None,
    size: int,
    length: int | None,
    seed: int,
    multiple: int = 1,
) -> PairData:
    """Read pairs as tokens, with vocabularies of their training part.

    Args:
        data: `dates`, embedded; the file of the sources, with that of the targets as `target`; or a
            folder with a file for each side of the training, validation and test part, such as
            train.en.gz.
        target: see above.
        languages: how the names of a folder's files end, source first.
        encoding: of the files.
        kind: `characters`, `words` or `pieces`; None: characters for dates, else pieces.
        size: most tokens of each side, but for characters.
        length: most tokens of a source; longer ones are left out of the training. None: as many as
            the longest one's, 100 at most.
        seed: of the dates, and of the division of two files.
        multiple: see `PairSplit`.

    Raises:
        InputError: as `read_pairs`, or too few pairs.
    """
    parts, name = _parts(data, target, languages, encoding, seed)
    kind = kind or ("characters" if data == EMBEDDED else "pieces")
    vocabularies = []
    for side in (0, 1):
        texts = [[pair[side] for pair in part] for part in parts]
        # Characters of all parts: there is no unknown one that could stand for a rare one.
        known = [*itertools.chain(*texts)] if kind == "characters" else texts[0]
        vocabularies.append(make_vocabulary(kind, known, size))
    splits = [PairSplit.of(part, vocabularies, multiple) for part in parts]
    lengths = splits[0].lengths(0) + 1  # with the mark of the end
    most = length or min(LONGEST, int(lengths.max()))
    keep = (lengths <= most) & (splits[0].lengths(1) <= 2 * most)
    if not keep.all():
        print(f"{(~keep).sum():,} pairs of over {most} tokens are left out of the training")
        kept = [pair for pair, kept in zip(parts[0], keep, strict=True) if kept]
        if not kept:
            raise InputError(f"No text to train has {most} tokens or fewer: raise --length.")
        splits[0] = PairSplit.of(kept, vocabularies, multiple)
    return PairData(*splits, *vocabularies, most, name)


def make_vocabulary(kind: str, texts: Sequence[str], size: int) -> Vocabulary:
    """Return a translator's vocabulary.

    Args:
        kind: `characters`, `words` or `pieces`.
        texts: to be made of.
        size: most tokens, but for characters.

    Raises:
        InputError: `size` is too small for the characters of the texts.
    """
    if kind == "pieces":
        return _pieces(texts, size)
    counts = collections.Counter(part for text in texts for part in split(kind, text))
    for taken in (*SPECIAL, UNKNOWN):
        counts.pop(taken, None)
    if kind == "characters":
        return Vocabulary(kind, (*SPECIAL, *sorted(counts)))
    most = [word for word, _ in counts.most_common(size - len(SPECIAL) - 1)]
    return Vocabulary(kind, (*SPECIAL, UNKNOWN, *most))


def _pieces(texts: Sequence[str], size: int) -> Vocabulary:
    """Return pieces by SentencePiece's unigram model (Kudo 2018, arXiv 1804.10959)."""
    sentencepiece = optional("sentencepiece", "A vocabulary of pieces")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=PAD,
            bos_id=START,
            eos_id=END,
            unk_id=len(SPECIAL),
            pad_piece=SPECIAL[PAD],
            bos_piece=SPECIAL[START],
            eos_piece=SPECIAL[END],
            unk_piece=UNKNOWN,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"No {size} pieces can be made of these texts ({str(error).splitlines()[-1]}): give "
            "another number with --vocabulary, or take --tokens words."
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens = tuple(processor.id_to_piece([*range(processor.get_piece_size())]))
    return Vocabulary("pieces", tokens, model.getvalue())


def _parts(
    data: str, target: str | None, languages: tuple[str, str], encoding: str, seed: int
) -> tuple[list[list[Pair]], str]:
    """Return the pairs to train, to validate and to test, and a name for them."""
    if target is None and data != EMBEDDED and Path(data).expanduser().is_dir():
        files = [part_files(Path(data).expanduser(), f".{language}") for language in languages]
        parts = [read_pairs(str(a), str(b), encoding) for a, b in zip(*files, strict=True)]
        return parts, f"{Path(data).name} from {languages[0]} to {languages[1]}"
    if data == EMBEDDED and target is None:
        pairs, name = written_dates(_DATES, seed), "dates written by people, to ISO form"
        test = validation = 1000
    elif target is None:
        raise InputError(
            f"--data {data}: name the file of the translations, too, as --target FILE, or a folder "
            f"with train.{languages[0]}, train.{languages[1]} and so on; or leave it out: "
            f"`{EMBEDDED}` needs no file."
        )
    else:
        pairs, name = read_pairs(data, target, encoding), f"{Path(data).name}, {Path(target).name}"
        test, validation = (math.ceil(len(pairs) * s) for s in (TEST_SHARE, VALIDATION_SHARE))
        random.Random(seed).shuffle(pairs)
    if len(pairs) < 10:
        raise InputError(f"{name} has {len(pairs)} pairs: that is too few to learn from.")
    return [pairs[test + validation :], pairs[test : test + validation], pairs[:test]], name
