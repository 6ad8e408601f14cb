"""A traced model to TFLite."""

import re

from tiffin.export.convert import Interface, Traced
from tiffin.export.errors import ExportError

SIGNATURE = "serving_default"


def to_tflite(interface: Interface, traced: Traced) -> bytes:
    """Convert a model traced with a batch of 1.

    Only operations that every LiteRT interpreter has are allowed (no TensorFlow Select operations).

    Returns:
        A float32 `.tflite` file with one signature that names the interface's inputs and outputs.

    Raises:
        ExportError: an operation has no TFLite form; the message names the layer that made it.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import ConverterError, convert_graphdef

    from tiffin.export.runtime import quiet

    frozen = traced.with_constants({*traced.weights})
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(traced.graph, name="")
        inputs = [graph.get_tensor_by_name(f"{name}:0") for name in traced.inputs]
        outputs = [graph.get_tensor_by_name(name) for name in traced.outputs]
    try:
        with quiet():
            model = convert_graphdef(
                frozen, inputs, outputs, target_ops=[tf.lite.OpsSet.TFLITE_BUILTINS]
            )
    except ConverterError as error:
        raise _unsupported(str(error), traced) from error
    return _with_signature(model, interface)


def reduce(model: bytes, precision: str, interface: Interface, calibration) -> bytes:
    """Return a float32 model in another precision."""
    if precision == "fp32":
        return model
    raise ExportError(f"TFLite in {precision} is not there yet.")


def _unsupported(message: str, traced: Traced) -> ExportError:
    known = {node.op for node in traced.graph.node}
    known |= {node.op for f in traced.graph.library.function for node in f.node_def}
    # "Flex ops: Erf, Acos" in the summary, "'tf.Acos' op is neither ..." in the details.
    listed = re.findall(r"(?:Flex|Select|Custom) ops?:\s*([\w, ]+)", message)
    found = {name.strip() for part in listed for name in part.split(",")}
    found |= set(re.findall(r"'tf\.(\w+)' op", message))
    if found := found & known:
        return ExportError(
            f"{traced.origin(found)} uses the TensorFlow operation {', '.join(sorted(found))}, which "
            "LiteRT has no built-in form of. Write that layer with keras.ops that have one, or "
            "export to ONNX only."
        )
    layers = {traced.layer(place) for place in re.findall(r'loc\("([^"]+)"', message)} - {None}
    where = " and ".join(f"'{name}'" for name in sorted(layers)) or "the model"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return ExportError(
        f"The TFLite converter cannot convert {where} ({lines[0][:300] if lines else 'no reason'}). "
        "Write that layer another way, or export to ONNX only."
    )


def _with_signature(model: bytes, interface: Interface) -> bytes:
    """Name inputs and outputs, as tensors and in a signature; both stand in the interface's order."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromPackedBuf(model)
    graph = content.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    signature.inputs, signature.outputs = [], []
    for indices, ports, maps in (
        (graph.inputs, interface.inputs, signature.inputs),
        (graph.outputs, interface.outputs, signature.outputs),
    ):
        for index, port in zip(indices, ports, strict=True):
            graph.tensors[index].name = port.name
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = port.name, int(index)
            maps.append(entry)
    content.signatureDefs = [signature]
    builder = flatbuffers.Builder(len(model) + 65536)
    builder.Finish(content.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
