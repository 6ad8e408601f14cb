"""The two sides of a generative adversarial network: their losses, and its pictures as pixels."""

from typing import Literal

import keras
from keras import ops

GENERATOR_LOSSES = ("non_saturating", "minimax")


def discriminator_loss(real, fake):
    """Return what a discriminator pays: `-mean log D(x) - mean log(1 - D(G(z)))`.

    Goodfellow et al. 2014 (arXiv 1406.2661), equation 1 with its sign turned, from logits. At
    D = 1/2 everywhere it is 2 log 2.

    Args:
        real: logits of real examples, float, any shape.
        fake: logits of generated ones.
    """
    return ops.mean(ops.softplus(-real)) + ops.mean(ops.softplus(fake))


def generator_loss(fake, kind: Literal["non_saturating", "minimax"] = "non_saturating"):
    """Return what a generator pays for the logits of its examples.

    Args:
        fake: logits of generated examples, float, any shape.
        kind: `minimax`: `mean log(1 - D(G(z)))`, equation 1; `non_saturating`:
            `-mean log D(G(z))`, section 3, with the same fixed point and a gradient also where the
            discriminator is sure.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in GENERATOR_LOSSES:
        raise ValueError(f"kind='{kind}' must be one of {', '.join(GENERATOR_LOSSES)}.")
    if kind == "minimax":
        return -ops.mean(ops.softplus(fake))
    return ops.mean(ops.softplus(-fake))


@keras.saving.register_keras_serializable("tiffin")
class ToPixels(keras.layers.Layer):
    """Turn what tanh returns into a picture: `[-1, 1]` to 0-255, rounded.

    Input: float `[batch, height, width, channels]`. Output: uint8 of the same shape. Behind a
    network that is trained: rounding has no gradient.
    """

    keeps_float = True  # left in float32 by the exporter: whole levels need more than 256 places

    def call(self, inputs):
        levels = ops.round((ops.cast(inputs, "float32") + 1.0) * 127.5)
        return ops.cast(ops.clip(levels, 0.0, 255.0), "uint8")

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, "uint8")
