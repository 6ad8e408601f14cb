"""A page in a real browser, held against the Python runtime on the same files."""

import base64
import contextlib
import functools
import hashlib
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tiffin import layers
from tiffin.export import InputError, cli, detections, images, page, recurrent, stage, text
from tiffin.export.runtime import load

# A browser that speaks to its maker would spoil the network log.
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=AutofillServerCommunication",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
ADDRESS = "https://cdn.jsdelivr.net/"
pytestmark = pytest.mark.usefixtures("module_without_speed")


@pytest.fixture(scope="module")
def chromium():
    """Start Chromium with some more flags; all are closed at the end."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium here")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        start = functools.partial(
            playwright.chromium.launch, executable_path=path, chromium_sandbox=False
        )
        yield lambda *flags, common=FLAGS: start(args=[*common, *flags])


@pytest.fixture(scope="module")
def browser(chromium):
    with contextlib.closing(chromium()) as browser:
        yield browser


@pytest.fixture(scope="module")
def make(onnxruntime_web, tmp_path_factory):
    """Write a page with a runtime of its own."""
    return lambda export: written(export, tmp_path_factory.mktemp("page"), onnxruntime_web / "dist")


def written(export: Path, folder: Path, runtime: Path | None = None) -> Path:
    page.write(export, folder, runtime)
    return folder


@contextlib.contextmanager
def served(folder: Path):
    with page.server(folder, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@contextlib.contextmanager
def opened(browser, folder: Path, width: int = 1280, script: str = "", **options):
    """Open a page; what the browser complains of that the page does not say fails the test."""
    with served(folder) as address:
        size = {"width": width, "height": 800}
        context = browser.new_context(viewport=size, **options)
        view = context.new_page()
        view.failed = []
        view.on("pageerror", lambda error: view.failed.append(str(error)))
        view.on("console", lambda said: "Security Policy" in said.text and view.failed.append(said))
        if script:
            view.add_init_script(script)
        view.goto(address)
        view.wait_for_selector("#loading", state="hidden")
        yield view
        context.close()
        assert not view.failed


def answered(view) -> str:
    """Wait for the answer; returns its text."""
    view.wait_for_selector("#result[aria-busy=false]", state="attached")
    return view.inner_text("#answer")


def message(view) -> str:
    view.wait_for_selector("#message", state="visible")
    return view.inner_text("#message")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def upload(view, content: bytes, name: str = "picture.png") -> str:
    view.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    return answered(view)


def exporting(model, folder: Path, **options) -> Path:
    given = {"formats": ("onnx",), "precisions": ("fp32",), "say": lambda line: None}
    stage.export(model, folder, **given | options)
    return folder


@pytest.fixture(scope="module")
def classifier(exported, make):
    return make(exported)


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def shares(view) -> dict[str, float]:
    """Return what the bars of a classifier say."""
    rows = view.locator("#answer li").all()
    return {
        row.locator("span >> nth=1").inner_text(): float(row.locator(".share").inner_text()[:-2])
        for row in rows
    }


# What a picture becomes.


PIXELS = """async ([base64, height, width, whole]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const bitmap = await decode(new Blob([bytes]), "it");
  return String.fromCharCode(...(whole ? framed : resized)(bitmap, width, height));
}"""


def seen(view, content: bytes, height: int, width: int, whole: bool = False) -> np.ndarray:
    """Return the pixels that the page makes of an image file."""
    given = [base64.b64encode(content).decode(), height, width, whole]
    pixels = np.frombuffer(view.evaluate(PIXELS, given).encode("latin-1"), np.uint8)
    return pixels.reshape(height, width, 3)


@pytest.fixture(scope="module")
def view(browser, classifier):
    with opened(browser, classifier) as view:
        yield view


LARGE = 1500, 3000  # is read in two strips


@pytest.mark.parametrize(
    "old,new",
    [
        ((64, 64), (16, 16)),
        ((37, 91), (16, 24)),
        ((20, 13), (64, 51)),
        ((33, 33), (33, 33)),
        ((50, 16), (16, 16)),
        ((100, 33), (33, 10)),
        ((1, 1), (5, 4)),
        ((1200, 7), (3, 9)),
        (LARGE, (32, 32)),
    ],
)
def test_pictures_are_resized_as_python_does(view, old, new, tmp_path):
    pixels = random_pixels(*old, 3)
    if old == LARGE:  # in patches: it is sent the sooner
        pixels = random_pixels(30, 60, 3).repeat(50, 0).repeat(50, 1)
    (tmp_path / "a.png").write_bytes(png(pixels))
    got = seen(view, (tmp_path / "a.png").read_bytes(), *new)
    np.testing.assert_array_equal(got, images.load_image(tmp_path / "a.png", new))
    got = seen(view, (tmp_path / "a.png").read_bytes(), *new, whole=True)
    np.testing.assert_array_equal(got, images.load_framed(tmp_path / "a.png", new)[0])


def test_what_cameras_and_editors_write_is_read_as_in_python(view, tmp_path):
    """Rotation by EXIF, transparency, palettes, grey, 16 bits; decoders may differ by a level."""
    smooth = np.add.outer(np.arange(60) * 3, np.arange(40) * 2)[..., None] + [0, 20, -40]
    picture = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=turned, quality=95, subsampling=0)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(random_pixels(60, 40)))
    clear.save(tmp_path / "clear.png")
    picture.convert("P").save(tmp_path / "palette.gif")
    picture.convert("L").save(tmp_path / "grey.png")
    Image.fromarray(np.uint16(257) * np.asarray(picture.convert("L"))).save(tmp_path / "deep.png")
    for file in sorted(tmp_path.iterdir()):
        wanted = images.load_image(file, (24, 30)).astype(int)
        difference = np.abs(seen(view, file.read_bytes(), 24, 30) - wanted)
        assert difference.max() <= (3 if file.suffix == ".jpg" else 1), file


# Tasks.


@pytest.mark.parametrize("width", [1280, 360])
def test_classifies_as_python_does(browser, classifier, exported, colours, tmp_path, width):
    """By file, in all precisions, and by a sample's button; the picture is a held-out one."""
    with opened(browser, classifier, width) as view:
        held_out = [46, 31, 59]
        for index in held_out:
            Image.fromarray(colours.images[index]).resize((40, 30)).save(tmp_path / "picture.png")
            for precision in ("fp32", "fp16", "int8"):
                view.get_by_label(precision).check()
                upload(view, (tmp_path / "picture.png").read_bytes())
                runner = load(exported / f"colours_{precision}.onnx")
                picture = cli._read_image(tmp_path / "picture.png", runner.inputs[0])
                (wanted,) = cli.probabilities(runner(picture[None]), runner)
                got = shares(view)
                assert next(iter(got)) == colours.labels[colours.targets[index]]
                for label, share in zip(colours.labels, wanted):
                    assert got[label] == pytest.approx(100 * share, abs=0.3)
                size = (exported / f"colours_{precision}.onnx").stat().st_size
                assert view.inner_text("#size") == f"{size / 1e6:.2f} MB"
                assert "ms per run" in view.inner_text("#time")
        buttons = view.get_by_role("button", name="Held-out picture")
        assert buttons.count() == 8 - 8 % 3
        for button in buttons.all():
            button.click()
            answered(view)
            label = button.locator("img").get_attribute("alt").split(": ")[1]
            assert next(iter(shares(view))) == label
        assert view.evaluate("document.documentElement.scrollWidth") == width
        assert view.title() == view.inner_text("h1") == "colours"


