"""YOLO: the whole picture at once, every cell of a grid says what is centred in it.

Version 1 predicts two boxes and one class a cell by fully connected layers. Version 2 drops those,
normalises its batches and predicts shifts and scales of anchors found by k-means. Version 3 looks
at three grids of different stride and decides for each class on its own.

Redmon et al. 2015, arXiv 1506.02640; Redmon and Farhadi 2016, arXiv 1612.08242, and 2018, arXiv
1804.02767. What the papers leave open is as in the authors' code, Darknet.

Reproduces VOC 2007, mAP50 in percent: v1 63.4, fast 52.7; v2 at 416 76.8; and on COCO, AP50: v3 at
416 55.3, tiny 33.1. Ours: docs/results.md.

Run it:
    python recipes/detection/yolo.py --export
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Unpack

import keras
import numpy as np
from keras import layers

from tiffin.export.errors import InputError, one_of
from tiffin.layers import (
    DarknetConvolutions,
    DecodeCells,
    DecodeRoots,
    JointScores,
    Reorg,
    darknet_maps,
    image_input,
    yolo_losses,
)
from tiffin.recipes.engine.backbones import Backbone, backbone_maps, choose
from tiffin.recipes.engine.box_data import BoxData, fitted_anchors
from tiffin.recipes.engine.detection import Detection, box_heads
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weight_files import DARKNET
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "yolov3_small": (2018, 96, 436_774, 126_388_224, None, "VOC"),
    "yolov1": (2015, 448, 271_703_550, 20_285_153_280, 36.6, "VOC"),
    "yolov1_fast": (2015, 448, 45_089_374, 2_418_728_960, 47.3, "VOC"),
    "yolov2": (2016, 416, 50_962_889, 14_732_084_224, 23.2, "COCO"),
    "yolov3": (2018, 416, 61_949_149, 32_932_037_632, 44.7, "COCO"),
    "yolov3_tiny": (2018, 416, 8_852_366, 2_782_480_896, 66.9, "COCO"),
}

# Rows as `tiffin.layers.darknet_maps` takes them: filters, kernel, and a stride other than 1.
M = "maxpool"
V1 = (  # v1, figure 3, from 448x448x3 to 7x7x1024
    *((64, 7, 2), M, (192, 3), M, (128, 1), (256, 3), (256, 1), (512, 3), M),
    *((256, 1), (512, 3)) * 4,
    *((512, 1), (1024, 3), M, *((512, 1), (1024, 3)) * 2),
    *((1024, 3), (1024, 3, 2), (1024, 3), (1024, 3)),
)
POOLED = ((16, 3), M, (32, 3), M, (64, 3), M, (128, 3))
FAST = (*POOLED, M, (256, 3), M, (512, 3), M, *((1024, 3),) * 3)  # section 2.1, as in Darknet
DARKNET19 = (  # v2, table 6, without the last layer
    *((32, 3), M, (64, 3), M, (128, 3), (64, 1), (128, 3), M, (256, 3), (128, 1), (256, 3), M),
    *((512, 3), *((256, 1), (512, 3)) * 2, M, (1024, 3), *((512, 1), (1024, 3)) * 2),
)
DARKNET53 = (  # v3, table 1
    *((32, 3), (64, 3, 2), "residual", (128, 3, 2), *["residual"] * 2),
    *((256, 3, 2), *["residual"] * 8, (512, 3, 2), *["residual"] * 8),
    *((1024, 3, 2), *["residual"] * 4),
)
TINY = (*POOLED, M, (256, 3), M, (512, 3), "maxpool 1", (1024, 3))
SMALL = (*POOLED[:5], (64, 3), M, (128, 3), (128, 3))
ANCHORS_V2 = (
    ((21.676, 18.327), (66.001, 59.982), (175.179, 106.83), (112.889, 252.25), (293.385, 312.657)),
)
COARSE, FINE = ((90, 116), (198, 156), (326, 373)), ((13, 10), (30, 16), (23, 33))
ANCHORS_V3 = (COARSE, ((61, 30), (45, 62), (119, 59)), FINE)
ANCHORS_TINY = (((82, 81), (169, 135), (319, 344)), ((27, 23), (58, 37), (82, 81)))
ANCHORS_SMALL = (((22, 19), (27, 23), (33, 27)), ((10, 9), (13, 11), (17, 14)))
TABLES = {
    # version, body, strides of the maps that are looked at, filters of the first head, and the
    # anchors on each map, height and width in pixels at the paper's size, from Darknet's files
    "yolov3_small": (3, SMALL, (8, 4), 64, ANCHORS_SMALL),
    "yolov1": (1, V1, (64,), (4096,), None),
    "yolov1_fast": (1, FAST, (64,), (256, 4096), None),
    "yolov2": (2, DARKNET19, (32,), 1024, ANCHORS_V2),
    "yolov3": (3, DARKNET53, (32, 16, 8), 512, ANCHORS_V3),
    "yolov3_tiny": (3, TINY, (32, 16), 256, ANCHORS_TINY),
}
WEIGHTS = {
    "darknet": Collection(
        names=(),
        options={"anchors": "paper"},
        normalization=DARKNET,
        licence="public domain",
        url="https://pjreddie.com/media/files/",
        files={  # with the first digits of the SHA-256
            "yolov2": ("yolov2.weights", "d9945162ed6f54ce"),
            "yolov3": ("yolov3.weights", "523e4e69e1d01539"),
            "yolov3_tiny": ("yolov3-tiny.weights", "dccea06f59b781ec"),
        },
        trained_on="coco",
    )
}
ACTIVATIONS = {1: ("linear", "linear"), 2: ("sigmoid", "softmax"), 3: ("sigmoid", "sigmoid")}
BOXES = 2  # of a cell in version 1
PRIOR = -4.0  # where all logits start, lest the many empty cells swamp the beginning


def yolo(
    variant: str = "yolov3",
    input_shape: tuple[int, int, int] = (416, 416, 3),
    classes: int = 80,
    *,
    normalization: tuple | None = None,
    bn_momentum: float = 0.9,
    **under: Unpack[Backbone],
) -> keras.Model:
    """Build a YOLO up to its raw heads.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels, multiples of the coarsest stride.
        classes: number of classes.
        normalization: see `tiffin.layers.image_input`.
        bn_momentum: of batch normalisation.
        **under: see `tiffin.recipes.engine.backbones.Backbone`.

    Returns:
        A model from `image` to `deltas`, float `[batch, n, 4]`, and `logits`, float
        `[batch, n, 1 + classes]`, objectness first: map by map, the coarsest first, row by row, in
        a cell box by box.

    Raises:
        InputError: an unknown variant or backbone, or one without such maps.
        ValueError: a size that is no multiple of the coarsest stride.
    """
    one_of("variant", variant, VARIANTS)
    version, rows, strides, width, anchors = TABLES[variant]
    if any(n % strides[0] for n in input_shape[:2]):
        raise ValueError(f"the sides must be multiples of {strides[0]}.")
    if under.get("backbone") and version == 1:
        raise InputError("YOLO v1 has no maps that another backbone could give: leave it out.")
    conv = DarknetConvolutions(version > 1, bn_momentum)
    if under.get("backbone"):
        name, options = choose((None, {}), **under)
        maps = backbone_maps(name, input_shape, normalization, **options)
    else:
        image, x = image_input(input_shape, normalization)
        maps = {"image": image, **darknet_maps(x, rows, conv)}
    if version == 1:
        outputs = _connected(maps["stride_64"], width, classes)
    else:
        join = _passthrough if version == 2 else _pyramid
        names, counts = [f"stride_{n}" for n in strides], [len(some) for some in anchors]
        outputs = box_heads(names, join(maps, strides, width, conv), counts, classes, _head)
    return keras.Model(maps["image"], outputs, name=variant)


def _connected(x, units, classes: int) -> dict:
    """Version 1: everything of the picture goes into every cell."""
    rows, columns = x.shape[1:3]
    x = layers.Flatten(name="flatten")(x)
    for n in units:
        x = layers.Dense(n, name=f"connected_{n}")(x)
    x = layers.Dropout(0.5, name="dropout")(layers.LeakyReLU(0.1, name="connected_leaky")(x))
    cells = rows * columns
    deltas = layers.Dense(cells * BOXES * 4, name="connected_boxes")(x)
    objects = layers.Dense(cells * BOXES, name="connected_objects")(x)
    kinds = layers.Dense(cells * classes, name="connected_kinds")(x)
    deltas = layers.Reshape((-1, 4), dtype="float32", name="deltas")(deltas)
    objects = layers.Reshape((cells, BOXES, 1), name="objects")(objects)
    kinds = layers.Reshape((cells, 1, classes), name="kinds")(kinds)
    kinds = layers.Concatenate(axis=2, name="kinds_of_boxes")([kinds] * BOXES)
    logits = layers.Concatenate(name="said")([objects, kinds])
    logits = layers.Reshape((-1, 1 + classes), dtype="float32", name="logits")(logits)
    return {"deltas": deltas, "logits": logits}


def _passthrough(maps, strides, width: int, conv) -> list:
    """Version 2: the map of 26 x 26 is folded and laid beside that of 13 x 13."""
    x = conv(conv(maps["stride_32"], width, 3), width, 3)
    fine = Reorg(name="reorg")(conv(maps["stride_16"], 64, 1))
    return [conv(layers.Concatenate()([fine, x]), width, 3)]


def _pyramid(maps, strides, width: int, conv) -> list:
    """Version 3: each map is joined by the one before it, enlarged."""
    heads, x, full = [], None, len(strides) == 3
    for stride in strides:
        if x is None:
            x = conv(maps[f"stride_{stride}"], width, 1)
        else:
            x = layers.UpSampling2D(2)(conv(x, width, 1))
            x = layers.Concatenate()([x, maps[f"stride_{stride}"]])
            x = conv(x, width, 1) if full else x
        for _ in range(2 if full else 0):
            x = conv(conv(x, 2 * width, 3), width, 1)
        heads.append(conv(x, 2 * width, 3))
        width //= 2
    return heads


def _head(x, filters: int, name: str):
    start = keras.initializers.Constant(PRIOR if name.endswith("logits") else 0.0)
    return layers.Conv2D(filters, 1, bias_initializer=start, name=name)(x)


@dataclasses.dataclass
class Config(Detection):
    """Train YOLO v1 (Redmon et al. 2015, arXiv 1506.02640), v2 or v3.

    examples:
      tiffin train yolo --export
      tiffin train yolov3_tiny --data voc/2007 --augment mosaic iou_crop horizontal_flip
      tiffin train yolov3 --data cells/ --image-size 320 --weights yolov3.weights
    """

    model: str = "yolov3_small"
    anchors: Literal["data", "paper"] = "data"
    """The sides of the anchors: found in the training boxes by k-means, or the paper's."""
    builder: ClassVar = staticmethod(yolo)
    parts: ClassVar = ("box_loss", "object_loss", "class_loss")
    shapes: ClassVar[Any] = None

    def make_model(self, data: BoxData, normalization: tuple | None) -> keras.Model:
        given = TABLES[self.model][4]
        if given and self.anchors == "data":
            self.shapes = fitted_anchors(data.train, sum(map(len, given)), self.seed)
        return super().make_model(data, normalization)

    def raw(self, input_shape, classes, normalization) -> keras.Model:
        network = self.call_builder(input_shape, normalization, classes=classes)
        self.version, _, strides, _, given = TABLES[self.model]
        self.size = input_shape[:2]
        grids = [tuple(n // stride for n in self.size) for stride in strides]
        if given is None:
            self.boxes = DecodeRoots(grids[0][0], BOXES, self.size, name="boxes")
            return network
        anchors = np.array(given) * np.divide(self.size, self.default_size)
        if self.shapes is not None:  # sorted by area
            anchors = self.shapes.reshape(anchors.shape)[::-1]
        self.boxes = DecodeCells(grids, anchors, self.size, name="boxes")
        return network

    def losses(self, targets: Mapping, outputs: Mapping, training: bool = False) -> dict:
        return yolo_losses(self.version, self.boxes, targets, outputs)

    def decode(self, outputs: Mapping) -> tuple:
        scores = JointScores(*ACTIVATIONS[self.version], name="scores")(outputs["logits"])
        return self.boxes(outputs["deltas"]), scores


if __name__ == "__main__":
    main(Config)
