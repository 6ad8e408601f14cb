"""Convolution as a matrix product against Keras' own, its gradient, and col2im's duality."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops
from numerics import examples, gradients, normal, values

from tiffin.layers import Im2ColConv2D, col2im, im2col


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    "shape, size, stride",
    [((2, 7, 9, 3), 3, 1), ((1, 8, 6, 2), 3, 2), ((2, 5, 5, 4), 1, 1), ((1, 11, 13, 1), 5, 3)],
)
def test_it_is_keras_convolution_and_so_are_its_gradients(shape, size, stride, padding):
    x, theirs = normal(*shape), layers.Conv2D(5, size, stride, padding, activation="tanh")
    expected = theirs(x)
    ours = Im2ColConv2D(5, size, stride, padding, activation="tanh")
    ours.build(shape)
    ours.set_weights([normal(*w.shape) for w in theirs.get_weights()])
    theirs.set_weights(ours.get_weights())
    expected = theirs(x)
    np.testing.assert_allclose(values(ours(x)), values(expected), atol=1e-5)
    towards = normal(*expected.shape)

    def loss(layer):
        return lambda x, *weights: ops.sum(
            ops.multiply(layer.stateless_call([*weights], [], x)[0], towards)
        )

    arrays = x, *ours.get_weights()
    for mine, other in zip(gradients(loss(ours), *arrays), gradients(loss(theirs), *arrays)):
        np.testing.assert_allclose(mine, other, atol=1e-5 * max(1, np.abs(other).max()))


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3)
)
@examples(20)
def test_col2im_is_the_transpose_of_im2col(size, stride, more, wider, channels):
    """<im2col(x), p> = <x, col2im(p)>, for pictures whose last places no patch may see, too."""
    height, width = size + more, size + wider
    x = normal(2, height, width, channels)
    patches = values(im2col(ops.convert_to_tensor(x), size, stride))
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    assert patches.shape == (2, rows, columns, size**2 * channels)
    p = normal(*patches.shape)
    back = values(col2im(ops.convert_to_tensor(p), height, width, size, stride))
    assert back.shape == x.shape
    assert (patches * p).sum() == pytest.approx((x * back).sum(), abs=1e-3)


def test_patches_lie_row_by_row():
    x = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    patches = values(im2col(ops.convert_to_tensor(x), 2, 2))
    assert patches[0].tolist() == [
        [[0, 1, 4, 5], [2, 3, 6, 7]],
        [[8, 9, 12, 13], [10, 11, 14, 15]],
    ]


def test_it_is_saved_and_loaded(tmp_path):
    image = keras.Input((6, 6, 2))
    model = keras.Model(image, Im2ColConv2D(3, 3, padding="same", use_bias=False)(image))
    model.save(tmp_path / "model.keras")
    x = normal(1, 6, 6, 2)
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(values(again(x)), values(model(x)), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"kernel_size": (3, 2)}, {"dilation_rate": 2}, {"groups": 2}, {"strides": (1, 2)}]
)
def test_what_it_cannot_do_is_told(options):
    with pytest.raises(ValueError, match="square kernels and strides, no dilation and one group"):
        Im2ColConv2D(4, **{"kernel_size": 3, **options})
