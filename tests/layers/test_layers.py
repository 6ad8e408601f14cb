"""Every layer against torch's formulas or NumPy in float64; runs on whatever backend Keras has."""

import keras
import numpy as np
import pytest
import torch
from keras import ops
from numerics import RANDOM, gradients, normal, values

from tiffin import layers


def torch_conv(x, kernel, bias, groups=1, stride=1, padding=0):
    """Convolve NHWC by torch in float64."""
    x, kernel = (torch.from_numpy(a).double() for a in (x, kernel))
    y = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2),
        kernel.permute(3, 2, 0, 1),
        torch.from_numpy(bias).double(),
        stride=stride,
        padding=padding,
        groups=groups,
    )
    return y.permute(0, 2, 3, 1).numpy()


def test_maxout_is_the_largest_affine_map():
    layer = layers.Maxout(3, 4)
    x = normal(5, 7)
    layer.build(x.shape)
    kernel, bias = normal(7, 12), normal(12)
    layer.set_weights([kernel, bias])
    maps = [x.astype("float64") @ kernel[:, i : i + 3] + bias[i : i + 3] for i in (0, 3, 6, 9)]
    np.testing.assert_allclose(values(layer(x)), np.max(maps, axis=0), atol=1e-5)


def test_maxout_of_two_opposite_maps_is_the_absolute_value():
    layer = layers.Maxout(4, 2, use_bias=False)
    x = normal(6, 4)
    layer.build(x.shape)
    layer.set_weights([np.hstack([np.eye(4), -np.eye(4)])])
    np.testing.assert_allclose(values(layer(x)), np.abs(x), atol=1e-6)


def test_maxout_convolution():
    layer = layers.MaxoutConv2D(3, 3, 2, strides=2)
    x, kernel, bias = normal(2, 9, 9, 4), normal(3, 3, 4, 6), normal(6)
    layer.build(x.shape)
    layer.set_weights([kernel, bias])
    y = torch_conv(x, kernel, bias, stride=2)
    np.testing.assert_allclose(values(layer(x)), np.maximum(y[..., :3], y[..., 3:]), atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 5), (4, 6, 5), (2, 4, 4, 5), (2, 3, 3, 3, 5)])
def test_prelu_per_channel_is_torchs(shape):
    layer, reference = layers.PReLU(), torch.nn.PReLU(5)
    x = normal(*shape)
    layer.build(shape)
    assert np.all(values(layer.alpha) == 0.25) and layer.alpha.shape[-1] == layer.count_params()
    alpha = normal(5)
    layer.set_weights([alpha.reshape(layer.alpha.shape)])
    reference.weight.data = torch.from_numpy(alpha)
    y = reference(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1).detach().numpy()
    np.testing.assert_allclose(values(layer(x)), y, atol=1e-6)


def test_prelu_shares_axes():
    x = normal(2, 4, 6, 5)
    sizes = {None: 5, (): 120, (1, 2, 3): 1, (1, -1): 6}
    for axes, count in sizes.items():
        layer = layers.PReLU(axes)
        layer.build(x.shape)
        assert layer.count_params() == count
        np.testing.assert_allclose(values(layer(x)), np.where(x > 0, x, x * 0.25), atol=1e-6)


@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_normalization_keeps_torchs_moving_statistics(axis):
    layer = layers.BatchNormalization(axis=axis, momentum=0.7, epsilon=1e-3)
    reference = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)
    for _ in range(3):
        x = normal(2, 4, 3, 4) * 3 + 1
        y = values(layer(x, training=True))
        moved = torch.from_numpy(x).movedim(axis, 1)
        wanted = reference(moved).movedim(1, axis).detach().numpy()
        np.testing.assert_allclose(y, wanted, atol=1e-5)
    np.testing.assert_allclose(values(layer.moving_mean), reference.running_mean, atol=1e-6)
    np.testing.assert_allclose(values(layer.moving_variance), reference.running_var, rtol=1e-5)
    wanted = reference.eval()(moved).movedim(1, axis).detach().numpy()
    np.testing.assert_allclose(values(layer(x, training=False)), wanted, atol=1e-5)


def test_batch_normalization_differs_from_keras_by_the_papers_factor():
    ours = layers.BatchNormalization(momentum=0.0)
    theirs = keras.layers.BatchNormalization(momentum=0.0)
    x = normal(5, 3)
    np.testing.assert_allclose(
        values(ours(x, training=True)), values(theirs(x, training=True)), atol=1e-6
    )
    ratio = values(ours.moving_variance) / values(theirs.moving_variance)
    np.testing.assert_allclose(ratio, 5 / 4, rtol=1e-5)


