"""Generative adversarial networks: one makes pictures of random numbers, one tells them from real.

The generator never sees a picture: it learns from what the discriminator would have it change. The
first networks were fully connected; DCGAN's rules made convolutional ones train: strides in the
place of pooling, batch normalisation but at the ends, no hidden dense layers, ReLU in the
generator and leaky ReLU in the discriminator.

Goodfellow et al.: Generative Adversarial Networks, 2014, arXiv 1406.2661; layers as in its code.
Radford, Metz, Chintala: Unsupervised Representation Learning with Deep Convolutional GANs, 2016,
arXiv 1511.06434.

The papers show pictures; figures of ours, the Fréchet distance beside that of real pictures among
themselves, stand in docs/results.md. Adam at 2e-4 with a first beta of 0.5 is the second paper's,
for both.

Run it:
    python recipes/generative/gan.py
    python recipes/generative/gan.py --data mnist --epochs 10 --export
"""

import dataclasses
import math
from typing import ClassVar, Literal

import keras
from keras import layers

from tiffin.export.errors import one_of
from tiffin.layers import BatchNormalization, Maxout
from tiffin.recipes.engine.generative import Generative
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, latent numbers, trainable parameters, MACs, error, measured on)
    "gan_mlp": (2014, 100, 2_503_984, 2_500_800, None, "MNIST"),
    "dcgan": (2016, 100, 18_855_043, 640_614_400, None, "LSUN"),
}
# What the table is for.
SHAPES = {"gan_mlp": (28, 28, 1), "dcgan": (64, 64, 3)}
SMALLEST = 4  # side of DCGAN's first map
# All weights as DCGAN's section 3 has them; no bias where batch normalisation follows.
NORMAL = {"kernel_initializer": keras.initializers.RandomNormal(stddev=0.02)}
NORMALIZED = NORMAL | {"use_bias": False}


def gan(
    variant: str = "gan_mlp",
    input_shape: tuple[int] = (100,),
    *,
    image_shape: tuple[int, int, int] | None = None,
    width: int | None = None,
) -> keras.Model:
    """Build the generator.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(latents,)`: how many random numbers a picture is made of.
        image_shape: `(height, width, channels)` in pixels; None: `SHAPES`. DCGAN's sides are
            multiples of 4, 16 or more.
        width: units of a layer, 1200 by default; of DCGAN channels before the picture, 128 by
            default, twice as many at half the size.

    Returns:
        A model from `latent`, float `[batch, latents]`, to `picture`, float `[batch, height, width,
        channels]`, -1 to 1.

    Raises:
        ValueError: DCGAN, and other sides.
    """
    one_of("variant", variant, VARIANTS)
    image_shape = image_shape or SHAPES[variant]
    latent = x = keras.Input(input_shape, name="latent")
    if variant == "gan_mlp":
        for i in (1, 2):
            x = layers.Dense(width or 1200, activation="relu", name=f"fc{i}")(x)
        x = layers.Dense(math.prod(image_shape), activation="tanh", name="pixels")(x)
        return keras.Model(latent, layers.Reshape(image_shape, name="picture")(x), name=variant)
    height, across, channels = image_shape
    doublings = count_doublings(image_shape)
    first = height >> doublings, across >> doublings
    filters = (width or 128) << (doublings - 1)
    x = layers.Dense(math.prod(first) * filters, name="project", **NORMALIZED)(x)
    x = layers.Reshape((*first, filters), name="reshape")(x)
    for i in range(doublings):
        x = layers.ReLU(name=f"relu{i}")(norm(f"bn{i}")(x))
        last = i == doublings - 1
        options = {"activation": "tanh", **NORMAL} if last else NORMALIZED
        x = layers.Conv2DTranspose(
            channels if last else filters >> (i + 1),
            5,
            2,
            "same",
            name="picture" if last else f"conv{i + 1}",
            **options,
        )(x)
    return keras.Model(latent, x, name=variant)


def discriminator(
    variant: str, image_shape: tuple[int, int, int], width: int | None = None
) -> keras.Model:
    """Build the discriminator, from `picture`, -1 to 1, to `logit`, float `[batch, 1]`.

    Args:
        variant: one of `VARIANTS`.
        image_shape: see `gan`.
        width: units of a layer, 240 by default; of DCGAN channels behind the picture, 128.
    """
    picture = x = keras.Input(image_shape, name="picture")
    if variant == "gan_mlp":
        x = layers.Dropout(0.2)(layers.Flatten()(x))
        for i in (1, 2):
            x = layers.Dropout(0.5)(Maxout(width or 240, 5, name=f"maxout{i}")(x))
    else:
        for i in range(count_doublings(image_shape)):
            options = NORMALIZED if i else NORMAL
            x = layers.Conv2D((width or 128) << i, 5, 2, "same", name=f"conv{i}", **options)(x)
            x = norm(f"bn{i}")(x) if i else x
            x = layers.LeakyReLU(0.2, name=f"relu{i}")(x)
        x = layers.Flatten()(x)
    x = layers.Dense(1, name="logit", dtype="float32")(x)
    return keras.Model(picture, x, name="discriminator")


def norm(name: str) -> keras.layers.Layer:
    """Return batch normalisation."""
    return BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def count_doublings(image_shape: tuple[int, int, int]) -> int:
    """Return how often the first map's sides double: down to 4 cells or more, 4 times at most."""
    sides, count = image_shape[:2], 0
    while count < 4 and all(s % 2 == 0 and s >= 2 * SMALLEST for s in sides):
        sides, count = [s // 2 for s in sides], count + 1
    if count < 2:
        raise ValueError("DCGAN's pictures have sides that are multiples of 4, 16 or more.")
    return count


@dataclasses.dataclass
class Config(Generative):
    """Train a generator against a discriminator (Goodfellow et al. 2014, Radford et al. 2016).

    examples:
      tiffin train dcgan --data mnist --epochs 10 --export
      tiffin train gan_mlp --epochs 60 --loss minimax
      tiffin train dcgan --data faces/ --image-size 64 --width 64
    """

    model: Literal[tuple(VARIANTS)] = "dcgan"
    """Which pair of networks."""
    width: int | None = None
    """DCGAN: channels at the picture's end of both networks; the paper's 128 are for GPUs."""
    builder: ClassVar = staticmethod(gan)

    def networks(self, image_shape):
        width = self.width if self.model == "gan_mlp" else self.width or 32
        generator = gan(self.model, (self.latents,), image_shape=image_shape, width=width)
        return generator, discriminator(self.model, image_shape, width)


if __name__ == "__main__":
    main(Config)
