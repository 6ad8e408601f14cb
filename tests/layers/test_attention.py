"""Attention against torch's float64, and what holds for any lengths and masks."""

import keras
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from numerics import examples, gradients, normal, values

from tiffin.layers import BahdanauAttention, LuongAttention

BATCH, STEPS, LENGTH, FEATURES = 3, 4, 7, 5
KINDS = {
    "bahdanau": lambda: BahdanauAttention(6),
    "dot": lambda: LuongAttention("dot"),
    "general": lambda: LuongAttention("general"),
    "concat": lambda: LuongAttention("concat", units=6),
    "local_p": lambda: LuongAttention("general", window=2),
    "local_p_dot": lambda: LuongAttention("dot", window=3),
}
GLOBAL = [name for name in KINDS if "local" not in name]


def lengths_mask(lengths):
    return np.arange(max(lengths))[None] < np.array(lengths)[:, None]


def equations(layer, query, keys, mask, w):
    """The papers' equations, one query and one key at a time."""
    kind = "bahdanau" if isinstance(layer, BahdanauAttention) else layer.kind
    contexts, weights = torch.zeros(*query.shape[:2], keys.shape[-1]).double(), []
    for b in range(len(query)):
        for t in range(query.shape[1]):
            h, source = query[b, t], keys[b][mask[b]]
            if kind == "dot":
                scores = torch.stack([h @ s for s in source])
            elif kind == "general":
                scores = torch.stack([h @ w["kernel"] @ s for s in source])
            else:
                matrix = torch.cat([w["query_kernel"], w["key_kernel"]])
                scores = torch.stack(
                    [w["v"] @ torch.tanh(torch.cat([h, s]) @ matrix) for s in source]
                )
            if getattr(layer, "window", None):
                hidden = torch.tanh(h @ w["position_kernel"])
                p = len(source) * torch.sigmoid(w["position_v"] @ hidden)
                place = torch.arange(len(source)).double()
                near = (place - p).abs() <= layer.window
                scores = torch.where(near, scores, -torch.inf)
                sigma = layer.window / 2
                a = torch.softmax(scores, 0) * torch.exp(-((place - p) ** 2) / (2 * sigma**2))
            else:
                a = torch.softmax(scores, 0)
            whole = torch.zeros(keys.shape[1]).double()
            whole = whole.index_put((torch.tensor(np.flatnonzero(mask[b])),), a)
            weights.append(whole)
            contexts = contexts.index_put((torch.tensor(b), torch.tensor(t)), whole @ keys[b])
    return contexts, torch.stack(weights).reshape(*query.shape[:2], -1)


@pytest.mark.parametrize("name", KINDS)
def test_contexts_weights_and_gradients_equal_the_papers_equations_in_float64(name):
    layer = KINDS[name]()
    query, keys = normal(BATCH, STEPS, FEATURES), normal(BATCH, LENGTH, FEATURES)
    mask = lengths_mask([7, 3, 5])
    layer.build(query.shape, keys.shape)
    own = [normal(*v.shape) for v in layer.trainable_variables]
    names = [v.path.split("/")[-1] for v in layer.trainable_variables]
    seen = ops.convert_to_tensor(mask)

    def results(query, keys, *own):
        query, keys = ops.convert_to_tensor(query), ops.convert_to_tensor(keys)
        return layer.stateless_call([*own], [], query, keys, mask=seen)[0]

    towards = [normal(BATCH, STEPS, FEATURES), normal(BATCH, STEPS, LENGTH)]

    def loss(*arrays):
        return sum(ops.sum(ops.multiply(r, t)) for r, t in zip(results(*arrays), towards))

    arrays = [query, keys, *own]
    exact = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]
    expected = equations(layer, *exact[:2], mask, dict(zip(names, exact[2:])))
    sum((r * torch.tensor(t)).sum() for r, t in zip(expected, towards)).backward()
    for got, wanted in zip(results(*arrays), expected):
        np.testing.assert_allclose(values(got), wanted.detach(), atol=1e-5)
    for got, wanted in zip(gradients(loss, *arrays), exact):
        scale = max(1.0, float(wanted.grad.abs().max()))
        np.testing.assert_allclose(got, wanted.grad, atol=1e-5 * scale)
    # A single step is the first of many.
    context, weights = layer(query[:, 0], keys, mask=mask)
    for one, all_steps in zip((context, weights), layer(query, keys, mask=mask)):
        np.testing.assert_allclose(values(one), values(all_steps)[:, 0], atol=1e-6)


