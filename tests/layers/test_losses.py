"""Margin and metric losses against torch in float64, written from the papers; on every backend."""

import math

import keras
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from numerics import examples, gradients, normal, values
from pytorch_metric_learning import distances, losses, miners, reducers

from tiffin import layers

LABELS = np.array([0, 2, 1, 2, 4, 0, 3, 1])


def double(array):
    return torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True)


def psi_by_angle(theta, margin):
    """Return Liu et al. 2016, equation 6, from the angle itself."""
    k = torch.floor(theta * margin / math.pi).clamp(0, margin - 1)
    return (-1) ** k * torch.cos(margin * theta) - 2 * k


def reference(head, x, w, labels):
    """Return the head's losses by the papers' formulas: angles by acos, one row at a time."""
    x_length, w_length = x.norm(dim=1, keepdim=True), w.norm(dim=0, keepdim=True)
    cosine = x @ w / x_length / w_length
    rows = torch.arange(len(labels))
    own = cosine[rows, labels]
    theta = torch.acos(own.clamp(-1 + 1e-14, 1 - 1e-14))
    magnitude = {
        "LSoftmax": x_length * w_length,
        "ASoftmax": x_length.expand_as(cosine),
    }.get(type(head).__name__)
    if magnitude is None:
        magnitude = torch.full_like(cosine, head.scale)
        if isinstance(head, layers.AMSoftmax):
            psi = own - head.margin
        else:
            beyond = own - head.margin * math.sin(head.margin)
            psi = torch.where(
                theta + head.margin <= math.pi, torch.cos(theta + head.margin), beyond
            )
    else:
        eased = head.initial_annealing
        psi = (eased * own + psi_by_angle(theta, head.margin)) / (1 + eased)
    logits = cosine.clone()
    logits[rows, labels] = psi
    return torch.nn.functional.cross_entropy(magnitude * logits, labels, reduction="none")


def loss_of(head, labels):
    """Return the mean loss as a function of embeddings and weight."""

    def function(x, kernel):
        with keras.StatelessScope(state_mapping=[(head.kernel, kernel)]):
            return ops.mean(head.loss(x, labels))

    return function


HEADS = {
    **{f"l_softmax_{m}": lambda m=m: layers.LSoftmax(5, m) for m in (1, 2, 3, 4)},
    **{f"a_softmax_{m}": lambda m=m: layers.ASoftmax(5, m) for m in (1, 2, 3, 4)},
    "l_softmax_annealed": lambda: layers.LSoftmax(5, 3, annealing=7.5),
    "a_softmax_annealed": lambda: layers.ASoftmax(5, 4, annealing=5),
    "am_softmax": lambda: layers.AMSoftmax(5),
    "am_softmax_own": lambda: layers.AMSoftmax(5, margin=0.2, scale=10),
    "arcface": lambda: layers.ArcFace(5, scale=16),
    "arcface_wide": lambda: layers.ArcFace(5, margin=1.4, scale=4),
}


@pytest.mark.parametrize("name", HEADS)
def test_margin_heads_follow_the_papers(name):
    head = HEADS[name]()
    x, kernel = normal(8, 6), normal(6, 5)
    # Every range of the angle occurs: near the class, across, and behind it.
    for row, share in enumerate((0.999, 0.5, 0.0, -0.5, -0.999, -0.9, 0.9, 0.7)):
        own = kernel[:, LABELS[row]] / np.linalg.norm(kernel[:, LABELS[row]])
        side = normal(6)
        side -= own * (side @ own)
        side /= np.linalg.norm(side)
        x[row] = (share * own + math.sqrt(1 - share**2) * side) * (row + 0.5)
    head.build(x.shape)
    x64, w64, y64 = double(x), double(kernel), torch.from_numpy(LABELS)
    wanted = reference(head, x64, w64, y64)
    head.kernel.assign(kernel)
    np.testing.assert_allclose(values(head.loss(x, LABELS)), wanted.detach(), rtol=1e-5, atol=1e-5)
    wanted.mean().backward()
    found = gradients(loss_of(head, LABELS), x, kernel)
    np.testing.assert_allclose(found[0], x64.grad, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], w64.grad, rtol=1e-5, atol=1e-5)


