"""GANs: networks, losses in turns, how samples are judged, and a run from digits to files."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from PIL import Image

import tiffin.export
from tiffin import recipes
from tiffin.export import InputError
from tiffin.recipes.engine import generative, registry
from tiffin.recipes.engine.generative import Adversarial, Judge, collapse, frechet
from tiffin.recipes.generative.gan import SHAPES, VARIANTS, Config, discriminator, gan


@pytest.mark.parametrize("name", VARIANTS)
def test_generators_have_as_many_parameters_as_their_table_says(name):
    model = recipes.build(name)
    row = registry.find(name).variants[name]
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == row.parameters
    assert model.output.shape == (None, *SHAPES[name])


def test_dcgan_is_the_papers_figure_1():
    model = recipes.build("dcgan")
    maps = [model.get_layer(f"relu{i}").output.shape[1:] for i in range(4)]
    assert maps == [(4, 4, 1024), (8, 8, 512), (16, 16, 256), (32, 32, 128)]
    other = discriminator("dcgan", (64, 64, 3))
    assert [other.get_layer(f"relu{i}").output.shape[1] for i in range(4)] == [32, 16, 8, 4]
    names = [layer.name for layer in other.layers]
    assert "bn0" not in names and {"bn1", "bn2", "bn3"} <= {*names}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shape", [(32, 32, 1), (16, 24, 3)])
def test_both_networks_fit_a_picture(name, shape):
    made = gan(name, (7,), image_shape=shape, width=8)(np.zeros((2, 7)))
    assert made.shape == (2, *shape) and np.abs(made).max() <= 1
    assert discriminator(name, shape, 8)(made).shape == (2, 1)


def test_pictures_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="multiples of 4, 16 or more"):
        gan("dcgan", image_shape=(30, 32, 1))


def tiny(loss="non_saturating", smoothing=0.0):
    """Return two linear networks, whose steps can be followed by hand."""
    latent, picture = keras.Input((2,), name="latent"), keras.Input((2, 2, 1), name="picture")
    made = keras.layers.Reshape((2, 2, 1))(keras.layers.Dense(4, use_bias=False)(latent))
    told = keras.layers.Dense(1, use_bias=False)(keras.layers.Flatten()(picture))
    model = Adversarial(keras.Model(latent, made), keras.Model(picture, told), loss, smoothing)
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    return model


@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_is_one_of_each_by_the_papers_gradients(loss, smoothing):
    """Against torch: the discriminator first, then the generator against the new discriminator."""
    model = tiny(loss, smoothing)
    images = np.random.default_rng(0).uniform(0, 255, (6, 2, 2, 1)).astype("float32")
    drawn = []
    draw = model.latent
    model.latent = lambda count: drawn.append(draw(count)) or drawn[-1]
    g, d = (torch.tensor(w, requires_grad=True) for w in model.get_weights())
    model.train_on_batch(images)
    first, second = (torch.tensor(keras.ops.convert_to_numpy(z)) for z in drawn)
    real = torch.tensor(images).reshape(6, 4) / 127.5 - 1
    cost = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(6, 1), torch.zeros(6, 1)
    paid = cost(real @ d, ones * (1 - smoothing)) + cost((first @ g).detach() @ d, zeros)
    (step,) = torch.autograd.grad(paid, d)
    d = (d - 0.5 * step).detach()
    fake = second @ g @ d
    owed = -cost(fake, zeros) if loss == "minimax" else cost(fake, ones)
    (step,) = torch.autograd.grad(owed, g)
    expected = [(g - 0.5 * step).detach(), d]
    for got, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    numbers = {tracker.name: float(tracker.result()) for tracker in model.metrics}
    assert numbers["loss"] == pytest.approx(paid.item(), abs=1e-5)
    assert numbers["generator_loss"] == pytest.approx(owed.item(), abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_step_is_the_same_on_other_backends(backend):
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "papers_gradients", __file__]
    env = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr


def test_frechet_distance_is_the_formula_of_gaussians():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(4000, 3)), random.normal(size=(4000, 3))
    mix = np.array([[2.0, 0.3, 0], [0, 1.0, -0.4], [0, 0, 0.5]])
    assert frechet(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet(a, a + np.array([1, 2, 3])) == pytest.approx(14)
    # Commuting covariances: the squared difference of standard deviations.
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(a.T)), (a - a.mean(0)).T).T
    assert frechet(whitened, whitened * [3, 1, 2]) == pytest.approx(4 + 0 + 1)
    first, second = np.cov(a.T), np.cov((b @ mix).T)
    values = np.linalg.eigvals(first @ second).real
    expected = ((a.mean(0) - (b @ mix).mean(0)) ** 2).sum()
    expected += np.trace(first + second) - 2 * np.sqrt(values).sum()
    assert frechet(a, b @ mix) == pytest.approx(expected)
    assert frechet(b @ mix, a) == pytest.approx(expected)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small DCGAN on the digits, judged by a small network, and exported."""
    folder = tmp_path_factory.mktemp("gan")
    config = Config(
        model="dcgan",
        image_size=16,
        width=16,
        batch_size=32,
        learning_rate=1e-3,
        epochs=3,
        precisions=("fp32", "int8"),
        export=True,
        output=folder / "run",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generative, "_JUDGE_STEPS", 60)
        patch.setattr(generative, "_COMPARED", 200)
        yield folder / "run", config.run()


