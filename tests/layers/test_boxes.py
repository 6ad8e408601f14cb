"""Box geometry against onnxruntime's operators and torch, on every backend."""

import math

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from numerics import RANDOM, examples, gradients, normal, values
from onnx import helper

from tiffin import layers
from tiffin.layers import anchors


def onnx_run(operator, arrays, **attributes):
    """Return what onnxruntime's own operator makes of the arrays."""
    names = [f"input_{i}" for i in range(len(arrays))]
    kind = {"NonMaxSuppression": onnx.TensorProto.INT64}.get(operator, onnx.TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["output"], **attributes)],
        operator,
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(names, arrays, strict=True)
        ],
        [helper.make_tensor_value_info("output", kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


def random_boxes(*shape, size=200.0, degenerate=True):
    """Return boxes of all kinds: ordinary, whole-numbered, without area, equal, inverted."""
    boxes = RANDOM.uniform(-0.1 * size, size, (*shape, 4)).astype("float32")
    low, high = (
        np.minimum(boxes[..., :2], boxes[..., 2:]),
        np.maximum(boxes[..., :2], boxes[..., 2:]),
    )
    boxes = np.concatenate([low, high], -1)
    if degenerate:
        boxes[..., 0::6, :] = np.round(boxes[..., 0::6, :] / 16) * 16
        boxes[..., 1::6, 2] = boxes[..., 1::6, 0]
        boxes[..., 2::12, :] = boxes[..., 0::12, :][..., : boxes[..., 2::12, :].shape[-2], :]
        boxes[..., 3::12, :] = boxes[..., 3::12, [2, 3, 0, 1]]
    return boxes


def iou_of_two(a, b):
    """Return the IoU of two boxes, from its definition, in Python's floats."""

    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    a, b = [float(v) for v in a], [float(v) for v in b]
    shared = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    inverted = area(a) == 0 or area(b) == 0
    return 0.0 if inverted or not shared else shared / (area(a) + area(b) - shared)


def test_iou_is_its_definition_for_all_pairs():
    boxes, others = random_boxes(24), random_boxes(30)
    wanted = [[iou_of_two(a, b) for b in others] for a in boxes]
    np.testing.assert_allclose(values(layers.iou(boxes, others)), wanted, atol=1e-5)
    batched = values(layers.iou(boxes.reshape(2, 12, 4), others[None]))
    np.testing.assert_allclose(batched.reshape(24, 30), wanted, atol=1e-5)


def test_iou_has_finite_gradients_where_nothing_overlaps():
    boxes = np.array([[0, 0, 0, 0], [1, 1, 1, 5], [0, 0, 4, 4]], "float32")
    (found,) = gradients(lambda b: ops.sum(layers.iou(b, boxes)), boxes)
    assert np.isfinite(found).all()


number = st.integers(-400, 1200).map(lambda n: n / 8)


@examples(60)
@given(st.lists(st.tuples(number, number, number, number), min_size=2, max_size=2))
def test_iou_is_symmetric_and_bounded(pair):
    a, b = np.array(pair, "float32")[:, None]
    there, back = values(layers.iou(a, b))[0, 0], values(layers.iou(b, a))[0, 0]
    assert there == pytest.approx(back, abs=1e-6) and 0 <= there <= 1 + 1e-6
    assert there == pytest.approx(iou_of_two(a[0], b[0]), abs=1e-5)


def test_clipping_and_areas():
    boxes = np.array([[-5, -5, 20, 30], [3, 4, 2, 9], [50, 50, 60, 60]], "float32")
    clipped = values(layers.clip_boxes(boxes, 10, 12))
    assert clipped.tolist() == [[0, 0, 10, 12], [3, 4, 2, 9], [10, 12, 10, 12]]
    assert values(layers.box_area(boxes)).tolist() == [25 * 35, 0, 100]


@pytest.mark.parametrize("variances", [(1.0, 1.0), (0.1, 0.2)])
def test_encoding_is_the_papers_and_inverts(variances):
    boxes, anchors_ = random_boxes(40, degenerate=False), random_boxes(40, degenerate=False)
    anchors_[:, 2:] += 5
    boxes[:, 2:] += 5
    code = values(layers.encode_boxes(boxes, anchors_, variances))
    for box, anchor, got in zip(boxes.astype(float), anchors_.astype(float), code, strict=True):
        h, w = box[2:] - box[:2]
        ha, wa = anchor[2:] - anchor[:2]
        wanted = [
            ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / ha / variances[0],
            ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / wa / variances[0],
            math.log(h / ha) / variances[1],
            math.log(w / wa) / variances[1],
        ]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    decoded = values(layers.decode_boxes(code, anchors_, variances))
    np.testing.assert_allclose(decoded, boxes, atol=1e-2)


def test_decoding_never_overflows():
    far = np.array([[0, 0, 1e4, 1e4]], "float32")
    assert np.isfinite(
        values(layers.decode_boxes(far, np.array([[0, 0, 10, 10]], "float32")))
    ).all()
    cells = layers.decode_cells(far, np.zeros((1, 2), "float32"), np.ones((1, 2), "float32"))
    assert np.isfinite(values(cells)).all()


def test_yolo_forms_invert():
    boxes = np.array([[2.25, 3.5, 4.5, 5.0], [0.1, 0.2, 0.9, 0.4]], "float32")
    cells = np.floor(values(layers.to_centers(boxes))[:, :2])
    sides = np.array([[2.0, 3.0], [0.5, 0.5]], "float32")
    code = values(layers.encode_cells(boxes, cells, sides))
    assert ((code[:, :2] >= 0) & (code[:, :2] <= 1)).all()
    raw = np.concatenate([np.log(code[:, :2] / (1 - code[:, :2])), code[:, 2:]], 1)
    np.testing.assert_allclose(values(layers.decode_cells(raw, cells, sides)), boxes, atol=1e-5)
    # YOLO v1: shares of the picture, 7 x 7 cells.
    shares = boxes / 7
    roots = values(layers.encode_roots(shares, cells, 7))
    np.testing.assert_allclose(
        roots[0], [0.375, 0.25, (2.25 / 7) ** 0.5, (1.5 / 7) ** 0.5], atol=1e-6
    )
    np.testing.assert_allclose(values(layers.decode_roots(roots, cells, 7)), shares, atol=1e-6)


def test_ssd_boxes_are_those_of_the_paper():
    scales = anchors.ssd_scales(6)
    np.testing.assert_allclose(scales, [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05])
    ratios = [(2,), (2, 3), (2, 3), (2, 3), (2,), (2,)]
    boxes = layers.ssd_boxes(300, (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300), scales, ratios)
    assert boxes.shape == (8732, 4)  # the paper, section 3.1
    # conv4_3, first cell: centre (4, 4), sides 30, sqrt(30 * 60), 30 / sqrt 2 by 30 sqrt 2.
    sides = boxes[:4, 2:] - boxes[:4, :2]
    np.testing.assert_allclose((boxes[:4, 2:] + boxes[:4, :2]) / 2, 4, atol=1e-4)
    wanted = [[30, 30], [42.4264, 42.4264], [21.2132, 42.4264], [42.4264, 21.2132]]
    np.testing.assert_allclose(sides, wanted, atol=1e-3)
    np.testing.assert_allclose(
        anchors.ssd_scales(7, 0.15, 0.9, 0.07), [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05]
    )
    with pytest.raises(ValueError, match="one scale more"):
        layers.ssd_boxes(300, (38,), (8,), (0.1,), ((2,),))


def test_faster_rcnn_anchors_are_those_of_the_paper():
    shapes = layers.anchor_shapes((128, 256, 512), (0.5, 1.0, 2.0))
    np.testing.assert_allclose(shapes.prod(1) ** 0.5, np.repeat([128, 256, 512], 3), rtol=1e-6)
    np.testing.assert_allclose(shapes[:, 0] / shapes[:, 1], [0.5, 1, 2] * 3, rtol=1e-6)
    boxes = layers.grid_anchors(shapes, (2, 3), (16, 16)).reshape(2, 3, 9, 4)
    np.testing.assert_allclose((boxes[1, 2, :, :2] + boxes[1, 2, :, 2:]) / 2, [[24, 40]] * 9)


def test_kmeans_finds_the_sizes_that_are_there():
    true = np.array([[10, 20], [40, 40], [90, 30]], float)
    sizes = np.repeat(true, 50, 0) * RANDOM.uniform(0.97, 1.03, (150, 2))
    found = layers.kmeans_anchors(sizes, 3)
    np.testing.assert_allclose(found, true[np.argsort(true.prod(1))], rtol=0.02)
    assert (found == layers.kmeans_anchors(sizes, 3)).all()
    with pytest.raises(ValueError, match="different sizes"):
        layers.kmeans_anchors(np.ones((9, 2)), 2)


def test_roi_pooling_is_onnxruntimes():
    features = normal(2, 13, 17, 5)
    regions = random_boxes(2, 48, size=250)
    flat = np.c_[np.repeat([0, 1], 48), regions.reshape(-1, 4)[:, [1, 0, 3, 2]]].astype("float32")
    wanted = onnx_run(
        "MaxRoiPool",
        [features.transpose(0, 3, 1, 2).copy(), flat],
        pooled_shape=[7, 6],
        spatial_scale=1 / 16,
    )
    found = values(layers.RoIPool((7, 6), 1 / 16)(features, regions))
    np.testing.assert_allclose(
        found, wanted.transpose(0, 2, 3, 1).reshape(found.shape), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_is_onnxruntimes(aligned):
    features = normal(2, 13, 17, 5)
    # No sample just where the map ends: whether it counts would be a matter of rounding.
    regions = random_boxes(2, 48, size=250) + np.float32(0.3)
    regions = np.concatenate(
        [
            np.minimum(regions[..., :2], regions[..., 2:]),
            np.maximum(regions[..., :2], regions[..., 2:]),
        ],
        -1,
    )  # inverted regions mean nothing, and every library makes something else of them
    wanted = onnx_run(
        "RoiAlign",
        [
            features.transpose(0, 3, 1, 2).copy(),
            regions.reshape(-1, 4)[:, [1, 0, 3, 2]].copy(),
            np.repeat([0, 1], 48).astype("int64"),
        ],
        output_height=7,
        output_width=6,
        sampling_ratio=2,
        spatial_scale=1 / 16,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )
    found = values(layers.RoIAlign((7, 6), 1 / 16, aligned=aligned)(features, regions))
    wanted = wanted.transpose(0, 2, 3, 1).reshape(found.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_region_poolings_have_gradients():
    features, regions = (
        normal(1, 6, 6, 2),
        np.array([[[0, 0, 60, 80], [16, 16, 33, 90]]], "float32"),
    )
    for pool in (layers.RoIPool(2, 1 / 16), layers.RoIAlign(2, 1 / 16)):
        (found,) = gradients(lambda x, pool=pool: ops.sum(pool(x, regions)), features)
        # Each of 8 bins and 2 channels hands 1 back, to one cell or spread over a few.
        assert found.sum() == pytest.approx(16, rel=1e-4)


@pytest.mark.parametrize(
    "layer",
    [layers.RoIPool((3, 2), 0.5), layers.SpatialPyramidPooling((3, 1), 0.5)],
    ids=["pool", "pyramid"],
)
def test_maxima_are_the_same_in_training_and_so_are_their_gradients(layer):
    # No two alike, and eighths, whose sums are exact in any order.
    features = (RANDOM.permutation(378).reshape(2, 9, 7, 3) / 8 - 20).astype("float32")
    regions = np.stack([random_boxes(12, size=18), random_boxes(12, size=18)])
    np.testing.assert_array_equal(
        values(layer(features, regions)), values(layer(features, regions, training=True))
    )
    plain, trained = (
        gradients(lambda x, t=t: ops.sum(ops.square(layer(x, regions, training=t))), features)[0]
        for t in (False, True)
    )
    np.testing.assert_array_equal(plain, trained)
    assert (plain != 0).sum() > 20


def test_regions_are_warped_with_their_surroundings():
    # Of a ramp bilinear interpolation makes a ramp: each pixel shows where it was taken from.
    y, x = np.mgrid[:64, :80].astype("float32")
    image = np.stack([y + 100, x + 100], -1)[None]
    regions = np.array([[[20, 24, 44, 56], [0, 0, 16, 16]]], "float32")
    found = values(layers.WarpedRegions(32, 4)(image, regions))[0]
    assert found.shape == (2, 32, 32, 2)
    # Of 32 pixels 24 are the region's: it is enlarged by 32 / 24 about its centre.
    for place, axis, low, high in ((0, 0, 16, 48), (1, 1, 40 - 64 / 3, 40 + 64 / 3)):
        centers = low + (np.arange(32) + 0.5) * (high - low) / 32 - 0.5
        mine = found[0, :, :, place].mean(1 - axis)
        np.testing.assert_allclose(mine, centers + 100, atol=1e-3)
    # What lies more than a pixel beyond the border is the mean, 0.
    assert (found[1, 0] == 0).all() and (found[1, 8:, 8:] > 90).all()


@pytest.mark.slow
def test_pyramid_pooling_is_adaptive_max_pooling_of_the_whole_map():
    features = normal(2, 13, 10, 3)
    found = values(layers.SpatialPyramidPooling((3, 2, 1))(features))
    x = torch.from_numpy(features).permute(0, 3, 1, 2)
    parts = [
        torch.nn.functional.adaptive_max_pool2d(x, n).permute(0, 2, 3, 1).reshape(2, -1)
        for n in (3, 2, 1)
    ]
    np.testing.assert_allclose(found, torch.cat(parts, 1).numpy(), atol=1e-6)
    regions = np.array([[[0, 0, 12, 9], [2, 3, 8, 6]]] * 2, "float32")
    several = values(layers.SpatialPyramidPooling((3, 2, 1))(features, regions))
    np.testing.assert_allclose(several[:, 0], found, atol=1e-6)


def greedy(boxes, scores, threshold):
    """Return what onnxruntime keeps, in order: one class, one picture."""
    found = onnx_run(
        "NonMaxSuppression",
        [
            boxes[None],
            scores[None, None],
            np.array([len(boxes)]),
            np.array([threshold], "float32"),
            np.array([-1e9], "float32"),
        ],
    )
    return found[:, 2]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_suppression_is_onnxruntimes(threshold):
    # Close together, so that chains of boxes oust each other.
    boxes = random_boxes(120, size=60)
    boxes[3::12] = boxes[3::12][:, [2, 3, 0, 1]]  # onnxruntime turns inverted boxes round
    scores = RANDOM.permutation(120).astype("float32") / 120
    order = np.argsort(-scores)
    kept = values(layers.suppress(boxes[order][None], threshold))[0] > 0
    assert order[kept].tolist() == greedy(boxes, scores, threshold).tolist()


def test_suppression_of_a_long_chain():
    # Each box ousts the next alone: every other one stays, 40 rounds deep.
    starts = np.arange(40, dtype="float32") * 3
    boxes = np.stack([starts, starts * 0, starts + 10, starts * 0 + 10], -1)
    kept = values(layers.suppress(boxes[None], 0.5))[0]
    assert kept.tolist() == [1, 0] * 20


@pytest.mark.parametrize("size, candidates", [(20, 400), (100, 100), (500, 600), (20, None)])
def test_detections_are_class_by_class(size, candidates):
    boxes, scores = random_boxes(2, 50, size=60, degenerate=False), RANDOM.random((2, 50, 3))
    scores = scores.astype("float32")
    if candidates:
        layer = layers.NonMaxSuppression(size, 0.4, 0.5, candidates)
    else:
        layer = layers.RuntimeSuppression(size, 0.4, 0.5)
    found = {key: ops.convert_to_numpy(value) for key, value in layer(boxes, scores).items()}
    assert found["boxes"].shape == (2, size, 4) and found["classes"].dtype == "int32"
    for i in range(2):
        wanted = []
        for kind in range(3):
            above = np.flatnonzero(scores[i, :, kind] > 0.5)
            kept = above[greedy(boxes[i, above], scores[i, above, kind], 0.4)]
            wanted += [(scores[i, n, kind], kind, n) for n in kept]
        wanted = sorted(wanted, reverse=True)[:size]
        n = found["count"][i]
        assert n == len(wanted)
        np.testing.assert_allclose(found["scores"][i, :n], [w[0] for w in wanted])
        assert found["classes"][i, :n].tolist() == [w[1] for w in wanted]
        np.testing.assert_allclose(found["boxes"][i, :n], boxes[i, [w[2] for w in wanted]])
        assert not found["boxes"][i, n:].any() and not found["scores"][i, n:].any()


def test_only_suppression_by_the_runtime_lets_all_compete():
    # Ten boxes on one place, the surest, and one elsewhere.
    boxes = np.tile(np.array([0, 0, 9, 9], "float32"), (1, 11, 1))
    boxes[0, 10] += 20
    scores = np.linspace(0.9, 0.1, 11, dtype="float32")[None, :, None]
    few, every = layers.NonMaxSuppression(5, candidates=8), layers.RuntimeSuppression(5)
    assert values(few(boxes, scores)["count"]).tolist() == [1]
    found = every(boxes, scores)
    assert values(found["count"]).tolist() == [2]
    np.testing.assert_allclose(values(found["scores"])[0], [0.9, 0.1, 0, 0, 0], rtol=1e-6)
    # Where each class has its own boxes, they are looked at class by class, too.
    own = every(np.stack([boxes, boxes + 50], 2), np.concatenate([scores, scores / 2], 2))
    assert values(own["classes"])[0].tolist() == [0, 1, 0, 1, 0]
    assert values(own["boxes"])[0, :, 0].tolist() == [0, 50, 20, 70, 0]


@pytest.mark.parametrize("kind", [layers.NonMaxSuppression, layers.RuntimeSuppression])
def test_no_detection_is_no_error(kind):
    layer = kind(5)
    found = layer(np.zeros((1, 8, 4), "float32"), np.zeros((1, 8, 2), "float32"))
    assert values(found["count"]).tolist() == [0]
    with pytest.raises(ValueError, match="size=500"):
        layers.NonMaxSuppression(500, candidates=400)
    with pytest.raises(ValueError, match="shares"):
        layers.NonMaxSuppression(iou_threshold=45)


def test_soft_suppression_by_hand():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]], float)
    kept, scores = layers.soft_nms(boxes, [0.9, 0.8, 0.7], sigma=0.5)
    assert kept.tolist() == [0, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.7, 0.8 * math.exp(-(0.5**2) / 0.5)])
    kept, scores = layers.soft_nms(boxes, [0.9, 0.8, 0.7], sigma=None, threshold=0.5)
    np.testing.assert_allclose(scores, [0.9, 0.7, 0.4])


