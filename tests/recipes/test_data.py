"""Data: what is recognised, how it is split, and what a bad file gets."""

import io
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tiffin.export.errors import InputError
from tiffin.export.images import load_image
from tiffin.recipes.engine import data

sys.path.insert(0, str(Path(__file__).parent))
import tiny_recipe


def load(path, size=16, seed=0):
    return data.load_images(str(path), None, size, 224, seed)


def test_digits_are_all_there_and_stratified():
    digits = data.load_images("digits", None, None, 224, 0)
    parts = [digits.train, digits.validation, digits.test]
    assert sum(map(len, parts)) == 1797
    for part in parts:
        shares = np.bincount(part.labels) / len(part)
        assert part.images.shape[1:] == (32, 32, 3) and part.images.dtype == np.uint8
        assert np.all(np.abs(shares - 0.1) < 0.03)


def test_folder_is_split_by_seed_without_overlap(photos):
    first, again, other = load(photos), load(photos), load(photos, seed=1)
    assert first.classes == ["red", "teal"]
    names = [set(part.paths) for part in (first.train, first.validation, first.test)]
    assert len(set.union(*names)) == sum(map(len, names)) == 20
    assert list(first.test.paths) == list(again.test.paths) != list(other.test.paths)
    assert set(first.test.labels) == set(first.validation.labels) == {0, 1}


def test_split_folders_are_taken_as_they_are(photos, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(photos, root / "train")
    for part in ("val", "test"):
        for name in ("red", "teal"):
            (root / part / name).mkdir(parents=True)
            source = root / "train" / name / f"{name}{dict(val=0, test=1)[part]}.png"
            source.rename(root / part / name / source.name)
    found = load(root)
    assert [len(found.train), len(found.validation), len(found.test)] == [16, 2, 2]
    assert Path(found.test.paths[0]).name == "red1.png"


def test_streamed_pixels_equal_decoded_ones_and_bad_files_are_skipped(photos, monkeypatch, capfd):
    whole = load(photos).train
    bad = set(whole.paths[:2])
    for path in bad:
        Path(path).write_bytes(b"no picture")
    monkeypatch.setattr(data, "_fits", lambda *_: False)
    streamed = load(photos).train
    assert streamed.images is None and list(streamed.paths) == list(whole.paths)
    images, labels = streamed.arrays()
    good = [i for i, path in enumerate(whole.paths) if path not in bad]
    np.testing.assert_array_equal(images, whole.images[good])
    np.testing.assert_array_equal(labels, whole.labels[good])
    said = capfd.readouterr().out
    assert all(said.count(f"Skipped: {path} ") == 1 for path in bad)


def test_every_epoch_is_a_new_permutation_that_resume_repeats():
    labels = np.arange(50, dtype=np.int32)
    images = np.tile(labels.astype(np.uint8)[:, None, None, None], (1, 8, 8, 3))
    split = data.Split(labels, (8, 8), images)
    batches = list(split.training_batches(10, seed=3).take(15).as_numpy_iterator())
    epochs = [np.concatenate([b[1] for b in batches[i : i + 5]]) for i in (0, 5, 10)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert not np.array_equal(epochs[0], epochs[1])
    assert all(np.array_equal(image[:, 0, 0, 0], label) for image, label in batches)
    resumed = split.training_batches(10, seed=3, first_epoch=2).take(5).as_numpy_iterator()
    assert np.array_equal(np.concatenate([b[1] for b in resumed]), epochs[2])


def test_a_class_may_be_called_like_a_figure_of_the_table(photos, tmp_path):
    (photos / "red").rename(photos / "accuracy")
    found = load(photos)
    assert found.classes == ["accuracy", "teal"]
    pixels = keras.Input((16, 16, 3))
    logits = keras.layers.Dense(2)(keras.layers.Flatten()(pixels))
    config = tiny_recipe.Config(data=str(photos))
    result = config.evaluate(keras.Model(pixels, logits), found, tmp_path)
    support = [row["support"] for row in result["classes"].values()]
    assert list(result["classes"]) == found.classes and sum(support) == len(found.test)


def test_split_folders_without_train_are_refused(photos, tmp_path):
    for name in ("val", "test"):
        shutil.copytree(photos, tmp_path / "split" / name)
    with pytest.raises(InputError, match="has test and val but no train folder"):
        load(tmp_path / "split")


def test_unreadable_files_do_not_shift_later_epochs(photos, monkeypatch):
    split = load(photos).train
    monkeypatch.setattr(data, "_fits", lambda *_: False)
    for path in split.paths[:3]:
        Path(path).write_bytes(b"no picture")
    streamed = load(photos).train
    steps = len(streamed) // 4
    whole = list(streamed.training_batches(4, seed=1).take(3 * steps).as_numpy_iterator())
    resumed = streamed.training_batches(4, seed=1, first_epoch=2).take(steps).as_numpy_iterator()
    for (a, b), (c, d) in zip(whole[2 * steps :], resumed, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def picture(mode: str) -> Image.Image:
    ramp = np.linspace(0, 255, 64).reshape(8, 8).round().astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16) * 257)
    return Image.fromarray(ramp).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16", "1", "LA", "RGBA", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture(mode).save(path)
    expected = picture("1" if mode == "1" else "L").convert("RGB")
    pixels = load_image(path)
    assert pixels.dtype == np.uint8 and pixels.shape == (8, 8, 3)
    assert np.abs(pixels.astype(int) - np.asarray(expected, int)).max() <= 1


def test_a_camera_s_rotation_is_applied_and_transparency_is_white(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = load_image(tmp_path / "turned.png")
    assert turned.shape == (6, 4, 3) and turned[0, 3, 0] == 255
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").min() == 255


def jpeg(truncated: bool) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()[: len(stream.getvalue()) // (2 if truncated else 1)]


@pytest.mark.parametrize("content", [jpeg(True), b"just text", b""], ids=["cut", "text", "empty"])
def test_one_bad_file_is_named_counted_and_skipped(photos, content, capsys):
    (photos / "red" / "bad.jpg").write_bytes(content)
    found = load(photos)
    assert len(found.skipped) == 1 and "bad.jpg" in found.skipped[0]
    assert "bad.jpg" in capsys.readouterr().out and "1 unreadable skipped" in found.summary()
    assert len(found.train) + len(found.validation) + len(found.test) == 20


def test_what_is_no_data_set_says_what_is_expected(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing in it.*one folder of images a class"):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match="10 images but no class folders"):
        load(photos / "red")
    with pytest.raises(InputError, match="There is no folder"):
        load(tmp_path / "missing")
    with pytest.raises(InputError, match="is a file"):
        load(photos / "red" / "red0.png")
    with pytest.raises(InputError, match="neither 'digits'.*did you mean 'cifar10'"):
        load("cifar01")
    with pytest.raises(InputError, match="no folder .*--data-dir"):
        data.load_images("mnist", tmp_path / "nowhere", None, 224, 0)


def test_a_data_set_that_cannot_be_fetched_says_where_it_may_lie(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(self):
        raise OSError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(InputError, match=r"mnist is not prepared under .*no route.*--data-dir"):
        data.load_images("mnist", tmp_path, None, 224, 0)


def test_classes_that_cannot_be_learned_are_named(photos):
    for path in sorted((photos / "teal").iterdir())[2:]:
        path.unlink()
    with pytest.raises(InputError, match="Class 'teal' .* has 2 readable images"):
        load(photos)
    for path in (photos / "teal").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="Class 'teal' has no readable image"):
        load(photos)
    shutil.rmtree(photos / "teal")
    with pytest.raises(InputError, match="one class folder, 'red'"):
        load(photos)
