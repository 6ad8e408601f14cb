"""Recurrent cells, for `keras.layers.RNN` or `Recurrent`, and their equations.

In all of them x is the input of a step, h the output and state of the step before, σ the logistic
function, ⊙ the product element by element. W, U and b are columns of the weights `kernel`,
`recurrent_kernel` and `bias`, one block of `units` for each gate, in the order that the cell's
docstring gives; it is that of Keras' own cells, whose weights fit.
"""

import abc

import keras
from keras import ops

_EPSILON = 1e-5  # below a variance, in layer normalisation


class Cell(keras.layers.SimpleRNNCell, abc.ABC):
    """What the cells share; `keras.layers.SimpleRNNCell` keeps arguments and dropout masks.

    Args:
        units: length of h.
        activation: of candidates and outputs.
        recurrent_activation: of gates.
        use_bias: whether there is a b.
        kernel_initializer: of W.
        recurrent_initializer: of U.
        bias_initializer: of b, but for what a cell says of its own.
        dropout: rate for x, in [0, 1): one mask for all steps of a sequence (Gal and Ghahramani
            2016, arXiv 1512.05287, equation 7).
        recurrent_dropout: the same for h where U multiplies it, one mask for all gates.
        layer_norm: normalise W x and U h each over all gates before their sum, with a gain (Ba et
            al. 2016, arXiv 1607.06450, appendix), and c before the output's activation; b is
            the only shift of the sums, as two more would add up with it.
        seed: of the dropout masks.
        **kwargs: regularizers and constraints of Keras' cells, `name`, `dtype`.

    Input: float `[batch, features]`, and a list of states `[batch, units]`.
    Output: h `[batch, units]`, and the list of new states.

    Raises:
        ValueError: `units` is below 1, or a rate outside [0, 1).
    """

    gates: int
    state_count = 1
    ahead = False  # whether W x comes in the place of x

    def __init__(
        self, units: int, *, recurrent_activation="sigmoid", layer_norm: bool = False, **kwargs
    ):
        for name in ("dropout", "recurrent_dropout"):
            if not 0 <= kwargs.get(name, 0) < 1:
                raise ValueError(f"{name}={kwargs[name]} must lie in [0, 1).")
        super().__init__(units, **kwargs)
        self.recurrent_activation = keras.activations.get(recurrent_activation)
        self.layer_norm = layer_norm
        if self.state_count > 1:
            self.state_size = [units] * self.state_count

    def build(self, input_shape):
        width = self.gates * self.units
        self.kernel = self._add("kernel", (input_shape[-1], width))
        self.recurrent_kernel = self._add("recurrent", (self.units, width), "recurrent_kernel")
        self.bias = self._add("bias", self.bias_shape(width)) if self.use_bias else None
        if self.layer_norm:
            self.build_norm(width)

    def build_norm(self, width: int) -> None:
        """Make the weights of layer normalisation, for gates of this width together."""
        self.kernel_gain = self.add_weight((width,), "ones", name="kernel_gain")
        self.recurrent_gain = self.add_weight((width,), "ones", name="recurrent_gain")

    def _add(self, kind: str, shape: tuple[int, ...], name: str | None = None):
        return self.add_weight(
            shape,
            getattr(self, f"{kind}_initializer"),
            name=name or kind,
            regularizer=getattr(self, f"{kind}_regularizer"),
            constraint=getattr(self, f"{kind}_constraint"),
        )

    def bias_shape(self, width: int) -> tuple[int, ...]:
        """Return the shape of b for gates of this width together."""
        return (width,)

    def call(self, inputs, states, training=False):
        states = [*states] if isinstance(states, (list, tuple)) else [states]
        h = states[0]
        if training and self.recurrent_dropout:
            h = h * self.get_recurrent_dropout_mask(h)
        x = inputs if self.ahead else self.project(self.dropped(inputs, training))
        new = self.step(x, h, states)
        return new[0], new

    def dropped(self, inputs, training):
        """Return x, or the x of all steps, behind its dropout."""
        if not training or not self.dropout:
            return inputs
        if len(inputs.shape) == 3:
            return inputs * self.get_dropout_mask(inputs[:, 0])[:, None]
        return inputs * self.get_dropout_mask(inputs)

    def project(self, inputs):
        """Return W x, for one step or for all of a sequence at once."""
        x = ops.matmul(inputs, self.kernel)
        return self.normalize(x, self.kernel_gain) if self.layer_norm else x

    def recur(self, h, columns: slice | None = None):
        """Return U h, or some of its columns."""
        # tf2onnx knows an LSTM by its whole U: even a slice of all of it hides it.
        kernel = self.recurrent_kernel if columns is None else self.recurrent_kernel[:, columns]
        z = ops.matmul(h, kernel)
        return (
            self.normalize(z, self.recurrent_gain[columns or slice(None)]) if self.layer_norm else z
        )

    def normalize(self, x, gain):
        """Return x of mean 0 and variance 1 along the last axis, times a gain."""
        # Not by `ops.moments`: torch's takes the square of the mean from that of x, inexactly.
        x = x - ops.mean(x, -1, keepdims=True)
        variance = ops.mean(ops.square(x), -1, keepdims=True)
        return x * ops.rsqrt(variance + _EPSILON) * gain

    @abc.abstractmethod
    def step(self, x, h, states: list) -> list:
        """Return the new states, the output first.

        Args:
            x: what `project` returns for the step's input.
            h: the last output as U sees it, behind its dropout.
            states: the last states themselves.
        """

    def get_initial_state(self, batch_size=None):
        shape = (batch_size, self.units)
        return [ops.zeros(shape, self.compute_dtype) for _ in range(self.state_count)]

    def get_config(self):
        config = super().get_config()
        gate = keras.activations.serialize(self.recurrent_activation)
        return {**config, "recurrent_activation": gate, "layer_norm": self.layer_norm}