PEERS = {
    "LargeMarginSoftmaxLoss": (lambda m: layers.LSoftmax(5, m), {"margin": 4}),
    "SphereFaceLoss": (lambda m: layers.ASoftmax(5, m), {"margin": 3}),
    "CosFaceLoss": (lambda m: layers.AMSoftmax(5, m, 30), {"margin": 0.35, "scale": 30}),
    "ArcFaceLoss": (
        lambda m: layers.ArcFace(5, math.radians(m), 8),
        {"margin": 28.6, "scale": 8},
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_margin_heads_agree_with_pytorch_metric_learning(name):
    make, options = PEERS[name]
    head = make(options["margin"])
    x, kernel = normal(8, 6), normal(6, 5)
    peer = getattr(losses, name)(num_classes=5, embedding_size=6, **options)
    peer.W.data = torch.from_numpy(kernel).double()
    x64 = double(x)
    wanted = peer(x64, torch.from_numpy(LABELS))
    wanted.backward()
    head.build(x.shape)
    head.kernel.assign(kernel)
    found = values(ops.mean(head.loss(x, LABELS)))
    np.testing.assert_allclose(found, wanted.detach(), rtol=1e-5)
    by_x, by_kernel = gradients(loss_of(head, LABELS), x, kernel)
    np.testing.assert_allclose(by_x, x64.grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_kernel, peer.W.grad, rtol=1e-4, atol=1e-5)


ANGLES = np.linspace(0, math.pi, 721)


def psi(head):
    """Return psi(theta) of a head, at ANGLES, with embeddings and weights of length 1."""
    x = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1).astype("float32")
    head.build(x.shape)
    head.kernel.assign(np.array([[1, 0.6], [0, -0.8]], "float32"))
    own = values(head(x, np.zeros(len(x), "int32")))[:, 0]
    return own / getattr(head, "scale", 1)


@examples(20)
@given(margin=st.sampled_from([1, 2, 3, 4]), annealing=st.floats(0, 100))
def test_psi_is_continuous_and_decreasing(margin, annealing):
    for kind in (layers.LSoftmax, layers.ASoftmax):
        curve = psi(kind(2, margin, annealing))
        steps = np.diff(curve)
        assert (steps < 1e-6).all()
        assert abs(steps).max() < 2 * margin * (ANGLES[1] - ANGLES[0])
        end = (annealing * -1 + 1 - 2 * margin) / (1 + annealing)
        np.testing.assert_allclose(curve[[0, -1]], [1, end], rtol=1e-5)


@examples(20)
@given(margin=st.floats(0, 1.5))
def test_arcface_falls_all_the_way(margin):
    curve = psi(layers.ArcFace(2, margin))
    # Past pi - margin the authors' stand-in begins: a jump down, or up by what they leave.
    steps = np.diff(curve)
    jump = int(np.searchsorted(ANGLES, math.pi - margin))
    assert (np.delete(steps, np.arange(jump - 2, min(jump + 2, len(steps)))) < 1e-6).all()
    assert (curve <= np.cos(ANGLES) + 1e-6).all()


def with_margin(name, margin, classes=5):
    kinds = {"l": layers.LSoftmax, "a": layers.ASoftmax, "am": layers.AMSoftmax}
    return {**kinds, "arc": layers.ArcFace}[name](classes, margin)


@pytest.mark.parametrize("name", ["l", "a", "am", "arc"])
@examples(15)
@given(seed=st.integers(0, 2**20))
def test_no_margin_is_softmax_and_more_margin_more_loss(name, seed):
    random = np.random.default_rng(seed)
    x, kernel = (random.normal(size=s).astype("float32") for s in ((8, 6), (6, 5)))
    before = None
    for margin in (1, 2, 3, 4) if name in ("l", "a") else (0.0, 0.1, 0.5, 1.0):
        head = with_margin(name, margin)
        head.build(x.shape)
        head.kernel.assign(kernel)
        losses = values(head.loss(x, LABELS))
        if before is None:
            logits = torch.from_numpy(values(head(x))).double()
            wanted = torch.nn.functional.cross_entropy(
                logits, torch.from_numpy(LABELS), reduction="none"
            )
            np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-5)
        else:
            assert (losses >= before - 1e-5).all()
        before = losses


