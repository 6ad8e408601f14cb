"""Normalisation: of pictures by constants, of activations by batch statistics."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("tiffin")
class ImageNormalization(keras.layers.Layer):
    """Normalise each channel by constants: `(x - mean) / std`, so that raw pixels can be fed.

    It has no weights, and computes `x * scale + offset` in float32 before it casts to the compute
    dtype, so that mixed precision does not round the pixels first.

    Args:
        mean: scalar or one float a channel, in the input's units (0-255 for raw pixels).
        std: scalar or one positive float a channel, in the same units.
        **kwargs: `name`, `dtype`.

    Input: uint8 or float `[..., channels]`. Output: the compute dtype, same shape.

    Raises:
        ValueError: a `std` that is not positive, values that are not finite, or lengths that
            differ from each other or from the input's channels.
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float], **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.mean, self.std = np.asarray(mean, "float64"), np.asarray(std, "float64")
        for given, value in (("mean", self.mean), ("std", self.std)):
            if value.ndim > 1 or value.size == 0 or not np.isfinite(value).all():
                raise ValueError(
                    f"{given}={value.tolist()} must be a finite number or one a channel."
                )
        if (self.std <= 0).any():
            raise ValueError(f"std={self.std.tolist()} must be positive in every channel.")
        if self.mean.size != self.std.size and 1 not in (self.mean.size, self.std.size):
            raise ValueError(
                f"mean has {self.mean.size} channels and std has {self.std.size}: give as many."
            )

    def build(self, input_shape):
        count = max(self.mean.size, self.std.size)
        if count not in (1, input_shape[-1]):
            raise ValueError(
                f"mean and std have {count} channels, the input {tuple(input_shape)} has "
                f"{input_shape[-1]} (last axis): give one value for each, or a single one for all."
            )

    def call(self, inputs):
        scale = (1 / self.std).astype("float32")
        offset = (-self.mean / self.std).astype("float32")
        return ops.cast(ops.cast(inputs, "float32") * scale + offset, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "mean": self.mean.tolist(), "std": self.std.tolist()}