@keras.saving.register_keras_serializable("tiffin")
class SimpleRNNCell(Cell):
    """Elman's recurrent network (1990, Cognitive Science 14): h' = tanh(W x + U h + b).

    Arguments, input and output: see `Cell`; it has no gate for `recurrent_activation`.
    """

    gates = 1

    def build_norm(self, width):
        # The sum is normalised here (Ba et al. 2016, equation 4), not its two parts.
        self.gain = self.add_weight((width,), "ones", name="gain")

    def project(self, inputs):
        return ops.matmul(inputs, self.kernel)

    def step(self, x, h, states):
        z = x + ops.matmul(h, self.recurrent_kernel)
        z = self.normalize(z, self.gain) if self.layer_norm else z
        return [self.activation(z if self.bias is None else ops.add(z, self.bias))]


@keras.saving.register_keras_serializable("tiffin")
class LSTMCell(Cell):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), forgetting (Gers et al. 2000).

    i = σ(Wi x + Ui h + bi), the input gate
    f = σ(Wf x + Uf h + bf), the forget gate
    g = tanh(Wg x + Ug h + bg), the candidate
    o = σ(Wo x + Uo h + bo), the output gate
    c' = f ⊙ c + i ⊙ g
    h' = o ⊙ tanh(c')

    Blocks of the weights: i, f, g, o. States: h, c.

    Args:
        units: length of h and c.
        unit_forget_bias: begin with bf = 1, to remember (Jozefowicz et al. 2015, section 2).
        **kwargs: see `Cell`.
    """

    gates, state_count, forgetting = 4, 2, (1, 1.0)

    def __init__(self, units: int, *, unit_forget_bias: bool = True, **kwargs):
        super().__init__(units, **kwargs)
        self.unit_forget_bias = unit_forget_bias

    def build(self, input_shape):
        plain = self.bias_initializer
        if self.unit_forget_bias:
            place, value = self.forgetting

            def begin(shape, dtype=None):
                parts = [plain((self.units,), dtype=dtype) for _ in range(self.gates)]
                parts[place] = ops.full((self.units,), value, dtype)
                return ops.concatenate(parts)

            self.bias_initializer = begin
        super().build(input_shape)
        self.bias_initializer = plain

    def build_norm(self, width):
        super().build_norm(width)
        self.state_gain = self.add_weight((self.units,), "ones", name="state_gain")
        self.state_shift = self.add_weight((self.units,), "zeros", name="state_shift")

    def summed(self, x, h):
        """Return W x + U h + b."""
        z = x + self.recur(h)
        return z if self.bias is None else ops.add(z, self.bias)

    def squashed(self, c):
        """Return tanh(c), of the normalised c where there is normalisation."""
        if self.layer_norm:
            c = self.normalize(c, self.state_gain) + self.state_shift
        return self.activation(c)

    def step(self, x, h, states):
        i, f, g, o = ops.split(self.summed(x, h), 4, axis=-1)
        gate = self.recurrent_activation
        c = gate(f) * states[1] + gate(i) * self.activation(g)
        return [gate(o) * self.squashed(c), c]

    def get_config(self):
        return super().get_config() | {"unit_forget_bias": self.unit_forget_bias}


@keras.saving.register_keras_serializable("tiffin")
class PeepholeLSTMCell(LSTMCell):
    """LSTM whose gates see the state (Gers, Schraudolph and Schmidhuber 2002, JMLR 3, section 2.1).

    i = σ(Wi x + Ui h + pi ⊙ c + bi)
    f = σ(Wf x + Uf h + pf ⊙ c + bf)
    g = tanh(Wg x + Ug h + bg)
    c' = f ⊙ c + i ⊙ g
    o = σ(Wo x + Uo h + po ⊙ c' + bo), which sees the new state
    h' = o ⊙ tanh(c')

    Blocks of the weights: i, f, g, o; rows of `peepholes`, float `[3, units]`: pi, pf, po.
    Arguments and states: see `LSTMCell`.
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.peepholes = self.add_weight((3, self.units), self.kernel_initializer, name="peepholes")

    def step(self, x, h, states):
        i, f, g, o = ops.split(self.summed(x, h), 4, axis=-1)
        gate, c = self.recurrent_activation, states[1]
        to_i, to_f, to_o = (self.peepholes[row] for row in range(3))
        c = gate(f + to_f * c) * c + gate(i + to_i * c) * self.activation(g)
        return [gate(o + to_o * c) * self.squashed(c), c]


