"""Text as a model's files see it: a vocabulary, and tokens drawn one after the other."""

import base64
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tiffin.export import recurrent
from tiffin.export.documents import VOCABULARY
from tiffin.export.errors import InputError, optional

KINDS = ("characters", "words", "spaced words", "pieces")
UNKNOWN = "<unk>"
# The first tokens of a translator's vocabulary, which no text holds.
SPECIAL = ("<pad>", "<s>", "</s>")
PAD, START, END = range(3)
# A word with what is inside it, "don't" and "e.g"; a mark; a line's end.
_WORDS = re.compile(r"<\w+>|\n|'?\w+(?:['’.-]\w+)*|[^\w\s]")
_OPENING, _CLOSING = frozenset("([{\n"), frozenset(".,;:!?)]}%\n")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model knows.

    Attributes:
        kind: `characters`; `words`, with marks and line ends as words of their own; `spaced words`,
            of a text in which spaces already stand between all tokens; or `pieces` of words, by
            SentencePiece.
        tokens: in the order of the model's numbers; of words and pieces one is `<unk>`, for all
            others. A translator's begin with `SPECIAL`.
        pieces: SentencePiece's own model, which cuts texts into pieces.
    """

    kind: str
    tokens: tuple[str, ...]
    pieces: bytes = dataclasses.field(default=b"", repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> np.ndarray:
        """Return a text's tokens, int32 `[n]`; unknown words are `<unk>`.

        Raises:
            InputError: a character that the model has never seen; the message names them.
        """
        if self.kind == "pieces":
            return np.array(self._processor.encode(text), np.int32)
        numbers = {token: i for i, token in enumerate(self.tokens)}
        for special in SPECIAL if self.tokens[: len(SPECIAL)] == SPECIAL else ():
            del numbers[special]
        parts = split(self.kind, text)
        if self.kind != "characters":
            other = numbers[UNKNOWN]
            return np.array([numbers.get(part, other) for part in parts], np.int32)
        if unknown := sorted({*parts} - {*numbers}):
            shown = " ".join(repr(c) for c in unknown[:10])
            some = " and others" if len(unknown) > 10 else ""
            raise InputError(
                f"The model has never seen {shown}{some}: it knows {len(self)} characters, those "
                f"of the text that it was trained on. Leave them out."
            )
        return np.array([numbers[c] for c in parts], np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of some tokens; words get spaces where a person would put them.

        Raises:
            InputError: there is no such token.
        """
        numbers = [int(token) for token in tokens]
        if max(numbers, default=0) >= len(self):
            raise InputError(
                f"Token {max(numbers)} is not among the {len(self)} of the vocabulary: it belongs "
                "to another model. Copy vocabulary.json from the run that the model comes from."
            )
        parts = [self.tokens[number] for number in numbers]
        if self.kind == "characters":
            return "".join(parts)
        if self.kind == "pieces":
            return "".join(parts).replace("▁", " ").strip()
        closing = frozenset("\n") if self.kind == "spaced words" else _CLOSING
        opening = frozenset("\n") if self.kind == "spaced words" else _OPENING
        text, before = "", "\n"
        for part in parts:
            text += part if before in opening or part in closing else f" {part}"
            before = part
        return text

    def describe(self) -> dict:
        """Return it as JSON values, which `from_description` reads."""
        described = {"format_version": 1, "kind": self.kind, "tokens": list(self.tokens)}
        return described | (
            {"sentencepiece": base64.b64encode(self.pieces).decode()} if self.pieces else {}
        )

    @functools.cached_property
    def _processor(self):
        sentencepiece = optional("sentencepiece", "A vocabulary of pieces")
        return sentencepiece.SentencePieceProcessor(model_proto=self.pieces)


def split(kind: str, text: str) -> list[str]:
    """Return the parts of a text that are tokens; see `Vocabulary.kind`."""
    if kind == "characters":
        return [*text]
    if kind == "words":
        return _WORDS.findall(text)
    return [part for part in re.split(r" +|(\n)", text) if part]


