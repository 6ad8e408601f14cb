"""Text from wherever `--data` points, as numbers, in rows that a recurrent network reads on."""

import collections
import dataclasses
import gzip
import itertools
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiffin.export.errors import InputError
from tiffin.export.text import UNKNOWN, Vocabulary, split
from tiffin.recipes.engine.distribution import ALONE, Place

if TYPE_CHECKING:
    import tensorflow as tf

EMBEDDED = "pydoc"
VALIDATION_SHARE, TEST_SHARE = 0.05, 0.1
_MOST_BYTES = 1_000_000_000


def read_text(data: str, encoding: str = "utf-8") -> tuple[str, str]:
    """Return a text and what it is, in words.

    Args:
        data: `pydoc`, the reference of the language that Python carries for its own help, or a
            text file, plain or .gz.
        encoding: of the file, such as utf-8 or latin-1.

    Raises:
        InputError: the file is missing, empty, no text, damaged, or of another encoding.
    """
    if data == EMBEDDED:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics)), "the Python language reference"
    path = Path(data).expanduser()
    if not path.is_file():
        raise InputError(
            f"--data {data}: there is no such file. Name a text file, plain or .gz, or leave it "
            f"out: `{EMBEDDED}` comes with Python."
        )
    content = read_bytes(path)
    if b"\0" in content[:65536] and not encoding.replace("_", "-").lower().startswith("utf-16"):
        raise InputError(f"{path} is no text: it holds zero bytes. Name a text file.")
    try:
        text = content.decode(encoding)
    except LookupError as error:
        raise InputError(
            f"--encoding {encoding} is unknown: utf-8, latin-1 and utf-16 are usual."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not {encoding}: byte {error.start} is 0x{content[error.start]:02x}. Say "
            "with --encoding what it is, latin-1 for instance, or convert it to UTF-8."
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        raise InputError(f"{path} is empty: there is nothing to learn from it.")
    return text, path.name


def read_bytes(path: Path) -> bytes:
    """Return a file's content, unpacked if its name ends in .gz.

    Raises:
        InputError: it cannot be read, is damaged, holds over a gigabyte, or unfolds to over a
            hundred times its size and a megabyte.
    """
    packed, most = path.suffix == ".gz", _MOST_BYTES
    try:
        if packed:
            # No text is that uniform: such a file was made to fill the memory.
            most = min(most, 100 * path.stat().st_size + 1_000_000)
        with gzip.open(path) if packed else open(path, "rb") as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): copy or download it again.") from error
    if len(content) > most:
        why = "is kept in memory here" if most == _MOST_BYTES else "texts of its size unfold to"
        raise InputError(f"{path} holds over {most:,} bytes, more than {why}: cut it.")
    return content


@dataclasses.dataclass
class TextSplit:
    """A text to be read by several readers at once, each from a place of its own, steps at a time.

    Attributes:
        tokens: int32 `[n]`.
        steps: tokens that a network reads before it learns.
        rows: readers, the batch.
    """

    tokens: np.ndarray
    steps: int
    rows: int

    def __len__(self) -> int:
        return self.windows * self.rows

    @property
    def windows(self) -> int:
        """How many times each reader reads `steps` tokens."""
        return max(0, len(self.tokens) - 1) // (self.steps * self.rows)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what is read, and the tokens that follow each: int32 `[windows, rows, steps]`."""
        count = self.windows * self.rows * self.steps

        def cut(tokens):
            return tokens.reshape(self.rows, self.windows, self.steps).swapaxes(0, 1)

        return cut(self.tokens[:count]), cut(self.tokens[1 : count + 1])

    def batches(self, batch_size: int | None = None, place: Place = ALONE) -> "tf.data.Dataset":
        """Return (tokens, next tokens) `[rows, steps]`, one window after the other, once.

        A process of several has its rows alone.
        """
        import tensorflow as tf

        mine = place.rows(self.rows)
        arrays = tuple(windows[:, mine] for windows in self.arrays())
        return tf.data.Dataset.from_tensor_slices(arrays).prefetch(tf.data.AUTOTUNE)


