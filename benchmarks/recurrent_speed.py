"""Training and writing of recurrent networks beside torch.nn.LSTM, in one run.

    python benchmarks/recurrent_speed.py [--rounds 15] [--tokens 500]

Training: tokens a second of whole steps (forward, backward, gradient clipping, update) of the
recipes' own networks with the state carried, and of the same network written with torch.nn.LSTM.
Writing: tokens a second of the exported step function in onnxruntime and LiteRT, and of
torch.nn.LSTM step by step in inference mode, the likeliest token the next input; one thread. The
candidates take turns, so that whatever else the machine does meets all alike; a ratio is the
median over the rounds. Needs torch.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `tiffin train` does

import numpy as np
import torch

from tiffin.export import recurrent, runtime, stage, text
from tiffin.export.documents import table
from tiffin.export.steps import step_model

# name: (rows, steps, vocabulary, embedding, units, depth)
NETWORKS = {
    "char_lstm": (32, 50, 65, 64, 384, 1),
    "word_lm_small": (20, 20, 10_000, 200, 200, 2),
}


class Peer(torch.nn.Module):
    """The same network by torch."""

    def __init__(self, vocabulary: int, embedding: int, units: int, depth: int):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.lstm = torch.nn.LSTM(embedding, units, depth, batch_first=True)
        self.logits = torch.nn.Linear(units, vocabulary)

    def forward(self, tokens, states=None):
        x, states = self.lstm(self.embedding(tokens), states)
        return self.logits(x), states


def ours_to_train(name: str, tokens: np.ndarray) -> Callable[[], None]:
    """Return a function that takes one step."""
    import tensorflow as tf

    from tiffin.recipes import build
    from tiffin.recipes.engine.language import rebuilt

    model = rebuilt(build(name), len(tokens), tokens.shape[1] - 1)
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=5.0)
    model.compile(optimizer, loss, jit_compile=False)
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors((tokens[:, :-1], tokens[:, 1:])).repeat())
    return lambda: model.train_function(batches)


def theirs_to_train(model: Peer, tokens: np.ndarray) -> Callable[[], None]:
    """Return a function that takes one step."""
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    given, wanted = (torch.tensor(part).long() for part in (tokens[:, :-1], tokens[:, 1:]))
    states = None

    def step():
        nonlocal states
        states = states and tuple(state.detach() for state in states)
        logits, states = model(given, states)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def rates(candidates: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, float]:
    """Return tokens a second by candidate, the median of rounds in turn."""
    for run in candidates.values():
        run()
        run()
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: count / float(np.median(values)) for name, values in times.items()}


def training(name: str, rounds: int) -> list[list]:
    """Return the rows of the table."""
    rows, steps, vocabulary, *sizes = NETWORKS[name]
    random = np.random.default_rng(0)
    tokens = random.integers(0, vocabulary, (rows, steps + 1)).astype("int32")
    found = rates(
        {
            "torch.nn.LSTM": theirs_to_train(Peer(vocabulary, *sizes), tokens),
            "tiffin": ours_to_train(name, tokens),
        },
        rows * steps,
        rounds,
    )
    first = found["torch.nn.LSTM"]
    return [[name, who, f"{rate:,.0f}", f"{rate / first:.2f}"] for who, rate in found.items()]


def writing(name: str, tokens: int, rounds: int, folder: Path) -> list[list]:
    """Return the rows of the table."""
    from tiffin.recipes import build

    _, _, vocabulary, *sizes = NETWORKS[name]
    step = step_model(build(name))
    sentences = np.random.default_rng(0).integers(0, vocabulary, (20, 20)).astype("int32")
    # Judged by what it makes of the text: states of a network that was never trained are noise.
    judged = {"evaluation": (sentences[:, :-1], sentences[:, 1:]), "max_loss": 0.1}
    stage.export(
        step,
        folder,
        name=name,
        calibration=sentences,
        metric=recurrent.log_likelihood,
        say=lambda line: None,
        **judged,
    )
    peer = Peer(vocabulary, *sizes).eval()

    def theirs():
        with torch.inference_mode():
            token, states = torch.zeros(1, 1, dtype=torch.long), None
            for _ in range(tokens):
                logits, states = peer(token, states)
                token = logits.argmax(-1)

    candidates = {"torch.nn.LSTM": theirs}
    for kind in ("onnx", "tflite"):
        for precision in ("fp32", "int8"):
            runner = runtime.load(folder / f"{name}_{precision}.{kind}", threads=1)
            states = recurrent.of_language(runner)

            def run(runner=runner, states=states):
                for _ in text.generate(runner, states, [0], tokens, temperature=0):
                    pass

            candidates[f"{kind} {precision}"] = run
    found = rates(candidates, tokens, rounds)
    first = found["torch.nn.LSTM"]
    return [[name, who, f"{rate:,.0f}", f"{rate / first:.2f}"] for who, rate in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each")
    parser.add_argument("--tokens", type=int, default=500, help="that are written at a time")
    given = parser.parse_args()
    print("## Recurrent networks beside torch.nn.LSTM\n")
    print("```bash\npython benchmarks/recurrent_speed.py\n```\n")
    rows = [row for name in NETWORKS for row in training(name, given.rounds)]
    print("Training, two threads.\n")
    print(table(["network", "by", "tokens a second", "by torch's"], rows) + "\n")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for name in NETWORKS
            for row in writing(name, given.tokens, max(3, given.rounds // 3), Path(folder))
        ]
    print("Writing, one thread, a token at a time.\n")
    print(table(["network", "by", "tokens a second", "by torch's"], rows))


if __name__ == "__main__":
    main()
