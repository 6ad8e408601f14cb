"""Every registered variant: builds, trains a step, saves, loads, exports."""

import gc
import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import tiffin.export
from tiffin import recipes
from tiffin.export import InputError
from tiffin.recipes.engine import registry
from tiffin.recipes.engine.region_detection import GivenRegions
from tiffin.recipes.engine.training import Recipe, parse, to_json

pytestmark = pytest.mark.usefixtures("without_speed")
ENTRIES = registry.recipes()
PICTURES = {
    name: entry for name, entry in ENTRIES.items() if entry.task not in ("sequence", "generative")
}
LOADER = """
import sys, keras, numpy as np, tiffin.layers
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
given = dict(np.load(sys.argv[2]))
given = given if len(given) > 1 else given["image"]
answer = keras.tree.flatten(model(given, training=False))
np.savez(sys.argv[3], *map(keras.ops.convert_to_numpy, answer))
"""


def answers(model, inputs) -> list[np.ndarray]:
    """Return a model's outputs as arrays."""
    return [*map(keras.ops.convert_to_numpy, keras.tree.flatten(model(inputs, training=False)))]


def train_save_load_export(
    config: Recipe, size: int, directory, batch: int, precisions: tuple[str, ...], fresh: bool
) -> None:
    """Take a recipe's network from its first step to files that answer as it does."""
    given = isinstance(config, GivenRegions)
    if given:
        config.proposals, config.regions = 14, 8
    model = config.network((size, size, 3), 5, (127.5, 127.5))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, size, size, 3)).astype("float32")
    labels = np.arange(batch) // 2  # two of each, for losses that compare
    if config.task == "detection":
        # Of all sizes, so that every map has one to learn, and some places without any.
        half = [0.05, 0.09, 0.03, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.47, 0.3, 0.05]
        half = np.array(half)[:, None]
        center = np.repeat([0.3125, 0.375, 0.25, 0.5, 0.3, 0.75], [2, 2, 2, 4, 1, 1])[:, None]
        boxes = np.tile((center + half * [-1, -1, 1, 1]) * size, (batch, 1, 1))
        classes = np.where(np.arange(len(half)) > 3 * labels[:, None], labels[:, None], -1)
        labels = {"boxes": boxes.astype("float32"), "classes": classes.astype("int32")}
    pixels, inputs = images.astype("uint8"), images
    if given:
        elsewhere = np.tile(np.array([[0, 0, 0.4, 0.3], [0.5, 0.6, 1, 1]]) * size, (batch, 1, 1))
        regions = np.concatenate([boxes + 0.01 * size, elsewhere], axis=1).astype("float32")
        labels["proposals"] = regions
        pixels, inputs = ({"image": x, "proposals": regions} for x in (pixels, images))
    for layer in config.body(model).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # As in a trained net: with fresh statistics activations double at every block, and
            # with those of a few pictures alone a channel that hardly varies becomes noise.
            layer.momentum = 0.5
    # Clipped: the first step of 152 fresh layers would leave nothing finite.
    # Eager, a single step of a deep net takes a tenth of the time that its graph takes to trace.
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0)
    model.compile(optimizer, **config.objective(), run_eagerly=True)
    # Twice: a gamma before ReLU, depthwise convolution and BN does nothing while its beta is zero.
    for _ in range(2):
        assert np.isfinite(model.train_on_batch(images, labels)).all()
    # Not the weights: clipped, a gradient can be smaller than the last digit of a gamma of 1.
    still = [
        v.path
        for v, m in zip(model.trainable_variables, optimizer.momentums, strict=True)
        if not np.any(m)
    ]
    assert not still, f"no gradient for {still}"
    inference = config.inference(model)
    assert inference.name == config.model and inference.inputs[0].name == "image"
    inference.save(directory / "model.keras")
    if fresh:
        paths = [str(directory / part) for part in ("model.keras", "inputs.npz", "loaded.npz")]
        np.savez(paths[1], **(inputs if given else {"image": inputs}))
        subprocess.run([sys.executable, "-c", LOADER, *paths], check=True)
        loaded = [*np.load(paths[2]).values()]
    else:
        model = keras.saving.load_model(directory / "model.keras", safe_mode=True)
        loaded = answers(model, inputs)
    for again, expected in zip(loaded, answers(inference, inputs), strict=True):
        np.testing.assert_allclose(again, expected, atol=1e-5)
    del model, optimizer, loaded  # of the largest, gigabytes
    gc.collect()
    manifest = tiffin.export.export(
        inference, directory / "export", precisions=precisions, calibration=pixels
    )
    made = [(file["format"], file["precision"]) for file in manifest["files"]]
    assert made == [(form, p) for form in ("onnx", "tflite") for p in precisions]
    if config.task == "detection":
        assert [o["name"] for o in manifest["outputs"]] == ["boxes", "classes", "count", "scores"]
        return  # equal detections are the stage's own check, and its own tests'
    (output,) = manifest["outputs"]
    if output["name"] == "probabilities":
        expected = np.exp(expected - np.logaddexp.reduce(expected, axis=1, keepdims=True))
    for file in manifest["files"]:
        outputs = tiffin.export.load(directory / "export" / file["file"])(pixels)[output["name"]]
        if file["precision"] != "int8":  # of which the stage has its own verdict
            atol = {"fp32": 1e-4, "fp16": 2e-2}[file["precision"]]
            np.testing.assert_allclose(outputs, expected, rtol=0, atol=atol)


