"""What a file says about itself: TFLite metadata that MediaPipe reads, and ONNX properties.

The tables are those of TFLite's `metadata_schema.fbs` ("M001"), written field by field, since the
package that generates them is no dependency of an export.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import flatbuffers

from tiffin.export.errors import ExportError, InputError

LABELS_FILE = "labels.txt"
MANIFEST = "manifest.json"
_MOST_LABELS = 10_000_000  # bytes
_BUFFER_NAME = "TFLITE_METADATA"
# Enumerations and union members of metadata_schema.fbs.
_TENSOR_AXIS_LABELS, _TENSOR_VALUE_LABELS = 2, 3
_RGB, _GRAYSCALE = 1, 2
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES, _BOX_PROPERTIES = 1, 2, 3
_BOUNDARIES, _RATIO = 1, 0
# By these names MediaPipe's object detector knows the outputs; its boxes are relative.
_DETECTOR = {
    "boxes": "location",
    "classes": "category",
    "scores": "score",
    "count": "number of detections",
}
_NORMALIZATION_OPTIONS = 1
# What flatbuffers calls the types of fields.
_KINDS = {"offset": "UOffsetTRelative", "uint8": "Uint8", "uint32": "Uint32", "float32": "Float32"}
# Slots of TFLite's table Model.
_BUFFERS, _METADATA = 4, 6


def labels_text(labels: Sequence[str]) -> str:
    """Return the text of a `labels.txt`: one label a line.

    Raises:
        InputError: a label is empty or holds a line break, which would shift all that follow.
    """
    for index, label in enumerate(labels):
        if not label.strip() or len(label.splitlines()) > 1 or label != label.rstrip("\r\n"):
            raise InputError(
                f"Label {index} is {label!r}: a label must be one line of text, as labels.txt has "
                "one a line. Rename that class."
            )
    return "".join(f"{label}\n" for label in labels)


def preprocessing(inputs: Sequence[Mapping], states: Mapping[str, str] | None = None) -> str:
    """Return what an app has to do before it runs the model, in words.

    Args:
        inputs: entries of the manifest's `inputs`.
        states: of a step function, by input the output that is handed to it at the next step.
    """
    said = [
        f"Resize to {i['shape'][1]}x{i['shape'][2]} (height x width) and give '{i['name']}' raw "
        f"{i.get('color', 'RGB')} pixels, {i['range'][0]}-{i['range'][1]}, as {i['dtype']}; "
        "everything else is inside the file."
        for i in inputs
        if i.get("layout")
    ]
    if states:
        handed = ", ".join(f"'{output}' as '{name}'" for name, output in states.items())
        said.append(
            "One run is one step of a sequence. Give zeros as states with the first step, and with "
            f"each other what the step before returned: {handed}."
        )
    return " ".join(said) or "None: everything is inside the file."


def add_onnx(
    proto,
    *,
    name: str,
    description: str | None,
    labels: Sequence[str] | None,
    preprocessing: str,
    outputs: Sequence[Mapping],
) -> None:
    """Write name, description, labels (a JSON list) and preprocessing into a model's properties.

    Args:
        proto: the `onnx.ModelProto`, changed in place.
        name: the model's name.
        description: a sentence or more, or None.
        labels: names of the classes in the order of the output, or None.
        preprocessing: from the function of this name.
        outputs: entries of the manifest's `outputs`.
    """
    import onnx

    names = ", ".join(output["name"] for output in outputs)
    properties = {"name": name, "preprocessing": preprocessing, "outputs": names}
    if description:
        properties["description"] = proto.doc_string = description
    if labels:
        properties["labels"] = json.dumps(list(labels), ensure_ascii=False)
    onnx.helper.set_model_props(proto, properties)


def add_tflite(
    model: bytes,
    *,
    name: str,
    description: str | None,
    labels: Sequence[str] | None,
    inputs: Sequence[Mapping],
    outputs: Sequence[Mapping],
) -> bytes:
    """Add TFLite metadata and, zipped at the end, `labels.txt`: MediaPipe's tasks open the result.

    The weights are neither unpacked nor moved: a new root table is laid before the old file.

    Args:
        model: a `.tflite` file.
        name: the model's name.
        description: a sentence or more, or None.
        labels: names of the classes, or None; they describe every output whose last axis has as
            many entries, or a detector's classes.
        inputs: entries of the manifest's `inputs`; those with a `layout` are images.
        outputs: entries of the manifest's `outputs`.

    Returns:
        The new file.

    Raises:
        InputError: a label is empty or holds a line break.
        ExportError: the file is too large for one flatbuffer (2 GB), or its signature's names are
            not those of `inputs` and `outputs`.
    """
    from ai_edge_litert.schema_py_generated import Model

    model = _without_archive(model)
    root = Model.GetRootAs(model)
    described = _describe(
        name,
        description,
        _in_graph_order(root, inputs, "Inputs"),
        _in_graph_order(root, outputs, "Outputs"),
        len(labels or ()),
    )
    model = _with_metadata(model, root, described)
    if not labels:
        return model
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), labels_text(labels))
    return file.getvalue()


def _without_archive(model: bytes) -> bytes:
    """Cut off the labels that an earlier call put behind the model."""
    file = io.BytesIO(model)
    if not zipfile.is_zipfile(file):
        return model
    with zipfile.ZipFile(file) as archive:
        return model[: archive.getinfo(LABELS_FILE).header_offset]


def read_labels(path: str | os.PathLike) -> list[str] | None:
    """Return the labels that an `.onnx` or `.tflite` file carries, None if it carries none.

    Raises:
        InputError: it carries damaged ones.
    """
    path = Path(path)
    try:
        labels = _labels_inside(path)
        if not isinstance(labels, list | None) or not all(isinstance(x, str) for x in labels or ()):
            raise TypeError("they are no list of texts")
        return labels
    except Exception as error:
        # Those of zipfile, zlib, json and protobuf share no base but Exception.
        raise InputError(
            f"The labels inside {path} cannot be read ({error}): the file is damaged. Copy or "
            "export it again."
        ) from error


def _labels_inside(path: Path) -> list[str] | None:
    if path.suffix == ".tflite" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if LABELS_FILE in archive.namelist():
                if archive.getinfo(LABELS_FILE).file_size > _MOST_LABELS:
                    raise ValueError(f"they unfold to over {_MOST_LABELS:,} bytes")
                return archive.read(LABELS_FILE).decode().splitlines()
    if path.suffix == ".onnx":
        import onnx

        properties = onnx.load(path, load_external_data=False).metadata_props
        return next((json.loads(p.value) for p in properties if p.key == "labels"), None)
    return None


def _in_graph_order(root, entries: Sequence[Mapping], side: str) -> list[Mapping]:
    """Sort manifest entries as the main graph has them: metadata goes by position, not by name."""
    if root.SignatureDefsLength() != 1:
        return list(entries)
    signature, graph = root.SignatureDefs(0), root.Subgraphs(0)
    count, get = getattr(signature, f"{side}Length")(), getattr(signature, side)
    names = {get(i).TensorIndex(): get(i).Name().decode() for i in range(count)}
    by_name = {entry["name"]: entry for entry in entries}
    if set(by_name) != set(names.values()):
        raise ExportError(
            f"The TFLite file names its {side.lower()} {sorted(names.values())}, "
            f"the manifest {sorted(by_name)}: they must agree."
        )
    return [by_name[names[int(index)]] for index in getattr(graph, f"{side}AsNumpy")()]


def _table(builder: flatbuffers.Builder, *fields: tuple) -> int:
    """Write a table of `(slot, kind, value)`; kinds as in `_KINDS`."""
    builder.StartObject(max(slot for slot, _, _ in fields) + 1)
    for slot, kind, value in fields:
        getattr(builder, f"Prepend{_KINDS[kind]}Slot")(slot, value, 0)
    return builder.EndObject()


def _vector(builder: flatbuffers.Builder, kind: str, values: Sequence) -> int:
    """Write a vector of values of 4 bytes."""
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        getattr(builder, f"Prepend{_KINDS[kind]}")(value)
    return builder.EndVector()


def _describe(
    name: str,
    description: str | None,
    inputs: Sequence[Mapping],
    outputs: Sequence[Mapping],
    labels: int,
) -> bytes:
    """Return the flatbuffer ModelMetadata; numbers are the schema's slots."""
    builder = flatbuffers.Builder()
    # Relative boxes are those of a detector that MediaPipe can open.
    names = _DETECTOR if any(o.get("units") == "relative" for o in outputs) else {}
    ins = [_tensor(builder, i, None) for i in inputs]
    outs = []
    for output in outputs:
        kind = _TENSOR_AXIS_LABELS if output["shape"][-1] == labels else None
        kind = _TENSOR_VALUE_LABELS if names.get(output["name"]) == "category" else kind
        named = dict(output) | {"name": names.get(output["name"], output["name"])}
        outs.append(_tensor(builder, named, kind if labels else None))
    subgraph = _table(
        builder,
        (2, "offset", _vector(builder, "offset", ins)),
        (3, "offset", _vector(builder, "offset", outs)),
    )
    root = _table(
        builder,
        (0, "offset", builder.CreateString(name)),
        (1, "offset", builder.CreateString(description or name)),
        (3, "offset", _vector(builder, "offset", [subgraph])),
        (7, "offset", builder.CreateString("1.0.0")),
    )
    builder.Finish(root, file_identifier=b"M001")
    return bytes(builder.Output())


