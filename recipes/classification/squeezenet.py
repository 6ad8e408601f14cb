"""SqueezeNet: AlexNet's accuracy with 50 times fewer parameters.

A Fire module first squeezes its input to few channels, so that the 3x3 filters behind, the dear
ones, read little; half of the expanding filters are 1x1 only. Pictures are made smaller late, which
keeps the feature maps large and the accuracy up. There is no fully connected layer: a 1x1
convolution gives one map a class, whose mean is the score.

Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer: SqueezeNet: AlexNet-level accuracy with 50x fewer
parameters and <0.5MB model size (2016), arXiv 1602.07360.

Reproduces table 1 (the architecture) and table 3 (bypass connections; top-1 accuracy):
    SqueezeNet                     57.5 %   1,248,424 parameters   ours: see docs/results.md
    SqueezeNet + simple bypass     60.4 %   the same
    SqueezeNet + complex bypass    58.8 %   1,589,672 by figure 2; the table's 7.7 MB would be more
squeezenet1_1 is the authors' later one, from their repository: as accurate, at 2.4 times less
arithmetic.

Run it:
    python recipes/classification/squeezenet.py --model squeezenet1_1 --data mnist --data-dir DIR
"""

import dataclasses
import re
from typing import ClassVar, Unpack

import keras
from keras import layers

from tiffin.export.errors import one_of
from tiffin.layers import Top, classifier, fire, image_input, overlapping_max_pooling, require_size
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.optimizers import OptimizerName
from tiffin.recipes.engine.training import main
from tiffin.recipes.engine.weights import Collection

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "squeezenet1_0": (2016, 224, 1_248_424, 818_924_576, 42.5, "ImageNet"),
    "squeezenet1_0_bypass": (2016, 224, 1_248_424, 818_924_576, 39.6, "ImageNet"),
    "squeezenet1_0_complex_bypass": (2016, 224, 1_589_672, 1_165_298_720, 41.2, "ImageNet"),
    "squeezenet1_1": (2016, 224, 1_235_496, 349_151_936, None, "ImageNet"),
}

# Table 1; in version 1.1 the pictures are made smaller earlier, after fire3 and fire5.
FIRES = (
    # layer name, s1x1 (#1x1 squeeze), e1x1 (#1x1 expand), e3x3 (#3x3 expand)
    ("fire2", 16, 64, 64),
    ("fire3", 16, 64, 64),
    ("fire4", 32, 128, 128),
    ("fire5", 32, 128, 128),
    ("fire6", 48, 192, 192),
    ("fire7", 48, 192, 192),
    ("fire8", 64, 256, 256),
    ("fire9", 64, 256, 256),
)
POOLS = {"1_0": ("fire4", "fire8"), "1_1": ("fire3", "fire5")}


def _names(paths: list[str]) -> dict[str, str]:
    """Name the layers of torchvision and pytorchcv, whose Fire modules are not numbered.

    They stand in order, with gaps where a pooling layer has an index or a stage begins.
    """
    fires = {
        path: re.fullmatch(r"(.+)\.(squeeze|expand1x1|expand3x3)(\.conv)?", path) for path in paths
    }
    places = sorted(
        {found[1] for found in fires.values() if found},
        key=lambda place: [int(number) for number in re.findall(r"\d+", place)],
    )
    names = {}
    for path, found in fires.items():
        if found:
            part = found[2].replace("squeeze", "squeeze1x1")
            names[path] = f"fire{places.index(found[1]) + 2}_{part}"
        elif path in ("features.0", "features.init_block.conv"):
            names[path] = "conv1"
        elif path in ("classifier.1", "output.final_conv"):
            names[path] = "conv10"
    return names


WEIGHTS = {
    "torchvision": Collection(
        names=_names,
        files={
            "squeezenet1_0": "squeezenet1_0-b66bff10.pth",
            "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
        },
    ),
    "pytorchcv": Collection(names=_names),
}


