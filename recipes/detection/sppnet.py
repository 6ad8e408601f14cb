"""SPP-net: one feature map of the picture, and of each region a pyramid of pooled grids.

A region of any size and shape is max-pooled over grids of 6 x 6, 3 x 3, 2 x 2 and one cell; the 50
maxima of each channel, one after the other, are what fully connected layers see. R-CNN's thousands
of convolved crops become one convolved picture. As there, linear SVMs judge in the end, and ridge
regression moves the boxes. The paper trains the layers above the pooling alone (--freeze, with
--weights imagenet); here gradients pass through it, as Fast R-CNN showed later.

He et al. 2014, arXiv 1406.4729.

Reproduces table 10 (VOC 2007, mAP50 in percent): ZF-5, one scale, with box regression 59.2 at five
scales. Ours: docs/results.md.

Run it:
    python recipes/detection/sppnet.py --export
"""

import dataclasses
from typing import ClassVar, Unpack

import keras
from keras import ops

from tiffin.export.errors import one_of
from tiffin.layers import SpatialPyramidPooling
from tiffin.recipes.engine.backbones import Backbone, backbone_maps, choose
from tiffin.recipes.engine.region_svm import RegionSVM, region_classifier
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs of the picture and of one region, error in
    # percent, measured on)
    "sppnet_small": (2014, 96, 885_717, 47_273_216, None, "VOC"),
    "sppnet_zfnet": (2014, 688, 73_026_709, 11_517_454_464, 40.8, "VOC"),
}
TABLES = {
    # backbone, its options, stride of the map, units behind the pyramid
    "sppnet_small": ("vgg11_bn", {"alpha": 0.25}, 4, (256,)),
    "sppnet_zfnet": ("zfnet", {}, 16, (4096, 4096)),
}
LEVELS = (6, 3, 2, 1)


def sppnet(
    variant: str = "sppnet_zfnet",
    input_shape: tuple[int, int, int] = (688, 688, 3),
    classes: int = 20,
    *,
    proposals: int = 2000,
    normalization: tuple | None = None,
    **under: Unpack[Backbone],
) -> keras.Model:
    """Build an SPP-net up to its features and the softmax that it is trained with.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels.
        classes: without the background.
        proposals: regions of a picture.
        normalization: see `tiffin.layers.image_input`.
        **under: see `tiffin.recipes.engine.backbones.Backbone`.

    Returns:
        A model from `image` and `proposals`, float `[batch, proposals, 4]`, corners in pixels, to
        `map0`, what regions are pooled from, the `proposals`, and for each of these, one after the
        other, `pooled`, float `[batch * proposals, 50 * channels]`, `features`, what the last
        hidden layer says, and `logits`, float `[batch * proposals, 1 + classes]`, the background
        first.

    Raises:
        InputError: an unknown variant or backbone, or one without such a map.
    """
    one_of("variant", variant, VARIANTS)
    own, options, stride, units = TABLES[variant]
    own, options = choose((own, options), **under)
    body = backbone_maps(own, input_shape, normalization, **options)
    seen = body[f"stride_{stride}"]
    regions = keras.Input((proposals, 4), name="proposals")
    x = SpatialPyramidPooling(LEVELS, 1 / stride, name="pyramid")(seen, regions)
    x = ops.reshape(x, (-1, x.shape[-1]))
    inputs = {"image": body["image"], "proposals": regions}
    return region_classifier(variant, inputs, seen, x, units, classes)


@dataclasses.dataclass
class Config(RegionSVM):
    """Train SPP-net (He et al. 2014, arXiv 1406.4729).

    examples:
      tiffin train sppnet --export
      tiffin train sppnet --data cells/ --image-size 256 --proposals 600 --classifier softmax
      tiffin train sppnet_zfnet --data voc/2007 --weights imagenet --freeze conv5
    """

    model: str = "sppnet_small"
    batch_size: int = 8
    builder: ClassVar = staticmethod(sppnet)
    bodies: ClassVar = {name: row[:2] for name, row in TABLES.items()}


if __name__ == "__main__":
    main(Config)
