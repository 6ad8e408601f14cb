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
        return super().get_config() | {"mean": self.mean.tolist(), "std": self.std.tolist()}


@keras.saving.register_keras_serializable("tiffin")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose inference uses the unbiased variance, as the paper has it.

    Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 2, step 10: over batches of m values a
    channel, `Var[x] = m / (m - 1) * E[var_batch]`. `keras.layers.BatchNormalization` averages the
    biased batch variance and leaves the factor out, which matters where m is small: 4 % of the
    variance at m = 25. Training is the same, as are the weights, so that one layer's weights load
    into the other; torch's moving variance is this one. m counts unmasked values only.

    On TensorFlow, training takes the fused kernel that Keras 3 no longer uses, where the input is a
    picture without a mask.

    Args: those of `keras.layers.BatchNormalization`, but for `renorm` and `synchronized`.

    Input: float of any rank, a mask without the last axis. Output: the same shape.

    Raises:
        ValueError: `renorm` or `synchronized` is asked, or `momentum` lies outside [0, 1].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.renorm or self.synchronized:
            raise ValueError(
                "BatchNormalization after the paper has neither renorm nor synchronized: use "
                "keras.layers.BatchNormalization for them."
            )
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} must lie in [0, 1].")

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        if (
            keras.backend.backend() == "tensorflow"
            and mask is None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.compute_dtype != "float64"
        ):
            return self._fused(inputs)
        # A product, since a plain read may alias the variable that is assigned next.
        kept = self.moving_variance * self.momentum
        outputs = super().call(inputs, training=training, mask=mask)
        if mask is None:
            count = ops.cast(ops.size(inputs), kept.dtype) / inputs.shape[self.axis]
        else:
            weights = ops.broadcast_to(ops.expand_dims(mask, -1), ops.shape(inputs))
            axes = [i for i in range(len(inputs.shape)) if i != self.axis % len(inputs.shape)]
            count = ops.sum(ops.cast(weights, kept.dtype), axis=axes)
        after = ops.convert_to_tensor(self.moving_variance)
        # Keras has just added the biased share; m / (m - 1) = 1 + 1 / (m - 1). A single value has
        # no variance, hence nothing to correct.
        self.moving_variance.assign(after + (after - kept) / ops.maximum(count - 1, 1))
        return outputs

    def _fused(self, inputs):
        """Normalise by TensorFlow's kernel, whose variance is the unbiased one already."""
        import tensorflow as tf

        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=ops.cast(inputs, "float32"),
            scale=ops.convert_to_tensor(self.gamma, "float32") if self.scale else tf.ones(channels),
            offset=ops.convert_to_tensor(self.beta, "float32")
            if self.center
            else tf.zeros(channels),
            mean=tf.zeros(0),
            variance=tf.zeros(0),
            epsilon=self.epsilon,
            is_training=True,
        )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)


@keras.saving.register_keras_serializable("tiffin")
class LocalResponseNormalization(keras.layers.Layer):
    """Divide each channel by the strength of its neighbours: `a / (k + alpha * sum a^2) ** beta`.

    Krizhevsky et al. 2012, section 3.3. The sum runs over the `n` channels around each one at the
    same pixel; beyond the first and last channel there is nothing to add.

    `alpha` counts as the paper's formula and TensorFlow have it: it multiplies the **sum**. torch,
    Caffe and ONNX multiply the mean, that is `alpha / n`: their alpha of 1e-4 at n = 5 is 2e-5
    here. (cuda-convnet, the paper's own code, divides by n as well: so do its configurations.)

    It is computed in float32 at least, since squares overflow half precision. On TensorFlow it is
    one operation, which leaves as ONNX LRN and TFLite LOCAL_RESPONSE_NORMALIZATION.

    Args:
        n: channels in a neighbourhood, the channel itself included; odd.
        k: added to the sum, positive.
        alpha: weight of the sum of squares, at least 0.
        beta: exponent.
        **kwargs: `name`, `dtype`.

    Input: float `[batch, height, width, channels]`. Output: the same shape.

    Raises:
        ValueError: `n` is even or below 1, `k` is not positive, `alpha` is negative, or the input
            has another rank.
    """

    def __init__(
        self, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, **kwargs
    ):
        super().__init__(**kwargs)
        if n < 1 or n % 2 == 0:
            raise ValueError(f"n={n} must be odd: a channel and as many on either side.")
        if not k > 0:
            raise ValueError(f"k={k} must be positive, lest dark pixels divide by zero.")
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha} must be 0 or more.")
        self.n, self.k, self.alpha, self.beta = n, k, alpha, beta

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                f"LocalResponseNormalization takes [batch, height, width, channels], "
                f"not {tuple(input_shape)}."
            )

    def call(self, inputs):
        radius = self.n // 2
        if self.compute_dtype == "float64":
            x = inputs
        else:
            x = ops.cast(inputs, "float32")
            if keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                x = tf.nn.local_response_normalization(x, radius, self.k, self.alpha, self.beta)
                return ops.cast(x, self.compute_dtype)
        channels = inputs.shape[-1]
        squares = ops.pad(ops.square(x), [[0, 0], [0, 0], [0, 0], [radius, radius]])
        total = sum(squares[..., i : i + channels] for i in range(self.n))
        return ops.cast(x / (self.k + self.alpha * total) ** self.beta, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = {"n": self.n, "k": self.k, "alpha": self.alpha, "beta": self.beta}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tiffin")
class L2Normalization(keras.layers.Layer):
    """Every cell's channels to length 1, times a learned scale for each channel.

    Liu et al. 2016 (SSD, arXiv 1512.02325), section 3.1, after ParseNet: conv4_3's features are
    larger than those of the maps after it; a scale of 20 brings them near.

    Args:
        initial_scale: 20 in the paper.
        epsilon: the smallest length that is divided by.
        **kwargs: `name`, `dtype`.

    Call arguments:
        x: float `[..., channels]`.

    Returns:
        The same shape.
    """

    def __init__(self, initial_scale: float = 20.0, epsilon: float = 1e-12, **kwargs):
        super().__init__(**kwargs)
        self.initial_scale, self.epsilon = initial_scale, epsilon

    def build(self, input_shape):
        self.scale = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_scale),
            name="scale",
        )

    def call(self, x):
        squares = ops.sum(ops.square(ops.cast(x, "float32")), axis=-1, keepdims=True)
        inverse = ops.rsqrt(ops.maximum(squares, self.epsilon**2))
        return x * ops.cast(inverse, x.dtype) * ops.cast(self.scale, x.dtype)

    def get_config(self):
        return super().get_config() | {"initial_scale": self.initial_scale, "epsilon": self.epsilon}
