"""Detectors set by hand: they find squares of a colour, in all six files, and draw them."""

import keras
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from PIL import Image

from tiffin import layers
from tiffin.export import ExportError, InputError, cli, documents, load, stage, verify
from tiffin.export.detections import find
from tiffin.export.images import Frame
from tiffin.recipes.engine.detection import mean_average_precision

LABELS = ("red", "green", "blue")
CELL, SIDE = 16, 64


@pytest.fixture(scope="module")
def detector():
    """Return a model that finds a class in each 16 x 16 cell that is bright in its colour."""
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = keras.layers.AveragePooling2D(CELL)(keras.layers.Rescaling(1 / 255)(image))
    logits, deltas = keras.layers.Conv2D(3, 1, name="logits"), keras.layers.Conv2D(4, 1, name="d")
    scores = keras.layers.Reshape((-1, 3))(keras.layers.Activation("sigmoid")(logits(x)))
    anchors = layers.grid_anchors([[20, 12]], (4, 4), (CELL, CELL))
    boxes = layers.DecodeBoxes(anchors, (0.1, 0.2), (SIDE, SIDE))
    boxes = boxes(keras.layers.Reshape((-1, 4))(deltas(x)))
    found = layers.NonMaxSuppression(8, 0.5, 0.2, 20, name="detections")(boxes, scores)
    model = keras.Model(image, found, name="squares")
    logits.set_weights([10 * np.eye(3, dtype="float32")[None, None], np.full(3, -5.0)])
    deltas.set_weights([np.zeros((1, 1, 3, 4)), np.zeros(4)])
    return model


