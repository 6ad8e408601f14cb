"""Which anchor answers for which object, and which examples a loss counts."""

from keras import ops

from tiffin.layers.boxes import take_rows, tensors


def match(overlap, positive: float, negative: float, bipartite: bool = True, valid=None):
    """Assign to each anchor an object, the background, or neither.

    An anchor that overlaps an object by `positive` or more is that object's; one that overlaps
    none by `negative` is background; one between is left out of the loss. With `bipartite` each
    object takes the anchor that overlaps it most whatever the threshold, the best pair first
    (SSD, Liu et al. 2016, section 2.2; Ren et al. 2015, section 3.1.2, rule i).

    Args:
        overlap: float `[batch, anchors, objects]`, IoU.
        positive, negative: thresholds, the first the larger.
        bipartite: whether each object gets an anchor in any case.
        valid: bool `[batch, objects]`, False for padding; None: all are objects.

    Returns:
        Int32 `[batch, anchors]`: the object's index, -1 for background, -2 for neither. An object
        that overlaps no anchor at all gets none.

    Raises:
        ValueError: `negative` above `positive`.
    """
    if negative > positive:
        raise ValueError(f"negative={negative} is above positive={positive}.")
    overlap = ops.stop_gradient(ops.cast(overlap, "float32"))
    if valid is not None:
        valid = ops.convert_to_tensor(valid)
        overlap = ops.where(valid[:, None, :], overlap, -1.0)
    count = overlap.shape[-1]
    if count == 0:
        return ops.zeros(ops.shape(overlap)[:2], "int32") - 1
    best = ops.max(overlap, axis=-1)
    chosen = ops.cast(ops.argmax(overlap, axis=-1), "int32")
    result = ops.where(best >= positive, chosen, ops.where(best < negative, -1, -2))
    if not bipartite:
        return result
    # So many others can an object lose its best anchors to: further ones it never needs.
    anchors = overlap.shape[1]
    values, places = ops.top_k(ops.transpose(overlap, (0, 2, 1)), min(count, anchors))
    places = ops.cast(places, "int32")
    few, numbers = places.shape[-1], ops.arange(count, dtype="int32")

    # One object a round, the best pair of all that are left: as many rounds as objects.
    def give(_, state):
        left, owned = state
        flat = ops.reshape(left, (-1, count * few))
        best = ops.cast(ops.argmax(flat, axis=-1), "int32")
        thing = (numbers[None] == (best // few)[:, None]) & (ops.max(flat, axis=-1) > 0)[:, None]
        anchor = take_rows(ops.reshape(places, (-1, count * few)), best)[:, None]
        taken = thing[:, :, None] | (places == anchor[:, :, None])
        return ops.where(taken, -1.0, left), ops.where(thing, anchor, owned)

    owned = ops.zeros_like(places[..., 0]) - 1
    owned = ops.fori_loop(0, count, give, (values, owned))[1]
    mine = owned[:, :, None] == ops.arange(anchors, dtype="int32")
    owner = ops.cast(ops.argmax(ops.cast(mine, "int32"), axis=1), "int32")
    return ops.where(ops.any(mine, axis=1), owner, result)


def take_objects(values, matched):
    """Return each anchor's object's value, 0 for an anchor without one.

    Args:
        values: `[batch, objects]` or `[batch, objects, n]`, such as classes or boxes.
        matched: int `[batch, anchors]` from `match`.

    Returns:
        `[batch, anchors]` or `[batch, anchors, n]`.
    """
    values, matched = tensors(values, matched)
    taken = take_rows(values, ops.maximum(matched, 0))
    mine = ops.reshape(matched >= 0, (*ops.shape(matched), *[1] * (len(values.shape) - 2)))
    return ops.where(mine, taken, 0)


def hardest(losses, candidates, count):
    """Choose the candidates of the largest losses, so many an example: hard negative mining.

    Liu et al. 2016, section 2.2, with `count` 3 times the positives.

    Args:
        losses: float `[batch, n]`.
        candidates: bool `[batch, n]`.
        count: int `[batch]`, how many to choose; all where there are fewer.

    Returns:
        Bool `[batch, n]`.
    """
    losses, candidates = tensors(losses, candidates)
    losses = ops.stop_gradient(ops.where(candidates, ops.cast(losses, "float32"), -float("inf")))
    order = ops.argsort(-losses, axis=-1)
    rank = ops.argsort(order, axis=-1)
    return candidates & (ops.cast(rank, "int32") < ops.cast(count, "int32")[:, None])


def balanced_sample(positive, negative, size: int, share: float, noise):
    """Choose at random so many examples, a share of them positive, the rest negative.

    Fast R-CNN (Girshick 2015, section 2.3) takes 128 with a quarter of positives of two pictures;
    Faster R-CNN's RPN 256 a picture, half and half.

    Args:
        positive, negative: bool `[batch, n]`.
        size: examples to choose in each row.
        share: of positives, at most; negatives fill up what positives leave.
        noise: float `[batch, n]`, uniform in [0, 1): `keras.random.uniform`.

    Returns:
        Bool `[batch, n]`.
    """
    most = ops.full_like(positive[:, 0], round(size * share), dtype="int32")
    positives = hardest(noise, positive, most)
    taken = ops.sum(ops.cast(positives, "int32"), axis=-1)
    return positives | hardest(noise, negative, size - taken)