def test_batch_normalization_counts_unmasked_values():
    layer = layers.BatchNormalization(momentum=0.0, epsilon=1e-6)
    x = normal(3, 4, 2)
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], bool)
    layer(x, training=True, mask=mask)
    np.testing.assert_allclose(
        values(layer.moving_variance), x[mask].astype("float64").var(0, ddof=1), rtol=1e-3
    )


def test_batch_normalization_of_single_values_and_frozen():
    layer = layers.BatchNormalization(momentum=0.5)
    layer(normal(1, 3), training=True)
    np.testing.assert_allclose(values(layer.moving_variance), 0.5, rtol=1e-6)
    layer.trainable = False
    layer(normal(8, 3), training=True)
    np.testing.assert_allclose(values(layer.moving_variance), 0.5, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (3, 2, 4)], ids=["vector", "picture"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_batch_normalization_trains(policy, shape):
    image = keras.Input(shape)
    x = layers.BatchNormalization(momentum=0.0, dtype=policy)(image)
    x = keras.layers.Flatten()(x)
    model = keras.Model(image, keras.layers.Dense(1, dtype="float32")(x))
    model.compile("sgd", "mse")
    x = normal(16, *shape) * 2 + 1
    model.fit(x, normal(16, 1), batch_size=16, epochs=1, verbose=0, shuffle=False)
    rounding = 1e-4 if policy == "float32" else 2e-2
    variance = values(model.layers[1].moving_variance)
    wanted = x.reshape(-1, 4).astype("float64").var(0, ddof=1)
    np.testing.assert_allclose(variance, wanted, rtol=rounding)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalization_has_torchs_gradient(affine):
    x, target = normal(2, 3, 5, 4) * 2 + 1, normal(2, 3, 5, 4)
    layer = layers.BatchNormalization(epsilon=1e-2, scale=affine, center=affine)
    layer.build(x.shape)
    weight, bias = (normal(4), normal(4)) if affine else (np.ones(4), np.zeros(4))
    layer.set_weights([weight, bias, np.zeros(4), np.ones(4)][0 if affine else 2 :])
    (found,) = gradients(lambda x: ops.sum(ops.multiply(layer(x, training=True), target)), x)
    double = torch.from_numpy(x).double().movedim(-1, 1).requires_grad_()
    weight, bias, target = (torch.from_numpy(a).double() for a in (weight, bias, target))
    y = torch.nn.functional.batch_norm(double, None, None, weight, bias, training=True, eps=1e-2)
    (y.movedim(1, -1) * target).sum().backward()
    np.testing.assert_allclose(found, double.grad.movedim(1, -1), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"dilation_rate": 2}])
def test_grouped_convolution_is_torchs(options):
    layer = layers.GroupedConv2D(12, 3, groups=4, **options)
    x, kernel, bias = normal(2, 9, 9, 8), normal(3, 3, 2, 12), normal(12)
    layer.build(x.shape)
    layer.set_weights([kernel, bias])
    wide = np.zeros((5, 5, 2, 12), "float32")
    if "dilation_rate" in options:
        wide[::2, ::2] = kernel
        kernel = wide
    y = torch_conv(x, kernel, bias, groups=4, stride=options.get("strides", 1))
    np.testing.assert_allclose(values(layer(x)), y, atol=1e-4)
    assert layer.compute_output_shape(x.shape) == y.shape


def test_grouped_convolution_has_torchs_gradient():
    layer = layers.GroupedConv2D(12, 3, 2, groups=4, padding="valid")
    x, kernel, target = normal(2, 9, 9, 8), normal(3, 3, 2, 12), normal(2, 4, 4, 12)

    def product(x, kernel):
        return ops.sum(ops.multiply(layer.convolution_op(x, kernel), target))

    found = gradients(product, x, kernel)
    doubles = [torch.from_numpy(a).double().requires_grad_() for a in (x, kernel)]
    y = torch.nn.functional.conv2d(
        doubles[0].movedim(-1, 1), doubles[1].permute(3, 2, 0, 1), stride=2, groups=4
    )
    (y.movedim(1, -1) * torch.from_numpy(target)).sum().backward()
    for gradient, wanted in zip(found, doubles, strict=True):
        np.testing.assert_allclose(gradient, wanted.grad, atol=1e-4)


