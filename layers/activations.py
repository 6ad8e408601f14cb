"""Activations that learn: maxout and PReLU."""

import functools
from collections.abc import Sequence

import keras
from keras import ops


def _maximum_of_pieces(z, pieces: int):
    # Split and pairwise maximum export as they are; a reshape would add a fifth axis to pictures.
    return functools.reduce(ops.maximum, ops.split(z, pieces, axis=-1))


def _check_positive(**given: int) -> None:
    for name, value in given.items():
        if int(value) != value or value < 1:
            raise ValueError(f"{name}={value} must be a whole number of 1 or more.")


@keras.saving.register_keras_serializable("tiffin")
class Maxout(keras.layers.Layer):
    """The maximum of several affine maps: `max_j (x W_j + b_j)`.

    Goodfellow et al. 2013 (arXiv 1302.4389), section 3. The pieces lie one after another in the
    inner layer `linear`: its columns `j * units` to `(j + 1) * units` are W_j.

    Args:
        units: features of the output.
        pieces: affine maps to choose from (the paper's k), 1 or more.
        use_bias: whether the maps have biases.
        kernel_initializer: of every W_j, drawn for the fan of all pieces together.
        kernel_regularizer: of the kernel.
        kernel_constraint: of the kernel; the paper bounds each column's norm.
        **kwargs: `name`, `dtype`.

    Input: float `[..., features]`. Output: `[..., units]`.

    Raises:
        ValueError: `units` or `pieces` is below 1.
    """

    def __init__(
        self,
        units: int,
        pieces: int = 2,
        *,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_positive(units=units, pieces=pieces)
        self.units, self.pieces = units, pieces
        self.linear = keras.layers.Dense(
            units * pieces,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            kernel_regularizer=kernel_regularizer,
            kernel_constraint=kernel_constraint,
            dtype=self.dtype_policy,
            name="linear",
        )

    def build(self, input_shape):
        self.linear.build(input_shape)

    def call(self, inputs):
        return _maximum_of_pieces(self.linear(inputs), self.pieces)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        inner = self.linear.get_config()
        keys = ("use_bias", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
        own = {"units": self.units, "pieces": self.pieces}
        return super().get_config() | own | {key: inner[key] for key in keys}


@keras.saving.register_keras_serializable("tiffin")
class MaxoutConv2D(keras.layers.Layer):
    """The maximum over several convolutions, pixel by pixel.

    Goodfellow et al. 2013 (arXiv 1302.4389), section 3: a maxout feature map is the maximum over k
    affine feature maps. The pieces lie one after another in the inner layer `conv`: its filters
    `j * filters` to `(j + 1) * filters` are the j-th convolution.

    Args:
        filters: channels of the output.
        kernel_size: height and width of the kernel.
        pieces: convolutions to choose from (the paper's k), 1 or more.
        strides: step in height and width.
        padding: "valid" or "same".
        use_bias: whether the convolutions have biases.
        kernel_initializer: of the kernel.
        kernel_regularizer: of the kernel.
        kernel_constraint: of the kernel; the paper bounds each filter's norm.
        **kwargs: `name`, `dtype`.

    Input: float `[batch, height, width, channels]`.
    Output: `[batch, new height, new width, filters]`.

    Raises:
        ValueError: `filters` or `pieces` is below 1, or what `keras.layers.Conv2D` refuses.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        pieces: int = 2,
        *,
        strides: int | tuple[int, int] = 1,
        padding: str = "valid",
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_positive(filters=filters, pieces=pieces)
        self.filters, self.pieces = filters, pieces
        self.conv = keras.layers.Conv2D(
            filters * pieces,
            kernel_size,
            strides,
            padding,
            data_format="channels_last",
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            kernel_regularizer=kernel_regularizer,
            kernel_constraint=kernel_constraint,
            dtype=self.dtype_policy,
            name="conv",
        )

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, inputs):
        return _maximum_of_pieces(self.conv(inputs), self.pieces)

    def compute_output_shape(self, input_shape):
        return (*self.conv.compute_output_shape(input_shape)[:-1], self.filters)

    def get_config(self):
        inner = self.conv.get_config()
        keys = ("kernel_size", "strides", "padding", "use_bias", "kernel_initializer")
        keys += ("kernel_regularizer", "kernel_constraint")
        own = {"filters": self.filters, "pieces": self.pieces}
        return super().get_config() | own | {key: inner[key] for key in keys}


@keras.saving.register_keras_serializable("tiffin")
class PReLU(keras.layers.Layer):
    """ReLU with a learned slope for negative inputs: `max(x, 0) + alpha * min(x, 0)`.

    He et al. 2015 (arXiv 1502.01852), equation 1. The paper learns one slope a channel, starts at
    0.25, and does not decay it, since decay would push it back to ReLU.

    Args:
        shared_axes: axes along which inputs share one slope, counted with the batch as axis 0.
            None: all but the last, one slope a channel as in the paper (`keras.layers.PReLU`
            would learn one for every pixel). `()`: one slope for every element.
            `(1, 2, 3)` of a picture: a single slope, the paper's channel-shared form.
        alpha_initializer: of the slopes; None: 0.25.
        alpha_regularizer: of the slopes.
        alpha_constraint: of the slopes.
        **kwargs: `name`, `dtype`.

    Input: float `[batch, ..., channels]`, rank 2 or more. Output: the same shape. The weight
    `alpha` has the input's shape without batch, and 1 on shared axes.

    Raises:
        ValueError: an axis that the input lacks, the batch axis, or an axis of unknown length that
            is not shared.
    """

    def __init__(
        self,
        shared_axes: Sequence[int] | None = None,
        *,
        alpha_initializer=None,
        alpha_regularizer=None,
        alpha_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.shared_axes = None if shared_axes is None else tuple(shared_axes)
        self.alpha_initializer = keras.initializers.get(
            keras.initializers.Constant(0.25) if alpha_initializer is None else alpha_initializer
        )
        self.alpha_regularizer = keras.regularizers.get(alpha_regularizer)
        self.alpha_constraint = keras.constraints.get(alpha_constraint)

    def build(self, input_shape):
        rank = len(input_shape)
        if rank < 2:
            raise ValueError(f"PReLU takes [batch, ..., channels], not {tuple(input_shape)}.")
        shared = range(1, rank - 1) if self.shared_axes is None else self.shared_axes
        for axis in shared:
            if not -rank < axis < rank or axis % rank == 0:
                raise ValueError(
                    f"shared_axes={self.shared_axes}: axis {axis} must be one of 1 to {rank - 1}, "
                    f"the axes of {tuple(input_shape)} behind the batch."
                )
        shape = list(input_shape[1:])
        for axis in shared:
            shape[axis % rank - 1] = 1
        if None in shape:
            raise ValueError(
                f"The input {tuple(input_shape)} has an axis of unknown length: share it by "
                "shared_axes, or fix its length."
            )
        self.alpha = self.add_weight(
            name="alpha",
            shape=tuple(shape),
            initializer=self.alpha_initializer,
            regularizer=self.alpha_regularizer,
            constraint=self.alpha_constraint,
        )

    def call(self, inputs):
        # TensorFlow's converter knows this spelling and makes one PRELU of it.
        return ops.relu(inputs) + -self.alpha * ops.relu(-inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "shared_axes": self.shared_axes,
            "alpha_initializer": keras.initializers.serialize(self.alpha_initializer),
            "alpha_regularizer": keras.regularizers.serialize(self.alpha_regularizer),
            "alpha_constraint": keras.constraints.serialize(self.alpha_constraint),
        }