def _tensor(builder: flatbuffers.Builder, entry: Mapping, labels: int | None) -> int:
    fields = [(0, "offset", builder.CreateString(entry["name"]))]
    if entry.get("layout"):
        height, width = entry["shape"][1:3]
        size = _table(builder, (0, "uint32", width), (1, "uint32", height))
        color = _RGB if entry["color"] == "RGB" else _GRAYSCALE
        content = _table(builder, (0, "uint8", color), (1, "offset", size))
        content = _table(builder, (0, "uint8", _IMAGE_PROPERTIES), (1, "offset", content))
        # An identity, as the file takes raw pixels; without it MediaPipe refuses a float input.
        mean, std = (_vector(builder, "float32", [value]) for value in (0.0, 1.0))
        options = _table(builder, (0, "offset", mean), (1, "offset", std))
        unit = _table(builder, (0, "uint8", _NORMALIZATION_OPTIONS), (1, "offset", options))
        least, most = (_vector(builder, "float32", [value]) for value in entry["range"])
        stats = _table(builder, (0, "offset", most), (1, "offset", least))
        fields += [(3, "offset", content), (4, "offset", _vector(builder, "offset", [unit]))]
        fields += [(5, "offset", stats)]
    elif entry.get("units") == "relative":
        # Ours is top, left, bottom, right; theirs begins with left.
        order = _vector(builder, "uint32", (1, 0, 3, 2))
        properties = _table(
            builder, (0, "offset", order), (1, "uint8", _BOUNDARIES), (2, "uint8", _RATIO)
        )
        content = _table(builder, (0, "uint8", _BOX_PROPERTIES), (1, "offset", properties))
        fields += [(3, "offset", content)]
    else:
        builder.StartObject(0)
        properties = builder.EndObject()
        content = _table(builder, (0, "uint8", _FEATURE_PROPERTIES), (1, "offset", properties))
        fields += [(3, "offset", content)]
    if labels:
        file = builder.CreateString(LABELS_FILE)
        file = _table(builder, (0, "offset", file), (2, "uint8", labels))
        fields += [(6, "offset", _vector(builder, "offset", [file]))]
    return _table(builder, *fields)


