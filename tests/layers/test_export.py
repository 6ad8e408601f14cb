"""Layers leave as builtin operations, and the files answer like Keras in their real runtimes."""

import keras
import numpy as np
import pytest

from tiffin import layers
from tiffin.export import export, load

BLOCKS = {
    "maxout": lambda x: layers.MaxoutConv2D(4, 3)(x),
    "prelu": lambda x: layers.PReLU(alpha_initializer="random_normal")(x),
    "batch_normalization": lambda x: layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x)),
    "grouped_convolution": lambda x: layers.GroupedConv2D(8, 3, groups=2, strides=2)(x),
    "overlapping_pooling": lambda x: layers.overlapping_max_pooling(
        keras.layers.ReLU()(x), name="pool"
    ),
    "local_response": lambda x: layers.LocalResponseNormalization(3, 1.0, 0.2)(x),
    "inception": lambda x: layers.inception_module(x, [4] * 6, name="a"),
    "inception_average": lambda x: layers.inception_module(
        x, [4] * 6, name="a", third="double_3x3", pool="avg"
    ),
    "inception_reduction": lambda x: layers.inception_module(
        x, (0, 4, 4, 4, 4, 0), name="a", third="double_3x3", stride=2
    ),
    "squeeze_excitation": lambda x: layers.squeeze_excitation(
        keras.layers.Conv2D(4, 3)(x), 2, name="se"
    ),
    "grouped_bottleneck": lambda x: layers.bottleneck_block(
        x, 4, 2, name="b", stride_in="3x3", groups=2, se_reduction=4
    ),
    "factorized_inception": lambda x: layers.factorized_inception(
        x, [[(4, (1, 3)), (4, (3, 1))], [(4, 1), [(4, (1, 3)), (4, (3, 1))]]], name="m"
    ),
    "factorized_inception_mean": lambda x: layers.factorized_inception(
        x, [[("avg",), (4, 1)], [("max", 1)]], name="m"
    ),
    "factorized_inception_zeros": lambda x: layers.factorized_inception(
        x, [[("avg",), (4, 1)], [("max", 1)]], name="m", count_zeros=True
    ),
    "scaled_residual": lambda x: layers.ScaledResidual(0.1)([x, keras.layers.Conv2D(4, 1)(x)]),
    "fire": lambda x: layers.fire(x, 2, 2, 2, name="f", bypass="simple"),
    "dense_block": lambda x: layers.transition(
        layers.dense_block(keras.layers.Conv2D(4, 1)(x), 2, 4, name="d"), 4, name="t"
    ),
    "separable": lambda x: layers.separable_block(
        keras.layers.Conv2D(4, 1)(x), 8, 2, name="1", padding="symmetric"
    ),
    "shuffle": lambda x: layers.shuffle_unit(
        keras.layers.Conv2D(4, 1)(x), 16, 2, groups=2, first_groups=1, name="u"
    ),
    "shuffle_v2": lambda x: layers.shuffle_unit_v2(
        layers.shuffle_unit_v2(keras.layers.Conv2D(4, 1)(x), 8, 2, name="a"), 8, name="b"
    ),
    "sphere_stage": lambda x: layers.sphere_stage(x, 4, 1, name="s"),
    "unit_length": lambda x: keras.layers.UnitNormalization()(keras.layers.Conv2D(4, 3)(x)),
    "l2_normalization": lambda x: layers.L2Normalization(2.0)(keras.layers.Conv2D(4, 3)(x)),
    "reorg": lambda x: layers.Reorg()(keras.layers.Conv2D(4, 1)(x)),
    "darknet": lambda x: layers.darknet_maps(
        x, [(4, 3), "maxpool", (8, 3), "residual", "maxpool 1"], layers.DarknetConvolutions()
    )["stride_2"],
    "identity_shortcut": lambda x: layers.basic_block(x, 12, 2, name="b", shortcut="identity"),
}
# Of operations that others here have, too.
FURTHER = ("inception_average", "inception_reduction", "factorized_inception_mean", "shuffle")
FURTHER += ("factorized_inception_zeros", "identity_shortcut", "unit_length", "darknet", "fire")
# What the same block costs at least; a stray Transpose, Mul or Pad would come on top.
ONNX_OPERATIONS = {
    "batch_normalization": {"Conv"},
    "grouped_convolution": {"Conv"},
    "local_response": {"LRN"},
    "overlapping_pooling": {"Relu", "MaxPool"},
    "squeeze_excitation": {"Conv", "Relu", "Sigmoid", "Mul"},
    "grouped_bottleneck": {"Conv", "Relu", "Sigmoid", "Mul", "Add"},
    "fire": {"Conv", "Relu", "Concat", "Add"},
    "sphere_stage": {"Conv", "Relu", "Neg", "BatchNormalization", "Add"},
    "inception": {"Conv", "Relu", "MaxPool", "Concat"},
    "inception_average": {"Conv", "Relu", "AveragePool", "Concat"},
    "inception_reduction": {"Conv", "Relu", "MaxPool", "Concat"},
    "factorized_inception": {"Conv", "Relu", "Concat"},
    "factorized_inception_mean": {"Conv", "Relu", "AveragePool", "MaxPool", "Concat"},
    "scaled_residual": {"Conv", "Add"},
    "dense_block": {"BatchNormalization", "Conv", "Relu", "Concat", "AveragePool"},
    "separable": {"Conv", "Clip"},
    "shuffle_v2": {"Conv", "Relu", "Split", "Unsqueeze", "Concat"},
}