def test_matching_by_hand():
    overlap = np.array(
        [
            # objects: 0, 1, 2 (padding)
            [0.8, 0.1, 0.9],  # above the threshold
            [0.3, 0.35, 0.0],  # the best that object 1 has
            [0.45, 0.0, 0.0],  # neither
            [0.1, 0.2, 0.9],  # background; the padding counts for nothing
        ],
        "float32",
    )[None]
    valid = np.array([[True, True, False]])
    found = values(layers.match(overlap, 0.5, 0.4, valid=valid))[0]
    assert found.tolist() == [0, 1, -2, -1]
    found = values(layers.match(overlap, 0.5, 0.4, bipartite=False, valid=valid))[0]
    assert found.tolist() == [0, -1, -2, -1]
    with pytest.raises(ValueError, match="negative"):
        layers.match(overlap, 0.3, 0.4)


def test_two_objects_never_share_their_best_anchor():
    overlap = np.array([[[0.9, 0.8], [0.2, 0.3], [0.0, 0.0]]], "float32")
    assert values(layers.match(overlap, 0.5, 0.5))[0].tolist() == [0, 1, -1]
    # An object that overlaps nothing takes no anchor, and leaves the others alone.
    overlap = np.array([[[0.9, 0.0], [0.2, 0.0]]], "float32")
    assert values(layers.match(overlap, 0.5, 0.5))[0].tolist() == [0, -1]
    nothing = np.zeros((2, 3, 0), "float32")
    assert values(layers.match(nothing, 0.5, 0.5)).tolist() == [[-1] * 3] * 2