def test_grouped_convolution_trains():
    image = keras.Input((6, 6, 8))
    x = layers.GroupedConv2D(8, 3, groups=4, padding="same", activation="relu")(image)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    model.compile("adam", "mse")
    before = model.get_weights()
    model.fit(normal(8, 6, 6, 8), normal(8, 8), verbose=0)
    assert all(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_image_normalization(dtype):
    mean, std = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
    pixels = RANDOM.integers(0, 256, (2, 3, 4, 3)).astype(dtype)
    layer = layers.ImageNormalization(mean, std)
    y = values(layer(pixels))
    np.testing.assert_allclose(y, (pixels - np.array(mean)) / np.array(std), atol=1e-5)
    assert layer.weights == []
    half = layers.ImageNormalization(mean, std, dtype="mixed_bfloat16")(pixels)
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    np.testing.assert_allclose(values(half), y, atol=2**-7)


@pytest.mark.parametrize(
    ("n", "k", "alpha", "beta", "channels"),
    [(5, 2.0, 1e-4, 0.75, 16), (3, 1.0, 0.3, 0.5, 4), (9, 1.0, 0.5, 0.75, 3), (1, 0.5, 1.0, 1, 2)],
)
def test_local_response_normalization_is_torchs_with_alpha_times_n(n, k, alpha, beta, channels):
    layer = layers.LocalResponseNormalization(n, k, alpha, beta)
    reference = torch.nn.LocalResponseNorm(n, alpha=alpha * n, beta=beta, k=k)
    x = normal(2, 5, 4, channels) * 10
    y = reference(torch.from_numpy(x).double().movedim(-1, 1)).movedim(1, -1).numpy()
    np.testing.assert_allclose(values(layer(x)), y, rtol=2e-5)
    double = layers.LocalResponseNormalization(n, k, alpha, beta, dtype="float64")
    if keras.backend.backend() != "jax":
        exact = ops.convert_to_numpy(double(x.astype("float64")))
        np.testing.assert_allclose(exact, y, rtol=1e-12)
    half = layers.LocalResponseNormalization(n, k, alpha, beta, dtype="mixed_float16")(x * 100)
    assert keras.backend.standardize_dtype(half.dtype) == "float16"
    assert np.isfinite(values(half)).all()


def test_local_response_normalization_trains():
    image = keras.Input((5, 4, 6))
    x = keras.layers.Conv2D(6, 1, use_bias=False)(image)
    x = layers.LocalResponseNormalization(3, 1.0, 0.2)(x)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    x, y, kernel = normal(4, 5, 4, 6), normal(4, 6), normal(1, 1, 6, 6)
    model.set_weights([kernel])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.train_on_batch(x, y)
    weight = torch.from_numpy(kernel[0, 0]).requires_grad_()
    mixed = (torch.from_numpy(x) @ weight).movedim(-1, 1)
    out = torch.nn.functional.local_response_norm(mixed, 3, alpha=0.6, k=1.0).mean((2, 3))
    torch.nn.functional.mse_loss(out, torch.from_numpy(y)).backward()
    np.testing.assert_allclose(
        model.get_weights()[0][0, 0], kernel[0, 0] - weight.grad.numpy(), atol=1e-5
    )


@pytest.mark.parametrize("size", [(7, 9), (8, 6), (7, 8), (8, 5), (2, 2), (3, 2)])
def test_overlapping_max_pooling_is_torchs_ceil_mode(size):
    """Whether the layer knows the size or not."""
    x = np.abs(normal(2, *size, 3))
    theirs = torch.nn.functional.max_pool2d(
        torch.from_numpy(x).permute(0, 3, 1, 2), 3, 2, ceil_mode=True
    )
    for known in (size, (None, None)):
        image = keras.Input((*known, 3))
        model = keras.Model(image, layers.overlapping_max_pooling(image, name="pool"))
        np.testing.assert_array_equal(values(model(x)), theirs.permute(0, 2, 3, 1).numpy())
    assert [layer.name for layer in model.layers[1:]] == ["pool_pad", "pool"]


def test_hidden_layers():
    image = keras.Input((3, 2, 4))
    x = layers.hidden_layers(image, 5, 0.5, names=("fc1", "fc2", "fc3"))
    model = keras.Model(image, x)
    assert [layer.name for layer in model.layers[1:]] == [
        *("flatten", "fc1", "fc1_dropout", "fc2", "fc2_dropout", "fc3")
    ]
    wanted = pixels = normal(2, 3, 2, 4)
    wanted = wanted.reshape(2, -1).astype("float64")
    for name in ("fc1", "fc2", "fc3"):
        kernel, bias = model.get_layer(name).get_weights()
        wanted = np.maximum(wanted @ kernel + bias, 0)
    np.testing.assert_allclose(values(model(pixels)), wanted, atol=1e-5)


def test_zero_padded_shortcut():
    x = normal(2, 5, 6, 3)
    layer = layers.ZeroPaddedShortcut(7, 2)
    y = values(layer(x))
    assert y.shape == layer.compute_output_shape(x.shape) == (2, 3, 3, 7)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    assert not y[..., 3:].any()


@pytest.mark.parametrize(
    ("third", "pool", "count_zeros", "stride", "filters"),
    [
        ("5x5", "max", False, 1, (2, 3, 4, 5, 3, 2)),
        ("3x3", "avg", True, 1, (2, 3, 4, 5, 3, 2)),
        ("double_3x3", "avg", False, 1, (2, 3, 4, 5, 3, 2)),
        ("double_3x3", "max", False, 2, (0, 3, 4, 5, 3, 0)),
    ],
)
def test_inception_module_is_torchs(third, pool, count_zeros, stride, filters):
    image = keras.Input((6, 8, 4))
    conv = {"normalize": False, "use_bias": True, "bias": 0.2}
    options = {"third": third, "pool": pool, "count_zeros": count_zeros, "stride": stride}
    model = keras.Model(
        image, layers.inception_module(image, filters, name="module", **options, **conv)
    )
    for layer in model.layers:
        if layer.weights:
            np.testing.assert_allclose(values(layer.bias), 0.2)
            layer.set_weights([normal(*w.shape) for w in layer.weights])
    x = normal(2, 6, 8, 4)

    def convolved(x, name, stride=1):
        kernel, bias = (values(w) for w in model.get_layer(f"module_{name}_conv").weights)
        y = torch_conv(x, kernel, bias, stride=stride, padding=len(kernel) // 2)
        return np.maximum(y, 0)

    prefix = "double_3x3" if third == "double_3x3" else "5x5"
    three = convolved(convolved(x, "3x3_reduce"), "3x3", stride)
    wide = convolved(x, f"{prefix}_reduce")
    if third == "double_3x3":
        wide = convolved(convolved(wide, f"{prefix}_1"), f"{prefix}_2", stride)
    else:
        wide = convolved(wide, prefix)
        assert model.get_layer("module_5x5_conv").kernel_size == (int(third[0]),) * 2
    pooled = torch.from_numpy(x).permute(0, 3, 1, 2).double()
    if pool == "avg":
        pooled = torch.nn.functional.avg_pool2d(pooled, 3, 1, 1, count_include_pad=count_zeros)
    elif stride == 2:
        pooled = torch.nn.functional.max_pool2d(pooled, 3, 2, ceil_mode=True)
    else:
        pooled = torch.nn.functional.max_pool2d(pooled, 3, 1, 1)
    branches = [three, wide, pooled.permute(0, 2, 3, 1).numpy()]
    if stride == 1:
        branches = [convolved(x, "1x1"), three, wide, convolved(branches[2], "pool_proj")]
    np.testing.assert_allclose(values(model(x)), np.concatenate(branches, -1), rtol=1e-4, atol=1e-4)


def randomised(x, y):
    """Return the model between two tensors with random weights, and those by layer name."""
    model = keras.Model(x, y)
    for layer in model.layers:
        shapes = [w.shape for w in layer.weights]
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([normal(*shapes[0]) ** 2 + 0.5 * (i == 3) for i in range(4)])
        else:
            layer.set_weights([normal(*shape) for shape in shapes])
    return model, {layer.name: layer.get_weights() for layer in model.layers}


def pre_activated(x, weights, name, padding, epsilon):
    """Apply BN, ReLU and a convolution without bias by torch in float64."""
    bn = [torch.from_numpy(w).double() for w in weights[f"{name}_bn"]]
    x = torch.from_numpy(np.asarray(x)).double().movedim(-1, 1)
    x = torch.nn.functional.batch_norm(x, bn[2], bn[3], bn[0], bn[1], eps=epsilon).relu()
    (kernel,) = weights[f"{name}_conv"]
    x = x.movedim(1, -1).numpy()
    return torch_conv(x, kernel, np.zeros(kernel.shape[-1]), padding=padding)


def test_sphere_stage_is_torchs():
    x = keras.Input((5, 6, 3))
    model, weights = randomised(x, layers.sphere_stage(x, 4, 2, name="s"))
    images = normal(2, 5, 6, 3)

    def conv(x, i, **options):
        kernel, *bias = weights[f"s_{i}"]
        assert len(bias) == (i == 1)
        y = torch_conv(x, kernel, bias[0] if bias else np.zeros(4), padding=1, **options)
        return np.where(y > 0, y, y * weights[f"s_prelu{i}"][0])

    wanted = conv(images, 1, stride=2)
    for i in (2, 4):
        wanted = wanted + conv(conv(wanted, i), i + 1)
    assert wanted.shape == (2, 3, 3, 4)
    found = values(model(images))
    np.testing.assert_allclose(found / wanted.std(), wanted / wanted.std(), atol=1e-5)


def test_dense_block_is_torchs():
    x, epsilon = keras.Input((5, 6, 4)), 1e-2
    model, weights = randomised(
        x, layers.dense_block(x, 2, 3, name="d", drop_rate=0.5, epsilon=epsilon)
    )
    images = wanted = normal(2, 5, 6, 4)
    for block in ("d_block1", "d_block2"):
        named = {**weights, "a_bn": weights[f"{block}_0_bn"], "a_conv": weights[f"{block}_1_conv"]}
        named |= {"b_bn": weights[f"{block}_1_bn"], "b_conv": weights[f"{block}_2_conv"]}
        new = pre_activated(wanted, named, "a", 0, epsilon)
        assert new.shape[-1] == 12
        new = pre_activated(new, named, "b", 1, epsilon)
        wanted = np.concatenate([wanted, new], axis=-1)
    assert wanted.shape == (2, 5, 6, 10)
    found = values(model(images))
    np.testing.assert_allclose(found / wanted.std(), wanted / wanted.std(), atol=1e-5)


def test_dense_layer_without_bottleneck():
    x = keras.Input((5, 6, 4))
    model, weights = randomised(x, layers.dense_layer(x, 3, name="d", bottleneck=False))
    images = normal(2, 5, 6, 4)
    weights |= {"d_bn": weights["d_0_bn"], "d_conv": weights["d_2_conv"]}
    wanted = np.concatenate([images, pre_activated(images, weights, "d", 1, 1e-5)], axis=-1)
    np.testing.assert_allclose(values(model(images)), wanted, rtol=1e-4, atol=1e-4)


def test_transition_drops_an_odd_last_row():
    x = keras.Input((5, 6, 4))
    model, weights = randomised(x, layers.transition(x, 3, name="t"))
    images = normal(2, 5, 6, 4)
    wanted = pre_activated(images, weights, "t", 0, 1e-5)[:, :4].reshape(2, 2, 2, 3, 2, 3)
    np.testing.assert_allclose(values(model(images)), wanted.mean((2, 4)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bypass", [None, "simple", "complex"])
def test_fire_is_torchs(bypass):
    x = keras.Input((5, 6, 8))
    model, weights = randomised(x, layers.fire(x, 3, 3, 5, name="f", bypass=bypass))
    images = normal(2, 5, 6, 8)
    squeezed = np.maximum(torch_conv(images, *weights["f_squeeze1x1"]), 0)
    wide = [torch_conv(squeezed, *weights[f"f_expand{n}x{n}"], padding=n // 2) for n in (1, 3)]
    wanted = np.maximum(np.concatenate(wide, axis=-1), 0)
    if bypass:
        wanted += torch_conv(images, *weights["f_bypass"]) if bypass == "complex" else images
    np.testing.assert_allclose(values(model(images)), wanted, rtol=1e-4, atol=1e-4)


def test_inception_module_strides_alike_on_odd_sides():
    image = keras.Input((7, 5, 4))
    x = layers.inception_module(
        image, (0, 2, 2, 2, 2, 0), name="module", third="double_3x3", stride=2
    )
    assert x.shape == (None, 4, 3, 8)


def test_long_kernels_that_stride_are_padded_on_both_sides():
    image = keras.Input((7, 6, 4))
    conv = {"normalize": False, "use_bias": True, "bias": 0.1}
    model = keras.Model(image, layers.conv_relu(image, 3, (1, 3), 2, name="a", **conv))
    kernel, bias = (values(w) for w in model.get_layer("a_conv").weights)
    x = normal(2, 7, 6, 4)
    wanted = torch_conv(x, kernel, bias, stride=2, padding=(0, 1))
    np.testing.assert_allclose(values(model(x)), np.maximum(wanted, 0), atol=1e-5)


def test_squeeze_excitation_is_the_papers_formula():
    image = keras.Input((5, 4, 8))
    model = keras.Model(image, layers.squeeze_excitation(image, 4, name="se"))
    model.set_weights([normal(*w.shape) for w in model.weights])
    x = normal(3, 5, 4, 8)
    reduce, expand = (
        [w.astype("float64") for w in model.get_layer(name).get_weights()]
        for name in ("se_reduce", "se_expand")
    )
    assert reduce[0].shape == (1, 1, 8, 2)
    squeezed = x.astype("float64").mean((1, 2))
    hidden = np.maximum(squeezed @ reduce[0][0, 0] + reduce[1], 0)
    weights = 1 / (1 + np.exp(-(hidden @ expand[0][0, 0] + expand[1])))
    np.testing.assert_allclose(values(model(x)), x * weights[:, None, None], atol=1e-5)


def test_grouped_bottleneck_is_torchs():
    image = keras.Input((9, 9, 8))
    options = {"stride_in": "3x3", "widths": (6, 12), "groups": 3, "shortcut_kernel": 3}
    block = layers.bottleneck_block(image, 4, 2, name="b", se_reduction=4, **options)
    model = keras.Model(image, block)
    # Batch normalisation as it starts: mean 0, variance 1.
    kernels = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([normal(*w.shape) * 0.3 for w in layer.weights])
            kernels[layer.name.removeprefix("b_").removesuffix("_conv")] = layer.get_weights()

    def conv(x, name, **options):
        kernel, *bias = kernels[name]
        zero = np.zeros(kernel.shape[-1], "float32")
        return torch_conv(x, kernel, bias[0] if bias else zero, **options)

    def bn(x):
        return x / np.sqrt(1 + 1e-5)

    x = normal(2, 9, 9, 8)
    y = np.maximum(bn(conv(x, "1")), 0)
    y = np.maximum(bn(conv(y, "2", groups=3, stride=2, padding=1)), 0)
    y = bn(conv(y, "3"))
    gate = conv(np.maximum(conv(y.mean((1, 2), keepdims=True), "se_reduce"), 0), "se_expand")
    skip = bn(conv(x, "0", stride=2, padding=1))
    wanted = np.maximum(skip + y / (1 + np.exp(-gate)), 0)
    np.testing.assert_allclose(values(model(x)), wanted, atol=1e-4)


@pytest.mark.parametrize("size", [8, 9])
def test_padded_max_pooling_is_torchs(size):
    x = np.abs(normal(2, size, size + 1, 3))
    image = keras.Input(x.shape[1:])
    model = keras.Model(image, layers.padded_max_pooling(image, name="pool1"))
    y = torch.nn.functional.max_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), 3, 2, 1)
    np.testing.assert_allclose(values(model(x)), y.permute(0, 2, 3, 1).numpy())


LAYERS = {
    "maxout": (lambda: layers.Maxout(3, 2, kernel_regularizer="l2"), (4, 5)),
    "maxout_conv": (lambda: layers.MaxoutConv2D(3, 3, padding="same", strides=2), (7, 6, 2)),
    "prelu": (lambda: layers.PReLU((1,), alpha_initializer="ones"), (4, 5)),
    "batch_normalization": (lambda: layers.BatchNormalization(1, 0.8, 1e-4), (4, 5)),
    "grouped_convolution": (lambda: layers.GroupedConv2D(4, 3, groups=2), (5, 5, 6)),
    "image_normalization": (lambda: layers.ImageNormalization((1, 2), (3, 4)), (5, 5, 2)),
    "local_response": (lambda: layers.LocalResponseNormalization(3, 1, 0.1, 0.5), (5, 5, 4)),
    "shortcut": (lambda: layers.ZeroPaddedShortcut(4, 2), (5, 5, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_survive_a_keras_file(name, tmp_path):
    make, shape = LAYERS[name]
    image = keras.Input(shape)
    model = keras.Model(image, make()(image))
    model.set_weights([np.abs(normal(*w.shape)) for w in model.weights])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = normal(2, *shape)
    np.testing.assert_array_equal(values(model(x)), values(again(x)))
    assert again.layers[1].get_config() == model.layers[1].get_config()
    assert tuple(again.output_shape[1:]) == values(again(x)).shape[1:]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: layers.Maxout(0), "units=0"),
        (lambda: layers.Maxout(3, 0), "pieces=0"),
        (lambda: layers.MaxoutConv2D(3, 3, 1.5), "pieces=1.5"),
        (lambda: layers.PReLU((0,)).build((2, 3, 4)), "axis 0"),
        (lambda: layers.PReLU((3,)).build((2, 3, 4)), "axis 3"),
        (lambda: layers.PReLU(()).build((None, None, 4)), "unknown length"),
        (lambda: layers.BatchNormalization(momentum=2), "momentum=2"),
        (lambda: layers.BatchNormalization(renorm=True), "renorm"),
        (lambda: layers.GroupedConv2D(4, 3, groups=3), "groups"),
        (lambda: layers.GroupedConv2D(4, 3, data_format="channels_first"), "channels_last"),
        (lambda: layers.ImageNormalization(0, 0), "positive"),
        (lambda: layers.ImageNormalization((1, 2), (1, 2, 3)), "as many"),
        (lambda: layers.ImageNormalization((1, 2), 1).build((None, 4, 4, 3)), "channels"),
        (lambda: layers.ImageNormalization(float("nan"), 1), "finite"),
        (
            lambda: layers.hidden_layers(keras.Input((None, 4, 2)), 3, 0.0, names=("fc1",)),
            "include_top=False",
        ),
        (lambda: layers.LocalResponseNormalization(4), "n=4"),
        (lambda: layers.LocalResponseNormalization(5, 0), "k=0"),
        (lambda: layers.LocalResponseNormalization(5, alpha=-1), "alpha=-1"),
        (lambda: layers.LocalResponseNormalization().build((None, 4)), "channels"),
        (lambda: layers.ZeroPaddedShortcut(2).build((None, 4, 4, 3)), "projection"),
        (lambda: layers.ZeroPaddedShortcut(2, 0), "stride=0"),
        (lambda: layers.basic_block(keras.Input((4, 4, 2)), 2, name="a", shortcut="c"), "shortcut"),
        (
            lambda: layers.bottleneck_block(keras.Input((4, 4, 2)), 2, name="a", stride_in="1"),
            "stride_in",
        ),
        (lambda: layers.squeeze_excitation(keras.Input((4, 4, 2)), 3, name="a"), "reduction=3"),
        (
            lambda: layers.inverted_residual(keras.Input((4, 4, 2)), 2, expansion=0, name="a"),
            "expansion",
        ),
        (
            lambda: layers.inception_module(keras.Input((4, 4, 2)), [8] * 6, name="a", third="7x7"),
            "third='7x7'",
        ),
        (
            lambda: layers.inception_module(keras.Input((4, 4, 2)), [8] * 6, name="a", pool="mean"),
            "pool='mean'",
        ),
        (
            lambda: layers.inception_module(keras.Input((4, 4, 2)), [8] * 6, name="a", stride=2),
            "no 1x1 branch",
        ),
        (lambda: layers.require_size((9, 7, 3), 8, "it"), "at least 8 x 8 pixels, not 9 x 7"),
    ],
)
def test_nonsense_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# Branches of every kind that the tables know.
FACTORIZED = {
    "one": [(3, 1)],
    "long": [(4, 1), (5, (1, 7)), (6, (7, 1))],
    "wide": [(4, 3), [(2, (1, 3)), (3, (3, 1))]],
    "mean": [("avg",), (3, 1)],
    "largest": [("max", 1)],
}


@pytest.mark.parametrize("count_zeros", [False, True])
def test_factorized_inception_is_torchs_branch_by_branch(count_zeros):
    image = keras.Input((9, 8, 4))
    model = keras.Model(
        image, layers.factorized_inception(image, FACTORIZED, name="m", count_zeros=count_zeros)
    )
    for layer in model.layers:
        layer.set_weights([RANDOM.uniform(0.5, 1.5, w.shape) for w in layer.weights])
        if isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([normal(*w.shape) for w in layer.weights])
    x = normal(2, 9, 8, 4)

    def convolve(x, name):
        kernel = values(model.get_layer(f"m_{name}_conv").kernel)
        padding = tuple(n // 2 for n in kernel.shape[:2])
        y = torch_conv(x, kernel, np.zeros(kernel.shape[-1], "float32"), padding=padding)
        weights = [values(w).astype("float64") for w in model.get_layer(f"m_{name}_bn").weights]
        gamma, beta, mean, variance = weights
        return np.maximum((y - mean) / np.sqrt(variance + 1e-3) * gamma + beta, 0)

    def pooled(function, **options):
        y = torch.from_numpy(x).double().permute(0, 3, 1, 2)
        return function(y, 3, 1, 1, **options).permute(0, 2, 3, 1).numpy()

    mean = pooled(torch.nn.functional.avg_pool2d, count_include_pad=count_zeros)
    wide = convolve(x, "wide_1")
    wanted = [
        convolve(x, "one"),
        convolve(convolve(convolve(x, "long_1"), "long_2"), "long_3"),
        convolve(wide, "wide_1x3"),
        convolve(wide, "wide_3x1"),
        convolve(mean, "mean"),
        pooled(torch.nn.functional.max_pool2d),
    ]
    wanted = np.concatenate(wanted, -1)
    np.testing.assert_allclose(
        values(model(x)) / wanted.std(), wanted / wanted.std(), rtol=0, atol=1e-5
    )


def test_factorized_inception_names_its_convolutions_in_the_order_of_the_table():
    names = layers.inception_layers("m", FACTORIZED)
    assert names == [
        *("m_one", "m_long_1", "m_long_2", "m_long_3"),
        *("m_wide_1", "m_wide_1x3", "m_wide_3x1", "m_mean"),
    ]
    assert layers.inception_layers("m", FACTORIZED.values())[:2] == ["m_branch1", "m_branch2_1"]


def test_reductions_of_factorized_inception_see_whole_windows_only():
    x = keras.Input((8, 9, 4))
    branches = [[(3, 3, 2)], [("max", 2)], [(2, 1), (2, 3, 1, "valid"), (2, 3), ("max", 2)]]
    assert layers.factorized_inception(x, branches[:2], name="m").shape == (None, 3, 4, 7)
    assert layers.factorized_inception(x, branches[2:], name="m").shape == (None, 2, 3, 2)


def test_scaled_residual():
    layer = layers.ScaledResidual.from_config(layers.ScaledResidual(0.17).get_config())
    x, y = normal(2, 3, 3, 4), normal(2, 3, 3, 4)
    np.testing.assert_allclose(values(layer([x, y])), x + 0.17 * y.astype("float64"), atol=1e-6)
    assert layer.compute_output_shape([x.shape, y.shape]) == x.shape


@pytest.mark.parametrize("size, kernel", [((17, 17), (5, 5)), ((5, 8), (1, 2))])
def test_auxiliary_head_shrinks_its_kernel_to_what_is_left(size, kernel):
    x = keras.Input((*size, 4))
    y = layers.inception_auxiliary_head(x, 3, name="auxiliary")
    model = keras.Model(x, y)
    assert y.shape == (None, 3)
    assert model.get_layer("auxiliary_conv1_conv").kernel_size == kernel


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_channel_shuffle_is_torchs(groups):
    x = normal(2, 3, 5, 12)
    wanted = torch.nn.ChannelShuffle(groups)(torch.from_numpy(x).permute(0, 3, 1, 2))
    wanted = wanted.permute(0, 2, 3, 1).numpy()
    layer = layers.ChannelShuffle.from_config(layers.ChannelShuffle(groups).get_config())
    np.testing.assert_array_equal(values(layer(x)), wanted)
    parts = [ops.convert_to_tensor(part) for part in np.split(x, groups, axis=-1)]
    np.testing.assert_array_equal(values(layers.ShuffledConcatenate()(parts)), wanted)


def test_shuffles_of_open_pictures_know_their_shapes():
    x = keras.Input((None, 7, 6))
    assert layers.ChannelShuffle(3)(x).shape == (None, None, 7, 6)
    left, right = layers.ChannelSplit()(x)
    assert left.shape == right.shape == (None, None, 7, 3)
    y = layers.ShuffledConcatenate()([left, right])
    assert y.shape == (None, None, 7, 6)
    picture = normal(2, 4, 7, 6)
    wanted = values(layers.ChannelShuffle(2)(picture))
    np.testing.assert_array_equal(values(keras.Model(x, y)(picture)), wanted)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: layers.ChannelShuffle(0), "groups=0"),
        (lambda x: layers.ChannelShuffle(4)(x), "multiple of 4"),
        (lambda x: layers.ChannelSplit(0), "parts=0"),
        (lambda x: layers.ChannelSplit(4)(x), "multiple of 4"),
        (lambda x: layers.ShuffledConcatenate()([x, x[..., :3]]), "inputs of one shape"),
        (lambda x: layers.shuffle_unit(x, 8, groups=2, name="u"), "from 6 to 8"),
        (lambda x: layers.shuffle_unit_v2(x, 8, name="u"), "from 6 to 8"),
        (lambda x: layers.depthwise_conv(x, name="d", padding="valid"), "padding='valid'"),
    ],
)
def test_shuffle_and_depthwise_layers_say_what_is_wrong(make, said):
    with pytest.raises(ValueError, match=said):
        make(keras.Input((4, 4, 6)))


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [8, 9])
def test_strided_depthwise_convolution_pads_as_tensorflow_or_torch(padding, size):
    image = keras.Input((size, size, 4))
    model = keras.Model(image, layers.depthwise_conv(image, 2, name="d", padding=padding))
    x, kernel = normal(2, size, size, 4), normal(3, 3, 4, 1)
    model.set_weights([kernel])
    # TensorFlow pads even sizes below and to the right only.
    before = 0 if padding == "same" and size == 8 else 1
    padded = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(padded).double().permute(0, 3, 1, 2),
        torch.from_numpy(kernel).double().permute(2, 3, 0, 1),
        stride=2,
        groups=4,
    )
    np.testing.assert_allclose(values(model(x)), wanted.permute(0, 2, 3, 1).numpy(), atol=1e-5)
