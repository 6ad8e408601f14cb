"""Videos: what a detector finds, drawn frame by frame; and what can go wrong with them."""

from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from PIL import Image

from tiffin import layers
from tiffin.export import InputError, cli, detections, videos

LABELS = ("dark", "bright")
FRAMES, HEIGHT, WIDTH = 12, 48, 80


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A detector that sees each bright quarter of a picture, without labels."""
    image = keras.Input((64, 64, 3), name="image")
    level = keras.layers.AveragePooling2D(32)(keras.layers.Rescaling(1 / 255)(image))
    scores = keras.layers.Conv2D(2, 1, activation="sigmoid", name="scores")
    x = keras.layers.Reshape((-1, 2))(scores(level))
    anchors = layers.grid_anchors([[24, 24]], (2, 2), (32, 32))
    zeros = keras.layers.Conv2D(4, 1, kernel_initializer="zeros", name="deltas")(level)
    boxes = layers.DecodeBoxes(anchors, (0.1, 0.2), (64, 64))(keras.layers.Reshape((-1, 4))(zeros))
    found = layers.NonMaxSuppression(8, 0.5, 0.2, 20, name="detections")(boxes, x)
    model = keras.Model(image, found, name="bright")
    kernel = np.zeros((1, 1, 3, 2), "float32")
    kernel[..., 1] = 20 / 3
    scores.set_weights([kernel, np.array([-9, -12], "float32")])
    folder = tmp_path_factory.mktemp("detector")
    model.save(folder / "bright.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    return folder / "bright.keras"


def scene(i):
    """Return a frame, in its upper left quarter a bright patch from the fourth on."""
    frame = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    if i >= 3:
        frame[:24, :40] = 240
    return frame


def film(path, codec="mp4v", count=FRAMES, rate=12.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for i in range(count):
        writer.write(scene(i))
    writer.release()
    return path


def predict(*words):
    return cli.run(lambda: cli.parse(cli.Predict, [str(word) for word in words], "predict"))


def frames(path):
    capture = cv2.VideoCapture(str(path))
    result = []
    while (read := capture.read())[0]:
        result.append(read[1])
    return result, capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("name, codec", [("clip.mp4", "mp4v"), ("clip.AVI", "MJPG")])
def test_boxes_are_drawn_on_every_frame(file, tmp_path, capsys, name, codec):
    path, out = film(tmp_path / name, codec), tmp_path / "out"
    assert predict(file, path, "--output", out) == 0
    said = capsys.readouterr()
    target = out / ("clip.mp4" if name == "clip.mp4" else f"{name}.mp4")
    assert (
        f"{FRAMES} frames," in said.out and f"drawn in {target}; found in all: 9 bright" in said.out
    )
    assert said.err == "" and [p.name for p in out.iterdir()] == [target.name]
    drawn, rate = frames(target)
    assert len(drawn) == FRAMES and rate == pytest.approx(12.5)
    for i, frame in enumerate(drawn):
        assert frame.shape == (HEIGHT, WIDTH, 3)
        changed = np.abs(frame.astype(int) - scene(i)).max(-1) > 60
        assert changed.any() == (i >= 3) and not changed[36:, 60:].any()


def test_videos_lie_beside_pictures_in_folders(file, tmp_path, capsys):
    film(tmp_path / "in" / "a" / "x.webm", "VP80", 3)
    film(tmp_path / "in" / "x.mkv", count=5)
    Image.fromarray(scene(5)).save(tmp_path / "in" / "x.png")
    (tmp_path / "in" / "bad.mov").write_bytes(b"no video")
    assert predict(file, tmp_path / "in", "--output", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "Skipped: " in said.err and "bad.mov is an empty or damaged video" in said.err
    assert "3 frames," in said.out and "found in all: nothing" in said.out and "1 found" in said.out
    found = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")
    )
    assert found == ["a/x.webm.mp4", "x.mkv.mp4", "x.png"]


@pytest.mark.parametrize("content", [b"", b"no video at all" * 99, "cut"])
def test_broken_videos_are_named(file, tmp_path, capfd, content):
    path = tmp_path / "clip.mp4"
    content = film(path).read_bytes()[:-200] if content == "cut" else content
    path.write_bytes(content)
    assert predict(file, path, "--output", tmp_path / "out") == 2
    said = capfd.readouterr()
    assert f"error: {path} is an empty or damaged video" in said.err and len(said.err) < 400
    assert not (tmp_path / "out").exists()


def test_a_classifier_takes_no_video(exported, tmp_path, capsys):
    path = film(tmp_path / "clip.mp4")
    assert predict(exported / "colours_fp32.onnx", path) == 2
    assert "clip.mp4 is a video, and " in (err := capsys.readouterr().err) and "no detector" in err
    assert predict(exported / "colours_fp32.onnx", tmp_path / "none.mp4") == 2


def test_no_video_there(file, tmp_path, capsys):
    assert predict(file, tmp_path / "none.mp4") == 2
    assert "There is no video at" in capsys.readouterr().err


def test_nothing_half_written_is_left(file, tmp_path, monkeypatch, capsys):
    path, out = film(tmp_path / "clip.mp4"), tmp_path / "out"
    (out).mkdir()
    (out / "clip.mp4").write_bytes(b"of before")
    calls = iter(range(99))

    def interrupted(*arguments):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(detections, "find", interrupted)
    assert predict(file, path, "--output", out) == 130
    assert [p.name for p in out.iterdir()] == ["clip.mp4"]
    assert (out / "clip.mp4").read_bytes() == b"of before"


def test_a_video_is_not_overwritten(file, tmp_path, capsys):
    before = film(tmp_path / "clip.mp4").read_bytes()
    assert predict(file, tmp_path / "clip.mp4", "--output", tmp_path) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "clip.mp4").read_bytes() == before


class Lossy:
    """A writer that loses every frame; a class derived from OpenCV's would crash Python."""

    def __init__(self, path, *_):
        Path(path).write_bytes(b"")

    def isOpened(self):
        return True

    def write(self, frame):
        pass

    release = isOpened


def test_a_missing_codec_and_lost_frames_are_told(tmp_path, monkeypatch):
    with (
        pytest.raises(InputError, match="lacks the codec mp4v .*or the video is too large"),
        videos.writing_video(tmp_path / "a.mp4", (64, 100_000), 10),
    ):
        pass
    monkeypatch.setattr(cv2, "VideoWriter", Lossy)
    with (
        pytest.raises(InputError, match=r"a\.mp4: 0 of 2 frames arrived"),
        videos.writing_video(tmp_path / "a.mp4", (48, 64), 10) as write,
    ):
        write(np.zeros((48, 64, 3), np.uint8))
        write(np.zeros((48, 64, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