@examples(20)
@given(st.integers(0, 1000))
def test_bipartite_matching_is_greedy_by_pairs(seed):
    overlap = np.random.default_rng(seed).random((1, 9, 4)).astype("float32")
    left, wanted = overlap[0].copy(), {}
    for _ in range(4):
        anchor, thing = np.unravel_index(left.argmax(), left.shape)
        wanted[anchor] = thing
        left[anchor], left[:, thing] = -1, -1
    found = values(layers.match(overlap, 2.0, 2.0))[0]
    assert {i: int(v) for i, v in enumerate(found) if v >= 0} == wanted


def test_objects_of_anchors():
    matched = np.array([[1, -1, 0], [-2, 0, 0]], "int32")
    classes = np.array([[5, 6], [7, 8]], "int32")
    assert values(layers.take_objects(classes, matched)).tolist() == [[6, 0, 5], [0, 7, 7]]
    boxes = normal(2, 2, 4)
    taken = values(layers.take_objects(boxes, matched))
    np.testing.assert_allclose(taken[0, 0], boxes[0, 1])
    assert not taken[0, 1].any() and taken.shape == (2, 3, 4)


def test_mining_and_sampling():
    losses = np.array([[0.1, 0.9, 0.5, 0.7], [1.0, 2.0, 3.0, 4.0]], "float32")
    candidates = np.array([[True, False, True, True], [True] * 4])
    found = values(layers.hardest(losses, candidates, np.array([2, 9]))).astype(bool)
    assert found.tolist() == [[False, False, True, True], [True] * 4]
    positive = np.zeros((2, 100), bool)
    positive[0, :40] = positive[1, :3] = True
    noise = RANDOM.random((2, 100)).astype("float32")
    chosen = values(layers.balanced_sample(positive, ~positive, 32, 0.25, noise)).astype(bool)
    assert chosen.sum(1).tolist() == [32, 32]
    assert (chosen & positive).sum(1).tolist() == [8, 3]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_losses_are_torchs(gamma):
    logits, target = 4 * normal(6, 5), (normal(6, 5) > 0).astype("float32")
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(target, dtype=torch.float64)
    ce = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
    p = torch.sigmoid(x)
    p_t = p * y + (1 - p) * (1 - y)
    wanted = (0.25 * y + 0.75 * (1 - y)) * (1 - p_t) ** gamma * ce
    np.testing.assert_allclose(
        values(layers.focal_loss(target, logits, 0.25, gamma)),
        wanted.detach(),
        rtol=1e-4,
        atol=1e-5,
    )
    wanted.sum().backward()
    (found,) = gradients(lambda z: ops.sum(layers.focal_loss(target, z, 0.25, gamma)), logits)
    np.testing.assert_allclose(found, x.grad, rtol=1e-3, atol=1e-5)
    extreme = np.array([-1e4, 1e4, 0.0], "float32")
    (found,) = gradients(
        lambda z: ops.sum(layers.focal_loss(np.zeros(3, "float32"), z, 0.25, gamma)), extreme
    )
    assert np.isfinite(found).all()


