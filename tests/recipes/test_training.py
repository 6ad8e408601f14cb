"""Training: what a run leaves, how it ends early, and how it goes on."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny_recipe
import torch

from tiffin.export.errors import InputError
from tiffin.recipes.engine import training, weights
from tiffin.recipes.engine.checkpoints import Checkpoint
from tiffin.recipes.engine.classification import SmoothedCrossentropy, WithAuxiliaryHeads
from tiffin.recipes.engine.data import Split, load_images
from tiffin.recipes.engine.optimizers import WarmupSchedule, make_optimizer

SCRIPT = Path(tiny_recipe.__file__)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run of three epochs with everything on."""
    output = tmp_path_factory.mktemp("runs") / "a run"
    config = tiny_recipe.Config(
        output=output, augment=("rotation:5", "noise:4"), ema=0.9, label_smoothing=0.1,
        warmup_epochs=1, epochs=6,
    )  # fmt: skip
    return output, config.run()


def rows(directory: Path) -> list[dict]:
    with open(directory / "history.csv") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_a_run_leaves_what_is_promised(run):
    output, metrics = run
    left = {path.name for path in output.iterdir()}
    assert left == {
        "config.json", "model.keras", "last.weights.h5", "history.csv", "logs", "curves.png",
        "augmented.png", "confusion.png", "mistakes.png", "metrics.json", "report.md", "labels.txt",
    }  # fmt: skip
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert list((output / "logs").rglob("*.v2"))
    assert len(rows(output)) == metrics["epochs"] == 6
    assert "| accuracy" in (output / "report.md").read_text()
    assert (output / "labels.txt").read_text().split() == [str(d) for d in range(10)]


def test_the_kept_model_is_what_was_measured(run):
    output, metrics = run
    model = keras.saving.load_model(output / "model.keras")
    assert not model.compiled
    digits = load_images("digits", None, 16, 224, 0)
    guess = np.asarray(model(digits.test.images.astype("float32"))).argmax(1)
    assert metrics["test"]["accuracy"] == pytest.approx((guess == digits.test.labels).mean())
    assert metrics["test"]["accuracy"] > 0.8
    # The best epoch's averaged weights are in the file, so its validation figure comes back.
    best = max(row["val_accuracy"] for row in rows(output))
    guess = np.asarray(model(digits.validation.images.astype("float32"))).argmax(1)
    assert (guess == digits.validation.labels).mean() == pytest.approx(best, abs=0.006)


def start(output: Path, *options: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), "--output", str(output), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def wait_for_epochs(process: subprocess.Popen, output: Path, epochs: int) -> None:
    while process.poll() is None:
        if (output / "history.csv").exists() and len(rows(output)) >= epochs:
            return
        time.sleep(0.05)
    raise AssertionError(process.stdout.read())