def squeezenet(
    variant: str = "squeezenet1_1",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    dropout: float = 0.5,
    include_top: bool = True,
    pooling: str | None = None,
    stem_stride: int = 2,
    normalization: tuple | None = None,
    **top: Unpack[Top],
) -> keras.Model:
    """Build SqueezeNet; layer names are those of the authors' Caffe files.

    Args:
        variant: one of `VARIANTS`. "1_0" is the paper's, with 7x7 filters first; "1_1" the later
            one with 3x3; "bypass" adds the input of fire3, 5, 7 and 9 to their output, and "complex
            bypass" that of the others as well, through a 1x1 convolution (figure 2).
        input_shape: `(height, width, channels)` in pixels; 224 in the paper. At least 21, 1.1 at
            least 17.
        classes: number of maps of the last convolution.
        dropout: rate before the last convolution, in [0, 1).
        include_top: False leaves out dropout, last convolution and mean.
        pooling: what ends a network without top: None (the feature map), "avg" or "max".
        stem_stride: stride of the first convolution, 2 in the paper. 1 is a departure for small
            pictures: at 32x32 the last feature map is then 3x3 instead of a single pixel.
        normalization: see `tiffin.layers.image_input`.
        **top: `features`; see `tiffin.layers.classifier`, as for what is returned. Convolution and
            pooling read within the picture, so that a map is a little smaller than the size divided
            by its stride: 109, 54, 27 and 13 pixels at 224.

    Raises:
        InputError: an unknown variant or option, or too small a picture.
    """
    one_of("variant", variant, VARIANTS)
    one_of("stem_stride", stem_stride, (2, 1))
    one_of("pooling", pooling, (None, "avg", "max"))
    version = variant.removeprefix("squeezenet")[:3]
    filters, kernel_size = (96, 7) if version == "1_0" else (64, 3)
    smallest = kernel_size + 7 * stem_stride
    require_size(input_shape, smallest, variant)

    image, x = image_input(input_shape, normalization)
    x = layers.Conv2D(
        filters, kernel_size, stem_stride, kernel_initializer="he_uniform", name="conv1"
    )(x)
    x = layers.ReLU(name="conv1_relu")(x)  # 109 x 109 x 96
    maps = {stem_stride: x}
    x = overlapping_max_pooling(x, name="pool1")
    stride = 2 * stem_stride
    for name, squeeze, expand1x1, expand3x3 in FIRES:
        bypass = None
        if variant.endswith("bypass") and x.shape[-1] == expand1x1 + expand3x3:
            bypass = "simple"
        elif variant.endswith("complex_bypass"):
            bypass = "complex"
        x = maps[stride] = fire(x, squeeze, expand1x1, expand3x3, name=name, bypass=bypass)
        if name in POOLS[version]:
            x = overlapping_max_pooling(x, name=f"pool{name[-1]}")
            stride *= 2

    if include_top:
        x, pooling = _top(x, classes, dropout), None
    return classifier(variant, image, x, classes, maps, include_top=False, pooling=pooling, **top)


def _top(x, classes, dropout):
    if dropout:
        x = layers.Dropout(dropout, name="drop9")(x)
    initializer = keras.initializers.RandomNormal(stddev=0.01)
    options = {"dtype": "float32"}
    x = layers.Conv2D(classes, 1, kernel_initializer=initializer, name="conv10", **options)(x)
    x = layers.ReLU(name="conv10_relu", **options)(x)
    return layers.GlobalAveragePooling2D(name="logits", **options)(x)


@dataclasses.dataclass
class Config(Classification):
    """Train SqueezeNet (Iandola et al. 2016, arXiv 1602.07360).

    The paper has momentum and a rate that falls from 0.04 to zero, in batches of 512 (the authors'
    solver). In short trainings on small batches momentum silences all scores for good, since their
    ReLU then passes no gradient; Adam with a warm-up does not.

    examples:
      tiffin train squeezenet --data mnist
      tiffin train squeezenet1_0_bypass --data photos/
    """

    model: str = "squeezenet1_1"
    batch_size: int = 64
    optimizer: OptimizerName = "adam"
    learning_rate: float = 3e-4
    warmup_epochs: float = 0.5
    weight_decay: float = 2e-4
    stem_stride: int | None = None
    """Stride of the first convolution; default: the paper's 2, but 1 below 64 pixels."""
    builder: ClassVar = staticmethod(squeezenet)
    small: ClassVar = {"stem_stride": 1}


if __name__ == "__main__":
    main(Config)