def _with_metadata(model: bytes, root, content: bytes) -> bytes:
    """Lay a new root table, with one more buffer and metadata entry, before the whole old file.

    Flatbuffers hold forward distances only, so the old tables stay valid where they are, and the
    new root points into them. A builder counts offsets back from its end, where the old file
    begins: an old table at position p has offset -p.
    """
    buffers = [root.Buffers(i) for i in range(root.BuffersLength())]
    if root.ExternalBuffersLength() or any(b.Offset() > 1 for b in buffers):
        raise ExportError("The TFLite file keeps weights outside its flatbuffer (over 2 GB).")
    kept = [root.Metadata(i) for i in range(root.MetadataLength())]
    kept = [entry for entry in kept if entry.Name() != _BUFFER_NAME.encode()]

    builder = flatbuffers.Builder(len(content) + 4096)
    builder.Prep(16, len(content))
    data = builder.CreateByteVector(content)
    buffer = _table(builder, (0, "offset", data))
    entry = _table(
        builder, (0, "offset", builder.CreateString(_BUFFER_NAME)), (1, "uint32", len(buffers))
    )
    vectors = {
        _BUFFERS: _vector(builder, "offset", [*(-b._tab.Pos for b in buffers), buffer]),
        _METADATA: _vector(builder, "offset", [*(-e._tab.Pos for e in kept), entry]),
    }
    table = root._tab
    slots = (table.Get(flatbuffers.number_types.VOffsetTFlags, _vtable(table)) - 4) // 2
    builder.StartObject(max(slots, _METADATA + 1))
    builder.PrependUint32Slot(0, root.Version(), 0)
    for slot in range(1, max(slots, _METADATA + 1)):
        offset = table.Offset(4 + 2 * slot)
        old = -table.Indirect(table.Pos + offset) if offset else 0
        builder.PrependUOffsetTRelativeSlot(slot, vectors.get(slot, old), 0)
    new_root = builder.EndObject()
    # The weights keep the alignment that they had in the old file, up to a cache line.
    builder.minalign = 64
    builder.Finish(new_root, file_identifier=b"TFL3")
    return bytes(builder.Output()) + model


def _vtable(table) -> int:
    """Return the position of a table's vtable, whose first entry is its size in bytes."""
    return table.Pos - table.Get(flatbuffers.number_types.SOffsetTFlags, table.Pos)