def test_keyboard_and_drop(browser, classifier, colours):
    with opened(browser, classifier, 360) as view:
        order = []
        for _ in range(6):
            view.keyboard.press("Tab")
            order.append(
                view.evaluate("document.activeElement.id || document.activeElement.tagName")
            )
        assert order[:3] == ["file", "camera", "BUTTON"]
        view.keyboard.press("Enter")
        view.wait_for_selector("#answer li")
        assert view.evaluate("[...document.querySelectorAll('input, textarea')]"
                             ".every((one) => one.labels.length)")  # fmt: skip
        blue = base64.b64encode(png(colours.images[32])).decode()
        view.evaluate(
            """(base64) => {
              const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
              const dataTransfer = new DataTransfer();
              dataTransfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
              document.getElementById("drop").dispatchEvent(
                new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true })
              );
            }""",
            blue,
        )
        answered(view)
        assert next(iter(shares(view))) == "blue"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The export of a detector with boxes that no grid holds."""
    image = keras.Input((64, 96, 3), name="image")
    x = keras.layers.AveragePooling2D(16)(keras.layers.Rescaling(1 / 255)(image))
    logits, deltas = keras.layers.Conv2D(3, 1), keras.layers.Conv2D(4, 1, name="deltas")
    scores = keras.layers.Reshape((-1, 3))(keras.layers.Activation("sigmoid")(logits(x)))
    boxes = layers.DecodeBoxes(
        layers.grid_anchors([[20, 13]], (4, 6), (16, 16)), (0.1, 0.2), (64, 96)
    )
    boxes = boxes(keras.layers.Reshape((-1, 4))(deltas(x)))
    found = layers.NonMaxSuppression(8, 0.5, 0.2, 20, name="detections")(boxes, scores)
    model = keras.Model(image, found, name="squares")
    logits.set_weights([10 * np.eye(3, dtype="float32")[None, None], np.full(3, -5.0)])
    random = np.random.default_rng(0)
    deltas.set_weights([random.normal(size=(1, 1, 3, 4)), random.normal(size=4)])
    pictures = scenes(8, 64, 96)
    nothing = {"boxes": np.zeros((8, 1, 4)), "classes": np.zeros((8, 1))}
    given = {"evaluation": (pictures, nothing), "metric": no_metric, "labels": [*"012"]}
    return exporting(model, tmp_path_factory.mktemp("detector"), **given, task="detection")


def no_metric(outputs, targets) -> float:
    return 0.0


def scenes(count, height, width, seed=0):
    """Return dark pictures with bright patches."""
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 50, (count, height, width, 3)).astype(np.uint8)
    for picture in pictures:
        for _ in range(4):
            y, x, kind = random.integers(height), random.integers(width), random.integers(3)
            picture[y : y + height // 3, x : x + width // 4, kind] = random.integers(150, 256)
    return pictures


@pytest.mark.parametrize("width", [1280, 360])
def test_detects_as_python_does(browser, make, detector, tmp_path, width):
    runner = load(detector / "squares_fp32.onnx")
    total = 0
    with opened(browser, make(detector), width) as view:
        for number, size in enumerate([(64, 96), (300, 200), (75, 333), (1100, 1500)]):
            (picture,) = scenes(1, *size, seed=number)
            upload(view, png(picture))
            found = view.evaluate("detect(slots[0])")
            wanted = detections.find(runner, picture, 0)
            assert [one["kind"] for one in found] == [one.kind for one in wanted]
            for mine, theirs in zip(found, wanted):
                np.testing.assert_allclose(mine["box"], theirs.box, atol=0.01)
                assert mine["score"] == pytest.approx(theirs.score, abs=1e-5)
            sure = [one for one in wanted if one.score >= 0.3]
            assert view.locator("#answer li").count() == len(sure)
            total += len(sure)
            view.locator("#score").fill("0.9")
            answered(view)
            surest = [one for one in wanted if one.score >= 0.9]
            assert view.locator("#answer li").count() == len(surest)
            view.locator("#score").fill("0.3")
        assert total > 8
        assert view.evaluate("document.documentElement.scrollWidth") == width


def test_tells_two_pictures_apart_as_python_does(browser, make, tmp_path, capsys):
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 16, 1), name="image")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 127.5, -1)(image))
    x = keras.layers.UnitNormalization(name="embeddings")(keras.layers.Dense(5)(x))
    pictures = random_pixels(8, 12, 16, 1)
    folder = exporting(
        keras.Model(image, x, name="faces"),
        tmp_path / "export",
        evaluation=(pictures, np.arange(8) // 2),
        metric=no_metric,
        threshold=0.9,
        task="embedding",
    )
    coloured = random_pixels(2, 40, 50, 3, seed=1)
    for i in range(2):
        Image.fromarray(coloured[i]).save(tmp_path / f"{i}.png")
    cli.Verify(folder / "faces_fp32.onnx", tmp_path / "0.png", tmp_path / "1.png").run()
    wanted, said = re.match(r"distance ([\d.]+), .*: (.*)", capsys.readouterr().out).groups()
    with opened(browser, make(folder), 360) as view:
        assert "Give two pictures" in upload(view, png(coloured[0]))
        told = upload(view, png(coloured[1]))
        assert float(re.search(r"Distance ([\d.]+)", told)[1]) == pytest.approx(
            float(wanted), abs=2e-4
        )
        assert told.lower().startswith(said) and "0.9000" in told
        view.get_by_role("radio", name="the second").check()
        assert "The same" in upload(view, png(coloured[0]))
        assert view.locator("#sample-list img").count() == 8


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """The export of a language model without training: it writes the same nonsense everywhere."""
    from tiffin.export.steps import step_model

    keras.utils.set_random_seed(1)
    vocabulary = text.Vocabulary("characters", tuple("\n abcdeé<>&ß😀"))
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(len(vocabulary), 8)(tokens)
    x = keras.layers.LSTM(24, return_sequences=True, recurrent_initializer="random_normal")(x)
    model = keras.Model(
        tokens, keras.layers.Dense(len(vocabulary), name="logits")(x), name="writer"
    )
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 9)
    rows = np.random.default_rng(0).integers(0, len(vocabulary), (4, 60)).astype("int32")
    given = {"evaluation": (rows, rows), "metric": recurrent.log_likelihood}
    folder = tmp_path_factory.mktemp("writer")
    return exporting(step_model(model), folder, **given, vocabulary=vocabulary.describe(), name="w")


def test_writes_as_python_does(browser, make, writer):
    run = load(writer / "w_fp32.onnx")
    vocabulary = text.find_vocabulary(writer / "w_fp32.onnx")
    states = recurrent.of_language(run)
    with opened(browser, make(writer), 360) as view:
        assert answered(view) == "Nothing yet."
        view.locator("#temperature").fill("0")
        view.locator("#length").fill("60")
        for prompt in ("abc d", "é<>", "😀"):
            view.locator("#source").fill(prompt)
            view.get_by_role("button", name="Write").click()
            answered(view)
            begun = vocabulary.encode(prompt)
            wanted = [*begun, *text.generate(run, states, begun, 60, temperature=0)]
            assert view.locator(".said").evaluate("(p) => p.textContent") == vocabulary.decode(
                wanted
            )
        view.locator("#source").fill("xyz")
        view.get_by_role("button", name="Write").click()
        assert 'never seen "x" "y" "z"' in message(view)
        view.locator("#source").fill("a")
        view.locator("#temperature").fill("1.2")
        view.locator("#length").fill("5000")
        # Within the page: 5000 letters can be there before a click from outside.
        view.get_by_role("button", name="Write").evaluate(
            """async (write) => {
              const stop = document.querySelector("#stop");
              write.click();
              for (let frame = 0; !stop.offsetParent && frame < 999; frame++)
                await new Promise(requestAnimationFrame);
              stop.click();
            }"""
        )
        said = answered(view)
        assert said.startswith("a") and len(said) < 4000 and view.locator("#message").is_hidden()
        assert view.locator("#example-list button").count() > 0


def drawn(view, logits, temperature, count=4000) -> np.ndarray:
    script = "([l, t, n]) => Array.from({ length: n }, () => sampled(l, t))"
    found = view.evaluate(script, [logits, temperature, count])
    return np.bincount(found, minlength=len(logits)) / count


def test_temperature_is_that_of_the_formula(view):
    logits = [0.0, 1.0, -1.0, 0.5]
    for temperature in (0.5, 1.0, 1.5):
        wanted = np.exp(np.array(logits) / temperature)
        wanted /= wanted.sum()
        np.testing.assert_allclose(drawn(view, logits, temperature), wanted, atol=0.04)
    assert drawn(view, logits, 0, 10)[1] == 1


SENTENCES = (
    "Don't say 'e.g.' twice, mother-in-law: it's (so) odd!",
    "  two  spaces\nand a line's end ",
    "Übergrößen für Ärzte <unk> N <s>",
    "ｆｕｌｌ ﬁne ½ x² Å é",
    "",
)


@pytest.mark.parametrize("kind", ["words", "spaced words", "pieces"])
def test_texts_are_cut_and_joined_as_python_does(view, kind, tmp_path):
    from tiffin.recipes.engine import pair_data

    lines = [*SENTENCES[:3], "so it goes and it goes on and on", "eine Übung für Großmütter"] * 20
    vocabulary = pair_data.make_vocabulary(kind, lines, 90)
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary.describe()))
    described = page._vocabulary(tmp_path, {})
    for sentence in SENTENCES:
        tokens = [int(token) for token in vocabulary.encode(sentence)]
        assert view.evaluate("([v, s]) => encode(v, s)", [described, sentence]) == tokens
        joined = vocabulary.decode(tokens)
        assert view.evaluate("([v, t]) => textOf(v, t)", [described, tokens]) == joined


def test_translates_as_python_does(browser, make, tmp_path):
    from tiffin import recipes
    from tiffin.export import translation, translator

    keras.utils.set_random_seed(3)
    sides = {
        "source": text.Vocabulary("characters", (*text.SPECIAL, *"abcdefgh ")),
        "target": text.Vocabulary("words", (*text.SPECIAL, text.UNKNOWN, *"uvwxyz", ",")),
    }
    model = recipes.build("seq2seq_luong", (None,), 11, sources=12, units=12, embedding=8)
    for weight in model.weights:
        weight.assign(weight * 3)
    pairs = [("abc def", "u v"), ("ghab", "w, x"), ("d d", "y z")] * 2
    folder = tmp_path / "export"
    translator.export_translator(
        model,
        folder,
        length=8,
        vocabulary=text.describe(sides),
        evaluation=translation.examples(pairs, sides, 8),
        formats=("onnx",),
        precisions=("fp32",),
        name="t",
        say=lambda line: None,
    )
    own = translation.load(folder / "t_decoder_fp32.onnx")
    with opened(browser, make(folder), 360) as view:
        for source in ("abc def", "h", "bad ca"):
            view.locator("#source").fill(source)
            view.get_by_role("button", name="Translate").click()
            (wanted,) = own.translate([source], beam=1)
            assert answered(view) == wanted.text and wanted.text
        view.locator("#source").fill("abcdefghabcdefgh")
        view.get_by_role("button", name="Translate").click()
        assert "has 16 characters, the model takes 7" in message(view)
        assert view.locator("#example-list button").all_inner_texts() == ["abc def", "ghab", "d d"]


def test_paints_as_python_does(browser, make, tmp_path):
    keras.utils.set_random_seed(0)
    latent = keras.Input((7,), name="latent")
    x = keras.layers.Reshape((6, 5, 1))(keras.layers.Dense(30, "tanh")(latent))
    model = keras.Model(latent, layers.ToPixels(name="pixels")(x), name="painter")
    folder = exporting(model, tmp_path / "export", task="generation")
    runner = load(folder / "painter_fp32.onnx")
    with opened(browser, make(folder), 360) as view:
        answered(view)
        view.locator("#walk").fill("0.5")
        answered(view)
        ends = np.reshape(view.evaluate("latents.map((values) => [...values])"), (2, 16, 7))
        assert -1 <= ends.min() < -0.8 and 0.8 < ends.max() <= 1
        wanted = runner({"latent": ends.mean(0).astype(np.float32)})["pixels"]
        sheet = wanted.reshape(4, 4, 6, 5).transpose(0, 2, 1, 3).reshape(24, 20)
        paint = """async () => {
          const context = document.querySelector("#pictures canvas").getContext("2d");
          const { width, height } = context.canvas;
          return [width, height, ...context.getImageData(0, 0, width, height).data];
        }"""
        width, height, *values = view.evaluate(paint)
        got = np.reshape(values, (height, width, 4))[:, :, 1]
        factor = height // 24
        got = got[factor // 2 :: factor, factor // 2 :: factor][:24, :20]
        assert np.abs(got - sheet.astype(int)).max() <= 1


def test_digits_get_a_drawing_pad(browser, make, tmp_path):
    """One that counts bright pixels of the left and of the right half, for 3 and for 7."""
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.AveragePooling2D((8, 4))(keras.layers.Rescaling(1 / 25)(image))
    dense = keras.layers.Dense(10)
    model = keras.Model(image, keras.layers.Softmax()(dense(keras.layers.Flatten()(x))))
    weights = np.zeros((6, 10))
    weights[:3, 3] = weights[3:, 7] = 1
    dense.set_weights([weights, np.zeros(10)])
    folder = exporting(model, tmp_path / "export", labels=[*"0123456789"], name="halves")
    with opened(browser, make(folder), 360) as view:
        box = view.locator("#pad").bounding_box()
        for share, digit in ((0.2, "3"), (0.8, "7")):
            x = box["x"] + share * box["width"]
            view.locator("#pad").scroll_into_view_if_needed()
            box = view.locator("#pad").bounding_box()
            view.mouse.move(x, box["y"] + 20)
            view.mouse.down()
            view.mouse.move(x, box["y"] + 200, steps=5)
            view.mouse.up()
            answered(view)
            assert next(iter(shares(view))) == digit
            view.get_by_role("button", name="Clear the pad").click()


def test_what_has_no_controls_is_told(browser, make, tmp_path):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    folder = exporting(
        keras.Model([a, b], keras.layers.Add()([a, b]), name="sum"), tmp_path / "sum"
    )
    with opened(browser, make(folder)) as view:
        assert "no controls for such a model" in message(view)


# What goes wrong.


def patched(folder: Path, tmp_path: Path, **changes) -> Path:
    """Copy a page and change its manifest."""
    copy = tmp_path / "patched"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text()) | changes
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    "content,said",
    [
        (None, "manifest.json cannot be loaded (404)"),
        ("{", "manifest.json is damaged"),
        ("[]", "is no manifest of an export"),
        ('{"format_version": 1, "inputs": [], "outputs": []}', "is no manifest of an export"),
        ('{"format_version": 2}', "has format_version 2, this page reads 1"),
    ],
)
def test_a_bad_manifest_is_told(browser, classifier, tmp_path, content, said):
    copy = patched(classifier, tmp_path)
    (copy / "manifest.json").unlink()
    if content:
        (copy / "manifest.json").write_text(content)
    with opened(browser, copy) as view:
        assert said in message(view)
        assert view.locator("section:visible").count() == 0


def test_a_file_that_is_another_is_told(browser, classifier, tmp_path):
    copy = patched(classifier, tmp_path)
    content = (copy / "colours_fp32.onnx").read_bytes()
    (copy / "colours_fp32.onnx").write_bytes(content[:-20])
    with opened(browser, copy) as view:
        assert "colours_fp32.onnx cannot be loaded, or is not the file" in message(view)
    (copy / "colours_fp32.onnx").unlink()
    with opened(browser, copy) as view:
        assert "colours_fp32.onnx cannot be loaded" in message(view)


def test_a_picture_that_is_none_is_told(browser, classifier, colours):
    with opened(browser, classifier) as view:
        for content in (b"no picture", b"", png(colours.images[0])[:60]):
            upload(view, content, "holiday.png")
            assert message(view).startswith("holiday.png is no picture")
        upload(view, png(colours.images[0]))
        assert view.locator("#message").is_hidden() and shares(view)


def test_the_camera(chromium, classifier):
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream=deny")
    with contextlib.closing(chromium(*flags)) as browser, opened(browser, classifier) as view:
        view.get_by_role("button", name="Open the camera").click()
        assert "The camera is not allowed" in message(view)
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with contextlib.closing(chromium(*flags)) as browser, opened(browser, classifier, 360) as view:
        view.get_by_role("button", name="Open the camera").click()
        view.get_by_role("button", name="Take the picture").click()
        view.wait_for_selector("#answer li")
        assert view.evaluate("slots[0].width") >= 100
        view.get_by_role("button", name="Close the camera").click()
        assert view.locator("#video").is_hidden()


def test_a_browser_without_simd_is_told(chromium, classifier):
    flag = "--js-flags=--no-enable-sse3,--no-enable-ssse3,--no-enable-sse4-1"
    with contextlib.closing(chromium(flag)) as browser, opened(browser, classifier) as view:
        if view.evaluate("WebAssembly.validate(Uint8Array.from(SIMD))"):
            pytest.skip("this processor's WebAssembly always has SIMD")
        assert "lacks WebAssembly SIMD" in message(view)


def test_no_webassembly_at_all_is_told(browser, classifier):
    with opened(browser, classifier, script="delete window.WebAssembly") as view:
        assert "lacks WebAssembly SIMD" in message(view)


def test_runs_on_webgpu(chromium, classifier, colours):
    """By a graphics card that is a program, which nobody's page would choose by itself."""
    flags = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
    start = [flag for flag in FLAGS if flag != "--disable-gpu"]
    with (
        contextlib.closing(chromium(*flags, common=start)) as browser,
        opened(browser, classifier) as view,
    ):
        if view.locator("#devices").is_hidden():
            pytest.skip("this Chromium has no WebGPU")
        assert "WebAssembly" in view.inner_text("#device")
        view.get_by_label("WebGPU").check()
        for precision, device in (("fp16", "WebGPU"), ("fp32", "WebGPU"), ("int8", "WebAssembly")):
            view.get_by_label(precision).check()
            upload(view, png(colours.images[32]))
            assert next(iter(shares(view))) == "blue"
            assert device in view.inner_text("#device") and view.locator("#note").is_hidden()


