"""Recurrent networks in the forms that leave: a single step, or sequences of one length."""

import operator
from collections.abc import Callable, Sequence

import keras

from tiffin.export.errors import InputError
from tiffin.export.recurrent import LOGITS, NEXT, TOKEN


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


def translator_parts(model, length: int | None = None) -> tuple:
    """Return the encoder of a translator, and one step of its decoder.

    Args:
        model: a `keras.Model` that ends in a `tiffin.layers.Decoder`, or a layer of the same
            attributes (`step`, `states`, `embedding`, `head`).
        length: the one number of steps of what is read, repeated in the encoder's graph in the
            place of a loop; None: any number, in a loop.

    Returns:
        Two models that share its weights: from all inputs but the target to what the decoder
        begins with and remembers; and from `token`, int `[batch]`, and these, to `logits`,
        `next_NAME` for each state NAME, and `weights`, where the step has a further output.

    Raises:
        InputError: it is no such model.
    """
    found = [layer for layer in model.layers if hasattr(layer, "step") and hasattr(layer, "head")]
    if len(found) != 1:
        raise InputError(f"{model.name} has no decoder: it translates nothing.")
    (decoder,) = found
    target, *given = decoder.input
    names = [tensor.name for tensor in decoder.step.inputs[1:]]
    sources = [tensor for tensor in model.inputs if tensor is not target]
    encoder = keras.Model(
        {tensor.name: tensor for tensor in sources},
        dict(zip(names, given, strict=True)),
        name=f"{model.name}_encoder",
    )
    if length is not None:
        encoder = with_length(encoder, length, unroll=True)
    token = keras.Input((), dtype="int32", name=TOKEN)
    shapes = {
        t.name: [length if n is None else n for n in t.shape[1:]] for t in decoder.step.inputs
    }
    others = [keras.Input(shapes[name], name=name) for name in names]

    word = decoder.embedding(token)
    features, *results = called(decoder.step, [word, *others], operator.call)
    named = [f"{NEXT}{name}" for name in names[: decoder.states]] + ["weights"]
    outputs = {LOGITS: decoder.head(features)} | dict(zip(named, results, strict=False))
    return encoder, keras.Model([token, *others], outputs, name=f"{model.name}_decoder")


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
        return super().get_config() | {"cell": keras.saving.serialize_keras_object(self.cell)}

    @classmethod
    def from_config(cls, config):
        cell = keras.saving.deserialize_keras_object(config["cell"])
        return cls(**config | {"cell": cell})


@keras.saving.register_keras_serializable("tiffin")
class UnrolledBidirectional(keras.layers.Bidirectional):
    """`keras.layers.Bidirectional` around unrolled layers, with zeros at the masked steps.

    Under TensorFlow Keras puts these zeros at the wrong end of what it reads unrolled and backwards
    (keras 3.15, `zero_output_for_mask`).
    """

    def call(self, sequences, initial_state=None, mask=None, training=None):
        for layer in (self.forward_layer, self.backward_layer):
            layer.zero_output_for_mask = False
        results = super().call(sequences, initial_state, mask, training)
        if mask is None or not self.return_sequences:
            return results
        here = keras.ops.cast(mask, self.compute_dtype)[..., None]
        if self.merge_mode is not None and not self.return_state:
            return results * here
        count = 1 if self.merge_mode is not None else 2
        return [*(y * here for y in results[:count]), *results[count:]]


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
        if unroll and isinstance(layer, keras.layers.Bidirectional):
            config = layer.get_config()
            for side in ("layer", "backward_layer"):
                if config.get(side):
                    config[side]["config"] |= {"unroll": True, "stateful": False}
            return UnrolledBidirectional.from_config(config)
        if not unroll or not isinstance(layer, keras.layers.RNN):
            return layer
        return type(layer).from_config(layer.get_config() | {"unroll": True, "stateful": False})

    inputs = [keras.Input((length, *t.shape[2:]), dtype=t.dtype, name=t.name) for t in model.inputs]
    structure = keras.tree.pack_sequence_as(model.input, inputs)
    copy = keras.models.clone_model(model, input_tensors=structure, clone_function=own)
    copy.set_weights(model.get_weights())
    return copy
