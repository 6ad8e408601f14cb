"""The embedding task: networks, data, a run from folder to files, and who is at the door."""

import json
import math

import keras
import numpy as np
import pytest
import torch
from parity import quick
from PIL import Image

import tiffin.export
from tiffin import recipes
from tiffin.export import InputError
from tiffin.export.cli import Gallery, Verify
from tiffin.recipes.embedding import am_softmax, arcface, center_loss, contrastive, l_softmax
from tiffin.recipes.engine import registry
from tiffin.recipes.engine.data import ImageData, Split, hold_out, in_pairs, load_images


def trainable(model):
    return sum(math.prod(v.shape) for v in model.trainable_variables)


# name: input shape, dimensions, parameters, source
PUBLISHED = {
    # Koch et al. 2015, figure 4: 38,951,745 with the one last neuron and its 4096 weights.
    "siamese_koch": ((105, 105, 1), None, 38_951_745 - 4097),
    # Four blocks of 64 filters on grey pictures, in the literature on few-shot learning.
    "conv4_64": ((28, 28, 1), None, 111_936),
    # clcarwin/sphereface_pytorch's sphere20a, without the biases that the authors' code freezes at
    # zero (2 (64 + 2 128 + 4 256 + 512) of them) and with its head's 10574 x 512 left out.
    "sphereface20": ((112, 96, 3), 512, 22_666_944),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    shape, dimensions, count = PUBLISHED[name]
    options = {"dimensions": dimensions} if dimensions else {}
    assert trainable(recipes.build(name, shape, **options)) == count


class Block(torch.nn.Module):
    """The improved residual block, written from Deng et al. 2019, figure 2 of the first version."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        nn = torch.nn
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.short = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        return self.body(x) + self.short(x)


def torch_arcface(counts, widths, size):
    nn = torch.nn
    parts = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])]
    parts.append(nn.PReLU(widths[0]))
    before = widths[0]
    for count, width in zip(counts, widths):
        parts += [Block(before if i == 0 else width, width, 1 if i else 2) for i in range(count)]
        before = width
    parts += [nn.BatchNorm2d(before), nn.Flatten(), nn.Linear(before * (size // 16) ** 2, 512)]
    return nn.Sequential(*parts, nn.BatchNorm1d(512, affine=True))


@pytest.mark.parametrize(
    "name", quick([f"arcface_r{depth}" for depth in (18, 34, 50, 100)], "arcface_r18")
)
def test_arcface_networks_are_torchs(name):
    # The authors' code: depths of iresnet18 to iresnet100; its last gamma is frozen.
    depths = {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3], "50": [3, 4, 14, 3], "100": [3, 13, 30, 3]}
    counts = depths[name.removeprefix("arcface_r")]
    with torch.device("meta"):
        whole = torch_arcface(counts, (64, 128, 256, 512), 112)
    wanted = sum(p.numel() for p in whole.parameters()) - 512
    assert registry.find(name).variants[name].parameters == wanted
    assert trainable(recipes.build(name)) == wanted
    if name != "arcface_r18":
        return
    reference = torch_arcface(counts, (16, 32, 64, 128), 32)
    model = recipes.build(name, (32, 32, 3), alpha=0.25)
    ours = iter(layer for layer in in_order_of_torch(model) if layer.weights)
    generator = torch.Generator().manual_seed(0)
    for module in reference.modules():
        if list(module.children()) or not list(module.parameters(recurse=False)):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05
        if isinstance(module, torch.nn.BatchNorm1d):
            module.weight.data.fill_(1)
        layer, values = next(ours), [p.detach() for p in module.parameters(recurse=False)]
        if isinstance(module, torch.nn.Conv2d):
            values = [values[0].permute(2, 3, 1, 0)]
        elif isinstance(module, torch.nn.Linear):
            # Our pictures are flattened with their channels last.
            kernel = values[0].reshape(512, 128, 2, 2).permute(2, 3, 1, 0).reshape(-1, 512)
            values = [kernel, values[1]]
        elif isinstance(module, torch.nn.PReLU):
            values = [values[0].reshape(tuple(layer.alpha.shape))]
        else:
            values += [module.running_mean, module.running_var]
            values = (
                values[len(values) - len(layer.weights) :] if len(layer.weights) < 4 else values
            )
        layer.set_weights([v.numpy() for v in values])
    assert next(ours, None) is None
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    with torch.no_grad():
        wanted = reference.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(model.predict_on_batch(x), wanted, rtol=1e-4, atol=1e-4)


def in_order_of_torch(model):
    """Return the layers in the order in which torch lists a block's: the shortcut comes last."""
    named = {layer.name: layer for layer in model.layers}
    blocks = [name.removesuffix("_bn1") for name in named if name.endswith("_bn1")]
    yield from (named[n] for n in ("conv1_conv", "bn1", "prelu"))
    for block in blocks:
        parts = ("bn1", "conv1_conv", "bn2", "prelu", "conv2_conv", "bn3")
        parts += ("downsample_conv_conv", "downsample_bn")
        yield from (named[f"{block}_{p}"] for p in parts if f"{block}_{p}" in named)
    yield from (named[n] for n in ("neck_bn", "embedding", "embedding_bn"))


def split(labels, size=8):
    labels = np.array(labels, np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (len(labels), size, size, 3))
    return Split(labels, (size, size), images.astype(np.uint8))


def test_validation_of_a_loss_of_pairs_has_pairs():
    found = in_pairs(split([3, 1, 0, 1]), split([0, 0, 1, 2, 3, 3]), 4, seed=0)
    assert sorted(found.labels) == [0, 0, 1, 1, 3, 3]
    assert (found.labels[::2] == found.labels[1::2]).all()
    assert (found.images[:, 0, 0, 0] == found.labels).all()
    # Of many of each class no batch is of one alone.
    found = in_pairs(split(np.repeat(np.arange(10), 64)), split(np.arange(10)), 4, seed=0)
    rows = found.labels.reshape(-1, 4)
    assert (rows == rows[:, :1]).all()
    assert all(len(np.unique(batch)) > 4 for batch in found.labels.reshape(-1, 64))


def test_held_out_classes_are_in_the_test_alone():
    whole = split(np.repeat(np.arange(8), 5))
    parts = {"train": whole, "validation": whole.take(np.arange(0, 40, 5)), "test": whole}
    data = hold_out(ImageData("toy", list("abcdefgh"), **parts), 0.25, seed=0)
    assert len(data.classes) == 6 and len(data.test_classes) == 2
    assert not set(data.classes) & set(data.test_classes)
    for part, names in (
        (data.train, data.classes),
        (data.validation, data.classes),
        (data.test, data.test_classes),
    ):
        assert set(part.labels) == set(range(len(names)))
        shown = ["abcdefgh"[image[0, 0, 0]] for image in part.images]
        assert shown == [names[label] for label in part.labels]
    assert len(data.train) == 60 and len(data.validation) == 6 and len(data.test) == 22
    assert "2 classes of the test are in the test alone" in data.summary()
    three = ImageData("three", list("abc"), whole, whole, whole)
    with pytest.raises(InputError, match="has 3 classes.*--unseen 0"):
        hold_out(three, 0.3, 0)


def test_batches_have_several_of_a_class_in_a_row():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 12))
    data = split(labels)
    batches = data.training_batches(24, seed=1, in_a_row=4)
    seen = np.concatenate([b[1] for b in batches.take(10).as_numpy_iterator()])
    first, second = seen[:120], seen[120:]
    assert (np.bincount(first) == 12).all(), "an epoch has each example once"
    rows = first.reshape(30, 4)
    assert (rows == rows[:, :1]).all()
    assert not np.array_equal(first, second)
    assert len(set(rows[:6, 0])) > 2, "rows of a class are spread"
    resumed = data.training_batches(24, seed=1, first_epoch=1, in_a_row=4)
    again = np.concatenate([b[1] for b in resumed.take(5).as_numpy_iterator()])
    np.testing.assert_array_equal(again, second)