@pytest.mark.full
def test_a_killed_run_ends_as_well_as_an_unbroken_one(tmp_path):
    options = ("--epochs", "12", "--augment", "noise:4")
    process = start(tmp_path / "killed", *options)
    wait_for_epochs(process, tmp_path / "killed", 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(rows(tmp_path / "killed"))
    assert 3 <= done < 12
    resumed = start(tmp_path / "killed", "--resume")
    said = resumed.communicate()[0]
    assert resumed.returncode == 0, said
    assert f"Resuming after epoch {done} of 12" in said
    tiny_recipe.Config(output=tmp_path / "whole", epochs=12, augment=("noise:4",)).run()
    killed, whole = rows(tmp_path / "killed"), rows(tmp_path / "whole")
    assert [row["epoch"] for row in killed] == list(range(1, 13))
    for name in ("loss", "val_loss", "learning_rate"):
        np.testing.assert_allclose(
            [row[name] for row in killed], [row[name] for row in whole], rtol=2e-2, atol=2e-3
        )


def test_ctrl_c_keeps_what_was_trained(tmp_path):
    process = start(tmp_path / "run", "--epochs", "500")
    wait_for_epochs(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "--resume --output" in said and "Traceback" not in said
    assert keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert (tmp_path / "run" / "report.md").exists() and (tmp_path / "run" / "curves.png").exists()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_diverged_loss_stops_with_advice(tmp_path):
    config = tiny_recipe.Config(output=tmp_path / "run", learning_rate=1e30)
    with pytest.raises(InputError, match="epoch 1, batch .* diverged.*Lower --learning-rate"):
        config.run()


def test_a_run_is_resumed_by_its_own_variant_only(run):
    arguments = ["--resume", "--output", str(run[0])]
    resumed = training.parse(tiny_recipe.Config, arguments, model="tiny")
    assert (resumed.epochs, resumed.ema, resumed.output) == (6, 0.9, run[0])
    with pytest.raises(InputError, match="holds a run of tiny, not of tinier"):
        training.parse(tiny_recipe.Config, arguments, model="tinier")


def test_runs_of_the_same_second_do_not_share_a_folder(tmp_path):
    first = training.unused(tmp_path / "now")
    first.mkdir()
    assert first == tmp_path / "now" and training.unused(first) == tmp_path / "now_2"


def test_early_stopping_counts_epochs_without_improvement(tmp_path, capsys):
    config = tiny_recipe.Config(
        output=tmp_path / "run", learning_rate=1e-30, early_stopping=2, epochs=9, freeze="bn1"
    )
    config.run()
    assert len(rows(tmp_path / "run")) == 3
    assert "stopping early" in capsys.readouterr().out
    dataclasses.replace(config, resume=True).run()
    assert len(rows(tmp_path / "run")) == 3


def test_an_epoch_whose_score_is_no_number_is_not_the_best(tmp_path):
    checkpoint = Checkpoint(tmp_path, None, "val_loss", "min")
    nan = float("nan")
    for losses, best in (((nan, 2.0, nan, 1.0, 1.0, nan), (3, 4)), ((nan, nan), (0, 1))):
        checkpoint.rows = [{"val_loss": loss} for loss in losses]
        assert checkpoint.best() == best


def test_transfer_replaces_the_head_and_freezes(run, photos, tmp_path, capsys):
    output, _ = run
    config = tiny_recipe.Config(
        data=str(photos), weights=output / "model.keras", freeze="bn1", output=tmp_path / "new",
        learning_rate=1e-3, batch_size=8,
    )  # fmt: skip
    config.run()
    said = capsys.readouterr().out
    assert "Weights of 2 layers loaded" in said and "Head replaced: logits" in said
    old = keras.saving.load_model(output / "model.keras")
    new = keras.saving.load_model(tmp_path / "new" / "model.keras")
    for layer in ("conv1", "bn1"):
        for a, b in zip(old.get_layer(layer).weights, new.get_layer(layer).weights):
            np.testing.assert_array_equal(a, b)
    assert new.output_shape == (None, 2)


def tiny_model(classes=10, width=8):
    return tiny_recipe.tiny((16, 16, 3), classes, width, ([0.0], [255.0]))


def test_weights_files_of_both_kinds_fit_or_say_why(tmp_path):
    source = tiny_model()
    source.save(tmp_path / "a.keras")
    source.save_weights(tmp_path / "a.weights.h5")
    for name in ("a.keras", "a.weights.h5"):
        target = tiny_model()
        weights.apply(target, weights.read(tmp_path / name))
        for a, b in zip(source.weights, target.weights):
            np.testing.assert_array_equal(a, b)
        other = tiny_model(classes=3)
        fresh = other.get_layer("logits").get_weights()
        said = weights.apply(other, weights.read(tmp_path / name))
        assert "Head replaced: logits" in said[1]
        np.testing.assert_array_equal(other.get_layer("logits").get_weights()[0], fresh[0])
        np.testing.assert_array_equal(other.weights[0], source.weights[0])
        wide = tiny_model(width=9)
        before = [np.array(v) for v in wide.weights]
        with pytest.raises(InputError, match="does not fit tiny: conv1"):
            weights.apply(wide, weights.read(tmp_path / name))
        for a, b in zip(before, wide.weights):
            np.testing.assert_array_equal(a, b)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.weights.h5").write_text("no HDF5")
    with pytest.raises(InputError, match="Weights come from a .keras, .weights.h5, "):
        weights.read(tmp_path / "a.txt")
    with pytest.raises(InputError, match="There is no file"):
        weights.read(tmp_path / "missing.keras")
    with pytest.raises(InputError, match="cannot be read as weights"):
        weights.apply(tiny_model(), weights.read(tmp_path / "b.weights.h5"))
    with pytest.raises(InputError, match="no layer 'conv2'; did you mean 'conv1'"):
        weights.freeze(tiny_model(), "conv2")
    with pytest.raises(InputError, match="leaves nothing to train"):
        weights.freeze(tiny_model(), "logits")


def test_a_foreign_normalization_layer_is_not_taken_for_ours(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Normalization(mean=1.0, variance=2.0, name="normalization")(inputs)
    keras.Model(inputs, keras.layers.Flatten()(x)).save(tmp_path / "a.keras")
    source = weights.read(tmp_path / "a.keras")
    assert source.normalization is None
    with pytest.raises(InputError, match="does not fit tiny"):
        weights.apply(tiny_model(), source)


def test_what_a_layer_refuses_is_told_in_a_paragraph(tmp_path):
    config = tiny_recipe.Config(output=tmp_path / "run", image_size=8, width=-1)
    with pytest.raises(InputError, match=r"tiny cannot be built for \(8, 8, 3\): .*filters"):
        config.run()
    assert not (tmp_path / "run").exists()


def test_smoothed_crossentropy_equals_torch():
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 3, (40, 7)), random.integers(0, 7, 40)
    for smoothing in (0.0, 0.1, 0.5):
        ours = SmoothedCrossentropy(smoothing)(labels, logits.astype("float32"))
        theirs = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(labels), label_smoothing=smoothing
        )
        assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


def test_schedules_equal_keras_own():
    steps = np.arange(0, 120, 7)
    cosine = WarmupSchedule(0.4, 100, 0, "cosine")
    theirs = keras.optimizers.schedules.CosineDecay(0.4, 100)
    for step in steps:
        assert float(cosine(step)) == pytest.approx(float(theirs(step)), abs=1e-6)
    stairs = WarmupSchedule(0.4, 100, 0, "step", (50, 75), 0.1)
    theirs = keras.optimizers.schedules.PiecewiseConstantDecay([49, 74], [0.4, 0.04, 0.004])
    for step in (0, 49, 50, 74, 75, 99):
        assert float(stairs(step)) == pytest.approx(float(theirs(step)), abs=1e-6)
    warm = WarmupSchedule(0.4, 100, 10, "constant")
    assert [round(float(warm(s)), 3) for s in (0, 4, 9, 50)] == [0.04, 0.2, 0.4, 0.4]
    again = WarmupSchedule.from_config(warm.get_config())
    assert float(again(4)) == float(warm(4))


@pytest.mark.parametrize("name", training.OptimizerName.__args__)
def test_optimizers_decay_kernels_alone(name):
    model = tiny_model()
    optimizer = make_optimizer(name, 0.5, model.trainable_variables, weight_decay=0.1)
    before = [np.array(v) for v in model.trainable_variables]
    zero = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    optimizer.apply(zero, model.trainable_variables)
    for old, variable in zip(before, model.trainable_variables):
        factor = 0.95 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable, old * factor, rtol=1e-6)