def test_a_graphics_card_that_fails_is_left(browser, classifier, colours):
    broken = """Object.defineProperty(navigator, "gpu", { value: {
      requestAdapter: async () => ({ requestDevice: async () => { throw Error("lost"); } }),
    } })"""
    with opened(browser, classifier, script=broken) as view:
        upload(view, png(colours.images[32]))
        assert next(iter(shares(view))) == "blue"
        assert "so WebAssembly does" in view.inner_text("#note")
        assert "WebAssembly" in view.inner_text("#device")
        assert view.locator("#devices").is_hidden()


def test_names_that_hold_script_do_nothing(browser, make, exported, colours, tmp_path):
    """As labels, name, description and file name; they are shown as they are."""
    bad = '<img src=x onerror="window.ran = true"><script>window.ran = true</script>'
    copy = tmp_path / "export"
    shutil.copytree(exported, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest |= {"name": bad, "description": bad, "labels": [f"{bad}{i}" for i in range(3)]}
    for entry in manifest["files"]:
        if entry["file"] == "colours_fp32.onnx":
            entry["file"] = "<img src=x onerror='window.ran = 1'>#?%41&.onnx"
            shutil.copy(copy / "colours_fp32.onnx", copy / entry["file"])
            entry["precision"] = "fp32"
    manifest["pictures"][0]["label"] = bad
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with opened(browser, make(copy), 360) as view:
        upload(view, png(colours.images[32]))
        assert view.evaluate("document.documentElement.scrollWidth") == 360
        assert view.inner_text("h1") == view.inner_text("#description") == view.title() == bad
        assert next(iter(shares(view))) == f"{bad}2"
        assert view.locator("#sample-list img").first.get_attribute("alt").endswith(bad)
        view.get_by_label("fp32").check()
        assert answered(view) and view.locator("#message").is_hidden()
        assert view.evaluate("window.ran") is None
        assert view.locator("img").count() == len(manifest["pictures"])
    odd = patched(make(exported), tmp_path, files=[manifest["files"][0] | {"file": "../a.onnx"}])
    with opened(browser, odd) as view:
        assert "does not lie beside it" in message(view)
    (tmp_path / "patched/manifest.json").write_text(json.dumps({"format_version": bad}))
    with opened(browser, odd) as view:
        assert "no manifest of an export" in message(view)
        assert view.evaluate("window.ran") is None


# Where things come from.


def test_with_a_runtime_of_its_own_nothing_leaves_the_machine(chromium, classifier, tmp_path):
    """By the browser's own network log."""
    log = tmp_path / "log.json"
    asked = []
    with (
        contextlib.closing(chromium(f"--log-net-log={log}")) as browser,
        opened(browser, classifier) as view,
    ):
        view.on("request", lambda request: asked.append(request.url))
        view.reload()
        view.locator("#sample-list button").first.click()
        view.wait_for_selector("#answer li")
        home = view.url
    assert len(asked) > 8 and all(url.startswith((home, "data:")) for url in asked)
    events = json.loads(log.read_text())["events"]
    asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
    # What has no origin are requests of Chromium's own, which find no host here.
    urls = [one["url"] for one in asked if one["initiator"] != "not an origin"]
    assert any(url.endswith("runtime/ort-wasm-simd-threaded.wasm") for url in urls)
    assert all(url.startswith(home) for url in urls)
    policy = (classifier / "index.html").read_text()
    assert "http" not in re.search(r'Content-Security-Policy" content="(.*?)"', policy)[1]


def test_the_public_runtime_is_checked(browser, exported, onnxruntime_web, colours, tmp_path):
    """What the address would send comes from the package; a changed byte is refused."""
    folder = written(exported, tmp_path / "page")
    assert not (folder / "runtime").exists()
    changed = b""

    def send(route):
        content = (onnxruntime_web / "dist" / route.request.url.rsplit("/", 1)[1]).read_bytes()
        headers = {"access-control-allow-origin": "*", "content-type": "application/wasm"}
        route.fulfill(body=content + changed, headers=headers)

    with served(folder) as address, contextlib.closing(browser.new_context()) as context:
        context.route(f"{ADDRESS}**", send)
        view = context.new_page()
        view.goto(address)
        view.wait_for_selector("#loading", state="hidden")
        upload(view, png(colours.images[32]))
        assert next(iter(shares(view))) == "blue"
        changed = b" "
        fetch = "([f, i]) => fetched(f, i).then(() => 'whole', (error) => error.message)"
        for file in json.loads((folder / "page.json").read_text())["runtime"]["files"]["wasm"]:
            given = [f"{page.ADDRESS}{file['file']}", file["integrity"]]
            assert "or is not the file that it should be" in view.evaluate(fetch, given)
        # Each of the three is fetched by that function.
        view.reload()
        assert "or is not the file that it should be" in message(view)


def test_checksums_are_those_of_the_package(onnxruntime_web):
    package = json.loads((onnxruntime_web / "package.json").read_text())
    assert package["version"] == page.RUNTIME_VERSION
    for files in page.RUNTIME.values():
        for name, wanted in files.items():
            digest = hashlib.sha384((onnxruntime_web / "dist" / name).read_bytes()).digest()
            assert base64.b64encode(digest).decode() == wanted


# The command.


def test_a_page_replaces_a_page_and_nothing_else(exported, tmp_path):
    out = tmp_path / "site"
    written(exported, out)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"index.html", "style.css", "page.js", "manifest.json", "labels.txt"} < names
    assert {"colours_fp32.onnx", "colours_int8.onnx", "held_out/1.png"} < names
    assert not any(name.endswith(".tflite") for name in names)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert {file["format"] for file in manifest["files"]} == {"onnx"}
    (out / "CNAME").write_text("mine")
    (out / "held_out" / "mine.txt").write_text("mine")
    fewer = tmp_path / "fewer"
    shutil.copytree(exported, fewer)
    shutil.rmtree(fewer / "held_out")
    written(fewer, out)
    assert (out / "CNAME").read_text() == (out / "held_out" / "mine.txt").read_text() == "mine"
    assert not (out / "held_out" / "1.png").exists() and not list(out.glob(".*"))
    assert "pictures" not in json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    (out / "held_out" / "1.png").write_text("mine")
    with pytest.raises(InputError, match=r"1.png is in the way"):
        written(exported, out)
    assert (out / "held_out" / "1.png").read_text() == "mine"


