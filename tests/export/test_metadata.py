"""The metadata tables, read back by the schemas' own generated code."""

import io
import json
import zipfile

import numpy as np
import onnx
import pytest
from ai_edge_litert.schema_py_generated import Model, ModelT

from tiffin.export import metadata
from tiffin.export.errors import ExportError, InputError
from tiffin.export.runtime import load

LABELS = ["red", "grün", "blue"]
IMAGE = {
    "name": "image",
    "shape": ["batch", 16, 24, 3],
    "dtype": "float32",
    "layout": "NHWC",
    "color": "RGB",
    "range": [0, 255],
}
# Named against the alphabet, so that the signature's order differs from the manifest's.
SCORES = {"name": "probabilities", "shape": ["batch", 3], "dtype": "float32"}
MEANS = {"name": "means", "shape": ["batch", 1], "dtype": "float32"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> bytes:
    import tensorflow as tf

    weights = tf.Variable(np.random.default_rng(0).normal(size=(3, 3)).astype("float32"))

    def call(image):
        channels = tf.reduce_mean(image, (1, 2))
        means = tf.reduce_mean(channels, 1, keepdims=True)
        return {"probabilities": tf.nn.softmax(channels @ weights), "means": means}

    module = tf.Module()
    module.weights = weights
    module.call = tf.function(call, input_signature=[tf.TensorSpec((1, 16, 24, 3), name="image")])
    folder = str(tmp_path_factory.mktemp("saved"))
    tf.saved_model.save(module, folder, module.call.get_concrete_function())
    return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


def described(plain: bytes, **changes) -> bytes:
    options = {"name": "colours", "description": "Says a colour.", "labels": LABELS}
    options |= {"inputs": [IMAGE], "outputs": [SCORES, MEANS]}
    return metadata.add_tflite(plain, **options | changes)


def test_the_generated_schema_reads_every_field(plain):
    schema = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")
    model = ModelT.InitFromObj(Model.GetRootAs(described(plain)))
    (buffer,) = [m.buffer for m in model.metadata if m.name == b"TFLITE_METADATA"]
    content = bytes(model.buffers[buffer].data)
    assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(content, 0)
    read = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(content))
    assert (read.name, read.description) == (b"colours", b"Says a colour.")
    (graph,) = read.subgraphMetadata
    (image,) = graph.inputTensorMetadata
    assert image.name == b"image"
    assert image.content.contentPropertiesType == schema.ContentProperties.ImageProperties
    properties = image.content.contentProperties
    assert properties.colorSpace == schema.ColorSpaceType.RGB
    assert (properties.defaultSize.height, properties.defaultSize.width) == (16, 24)
    (unit,) = image.processUnits
    assert unit.optionsType == schema.ProcessUnitOptions.NormalizationOptions
    assert (list(unit.options.mean), list(unit.options.std)) == ([0], [1])
    assert (list(image.stats.min), list(image.stats.max)) == ([0], [255])
    by_name = {t.name: t for t in graph.outputTensorMetadata}
    (labels,) = by_name[b"probabilities"].associatedFiles
    assert labels.name == b"labels.txt"
    assert labels.type == schema.AssociatedFileType.TENSOR_AXIS_LABELS
    assert by_name[b"means"].associatedFiles is None


def test_grey_pictures_are_said_to_be_grey(plain):
    schema = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")
    grey = IMAGE | {"shape": ["batch", 16, 24, 1], "color": "grey"}
    model = ModelT.InitFromObj(Model.GetRootAs(described(plain, inputs=[grey])))
    content = bytes(model.buffers[model.metadata[-1].buffer].data)
    read = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(content))
    (image,) = read.subgraphMetadata[0].inputTensorMetadata
    assert image.content.contentProperties.colorSpace == schema.ColorSpaceType.GRAYSCALE


