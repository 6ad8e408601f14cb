"""The task of translation: from one text to another."""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import keras
import numpy as np

from tiffin.export import recurrent, text, translation
from tiffin.export.documents import VOCABULARY
from tiffin.export.errors import InputError, optional
from tiffin.export.files import write_json, write_text
from tiffin.export.steps import translator_parts
from tiffin.recipes.engine import report
from tiffin.recipes.engine.pair_data import Pair, PairData, PairSplit, load_pairs
from tiffin.recipes.engine.text_recipe import TextRecipe

TRANSLATIONS, ATTENTION = "translations.txt", "attention.png"
_SHOWN = 6  # attention maps
_PENALTIES, _TRIED = (0.0, 0.5, 1.0, 1.5, 2.0), 500  # exponents, validation texts at most
_DRY = 3  # steps of the encoder in a dry export: what converts once does so again


class TeacherForcing(keras.callbacks.Callback):
    """Set the share of right tokens that a decoder learns from, epoch by epoch.

    Args:
        decoder: a `tiffin.layers.Decoder` that is mixed.
        start, end: share in the first and in the last epoch; between them it falls evenly.
    """

    def __init__(self, decoder: keras.Layer, start: float, end: float):
        super().__init__()
        self.decoder, self.start, self.end = decoder, start, end

    def on_epoch_begin(self, epoch, logs=None):
        done = epoch / max(1, self.params["epochs"] - 1)
        self.decoder.truth.assign(self.start + done * (self.end - self.start))


