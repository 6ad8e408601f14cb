"""Augmentation: a gallery of each transformation, and what each adds to test accuracy.

Simard, Steinkraus, Platt 2003 for pictures of digits; Shorten and Khoshgoftaar 2019: A Survey on
Image Data Augmentation for Deep Learning.

    python recipes/studies/augmentation.py
"""

import dataclasses

import keras
import numpy as np
from keras import layers

from tiffin.recipes.engine.augmentation import AUGMENTATIONS, Chance, augmenter
from tiffin.recipes.engine.study import DataStudy, Outcome, main, prepare

CLAIM = "Augmentation helps where it keeps the class, and hurts where it does not"
JOINT = ("rotation", "scale", "translation")


@dataclasses.dataclass
class Config(DataStudy):
    """Train a small network on few pictures, under each augmentation alone and some together."""

    examples: int = 200
    """Training pictures, at most."""
    epochs: int = 60
    """Passes over the examples."""
    filters: int = 16
    """Of the first convolution."""

    def network(self, shape: tuple[int, ...], classes: int, mean: float, std: float):
        """Build a network of two convolutions, from raw pixels to logits."""
        image = keras.Input(shape)
        x = layers.Rescaling(1 / std, -mean / std)(image)
        for factor in (1, 2):
            x = layers.Conv2D(factor * self.filters, 3, padding="same", activation="relu")(x)
            x = layers.MaxPooling2D(2)(x)
        x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
        return keras.Model(image, layers.Dense(classes)(x))

    def measure(self, seed):
        data = self.pictures(seed)
        x, _ = data.train.arrays()
        unseen = data.test.arrays(1000, seed)
        table, gallery = {}, {}
        names = {"none": (), **{name: (name,) for name in AUGMENTATIONS}, " + ".join(JOINT): JOINT}
        for name, given in names.items():
            keras.utils.set_random_seed(seed)
            model = self.network(x.shape[1:], len(data.classes), float(x.mean()), float(x.std()))
            prepare(model, keras.optimizers.Adam(2e-3))
            augment = augmenter(given)
            batches = data.train.training_batches(32, seed, 0, augment)
            steps = max(1, len(data.train) // 32)
            options = {"steps_per_epoch": steps, "shuffle": False, "verbose": 0}
            done = model.fit(batches, epochs=self.epochs, **options)
            _, accuracy = model.evaluate(*unseen, batch_size=256, verbose=0)
            table[name] = {
                "test accuracy": accuracy,
                "gain": accuracy - table.get("none", {"test accuracy": accuracy})["test accuracy"],
                "training accuracy, augmented": done.history["accuracy"][-1],
            }
            # Flips for sure, in the gallery.
            surely = augmenter([f"{n}:1" if n.endswith("flip") else n for n in given])
            shown = x[:4].astype("float32")
            gallery[name] = np.asarray(surely(shown, Chance([seed, 0])) if surely else shown)
        return table, gallery

    inches = (14, 6)

    def draw(self, figure, rows, drawn):
        bars, pictures = figure.subfigures(1, 2)
        axes = bars.subplots()
        places = np.arange(len(rows))
        axes.barh(places, [100 * cells["gain"] for cells in rows.values()], color="grey")
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(places, rows)
        axes.invert_yaxis()
        axes.set(xlabel="test accuracy gained, points", ylabel="augmentation")
        axes.set_title(f"{self.examples} training pictures, mean of {len(drawn)} seeds")
        grid = pictures.subplots(3, 4)
        for axes in grid.flat:
            axes.axis("off")
        for axes, (name, images) in zip(grid.flat, drawn[0].items(), strict=False):
            page = images.clip(0, 255).astype(np.uint8)
            side = page.shape[1]
            page = page.reshape(2, 2, side, side, 3).swapaxes(1, 2).reshape(2 * side, 2 * side, 3)
            axes.imshow(page)
            axes.set_title(name.replace(" + ", ",\n"), fontsize=8)

    def judge(self, rows, spread):
        gain = {name: cells["gain"] for name, cells in rows.items()}
        unsure = {name: cells["gain"] for name, cells in spread.items()}
        joint = " + ".join(JOINT)
        alone = max((name for name in JOINT), key=gain.get)
        flips = ("horizontal_flip", "vertical_flip")
        return [
            Outcome(
                "Moving a picture a little adds test accuracy.",
                "; ".join(f"{name} {100 * gain[name]:+.1f} points" for name in JOINT)
                + f"; together {100 * gain[joint]:+.1f} ± {100 * unsure[joint]:.1f}.",
                min(gain[name] for name in JOINT) > 0 and gain[joint] > unsure[joint],
            ),
            Outcome(
                "Several together add more than the best one alone.",
                f"{100 * gain[joint]:+.1f} points against {100 * gain[alone]:+.1f} of {alone}.",
                gain[joint] > gain[alone],
            ),
            Outcome(
                "What changes the class hurts: flips of digits.",
                "; ".join(f"{name} {100 * gain[name]:+.1f} points" for name in flips) + ".",
                max(gain[name] for name in flips) < 0,
            ),
        ]


if __name__ == "__main__":
    main(Config)