@pytest.mark.parametrize("name", ["am", "arc"])
@examples(15)
@given(seed=st.integers(0, 2**20), size=st.floats(1e-3, 1e3))
def test_normalised_losses_do_not_see_the_length(name, seed, size):
    x = np.random.default_rng(seed).normal(size=(8, 6)).astype("float32")
    head = with_margin(name, 0.3)
    head.build(x.shape)
    np.testing.assert_allclose(
        values(head.loss(x * np.float32(size), LABELS)),
        values(head.loss(x, LABELS)),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_margin_heads_are_finite_where_there_is_no_angle(name, dtype):
    head = HEADS[name]()
    kernel = normal(6, 5)
    kernel[:, 4] = 0
    own = kernel[:, LABELS].T
    x = np.stack([own[0], -own[1], own[2] * 0, own[3] * 1e-3, own[0], own[5] * 40, own[6], own[7]])
    x = x.astype(dtype)  # row 4 has a class without a direction
    head.build(x.shape)
    head.kernel.assign(kernel)
    losses = head.loss(x, LABELS)
    assert keras.backend.standardize_dtype(losses.dtype) == "float32"
    assert np.isfinite(values(losses)).all()
    for gradient in gradients(loss_of(head, LABELS), x, kernel):
        assert np.isfinite(gradient).all()


def test_tens_of_thousands_of_classes():
    head = layers.AMSoftmax(50_000)
    x, labels = normal(4, 8), np.array([[49_999], [0], [17], [17]])
    losses = values(head.loss(x, labels))
    np.testing.assert_allclose(losses, values(head.loss(x, labels[:, 0])))
    x64, w64 = double(x), double(values(head.kernel))
    wanted = reference(head, x64, w64, torch.from_numpy(labels[:, 0]))
    np.testing.assert_allclose(losses, wanted.detach(), rtol=1e-5)


def annealed(**options):
    return layers.MarginAnnealing(layers.LSoftmax(3), **options)


def test_annealing_follows_the_authors_schedules():
    sphereface = annealed()
    assert [sphereface.at(t) for t in (0, 100, 10**6)] == [1000, pytest.approx(1000 / 13), 5]
    mnist = annealed(gamma=2.5e-5, power=35, least=0)
    assert mnist.at(10_000) == pytest.approx(1000 * 1.25**-35)


def digits_trainer(head, center_loss=None):
    keras.utils.set_random_seed(3)
    embedder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    trainer = layers.EmbeddingTrainer(embedder, head, center_loss, 0.1)
    trainer.compile("sgd", metrics=["accuracy"])
    return trainer


def test_annealing_survives_saving_and_resuming(tmp_path):
    x, y = normal(64, 6), np.arange(64) % 5
    head = layers.ASoftmax(5)
    trainer = digits_trainer(head)
    trainer.fit(x, y, epochs=2, callbacks=[layers.MarginAnnealing(head)], verbose=0)
    assert float(head.annealing) == pytest.approx(1000 / 1.36)
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    assert float(again.head.annealing) == float(head.annealing)
    again.fit(x, y, epochs=1, callbacks=[layers.MarginAnnealing(again.head)], verbose=0)
    assert float(again.head.annealing) == pytest.approx(1000 / 1.6)


@pytest.mark.parametrize("head", [layers.AMSoftmax(5), keras.layers.Dense(5)], ids=["am", "dense"])
def test_trainer_learns_and_exports_the_embedder_alone(head, tmp_path):
    y = np.arange(200) % 5
    x = np.eye(6, dtype="float32")[y] + 0.1 * normal(200, 6)
    center_loss = layers.CenterLoss(5)
    trainer = digits_trainer(head, center_loss)
    trainer.compile(keras.optimizers.Adam(0.05), metrics=["accuracy"])
    first = trainer.evaluate(x, y, verbose=0, return_dict=True)
    assert not values(center_loss.centers).any(), "evaluation must not move the centres"
    trainer.fit(x, y, epochs=8, verbose=0)
    last = trainer.evaluate(x, y, verbose=0, return_dict=True)
    assert last["loss"] < first["loss"] / 2 and last["accuracy"] > 0.95
    assert values(center_loss.centers).any()
    embeddings = trainer.predict(x, verbose=0)["embeddings"]
    np.testing.assert_allclose(embeddings, trainer.embedder.predict(x, verbose=0), atol=1e-6)
    assert len(trainer.embedder.weights) == 2
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    assert again.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(last, abs=1e-5)


def test_trainer_weighs_examples():
    x, y = normal(2, 6), np.array([0, 1])
    trainer = digits_trainer(layers.AMSoftmax(5))
    losses = values(trainer.head.loss(trainer.embedder(x), y))
    found = trainer.evaluate(x, y, sample_weight=np.array([3.0, 1.0]), verbose=0)[0]
    assert found == pytest.approx((3 * losses[0] + losses[1]) / 2, rel=1e-5)


def test_center_loss_moves_by_the_papers_rule():
    loss = layers.CenterLoss(4, alpha=0.3)
    centers, labels = np.zeros((4, 5)), np.array([0, 2, 2, 0, 0, 3])
    for _ in range(3):
        x = normal(6, 5)
        wanted = np.sum((x - centers[labels]) ** 2, axis=1) / 2
        np.testing.assert_allclose(values(loss(x, labels, training=True)), wanted, rtol=1e-5)
        moved = centers.copy()
        for j in range(4):  # equation 4, class by class
            mine = [x[i] for i in range(6) if labels[i] == j]
            moved[j] -= 0.3 * sum(centers[j] - v for v in mine) / (1 + len(mine))
        centers = moved
        np.testing.assert_allclose(values(loss.centers), centers, atol=1e-6)
    kept = values(loss.centers)
    loss(normal(6, 5), labels, training=False)
    np.testing.assert_array_equal(values(loss.centers), kept)
    assert not loss.trainable_weights
    (gradient,) = gradients(lambda x: ops.sum(loss(x, labels)), x)
    np.testing.assert_allclose(gradient, x - kept[labels], atol=1e-5)


def test_center_loss_by_gradient():
    loss = layers.CenterLoss(3, trainable_centers=True)
    x, labels = normal(4, 2), np.array([0, 0, 1, 0])
    loss(x, labels, training=True)
    assert len(loss.trainable_weights) == 1 and not values(loss.centers).any()

    def by_centers(centers):
        with keras.StatelessScope(state_mapping=[(loss.centers, centers)]):
            return ops.sum(loss(x, labels, training=True))

    (gradient,) = gradients(by_centers, np.zeros((3, 2), "float32"))
    np.testing.assert_allclose(gradient, [-x[[0, 1, 3]].sum(0), -x[2], [0, 0]], atol=1e-5)


def pairs_by_hand(x, labels, positive, negative, balanced):
    """Return Hadsell et al.'s mean loss, pair by pair."""
    found = {True: [], False: []}
    for i in range(len(x)):
        for j in range(i):
            distance = (x[i] - x[j]).norm()
            alike = bool(labels[i] == labels[j])
            found[alike].append(positive(distance) if alike else negative(distance))
    if balanced:
        return sum(torch.stack(losses).mean() for losses in found.values()) / 2
    return torch.stack(found[True] + found[False]).mean()


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("margin", [0.7, 3.0])
def test_contrastive_loss(margin, balanced):
    x = normal(8, 3)
    x64 = double(x)
    wanted = pairs_by_hand(
        x64, LABELS, lambda d: d**2 / 2, lambda d: (margin - d).clamp(min=0) ** 2 / 2, balanced
    )
    wanted.backward()
    loss = layers.ContrastiveLoss(margin, balanced)
    np.testing.assert_allclose(values(loss(LABELS, x)), wanted.detach(), rtol=1e-5)
    (found,) = gradients(lambda x: loss(LABELS, x), x)
    np.testing.assert_allclose(found, x64.grad, atol=1e-5)


def triplets_by_hand(x, labels, loss):
    """Return the mean over anchors or pairs, by loops over a float64 distance matrix."""
    n = len(x)
    d = torch.stack([torch.stack([(x[i] - x[j]).norm() for j in range(n)]) for i in range(n)])
    d = d**2 if loss.squared else d
    found = []
    for a in range(n):
        positives = [p for p in range(n) if p != a and labels[p] == labels[a]]
        negatives = torch.stack([d[a, j] for j in range(n) if labels[j] != labels[a]])
        if loss.mining == "batch_hard" and positives:
            found.append(max(d[a, p] for p in positives) - negatives.min())
        if loss.mining == "semi_hard":
            for p in positives:
                beyond = negatives[negatives > d[a, p]]
                found.append(d[a, p] - (beyond.min() if len(beyond) else negatives.max()))
    gaps = torch.stack(found)
    if loss.margin is None:
        return torch.nn.functional.softplus(gaps).mean()
    return (gaps + loss.margin).clamp(min=0).mean()


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("margin", [None, 0.2, 2.0])
def test_triplet_loss(mining, squared, margin):
    x = normal(8, 3)
    loss = layers.TripletLoss(margin, mining, squared)
    x64 = double(x)
    wanted = triplets_by_hand(x64, LABELS, loss)
    wanted.backward()
    np.testing.assert_allclose(values(loss(LABELS, x)), wanted.detach(), rtol=1e-5)
    (found,) = gradients(lambda x: loss(LABELS, x), x)
    np.testing.assert_allclose(found, x64.grad, rtol=1e-5, atol=1e-5)


def test_batch_hard_agrees_with_pytorch_metric_learning():
    x, x64 = (a := normal(8, 3)), double(a)
    far = distances.LpDistance(normalize_embeddings=False)
    peer = losses.TripletMarginLoss(0.4, distance=far, reducer=reducers.MeanReducer())
    labels = torch.from_numpy(LABELS)
    wanted = peer(x64, labels, miners.BatchHardMiner(distance=far)(x64, labels))
    found = values(layers.TripletLoss(0.4)(LABELS, x))
    np.testing.assert_allclose(found, wanted.detach(), rtol=1e-5)


PAIRWISE = {
    "contrastive": lambda: layers.ContrastiveLoss(),
    "balanced": lambda: layers.ContrastiveLoss(balanced=True),
    "batch_hard": lambda: layers.TripletLoss(),
    "semi_hard": lambda: layers.TripletLoss(mining="semi_hard"),
    "soft": lambda: layers.TripletLoss(None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pair_losses_are_finite_on_degenerate_batches(name, dtype):
    loss = PAIRWISE[name]()
    random = normal(4, 3).astype(dtype)
    batches = {
        "identical": (np.ones((4, 3), dtype), [0, 0, 1, 1]),
        "zero": (np.zeros((4, 3), dtype), [0, 0, 1, 1]),
        "one class": (random, [1, 1, 1, 1]),
        "no pair alike": (random, [0, 1, 2, 3]),
        "single": (random[:1], [0]),
    }
    for what, (x, labels) in batches.items():
        labels = np.array(labels)
        assert np.isfinite(values(loss(labels, x))), what
        (gradient,) = gradients(lambda x, y=labels: ops.sum(loss(y, x)), x)
        assert np.isfinite(gradient).all(), what


def test_pair_losses_train_an_embedder():
    y = np.arange(120) % 3
    x = np.eye(4, dtype="float32")[y] + 0.3 * normal(120, 4)
    for make in PAIRWISE.values():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile(keras.optimizers.Adam(0.02), make())
        history = model.fit(x, y, epochs=6, batch_size=30, verbose=0).history["loss"]
        assert history[-1] < history[0]


def test_divergences_and_their_relation():
    p, q = (values(ops.softmax(normal(6, 5))) for _ in range(2))
    p[0] = [0, 1, 0, 0, 0]
    p /= p.sum(-1, keepdims=True)
    p64, q64 = (a.astype("float64") for a in (p, q))
    taken = torch.from_numpy(p64)
    wanted = torch.distributions.Categorical(taken).entropy()
    np.testing.assert_allclose(values(layers.entropy(p)), wanted, atol=1e-5)
    wanted = torch.nn.functional.kl_div(torch.from_numpy(q64).log(), taken, reduction="none")
    np.testing.assert_allclose(values(layers.kl_divergence(p, q)), wanted.sum(-1), atol=1e-5)
    total = values(layers.entropy(p)) + values(layers.kl_divergence(p, q))
    np.testing.assert_allclose(values(layers.cross_entropy(p, q)), total, atol=1e-5)
    one_hot = np.eye(5, dtype="float32")
    np.testing.assert_allclose(
        values(layers.kl_divergence(one_hot, q[:5])),
        values(layers.cross_entropy(one_hot, q[:5])),
        atol=1e-6,
    )
    np.testing.assert_allclose(values(layers.kl_divergence(p, p)), 0, atol=1e-6)


def test_divergences_of_logits_and_at_the_edges():
    p, logits = np.array([[0.25, 0.75, 0.0]], "float32"), np.array([[900, 0, -900]], "float32")
    found = values(layers.KLDivergence(from_logits=True)(p, logits))
    wanted = 0.75 * 900 + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    ruled_out = values(layers.cross_entropy(p, np.array([[1, 0, 0]], "float32")))
    assert np.isposinf(ruled_out)
    q = np.array([[0.5, 0.5, 0.0]], "float32")
    by_p, by_q = gradients(lambda p, q: ops.sum(layers.kl_divergence(p, q)), p, q)
    assert np.isfinite(by_p).all() and np.isfinite(by_q).all()
    np.testing.assert_allclose(by_q, [[-0.5, -1.5, 0]], atol=1e-5)


CONFIGURED = [
    layers.MarginSoftmax(3),
    *(make() for make in HEADS.values()),
    layers.AMSoftmax(4, kernel_initializer="ones", kernel_regularizer="l2", name="head"),
    layers.CenterLoss(4, 0.25, trainable_centers=True),
    layers.ContrastiveLoss(2, balanced=True, reduction="sum"),
    layers.TripletLoss(None, "semi_hard", squared=True, name="triplets"),
    layers.KLDivergence(from_logits=True),
]


@pytest.mark.parametrize("given", CONFIGURED, ids=lambda given: given.name)
def test_losses_survive_their_configuration(given):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(given))
    assert type(again) is type(given) and again.get_config() == given.get_config()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layers.AMSoftmax(1), "classes=1"),
        (lambda: layers.LSoftmax(3, 5), "margin=5"),
        (lambda: layers.ASoftmax(3, 2.5), "margin=2.5"),
        (lambda: layers.ASoftmax(3, annealing=-1), "annealing=-1"),
        (lambda: layers.AMSoftmax(3, -0.1), "margin=-0.1"),
        (lambda: layers.AMSoftmax(3, scale=0), "scale=0"),
        (lambda: layers.ArcFace(3, 28.6), "radians"),
        (lambda: layers.ArcFace(3).build((None, 4, 4, 8)), "flatten or pool"),
        (lambda: layers.CenterLoss(0), "classes=0"),
        (lambda: layers.CenterLoss(3, 2), "alpha=2"),
        (lambda: layers.CenterLoss(3).build((4,)), "embeddings"),
        (lambda: layers.ContrastiveLoss(0), "margin=0"),
        (lambda: layers.ContrastiveLoss()(np.zeros(2), np.zeros((2, 3, 4))), "Embeddings are"),
        (lambda: layers.TripletLoss(-1), "margin=-1"),
        (lambda: layers.TripletLoss(mining="hard"), "mining='hard'"),
        (lambda: annealed(gamma=-1), "gamma=-1"),
        (lambda: layers.EmbeddingTrainer(None, None, center_weight=-1), "center_weight=-1"),
    ],
)
def test_losses_refuse_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
