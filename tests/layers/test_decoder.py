"""The decoder's loop against its step, taken one by one."""

import keras
import numpy as np
import pytest
from keras import ops
from numerics import normal, values

from tiffin.layers import Decoder, GRUCell, LuongAttention

BATCH, STEPS, LENGTH, UNITS, TOKENS = 3, 5, 4, 6, 9


def make(**options) -> Decoder:
    word, h = keras.Input((3,), name="word"), keras.Input((UNITS,), name="h")
    keys = keras.Input((None, UNITS), name="keys")
    y, states = GRUCell(UNITS)(word, [h])
    context, weights = LuongAttention("general")(y, keys)
    features = keras.layers.Dense(UNITS, activation="tanh")(ops.concatenate([y, context], -1))
    step = keras.Model([word, h, keys], [features, *states, weights])
    return Decoder(step, TOKENS, **options)


def given(seed: int = 0) -> list:
    tokens = np.random.default_rng(seed).integers(1, TOKENS, (BATCH, STEPS)).astype("int32")
    return [
        ops.convert_to_tensor(x)
        for x in (tokens, normal(BATCH, UNITS), normal(BATCH, LENGTH, UNITS))
    ]


def one_by_one(layer: Decoder, inputs: list, own: bool) -> np.ndarray:
    """Return the logits of a decoder that is given the right words, or none but the first."""
    tokens, h, keys = inputs
    word, result = tokens[:, 0], []
    for t in range(STEPS):
        word = word if own else tokens[:, t]
        features, h, _ = layer.step([layer.embedding(word), h, keys])
        result.append(layer.head(features))
        word = ops.argmax(result[-1], axis=-1)
    return np.stack([values(y) for y in result], 1)


def test_right_words_are_handed_on_step_by_step():
    layer, inputs = make(), given()
    logits = values(layer(inputs))
    assert logits.shape == (BATCH, STEPS, TOKENS)
    np.testing.assert_allclose(logits, one_by_one(layer, inputs, own=False), atol=1e-5)


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_a_mixed_decoder_learns_from_its_own_words_or_from_the_right_ones(truth):
    layer, inputs = make(mixed=True, seed=1), given()
    layer(inputs)
    layer.truth.assign(truth)
    expected = one_by_one(layer, inputs, own=truth == 0)
    np.testing.assert_allclose(values(layer(inputs, training=True)), expected, atol=1e-5)
    taught = one_by_one(layer, inputs, own=False)
    np.testing.assert_allclose(values(layer(inputs)), taught, atol=1e-5)
    assert truth == 1 or np.abs(expected - taught).max() > 1e-3


@pytest.mark.slow
def test_a_share_of_the_words_is_its_own():
    layer, inputs = make(mixed=True, seed=1), given()
    layer(inputs)
    layer.truth.assign(0.5)
    ends = np.stack([one_by_one(layer, inputs, own)[:, 1] for own in (False, True)])
    differ = np.abs(ends[0] - ends[1]).max(-1) > 1e-4
    assert differ.any()
    seen = np.stack([values(layer(inputs, training=True))[:, 1] for _ in range(40)])
    near = np.abs(seen - ends[:, None]).max(-1)[..., differ] < 1e-5
    assert (near.sum(0) == 1).all() and 0.3 < near[0].mean() < 0.7


def test_dropout_takes_half_in_training_alone():
    layer, inputs = make(dropout=0.5, seed=1), given()
    masks = [values(layer._mask(BATCH, 400, training)) for training in (True, True, False)]
    assert set(np.unique(masks[0])) == {0.0, 2.0} and 0.4 < (masks[0] > 0).mean() < 0.6
    assert not np.array_equal(masks[0], masks[1]) and (masks[2] == 1).all()
    first, second = (values(layer(inputs, training=True)) for _ in range(2))
    assert not np.allclose(first, second)
    np.testing.assert_allclose(values(layer(inputs)), one_by_one(layer, inputs, False), atol=1e-5)


def test_it_learns_what_follows():
    layer, inputs = make(mixed=True, seed=1), given()
    sources = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
    model = keras.Model(sources, layer(sources))
    layer.truth.assign(0.5)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [values(w) for w in model.trainable_variables]
    model.train_on_batch(inputs, inputs[0])
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert np.abs(old - values(new)).max() > 0, new.path


def test_it_is_saved_and_loaded(tmp_path):
    layer, inputs = make(dropout=0.1, mixed=True, seed=3), given()
    sources = [
        keras.Input(shape, dtype=x.dtype)
        for shape, x in zip([(None,), (UNITS,), (None, UNITS)], inputs)
    ]
    model = keras.Model(sources, layer(sources))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(values(model(inputs)), values(again(inputs)), atol=1e-6)
    assert (again.layers[-1].dropout, again.layers[-1].mixed) == (0.1, True)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="dropout=1.0"):
        make(dropout=1.0)
