"""R-CNN: cut every proposed region out of the picture, and let a CNN and SVMs say what it is.

Each region is warped to the square input of a classification network, with some of its
surroundings; the network learns to tell the classes and the background apart. Then linear SVMs are
fitted to its last hidden layer, one for each class, with hard negatives, and ridge regression on
its last map moves the boxes. It convolves each region anew, which the next papers mended: SPP-net,
Fast R-CNN.

Girshick et al. 2014, arXiv 1311.2524.

Reproduces table 3 (VOC 2007, mAP50 in percent): with VGG16 and box regression 66.0. Ours:
docs/results.md.

Run it:
    python recipes/detection/rcnn.py --export
"""

import dataclasses
from typing import ClassVar, Unpack

import keras
from keras import layers, ops

from tiffin.export.errors import one_of
from tiffin.layers import WarpedRegions, image_input
from tiffin.recipes.engine.backbones import Backbone, backbone_maps, choose
from tiffin.recipes.engine.region_svm import RegionSVM, region_classifier
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs of one region, error in percent, measured
    # on)
    "rcnn_small": (2014, 96, 419_541, 8_836_352, None, "VOC"),
    "rcnn_vgg16": (2014, 500, 134_346_581, 15_466_254_336, 34.0, "VOC"),
}
TABLES = {
    # network, its options, side of a warped region, pixels of that around the region, stride of the
    # map that is pooled last, units behind
    "rcnn_small": ("vgg11_bn", {"alpha": 0.25}, 32, 2, 8, (256,)),
    "rcnn_vgg16": ("vgg16", {}, 224, 16, 16, (4096, 4096)),
}


def rcnn(
    variant: str = "rcnn_vgg16",
    input_shape: tuple[int, int, int] = (500, 500, 3),
    classes: int = 20,
    *,
    proposals: int = 2000,
    normalization: tuple | None = None,
    **under: Unpack[Backbone],
) -> keras.Model:
    """Build an R-CNN up to its features and the softmax that it is trained with.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels.
        classes: without the background.
        proposals: regions of a picture.
        normalization: see `tiffin.layers.image_input`.
        **under: see `tiffin.recipes.engine.backbones.Backbone`.

    Returns:
        A model from `image` and `proposals`, float `[batch, proposals, 4]`, corners in pixels, to
        `map0`, the normalised picture, the `proposals`, and for each of these, one after the other,
        `pooled`, the last map, flat, `features`, what the last hidden layer says, and `logits`,
        float `[batch * proposals, 1 + classes]`, the background first.

    Raises:
        InputError: an unknown variant or network, or one without such a map.
    """
    one_of("variant", variant, VARIANTS)
    own, options, side, context, stride, units = TABLES[variant]
    own, options = choose((own, options), **under)
    image, seen = image_input(input_shape, normalization)
    regions = keras.Input((proposals, 4), name="proposals")
    x = WarpedRegions(side, context, name="warped")(seen, regions)
    x = ops.reshape(x, (-1, *x.shape[2:]))
    body = backbone_maps(own, x.shape[1:], None, **options)
    x = keras.Model(body["image"], body[f"stride_{stride}"]).call(x)
    x = layers.MaxPooling2D(2, name="last_pool")(x)
    x = layers.Flatten(name="pooled")(x)
    inputs = {"image": image, "proposals": regions}
    return region_classifier(variant, inputs, seen, x, units, classes)


@dataclasses.dataclass
class Config(RegionSVM):
    """Train R-CNN (Girshick et al. 2014, arXiv 1311.2524).

    examples:
      tiffin train rcnn --export
      tiffin train rcnn --data cells/ --image-size 256 --proposals 600
      tiffin train rcnn_vgg16 --data voc/2007 --weights imagenet --classifier softmax
    """

    model: str = "rcnn_small"
    regions: int = 8
    """Regions of each picture that a step learns from."""
    builder: ClassVar = staticmethod(rcnn)
    bodies: ClassVar = {name: row[:2] for name, row in TABLES.items()}


if __name__ == "__main__":
    main(Config)