def model_of(block):
    image = keras.Input((8, 8, 4), name="features")
    x = keras.layers.GlobalAveragePooling2D()(BLOCKS[block](image))
    model = keras.Model(image, keras.layers.Dense(3, name="logits")(x), name=block)
    random = np.random.default_rng(5)
    model.set_weights([random.uniform(0.2, 1, w.shape) - 0.5 * (w.ndim > 1) for w in model.weights])
    return model


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="converters read TensorFlow")
@pytest.mark.parametrize(
    "block", [pytest.param(x, marks=pytest.mark.full if x in FURTHER else ()) for x in BLOCKS]
)
def test_layers_leave(block, tmp_path):
    import onnx

    model = model_of(block)
    manifest = export(model, tmp_path, precisions=("fp32",), logits=True, say=lambda _: None)
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 4)).astype("float32")
    for entry in manifest["files"]:
        (y,) = load(tmp_path / entry["file"])({"features": x}).values()
        np.testing.assert_allclose(y, model.predict(x, verbose=0), atol=1e-4)
    assert {entry["format"] for entry in manifest["files"]} == {"onnx", "tflite"}
    graph = onnx.load(tmp_path / f"{block}_fp32.onnx").graph
    operations = {node.op_type for node in graph.node}
    assert operations.isdisjoint({"If", "Loop"})
    # One remains only before an activation, as no convolution before it can take it in, and as
    # the slopes of PReLU, which onnxruntime runs faster so than by its own operator.
    assert "BatchNormalization" not in operations or block in ("dense_block", "sphere_stage")
    if block in ONNX_OPERATIONS:
        assert (
            ONNX_OPERATIONS[block]
            <= operations
            <= ONNX_OPERATIONS[block]
            | {*("Transpose", "GlobalAveragePool", "Squeeze", "Flatten", "Reshape", "Gemm")}
        )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="converters read TensorFlow")
@pytest.mark.parametrize(("block", "transposes"), [("shuffle", 2), ("shuffle_v2", 1)])
def test_shuffles_cost_no_stray_transposes(block, transposes, tmp_path):
    """One takes the picture to channels first; one more shuffles where there is a shuffle."""
    import onnx

    export(
        model_of(block),
        tmp_path,
        formats=("onnx",),
        precisions=("fp32",),
        logits=True,
        say=lambda _: None,
    )
    graph = onnx.load(tmp_path / f"{block}_fp32.onnx").graph
    assert [node.op_type for node in graph.node].count("Transpose") == transposes
