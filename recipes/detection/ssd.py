"""SSD: boxes from feature maps of several strides in one pass.

Default boxes of a few shapes stand about every cell of every map, the finer maps for the small
objects. Small convolutions say for each how it is to be shifted and stretched and what is in it;
there are no proposals and no second stage. Most boxes are background, so that only the hardest
three for each object count in the loss.

Liu et al. 2016, arXiv 1512.02325. SSDLite: Sandler et al. 2018 (MobileNetV2), arXiv 1801.04381,
section 6.2: all convolutions behind the backbone are depthwise separable.

Reproduces table 1 (VOC 2007, mAP50 in percent): SSD300 74.3, SSD512 76.8. Ours: docs/results.md.

Run it:
    python recipes/detection/ssd.py --export
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, Unpack

import keras
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    BatchNormalization,
    DecodeBoxes,
    L2Normalization,
    conv_bn,
    separable_block,
    ssd_boxes,
    ssd_losses,
    ssd_scales,
)
from tiffin.recipes.engine.backbones import Backbone, backbone_maps, choose
from tiffin.recipes.engine.detection import Detection, box_heads
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "ssd_small": (2016, 96, 653_420, 136_046_592, None, "VOC"),
    "ssd300_vgg16": (2016, 300, 26_285_486, 31_373_537_792, 25.7, "VOC"),
    "ssd512_vgg16": (2016, 512, 27_188_676, 90_207_908_864, 23.2, "VOC"),
    "ssdlite320_mobilenet_v2": (2018, 320, 4_386_058, 808_414_144, None, "COCO"),
}

# Figure 2 and section 3.1: the maps that are looked at, those behind the backbone made by a 1x1
# convolution (squeeze) and a 3x3 one, and the aspect ratios of their default boxes.
SSD300 = (
    # source     squeeze  filters  stride  padding  ratios    output at 300x300
    ("conv4_3", None, None, None, None, (2,)),  #             38 x 38 x 512
    ("fc7", None, None, None, None, (2, 3)),  #               19 x 19 x 1024
    ("conv8_2", 256, 512, 2, "same", (2, 3)),  #              10 x 10
    ("conv9_2", 128, 256, 2, "same", (2, 3)),  #              5 x 5
    ("conv10_2", 128, 256, 1, "valid", (2,)),  #              3 x 3
    ("conv11_2", 128, 256, 1, "valid", (2,)),  #              1 x 1
)
SSD512 = (
    *SSD300[:4],  #                                           64 x 64 to 8 x 8
    ("conv10_2", 128, 256, 2, "same", (2, 3)),  #             4 x 4
    ("conv11_2", 128, 256, 2, "same", (2,)),  #               2 x 2
    ("conv12_2", 128, 256, 2, "same", (2,)),  #               1 x 1, by a 4x4 kernel
)
SSDLITE = (
    # source     squeeze  filters  stride  padding  ratios    output at 320x320
    ("stride_16", None, None, None, None, (2,)),  #           20 x 20, inside of block 13
    ("stride_32", None, None, None, None, (2, 3)),  #         10 x 10 x 1280
    ("extra1", 256, 512, 2, "same", (2, 3)),  #               5 x 5
    ("extra2", 128, 256, 2, "same", (2, 3)),  #               3 x 3
    ("extra3", 128, 256, 2, "same", (2, 3)),  #               2 x 2
    ("extra4", 64, 128, 2, "same", (2, 3)),  #                1 x 1
)
SMALL = (
    # source     squeeze  filters  stride  padding  ratios    output at 96x96
    ("stride_4", None, None, None, None, (2,)),  #            24 x 24
    ("stride_8", None, None, None, None, (2,)),  #            12 x 12
    ("extra1", 64, 128, 2, "same", (2,)),  #                  6 x 6
)
TABLES = {
    # maps, backbone, its options, scales of the default boxes
    "ssd_small": (SMALL, "vgg11_bn", {"alpha": 0.25}, (0.12, 0.2, 0.3, 0.45)),
    "ssd300_vgg16": (SSD300, "vgg16", {}, ssd_scales(6)),
    "ssd512_vgg16": (SSD512, "vgg16", {}, ssd_scales(7, 0.15, 0.9, 0.07)),
    "ssdlite320_mobilenet_v2": (SSDLITE, "mobilenet_v2", {}, (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1)),
}
STEPS = {("ssd300_vgg16", 300): (8, 16, 32, 64, 100, 300)}  # the authors'; else size over cells
VARIANCES = (0.1, 0.2)


def torchvision_names(paths: list[str]) -> dict[str, str]:
    """Name our layers for torchvision's, whose body is numbered through."""
    body = [path for path in paths if path.startswith(("backbone.features", "backbone.extra"))]
    ours = [f"block{b}_conv{i + 1}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]
    ours += ["fc6", "fc7", *(f"conv{n}_{i}" for n in range(8, 12) for i in (1, 2))]
    names = dict(zip(body, ours, strict=True)) | {"backbone": "conv4_3_norm"}
    for kind, head in (("deltas", "regression"), ("logits", "classification")):
        for i, row in enumerate(SSD300):
            names[f"head.{head}_head.module_list.{i}"] = f"{row[0]}_{kind}"
    return names


WEIGHTS = {
    "torchvision": Collection(
        names=torchvision_names,
        options={"scales": (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)},
        normalization=((123.0, 117.0, 104.0), 1.0),
        boxes=r".*_deltas",
        trained_on="coco",
        files={"ssd300_vgg16": "ssd300_vgg16_coco-b556d3b4.pth"},
    )
}


def ssd(
    variant: str = "ssd300_vgg16",
    input_shape: tuple[int, int, int] = (300, 300, 3),
    classes: int = 20,
    *,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **under: Unpack[Backbone],
) -> keras.Model:
    """Build an SSD up to its raw heads.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels, a square.
        classes: without the background.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **under: see `tiffin.recipes.engine.backbones.Backbone`.

    Returns:
        A model from `image` to `deltas`, float `[batch, boxes, 4]`, and `logits`, float
        `[batch, boxes, 1 + classes]`, the background first; boxes as from `default_boxes`.

    Raises:
        InputError: an unknown variant or backbone, or one without such maps.
        ValueError: no square.
    """
    one_of("variant", variant, VARIANTS)
    if input_shape[0] != input_shape[1]:
        raise ValueError(f"input_shape {input_shape} must be a square.")
    table, own, options, _ = TABLES[variant]
    by_paper = own == "vgg16" and not under.get("backbone")
    lite, bn = variant.startswith("ssdlite"), {"momentum": bn_momentum}
    own, options = choose((own, options), **under)
    body = backbone_maps(own, input_shape, normalization, **options)
    x, maps = None, []
    for source, squeeze, filters, stride, padding, _ in table:
        if by_paper and source == "conv4_3":
            x = L2Normalization(20.0, name="conv4_3_norm")(body["stride_8"])
        elif by_paper and source == "fc7":
            x = layers.MaxPooling2D(3, 1, "same", name="pool5")(body["stride_16"])
            x = layers.Conv2D(
                1024, 3, padding="same", dilation_rate=6, activation="relu", name="fc6"
            )(x)
            x = layers.Conv2D(1024, 1, activation="relu", name="fc7")(x)
        elif squeeze:
            x = _extra(x, source, squeeze, filters, stride, padding, by_paper, lite, bn)
        else:
            x = body[{"conv4_3": "stride_8", "fc7": "stride_16"}.get(source, source)]
        maps.append(x)
    names, counts = [row[0] for row in table], [2 + 2 * len(row[-1]) for row in table]
    head = functools.partial(_head, lite=lite, bn=bn)
    outputs = box_heads(names, maps, counts, classes, head)
    return keras.Model(body["image"], outputs, name=variant)


def _extra(x, name, squeeze, filters, stride, padding, by_paper, lite, bn):
    """Shrink the map: 1x1 and 3x3 convolution, the latter strided or without padding."""
    first = name.replace("_2", "_1") if by_paper else f"{name}_squeeze"
    if by_paper:
        x = layers.Conv2D(squeeze, 1, activation="relu", name=first)(x)
        kernel = 4 if name == "conv12_2" else 3
        if padding == "same":
            x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
        return layers.Conv2D(filters, kernel, stride, activation="relu", name=name)(x)
    x = layers.ReLU(6 if lite else None)(conv_bn(x, squeeze, 1, name=first, **bn))
    if lite:
        return separable_block(x, filters, stride, name=name, **bn)
    return layers.ReLU()(conv_bn(x, filters, 3, stride, name=name, **bn))


def _head(x, filters: int, name: str, lite: bool, bn: dict):
    if not lite:
        return layers.Conv2D(filters, 3, padding="same", name=name)(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_dw")(x)
    x = layers.ReLU(6)(BatchNormalization(name=f"{name}_dw_bn", **bn)(x))
    return layers.Conv2D(filters, 1, name=name)(x)


def default_boxes(network: keras.Model, variant: str, scales=None):
    """Return the default boxes of a network from `ssd`, float32 `[boxes, 4]`, corners in pixels."""
    table, _, _, own = TABLES[variant]
    size = network.input_shape[1]
    grids = [network.get_layer(f"{row[0]}_deltas").output.shape[1] for row in table]
    steps = STEPS.get((variant, size), [size / n for n in grids])
    return ssd_boxes(size, grids, steps, scales or own, [row[-1] for row in table])


@dataclasses.dataclass
class Config(Detection):
    """Train SSD (Liu et al. 2016, arXiv 1512.02325) or SSDLite.

    examples:
      tiffin train ssd --export
      tiffin train ssd300_vgg16 --data voc/2007 --weights imagenet --augment iou_crop zoom_out
      tiffin train ssd --data cells/ --image-size 256 --augment iou_crop zoom_out horizontal_flip
    """

    model: str = "ssd_small"
    scales: tuple[float, ...] | None = None
    """Sizes of the default boxes as shares of the side: one for each map, and one more. Default:
    the paper's."""
    match_iou: float = 0.5
    """Least overlap at which a default box is an object's."""
    negatives: float = 3.0
    """Background boxes in the loss for each that has an object, the hardest."""
    builder: ClassVar = staticmethod(ssd)
    bodies: ClassVar = {name: row[1:3] for name, row in TABLES.items()}
    parts: ClassVar = ("box_loss", "class_loss")

    def check(self) -> None:
        super().check()
        count = len(TABLES[self.model][0]) + 1
        if self.scales and (len(self.scales) != count or min(self.scales) <= 0):
            raise InputError(f"--scales: {self.model} takes {count} numbers above 0.")
        if not 0 < self.match_iou < 1 or not self.negatives > 0:
            raise InputError("--match-iou lies between 0 and 1, and --negatives above 0.")

    def raw(self, input_shape, classes, normalization) -> keras.Model:
        network = self.call_builder(input_shape, normalization, classes=classes)
        self.boxes = default_boxes(network, self.model, self.scales)
        self.size = input_shape[:2]
        return network

    def losses(self, targets: Mapping, outputs: Mapping, training: bool = False) -> dict:
        """Return equation 1: smooth L1 of the matched boxes and softmax with hard negatives."""
        box, kind = ssd_losses(
            *(self.boxes, targets["boxes"], targets["classes"]),
            *(outputs["deltas"], outputs["logits"], VARIANCES),
            *(self.match_iou, self.negatives),
        )
        return {"box_loss": box, "class_loss": kind}

    def decode(self, outputs: Mapping) -> tuple:
        boxes = DecodeBoxes(self.boxes, VARIANCES, self.size, name="boxes")(outputs["deltas"])
        return boxes, layers.Softmax(name="scores")(outputs["logits"])[..., 1:]


if __name__ == "__main__":
    main(Config)
