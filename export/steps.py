"""Recurrent networks in the forms that leave: a single step, or sequences of one length."""

from collections.abc import Callable, Sequence

import keras

from tiffin.export.errors import InputError
from tiffin.export.recurrent import NEXT, TOKEN


def step_model(model):
    """Return one step of a recurrent network, with its states as further inputs and outputs.

    Args:
        model: a `keras.Model` over sequences, `[batch, steps, ...]`, whose recurrent layers are
            `keras.layers.RNN` (LSTM, GRU and the like) and whose other layers treat every step
            alike: embeddings, dense layers, normalisation, dropout.

    Returns:
        A model that shares the weights. It takes each input of a single step, `[batch, ...]`, a
        lone integer one called `token`, and for each state `NAME`, float `[batch, units]`, zero
        before the first step. It returns the outputs of that step, `[batch, ...]`, and for each
        state `next_NAME`, to be given as `NAME` with the next step.

    Raises:
        InputError: there is no recurrent layer, or one that reads a sequence from its end or begins
            with a given state.
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    kinds = (keras.layers.RNN, keras.layers.Bidirectional)
    if not any(isinstance(layer, kinds) for layer in model.layers):
        raise InputError(f"{model.name} has no recurrent layer, and so no step function.")
    inputs, steps, handed = [], [], {}
    for tensor in model.inputs:
        integers = keras.backend.standardize_dtype(tensor.dtype).startswith(("int", "uint"))
        name = TOKEN if integers and len(model.inputs) == 1 else tensor.name
        inputs.append(keras.Input(tensor.shape[2:], dtype=tensor.dtype, name=name))
        one = keras.layers.Reshape((1, *tensor.shape[2:]), name=f"{name}_step")
        steps.append(one(inputs[-1]))

    def call(layer, *arguments, **options):
        _require_steps(layer, arguments, options)
        if not isinstance(layer, keras.layers.RNN):
            return layer(*arguments, **options)
        step = RecurrentStep(layer.cell, name=layer.name)
        states = [keras.Input((size,), name=name) for name, size in step.states()]
        y, *new = step(arguments[0], *states)
        inputs.extend(states)
        handed.update({f"{NEXT}{s.name}": n for s, n in zip(states, new, strict=True)})
        return y

    own = sorted(model.output) if isinstance(model.output, dict) else model.output_names
    outputs = {
        name: keras.layers.Reshape(y.shape[2:], name=f"{name}_of_step")(y)
        for name, y in zip(own, called(model, steps, call), strict=True)
    }
    return keras.Model(inputs, outputs | handed, name=model.name)


def called(model, inputs: Sequence, call: Callable) -> list:
    """Run a functional model's layers on other inputs; returns its outputs.

    Args:
        model: the model.
        inputs: a tensor for each of its own.
        call: `call(layer, *arguments, **options)`, in the place of the layer's own.
    """
    known = {id(own): given for own, given in zip(model.inputs, inputs, strict=True)}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            arguments, options = node.arguments.fill_in(known)
            results = keras.tree.flatten(call(node.operation, *arguments, **options))
            known |= {id(t): y for t, y in zip(node.output_tensors, results, strict=False)}
    return [known[id(tensor)] for tensor in model.outputs]


@keras.saving.register_keras_serializable("tiffin")
class RecurrentStep(keras.layers.Layer):
    """One step of a recurrent layer, from `[batch, 1, features]` and its states.

    Args:
        cell: the layer's.
        **kwargs: `name`, `dtype`.
    """

    def __init__(self, cell, **kwargs):
        super().__init__(**kwargs)
        self.cell = cell

    def states(self) -> list[tuple[str, int]]:
        """Return a name and the length of each state."""
        sizes = keras.tree.flatten(self.cell.state_size)
        parts = {1: "h", 2: "hc"}.get(len(sizes)) or range(len(sizes))
        return [(f"{self.name}_{part}", int(n)) for part, n in zip(parts, sizes, strict=True)]

    def call(self, inputs, *states):
        nested = keras.tree.pack_sequence_as(self.cell.state_size, states)
        output, new = self.cell(inputs[:, 0], nested if len(states) > 1 else [nested])
        return output[:, None], *keras.tree.flatten(new)

    def get_config(self):
        return {**super().get_config(), "cell": keras.saving.serialize_keras_object(self.cell)}

    @classmethod
    def from_config(cls, config):
        cell = keras.saving.deserialize_keras_object(config["cell"])
        return cls(**config | {"cell": cell})


def _require_steps(layer, arguments, options) -> None:
    """Refuse a layer that has no step function."""
    if isinstance(layer, keras.layers.Bidirectional) or getattr(layer, "go_backwards", False):
        raise InputError(
            f"'{layer.name}' reads a sequence from its end: it has no step function. Export the "
            "model over sequences of a fixed length."
        )
    recurrent = isinstance(layer, keras.layers.RNN)
    if recurrent and (len(arguments) > 1 or options.get("initial_state") is not None):
        raise InputError(
            f"'{layer.name}' begins with what another layer gives: a step function begins with "
            "zeros. Export the model over sequences of a fixed length."
        )


def with_length(model, length: int, unroll: bool = False):
    """Return a network over sequences for one fixed length, with the same weights.

    Args:
        model: a `keras.Model` over sequences `[batch, steps, ...]`.
        length: number of steps.
        unroll: repeat the steps in the graph, in the place of a loop; int8 needs it.
    """

    def own(layer):
        if not unroll or not isinstance(layer, keras.layers.RNN):
            return layer
        return type(layer).from_config(layer.get_config() | {"unroll": True, "stateful": False})

    inputs = [keras.Input((length, *t.shape[2:]), dtype=t.dtype, name=t.name) for t in model.inputs]
    structure = keras.tree.pack_sequence_as(model.input, inputs)
    copy = keras.models.clone_model(model, input_tensors=structure, clone_function=own)
    copy.set_weights(model.get_weights())
    return copy
