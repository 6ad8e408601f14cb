"""The residual stage of SphereFace's networks."""

import keras
from keras import layers

from tiffin.layers.activations import PReLU


def sphere_stage(x: keras.KerasTensor, filters: int, units: int, name: str) -> keras.KerasTensor:
    """Halve the picture by a 3x3 convolution of stride 2, then add residual units of two.

    Liu et al. 2017 (arXiv 1704.08063), table 2: every convolution is followed by PReLU, there is no
    batch normalisation, and the second PReLU of a unit comes before the sum. As in the authors'
    code, the units' convolutions have no bias and start small, at a standard deviation of 0.01.

    Args:
        x: float `[batch, height, width, channels]`.
        filters: of all its convolutions.
        units: residual units, 0 or more.
        name: prefix of the layers' names: `{name}_1`, `{name}_2`, ...

    Returns:
        Float `[batch, ceil(height / 2), ceil(width / 2), filters]`.
    """
    x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    x = layers.Conv2D(filters, 3, 2, name=f"{name}_1")(x)
    x = PReLU(name=f"{name}_prelu1")(x)
    for unit in range(units):
        y = x
        for i in (2 * unit + 2, 2 * unit + 3):
            y = layers.Conv2D(
                filters,
                3,
                padding="same",
                use_bias=False,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
                name=f"{name}_{i}",
            )(y)
            y = PReLU(name=f"{name}_prelu{i}")(y)
        x = layers.Add(name=f"{name}_add{unit + 1}")([x, y])
    return x
