"""The loss of SSD."""

from keras import ops

from tiffin.layers.box_losses import matched_smooth_l1, sparse_cross_entropy
from tiffin.layers.boxes import iou, tensors
from tiffin.layers.matching import hardest, match, take_objects


def ssd_losses(
    anchors,
    boxes,
    classes,
    deltas,
    logits,
    variances=(0.1, 0.2),
    least: float = 0.5,
    negatives: float = 3.0,
):
    """Return smooth L1 of the matched boxes and cross-entropy with hard negatives.

    Liu et al. 2016 (arXiv 1512.02325), equation 1, both divided by the matched boxes of the batch.

    Args:
        anchors: float `[n, 4]`, the default boxes, corners.
        boxes: float `[batch, objects, 4]`, corners.
        classes: int `[batch, objects]`, -1 where there is nothing.
        deltas: float `[batch, n, 4]`.
        logits: float `[batch, n, 1 + kinds]`, the background first.
        variances: see `encode_boxes`.
        least: IoU from which on a default box is an object's; each object has its best in any case.
        negatives: background boxes that count for each matched one, the hardest; 3 in a picture
            without objects.

    Returns:
        (box loss, class loss), scalars.
    """
    anchors, boxes, classes = tensors(anchors, boxes, classes)
    matched = match(iou(anchors[None], boxes), least, least, valid=classes >= 0)
    positive = matched >= 0
    count = ops.sum(ops.cast(positive, "int32"), axis=1)
    total = ops.maximum(ops.cast(ops.sum(count), "float32"), 1.0)
    box = matched_smooth_l1(boxes, matched, positive, anchors[None], deltas, variances)
    said = sparse_cross_entropy(take_objects(classes + 1, matched), logits)
    most = ops.cast(ops.cast(count, "float32") * negatives, "int32")
    chosen = positive | hardest(said, ~positive, ops.maximum(most, 3))
    return ops.sum(box) / total, ops.sum(ops.where(chosen, said, 0.0)) / total
