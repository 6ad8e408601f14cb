"""LeNet-5: local features, shared weights and pooling, before anybody called it deep.

A convolution looks for the same small feature everywhere, a pooling forgets where exactly it was,
and after two rounds of both a few fully connected units tell the digits apart. The second
convolution does not see all maps of the first: a table says which, so that its maps have to differ.
Ten fixed codes stand at the end, and the nearest one is the answer.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition,
Proceedings of the IEEE 86 (1998), section II.B (no arXiv version).

Reproduces section III.B (MNIST, test error):
    lenet5          0.95 %   60,000 trainable parameters, as the paper counts them
    lenet5_plain    the form of most tutorials, which no paper has: 61,706 parameters
What the second leaves out: the table (its C3 sees all maps), the trainable poolings (its are mere
means), the scale of tanh, and the fixed codes (its last layer is learned).

Run it:
    python recipes/classification/lenet.py --export
"""

import dataclasses
from typing import ClassVar, Literal, Unpack

import keras
import numpy as np
from keras import layers, ops

from tiffin.export.errors import one_of
from tiffin.layers import GroupedConv2D, Top, classifier, image_input, require_size
from tiffin.recipes.engine.classification import Classification
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, top-1 error in percent, measured on)
    "lenet5": (1998, 32, 60_000, 331_168, 0.95, "MNIST"),
    "lenet5_plain": (1998, 32, 61_706, 419_592, None, "MNIST"),
}

# Table I: which of S2's six maps each of C3's sixteen sees.
C3 = (
    # maps of S2          map of C3
    (0, 1, 2),  #          0
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),  #       6
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),  #      12
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),  # 15
)


def lenet(
    variant: str = "lenet5",
    input_shape: tuple[int | None, int | None, int] = (32, 32, 3),
    classes: int = 10,
    *,
    padding: str = "valid",
    dropout: float = 0.0,
    include_top: bool = True,
    normalization: tuple | None = None,
    **top: Unpack[Top],
) -> keras.Model:
    """Build LeNet-5; layer names are the paper's.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels; 32 x 32 x 1 in the paper, at least that,
            or 28 with `padding="same"`. Channels are averaged: the network sees one. Of larger
            pictures C5 has several positions, whose mean F6 sees.
        classes: width of the last layer.
        padding: of C1: "valid" as in the paper; "same" puts two zeros around the picture, with
            which 28 pixels become the paper's 32.
        dropout: rate before the last layer, in [0, 1); the paper has none.
        include_top: False leaves out F6 and the last layer.
        normalization: see `tiffin.layers.image_input`.
        **top: see `tiffin.layers.classifier`, as for what is returned.

    Raises:
        InputError: an unknown variant or option.
        ValueError: a picture that is too small.
    """
    one_of("variant", variant, VARIANTS)
    one_of("padding", padding, ("valid", "same"))
    plain = variant == "lenet5_plain"
    require_size(input_shape, 28 if padding == "same" else 32, f"{variant} with padding={padding}")

    image, x = image_input(input_shape, normalization)
    if input_shape[-1] > 1:
        mean = keras.initializers.Constant(1 / input_shape[-1])
        grey = {"use_bias": False, "kernel_initializer": mean, "trainable": False, "name": "grey"}
        x = layers.Conv2D(1, 1, **grey)(x)
    x = layers.Conv2D(6, 5, padding=padding, kernel_initializer=_uniform(25), name="c1")(x)
    maps = {1: _squash(x, plain, "c1")}  # 28 x 28 x 6
    maps[2] = _subsample(maps[1], plain, "s2")  # 14 x 14 x 6
    x = layers.Conv2D(16, 5, name="c3")(maps[2]) if plain else _by_table(maps[2])
    x = _squash(x, plain, "c3")  # 10 x 10 x 16
    maps[4] = _subsample(x, plain, "s4")  # 5 x 5 x 16
    x = layers.Conv2D(120, 5, kernel_initializer=_uniform(400), name="c5")(maps[4])
    x = _squash(x, plain, "c5")  # 1 x 1 x 120
    if not include_top or top.get("features"):
        return classifier(variant, image, x, classes, maps, include_top=include_top, **top)

    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(84, kernel_initializer=_uniform(120), name="f6")(x)
    x = _squash(x, plain, "f6")
    if plain:
        return classifier(variant, image, x, classes, maps, dropout=dropout, **top)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    # The negative squared distance to a code w of -1 and 1 is 2 w x and what all classes share,
    # so that a softmax makes equation 9 of it. The paper's first ten codes are drawn digits.
    codes = np.random.default_rng(1998).choice([-2.0, 2.0], (84, classes))
    x = layers.Dense(
        classes,
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(codes),
        trainable=False,
        dtype="float32",
        name="logits",
    )(x)
    return keras.Model(image, x, name=variant)


def _uniform(fan_in: int) -> keras.initializers.Initializer:
    """Appendix A: uniform within 2.4 divided by the number of a unit's inputs."""
    return keras.initializers.RandomUniform(-2.4 / fan_in, 2.4 / fan_in)


def _squash(x, plain: bool, name: str):
    """Apply tanh; the paper's is 1.7159 tanh(2/3 x), which has -1 and 1 at -1 and 1."""
    if plain:
        return layers.Activation("tanh", name=f"{name}_tanh")(x)
    x = layers.Activation("tanh", name=f"{name}_tanh")(layers.Rescaling(2 / 3)(x))
    return layers.Rescaling(1.7159, name=f"{name}_out")(x)


def _subsample(x, plain: bool, name: str):
    """Take the mean of 2 x 2 pixels, in the paper with a coefficient and a bias for each map."""
    x = layers.AveragePooling2D(2, name=f"{name}_mean")(x)
    if plain:
        return x
    x = layers.DepthwiseConv2D(1, depthwise_initializer=_uniform(1), name=name)(x)
    return _squash(x, plain, name)


def _by_table(x):
    """Convolve as table I says: rows with as many maps are groups of one convolution."""
    parts = []
    for count in (3, 4, 6):
        rows = [row for row in C3 if len(row) == count]
        part = ops.take(x, [channel for row in rows for channel in row], axis=-1)
        part = GroupedConv2D(
            len(rows),
            5,
            groups=len(rows),
            kernel_initializer=_uniform(25 * count),
            name=f"c3_of_{count}",
        )(part)
        parts.append(part)
    return layers.Concatenate(name="c3")(parts)


@dataclasses.dataclass
class Config(Classification):
    """Train LeNet-5 (LeCun et al. 1998).

    Below 32 pixels zeros are put around the picture, as otherwise nothing would be left of it.

    examples:
      tiffin train lenet --export
      tiffin train lenet5_plain --data mnist
    """

    model: str = "lenet5"
    padding: Literal["valid", "same"] | None = None
    """Of C1; default: the paper's valid, but same below 32 pixels."""
    learning_rate: float = 0.01
    builder: ClassVar = staticmethod(lenet)

    def build(self, input_shape, classes, normalization, **options):
        small = min(input_shape[:2]) < 32
        options.setdefault("padding", self.padding or ("same" if small else "valid"))
        return super().build(input_shape, classes, normalization, **options)


if __name__ == "__main__":
    main(Config)