def pictures(count, seed=0):
    """Return pictures with a few bright cells, and their boxes and classes."""
    random = np.random.default_rng(seed)
    images = np.full((count, SIDE, SIDE, 3), 20, np.uint8)
    boxes, classes = np.zeros((count, 3, 4), np.float32), np.full((count, 3), -1, np.int32)
    for i in range(count):
        for k, cell in enumerate(random.permutation(16)[: random.integers(0, 4)]):
            y, x = CELL * (cell // 4), CELL * (cell % 4)
            kind = random.integers(3)
            level = random.integers(160, 256)
            images[i, y : y + CELL, x : x + CELL, kind] = level
            boxes[i, k], classes[i, k] = [y - 2, x + 2, y + 18, x + 14], kind
    return images, boxes.clip(0, SIDE), classes


def hits(outputs, targets):
    """Return the share of objects whose class is found in their place."""
    total = right = 0
    for i, kinds in enumerate(targets["classes"]):
        n = outputs["count"][i]
        for box, kind in zip(targets["boxes"][i][kinds >= 0], kinds[kinds >= 0], strict=True):
            near = np.abs(outputs["boxes"][i, :n] - box).max(-1) < 1
            right += bool((near & (outputs["classes"][i, :n] == kind)).any())
            total += 1
    return right / total


@pytest.fixture(scope="module")
def folder(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    images, boxes, classes = pictures(40)
    manifest = stage.export(
        detector,
        folder,
        calibration=images,
        evaluation=(images, {"boxes": boxes, "classes": classes}),
        metric=hits,
        labels=LABELS,
        task="detection",
        max_loss=0.02,
        say=lambda line: None,
    )
    assert len(manifest["files"]) == 6 and not manifest["failed"]
    assert manifest["reference"]["value"] == 1.0
    for file in manifest["files"]:
        assert file["matched"] >= (0.99 if file["precision"] == "fp32" else 0)
        assert file["metric"] == 1.0 and file["detections"] > 40 and not file.get("float_layers")
    detector.save(folder / "model.keras")
    return folder


def test_int8_keeps_places_in_float32(folder, detector):
    images, _, _ = pictures(10, seed=3)
    wanted = detector.predict(images, verbose=0)
    for file in ("squares_int8.onnx", "squares_int8.tflite"):
        got = load(folder / file)(images)
        assert got["count"].tolist() == wanted["count"].tolist()
        for i, n in enumerate(got["count"]):
            mine, theirs = (sorted(o["boxes"][i, :n].round(3).tolist()) for o in (got, wanted))
            np.testing.assert_allclose(mine, theirs, atol=0.01)


def test_mediapipe_opens_relative_detections(detector, tmp_path):
    """A client that nobody here wrote finds the same objects, by name, in the picture's pixels."""
    mediapipe = pytest.importorskip("mediapipe")
    vision = pytest.importorskip("mediapipe.tasks.python.vision")
    relative = layers.RelativeDetections((SIDE, SIDE))(detector.output)
    model = keras.Model(detector.input, relative, name="squares")
    images, _, _ = pictures(40)
    manifest = stage.export(
        model, tmp_path, formats=("tflite",), calibration=images, labels=LABELS, say=lambda _: None
    )
    assert manifest["outputs"][0]["units"] == "relative"
    wanted = detector.predict(images, verbose=0)
    for file in ("squares_fp32.tflite", "squares_int8.tflite"):
        options = vision.ObjectDetectorOptions(
            base_options=mediapipe.tasks.BaseOptions(model_asset_path=str(tmp_path / file)),
        )
        with vision.ObjectDetector.create_from_options(options) as client:
            for i, image in enumerate(images[:10]):
                picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
                found = client.detect(picture).detections
                mine = [
                    (
                        one.categories[0].category_name,
                        one.bounding_box.origin_y,
                        one.bounding_box.origin_x,
                    )
                    for one in found
                ]
                n = wanted["count"][i]
                theirs = [
                    (LABELS[kind], round(float(box[0])), round(float(box[1])))
                    for box, kind in zip(
                        wanted["boxes"][i, :n], wanted["classes"][i, :n], strict=True
                    )
                ]
                assert len(mine) == n and sorted(mine) == sorted(theirs)
    runner = load(tmp_path / "squares_fp32.tflite")
    best = find(runner, images[0], 0.5)
    n = int((wanted["scores"][0] >= 0.5).sum())
    np.testing.assert_allclose([one.box for one in best], wanted["boxes"][0, :n], atol=0.01)


def test_documents_speak_of_detections(folder):
    card = (folder / documents.CARD).read_text()
    assert "same detections" in card and "detections matched 0.99" in card
    assert "100.00%, of the sure ones 100.00%" in card


@pytest.mark.parametrize("file", ["model.keras", "squares_fp32.onnx", "squares_int8.tflite"])
def test_predict_draws_in_the_pictures_own_pixels(file, folder, tmp_path, capsys):
    # Twice as wide as high: the network sees it 64 x 32 with grey above and below.
    image = np.full((100, 200, 3), 20, np.uint8)
    image[50:100, 100:150] = [20, 20, 250]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "in" / "deep" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    if file == "model.keras":
        (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    words = [str(folder / file), str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    words += ["--score", "0.6"]  # the grey around it is a little of each colour
    cli.parse(cli.Predict, words, "predict")
    said = capsys.readouterr()
    assert "blue" in said.out and "1 found" in said.out and "b.png" in said.err
    # The cell at (32, 32), its box 20 high and 12 wide, of 3.125 pixels of the picture each.
    at = said.out.split("x2: ")[1].split(")")[0]
    np.testing.assert_allclose([*map(float, at.split(","))], [44, 106, 100, 144], atol=1)
    drawn = np.asarray(Image.open(next((tmp_path / "out").rglob("a.png"))))
    assert drawn.shape == image.shape and (drawn[70, 105:108] != image[70, 105:108]).any()
    assert (drawn[20, 20] == image[20, 20]).all()


def test_predict_overwrites_no_picture(folder, tmp_path):
    for name in ("a/x.png", "b/x.png", "a/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(tmp_path / name)
    file, out = str(folder / "squares_fp32.onnx"), tmp_path / "out"
    pictures = [str(tmp_path / "a"), str(tmp_path / "b" / "x.png")]
    cli.parse(cli.Predict, [file, *pictures, "--output", str(out)], "predict")
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png"))
    assert found == ["a/x.jpg.png", "a/x.png", "b/x.png"]
    before = (tmp_path / "a" / "x.png").read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        cli.parse(cli.Predict, [file, pictures[0], "--output", pictures[0]], "predict")
    assert (tmp_path / "a" / "x.png").read_bytes() == before


def test_frames_map_there_and_back():
    frame = Frame.around((100, 200), (64, 64))
    assert (frame.scale, frame.top, frame.left) == (0.32, 16, 0)
    boxes = np.array([[0, 0, 100, 200], [10, 20, 30, 40]], float)
    np.testing.assert_allclose(frame.back(frame.place(boxes)), boxes)
    assert frame.back([[0, 0, 64, 64]]).tolist() == [[0, 0, 100, 200]]


def outputs(scores, boxes=None, classes=None):
    scores = np.array(scores, np.float32)
    n = scores.shape[1]
    grid = np.arange(n)[:, None] * [30, 30, 30, 30] + [0, 0, 20, 20]
    boxes = np.tile(grid, (len(scores), 1, 1)) if boxes is None else boxes
    classes = np.zeros(scores.shape, int) if classes is None else classes
    return {"boxes": boxes, "scores": scores, "classes": classes, "count": [n] * len(scores)}


def test_detections_are_compared_one_by_one():
    wanted = outputs([[0.9, 0.8, 0.2]])
    assert verify.compare_detections(wanted, wanted)["matched"] == 1
    # Two of the same score may change places.
    order = [1, 0, 2]
    turned = {k: v if k == "count" else v[:, order] for k, v in wanted.items()}
    assert verify.compare_detections(wanted, turned)["matched"] == 1
    for change in (
        outputs([[0.9, 0.8, 0.21]]),
        outputs([[0.9, 0.8, 0.2]], wanted["boxes"] + [0, 0, 0, 1.5] * np.eye(3)[None, :, :1]),
        outputs([[0.9, 0.8, 0.2]], classes=np.array([[0, 1, 0]])),
    ):
        assert verify.compare_detections(wanted, change)["matched"] == pytest.approx(2 / 3)
    less = {k: v if k == "count" else v[:, :2] for k, v in wanted.items()} | {"count": [2]}
    found = verify.compare_detections(wanted, less)
    assert found["matched"] == pytest.approx(4 / 5) and found["sure_found"] == 1
    assert verify.compare_detections(wanted, outputs([[0.7, 0.75, 0.2]]))["sure_found"] == 0.5
    flat = outputs([[0.9, 0.8]], np.array([[[3.0, 5, 3, 40], [20, 30, 60, 30]]]))
    assert verify.compare_detections(flat, flat)["sure_found"] == 1
    nothing = outputs(np.zeros((1, 0)))
    assert verify.compare_detections(nothing, nothing)["matched"] == 1


def test_a_file_that_finds_nothing_of_what_is_sure_is_refused():
    limits = verify.bound("int8", 0.01, evaluated=False, detects=True)

    def judged(*scores):
        given = ({k: np.asarray(v) for k, v in outputs([s]).items()} for s in scores)
        return verify.verify(*given, limits)[1]

    assert judged([0.9, 0.8, 0.2], [0.85, 0.8, 0.1]) is None
    assert "'boxes' and the others have 0.0% of" in judged([0.9, 0.8, 0.2], [0.2, 0.2, 0.2])
    assert judged([0.2, 0.1, 0.1], [0.1, 0.1, 0.1]) is None


def test_a_detector_that_answers_otherwise_is_refused(detector, tmp_path, monkeypatch):
    images, boxes, classes = pictures(20)
    honest = stage.runtime.load

    def all_alike(path, threads=None):
        runner = honest(path, threads)

        def run(inputs):
            found = runner(inputs)
            if "scores" not in found:  # a probe with inner results
                return found
            return found | {"scores": np.full_like(found["scores"], 0.5)}

        return type("Alike", (), {
            "inputs": runner.inputs, "outputs": runner.outputs,
            "__call__": lambda self, inputs: run(inputs),
        })()  # fmt: skip

    monkeypatch.setattr(stage.runtime, "load", all_alike)
    with pytest.raises(ExportError, match="'scores' is the same for every input"):
        stage.export(
            detector, tmp_path, formats=("onnx",), precisions=("fp32",),
            evaluation=(images, {"boxes": boxes, "classes": classes}), metric=hits,
            say=lambda line: None,
        )  # fmt: skip


def test_predict_refuses_a_file_without_suppression(detector, tmp_path, capsys):
    boxes, scores = detector.get_layer("detections").input
    keras.Model(detector.input, {"boxes": boxes, "scores": scores}).save(tmp_path / "all.keras")
    Image.fromarray(pictures(1)[0][0]).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="leaves the choice among all its boxes to the app"):
        cli.parse(cli.Predict, [str(tmp_path / "all.keras"), str(tmp_path / "a.png")], "predict")


def left_to_runtime(own, relative=False):
    """Return a model with two boxes in each cell that overlap, and others near by, for each class
    its own or for all the same."""
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = keras.layers.AveragePooling2D(CELL)(keras.layers.Rescaling(1 / 255)(image))
    logits, deltas = keras.layers.Conv2D(6, 1, name="logits"), keras.layers.Conv2D(8, 1, name="d")
    scores = keras.layers.Reshape((-1, 3))(keras.layers.Activation("sigmoid")(logits(x)))
    anchors = layers.grid_anchors([[20, 12], [24, 14]], (4, 4), (CELL, CELL))
    boxes = layers.DecodeBoxes(anchors, (0.1, 0.2), (SIDE, SIDE))
    boxes = boxes(keras.layers.Reshape((-1, 4))(deltas(x)))
    if own:
        boxes = keras.ops.stack([boxes - 1, boxes, boxes + 1], axis=2)
    found = layers.RuntimeSuppression(5, 0.5, 0.02, name="detections")(boxes, scores)
    if relative:
        found = layers.RelativeDetections((SIDE, SIDE), name="relative")(found)
    random = np.random.default_rng(1)
    kernel = 10 * np.tile(np.eye(3), 2) + random.uniform(-1, 1, (3, 6))
    logits.set_weights([kernel[None, None], np.repeat([-5.0, -5.5], 3)])
    deltas.set_weights([random.normal(0, 0.3, (1, 1, 3, 8)), np.zeros(8)])
    return keras.Model(image, found, name="squares")


def operators(path):
    """Return the names of a file's operations."""
    if path.suffix == ".onnx":
        return [node.op_type for node in onnx.load(path).graph.node]
    content = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    codes = [content.operatorCodes[o.opcodeIndex] for o in content.subgraphs[0].operators]
    return [(code.customCode or b"").decode() for code in codes]


@pytest.mark.parametrize(
    "own, relative", [pytest.param(False, False, marks=pytest.mark.full), (True, True)]
)
def test_runtimes_suppress_by_their_own_operators(own, relative, tmp_path):
    model = left_to_runtime(own, relative)
    images, boxes, classes = pictures(40)
    boxes = boxes / SIDE if relative else boxes
    targets = {"boxes": boxes, "classes": classes, "difficult": np.zeros(classes.shape, bool)}
    manifest = stage.export(
        model,
        tmp_path,
        precisions=("fp32", "int8"),
        calibration=images,
        evaluation=(images, targets),
        metric=mean_average_precision,
        labels=LABELS,
        max_loss=0.02,
        say=lambda line: None,
    )
    assert len(manifest["files"]) == 4 and manifest["reference"]["value"] > 0.5
    wanted = model.predict(images, verbose=0)
    assert {0, 2, 4, 5} == {*wanted["count"].tolist()}
    for file in manifest["files"]:
        path = tmp_path / file["file"]
        operator = {"onnx": "NonMaxSuppression", "tflite": "TFLite_Detection_PostProcess"}
        assert operators(path).count(operator[file["format"]]) == 1
        # LiteRT's operator, left to tell classes apart, would lose one that depends on the threads.
        runners = [load(path, threads) for threads in (1, 2, 3)]
        runner = runners[0]
        assert {t.name: (t.shape[1:], t.dtype) for t in runner.outputs} == {
            p["name"]: (tuple(p["shape"][1:]), p["dtype"]) for p in manifest["outputs"]
        }
        if file["precision"] != "fp32":
            continue
        assert file["matched"] == 1
        for runner, end in zip(runners, (1, 40, 40), strict=True):  # ONNX takes a whole batch
            got = runner(images[:end])
            for name in ("count", "classes"):
                np.testing.assert_array_equal(got[name], wanted[name][:end])
            for name in ("boxes", "scores"):
                np.testing.assert_allclose(got[name], wanted[name][:end], atol=1e-4)


def test_a_model_ends_with_what_it_leaves_to_the_runtime(tmp_path):
    found = left_to_runtime(own=False)
    model = keras.Model(found.input, found.output | {"more": found.output["scores"] + 1})
    with pytest.raises(InputError, match="'detections' is left to the runtime"):
        stage.export(model, tmp_path, say=lambda line: None)
