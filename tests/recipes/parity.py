"""Our architectures held against other people's: counts, and outputs with their weights."""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

from tiffin import recipes
from tiffin.recipes.engine import registry, summary


def full(*cases: tuple) -> list:
    """Return a parametrised test's cases as ones for the full tests."""
    return [pytest.param(*case, marks=pytest.mark.full) for case in cases]


def quick(every: Iterable, *kept) -> list:
    """Return all cases of one parameter; those that are not kept are for the full tests."""
    return [x if x in kept else pytest.param(x, marks=pytest.mark.full) for x in every]


def check_counts(name: str, count: int, **options) -> keras.Model:
    """Assert that a variant, at its own size, has the published parameters and the listed MACs."""
    row = registry.find(name).variants[name]
    model = recipes.build(name, (row.size, row.size, 3), row.classes, **options)
    assert summary.trainable(model) == row.parameters == count
    assert sum(layer.macs for layer in summary.rows(model)) == row.macs
    assert model.name == name
    if registry.find(name).task == "classification":
        assert model.layers[-1].name == "logits"
    return model


def torchvision_models():
    """Return torchvision.models; where its operators do not fit torch's build, declare them."""
    try:
        import torchvision.models
    except RuntimeError:
        for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        for name in ("nms", "qnms"):
            signature = "(Tensor boxes, Tensor scores, float iou) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)
        import torchvision.models
    return torchvision.models


def pytorchcv(name: str) -> torch.nn.Module:
    """Return a network of pytorchcv without pretrained weights, for inference."""
    torchvision_models()
    from pytorchcv.model_provider import get_model

    return get_model(name).eval()


def randomise(theirs: keras.Model | torch.nn.Module) -> None:
    """Give kernels He's scale, biases and statistics values that show when they are misplaced."""
    random = np.random.default_rng(11)
    if isinstance(theirs, keras.Model):
        for weight in theirs.weights:
            weight.assign(_random(random, weight.name, weight.shape, weight.shape[:-1]))
        return
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                kind = name.rpartition(".")[2]
                kind = "kernel" if kind == "weight" and value.ndim > 1 else kind
                names = {"weight": "gamma", "running_var": "moving_variance"}
                new = _random(random, names.get(kind, kind), value.shape, value.shape[1:])
                value.copy_(torch.from_numpy(new))


def settle(theirs: torch.nn.Module, size: int) -> None:
    """Let batch normalisation take the statistics of random pictures, as training would.

    With random ones activations grow from block to block, until the gates of squeeze-and-excitation
    saturate: float32 then errs by more than `agree` allows, ours and theirs alike.
    """
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    pictures = torch.from_numpy(np.random.default_rng(3).normal(size=(8, 3, size, size)))
    with torch.no_grad():
        theirs.train()(pictures.float())
    theirs.eval()


def _random(random, name: str, shape, fan_in) -> np.ndarray:
    if name == "kernel":
        values = random.normal(0, (2 / np.prod(fan_in)) ** 0.5, shape)
    elif name == "depthwise_kernel":
        values = random.normal(0, (2 / np.prod(shape[:2])) ** 0.5, shape)
    elif name in ("gamma", "moving_variance"):
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = random.normal(0, 0.2, shape)
    return np.asarray(values, "float32")


def save(theirs: keras.Model | torch.nn.Module, path: Path) -> None:
    """Write weights in the format that the path's ending names, as their owners publish them."""
    if path.name.endswith((".weights.h5",)):
        theirs.save_weights(path)
    elif path.suffix in (".keras", ".h5"):
        theirs.save(path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, path)
    else:
        torch.save(theirs.state_dict(), path)


def answer(theirs: keras.Model | torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Return their logits `[batch, classes]` for NHWC float32 images."""
    if isinstance(theirs, keras.Model):
        return np.asarray(theirs(images))
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        return theirs.eval()(pixels).numpy()


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Assert agreement within 1e-4 of the spread of the logits, which random weights set."""
    assert np.ptp(theirs) > 1e-3
    np.testing.assert_allclose(ours / theirs.std(), theirs / theirs.std(), atol=1e-4)


@contextlib.contextmanager
def policy(name: str):
    """Build layers of another dtype."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def check_weights(
    name: str,
    theirs: keras.Model | torch.nn.Module,
    path: Path,
    size: int | None = None,
    settled: bool = False,
    double: bool = False,
    **options,
) -> None:
    """Assert that a variant with their weights, read from their file, answers as they do.

    Args:
        name: of the variant.
        theirs: a keras.applications model whose output are logits, or a torch module; it is given
            random weights.
        path: where to save them; the ending names the format.
        size: height and width of the images; default: the variant's own.
        settled: whether `settle` comes before (torch only).
        double: compute in float64, where so many layers add up float32's errors (torch only).
        **options: of our builder.
    """
    size = size or registry.find(name).variants[name].size
    randomise(theirs)
    if settled:
        settle(theirs, size)
    save(theirs, path)
    images = np.random.default_rng(2).normal(size=(2, size, size, 3)).astype("float32")
    collections = registry.find(name).load().WEIGHTS
    keras_takes_bgr = "keras.applications" in collections and collections["keras.applications"].bgr
    turned = images[..., ::-1] if isinstance(theirs, keras.Model) and keras_takes_bgr else images
    kind = "float64" if double else "float32"
    theirs = theirs.double() if double else theirs
    wanted = answer(theirs, np.ascontiguousarray(turned).astype(kind))
    with policy(kind):
        ours = recipes.build(name, (size, size, 3), wanted.shape[-1], **options)
    recipes.load_weights(ours, path)
    agree(np.asarray(ours(images, training=False)), wanted)
