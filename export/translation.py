"""Translating: an encoder, one step of a decoder, and the search for what to say."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tiffin.export import recurrent, runtime
from tiffin.export.documents import MANIFEST, VOCABULARY
from tiffin.export.errors import InputError, optional
from tiffin.export.recurrent import LOGITS, NEXT, TOKEN, Run, log_softmax
from tiffin.export.text import END, PAD, START, Vocabulary, read_vocabularies

SOURCE, WEIGHTS = "source", "weights"
ENCODER, DECODER = "encoder", "decoder"
PENALTY = 1.0  # usual exponent of the length penalty
_AT_ONCE = 64  # sentences
_EXAMPLES = 200  # pairs that files are tried with


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A text that a decoder might say.

    Attributes:
        tokens: without marks of start and end.
        score: log-probability of the tokens and the end mark, in nats.
        ended: whether it came to the end mark.
    """

    tokens: tuple[int, ...]
    score: float
    ended: bool

    def __len__(self) -> int:
        """Return how many tokens the score is of."""
        return len(self.tokens) + self.ended

    def value(self, penalty: float) -> float:
        """Return the score over the length penalty: Wu et al. 2016, arXiv 1609.08144, equation 14.

        Args:
            penalty: the exponent: 0 leaves the score as it is, larger ones favour long texts.
        """
        return self.score / ((5 + len(self)) / 6) ** penalty


def search(
    step: Run,
    begin: Mapping[str, np.ndarray],
    most: Sequence[int],
    beam: int = 1,
    penalty: float = PENALTY,
) -> list[list[Hypothesis]]:
    """Search for the likeliest texts, `beam` of them side by side at every step.

    A sentence is done when so many of its texts have ended, or at its limit. With a beam of 1 the
    likeliest token is taken at every step.

    Args:
        step: of a decoder: from `token`, states and memory to `logits` and the next states.
        begin: the states before the first step and the memory, `[sentences, ...]`.
        most: limit of tokens for each sentence.
        beam: 1 or more.
        penalty: see `Hypothesis.value`.

    Returns:
        Of each sentence at most `beam` texts, best first.
    """
    count = len(most)
    found: list[list[Hypothesis]] = [[] for _ in range(count)]
    here = np.arange(count)  # the sentences that go on
    feeds = {name: np.repeat(array, beam, 0) for name, array in begin.items()}
    scores = np.full((count, beam), -np.inf)
    scores[:, 0] = 0.0
    said = np.full((count, beam, 1), START, np.int32)
    while len(here):
        outputs = step({TOKEN: said[:, :, -1].ravel(), **feeds})
        gains = log_softmax(outputs[LOGITS]).reshape(len(here), beam, -1)
        gains[..., [PAD, START]] = -np.inf
        size = gains.shape[-1]
        total = (scores[..., None] + gains).reshape(len(here), -1)
        # Twice as many as go on: half of them may be ends.
        best = _top(total, 2 * beam)
        values, rows, tokens = np.take_along_axis(total, best, 1), best // size, best % size
        ends = (tokens == END) & np.isfinite(values)
        for i, j in zip(*np.nonzero(ends[:, :beam]), strict=True):
            path = tuple(map(int, said[i, rows[i, j], 1:]))
            found[here[i]].append(Hypothesis(path, float(values[i, j]), True))
        # The first `beam` of those that go on; ends are sorted behind them.
        order = np.argsort(tokens == END, axis=1, kind="stable")[:, :beam]
        scores, rows, tokens = (np.take_along_axis(a, order, 1) for a in (values, rows, tokens))
        said = np.concatenate([np.take_along_axis(said, rows[..., None], 1), tokens[..., None]], 2)
        length = said.shape[2] - 1
        full = np.array([len(found[i]) >= beam for i in here])
        spent = ~full & (np.asarray(most)[here] <= length)
        for i in np.flatnonzero(spent):
            left = beam - len(found[here[i]])
            for path, score in [*zip(said[i, :, 1:], scores[i], strict=True)][:left]:
                if np.isfinite(score):
                    path = tuple(map(int, path))
                    found[here[i]].append(Hypothesis(path, float(score), False))
        on = ~(full | spent)
        chosen = (np.arange(len(here))[:, None] * beam + rows)[on].ravel()
        feeds = {name: outputs.get(f"{NEXT}{name}", array)[chosen] for name, array in feeds.items()}
        here, scores, said = here[on], scores[on], said[on]
    return [sorted(texts, key=lambda text: -text.value(penalty))[:beam] for texts in found]


