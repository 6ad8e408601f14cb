"""The task of language modelling: which token comes next."""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tiffin.export import recurrent, text
from tiffin.export.documents import VOCABULARY
from tiffin.export.files import write_json, write_text
from tiffin.export.steps import called, step_model
from tiffin.layers import Recurrent
from tiffin.recipes.engine.text_data import TextData
from tiffin.recipes.engine.text_recipe import TextRecipe

SAMPLES = "samples.txt"
_TEMPERATURES = (0.5, 0.8, 1.0)
_WINDOW = 500  # steps at once when a text is read for its likelihood


def rebuilt(model: keras.Model, rows: int | None = None, steps: int | None = None) -> keras.Model:
    """Return a language model that shares all weights.

    Args:
        model: from tokens `[batch, steps]`.
        rows: of the batch, whose states are carried from one call to the next then; None: every
            call begins anew, with a batch of any size.
        steps: of all its texts; None: of any number.
    """
    tokens = keras.Input(batch_shape=(rows, steps), dtype="int32", name="tokens")
    # TensorFlow trains faster without a loop, other compilers take too long then.
    unroll = steps is not None and keras.backend.backend() == "tensorflow"

    def call(layer, *arguments, **options):
        if isinstance(layer, Recurrent):
            layer = layer.sharing(stateful=rows is not None, unroll=unroll)
        return layer(*arguments, **options)

    return keras.Model(tokens, called(model, [tokens], call)[0], name=model.name)


class CarryStates(keras.callbacks.Callback):
    """Begin every epoch, and every validation, at the beginning of the text."""

    def _reset(self, *_):
        for layer in self.model.layers:
            if isinstance(layer, Recurrent):
                layer.reset_state()

    on_epoch_begin = on_test_begin = on_test_end = _reset


@dataclasses.dataclass
class Language(TextRecipe):
    """A network that reads a text and tells at every step what comes next."""

    data: str = "pydoc"
    """`pydoc` (embedded: the reference of the Python language), or a text file, plain or .gz."""
    steps: int = 50
    """Tokens that are read between two updates; the gradient ends there, the state goes on."""
    batch_size: int = 32
    """Places of the text that are read at the same time."""
    clip_norm: float | None = 5.0

    task: ClassVar[str] = "language"
    mirrored: ClassVar[bool] = False
    limits: ClassVar = TextRecipe.limits | {"steps": (1, math.inf)}

    def training_batches(self, data: TextData, batch_size, first_epoch, drop_remainder):
        return data.train.batches(batch_size, self.place).repeat()

    def make_model(self, data: TextData, normalization: tuple | None) -> keras.Model:
        model = self.call_builder(len(data.vocabulary))
        same = data.validation.steps == data.train.steps  # else the text is short
        return rebuilt(model, self.batch_size, self.steps if same else None)

    def inference(self, model: keras.Model) -> keras.Model:
        return rebuilt(model)

    def exported(self, model: keras.Model) -> keras.Model:
        return step_model(model)

    def callbacks(self, model: keras.Model, data: TextData, directory: Path) -> list:
        return [CarryStates()]

    def objective(self) -> dict[str, Any]:
        return {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}

    def introduce(self, batches, data: TextData, directory: Path) -> None:
        write_json(directory / VOCABULARY, data.vocabulary.describe())

    def evaluate(self, model: keras.Model, data: TextData, directory: Path) -> dict[str, Any]:
        """Return what a token of the test text costs, and write what the model goes on with."""
        nats = cross_entropy(model, data.test.tokens, data.test.rows)
        result = {
            "nats": nats,
            "bits": nats / math.log(2),
            "perplexity": math.exp(nats),
            "examples": len(data.test.tokens) - 1,
        }
        run = recurrent.of_keras(self.exported(model))
        prompt = data.test.tokens[:1]
        samples = []
        for temperature in _TEMPERATURES:
            tokens = text.generate(*run, prompt, 500, temperature, seed=self.seed)
            said = data.vocabulary.decode([*prompt, *tokens])
            samples.append(f"--- temperature {temperature}\n{said}\n")
        write_text(directory / SAMPLES, "\n".join(samples))
        print(
            f"Test: {nats:.4f} nats a token, {result['bits']:.4f} bits, perplexity "
            f"{result['perplexity']:.3f}, over {result['examples']:,} tokens. It writes:\n{said}"
        )
        return result

    def export_options(self, data: TextData, test: dict[str, Any]) -> dict[str, Any]:
        (calibration, _), (tokens, targets) = (
            text.excerpts(split.tokens) for split in (data.train, data.test)
        )
        return {
            "calibration": calibration,
            "evaluation": (tokens, targets),
            "metric": recurrent.log_likelihood,
            "max_loss": self.max_loss,
            "vocabulary": data.vocabulary.describe(),
            "description": f"{self.model} trained on {data.kind}",
        }


def cross_entropy(model: keras.Model, tokens: np.ndarray, rows: int) -> float:
    """Return what each token of a text but the first costs on average, in nats.

    Args:
        model: a language model, as `rebuilt` takes it.
        tokens: int32 `[n]`.
        rows: places of the text to begin at; each goes on to the next one's, its state carried.
    """
    rows = min(rows, len(tokens) - 1)
    reader = rebuilt(model, rows)
    length = -(-(len(tokens) - 1) // rows)
    places = np.arange(rows)[:, None] * length + np.arange(length)
    inside = places < len(tokens) - 1
    places = np.minimum(places, len(tokens) - 2)
    given, wanted = tokens[places], np.where(inside, tokens[places + 1], -1)
    total = 0.0
    for t in range(0, length, _WINDOW):
        logits = reader.predict_on_batch(given[:, t : t + _WINDOW])
        targets = wanted[:, t : t + _WINDOW]
        asked = int((targets >= 0).sum())
        if asked:
            outputs = {recurrent.LOGITS: ops.convert_to_numpy(logits)}
            total -= asked * recurrent.log_likelihood(outputs, targets)
    return total / int(inside.sum())