@examples(25)
@given(st.sampled_from(GLOBAL), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_weights_are_shares_of_what_is_no_padding(name, lengths, data):
    layer, mask = KINDS[name](), lengths_mask(lengths)
    scale = data.draw(st.sampled_from([0.1, 1.0, 30.0]))
    query = normal(len(lengths), 2, FEATURES) * scale
    keys = normal(*mask.shape, FEATURES) * scale
    weights = values(layer(query, keys, mask=mask)[1])
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert (weights >= 0).all() and not weights[~np.repeat(mask[:, None], 2, 1)].any()


@pytest.mark.slow
@examples(25)
@given(st.sampled_from([*KINDS]), st.integers(1, 6), st.integers(1, 5))
def test_padding_never_changes_a_context(name, length, padding):
    layer = KINDS[name]()
    query, keys = normal(2, 3, FEATURES), normal(2, length, FEATURES)
    bare = values(layer(query, keys)[0])
    padded = np.concatenate([keys, 1e3 * normal(2, padding, FEATURES)], 1)
    mask = np.arange(length + padding)[None].repeat(2, 0) < length
    np.testing.assert_allclose(values(layer(query, padded, mask=mask)[0]), bare, atol=1e-6)


def test_projected_keys_and_their_values_give_the_same():
    layer, cut = BahdanauAttention(6), BahdanauAttention(6, project_keys=False)
    query, keys = normal(BATCH, STEPS, FEATURES), normal(BATCH, LENGTH, FEATURES)
    mask = lengths_mask([7, 3, 5])
    whole = layer(query, keys, mask=mask)
    projected = ops.matmul(ops.convert_to_tensor(keys), layer.key_kernel)
    cut(query, projected, mask=mask, values=keys)
    cut.set_weights([values(layer.query_kernel), values(layer.v)])
    for one, other in zip(whole, cut(query, projected, mask=mask, values=keys)):
        np.testing.assert_allclose(values(one), values(other), atol=1e-6)
    assert cut.compute_output_shape((2, 3, 5), (2, 7, 6), None, (2, 7, 4))[0] == (2, 3, 4)


def test_nothing_but_padding_gives_no_context_and_no_nan():
    for make in KINDS.values():
        context, weights = make()(
            normal(1, 2, FEATURES), normal(1, 3, FEATURES), mask=np.zeros((1, 3), bool)
        )
        assert not values(context).any() and not values(weights).any()


def test_half_precision_masks_without_overflow():
    layer = LuongAttention("dot", dtype="float16")
    query, keys = normal(1, 2, FEATURES), normal(1, 4, FEATURES)
    weights = values(layer(query, keys, mask=lengths_mask([3, 4])[:1])[1])
    np.testing.assert_allclose(weights.sum(-1), 1, atol=2e-3)
    assert not weights[..., 3].any()


def test_local_attention_looks_at_its_window_alone():
    layer = LuongAttention("dot", window=2)
    keys = normal(1, 40, FEATURES)
    weights = values(layer(normal(1, 6, FEATURES), keys)[1])[0]
    for row in weights:
        places = np.flatnonzero(row)
        assert 1 <= len(places) <= 5 and places.max() - places.min() < 5
        assert 0 < row.sum() < 1


def test_local_attention_counts_far_positions_in_half_precision():
    layer = LuongAttention("dot", window=2, dtype="mixed_bfloat16")
    keys = normal(1, 900, FEATURES)
    weights = values(ops.cast(layer(normal(1, 30, FEATURES), keys)[1], "float32"))[0]
    for row in weights:
        places = np.flatnonzero(row)
        assert 1 <= len(places) <= 5 and places.max() - places.min() < 5


@pytest.mark.parametrize("name", KINDS)
def test_batches_may_differ_in_length(name):
    query, keys = keras.Input((None, FEATURES)), keras.Input((None, FEATURES))
    model = keras.Model([query, keys], KINDS[name]()(query, keys)[0])
    batches = [(normal(2, 3, FEATURES), normal(2, length, FEATURES)) for length in (5, 8)]
    wanted = np.concatenate([values(model([*batch])) for batch in batches])
    found = model.predict(((batch,) for batch in batches), verbose=0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_attention_is_saved_and_loaded(name, tmp_path):
    query, keys = keras.Input((None, FEATURES)), keras.Input((None, FEATURES))
    mask = keras.Input((None,), dtype="bool")
    model = keras.Model([query, keys, mask], KINDS[name]()(query, keys, mask=mask))
    model.save(tmp_path / "model.keras")
    given = [normal(2, 3, FEATURES), normal(2, 6, FEATURES), lengths_mask([6, 2])]
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(model(given), again(given)):
        np.testing.assert_allclose(values(one), values(other), atol=1e-6)
    assert [tuple(t.shape) for t in model.outputs] == [(None, None, 5), (None, None, None)]


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="kind='cosine'"):
        LuongAttention("cosine")
    with pytest.raises(ValueError, match="window=0"):
        LuongAttention(window=0)
    with pytest.raises(ValueError, match="units=0"):
        BahdanauAttention(0)
    with pytest.raises(ValueError, match="5 features and keys of 4"):
        LuongAttention("dot")(normal(1, 2, 5), normal(1, 3, 4))