def _top(values: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the largest values of each row, largest first."""
    count = min(count, values.shape[1])
    places = np.argpartition(-values, count - 1, axis=1)[:, :count]
    places.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)


@dataclasses.dataclass(frozen=True)
class Translation:
    """What a translator says.

    Attributes:
        text: the translation.
        hypothesis: its tokens and score.
    """

    text: str
    hypothesis: Hypothesis


class Translator:
    """An encoder, a step of a decoder, and their vocabularies.

    Args:
        encode: from `source`, int32 `[batch, steps]`, the text's tokens, a mark of the end and
            padding, to what a decoder begins with and remembers, by the names of its inputs.
        step: see `search`.
        vocabularies: of `source` and `target`.
        length: the one number of steps that `encode` takes; None for any.
    """

    def __init__(
        self, encode: Run, step: Run, vocabularies: Mapping[str, Vocabulary], length: int | None
    ):
        self.encode, self.step, self.length = encode, step, length
        self.source, self.target = vocabularies["source"], vocabularies["target"]

    def tokens(self, sentence: str) -> np.ndarray:
        """Return a sentence's tokens and the end mark, int32 `[n]`.

        Raises:
            InputError: it is empty or too long, or has a character that the model does not know.
        """
        tokens = self.source.encode(sentence)
        if not len(tokens):
            raise InputError("The sentence is empty: there is nothing to translate.")
        if self.length is not None and len(tokens) >= self.length:
            shown = sentence if len(sentence) <= 60 else f"{sentence[:57]}..."
            raise InputError(
                f"'{shown}' has {len(tokens)} {self.source.kind}, the model takes "
                f"{self.length - 1}: divide it, or export the model with a larger --length."
            )
        return np.append(tokens, END).astype(np.int32)

    def translate(
        self, sentences: Sequence[str], beam: int = 5, penalty: float = PENALTY
    ) -> list[Translation]:
        """Translate sentences; see `search` and `tokens`."""
        found = self.candidates(sentences, beam)
        return [max(said, key=lambda one: one.hypothesis.value(penalty)) for said in found]

    def candidates(self, sentences: Sequence[str], beam: int) -> list[list[Translation]]:
        """Return up to `beam` translations of each sentence, for any length penalty."""
        found = self._search([self.tokens(s)[:-1] for s in sentences], beam)
        return [[Translation(self.target.decode(h.tokens), h) for h in said] for said in found]

    def translate_tokens(self, sources: Sequence[np.ndarray]) -> list[Hypothesis]:
        """Return the greedy translation of each text of tokens, without marks; see `search`."""
        return [said[0] for said in self._search(sources, 1)]

    def _search(self, sources: Sequence[np.ndarray], beam: int) -> list[list[Hypothesis]]:
        results: list[list[Hypothesis]] = [[] for _ in sources]
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        for at in range(0, len(order), _AT_ONCE):
            part = order[at : at + _AT_ONCE]
            begin = self.encode({SOURCE: padded([[*sources[i], END] for i in part], self.length)})
            most = [2 * len(sources[i]) + 12 for i in part]
            for i, found in zip(part, search(self.step, begin, most, beam), strict=True):
                results[i] = found
        return results

    def along(self, sentence: str, tokens: Sequence[int]) -> dict[str, np.ndarray]:
        """Return what the decoder returns at each step of a given translation and its end mark.

        Args:
            sentence: the source.
            tokens: of the target, without marks.

        Returns:
            By output `[steps, ...]`: `logits`, and where there is attention, `weights`.
        """
        begin = self.encode({SOURCE: padded([self.tokens(sentence)], self.length)})
        given = np.array([[START, *tokens]], np.int32)
        outputs, _ = recurrent.run_along(self.step, {TOKEN: given}, begin)
        return outputs


def padded(texts: Sequence[Sequence[int]], length: int | None = None) -> np.ndarray:
    """Return texts of different lengths in one array, int32 `[n, length]`; None: the longest's."""
    result = np.full((len(texts), length or max(map(len, texts))), PAD, np.int32)
    for row, tokens in zip(result, texts, strict=True):
        row[: len(tokens)] = tokens
    return result


def examples(
    pairs: Sequence[Sequence[str]],
    vocabularies: Mapping[str, Vocabulary],
    length: int,
    padding: bool = True,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return what files are tried with: `source` and `target`, and what follows each token.

    Args:
        pairs: texts and their translations, of which evenly spaced ones are taken.
        vocabularies: of `source` and `target`.
        length: of the sources, end mark and padding included; longer ones are left out.
        padding: False: of the longer targets, all cut to the same length.

    Returns:
        `source`, int32 `[n, length]`, `target`, `[n, steps]`, which begins with the start mark, and
        int32 `[n, steps]` of the tokens that follow, -1 behind the end mark.

    Raises:
        InputError: no source is short enough.
    """

    def spaced(count: int, most: int):
        return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))

    sides = vocabularies["source"], vocabularies["target"]
    tokens = [
        [side.encode(text) for side, text in zip(sides, pairs[i], strict=True)]
        for i in spaced(len(pairs), 5 * _EXAMPLES)
    ]
    tokens = [pair for pair in tokens if 0 < len(pair[0]) < length and len(pair[1])]
    if not tokens:
        raise InputError(f"No text has fewer than {length} tokens: raise --length.")
    if not padding:
        middle = int(np.median([len(target) for _, target in tokens]))
        tokens = [(source, t[: middle - 1]) for source, t in tokens if len(t) >= middle]
    chosen = [tokens[i] for i in spaced(len(tokens), _EXAMPLES)]
    given = {
        "source": padded([[*source, END] for source, _ in chosen], length),
        "target": padded([[START, *target] for _, target in chosen]),
    }
    following = padded([[*target, END] for _, target in chosen])
    return given, np.where(following == PAD, -1, following)


def of_keras(model, vocabularies: Mapping[str, Vocabulary]) -> Translator:
    """Return a translator that Keras runs.

    Args:
        model: see `steps.translator_parts`.
        vocabularies: of `source` and `target`.
    """
    from keras.backend import backend

    from tiffin.export.steps import translator_parts

    encoder, step = map(runtime.of_model, translator_parts(model))
    if backend() == "jax":
        return Translator(_of_few_sizes(encoder), _of_few_sizes(step), vocabularies, None)
    runtime.allow_retracing()  # texts have many lengths
    return Translator(encoder, step, vocabularies, None)


def _of_few_sizes(run: Run) -> Run:
    """Return a function that calls another with few shapes, as JAX makes a program for each."""

    def call(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = len(next(iter(feeds.values())))
        more = (1 << (count - 1).bit_length()) - count
        wide = {name: np.concatenate([a, np.repeat(a[-1:], more, 0)]) for name, a in feeds.items()}
        if SOURCE in wide:
            wide[SOURCE] = np.pad(wide[SOURCE], ((0, 0), (0, -wide[SOURCE].shape[1] % 16)))
        return {name: array[:count] for name, array in run(wide).items()}

    return call


def load(path: Path) -> Translator:
    """Load a translator: a `.keras` file, or an encoder or a decoder that lies beside the other.

    Raises:
        InputError: it is none, or its other half, its vocabulary or its manifest is missing.
    """
    runner = None if path.suffix == ".keras" else runtime.load(path)
    vocabularies = read_vocabularies(path.parent / VOCABULARY)
    if "source" not in vocabularies:
        raise InputError(f"{path} is a language model, run by `tiffin generate`, no translator.")
    if runner is None:
        return of_keras(runtime.read_keras(path), vocabularies)
    halves = _halves(path)
    encoder, step = (
        runner if file == path.name else runtime.load(path.with_name(file)) for file in halves
    )
    return Translator(encoder, step, vocabularies, encoder.inputs[0].shape[1])


def _halves(path: Path) -> tuple[str, str]:
    """Return the names of the encoder and the decoder that a file is one of."""
    manifest = path.parent / MANIFEST
    try:
        pairs = json.loads(manifest.read_text(encoding="utf-8"))["pairs"]
        halves = next(
            (pair[ENCODER], pair[DECODER])
            for pair in pairs
            if path.name in (pair[ENCODER], pair[DECODER])
        )
        for name in halves:
            path.with_name(name).exists()  # refuses what is no name of a file
        return halves
    except (OSError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise InputError(
            f"{manifest} does not say what belongs to {path.name}: a translator is an encoder, a "
            f"decoder and their {MANIFEST}; copy all of the folder."
        ) from error


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return the BLEU of texts, 0 to 100, with one reference each, by sacreBLEU's own settings.

    Papineni et al. 2002; Post 2018, arXiv 1804.08771.
    """
    return optional("sacrebleu", "BLEU").corpus_bleu([*texts], [[*references]]).score


def chrf(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return the chrF of texts, 0 to 100: like BLEU, of characters, and for short texts, too.

    Popović 2015, by sacreBLEU's own settings.
    """
    return optional("sacrebleu", "chrF").corpus_chrf([*texts], [[*references]]).score