@pytest.mark.full
def test_a_run_leaves_sheets_figures_and_files(run):
    directory, metrics = run
    test = metrics["test"]
    assert test["classes_there"] == 10 and len(test["classes"]) == 10
    shares = [row["share of samples"] for row in test["classes"].values()]
    assert sum(shares) == pytest.approx(1)
    assert test["classes_covered"] >= 5 and test["frechet"] > 3 * test["frechet_of_real"] > 0
    sheets = sorted((directory / "samples").glob("*.png"))
    assert [path.name for path in sheets] == [f"epoch_000{i}.png" for i in (1, 2, 3)]
    pixels = [np.asarray(Image.open(path)) for path in sheets]
    assert pixels[0].shape == (512, 512) and (pixels[0] != pixels[2]).any()
    with Image.open(directory / "samples.gif") as animation:
        assert animation.n_frames == 3
    for name in ("real", "samples", "interpolation", "classes", "curves"):
        assert Image.open(directory / f"{name}.png").size[0] > 300
    rows = (directory / "history.csv").read_text().splitlines()
    assert len(rows) == 4 and {"val_frechet", "generator_loss"} < {*rows[0].split(",")}
    assert "share of samples" in (directory / "report.md").read_text()


@pytest.mark.full
def test_the_same_numbers_give_the_same_picture_in_every_file(run):
    directory, _ = run
    manifest = json.loads((directory / "export/manifest.json").read_text())
    assert len(manifest["files"]) == 4 and not manifest["failed"]
    assert manifest["inputs"][0]["shape"] == ["batch", 100]
    (output,) = manifest["outputs"]
    assert output["dtype"] == "uint8" and output["shape"] == ["batch", 16, 16, 1]
    model = keras.saving.load_model(directory / "model.keras")
    latent = np.random.default_rng(9).uniform(-1, 1, (20, 100)).astype("float32")
    pictures = model.predict(latent, verbose=0).astype(int)
    assert pictures.std() > 20
    for file in manifest["files"]:
        found = tiffin.export.load(directory / "export" / file["file"])({"latent": latent})
        apart = np.abs(found[output["name"]].astype(int) - pictures)
        if file["precision"] == "fp32":
            assert apart.max() <= 1 and apart.mean() < 0.01
        else:
            assert apart.mean() <= 2


@pytest.mark.full
@pytest.mark.parametrize("sample", ["python_onnxruntime.py", "python_litert.py"])
def test_a_sample_paints_another_picture_each_time(run, sample, tmp_path):
    directory, _ = run
    seen = []
    for _ in range(2):
        command = [sys.executable, str(directory / "export/samples" / sample)]
        subprocess.run(command, cwd=tmp_path, check=True)
        (picture,) = tmp_path.glob("*.png")
        with Image.open(picture) as image:
            assert image.size == (16, 16) and image.mode == "L"
            seen.append(np.asarray(image))
    assert seen[0].std() > 5 and (seen[0] != seen[1]).any()


@pytest.mark.full
def test_ends_of_an_interpolation_are_the_pictures_of_their_numbers(run):
    directory, _ = run
    config = Config(model="dcgan")
    model = keras.saving.load_model(directory / "model.keras")
    ends = config.noise(16, 4).reshape(2, 8, 100)
    sheet = np.asarray(Image.open(directory / "interpolation.png"))[::4, ::4]
    tiles = sheet.reshape(8, 16, 8, 16).swapaxes(1, 2)
    for column, latent in ((0, ends[0]), (7, ends[1])):
        expected = model.predict(latent, verbose=0)[..., 0].astype(int)
        assert np.abs(tiles[:, column].astype(int) - expected).max() <= 1