def from_description(stored: Mapping) -> Vocabulary:
    """Return a vocabulary from `Vocabulary.describe`'s values.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: it is damaged.
    """
    kind, tokens = stored["kind"], stored["tokens"]
    if kind not in KINDS:
        raise ValueError(f"a vocabulary of {kind!r}")
    known = {*tokens} if isinstance(tokens, list) else set()
    if not known or len(known) < len(tokens) or not all(isinstance(t, str) for t in known):
        raise ValueError("its tokens are no list of texts, each once")
    longest = max(map(len, known - {*SPECIAL}), default=0)
    if longest > 1 if kind == "characters" else UNKNOWN not in known:
        raise ValueError(f"its tokens are no {kind}")
    if kind != "pieces":
        return Vocabulary(kind, tuple(tokens))
    vocabulary = Vocabulary(kind, tuple(tokens), base64.b64decode(stored["sentencepiece"]))
    if vocabulary._processor.get_piece_size() != len(tokens):
        raise ValueError("its tokens are not those of its SentencePiece model")
    return vocabulary


def read_vocabularies(path: Path) -> dict[str, Vocabulary]:
    """Read a vocabulary file: of a language model one, named ""; `source` and `target` of a pair.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if "source" in stored:
            return {side: from_description(stored[side]) for side in ("source", "target")}
        return {"": from_description(stored)}
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be read as a vocabulary ({error}): copy it from the run that the model "
            "comes from."
        ) from error


def find_vocabulary(model: Path) -> Vocabulary:
    """Return the vocabulary that lies beside a language model's file.

    Raises:
        InputError: it is missing or damaged, or a translator's.
    """
    path = model.parent / VOCABULARY
    found = read_vocabularies(path)
    if "" not in found:
        raise InputError(f"{path} belongs to a translator: it is run by `tiffin translate`.")
    return found[""]


def beside(model: Path) -> dict[str, Vocabulary]:
    """Return the vocabularies beside a model file (`read_vocabularies`); none where no file is."""
    path = model.parent / VOCABULARY
    return read_vocabularies(path) if path.exists() else {}


def describe(vocabularies: Mapping[str, Vocabulary]) -> dict:
    """Return a translator's vocabularies, by `source` and `target`, as JSON values."""
    return {"format_version": 1} | {side: v.describe() for side, v in vocabularies.items()}


def excerpts(
    tokens: np.ndarray, count: int = 40, steps: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Return evenly spaced pieces of a text, and what follows each token: int32 `[count, steps]`.

    Args:
        tokens: int32 `[n]`.
        count: pieces, fewer where they would overlap.
        steps: tokens of a piece, fewer in a short text.
    """
    steps = min(steps, len(tokens) - 1)
    count = max(1, min(count, (len(tokens) - 1) // steps))
    places = np.linspace(0, len(tokens) - 1 - steps, count).astype(int)[:, None] + np.arange(steps)
    return tokens[places], tokens[places + 1]


def sample(
    logits: np.ndarray, temperature: float, top_k: int | None, random: np.random.Generator
) -> int:
    """Draw a token.

    Args:
        logits: float `[vocabulary]`.
        temperature: above zero: logits are divided by it, so that below 1 the likely ones gain; 0
            takes the likeliest.
        top_k: draw among so many of the likeliest only; None: among all.
        random: where the chance comes from.
    """
    if temperature == 0:
        return int(logits.argmax())
    scores = np.asarray(logits, np.float64) / temperature
    if top_k is not None and top_k < len(scores):
        scores[scores < np.partition(scores, -top_k)[-top_k]] = -np.inf
    shares = np.exp(scores - scores.max())
    return int(random.choice(len(shares), p=shares / shares.sum()))


def generate(
    run: recurrent.Run,
    states: Mapping[str, np.ndarray],
    prompt: Sequence[int],
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yield tokens that a language model goes on with.

    Args:
        run: its step function, from `token` and states to `logits` and the next states.
        states: from `recurrent.initial`.
        prompt: at least one token to begin with; it is not repeated.
        length: how many tokens.
        temperature, top_k: see `sample`.
        seed: of the chance.
    """
    random = np.random.default_rng(seed)
    left = [*prompt]
    while length:
        outputs = run({recurrent.TOKEN: np.array([left.pop(0)], np.int32), **states})
        states = {name: outputs[f"{recurrent.NEXT}{name}"] for name in states}
        if not left:
            left.append(sample(outputs[recurrent.LOGITS][0], temperature, top_k, random))
            length -= 1
            yield left[0]