@pytest.mark.parametrize("beta", [1.0, 1 / 9])
def test_smooth_l1_is_torchs(beta):
    a, b = normal(50), normal(50)
    wanted = torch.nn.functional.smooth_l1_loss(
        torch.from_numpy(a), torch.from_numpy(b), beta=beta, reduction="none"
    )
    np.testing.assert_allclose(values(layers.smooth_l1(a, b, beta)), wanted, atol=1e-5)


def test_cross_entropy_of_classes_is_torchs():
    logits, target = 5 * normal(4, 7, 3), RANDOM.integers(0, 3, (4, 7))
    wanted = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 3),
        torch.from_numpy(target).reshape(-1),
        reduction="none",
    )
    found = values(layers.sparse_cross_entropy(target, logits))
    np.testing.assert_allclose(found.ravel(), wanted, rtol=1e-5, atol=1e-5)


def test_l2_normalization_is_torchs():
    x = normal(2, 3, 3, 8)
    x[0, 0, 0] = 0
    found = values(layers.L2Normalization(20.0)(x))
    wanted = 20 * torch.nn.functional.normalize(torch.from_numpy(x), dim=-1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    (slope,) = gradients(
        lambda z: ops.sum(layers.L2Normalization(20.0)(z)), np.zeros((1, 4), "float32")
    )
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    "layer",
    [
        layers.RoIPool((3, 2), 0.5),
        layers.RoIAlign(3, 0.25, samples=1, aligned=True),
        layers.WarpedRegions(9, 2),
        layers.SpatialPyramidPooling((4, 1), 0.5),
        layers.NonMaxSuppression(7, 0.3, 0.2, 50),
        layers.RuntimeSuppression(7, 0.3, 0.2),
        layers.L2Normalization(10.0),
        layers.RelativeDetections((64, 96)),
        layers.DecodeCells([(2, 3), (4, 6)], [[(9, 8)], [(3, 4), (5, 2)]], (64, 96)),
        layers.DecodeRoots(3, 2, (48, 48)),
        layers.JointScores("linear", "softmax"),
        layers.Reorg(),
        layers.Proposals([[0, 0, 4, 4.0], [1, 1, 9, 9]], (2,), (64, 96), 5, 20, 0.6, 8),
        layers.PyramidRoIAlign(5, (8, 16), samples=1),
        layers.DecodeRegions((64, 96), (0.2, 0.3), "sigmoid"),
        layers.LowRankDense(7, 3, "relu"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_configurations_round_trip(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()


def test_a_pyramids_regions_survive_a_keras_file(tmp_path):
    maps, regions = [keras.Input((n, n, 2)) for n in (16, 8)], keras.Input((3, 4))
    pooled = layers.PyramidRoIAlign(2, (4, 8))(maps, regions)
    model = keras.Model([*maps, regions], pooled)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    random = np.random.default_rng(0)
    x = [random.normal(size=(1, n, n, 2)).astype("float32") for n in (16, 8)]
    x.append(np.array([[[0, 0, 20, 30], [5, 5, 60, 64], [8, 2, 33, 40]]], "float32"))
    np.testing.assert_array_equal(values(again(x)), values(model(x)))


def test_truncated_svd_is_the_best_approximation():
    given = keras.Input((12,))
    y = keras.layers.Dense(8, activation="relu", name="fc6")(given)
    model = keras.Model(given, keras.layers.Dense(3, name="logits")(y))
    x = np.random.default_rng(0).normal(size=(5, 12)).astype("float32")
    same = layers.truncate_svd(model, {"fc6": 8})
    assert isinstance(same.get_layer("fc6"), layers.LowRankDense)
    np.testing.assert_allclose(values(same(x)), values(model(x)), atol=1e-5)
    thin = layers.truncate_svd(model, {"fc6": 3})
    first, second, _ = thin.get_layer("fc6").get_weights()
    kernel = model.get_layer("fc6").get_weights()[0]
    lost = np.linalg.svd(kernel, compute_uv=False)[3:]
    assert np.linalg.norm(kernel - first @ second) == pytest.approx(np.linalg.norm(lost), rel=1e-4)
    assert thin.get_layer("logits") is model.get_layer("logits")
    with pytest.raises(ValueError, match="no dense layer 'fc8'; there are fc6, logits"):
        layers.truncate_svd(model, {"fc8": 1})
    with pytest.raises(ValueError, match="from 1 to 8"):
        layers.truncate_svd(model, {"fc6": 9})


def test_truncated_svd_of_a_layer_without_bias():
    given = keras.Input((4,))
    model = keras.Model(given, keras.layers.Dense(5, use_bias=False, name="fc")(given))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    same = layers.truncate_svd(model, {"fc": 4})
    np.testing.assert_allclose(values(same(x)), values(model(x)), atol=1e-5)


@pytest.mark.parametrize("kind", ["align", "pool", "pyramid", "maps"])
def test_regions_keep_their_place_in_mixed_precision(kind):
    """In bfloat16 a corner at 600 pixels would move by up to two."""
    ramp = (np.arange(640, dtype="float32") - 600).clip(-99, 99)  # which bfloat16 holds
    features = np.broadcast_to(ramp[None, None, :, None], (1, 8, 640, 1))
    regions = np.array([[[0, 593.5, 8, 598], [0, 601.4, 8, 613.3]]], "float32")
    make = {
        "align": lambda **how: layers.RoIAlign(2, **how),
        "pool": lambda **how: layers.RoIPool(2, **how),
        "pyramid": lambda **how: layers.SpatialPyramidPooling((2, 1), **how),
        "maps": lambda **how: layers.PyramidRoIAlign(2, (1, 2), **how),
    }[kind]
    given = [features, features[:, ::2, ::2]] if kind == "maps" else features
    exact = values(make()(given, regions))
    half = make(dtype="mixed_bfloat16")(given, regions)
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    np.testing.assert_allclose(values(ops.cast(half, "float32")), exact, atol=0.25)
