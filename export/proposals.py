"""Selective search: regions of a picture that may hold an object, for files that take `proposals`.

Uijlings et al. 2013, as R-CNN, SPP-net and Fast R-CNN use it: regions of like pixels are joined,
the most similar neighbours first, and each that comes about is proposed.
"""

import numpy as np

from tiffin.export.errors import optional

PROPOSALS = "proposals"  # the input of files that take them
# The least region in pixels, and the granularity, in the two segmentations that are joined up.
_SMALLEST, _SCALES, _BLUR = 20, (50.0, 150.0), 0.5
_SHARE = 5e-4  # of the picture, what the least region has at any rate


def selective_search(image: np.ndarray, number: int) -> np.ndarray:
    """Return the regions of a picture that may hold an object.

    The fast form of the authors: two colour spaces (RGB and Lab) and two segmentations, joined by
    colour, texture, size and fill.

    Args:
        image: uint8 `[height, width, 3]`, RGB.
        number: regions to return; of more, some are left out evenly.

    Returns:
        float32 `[number, 4]`, corners in pixels; where there are fewer, boxes without area follow.
    """
    cv2 = optional("cv2", "Selective search")
    part = cv2.ximgproc.segmentation
    image = np.ascontiguousarray(image[..., ::-1])
    search = part.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    for picture in (image, cv2.cvtColor(image, cv2.COLOR_BGR2Lab)):
        search.addImage(picture)
    least = max(_SMALLEST, round(_SHARE * image.shape[0] * image.shape[1]))
    for scale in _SCALES:
        search.addGraphSegmentation(part.createGraphSegmentation(_BLUR, scale, least))
    similar = [
        part.createSelectiveSearchSegmentationStrategyColor(),
        part.createSelectiveSearchSegmentationStrategyTexture(),
        part.createSelectiveSearchSegmentationStrategySize(),
        part.createSelectiveSearchSegmentationStrategyFill(),
    ]
    search.addStrategy(part.createSelectiveSearchSegmentationStrategyMultiple(*similar))
    found = search.process()
    # OpenCV's order has a random part: what is left out must not.
    x, y, width, height = np.unique(np.reshape(found, (-1, 4)), axis=0).astype(np.float32).T
    boxes = np.stack([y, x, y + height, x + width], axis=1)
    if len(boxes) > number:
        areas = np.argsort(width * height, kind="stable")
        boxes = boxes[areas[np.linspace(0, len(boxes) - 1, number).round().astype(int)]]
    result = np.zeros((number, 4), np.float32)
    result[: len(boxes)] = boxes
    return result


def given(tensors, images: np.ndarray):
    """Return what a model takes for pictures: these, and their proposals if it asks for some.

    Args:
        tensors: the model's inputs, each with `name` and `shape`.
        images: uint8 or float `[n, height, width, 3]`, raw pixels as large as the input.
    """
    wanted = {t.name: t.shape for t in tensors}
    if PROPOSALS not in wanted:
        return images
    (name,) = wanted.keys() - {PROPOSALS}
    number = wanted[PROPOSALS][1]
    found = np.stack([selective_search(image.astype(np.uint8), number) for image in images])
    return {name: images, PROPOSALS: found}
