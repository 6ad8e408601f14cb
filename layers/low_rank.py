"""Fully connected layers whose kernel is a product of two thin ones."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("tiffin")
class LowRankDense(keras.layers.Layer):
    """A dense layer with the kernel `first @ second`: `rank * (inputs + units)` weights.

    Girshick 2015 (Fast R-CNN, arXiv 1504.08083), section 3.1.

    Args:
        units: width of the output.
        rank: columns of `first`, at least 1.
        activation: as for `keras.layers.Dense`.
        **kwargs: `name`, `dtype`.

    Input: float `[..., inputs]`.
    Output: float `[..., units]`.
    """

    def __init__(self, units: int, rank: int, activation=None, **kwargs):
        super().__init__(**kwargs)
        if units < 1 or rank < 1:
            raise ValueError(f"units={units} and rank={rank} must be 1 or more.")
        self.units, self.rank = units, rank
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        self.first = self.add_weight(shape=(input_shape[-1], self.rank), name="first")
        self.second = self.add_weight(shape=(self.rank, self.units), name="second")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, inputs):
        x = ops.matmul(ops.matmul(inputs, self.first), self.second)
        return self.activation(x + self.bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return super().get_config() | {
            "units": self.units,
            "rank": self.rank,
            "activation": keras.activations.serialize(self.activation),
        }


def truncate_svd(model: keras.Model, ranks: Mapping[str, int]) -> keras.Model:
    """Return a model with the best approximations of that rank for some of its dense layers.

    Girshick 2015 (Fast R-CNN, arXiv 1504.08083), section 3.1: of the kernel's singular values the
    largest stay. All other layers are those of the model itself; a bias that was none is zero.

    Args:
        model: a functional model.
        ranks: singular values to keep, by name of the dense layer.

    Raises:
        ValueError: no such dense layer, or a rank that is not between 1 and the kernel's own.
    """
    dense = {layer.name: layer for layer in model.layers if isinstance(layer, keras.layers.Dense)}
    thin = {}
    for name, rank in ranks.items():
        if name not in dense:
            raise ValueError(f"There is no dense layer '{name}'; there are {', '.join(dense)}.")
        kernel, full = dense[name], min(dense[name].kernel.shape)
        if not 1 <= rank <= full:
            raise ValueError(f"The rank {rank} of '{name}' must be from 1 to {full}.")
        thin[name] = LowRankDense(
            kernel.units, rank, kernel.activation, name=name, dtype=kernel.dtype_policy
        )
    result = keras.models.clone_model(
        model, clone_function=lambda layer: thin.get(layer.name, layer)
    )
    for name, layer in thin.items():
        kernel, bias, *_ = (*dense[name].get_weights(), np.zeros(layer.units))
        u, values, v = np.linalg.svd(kernel, full_matrices=False)
        r = layer.rank
        layer.set_weights([u[:, :r], values[:r, None] * v[:r], bias])
    return result
