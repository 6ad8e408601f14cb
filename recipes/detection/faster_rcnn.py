"""Faster R-CNN: a network proposes regions, and a second one on the same features judges them.

At every cell of the feature map stand anchors of several sizes and shapes. A small convolutional
head says which hold an object and how to move them; the surest become proposals, whose features are
pooled to one size and classified, each class with a box of its own. Both stages train together, as
if the proposals were given (the paper's approximate joint training).

Ren et al. 2015, arXiv 1506.01497. With ResNet: He et al. 2015, arXiv 1512.03385, appendix A; with a
feature pyramid: Lin et al. 2017, arXiv 1612.03144.

Reproduces table 3 (VOC 2007, mAP50 in percent): VGG16 69.9; and torchvision's figure for ResNet-50
with FPN on COCO: 58.5 AP50. Ours: docs/results.md.

Run it:
    python recipes/detection/faster_rcnn.py --export
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, Unpack

import keras
import numpy as np
from keras import layers, ops

from tiffin.export.errors import one_of
from tiffin.layers import (
    Proposals,
    PyramidRoIAlign,
    RoIAlign,
    RoIPool,
    anchor_shapes,
    bottleneck_block,
    feature_pyramid,
    grid_anchors,
    proposal_losses,
)
from tiffin.recipes.engine.backbones import Backbone, backbone_maps, choose
from tiffin.recipes.engine.names import TORCHVISION_RESNET
from tiffin.recipes.engine.region_detection import RegionDetection, hidden, judgement
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "faster_rcnn_small": (2015, 96, 537_558, 112_989_184, None, "VOC"),
    "faster_rcnn_vgg16": (2015, 608, 137_078_239, 128_507_473_920, 30.1, "VOC"),
    "faster_rcnn_resnet50": (2015, 608, 28_469_983, 30_621_044_736, None, "VOC"),
    "faster_rcnn_resnet50_fpn": (2017, 800, 41_757_156, 113_558_835_200, 41.5, "COCO"),
}
BOTTLENECKS = ("resnet50", "resnet101", "resnet152")  # with the same blocks in conv5 as here
RATIOS = (0.5, 1.0, 2.0)
SMALL, PAPER, FINE = ((8, 13, 21),), ((128, 256, 512),), ((32,), (64,), (128,), (256,), (512,))
TABLES = {
    # backbone, its options, strides of the maps, sides of the anchors on each in pixels; scores of
    # an anchor, channels before, what pools a region, to how many cells, units behind
    "faster_rcnn_small": ("vgg11_bn", {"alpha": 0.25}, (4,), SMALL, 1, 64, "align", 5, (256,)),
    "faster_rcnn_vgg16": ("vgg16", {}, (16,), PAPER, 2, 512, "pool", 7, (4096, 4096)),
    "faster_rcnn_resnet50": ("resnet50", {}, (16,), PAPER, 2, 512, "align", 14, "conv5"),
    "faster_rcnn_resnet50_fpn": (
        *("resnet50", {"stride_in": "3x3"}, (4, 8, 16, 32), FINE, 1, 256, "align", 7, (1024, 1024)),
    ),
}
WEIGHTS = {
    "torchvision": Collection(
        names=(
            *((rf"backbone\.body\.{path}", layer) for path, layer in TORCHVISION_RESNET[:-1]),
            (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(\.0)?", "fpn_{1}{2+1}"),
            (r"rpn\.head\.conv(\.0\.0)?", "rpn_conv"),
            (r"rpn\.head\.cls_logits", "rpn_objectness"),
            (r"rpn\.head\.bbox_pred", "rpn_shifts"),
            (r"roi_heads\.box_head\.(fc\d)", "{1}"),
            (r"roi_heads\.box_predictor\.cls_score", "logits"),
            (r"roi_heads\.box_predictor\.bbox_pred", "deltas"),
        ),
        epsilon=0.0,  # as torchvision runs these weights
        boxes="rpn_shifts|deltas",
        trained_on="coco",
        files={"faster_rcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"},
    ),
}


def faster_rcnn(
    variant: str = "faster_rcnn_vgg16",
    input_shape: tuple[int, int, int] = (608, 608, 3),
    classes: int = 20,
    *,
    pooling: Literal["pool", "align"] | None = None,
    proposals: int = 100,
    anchor_scale: float = 1.0,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **under: Unpack[Backbone],
) -> keras.Model:
    """Build a Faster R-CNN up to its raw heads.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels, multiples of the coarsest stride.
        classes: without the background.
        pooling: of regions: "pool" (RoIPool) or "align" (RoIAlign); None: the variant's own.
        proposals: regions that the second stage judges, the best of four times as many a map.
        anchor_scale: what the anchors' sides are multiplied by.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **under: see `tiffin.recipes.engine.backbones.Backbone`.

    Returns:
        A model from `image` to `objectness`, float `[batch, anchors]`; `shifts`, float `[batch,
        anchors, 4]`; `proposals`, float `[batch, proposals, 4]`, corners in pixels; and, for each
        of these, `logits`, float `[batch, proposals, 1 + classes]`, the background first, and
        `deltas`, float `[batch, proposals, (1 + classes) * 4]`.

    Raises:
        InputError: an unknown variant or backbone, or one without such maps.
        ValueError: a size that is no multiple of the coarsest stride.
    """
    one_of("variant", variant, VARIANTS)
    own, options, strides, sides, scores, width, by, cells, units = TABLES[variant]
    one_of("pooling", pooling, (None, "pool", "align"))
    if any(n % strides[-1] for n in input_shape[:2]):
        raise ValueError(f"the sides must be multiples of {strides[-1]}.")
    own, options = choose((own, options), **under)
    body = backbone_maps(own, input_shape, normalization, **options)
    maps = [body[f"stride_{n}"] for n in strides]
    pyramid = len(maps) > 1
    if pyramid:
        maps = feature_pyramid(maps)
    seen = [*maps, layers.MaxPooling2D(1, 2, name="pool")(maps[-1])] if pyramid else maps
    objectness, shifts = _propose(seen, width, scores, len(sides[0]) * len(RATIOS))
    anchors, offset = [], 0.0 if pyramid else 0.5
    for some, x in zip(sides, seen, strict=True):
        shapes = anchor_shapes(np.multiply(some, anchor_scale), RATIOS)
        shapes = 2 * np.round(shapes / 2)  # of whole pixels
        grid = x.shape[1:3]
        anchors.append(grid_anchors(shapes, grid, np.floor_divide(input_shape[:2], grid), offset))
    counts, joined, size = [len(some) for some in anchors], np.concatenate(anchors), input_shape[:2]
    propose = Proposals(joined, counts, size, proposals, 4 * proposals, name="proposals")
    regions = propose(objectness, shifts)
    outputs = {"objectness": objectness, "shifts": shifts, "proposals": regions}
    block = {"stride_in": options.get("stride_in", "1x1"), "momentum": bn_momentum}
    # Weights go by name: only the same blocks may be called as the backbone's.
    stage = "conv5" if own in BOTTLENECKS else "head"
    by = pooling or by
    outputs |= _judge(maps, regions, by, cells, units, 1 + classes, strides, stage, block)
    outputs |= {f"map{i}": x for i, x in enumerate(maps)}
    return keras.Model(body["image"], outputs, name=variant)


def _propose(maps, width: int, scores: int, each: int):
    """The first stage: the same convolutions on every map, with one score or the paper's two.

    They start as in section 3.1.3; from larger weights the first proposals are far from anchors.
    """
    start = {"kernel_initializer": keras.initializers.RandomNormal(0, 0.01)}
    conv = layers.Conv2D(width, 3, padding="same", activation="relu", name="rpn_conv", **start)
    objectness = layers.Conv2D(scores * each, 1, name="rpn_objectness", **start)
    shifts = layers.Conv2D(4 * each, 1, name="rpn_shifts", **start)
    said, moved = [], []
    for i, x in enumerate(maps):
        x = conv(x)
        two = layers.Reshape((-1, scores), name=f"objectness{i}")(objectness(x))
        # Of two scores their difference is what a softmax looks at.
        said.append(two[..., 1] - two[..., 0] if scores == 2 else two[..., 0])
        moved.append(layers.Reshape((-1, 4), name=f"shifts{i}")(shifts(x)))
    return (
        layers.Concatenate(axis=1, dtype="float32", name="objectness")(said),
        layers.Concatenate(axis=1, dtype="float32", name="shifts")(moved),
    )


def _judge(maps, regions, by, cells, units, kinds: int, strides, stage: str, block) -> dict:
    """The second stage: what is in each region, and its box."""
    if len(maps) > 1:
        x = PyramidRoIAlign(cells, strides, name="pooled")(maps, regions)
    else:
        kind = RoIPool if by == "pool" else RoIAlign
        x = kind(cells, 1 / strides[0], name="pooled")(maps[0], regions)
    count = regions.shape[1]
    if units == "conv5":  # the last stage of ResNet looks at each region for itself
        x = ops.reshape(x, (-1, *x.shape[2:]))
        for i in (1, 2, 3):
            step = 2 if i == 1 else 1
            x = bottleneck_block(x, 512, step, name=f"{stage}_block{i}", **block)
        x = ops.reshape(layers.GlobalAveragePooling2D(name="average")(x), (-1, count, 2048))
    else:
        x = hidden(layers.Reshape((count, -1), name="flat")(x), units)
    return judgement(x, kinds)


@dataclasses.dataclass
class Config(RegionDetection):
    """Train Faster R-CNN (Ren et al. 2015, arXiv 1506.01497).

    examples:
      tiffin train faster_rcnn --export
      tiffin train faster_rcnn --data cells/ --image-size 256 --backbone resnet18 --anchor-scale 3
      tiffin train faster_rcnn_resnet50_fpn --data voc/2007 --weights coco
    """

    model: str = "faster_rcnn_small"
    pooling: Literal["pool", "align"] | None = None
    """Of regions: RoIPool or RoIAlign; default: the variant's own."""
    proposals: int = 64
    """Regions that the second stage judges, and of each picture learns from."""
    anchor_scale: float = 1.0
    """What the sides of the anchors are multiplied by."""
    builder: ClassVar = staticmethod(faster_rcnn)
    bodies: ClassVar = {name: row[:2] for name, row in TABLES.items()}
    parts: ClassVar = ("objectness_loss", "shift_loss", "class_loss", "box_loss")

    @property
    def learned(self) -> int:
        return self.proposals

    def raw(self, input_shape, classes, normalization) -> keras.Model:
        network = super().raw(input_shape, classes, normalization)
        self.anchors = network.get_layer("proposals").anchors
        return network

    def losses(self, targets: Mapping, outputs: Mapping, training: bool = False) -> dict:
        """Return both stages' losses: the paper's equation 1, and that of Fast R-CNN."""
        boxes, kinds = targets["boxes"], targets["classes"]
        said, shifts = outputs["objectness"], outputs["shifts"]
        noise = keras.random.uniform(ops.shape(said), seed=self.random)
        first = proposal_losses(self.anchors, boxes, kinds, said, shifts, noise)
        second = self.judged(targets, outputs, outputs["proposals"], training)
        return dict(zip(self.parts, (*first, *second), strict=True))


if __name__ == "__main__":
    main(Config)
