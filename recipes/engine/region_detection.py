"""Detectors that judge regions: what all from R-CNN to Faster R-CNN share."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import keras
from keras import ops

from tiffin.export.errors import InputError, optional
from tiffin.export.proposals import PROPOSALS
from tiffin.layers import DecodeRegions, region_losses, sample_regions
from tiffin.recipes.engine.box_data import BoxData
from tiffin.recipes.engine.detection import Detection
from tiffin.recipes.engine.region_proposals import propose


def hidden(x: keras.KerasTensor, units: Sequence[int]) -> keras.KerasTensor:
    """Return what fully connected layers of so many units, `fc6` and on, say of flat regions.

    Dropout follows those as wide as the papers'.
    """
    for i, n in enumerate(units, start=6):
        x = keras.layers.Dense(n, activation="relu", name=f"fc{i}")(x)
        x = keras.layers.Dropout(0.5, name=f"drop{i}")(x) if n == 4096 else x
    return x


def judgement(x: keras.KerasTensor, kinds: int) -> dict[str, keras.KerasTensor]:
    """Return `logits` of so many kinds and `deltas`, a box for each kind, of regions.

    They start as in Fast R-CNN's section 2.3, the places nearer to zero than the kinds.
    """
    outputs = {}
    for name, units, spread in (("logits", kinds, 0.01), ("deltas", 4 * kinds, 0.001)):
        start = keras.initializers.RandomNormal(0, spread)
        dense = keras.layers.Dense(units, kernel_initializer=start, dtype="float32", name=name)
        outputs[name] = dense(x)
    return outputs


class RegionDetection(Detection):
    """A detector whose last stage judges regions of the picture.

    Its builder's outputs are `map0` and so on, what regions are looked at in; `proposals`, float
    `[batch, n, 4]`; and for each of these, region by region, `logits` and maybe `deltas`.
    """

    low = 0.0  # least IoU with an object of the regions that are background

    @property
    @abc.abstractmethod
    def learned(self) -> int:
        """Regions of a picture that a step learns from."""

    def raw(self, input_shape, classes, normalization) -> keras.Model:
        network = self.call_builder(input_shape, normalization, classes=classes)
        self.size = input_shape[:2]
        self.random = keras.random.SeedGenerator(self.seed)
        said = network.output
        seen = {n: x for n, x in said.items() if n.startswith("map") or n == PROPOSALS}
        judge = keras.Model(
            [*seen.values()], {n: said[n] for n in ("logits", "deltas") if n in said}
        )
        seen = {n: keras.Input(x.shape[1:], name=n) for n, x in seen.items()}
        seen[PROPOSALS] = keras.Input((self.learned, 4), name=PROPOSALS)
        self.judge = keras.Model(seen, judge.call([*seen.values()]))
        return network

    def trained(self, network: keras.Model) -> tuple:
        """Return what comes before the last stage, which sees sampled regions, in the loss."""
        last = {*self.judge.output, "features", "pooled"}
        given = isinstance(network.input, dict)
        last |= {PROPOSALS} if given else set()
        first = {n: x for n, x in network.output.items() if n not in last}
        return keras.Model(network.inputs[0], first), {"judge": self.judge, "random": self.random}

    def judged(self, targets: Mapping, outputs: Mapping, proposals, training: bool) -> tuple:
        """Return the losses of the last stage on sampled regions: Fast R-CNN's equation 1."""
        boxes, kinds = targets["boxes"], targets["classes"]
        # The objects are regions too, so that there are good ones from the start.
        regions = ops.concatenate([proposals, boxes], axis=1)
        noise = keras.random.uniform(ops.shape(regions)[:2], seed=self.random)
        sampled = sample_regions(regions, boxes, kinds, noise, self.learned, low=self.low)
        seen = {n: x for n, x in outputs.items() if n.startswith("map")}
        said = self.judge(seen | {PROPOSALS: sampled[0]}, training=training)
        return region_losses(boxes, kinds, sampled, said["logits"], said.get("deltas"))

    def decode(self, outputs: Mapping) -> tuple:
        judged = DecodeRegions(self.size, name="boxes")
        return judged(outputs["logits"], outputs["deltas"], outputs[PROPOSALS])


@dataclasses.dataclass
class GivenRegions(RegionDetection):
    """A detector that is given its regions, those of selective search, beside the picture."""

    iou_threshold: float = 0.3
    """Of two boxes of a class that overlap by more than this only the surer one stays."""
    proposals: int = 200
    """Regions of a picture, by selective search; those of a data set are kept in Keras' cache."""
    regions: int = 64
    """Regions of each picture that a step learns from."""

    limits: ClassVar = Detection.limits | {"proposals": (1, math.inf), "regions": (1, math.inf)}

    @property
    def learned(self) -> int:
        return self.regions

    def check(self) -> None:
        super().check()
        if self.regions > self.proposals:
            raise InputError(
                f"--regions {self.regions} are drawn from --proposals {self.proposals}: give as "
                "many or fewer."
            )
        optional("cv2", "Selective search")

    def load_data(self) -> BoxData:
        return propose(super().load_data(), self.proposals)

    def losses(self, targets: Mapping, outputs: Mapping, training: bool = False) -> dict:
        given = self.judged(targets, outputs, targets[PROPOSALS], training)
        return dict(zip(self.parts, given, strict=True))