def test_other_folders_are_left_alone(exported, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files, and no page"):
        page.write(exported, tmp_path)
    (tmp_path / "page.json").write_text("{")
    with pytest.raises(InputError, match="holds files, and no page"):
        page.write(exported, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "page.json"]
    with pytest.raises(InputError, match="in the way"):
        page.write(exported, tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda m: m.update(format_version=2), "has format_version 2, this Tiffin reads 1"),
        (lambda m: m.pop("files"), "is damaged"),
        (lambda m: m.update(files=[]), "holds no .onnx file"),
        (lambda m: m["files"][0].update(file="../colours_fp32.onnx"), "is damaged"),
        (lambda m: m["files"][0].update(file="missing.onnx"), "is missing, though"),
        (lambda m: m["files"][0].update(file="colours_int8.onnx"), "is not the file"),
        (lambda m: m["pictures"][0].update(file="a/b.png"), "is damaged"),
        (lambda m: m["pictures"][0].update(sha256="00"), "is not the file"),
        (lambda m: m.update(labels=["a", "b\nc", "d"]), "is damaged"),
        (lambda m: m["files"][0].pop("precision"), "is damaged"),
        (lambda m: m["files"][0].update(bytes="many"), "is damaged"),
        (lambda m: m.update(files={"a": 1}), "is damaged"),
        (lambda m: m.update(name=None), "is damaged"),
        (lambda m: m.update(parts={"encoder": {"files": []}}), "is damaged"),
    ],
)
def test_damaged_exports_are_refused(exported, tmp_path, change, said):
    copy = tmp_path / "export"
    shutil.copytree(exported, copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=said):
        page.write(copy, tmp_path / "site")
    assert not [*(tmp_path / "site").glob("*")]


