"""Non-maximum suppression by the runtime's own operator, behind a converted model.

The model was converted up to all boxes and scores, `Interface.body`. Both formats end in the same
outputs, those of the layer that the operator takes the place of.
"""

import numpy as np

from tiffin.export.convert import ALL_BOXES, ALL_SCORES, Interface

# The operator lists what it keeps, picture by picture and class by class, as rows of picture, class
# and box; each picture gets its own back, the surest first, and zeros behind.
_ONNX = """
suppression (float[b, n, 4] {boxes}, float[b, n, c] {scores})
    => (float[b, s, 4] boxes, float[b, s] scores, {number}[b, s] classes, {number}[b] count)
{{
    none = Constant <value_float = 0.0> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    second = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    size = Constant <value_ints = [{size}]> ()
    columns_behind = Constant <value_ints = [0, 0, 0, {size}]> ()
    rows_behind = Constant <value_ints = [0, 0, {size}, 0]> ()
    iou_threshold = Constant <value_float = {iou_threshold!r}> ()
    score_threshold = Constant <value_float = {score_threshold!r}> ()
    by_class = Transpose <perm = [0, 2, 1]> ({scores})
    listed = NonMaxSuppression ({boxes}, by_class, size, iou_threshold, score_threshold)
    sure = GatherND (by_class, listed)
    picture, listed_class, listed_box = Split <axis = 1> (listed)
    shape = Shape <start = 0, end = 1> ({scores})
    batch = Squeeze (shape)
    pictures = Range (zero, batch, one)
    in_picture = Equal (picture, pictures)
    of_picture = Transpose <perm = [1, 0]> (in_picture)
    own = Where (of_picture, sure, none)
    enough = Pad (own, columns_behind)
    scores, place = TopK <axis = 1> (enough, size)
    real = Greater (scores, none)
    enough_rows = Pad (listed, rows_behind)
    found = Gather (enough_rows, place)
    found_picture, found_class, box = Split <axis = 2> (found)
    found_boxes = GatherND <batch_dims = 1> ({boxes}, box)
    real_box = Unsqueeze (real, last)
    boxes = Where (real_box, found_boxes, none)
    kind = Squeeze (found_class, last)
    real_kind = Where (real, kind, zero)
    classes = Cast <to = {type}> (real_kind)
    real_number = Cast <to = 6> (real)
    sum = ReduceSum <keepdims = 0> (real_number, second)
    count = Cast <to = {type}> (sum)
}}
"""
# From corners to centre and sides, as TFLite's operator takes its anchors.
_CENTERED = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-2, 0, 2, 0], [0, -2, 0, 2]], np.float32) / 2
_ROOM = 4  # sides of the picture between those of two classes


def add(kind: str, content, interface: Interface):
    """Return a file, as its format's module makes it of `interface.body`, with the operator behind.

    Args:
        kind: `onnx` or `tflite`.
        content: `onnx.ModelProto`, which is changed, or the bytes of a `.tflite` file.
        interface: one with `suppression`.
    """
    return (_add_onnx if kind == "onnx" else _add_tflite)(content, interface)


def _add_onnx(proto, interface: Interface):
    import onnx

    layer, types = interface.suppression, {p.name: p.dtype for p in interface.outputs}
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(types["classes"]))
    graph = onnx.parser.parse_graph(
        _ONNX.format(
            boxes=ALL_BOXES,
            scores=ALL_SCORES,
            number=onnx.TensorProto.DataType.Name(kind).lower(),
            type=kind,
            size=layer.size,
            iou_threshold=float(layer.iou_threshold),
            score_threshold=float(layer.score_threshold),
        )
    )
    onnx.compose.add_prefix_graph(
        graph, f"{layer.name}/", rename_inputs=False, rename_outputs=False, inplace=True
    )
    proto.graph.node.extend(graph.node)
    del proto.graph.output[:]
    for port in interface.outputs:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype))
        shape = ["batch", *port.shape]
        proto.graph.output.append(onnx.helper.make_tensor_value_info(port.name, kind, shape))
    return proto