@dataclasses.dataclass
class TextData:
    """A text in three parts, one behind the other, and its vocabulary."""

    train: TextSplit
    validation: TextSplit
    test: TextSplit
    vocabulary: Vocabulary
    kind: str

    def summary(self) -> str:
        """Return one line for a person."""
        parts = (self.train, self.validation, self.test)
        sizes = " / ".join(f"{len(part.tokens):,}" for part in parts)
        return (
            f"{self.kind}, {sizes} {self.vocabulary.kind} to train / validate / test, "
            f"{len(self.vocabulary)} different ones"
        )


def load_text(
    data: str, encoding: str, rows: int, steps: int, kind: str, size: int | None = None
) -> TextData:
    """Read a text as tokens, with the vocabulary of its training part.

    Args:
        data: see `read_text`, of which the last tenth is for the test and a twentieth before it to
            validate; or a folder with a file for each, such as ptb.train.txt.
        encoding: see `read_text`.
        rows, steps: see `TextSplit`.
        kind: `characters` or `words`; words of a text that holds `<unk>` are taken as they stand
            between spaces.
        size: most words in the vocabulary, the frequent ones; None: all.

    Raises:
        InputError: as `read_text`, or the text is too short.
    """
    texts, name = _parts(data, encoding)
    if kind == "words" and any(UNKNOWN in text for text in texts):
        kind = "spaced words"
    if len(texts) == 1:
        parts = split(kind, texts[0])
        ends = [
            round(len(parts) * end) for end in (1 - TEST_SHARE - VALIDATION_SHARE, 1 - TEST_SHARE)
        ]
        pieces = [parts[: ends[0]], parts[ends[0] : ends[1]], parts[ends[1] :]]
    else:
        pieces = [split(kind, text) for text in texts]
    # Characters of all parts: there is no unknown one that could stand for a rare one.
    counts = collections.Counter(pieces[0] if kind != "characters" else itertools.chain(*pieces))
    if kind == "characters":
        vocabulary = Vocabulary(kind, tuple(sorted(counts)))
    else:
        counts.pop(UNKNOWN, None)
        most = [word for word, _ in counts.most_common(None if size is None else size - 1)]
        vocabulary = Vocabulary(kind, (UNKNOWN, *most))
    uses = {"train": rows * steps, "validate": rows, "test": rows}
    for piece, (use, least) in zip(pieces, uses.items(), strict=True):
        if len(piece) <= least:
            raise InputError(
                f"{name} has {len(piece):,} {kind} to {use}, too few for {rows} rows"
                f"{f' of {steps} steps' if least > rows else ''}: lower --batch-size or --steps, "
                "or take a longer text."
            )
    numbers = {token: i for i, token in enumerate(vocabulary.tokens)}
    splits = [
        TextSplit(
            np.array([numbers.get(part, 0) for part in piece], np.int32),
            min(steps, (len(piece) - 1) // rows),
            rows,
        )
        for piece in pieces
    ]
    return TextData(*splits, vocabulary, name)


def _parts(data: str, encoding: str) -> tuple[list[str], str]:
    """Return one text to be divided, or the three of a folder, and a name for it."""
    folder = Path(data).expanduser()
    if data == EMBEDDED or not folder.is_dir():
        text, name = read_text(data, encoding)
        return [text], name
    files = part_files(folder)
    return [read_text(str(file), encoding)[0] for file in files], folder.name


def part_files(folder: Path, ending: str = "") -> list[Path]:
    """Return the files of a folder to train, to validate and to test.

    Args:
        folder: it has one of each; their names say which.
        ending: of the names, before a .gz.

    Raises:
        InputError: it has not.
    """
    found = []
    for words in (("train",), ("valid", "val", "dev"), ("test",)):
        files = [
            path
            for path in sorted(folder.iterdir())
            if any(word in path.name.lower() for word in words)
            and path.name.removesuffix(".gz").endswith(ending)
        ]
        if len(files) != 1:
            raise InputError(
                f"{folder} has {len(files)} files with {' or '.join(words)} in their names"
                f"{f' that end in {ending}' if ending else ''}: there must be one to train, one to "
                "validate and one to test; or name a single file."
            )
        found += files
    return found