def test_gradient_descent_takes_one_step_with_the_whole_training_set():
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (50, 8, 8, 3)).astype(np.uint8)
    split = Split(random.integers(0, 3, 50).astype(np.int32), (8, 8), images)

    def linear():
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
        return keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="zeros")(x))

    model = linear()
    optimizer = make_optimizer(
        "gradient_descent", 0.1, model.trainable_variables, steps_per_epoch=4
    )
    model.compile(optimizer, SmoothedCrossentropy())
    batches = split.training_batches(16, 0, drop_remainder=False)
    model.fit(batches, epochs=2, steps_per_epoch=4, verbose=0)
    weight, bias = torch.zeros(192, 3), torch.zeros(3)
    x, y = torch.tensor(images.reshape(50, -1) / 255).float(), torch.tensor(split.labels).long()
    for _ in range(2):
        weight.requires_grad_(), bias.requires_grad_()
        torch.nn.functional.cross_entropy(x @ weight + bias, y).backward()
        weight, bias = (weight - 0.1 * weight.grad).detach(), (bias - 0.1 * bias.grad).detach()
    np.testing.assert_allclose(model.get_weights()[0], weight, atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[1], bias, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_train_resume_and_export(backend, tmp_path):
    process = start(
        tmp_path / "run", "--export", "--precisions", "fp32", "--ema", "0.9", "--epochs", "2",
        KERAS_BACKEND=backend,
    )  # fmt: skip
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["backend"] == backend
    files = {path.name for path in (tmp_path / "run" / "export").iterdir()}
    assert {"tiny_fp32.onnx", "tiny_fp32.tflite", "manifest.json"} <= files
    process = start(
        tmp_path / "run", "--resume", "--no-export", "--epochs", "3", KERAS_BACKEND=backend
    )
    said = process.communicate()[0]
    assert process.returncode == 0 and "Resuming after epoch 2 of 3" in said, said


def test_bad_options_are_named_before_anything_is_loaded(tmp_path, run):
    cases = {
        "no model 'tinny'; did you mean 'tiny'": {"model": "tinny"},
        "--batch-size 0: it must be at least 1": {"batch_size": 0},
        "--learning-rate -1": {"learning_rate": -1.0},
        "--label-smoothing 1": {"label_smoothing": 1.0},
        "--seed -1: it must be from 0 to": {"seed": -1},
        "--warmup-epochs -1.0: it must be at least 0": {"warmup_epochs": -1.0},
        "--early-stopping -1": {"early_stopping": -1},
        "--ema 1.0 must lie in": {"ema": 1.0},
        "--weight-decay -0.1 must not be negative": {"weight_decay": -0.1},
        "--milestones 30.0: they are shares": {"milestones": (30.0,)},
        "--learning-rate inf": {"learning_rate": float("inf")},
        "--image-size 4: it must be at least 8": {"image_size": 4},
        "no augmentation 'flip'": {"augment": ("flip",)},
        "holds a run already.*--resume": {"output": run[0]},
        "no run to resume": {"resume": True, "output": tmp_path / "none"},
    }
    for message, options in cases.items():
        options.setdefault("output", tmp_path / "run")
        with pytest.raises(InputError, match=message):
            tiny_recipe.Config(**options).run()
    assert not (tmp_path / "run").exists()


def test_further_heads_count_in_training_alone():
    model = tiny_recipe.tiny((16, 16, 3), 10, 4, ([0.0], [255.0]), auxiliary=True)
    model = WithAuxiliaryHeads(model.input, model.output, name="tiny")
    # A rate of zero: the loss is that of the weights as they are.
    model.compile(keras.optimizers.SGD(0.0), SmoothedCrossentropy(), metrics=["accuracy"])
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 16, 16, 3)).astype("float32")
    labels = np.arange(12) % 10
    outputs = {k: np.asarray(v, "float64") for k, v in model(images, training=True).items()}
    losses = {
        name: float(
            torch.nn.functional.cross_entropy(torch.from_numpy(value), torch.from_numpy(labels))
        )
        for name, value in outputs.items()
    }
    loss, accuracy = model.train_on_batch(images, labels)
    assert loss == pytest.approx(losses["logits"] + 0.3 * losses["auxiliary"], rel=1e-5)
    assert accuracy == pytest.approx((outputs["logits"].argmax(1) == labels).mean())
    outputs = np.asarray(model(images)["logits"], "float64")
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert model.test_on_batch(images, labels)[0] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.full
def test_further_heads_stay_behind(tmp_path):
    config = {"output": tmp_path / "run", "auxiliary": True, "epochs": 2}
    tiny_recipe.Config(**config).run()
    kept = keras.saving.load_model(tmp_path / "run/model.keras")
    assert kept.output_shape == (None, 10)
    assert "auxiliary_logits" not in {layer.name for layer in kept.layers}
    metrics = tiny_recipe.Config(**config | {"epochs": 3, "resume": True}).run()
    assert metrics["epochs"] == 3
    # The file without the second head is where a training with it can start.
    start = {"output": tmp_path / "next", "weights": tmp_path / "run/model.keras"}
    tiny_recipe.Config(**config | start).run()
