"""Train recipes of every kind for a few steps, wherever this process stands, and keep the losses.

python split_training.py FOLDER KIND... [--devices N] [--coordinator HOST:PORT ...]
    [--die EPOCH [--freeze]] [--patience SECONDS]
"""

import argparse
import dataclasses
import os
import random
import signal
from pathlib import Path

import keras
import numpy as np

from tiffin.recipes.classification.resnet import Config as ResNet
from tiffin.recipes.detection.ssd import Config as SSD
from tiffin.recipes.embedding.center_loss import Config as CenterLoss
from tiffin.recipes.engine import box_data, distribution
from tiffin.recipes.engine.training import PLACED
from tiffin.recipes.generative.gan import Config as GAN
from tiffin.recipes.sequence.char_rnn import Config as Characters
from tiffin.recipes.sequence.seq2seq import Config as Translator

EXAMPLES = {"train": 35, "validation": 9, "test": 4}
# Steps that do not blow up what rounding tells apart, as large ones do through batch normalisation.
GENTLE = {"optimizer": "sgd", "learning_rate": 1e-4}
KINDS = {
    "resnet20": (ResNet, {"model": "resnet20", **GENTLE, "augment": ("horizontal_flip", "noise")}),
    "center_loss": (CenterLoss, {}),
    "ssd": (SSD, {"image_size": 64, "alpha": 0.35, **GENTLE}),
    "char_rnn": (Characters, {"units": 24, "steps": 12, "dropout": 0.2}),
    "seq2seq": (Translator, {"units": 12, "embedding": 12}),
    "gan": (GAN, {"model": "gan_mlp", "width": 16}),
}


class Kept(keras.callbacks.Callback):
    """Keep the running loss of every step, and the weights at the end.

    Args:
        path: where.
        die: in the middle of this epoch.
        by: the signal to die by.
    """

    def __init__(self, path: Path, die: int | None, by: int):
        super().__init__()
        self.path, self.die, self.by, self.losses = path, die, by, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
        if self.epoch + 1 == self.die and batch == 1:
            os.kill(os.getpid(), self.by)

    def on_train_end(self, logs=None):
        weights = [keras.ops.convert_to_numpy(v).ravel() for v in self.model.variables]
        weights = np.concatenate([w for w in weights if w.dtype.kind == "f"])
        np.savez(self.path, losses=self.losses, weights=weights)


def small(name: str, folder: Path, kept: Kept):
    """Return a recipe that trains for some steps in each of two epochs, on texts in a folder."""
    kind, options = KINDS[name]

    class Small(kind):
        def load_data(self):
            data = super().load_data()
            if not hasattr(data, "classes"):
                return data
            parts = {n: getattr(data, n).take(np.arange(k)) for n, k in EXAMPLES.items()}
            # One class: pictures are compared without a classifier, which would train first.
            classes = data.classes[:1] if name == "gan" else data.classes
            return dataclasses.replace(data, classes=classes, **parts)

        def callbacks(self, model, data, directory):
            return [*super().callbacks(model, data, directory), kept]

    Small.__module__ = kind.__module__
    options = {"epochs": 2, "batch_size": 8, **options}
    if name in ("resnet20", "center_loss", "gan"):
        options["image_size"] = 16
    if name in ("char_rnn", "seq2seq"):
        options["data"] = str(folder / "source.txt")
    if name == "seq2seq":
        options |= {"target": folder / "target.txt", "tokens": "words"}
    return Small(**options)


def texts(folder: Path) -> None:
    """Write a text, and as many lines that say each word the other way round."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdef", k=chance.randint(2, 5))) for _ in range(30)]
    lines = [" ".join(chance.choices(words, k=chance.randint(2, 6))) for _ in range(80)]
    (folder / "source.txt").write_text("\n".join(lines))
    (folder / "target.txt").write_text("\n".join(line[::-1] for line in lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="+", choices=[*KINDS])
    parser.add_argument("--coordinator")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--freeze", action="store_true")
    parser.add_argument("--patience", type=int)
    for option in ("devices", "processes", "process", "die"):
        parser.add_argument(f"--{option}", type=int)
    given = parser.parse_args()
    if given.patience:
        distribution._START = distribution._HEARTBEAT = given.patience
        distribution._SILENT = given.patience // 2
    box_data.SCENES = tuple(EXAMPLES.values())
    end = signal.SIGSTOP if given.freeze else signal.SIGKILL
    request = distribution.Request(*(getattr(given, name) for name in PLACED))
    with distribution.join(request) as place:
        for name in given.kinds:
            kept = Kept(given.folder / f"{name}.{place.index}.npz", given.die, end)
            recipe = small(name, given.folder.parent, kept)
            recipe.place, recipe.resume = place, given.resume
            recipe.output = given.folder / name
            recipe.check()
            recipe._train()
