"""Clients that nobody here wrote open the exported files as they are."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_mediapipe_names_the_classes(precision, dtype, exported, colours, tmp_path):
    mediapipe = pytest.importorskip("mediapipe")
    vision = pytest.importorskip("mediapipe.tasks.python.vision")
    model = exported / f"colours_{precision}.tflite"
    if dtype == "float32":  # the client refuses it without normalisation in the metadata
        from tiffin.export import stage

        stage.export(
            colours.model,
            tmp_path,
            formats=("tflite",),
            precisions=(precision,),
            calibration=colours.images[:30],
            labels=colours.labels,
            input_dtype="float32",
            say=lambda line: None,
        )
        model = tmp_path / model.name
    options = vision.ImageClassifierOptions(
        base_options=mediapipe.tasks.BaseOptions(model_asset_path=str(model)), max_results=1
    )
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for image, target in zip(colours.images[30:42], colours.targets[30:42], strict=True):
            picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
            (best,) = classifier.classify(picture).classifications[0].categories
            assert best.category_name == colours.labels[target]
            assert best.index == target


def test_onnxruntime_web_agrees(onnxruntime_web, exported, colours, tmp_path):
    models = [exported / f"colours_{p}.onnx" for p in ("fp32", "fp16", "int8")]
    images = colours.images[30:]
    request = {
        "models": [str(m) for m in models],
        "shape": list(images.shape),
        "pixels": images.flatten().tolist(),
    }
    (tmp_path / "input.json").write_text(json.dumps(request))
    script = Path(__file__).with_name("classify.mjs")
    done = subprocess.run(
        ["node", script, onnxruntime_web, tmp_path / "input.json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = colours.model(images.astype("float32")).numpy()
    for model in models:
        scores = np.reshape(json.loads(done.stdout)[model.name], (len(images), 3))
        np.testing.assert_array_equal(scores.argmax(1), colours.targets[30:])
        np.testing.assert_allclose(scores, expected, atol=0.05 if "int8" in model.name else 1e-3)
