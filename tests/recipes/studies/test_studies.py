"""Studies: each runs small from end to end, and what it is about is checked by itself."""

import json
import re
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tiffin.export import InputError
from tiffin.layers import cross_entropy, entropy, kl_divergence
from tiffin.recipes.engine import cli, registry, report
from tiffin.recipes.engine.augmentation import AUGMENTATIONS
from tiffin.recipes.engine.optimizers import make_optimizer
from tiffin.recipes.engine.study import Examples, Losses, prepare
from tiffin.recipes.studies import (
    activations,
    augmentation,
    batch_norm,
    conv_cost,
    degradation,
    divergence,
    optimizers,
    padding,
    regularization,
    rnn_gradients,
)

STUDIES = registry.studies()
# What makes each small; all measure the same as at full size.
SMALL = {
    "activations": {"examples": 100, "depth": 3, "units": 8, "epochs": 1},
    "augmentation": {"examples": 64, "epochs": 1, "filters": 4},
    "batch_norm": {"examples": 300, "steps": 3},
    "conv_cost": {"size": 8, "channels": 16, "depth": 1, "seconds": 0.02},
    "convolution": {"batch": 1},
    "degradation": {"examples": 64, "epochs": 1, "width": 4},
    "divergence": {"pairs": 200},
    "optimizers": {"examples": 64, "epochs": 1},
    "padding": {"shapes": 5},
    "regularization": {"examples": 60, "epochs": 2, "units": 16},
    "rnn_gradients": {"steps": 14},
}


def test_every_study_is_tried_small():
    assert {*SMALL} == {*STUDIES}


