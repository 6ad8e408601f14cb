"""Training throughput beside plain PyTorch, in one run, at CIFAR's size.

    python benchmarks/train_throughput.py [--models resnet20 ...] [--batch 64] [--rounds 3]

Images a second of whole training steps (forward, backward, momentum update, loss and accuracy
counted), data in memory, no augmentation. Ours runs as `tiffin train` does: `model.fit` on the
engine's pipeline. PyTorch's is the usual eager loop over the same networks from pytorchcv and
torchvision. Each measurement has a process of its own, and the two take turns, so that whatever
else the machine does meets both alike; a ratio is the median over the rounds. Needs torch,
torchvision and pytorchcv.
"""

import argparse
import os
import subprocess
import sys
import time

import numpy as np
from peers import OPTIONS, peer

from tiffin.export.documents import table

MODELS = {
    "resnet20": {},
    "mobilenet_v2": {"stem_stride": 1},
    "densenet40_k12": OPTIONS["densenet40_k12"],
}
GAINED = (
    "What ours gained by: TensorFlow's fused batch norm kernel, which Keras 3 itself no longer "
    "takes, and no XLA, which makes depthwise networks several times slower on a CPU."
)


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random uint8 images and labels of ten classes."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, 32, 32, 3), "uint8"), random.integers(0, 10, count)


def ours(name: str, batch: int, steps: int) -> float:
    """Return images a second of `fit`, the first epoch left out."""
    import keras

    from tiffin.recipes import build
    from tiffin.recipes.engine.classification import SmoothedCrossentropy
    from tiffin.recipes.engine.data import Split
    from tiffin.recipes.engine.optimizers import WarmupSchedule, make_optimizer

    model = build(name, (32, 32, 3), 10, normalization=(127.5, 127.5), **MODELS[name])
    schedule = WarmupSchedule(0.1, 2 * steps)
    optimizer = make_optimizer("momentum", schedule, model.trainable_variables, 1e-4)
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    model.compile(optimizer, SmoothedCrossentropy(), metrics=["accuracy"], jit_compile=jit)
    pixels, labels = images(batch * steps)
    split = Split(labels.astype("int32"), (32, 32), pixels)
    batches = split.training_batches(batch, 0, 0, None, True)
    times = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            times.append(time.perf_counter())

        def on_epoch_end(self, epoch, logs=None):
            times.append(time.perf_counter())

    model.fit(batches, epochs=2, steps_per_epoch=steps, verbose=0, callbacks=[Clock()])
    return batch * steps / (times[3] - times[2])


def theirs(name: str, batch: int, steps: int) -> float:
    """Return images a second of an eager PyTorch loop."""
    import torch

    model = peer(name, num_classes=10).train()
    if name == "mobilenet_v2":
        model.features[0][0].stride = (1, 1)
    pixels, labels = images(batch * steps)
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(labels)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(2):
        start, right = time.perf_counter(), 0
        for chosen in torch.randperm(len(labels)).split(batch):
            x, y = (pixels[chosen].float() - 127.5) / 127.5, labels[chosen]
            optimizer.zero_grad()
            logits = model(x)
            torch.nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
            right += (logits.argmax(1) == y).sum().item()
    return batch * steps / (time.perf_counter() - start)


def measured(who: str, name: str, options: argparse.Namespace) -> float:
    """Return images a second, measured in a process of its own."""
    command = [sys.executable, __file__, "--child", who, "--models", name]
    command += ["--batch", str(options.batch), "--steps", str(options.steps)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return float(subprocess.check_output(command, env=environment, text=True).split()[-1])


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print({"ours": ours, "theirs": theirs}[options.child](
            options.models[0], options.batch, options.steps
        ))  # fmt: skip
        return
    print("## Training throughput beside plain PyTorch\n")
    words = " ".join(["python benchmarks/train_throughput.py", *sys.argv[1:]])
    print(f"```bash\n{words}\n```\n")
    rows = []
    for name in options.models:
        rounds = [
            (measured("ours", name, options), measured("theirs", name, options))
            for _ in range(options.rounds)
        ]
        us, them = np.array(rounds).T
        ratio = f"{np.median(us / them):.2f}"
        rows.append([name, f"{np.median(us):.0f}", f"{np.median(them):.0f}", ratio])
    print(f"Images a second at 32x32, batch {options.batch}. {GAINED}\n")
    print(table(["model", "tiffin (Keras on TensorFlow)", "PyTorch", "ratio"], rows))


if __name__ == "__main__":
    main()
