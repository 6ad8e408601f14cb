"""Inception modules of factorised convolutions, written as tables of their branches.

Inception v3 replaces a 5x5 convolution by two 3x3, and an n x n one by 1 x n and n x 1: the same
field of view for a fraction of the arithmetic. Its modules, those of Inception v4 and the branches
of Inception-ResNet differ in nothing but their tables.
"""

from collections.abc import Mapping, Sequence

import keras
from keras import layers

from tiffin.layers.inception import conv_relu

# Smallest picture, in pixels, of which the stem's stride leaves what two more reductions need.
SMALLEST_PICTURE = {8: 75, 4: 39, 2: 23}
SMALLEST_WITH_AUXILIARY = {8: 107, 4: 55, 2: 31}
# Layers of `inception_stem` in their order, without `_conv` and `_bn`.
INCEPTION_STEM = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
)


@keras.saving.register_keras_serializable("tiffin")
class ScaledResidual(keras.layers.Layer):
    """Add a scaled residual: `shortcut + scale * residual`.

    Szegedy et al. 2016 (arXiv 1602.07261), section 3.3: factors of 0.1 to 0.3 keep residual
    networks of more than 1000 filters from dying in training.

    Args:
        scale: what the residual is multiplied by.
        **kwargs: `name`, `dtype`.

    Input: a list of two floats of the same shape, shortcut and residual. Output: that shape.
    """

    def __init__(self, scale: float, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, inputs):
        shortcut, residual = inputs
        return shortcut + residual * self.scale

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return super().get_config() | {"scale": self.scale}


def factorized_inception(
    x: keras.KerasTensor,
    branches: Mapping[str, Sequence] | Sequence[Sequence],
    *,
    name: str,
    count_zeros: bool = False,
    **conv,
) -> keras.KerasTensor:
    """Send a feature map through branches and put their outputs side by side.

    Szegedy et al. 2015 (arXiv 1512.00567), figures 5 to 7 and 10.

    Args:
        x: float `[batch, height, width, channels]`.
        branches: the steps of each, by name or in order (`branch1`, `branch2`, ... then):
            `(filters, kernel size, stride, padding)` is a convolution, of which stride and padding
            may be left out ("valid" where it strides, else "same"); `("avg",)` the mean over 3x3;
            `("max", stride)` the maximum over 3x3. A list of convolutions stands side by side, and
            ends a branch.
        name: of the module's output, and prefix of its layers: `{name}_{branch}` for the only
            convolution of a branch, `{name}_{branch}_1` and so on for several, of which those side
            by side are told by their kernels, `{name}_{branch}_1x3`.
        count_zeros: whether zeros beyond the border count in a mean.
        **conv: `alpha`, `bn_scale`, `epsilon` and `momentum` of `conv_relu`.

    Returns:
        `[batch, new height, new width, sum of the branches' channels]`.
    """
    names = iter(inception_layers(name, branches))
    outputs = []
    for branch, steps in _named(branches):
        ends = [x]
        for step in steps:
            (y,) = ends
            kind = step[0]
            if kind == "avg":
                padding = "same"
                if count_zeros:
                    y = layers.ZeroPadding2D(1, name=f"{name}_{branch}_pad")(y)
                    padding = "valid"
                ends = [layers.AveragePooling2D(3, 1, padding, name=f"{name}_{branch}_avg")(y)]
            elif kind == "max":
                padding = "same" if step[1] == 1 else "valid"
                ends = [layers.MaxPooling2D(3, step[1], padding, name=f"{name}_{branch}_max")(y)]
            else:
                parts = step if isinstance(step, list) else [step]
                ends = [_convolve(y, *part, name=next(names), **conv) for part in parts]
        outputs += ends
    return layers.Concatenate(name=name)(outputs)


def inception_layers(name: str, branches: Mapping[str, Sequence] | Sequence[Sequence]) -> list[str]:
    """Name the convolutions of a module in the order of its table; `_conv` and `_bn` are left out.

    Args:
        name: of the module.
        branches: as in `factorized_inception`.
    """
    names = []
    for branch, steps in _named(branches):
        steps = [step for step in steps if step[0] not in ("avg", "max")]
        for number, step in enumerate(steps, 1):
            if isinstance(step, list):
                ends = [f"_{height}x{width}" for _, (height, width) in step]
            else:
                ends = [f"_{number}" if len(steps) > 1 else ""]
            names += [f"{name}_{branch}{end}" for end in ends]
    return names


def _convolve(x, filters, kernel_size, stride=1, padding=None, **conv):
    padding = padding or ("valid" if stride > 1 else "same")
    return conv_relu(x, filters, kernel_size, stride, padding, **conv)


def _named(branches):
    if isinstance(branches, Mapping):
        return branches.items()
    return [(f"branch{number}", steps) for number, steps in enumerate(branches, 1)]