def faces(folder, people=8, pictures=6, depth=""):
    """Draw people as stripes of their own direction and width, each picture a little different."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:24, :20]
    for person in range(people):
        angle, width = math.pi * person / people, 3 + person % 3
        home = folder / depth / f"p{person}"
        home.mkdir(parents=True)
        for picture in range(1, pictures + 1):
            wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) / width * 2 + picture / 6)
            image = 128 + 90 * wave + random.normal(0, 8, wave.shape)
            image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            image.save(home / f"p{person}_{picture:04d}.png")
    return folder


def test_identities_are_the_innermost_folders(tmp_path):
    faces(tmp_path / "many", 4, 4, "first")
    faces(tmp_path / "many", 4, 4, "second")
    data = load_images(str(tmp_path / "many"), None, 16, 224, 0, leaves=True)
    assert data.classes[:2] == ["first/p0", "first/p1"] and len(data.classes) == 8
    assert len(load_images(str(tmp_path / "many"), None, 16, 224, 0).classes) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train a small siamese network on the stripes."""
    folder = tmp_path_factory.mktemp("run")
    data = faces(folder / "faces")
    config = contrastive.Config(
        data=str(data), image_size=16, epochs=12, batch_size=16, output=folder / "out", export=True
    )
    return config.run(), folder