@dataclasses.dataclass
class TranslationRecipe(TextRecipe):
    """A network that reads a text and writes another."""

    epochs: int | None = None
    """Passes over the training data; default: as many as make 1,200 steps, from 4 to 60."""
    data: str = "dates"
    """`dates` (embedded: dates as people write them, to ISO form), the file of the sources, a line
    each, plain or .gz, or a folder with train, val and test files in both languages."""
    target: Path | None = None
    """The file of the targets, where --data is a file: line by line its translation."""
    languages: tuple[str, str] = ("en", "de")
    """How the names of a folder's files end, sources first: train.en.gz, train.de.gz."""
    tokens: Literal["characters", "words", "pieces"] | None = None
    """What is read and written one by one; default: characters of dates, else pieces of words, by
    SentencePiece."""
    vocabulary: int = 4000
    """Most different words or pieces of each side; all others are <unk>."""
    length: int | None = None
    """Most tokens of a source, in the training and in the exported files; default: as many as the
    longest has, 100 at most."""
    batch_size: int = 64
    """Pairs in a step, of like length."""
    clip_norm: float | None = 1.0
    dropout: float = 0.2
    """Rate for words, the encoder's states and the decoder's features, in [0, 1)."""
    teacher_forcing: tuple[float, float] | None = None
    """Share of the right words before a word that the decoder learns from, in the first epoch and
    in the last; the others are its own. Default: 1 1; 0 0 of seq2seq_feedback."""
    beam: int = 5
    """Translations that are followed side by side when the trained model is tested."""
    length_penalty: float | None = None
    """Exponent: 0 leaves the likelihood alone, which favours short translations. Default: that of
    0, 0.5, 1, 1.5 and 2 with the best BLEU on the validation texts."""

    task: ClassVar[str] = "translation"
    usual_steps: ClassVar[int] = 1200
    limits: ClassVar = TextRecipe.limits | {
        "vocabulary": (10, math.inf),
        "beam": (1, math.inf),
        "length": (2, math.inf),
    }

    def check(self) -> None:
        super().check()
        if self.length_penalty is not None and not 0 <= self.length_penalty < math.inf:
            raise InputError(f"--length-penalty {self.length_penalty}: it must not be negative.")
        if not all(0 <= share <= 1 for share in self.truth()):
            raise InputError(
                f"--teacher-forcing {' '.join(map(str, self.truth()))}: they are shares, 0 to 1."
            )
        optional("sacrebleu", "Translation")  # at the very end, to evaluate

    def truth(self) -> tuple[float, float]:
        """Return the share of right words in the first epoch and in the last."""
        return self.teacher_forcing or (1.0, 1.0)

    def load_data(self) -> PairData:
        target = None if self.target is None else str(self.target)
        files = self.data, target, self.languages, self.encoding
        multiple = 8 if keras.backend.backend() == "jax" else 1
        return load_pairs(*files, self.tokens, self.vocabulary, self.length, self.seed, multiple)

    def training_batches(self, data: PairData, batch_size, first_epoch, drop_remainder):
        return data.train.training_batches(
            batch_size, self.seed, first_epoch, drop_remainder, place=self.place
        )

    def make_model(self, data: PairData, normalization: tuple | None) -> keras.Model:
        given = {"sources": len(data.source), "mixed": self.truth() != (1.0, 1.0)}
        model = self.call_builder(len(data.target), **given)
        # To begin with what is frequent, in the bias alone: else the first steps teach it to the
        # features, and drive them to where tanh has no gradient left.
        counts = np.bincount(data.train.tokens[1], minlength=len(data.target)) + 0.5
        counts[text.END] += len(data.train)
        model.layers[-1].head.bias.assign(np.log(counts / counts.sum()))
        return model

    def callbacks(self, model: keras.Model, data: PairData, directory: Path) -> list:
        decoder = model.layers[-1]
        return [TeacherForcing(decoder, *self.truth())] if decoder.mixed else []

    def objective(self) -> dict[str, Any]:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=text.PAD)
        return {"loss": loss}

    def introduce(self, batches, data: PairData, directory: Path) -> None:
        write_json(directory / VOCABULARY, text.describe(data.vocabularies))

    def evaluate(self, model: keras.Model, data: PairData, directory: Path) -> dict[str, Any]:
        """Return likelihood, BLEU and exact matches, and draw what the decoder looks at."""
        nats = cross_entropy(model, data.test, self.batch_size)
        sources, references = zip(*data.test.pairs, strict=True)
        translator = translation.of_keras(model, data.vocabularies)
        penalty = self.length_penalty
        if penalty is None:
            penalty = best_penalty(translator, data.validation.pairs, self.beam)
        said = {
            name: translator.translate(sources, beam, penalty)
            for name, beam in (("greedy", 1), ("beam", self.beam))
        }
        result = {"nats": nats, "perplexity": math.exp(nats), "examples": len(sources)}
        result |= {"beam_size": self.beam, "length_penalty": penalty}
        for name, translations in said.items():
            texts = [translation.text for translation in translations]
            result[f"bleu_{name}"] = translation.bleu(texts, references)
            equal = [a == b for a, b in zip(texts, references, strict=True)]
            result[f"exact_{name}"] = float(np.mean(equal))
        lines = [
            f"source:  {source}\nright:   {reference}\ngreedy:  {a.text}\nbeam:    {b.text}\n"
            for source, reference, a, b in zip(sources, references, *said.values(), strict=True)
        ]
        write_text(directory / TRANSLATIONS, "\n".join(lines))
        self._draw(translator, data.test, said["beam"], directory)
        print(
            f"Test: BLEU {result['bleu_greedy']:.2f} greedily, {result['bleu_beam']:.2f} with a "
            f"beam of {self.beam} and a length penalty of {penalty:g}; exact "
            f"{result['exact_greedy']:.2%} and {result['exact_beam']:.2%}; perplexity "
            f"{result['perplexity']:.3f} of {result['examples']:,} texts. Such as:\n{lines[0]}"
        )
        return result

    def _draw(self, translator, split: PairSplit, said: list, directory: Path) -> None:
        """Draw the attention of some translations, long and short, where there is any."""
        order = split.by_length()
        chosen = order[np.linspace(0, 0.95 * (len(order) - 1), _SHOWN).astype(int)]
        maps = []
        for i in chosen:
            source, tokens = split.pairs[i][0], said[i].hypothesis.tokens
            weights = translator.along(source, tokens).get(translation.WEIGHTS)
            if weights is None:
                return
            sides = (
                (translator.source, translator.tokens(source)),
                (translator.target, [*tokens, text.END]),
            )
            names = [[vocabulary.tokens[int(t)] for t in side] for vocabulary, side in sides]
            maps.append((*names, weights))
        report.attention(maps, directory / ATTENTION)

    def dry_export(self, model: keras.Model, data: PairData) -> None:
        from tiffin.export import stage

        for half in translator_parts(model, min(data.length, _DRY)):
            stage.dry_run(half, self.formats)

    def hand_out(self, model: keras.Model, data: PairData, directory: Path, **options):
        from tiffin.export.translator import export_translator

        return export_translator(model, directory, length=data.length, **options)

    def export_options(self, data: PairData, test: dict[str, Any]) -> dict[str, Any]:
        given = data.vocabularies, data.length
        return {
            "calibration": translation.examples(data.train.pairs, *given, padding=False)[0],
            "evaluation": translation.examples(data.test.pairs, *given),
            "max_loss": self.max_loss,
            "vocabulary": text.describe(data.vocabularies),
            "description": f"{self.model} trained on {data.kind}",
        }


def best_penalty(translator: translation.Translator, pairs: list[Pair], beam: int) -> float:
    """Return the length penalty of the best BLEU; of equal ones the one nearest to the usual."""
    chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), _TRIED)).astype(int)
    sources, references = zip(*(pairs[i] for i in chosen), strict=True)
    found = translator.candidates(sources, beam)

    def score(penalty: float) -> tuple[float, float]:
        best = [max(said, key=lambda one: one.hypothesis.value(penalty)).text for said in found]
        return translation.bleu(best, references), -abs(penalty - translation.PENALTY)

    return max(_PENALTIES, key=score)


def cross_entropy(model: keras.Model, split: PairSplit, batch_size: int) -> float:
    """Return what a token of the targets and their end marks costs on average, in nats."""
    total, count = 0.0, 0
    for given, following in split.batches(batch_size).as_numpy_iterator():
        logits = keras.ops.convert_to_numpy(model.predict_on_batch(given))
        targets = np.where(following == text.PAD, -1, following)
        asked = int((targets >= 0).sum())
        total -= asked * recurrent.log_likelihood({recurrent.LOGITS: logits}, targets)
        count += asked
    return total / count