def inception_stem(
    x: keras.KerasTensor, stride: int = 8, **conv
) -> tuple[keras.KerasTensor, dict[int, keras.KerasTensor]]:
    """Reduce a picture to an eighth, as Inception v3 and Inception-ResNet v2 begin.

    Args:
        x: the picture, float `[batch, height, width, channels]`.
        stride: 8; 4 leaves out the stride of the first convolution, 2 also that of the second
            pooling: departures from the paper for small pictures.
        **conv: `alpha`, `bn_scale`, `epsilon` and `momentum` of `conv_relu`.

    Returns:
        The feature map, 192 channels at a `stride`-th of the picture (35 x 35 for 299 x 299), and
        the maps by stride before it.
    """
    first, last = inception_stem_strides(stride)
    names = iter(INCEPTION_STEM)
    x = conv_relu(x, 32, 3, first, "valid", name=next(names), **conv)  # 149 x 149
    x = conv_relu(x, 32, 3, 1, "valid", name=next(names), **conv)
    x = conv_relu(x, 64, 3, name=next(names), **conv)  # 147 x 147
    maps = {first: x}
    x = layers.MaxPooling2D(3, 2, name="MaxPool_3a_3x3")(x)  # 73 x 73
    x = conv_relu(x, 80, 1, name=next(names), **conv)
    x = maps[2 * first] = conv_relu(x, 192, 3, 1, "valid", name=next(names), **conv)
    padding = "same" if last == 1 else "valid"
    return layers.MaxPooling2D(3, last, padding, name="MaxPool_5a_3x3")(x), maps  # 35 x 35


def inception_auxiliary_head(
    x: keras.KerasTensor, classes: int, *, name: str, **conv
) -> keras.KerasTensor:
    """Classify from the middle of a network, which regularises its training.

    Szegedy et al. 2015 (arXiv 1512.00567), section 4 and figure 8; with batch normalisation, as in
    table 3's last row.

    Args:
        x: float `[batch, height, width, channels]`, at least 5 x 5; 17 x 17 in the paper. Below
            17 x 17 its largest kernel shrinks to what the pooling leaves.
        classes: width of the last layer.
        name: prefix of the layers; the last is `{name}_logits`.
        **conv: `alpha`, `bn_scale`, `epsilon` and `momentum` of `conv_relu`.

    Returns:
        Logits, float32 `[batch, classes]`.
    """
    x = layers.AveragePooling2D(5, 3, name=f"{name}_pool")(x)  # 5 x 5
    x = conv_relu(x, 128, 1, name=f"{name}_conv0", **conv)
    size = tuple(min(n or 5, 5) for n in x.shape[1:3])
    x = conv_relu(x, 768, size, padding="valid", name=f"{name}_conv1", **conv)  # 1 x 1
    x = layers.GlobalAveragePooling2D(name=f"{name}_avg_pool")(x)
    return layers.Dense(classes, dtype="float32", name=f"{name}_logits")(x)


def inception_stem_strides(stride: int) -> tuple[int, int]:
    """Return the strides of a stem's first and last layer: 2 and 2, 1 and 2, or 1 and 1."""
    return {8: (2, 2), 4: (1, 2), 2: (1, 1)}[stride]


def largest_stem_stride(shape: Sequence[int | None]) -> int:
    """Return the paper's stem stride, 8, or the largest below it that a small picture can take.

    Args:
        shape: `(height, width, ...)` in pixels; None is any size.
    """
    size = min((n for n in shape[:2] if n), default=299)
    return next((s for s, least in SMALLEST_PICTURE.items() if size >= least), 2)


def check_inception(
    shape: Sequence[int | None], stem_stride: int, alpha: float, auxiliary: bool = False
) -> None:
    """Refuse a picture of which nothing would be left, and other values outside their range.

    Args:
        shape: `(height, width, ...)` in pixels; None is any size.
        stem_stride: 8, 4 or 2.
        alpha: width multiplier, positive.
        auxiliary: whether there is an `inception_auxiliary_head`.

    Raises:
        ValueError: one of them is not; the message has the smallest size.
    """
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be positive; the paper's width is 1.")
    if stem_stride not in SMALLEST_PICTURE:
        raise ValueError(f"stem_stride={stem_stride!r} must be 8 (the paper), 4 or 2.")
    smallest = SMALLEST_WITH_AUXILIARY if auxiliary else SMALLEST_PICTURE
    least = smallest[stem_stride]
    if min(n or least for n in shape[:2]) < least:
        sizes = ", ".join(f"{n} pixels with stem_stride={s}" for s, n in smallest.items())
        head = " and the auxiliary head" if auxiliary else ""
        raise ValueError(
            f"A picture of {shape[0]} x {shape[1]} pixels is too small for stem_stride="
            f"{stem_stride}{head}: the smallest are {sizes}."
        )