def _add_tflite(model: bytes, interface: Interface) -> bytes:
    """Put TFLite_Detection_PostProcess behind, as for a single class.

    Left to tell classes apart, LiteRT's operator loses the one whose number is that of the
    threads (tensorflow/tensorflow#56058). So each class gets a picture of its own, all of them
    side by side in a square, and a detection's place tells its class.
    """
    from flatbuffers import flexbuffers

    from tiffin.export.tflite_file import Editor

    layer, file = interface.suppression, Editor(model)
    boxes, scores = (file.outputs[name] for name in (ALL_BOXES, ALL_SCORES))
    n, classes = file.shape(scores)[1:]
    ports = {port.name: port for port in interface.outputs}
    relative = ports["boxes"].units == "relative"
    step = _ROOM * (1 if relative else max(interface.inputs[0].shape[:2]))
    row = int(np.ceil(np.sqrt(classes)))
    origins = step * np.stack(np.divmod(np.arange(classes), row), 1)

    def linear(name: str, tensor: int, matrix, offset, size: int) -> int:
        matrix, offset = np.array(matrix, np.float32), np.array(offset, np.float32)
        inputs = [tensor, file.constant(matrix), file.constant(offset)]
        return operator("FULLY_CONNECTED", inputs, name, (size, len(matrix)))

    def reshaped(name: str, tensor: int, *shape: int) -> int:
        return operator("RESHAPE", [tensor, file.constant(np.int32(shape))], name, shape)

    def operator(kind: str, inputs: list[int], name: str, shape, dtype: str = "float32") -> int:
        name = name if name in ports else f"{layer.name}/{name}"
        return file.operator(kind, inputs, {name: (shape, dtype)})[0]

    # The operator shifts and stretches anchors: here the boxes themselves, by nothing.
    offsets = np.pad(origins, [(0, 0), (0, 2)]).ravel()
    pairs = linear("pairs", boxes, np.tile(_CENTERED, (classes, 1)), offsets, n)
    anchors = reshaped("anchors", pairs, n * classes, 4)
    shape = 1, n * classes, 4
    fill = [file.constant(np.int32(shape)), file.constant(np.float32(0))]
    options = {
        "max_detections": layer.size,
        "max_classes_per_detection": 1,
        "detections_per_class": layer.size,
        "use_regular_nms": True,  # the other kind leaves what it likes behind the detections
        # It keeps a score that equals its threshold, and takes no 0 for the other.
        "nms_score_threshold": float(np.nextafter(np.float32(layer.score_threshold), 1)),
        "nms_iou_threshold": max(float(layer.iou_threshold), 1e-9),
        "num_classes": 1,
    }
    options |= {f"{name}_scale": 1.0 for name in "yxhw"}
    size, whole = layer.size, ports["classes"].dtype
    results = {"placed": (1, size, 4), "none": (1, size), "scores": (1, size), "number": (1,)}
    placed, _, found_scores, number = file.operator(
        "TFLite_Detection_PostProcess",
        [
            operator("FILL", fill, "shifts", shape),
            reshaped("pair_scores", scores, 1, n * classes, 1),
            anchors,
        ],
        {k if k in ports else f"{layer.name}/{k}": (v, "float32") for k, v in results.items()},
        bytes(flexbuffers.Dumps(options)),
    )
    # A picture's own centre lies in the middle of its cell.
    middle = 0.5 - 0.5 / _ROOM
    cells = linear("centers", placed, _CENTERED[:2] / step, [middle, middle], size)
    cells = operator("FLOOR", [cells], "cells", (size, 2))
    moved = linear("moved", cells, step * np.tile(np.eye(2), (2, 1)), np.zeros(4), size)
    moved = reshaped("moves", moved, 1, size, 4)
    kinds = linear("kinds", cells, [[row, 1]], [0], size)
    ends = {
        "boxes": operator("SUB", [placed, moved], "boxes", (1, size, 4)),
        "scores": found_scores,
    }
    kinds = reshaped("classes" if whole == "float32" else "kinds_row", kinds, 1, size)
    if whole == "float32":
        ends |= {"classes": kinds, "count": number}
    else:
        ends["classes"] = operator("CAST", [kinds], "classes", (1, size), whole)
        ends["count"] = operator("CAST", [number], "count", (1,), whole)
    file.end({port.name: ends[port.name] for port in interface.outputs})
    return file.packed()