@pytest.mark.full
def test_a_run_goes_on_where_it_was_left(run, tmp_path, capsys):
    directory, _ = run
    judge = str(directory / "judge/model.keras")
    given = {"model": "dcgan", "image_size": 16, "width": 8, "judge": judge, "output": tmp_path}
    Config(**given, epochs=1).run()
    Config(**given, epochs=2, resume=True).run()
    assert "Resuming after epoch 1 of 2" in capsys.readouterr().out
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    assert len([*(tmp_path / "samples").glob("*.png")]) == 2


def test_loose_pictures_are_compared_by_their_pixels(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Config, "least_steps", 3)
    config = Config(
        data=str(photos / "red"), image_size=16, width=8, epochs=1, batch_size=4, output=tmp_path
    )
    test = config.run()["test"]
    assert test["frechet"] > 0 and "classes" not in test
    assert not (tmp_path / "judge").exists() and not (tmp_path / "labels.txt").exists()
    assert np.asarray(Image.open(tmp_path / "samples.png")).shape[-1] == 3  # in colour


@pytest.mark.full
def test_the_judge_of_a_folder_sees_pictures_of_the_generators_size(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(generative, "_JUDGE_STEPS", 1)
    monkeypatch.setattr(Config, "least_steps", 1)
    config = Config(data=str(photos), width=4, epochs=1, batch_size=8, output=tmp_path)
    test = config.run()["test"]
    judge = keras.saving.load_model(tmp_path / "judge/model.keras")
    assert judge.input.shape == (None, 64, 64, 3) and {*test["classes"]} == {"red", "teal"}


def test_samples_are_counted_by_class_and_spread():
    """A classifier that tells three grey levels apart; features are the level itself."""
    image = keras.Input((4, 4, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(image)
    x = keras.layers.Dense(3, name="logits")(x)
    classifier = keras.Model(image, x)
    levels = np.array([40.0, 120.0, 200.0])
    weights = np.tile(levels / 1000, (3, 1)), -1.5 * levels**2 / 1000
    classifier.set_weights([w.astype("float32") for w in weights])
    data = type("Data", (), {"classes": ["a", "b", "c"]})
    judge = Judge(data, classifier)

    def pictures(*values):
        return np.tile(np.array(values, np.uint8)[:, None, None, None], (1, 4, 4, 1))

    real, labels = pictures(*[40, 120, 200] * 10), np.array([0, 1, 2] * 10)
    numbers, shares = judge.compare(pictures(*[40, 200] * 15), real, labels, 3)
    assert numbers["classes"] == 2 and list(shares) == [0.5, 0, 0.5]
    assert collapse(numbers, 3) is None
    numbers, shares = judge.compare(pictures(*[118, 122] * 15), real, labels, 3)
    assert numbers["classes"] == 1 and list(shares) == [0, 1, 0]
    said = collapse(numbers, 3)
    assert "show 1 of 3 classes" in said and "they vary 0% as much as the data" in said


@pytest.mark.parametrize(
    "change, said",
    [
        ({"latents": 0}, "--latents 0: it must be at least 1"),
        ({"smoothing": 0.9}, "--smoothing 0.9"),
        ({"momentum": 1.0}, "--momentum 1.0"),
        ({"ema": 0.9}, "for one network with one loss"),
        ({"weights": "imagenet"}, "for networks that judge pictures"),
        ({"judge": "ssdlite320_mobilenet_v2"}, "is no classifier"),
        ({"judge": "nowhere.keras"}, "There is no file nowhere.keras"),
        ({"judge": "resnet2"}, "There is no recipe 'resnet2'"),
        ({"model": "dcgan", "image_size": 30}, "multiples of 4, 16 or more"),
        ({"data": "/nowhere"}, "There is no folder /nowhere"),
    ],
)
def test_what_cannot_be_made_is_told_before_the_training(change, said, tmp_path):
    with pytest.raises(InputError, match=said):
        Config(**{"output": tmp_path / "run", **change}).run()
    assert not (tmp_path / "run").exists()