# Families whose default is large; the papers' width is in the full tests.
SLIM = ("vgg", "googlenet", "inception_v2", "inception_v3", "inception_v4", "inception_resnet_v2")
SLIM += ("resnext", "am_softmax", "arcface")
# The paper's own network for pictures of 32 pixels; a fresh one of 50 layers is noise in int8.
FOR_32 = {"resnext": "resnext29_8x64d"}
# By default these leave in two files, and of each task one in six; in the full tests all in six.
TWO = ("resnet", "faster_rcnn")
SIX = ("mobilenet_v2", "ssd", "am_softmax")


def small(entry) -> Recipe:
    """Return a family's configuration for a small network."""
    config = entry.load().Config()
    config.model = FOR_32.get(entry.name, config.model)
    if entry.name in SLIM:
        config.alpha = 0.25
    return config


@pytest.mark.parametrize("name", TWO)
def test_family_from_build_to_files(name, tmp_path):
    # resnet stands for all here; the full tests load one of each family in a fresh process.
    train_save_load_export(small(PICTURES[name]), 32, tmp_path, 8, ("fp32",), name == "resnet")


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, marks=() if name in SIX else pytest.mark.full)
        for name, entry in PICTURES.items()
    ],
    ids=PICTURES,
)
def test_family_in_six_files(entry, tmp_path):
    train_save_load_export(small(entry), 32, tmp_path, 8, ("fp32", "fp16", "int8"), False)


@pytest.mark.full
@pytest.mark.parametrize("name", [v for e in PICTURES.values() for v in e.variants])
def test_variant_from_build_to_checked_files(name, tmp_path):
    entry = registry.find(name)
    size = entry.variants[name].size
    config = entry.load().Config(model=name)
    # Large networks fill the memory; losses that compare need two of two classes.
    batch = 2 if entry.task == "classification" else 4
    first = name == next(iter(entry.variants))
    train_save_load_export(config, size, tmp_path, batch, ("fp32",), fresh=first)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_recipe_files_keep_the_form(entry):
    module = entry.load()
    assert issubclass(module.Config, Recipe)
    assert module.Config.family() == entry.name and module.Config().model in entry.variants
    assert callable(getattr(module, entry.name))
    for row in entry.variants.values():
        assert row.year >= 1990 and row.parameters and row.macs and row.data
        assert row.error is None or 0 < row.error < 100
    assert "arXiv" in module.__doc__ and "python recipes/" in module.__doc__
    assert entry.path.read_text().count("\n") <= 260
    examples = re.findall(r"^ +tiffin train (\S+)(.*)$", module.Config.__doc__, re.M)
    for name, options in examples:
        assert registry.find(name) == entry
        model = name if name in entry.variants else None
        assert parse(module.Config, options.split(), model=model).model in entry.variants
    assert examples
    assert json.dumps(to_json(module.Config()))


def test_names_and_build_do_not_import_the_collection():
    script = "import sys, tiffin.recipes as r; r.names(); print('keras' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False\n"
    script = (
        "import sys, tiffin.recipes as r; r.build('resnet20', (32, 32, 3), 10);"
        "print([m for m in sys.modules if m.startswith('tiffin.recipes.classification.')])"
    )
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert said == "['tiffin.recipes.classification.resnet']\n"


def test_wrong_names_and_options_get_the_nearest():
    with pytest.raises(InputError, match="no recipe 'resnet51'; did you mean .*'resnet50'"):
        recipes.build("resnet51")
    with pytest.raises(InputError, match="several variants: resnet18, resnet34"):
        recipes.build("resnet")
    with pytest.raises(InputError, match="no option 'alhpa'; did you mean 'alpha'"):
        recipes.build("mobilenet_v2", alhpa=0.5)