def test_a_run_leaves_an_embedder_and_its_figures(run):
    metrics, folder = run
    out, test = folder / "out", metrics["test"]
    assert test["verification_accuracy"] > 0.8 and 0 < test["threshold"] < 2
    assert test["examples"] == 12 and "accuracy" not in test
    for name in ("roc.png", "embeddings.png", "embeddings_by_epoch.png", "curves.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 200
    with np.load(out / "embeddings.npz") as kept:
        assert len(kept.files) == 12
    manifest = json.loads((out / "export/manifest.json").read_text())
    assert [o["name"] for o in manifest["outputs"]] == ["embeddings"]
    assert manifest["verification"]["threshold"] == test["threshold"]
    least = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99}
    assert len(manifest["files"]) == 6
    for file in manifest["files"]:
        assert file["mean_cosine"] >= least[file["precision"]]
        pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
        found = tiffin.export.load(out / "export" / file["file"])(pixels)["embeddings"]
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=0.02)
    assert "Embeddings" not in (out / "report.md").read_text().splitlines()[0]


@pytest.mark.parametrize("file", ["", "export/conv4_64_int8.tflite", "export/conv4_64_fp16.onnx"])
def test_verify_says_who_is_the_same(run, file, capsys):
    _, folder = run
    a, b = folder / "faces/p0/p0_0001.png", folder / "faces/p4/p4_0001.png"
    for second, said in ((a, "the same"), (b, "different")):
        Verify(folder / "out" / file, a, second).run()
        assert capsys.readouterr().out.strip().endswith(f": {said}")
    Verify(folder / "out" / file, a, b, threshold=2).run()
    assert "threshold 2.0000: the same" in capsys.readouterr().out


def test_gallery_enrols_and_identifies(run, tmp_path, capsys):
    _, folder = run
    model = folder / "out/export/conv4_64_fp32.tflite"
    asked = folder / "faces/p3/p3_0002.png"
    (folder / "faces/p1/broken.png").write_bytes(b"no picture")
    saved = tmp_path / "people.npz"
    Gallery(model, folder / "faces", (asked,), save=saved).run()
    shown = capsys.readouterr()
    assert "8 enrolled by 48 pictures" in shown.out and "p3_0002.png: p3 " in shown.out
    assert "broken.png" in shown.err
    Gallery(model, saved, (asked,), threshold=0).run()
    assert "p3_0002.png" in capsys.readouterr().out
    black = tmp_path / "black.png"
    Image.new("RGB", (20, 20)).save(black)
    Gallery(model, saved, (black,), threshold=0).run()
    assert "black.png: unknown" in capsys.readouterr().out
    with pytest.raises(InputError, match="another model"):
        Gallery(folder / "out/export/conv4_64_int8.tflite", saved, (asked,)).run()
    for no_gallery in (asked, tmp_path / "none.npz"):
        with pytest.raises(InputError, match="no gallery"):
            Gallery(model, no_gallery, (asked,)).run()
    with pytest.raises(InputError, match="Name the pictures"):
        Gallery(model, saved, ()).run()


def test_embedders_need_a_threshold_and_embeddings(run, tmp_path):
    _, folder = run
    alone = tmp_path / "alone.tflite"
    alone.write_bytes((folder / "out/export/conv4_64_fp32.tflite").read_bytes())
    picture = folder / "faces/p0/p0_0001.png"
    with pytest.raises(InputError, match="give it with --threshold"):
        Verify(alone, picture, picture).run()
    with pytest.raises(InputError, match="from 0 to 2"):
        Verify(alone, picture, picture, threshold=3).run()
    (tmp_path / "manifest.json").write_text('{"files": []}')
    with pytest.raises(InputError, match="holds no threshold"):
        Verify(alone, picture, picture).run()
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(image))
    keras.Model(image, {"probabilities": x}).save(tmp_path / "classifier.keras")
    with pytest.raises(InputError, match="embeds nothing"):
        Verify(tmp_path / "classifier.keras", picture, picture, threshold=1).run()


