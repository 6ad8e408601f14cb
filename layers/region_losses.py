"""Losses of detectors in two stages: of what proposes regions, and of what judges them."""

from keras import ops

from tiffin.layers.box_losses import binary_cross_entropy, matched_smooth_l1, sparse_cross_entropy
from tiffin.layers.boxes import box_area, iou, take_rows, tensors
from tiffin.layers.matching import balanced_sample, match, take_objects


def proposal_losses(anchors, boxes, classes, objectness, shifts, noise, size: int = 256):
    """Return the losses of a region proposal network.

    Ren et al. 2015 (arXiv 1506.01497), section 3.1.2 and equation 1, normalised by the sampled
    anchors as in the authors' code: anchors are positive from an IoU of 0.7 on or where they are
    an object's best, negative below 0.3; as many of each are sampled, where there are.

    Args:
        anchors: float `[n, 4]`, corners.
        boxes: float `[batch, objects, 4]`, corners.
        classes: int `[batch, objects]`, -1 where there is nothing.
        objectness: float `[batch, n]`, logits.
        shifts: float `[batch, n, 4]`, as of `encode_boxes`.
        noise: float `[batch, n]`, uniform in [0, 1), for the sampling.
        size: anchors of each picture that count.

    Returns:
        (cross-entropy, smooth L1), scalars.
    """
    anchors, boxes, classes, objectness = tensors(anchors, boxes, classes, objectness)
    matched = match(iou(anchors[None], boxes), 0.7, 0.3, valid=classes >= 0)
    counted = balanced_sample(matched >= 0, matched == -1, size, 0.5, noise)
    positive, counted = (matched >= 0) & counted, ops.cast(counted, "float32")
    number = ops.maximum(ops.sum(counted), 1.0)
    said = binary_cross_entropy(ops.cast(positive, "float32"), objectness)
    error = matched_smooth_l1(boxes, matched, positive, anchors[None], shifts, beta=1 / 9)
    return ops.sum(said * counted) / number, ops.sum(error) / number


def sample_regions(
    regions, boxes, classes, noise, size: int, share: float = 0.25, low: float = 0.0
):
    """Choose the regions that the second stage learns from.

    Girshick 2015 (Fast R-CNN, arXiv 1504.08083), section 2.3: a quarter overlaps an object by an
    IoU of 0.5 or more, the others by less.

    Args:
        regions: float `[batch, n, 4]`, corners; those without area are passed over.
        boxes, classes: see `proposal_losses`.
        noise: float `[batch, n]`, uniform in [0, 1).
        size: regions to choose of each picture, at most n.
        share: of those with objects, at most.
        low: least IoU of those without; 0.1 in the paper.

    Returns:
        (regions `[batch, size, 4]`; int `[batch, size]`, the object of each, -1 for none; float
        `[batch, size]`, 1 for those that count and 0 where there were too few).
    """
    regions, boxes, classes = tensors(regions, boxes, classes)
    overlap = iou(regions, boxes)
    matched = match(overlap, 0.5, 0.5, False, classes >= 0)
    empty = (matched == -1) & (box_area(regions) > 0) & (ops.max(overlap, axis=-1) >= low)
    chosen = balanced_sample(matched >= 0, empty, size, share, noise)
    counted, place = ops.top_k(ops.cast(chosen, "float32"), size)
    place = ops.cast(place, "int32")
    return take_rows(regions, place), take_rows(matched, place), counted


def region_losses(boxes, classes, sampled, logits, deltas=None, variances=(0.1, 0.2)):
    """Return the losses of a second stage: Fast R-CNN's multi-task loss, equation 1.

    Args:
        boxes, classes: see `proposal_losses`.
        sampled: from `sample_regions`.
        logits: float `[batch, size, 1 + kinds]` or, region by region, `[batch * size, 1 + kinds]`,
            the background first.
        deltas: float, as many rows of `(1 + kinds) * 4`; None: there is no loss of boxes.
        variances: see `encode_boxes`.

    Returns:
        (cross-entropy, smooth L1), scalars; without deltas the first alone.
    """
    regions, matched, counted = sampled
    boxes, classes, logits = tensors(boxes, classes, logits)
    number = ops.maximum(ops.sum(counted), 1.0)
    which = take_objects(classes + 1, matched)
    size, kinds = regions.shape[1], logits.shape[-1]
    said = sparse_cross_entropy(which, ops.reshape(logits, (-1, size, kinds))) * counted
    if deltas is None:
        return (ops.sum(said) / number,)
    deltas = ops.reshape(deltas, (-1, size, kinds, 4))
    mine = ops.sum(deltas * ops.one_hot(which, kinds)[..., None], axis=2)
    positive = (matched >= 0) & (counted > 0)
    error = matched_smooth_l1(boxes, matched, positive, regions, mine, variances)
    return ops.sum(said) / number, ops.sum(error) / number