@keras.saving.register_keras_serializable("tiffin")
class CoupledLSTMCell(LSTMCell):
    """LSTM that forgets what it writes over (Greff et al. 2017, arXiv 1503.04069: CIFG).

    i = σ(Wi x + Ui h + bi)
    g = tanh(Wg x + Ug h + bg)
    o = σ(Wo x + Uo h + bo)
    c' = (1 - i) ⊙ c + i ⊙ g
    h' = o ⊙ tanh(c')

    Blocks of the weights: i, g, o. Arguments and states: see `LSTMCell`; `unit_forget_bias` begins
    with bi = -1, which is a forget gate's 1.
    """

    gates, forgetting = 3, (0, -1.0)

    def step(self, x, h, states):
        i, g, o = ops.split(self.summed(x, h), 3, axis=-1)
        gate = self.recurrent_activation
        i = gate(i)
        c = (1 - i) * states[1] + i * self.activation(g)
        return [gate(o) * self.squashed(c), c]


@keras.saving.register_keras_serializable("tiffin")
class GRUCell(Cell):
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078, equations 5 to 8).

    z = σ(Wz x + Uz h + bz), the update gate
    r = σ(Wr x + Ur h + br), the reset gate
    g = tanh(Wg x + bg + r ⊙ (Ug h + dg)); with `reset_after=False` tanh(Wg x + bg + Ug (r ⊙ h))
    h' = z ⊙ h + (1 - z) ⊙ g

    Blocks of the weights: z, r, g. To reset before the product is the paper's; after it, cuDNN's,
    torch's and ONNX' `linear_before_reset=1`, where `bias` is float `[2, 3 units]` with a row for W
    and one for U.

    Args:
        units: length of h.
        reset_after: see above.
        **kwargs: see `Cell`.
    """

    gates = 3

    def __init__(self, units: int, *, reset_after: bool = True, **kwargs):
        super().__init__(units, **kwargs)
        self.reset_after = reset_after

    def bias_shape(self, width):
        return (2, width) if self.reset_after else (width,)

    def normalize(self, x, gain):
        # Gates and candidate apart, as they are never summed up together.
        if x.shape[-1] != 3 * self.units:
            return super().normalize(x, gain)
        end = [2 * self.units]
        parts = zip(ops.split(x, end, axis=-1), ops.split(gain, end), strict=True)
        return ops.concatenate([super(GRUCell, self).normalize(*part) for part in parts], axis=-1)

    def project(self, inputs):
        x = super().project(inputs)
        if self.bias is None:
            return x
        return ops.add(x, self.bias[0] if self.reset_after else self.bias)

    def step(self, x, h, states):
        xz, xr, xg = ops.split(x, 3, axis=-1)
        gate = self.recurrent_activation
        if self.reset_after:
            inner = self.recur(h)
            inner = inner if self.bias is None else ops.add(inner, self.bias[1])
            hz, hr, hg = ops.split(inner, 3, axis=-1)
            hg = gate(xr + hr) * hg
        else:
            hz, hr = ops.split(self.recur(h, slice(2 * self.units)), 2, axis=-1)
            hg = self.recur(gate(xr + hr) * h, slice(2 * self.units, None))
        z = gate(xz + hz)
        return [z * states[0] + (1 - z) * self.activation(xg + hg)]

    def get_config(self):
        return super().get_config() | {"reset_after": self.reset_after}


@keras.saving.register_keras_serializable("tiffin")
class Recurrent(keras.layers.RNN):
    """`keras.layers.RNN` around a cell, which multiplies W with all steps at once to train.

    Takes, returns and means what `keras.layers.RNN` does: masks, `stateful`, `unroll`,
    `go_backwards`, `return_sequences` and `return_state`, and inside `keras.layers.Bidirectional`.

    Args:
        cell: one of the cells here.
        **kwargs: of `keras.layers.RNN`.

    Raises:
        TypeError: the cell is another.
    """

    def __init__(self, cell: Cell, **kwargs):
        if not isinstance(cell, Cell):
            raise TypeError(
                f"Recurrent takes a cell of tiffin.layers, not {type(cell).__name__}: give that to "
                "keras.layers.RNN."
            )
        super().__init__(cell, **kwargs)

    def build(self, sequences_shape, initial_state_shape=None):
        if self.stateful and self.states is None and sequences_shape[0] is not None:
            # As weights: Keras keeps them out of sight, where JAX loses what is assigned to them.
            self.states = [
                self.add_weight((sequences_shape[0], size), "zeros", trainable=False, name="state")
                for size in self.state_size
            ]
        super().build(sequences_shape, initial_state_shape)

    def inner_loop(self, sequences, initial_state, mask, training=False):
        # Not at inference: tf2onnx knows an LSTM by W x within its loop.
        if not training:
            return super().inner_loop(sequences, initial_state, mask, training)
        sequences = self.cell.project(self.cell.dropped(sequences, training))
        self.cell.ahead = True
        try:
            return super().inner_loop(sequences, initial_state, mask, training)
        finally:
            self.cell.ahead = False

    def sharing(self, **options) -> "Recurrent":
        """Return a layer around the same cell, with other options."""
        config = {name: value for name, value in self.get_config().items() if name != "cell"}
        return type(self)(self.cell, **config | options)