@pytest.mark.full
def test_margin_run_keeps_a_classifier_and_resumes(tmp_path):
    options = {"output": tmp_path / "run", "batch_size": 64, "image_size": 16}
    first = l_softmax.Config(epochs=1, margin=2, **options)
    first.dimensions, first.learning_rate = 16, 0.02
    metrics = first.run()
    assert metrics["test"]["accuracy"] > 0.3 and "intra_to_inter" in metrics["test"]
    classifier = keras.saving.load_model(tmp_path / "run/classifier.keras", compile=False)
    embedder = keras.saving.load_model(tmp_path / "run/model.keras", compile=False)
    assert classifier.output_shape == (None, 10) and embedder.output_shape == (None, 16)
    again = l_softmax.Config(epochs=2, margin=2, resume=True, **options)
    again.dimensions, again.learning_rate = 16, 0.02
    assert again.run()["epochs"] == 2
    with np.load(tmp_path / "run/embeddings.npz") as kept:
        assert kept.files == ["0001", "0002"]


@pytest.mark.full
def test_backbone_of_the_collection_and_its_weights(tmp_path):
    config = am_softmax.Config(backbone="resnet20", dimensions=12)
    trainer = config.network((32, 32, 3), 4, (127.5, 127.5))
    assert trainer.embedder.name == "resnet20" and trainer.embedder.output_shape == (None, 12)
    assert config.inference(trainer).output_shape == (None, 12)
    recipes.build("resnet20", normalization=(127.5, 127.5)).save(tmp_path / "resnet20.keras")
    config = arcface.Config(
        backbone="resnet20", dimensions=8, epochs=1, weights=str(tmp_path / "resnet20.keras"),
        output=tmp_path / "run", freeze="conv3_block1_out", batch_size=256,
    )  # fmt: skip
    config.run()


def test_backbone_of_another_embedder():
    config = contrastive.Config(backbone="arcface_r18", alpha=0.125, dimensions=12)
    model = config.network((32, 32, 3), 4, (127.5, 127.5))
    assert model.name == "arcface_r18" and model.output_shape == (None, 12)
    assert model.get_layer("layer4_1_conv2_conv").filters == 64


def test_a_flat_neck_keeps_where_things_are():
    config = am_softmax.Config(backbone="resnet20", dimensions=12, neck="flatten", dropout=0.4)
    embedder = config.embedder((32, 32, 3), (127.5, 127.5))
    assert embedder.output_shape == (None, 12)
    assert embedder.get_layer("embedding").kernel.shape == (4 * 4 * 64, 12)  # 8 x 8 cells, averaged
    assert [layer.rate for layer in embedder.layers if isinstance(layer, keras.layers.Dropout)] == [
        0.4
    ]


@pytest.mark.parametrize(
    "config, message",
    [
        (center_loss.Config(unseen=1.0), "--unseen 1.0"),
        (center_loss.Config(dimensions=0), "--dimensions 0"),
        (center_loss.Config(center_weight=-1), "--center-weight -1"),
        (center_loss.Config(center_alpha=2), "--center-alpha 2"),
        (center_loss.Config(alpha=0.5), "--alpha: lenets_plus_plus has no width"),
        (center_loss.Config(backbone="resnet20", alpha=0.5), "--alpha: resnet20 has no width"),
        (center_loss.Config(backbone="resnet51"), "did you mean"),
        (am_softmax.Config(scale=0), "--scale 0"),
        (arcface.Config(margin=28.6), "radians"),
        (arcface.Config(dropout=1.0), "--dropout 1.0"),
        (l_softmax.Config(annealing=(1, 1, 1, 5)), "--annealing 1 1 1 5"),
        (contrastive.Config(margin=3), "--margin 3"),
        (contrastive.Config(in_a_row=0), "--in-a-row 0"),
    ],
)
def test_wrong_options_are_told_before_anything_is_loaded(config, message):
    with pytest.raises(InputError, match=message):
        config.run()


def test_pairs_files_need_a_folder(tmp_path):
    config = contrastive.Config(pairs=tmp_path / "pairs.txt", output=tmp_path / "run")
    with pytest.raises(InputError, match="--data FOLDER"):
        config.run()