# Their time is TensorFlow's, which makes graphs of their many networks.
LONG = ("activations", "augmentation", "batch_norm", "conv_cost", "degradation")
LONG += ("optimizers", "regularization")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.full if x in LONG else ()) for x in STUDIES]
)
def test_a_study_leaves_a_table_a_figure_and_its_claims(name, tmp_path, capsys, monkeypatch):
    entry = STUDIES[name]
    assert entry.path.read_text().count("\n") < 150
    assert f"python recipes/studies/{name}.py" in entry.load().__doc__
    monkeypatch.setattr(degradation, "DEPTHS", (8, 14))
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL[name].items()]
    seeds = 2 if name in ("divergence", "padding") else 1
    arguments = [name, "--seeds", str(seeds), "--output", str(tmp_path / "out"), *options]
    monkeypatch.setattr(sys, "argv", ["tiffin", "study", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.study(arguments)
    assert end.value.code == 0
    result = json.loads((tmp_path / "out" / report.STUDY).read_text())
    assert result["study"] == name and result["seeds"] == seeds and result["outcomes"]
    for rows in (result["rows"], result["spread"]):
        values = [value for cells in rows.values() for value in cells.values()]
        assert values and np.isfinite(values).all()
    text = (tmp_path / "out" / report.REPORT).read_text()
    said = capsys.readouterr().out
    for outcome in result["outcomes"]:
        assert outcome["claim"] in text and outcome["measured"] in said
        assert isinstance(outcome["holds"], bool) and re.search(r"\d", outcome["measured"])
    if name == "augmentation":
        assert {*result["rows"]} == {"none", *AUGMENTATIONS, " + ".join(augmentation.JOINT)}
    with Image.open(tmp_path / "out" / report.FIGURE) as picture:
        grey = np.asarray(picture.convert("L"))
        assert picture.size[0] > 600 and grey.std() > 10


def test_the_list_shows_them_and_a_copy_runs_where_it_lies(tmp_path, capsys):
    cli.show_list()
    shown = capsys.readouterr().out
    assert all(f"{s.name} " in shown and s.claim in shown for s in STUDIES.values())
    cli.Copy("padding", tmp_path / "own.py").run()
    assert (tmp_path / "own.py").read_text() == STUDIES["padding"].path.read_text()


@pytest.mark.parametrize(
    "run, said",
    [
        (lambda: cli.study(["paddin"]), "no study 'paddin'; did you mean 'padding'"),
        (lambda: cli.study([]), "needs the name of a study"),
        (lambda: padding.Config(seeds=0).run(), "--seeds 0: it must be at least 1"),
        (lambda: augmentation.Config(examples=2).run(), "--examples: it must be at least 8"),
        (lambda: padding.Config(data="/nowhere").run(), "There is no folder /nowhere"),
    ],
)
def test_what_cannot_be_studied_is_told(run, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        run()
    assert not [*tmp_path.iterdir()]


# ---------------------------------------------------------------- what they are about


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 9), st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_bptt_by_hand_is_what_autodiff_finds(seed, units, classes, steps):
    random = np.random.default_rng(seed)
    shapes = (units, 3), (units, units), (classes, units), (steps, 3)
    u, w, v, x = (random.normal(0, 0.5, shape) for shape in shapes)
    labels = random.integers(0, classes, steps)
    loss, *own = rnn_gradients.bptt(u, w, v, x, labels)
    found = rnn_gradients.autodiff(
        lambda *weights: rnn_gradients.loss_of(*weights, x, labels), u, w, v
    )
    assert float(rnn_gradients.loss_of(u, w, v, x, labels)) == pytest.approx(loss, abs=1e-9)
    for mine, other in zip(own, found, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


def test_gradients_by_lag_follow_the_spectral_radius_of_a_linear_network():
    """Without activation W is 1.2 times an orthogonal matrix: the norm grows by it at each step."""
    kind, radius, gate = rnn_gradients.CELLS["RNN, radius 1.2, linear"]
    cell = kind(64)
    norms = rnn_gradients.by_lag(cell, radius, gate, 20, np.random.default_rng(0))
    matrix = keras.ops.convert_to_numpy(cell.recurrent_kernel)
    np.testing.assert_allclose(matrix @ matrix.T, 1.44 * np.eye(64), atol=1e-4)
    assert norms[0] == 1 and norms[19] ** (1 / 19) == pytest.approx(1.2, rel=0.02)


@given(
    st.sampled_from(padding.MODES),
    st.integers(16, 40),  # the widest kernel reaches 1 + 3 * (6 - 1)
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_sizes_by_formula_are_those_of_layers(mode, size, kernel, stride, dilation, strided):
    stride, dilation = (stride, 1) if strided else (1, dilation)
    given_ = size, kernel, stride, dilation
    assert padding.output_size(mode, *given_) == padding.size_of_layer(mode, *given_)


def test_batch_norm_with_the_batchs_own_sigma_and_mu_is_the_identity():
    x = np.random.default_rng(1).normal(1, 1, (64, 9)).astype("float32")
    assert batch_norm.identity_error(x, exact=True) < 2e-6
    # Without epsilon in gamma it shrinks by sigma over the root of sigma² + epsilon.
    sigma = x.std(0)
    shrunk = np.abs(x - x.mean(0)) * (1 - sigma / np.sqrt(sigma**2 + 1e-3))
    assert batch_norm.identity_error(x, exact=False) == pytest.approx(shrunk.max(), abs=2e-6)


probabilities = st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(
    lambda values: (np.array(values) / sum(values)).astype("float64")
)


@given(probabilities, probabilities)
@settings(max_examples=60, deadline=None)
def test_kl_is_never_negative_and_cross_entropy_less_entropy(p, q):
    direct = divergence.direct(p, q)
    assert direct >= -1e-12 and divergence.direct(p, p) == 0
    assert float(kl_divergence(p, q)) == pytest.approx(direct, abs=1e-5)
    assert float(cross_entropy(p, q) - entropy(p)) == pytest.approx(direct, abs=1e-5)
    joint = (p[:, None] * q[None]).ravel()
    assert float(entropy(joint)) == pytest.approx(float(entropy(p) + entropy(q)), abs=1e-5)


def test_forward_fits_match_moments_and_reverse_fits_one_mode():
    """The forward fit's mean and spread are the mixture's own, by Bishop's section 10.1.2."""
    grid = divergence.GRID
    mixture = 0.5 * divergence.gaussian(-3, 0) + 0.5 * divergence.gaussian(3, 0)
    mean, log_std = divergence.fit(mixture, forward=True)
    variance = (mixture * grid**2).sum() - (mixture * grid).sum() ** 2
    assert mean == pytest.approx((mixture * grid).sum(), abs=0.01)
    assert np.exp(log_std) == pytest.approx(variance**0.5, rel=0.01)
    mean, log_std = divergence.fit(mixture, forward=False)
    assert abs(mean) == pytest.approx(3, abs=0.1) and np.exp(log_std) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("kind", conv_cost.KINDS)
def test_weights_of_convolutions_are_what_textbooks_count(kind, channels):
    model = conv_cost.network(kind, 8, channels, 2)
    assert model.count_params() == 2 * conv_cost.weights_by_formula(kind, channels)
    assert model.output.shape == (None, 8, 8, channels)


@pytest.mark.parametrize("depth", degradation.DEPTHS)
def test_plain_and_residual_networks_differ_by_their_shortcuts_alone(depth):
    nets = [degradation.network(depth, kind, (16, 16, 1), 10, 8) for kind in (False, True)]
    for net in nets:
        weighted = [
            x for x in net.layers if isinstance(x, (keras.layers.Conv2D, keras.layers.Dense))
        ]
        assert len(weighted) == depth
    assert nets[0].count_params() == nets[1].count_params()
    adds = [layer for layer in nets[1].layers if isinstance(layer, keras.layers.Add)]
    assert len(adds) == (depth - 2) // 2
    assert not [layer for layer in nets[0].layers if isinstance(layer, keras.layers.Add)]


def test_sigmoids_shrink_the_gradient_and_relu_does_not():
    config = activations.Config(depth=10, units=64)
    x = np.random.default_rng(0).normal(size=(128, 8, 8, 1)).astype("float32")
    y = np.arange(128) % 10
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ratio = {}
    for kind in ("sigmoid", "ReLU"):
        norms = config.gradients(config.network(kind, x.shape[1:], 10), Examples(x, y), loss)
        ratio[kind] = norms[0] / norms[-1]
    assert ratio["sigmoid"] < 1e-4 and ratio["ReLU"] > 0.1


def test_penalties_pull_alike_with_l1_and_by_size_with_l2():
    config = regularization.Config(units=8)
    pulls = {"L1": lambda w: config.l1 * np.sign(w), "L2": lambda w: 2 * config.l2 * w}
    for kind, pull in pulls.items():
        model = config.network(kind, (4, 4, 1), 3)
        kernel = model.get_layer("hidden1").kernel
        model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: 0 * p)
        before = keras.ops.convert_to_numpy(kernel).copy()
        model.train_on_batch(np.ones((2, 4, 4, 1)), np.zeros((2, 3)))
        after = keras.ops.convert_to_numpy(kernel)
        np.testing.assert_allclose(before - after, pull(before), atol=1e-6)


def test_an_optimizer_walks_down_the_valley():
    for name, rate in optimizers.STARTS.items():
        path = optimizers.valley(optimizers.KINDS[name][0], rate)
        height = path[:, 0] ** 2 / 2 + 20 * path[:, 1] ** 2
        assert height[-1] < 0.02 * height[0], name
    # Plain descent is linear: x shrinks by 1 - rate, y by 1 - 40 rate.
    path = optimizers.valley("sgd", 0.01, 5)
    np.testing.assert_allclose(path[5], [-4 * 0.99**5, 0.7 * 0.6**5], rtol=1e-5)


@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(x, marks=pytest.mark.full) for x in ("sgd", "momentum", "adadelta")), "adam"],
)
def test_a_network_that_serves_again_trains_as_a_new_one(kind):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, 3)).astype("float32"), random.integers(0, 2, 20)

    def trained(study, rate):
        keras.utils.set_random_seed(1)
        image = keras.Input((3,))
        model = keras.Model(image, keras.layers.Dense(2)(keras.layers.BatchNormalization()(image)))
        optimizer = make_optimizer(kind, rate, model.trainable_variables)
        model = study.prepared("net", model, optimizer)
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        return model, np.concatenate([np.ravel(w) for w in model.get_weights()])

    study = degradation.Config()
    first, _ = trained(study, 0.3)
    again, found = trained(study, 0.1)
    assert again is first
    np.testing.assert_allclose(found, trained(degradation.Config(), 0.1)[1], rtol=1e-6, atol=1e-7)


def test_losses_are_noted_with_their_steps():
    x, y = np.zeros((20, 3), "float32"), np.zeros(20, "int32")
    model = keras.Sequential([keras.layers.Dense(2)])
    prepare(model, keras.optimizers.SGD(0.1))
    losses = Losses((x, y), 10)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[losses])
    steps, seconds, values = np.transpose(losses.rows)
    assert steps.tolist() == [*range(11)]
    assert values[0] == pytest.approx(np.log(2)) and values[-1] < values[0]
    assert seconds[1] == 0 < seconds[2] and (np.diff(seconds) >= 0).all()
