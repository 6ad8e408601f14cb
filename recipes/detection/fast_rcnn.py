"""Fast R-CNN: one look at the picture, one network for regions that somebody else proposes.

The convolutions run once over the whole picture; from their last map each proposed region is
pooled to one size, and fully connected layers say what it is and how to move it, each class with a
box of its own. All of it trains at once: a few pictures a step and many regions of each, so that
they share their convolutions (the paper's hierarchical sampling). Regions come from selective
search; exported files take them as a second input.

Girshick 2015, arXiv 1504.08083.

Reproduces table 1 (VOC 2007, mAP50 in percent): VGG16 66.9. Ours: docs/results.md.

Run it:
    python recipes/detection/fast_rcnn.py --export
"""

import dataclasses
from typing import ClassVar, Literal, Unpack

import keras
from keras import ops

from tiffin.export.errors import InputError, one_of
from tiffin.layers import RoIAlign, RoIPool, truncate_svd
from tiffin.recipes.engine.backbones import Backbone, backbone_maps, choose
from tiffin.recipes.engine.region_detection import GivenRegions, hidden, judgement
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs of the picture and of one region, error in
    # percent, measured on)
    "fast_rcnn_small": (2015, 96, 497_705, 46_885_120, None, "VOC"),
    "fast_rcnn_vgg16": (2015, 608, 134_690_729, 113_183_920_128, 33.1, "VOC"),
}
TABLES = {
    # backbone, its options, stride of the map; what pools a region, to how many cells, units behind
    "fast_rcnn_small": ("vgg11_bn", {"alpha": 0.25}, 4, "align", 5, (256,)),
    "fast_rcnn_vgg16": ("vgg16", {}, 16, "pool", 7, (4096, 4096)),
}


def fast_rcnn(
    variant: str = "fast_rcnn_vgg16",
    input_shape: tuple[int, int, int] = (608, 608, 3),
    classes: int = 20,
    *,
    pooling: Literal["pool", "align"] | None = None,
    proposals: int = 2000,
    normalization: tuple | None = None,
    **under: Unpack[Backbone],
) -> keras.Model:
    """Build a Fast R-CNN up to its raw heads.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels.
        classes: without the background.
        pooling: of regions: "pool" (RoIPool, the paper's) or "align" (RoIAlign); None: the
            variant's own.
        proposals: regions of a picture.
        normalization: see `tiffin.layers.image_input`.
        **under: see `tiffin.recipes.engine.backbones.Backbone`.

    Returns:
        A model from `image` and `proposals`, float `[batch, proposals, 4]`, corners in pixels, to
        `map0`, what regions are pooled from, the `proposals`, and for each of these, one after the
        other, `logits`, float `[batch * proposals, 1 + classes]`, the background first, and
        `deltas`, float `[batch * proposals, (1 + classes) * 4]`.

    Raises:
        InputError: an unknown variant, backbone or pooling, or a backbone without such a map.
    """
    one_of("variant", variant, VARIANTS)
    one_of("pooling", pooling, (None, "pool", "align"))
    own, options, stride, by, cells, units = TABLES[variant]
    own, options = choose((own, options), **under)
    body = backbone_maps(own, input_shape, normalization, **options)
    seen = body[f"stride_{stride}"]
    regions = keras.Input((proposals, 4), name="proposals")
    kind = RoIPool if (pooling or by) == "pool" else RoIAlign
    x = kind(cells, 1 / stride, name="pooled")(seen, regions)
    x = ops.reshape(x, (-1, cells * cells * seen.shape[-1]))
    x = hidden(x, units)
    outputs = {"map0": seen, "proposals": regions, **judgement(x, 1 + classes)}
    return keras.Model({"image": body["image"], "proposals": regions}, outputs, name=variant)


@dataclasses.dataclass
class Config(GivenRegions):
    """Train Fast R-CNN (Girshick 2015, arXiv 1504.08083).

    examples:
      tiffin train fast_rcnn --export
      tiffin train fast_rcnn --data cells/ --image-size 256 --backbone resnet18 --proposals 600
      tiffin train fast_rcnn_vgg16 --data voc/2007 --weights imagenet --svd 1024 256
    """

    model: str = "fast_rcnn_small"
    pooling: Literal["pool", "align"] | None = None
    """Of regions: RoIPool, the paper's, or RoIAlign; default: the variant's own."""
    low: float = 0.0
    """Least IoU with an object of the regions that are learned as background; 0.1 in the paper."""
    svd: tuple[int, ...] = ()
    """Singular values to keep of each fully connected layer in exported files, such as 1024 256 for
    fc6 and fc7; default: all."""
    builder: ClassVar = staticmethod(fast_rcnn)
    bodies: ClassVar = {name: row[:2] for name, row in TABLES.items()}
    parts: ClassVar = ("class_loss", "box_loss")

    def check(self) -> None:
        super().check()
        if not 0 <= self.low < 0.5:
            raise InputError(f"--low {self.low}: it is an IoU, from 0 to below 0.5.")
        units = TABLES[self.model][-1]
        if len(self.svd) not in (0, len(units)) or any(
            not 1 <= rank <= n for rank, n in zip(self.svd, units, strict=False)
        ):
            raise InputError(
                f"--svd {' '.join(map(str, self.svd))}: {self.model} takes one number for each of "
                f"its layers of {' and '.join(map(str, units))} units, from 1 to that."
            )

    def exported(self, model: keras.Model) -> keras.Model:
        """Return the network with truncated singular values, if asked for."""
        ranks = {f"fc{i}": rank for i, rank in enumerate(self.svd, start=6)}
        return super().exported(truncate_svd(model, ranks) if ranks else model)


if __name__ == "__main__":
    main(Config)
