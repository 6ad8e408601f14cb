"""What a network costs: parameters, multiply-accumulates, memory and sight, layer by layer."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras

from tiffin.export.documents import table
from tiffin.layers import Decoder, Maxout
from tiffin.layers.attention import Attention
from tiffin.layers.recurrent import Cell

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: of the layer.
        kind: its class.
        shape: of its output for one input, without the batch axis.
        parameters: all weights, moving statistics included.
        macs: multiply-accumulate operations for one input; those of convolutions and matrix
            products, which is what papers count.
        memory: bytes of the output in float32.
        field: receptive field: how many input pixels along a side an output can see; None behind a
            layer that sees the whole picture.
    """

    name: str
    kind: str
    shape: Shape
    parameters: int
    macs: int
    memory: int
    field: int | None


def multiply_accumulates(
    layer: keras.Layer, inputs: Shape, outputs: Shape, others: Sequence[Shape] = ()
) -> int:
    """Count the multiply-accumulate operations of one layer for one input.

    A convolution of C channels to D with a K x K kernel has K*K*C*D weights, and uses each of them
    once at every output position: H*W*K*K*C*D. With groups every output sees C / groups channels;
    a depthwise one sees one.

    Args:
        layer: a built layer.
        inputs: shape of its input, without the batch axis.
        outputs: shape of its output, without the batch axis.
        others: shapes of its further inputs.
    """
    if isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional | Cell):
        kernels = [w for w in layer.weights if w.name in ("kernel", "recurrent_kernel")]
        steps = 1 if isinstance(layer, Cell) else inputs[0]
        return steps * sum(math.prod(kernel.shape) for kernel in kernels)
    if isinstance(layer, Decoder):
        step = sum(row.macs for row in rows(layer.step)) + math.prod(layer.head.kernel.shape)
        return inputs[0] * step
    if isinstance(layer, Attention):
        # Of one query: it and the keys are multiplied with kernels, then with each other, and the
        # weights with what they are of.
        keys, values = others[0], others[-1] if len(others[-1]) == 2 else others[0]
        kernels = sum(
            math.prod(w.shape) * (keys[0] if w.name == "key_kernel" else 1)
            for w in layer.weights
            if len(w.shape) == 2
        )
        return kernels + math.prod(keys) + math.prod(values)
    if isinstance(layer, Maxout):
        return math.prod(outputs) * layer.pieces * inputs[-1]
    if isinstance(layer, keras.layers.Dense):
        return math.prod(outputs) * layer.kernel.shape[0]
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return math.prod(inputs[:2]) * math.prod(layer.kernel.shape)
    if isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D):
        # A kernel without its output axis is what one output value costs.
        kernel = layer.kernel.shape
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        seen = math.prod(kernel[:2]) if depthwise else math.prod(kernel[:3])
        count = math.prod(outputs[:2]) * (math.prod(kernel[2:]) if depthwise else kernel[3])
        return count * seen
    return 0


def rows(model: keras.Model) -> list[Row]:
    """Measure every layer of a functional model whose input size is known.

    Returns:
        A row a layer, in the order of computation.
    """
    sight: dict[Any, tuple[int | None, int]] = {}  # by tensor: receptive field, stride, in pixels
    found = []
    for layer in model.layers:
        node = _node(model, layer)
        outputs = keras.tree.flatten(node.output_tensors)
        shape = tuple(outputs[0].shape[1:])
        inputs, *others = [tuple(t.shape[1:]) for t in node.input_tensors] or [shape]
        # What plain operations give, such as a slice, is not followed.
        seen = _sight(layer, [sight.get(id(t), (None, 1)) for t in node.input_tensors])
        sight |= {id(t): seen for t in outputs}
        found.append(
            Row(
                layer.name,
                type(layer).__name__,
                shape,
                layer.count_params(),
                multiply_accumulates(layer, inputs, shape, others),
                sum(4 * math.prod(t.shape[1:]) for t in outputs),
                seen[0],
            )
        )
    return found


def _node(model: keras.Model, layer: keras.Layer):
    """Return the call of a layer that belongs to this model; a shared layer has several."""
    own = {id(node) for nodes in model._nodes_by_depth.values() for node in nodes}
    return next(node for node in layer._inbound_nodes if id(node) in own)


def _sight(layer: keras.Layer, inputs: list[tuple[int | None, int]]) -> tuple[int | None, int]:
    """Return the receptive field and the stride of a layer's output, given those of its inputs."""
    if not inputs:
        return 1, 1
    if any(field is None for field, _ in inputs):
        return None, 1
    field, stride = max(field for field, _ in inputs), max(stride for _, stride in inputs)
    whole = (
        keras.layers.Flatten,
        keras.layers.Dense,
        keras.layers.GlobalAveragePooling2D,
        keras.layers.GlobalMaxPooling2D,
    )
    if isinstance(layer, whole):
        return None, 1
    kernel = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None) or (1,)
    dilation = getattr(layer, "dilation_rate", (1,))
    dilation = dilation if isinstance(dilation, int) else dilation[0]
    step = getattr(layer, "strides", None) or getattr(layer, "stride", 1)
    step = step if isinstance(step, int) else step[0]
    return field + (kernel[0] - 1) * dilation * stride, stride * step


def trainable(model: keras.Model) -> int:
    """Count the trainable parameters, which is what papers count."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def text(model: keras.Model) -> str:
    """Return the table of layers and the totals for people."""
    found = rows(model)
    shapes = [tuple(t.shape[1:]) for t in model.inputs]
    sees = len(shapes[0]) == 3  # pictures: what is behind sequences has no field in pixels
    cells = [
        [
            row.name,
            row.kind,
            " x ".join(map(str, row.shape)),
            f"{row.parameters:,}",
            f"{row.macs / 1e6:,.2f}",
            f"{row.memory / 2**20:.2f}",
            *(["all" if row.field is None else row.field] if sees else []),
        ]
        for row in found
    ]
    header = ["layer", "kind", "output", "parameters", "MACs, M", "memory, MiB"]
    header += ["receptive field"] if sees else []
    macs = sum(row.macs for row in found)
    memory = sum(row.memory for row in found)
    fields = [row.field for row in found if row.field is not None]
    size = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
    return "\n".join(
        [
            table(header, cells),
            "",
            f"{model.name} at {size}, one {'picture' if sees else 'sequence'}:",
            f"  parameters       {model.count_params():,}, {trainable(model):,} of them trainable "
            f"({4 * model.count_params() / 2**20:.1f} MiB in float32)",
            f"  MACs             {macs / 1e6:,.1f} M multiply-accumulates of convolutions and "
            "matrix products",
            f"  memory           {memory / 2**20:.1f} MiB, if every layer's output is kept in "
            f"float32; the largest is {max(r.memory for r in found) / 2**20:.1f} MiB",
            *(
                [f"  receptive field  {max(fields)} pixels along a side in the last feature map"]
                if sees
                else []
            ),
        ]
    )
