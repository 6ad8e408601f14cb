"""Does the input of detectors keep up? Augmented batches alone beside training, in one run.

    python benchmarks/detection_input.py [--models ssd_small ...] [--steps 20] > FILE

Images a second of the engine's pipeline with each augmentation, with all of them, and of `fit` on
the default one; scenes of 96 x 96 in memory, all cores. Where the ratio is above 1 the network is
what a training waits for.
"""

import argparse
import sys
import time
from itertools import islice

from tiffin.export.documents import table
from tiffin.recipes.engine import registry
from tiffin.recipes.engine.box_augmentation import AUGMENTATIONS, augmenter

MODELS = ("ssd_small", "yolov3_small", "faster_rcnn_small", "fast_rcnn_small", "rcnn_small")
DEFAULT = ("scale:0.2", "color_jitter")


def pipeline(split, names, batch: int, steps: int) -> float:
    """Return images a second of the batches alone."""
    batches = iter(split.training_batches(batch, 0, 0, augmenter(names), True))
    for _ in islice(batches, 5):
        pass
    start = time.perf_counter()
    for _ in islice(batches, steps):
        pass
    return batch * steps / (time.perf_counter() - start)


def training(config, data, steps: int) -> float:
    """Return images a second of `fit`, the first epoch left out."""
    import keras

    model = config.make_model(data, (127.5, 60.0))
    config.compile(model, steps, 2)
    batches = config.training_batches(data, config.batch_size, 0, True)
    times = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: times.append(time.perf_counter()),
        on_epoch_end=lambda *_: times.append(time.perf_counter()),
    )
    model.fit(batches, epochs=2, steps_per_epoch=steps, verbose=0, callbacks=[clock])
    return config.batch_size * steps / (times[3] - times[2])


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    configs = [registry.find(n).load().Config(model=n) for n in options.models]
    # The last has proposals, if any has: what they cost is in all rows of the first table.
    data = configs[-1].load_data()
    print("## The input of detectors beside their training\n")
    words = " ".join(["python benchmarks/detection_input.py", *sys.argv[1:]])
    print(f"```bash\n{words}\n```\n")
    print("Images a second of augmented batches alone, 96 x 96, batch 16, in memory.\n")
    kinds = {"none": (), "scale and color_jitter, the default": DEFAULT}
    kinds |= {name: (name,) for name in AUGMENTATIONS} | {"all": tuple(AUGMENTATIONS)}
    speed = {n: pipeline(data.train, k, 16, 5 * options.steps) for n, k in kinds.items()}
    print(table(["augmentation", "images a second"], [[n, f"{v:.0f}"] for n, v in speed.items()]))
    print("\nBeside whole training steps.\n")
    rows = []
    for config in configs:
        trained = training(config, data, options.steps)
        alone = pipeline(data.train, DEFAULT, config.batch_size, 5 * options.steps)
        rows.append([config.model, f"{alone:.0f}", f"{trained:.0f}", f"{alone / trained:.0f}"])
    print(table(["model", "input alone", "training", "ratio"], rows))


if __name__ == "__main__":
    main()