def test_metadata_follow_the_order_of_the_graph(plain):
    """By position: the widths of the graph's outputs must be those that the metadata name."""
    schema = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")
    for outputs in ([SCORES, MEANS], [MEANS, SCORES]):
        root = Model.GetRootAs(described(plain, outputs=outputs))
        graph = root.Subgraphs(0)
        widths = [graph.Tensors(int(i)).Shape(1) for i in graph.OutputsAsNumpy()]
        model = ModelT.InitFromObj(root)
        buffer = model.metadata[-1].buffer
        read = schema.ModelMetadata.GetRootAs(bytes(model.buffers[buffer].data))
        names = [read.SubgraphMetadata(0).OutputTensorMetadata(i).Name().decode() for i in range(2)]
        assert [{3: "probabilities", 1: "means"}[w] for w in widths] == names


def test_nothing_else_changes(plain, tmp_path):
    old = ModelT.InitFromObj(Model.GetRootAs(plain))
    new = ModelT.InitFromObj(Model.GetRootAs(described(plain)))
    assert new.version == old.version
    assert new.description == old.description
    assert [m.name for m in new.metadata[:-1]] == [m.name for m in old.metadata]
    assert len(new.buffers) == len(old.buffers) + 1
    for a, b in zip(old.buffers, new.buffers, strict=False):
        np.testing.assert_array_equal(a.data, b.data)
    (tmp_path / "plain.tflite").write_bytes(plain)
    (tmp_path / "new.tflite").write_bytes(described(plain))
    image = np.random.default_rng(1).uniform(0, 255, (2, 16, 24, 3)).astype("float32")
    before, after = (load(tmp_path / f"{n}.tflite")(image) for n in ("plain", "new"))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_weights_keep_their_alignment(plain):
    def places(model):
        root = Model.GetRootAs(model)
        starts = {}
        for i in range(root.BuffersLength()):
            if root.Buffers(i).DataLength():
                table = root.Buffers(i)._tab
                starts[i] = table.Vector(table.Offset(4))
        return starts

    old, new = places(plain), places(described(plain))
    (shift,) = {new[i] - old[i] for i in old}
    assert shift % 64 == 0
    assert new[max(new)] % 16 == 0  # the metadata's own, read in place by clients


def test_metadata_are_replaced_not_piled_up(plain):
    twice = described(described(plain), name="again")
    names = [m.name for m in ModelT.InitFromObj(Model.GetRootAs(twice)).metadata]
    assert names.count(b"TFLITE_METADATA") == 1
    with zipfile.ZipFile(io.BytesIO(twice)) as archive:
        assert archive.namelist() == ["labels.txt"]


def test_labels_are_read_back(plain, tmp_path):
    (tmp_path / "a.tflite").write_bytes(described(plain))
    (tmp_path / "b.tflite").write_bytes(plain)
    assert metadata.read_labels(tmp_path / "a.tflite") == LABELS
    assert metadata.read_labels(tmp_path / "b.tflite") is None


def test_names_must_agree(plain):
    with pytest.raises(ExportError, match="must agree"):
        described(plain, outputs=[SCORES, MEANS | {"name": "average"}])


@pytest.mark.parametrize("label", ["two\nlines", "", " ", "end\n", "line\u2028separator"])
def test_labels_are_one_line_each(plain, label):
    with pytest.raises(InputError, match="Label 1 is"):
        described(plain, labels=["red", label, "blue"])


def test_onnx_properties(tmp_path):
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["batch", 3]) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph)
    said = metadata.preprocessing([IMAGE])
    metadata.add_onnx(
        model, name="n", description="d", labels=LABELS, preprocessing=said, outputs=[SCORES]
    )
    onnx.save(model, tmp_path / "m.onnx")
    read = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(read["labels"]) == LABELS
    assert "16x24" in read["preprocessing"] and "0-255" in read["preprocessing"]
    assert (read["name"], read["description"]) == ("n", "d")
    assert metadata.read_labels(tmp_path / "m.onnx") == LABELS
