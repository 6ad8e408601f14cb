"""What holds for every image network: raw pixels, and precision of the logits."""

import keras
import numpy as np

from tiffin import recipes


def test_raw_pixels_equal_normalised_input():
    mean, std = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
    raw = recipes.build("resnet20", (32, 32, 3), 10, normalization=(mean, std))
    plain = recipes.build("resnet20", (32, 32, 3), 10)
    plain.set_weights(raw.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    x = ((pixels - np.array(mean)) / np.array(std)).astype("float32")
    np.testing.assert_allclose(raw(pixels), plain(x), rtol=1e-4, atol=1e-4)


def test_logits_are_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = recipes.build("resnet20", (32, 32, 3), 10, normalization=(127, 60))
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("conv2_block1_out").compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(model.output.dtype) == "float32"
    assert np.isfinite(np.asarray(model(np.full((1, 32, 32, 3), 255, "uint8")))).all()