def test_what_is_no_export_is_refused(exported, tmp_path):
    (tmp_path / "export").mkdir()
    shutil.copy(exported / "manifest.json", tmp_path / "export")
    with pytest.raises(InputError, match=r"holds no manifest.json: did you mean .*export\?"):
        page.write(tmp_path, tmp_path / "site")
    with pytest.raises(InputError, match="name an export's folder"):
        page.write(tmp_path / "nowhere", tmp_path / "site")
    (tmp_path / "export/manifest.json").write_text('{"format_version": 1,')
    with pytest.raises(InputError, match="is damaged"):
        page.write(tmp_path / "export", tmp_path / "site")
    (tmp_path / "export" / "link.onnx").symlink_to(exported / "colours_fp32.onnx")
    manifest = json.loads((exported / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][0]["file"] = "link.onnx"
    (tmp_path / "export/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="link.onnx is missing"):
        page.write(tmp_path / "export", tmp_path / "site")


def test_another_runtime_is_refused(exported, tmp_path):
    (tmp_path / "dist").mkdir()
    with pytest.raises(InputError, match="holds no ort.wasm.min.mjs: name the folder dist"):
        page.write(exported, tmp_path / "site", tmp_path / "dist")
    (tmp_path / "dist" / "ort.wasm.min.mjs").write_text("export default 1;")
    with pytest.raises(InputError, match="is not that of onnxruntime-web 1.30.0"):
        page.write(exported, tmp_path / "site", tmp_path / "dist")


def test_serve(exported, tmp_path):
    """In a process of its own: the address, the types, a taken port, and Ctrl-C."""
    command = [sys.executable, "-m", "tiffin.export", "page", exported, "--serve", "--port"]
    with subprocess.Popen(
        [*command, "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The workers of a parallel test run ignore it, and hand that down.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert "colours, 3 .onnx files" in process.stdout.readline()
        address = re.search(r"http://127.0.0.1:(\d+)/", process.stdout.readline())
        with socket.create_connection(("127.0.0.1", int(address[1]))) as connection:
            connection.sendall(b"GET /page.js HTTP/1.0\r\n\r\n")
            assert "text/javascript" in connection.recv(500).decode()
        taken = subprocess.run([*command, address[1]], capture_output=True, text=True)
        assert taken.returncode == 2 and f"Port {address[1]} is taken" in taken.stderr
        process.send_signal(signal.SIGINT)
        try:
            _, complaint = process.communicate(timeout=20)
        finally:
            process.kill()
        assert process.returncode == 0 and not complaint
    assert page._Handler.extensions_map[".wasm"] == "application/wasm"
    for words, said in (((), "Name a folder"), (("--serve", "--port", "70000"), "--port 70000")):
        done = subprocess.run([*command[:5], *words], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr
