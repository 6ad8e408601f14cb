"""The losses of both sides against torch's, and pictures as pixels."""

import keras
import numpy as np
import pytest
import torch
from numerics import gradients, normal, values

from tiffin.layers import ToPixels, discriminator_loss, generator_loss


def test_losses_are_torchs_binary_cross_entropies():
    real, fake = 3 * normal(7, 1), 3 * normal(5, 1)
    cost = torch.nn.functional.binary_cross_entropy_with_logits
    a, b = torch.tensor(real), torch.tensor(fake)
    ones, zeros = torch.ones(7, 1), torch.zeros(5, 1)
    assert float(discriminator_loss(real, fake)) == pytest.approx(
        float(cost(a, ones) + cost(b, zeros)), abs=1e-5
    )
    assert float(generator_loss(fake)) == pytest.approx(float(cost(b, 1 - zeros)), abs=1e-5)
    assert float(generator_loss(fake, "minimax")) == pytest.approx(-float(cost(b, zeros)), abs=1e-5)
    assert float(discriminator_loss(0 * real, 0 * fake)) == pytest.approx(2 * np.log(2), abs=1e-6)


def test_a_sure_discriminator_leaves_a_gradient_to_the_non_saturating_loss_alone():
    sure = np.full((1, 1), -20, "float32")
    (strong,) = gradients(lambda x: generator_loss(x), sure)
    (weak,) = gradients(lambda x: generator_loss(x, "minimax"), sure)
    # D(G(z)) = e^-20: the gradients are -(1 - D) and -D.
    assert strong == pytest.approx(-1, abs=1e-6) and weak == pytest.approx(-np.exp(-20), rel=1e-3)


def test_an_unknown_loss_is_told():
    with pytest.raises(ValueError, match="kind='wasserstein' must be one of non_saturating, min"):
        generator_loss(normal(2, 1), "wasserstein")


def test_pixels_are_the_nearest_levels():
    x = np.array([-1.5, -1, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.1, 1, 2], "float32")
    layer = ToPixels()
    made = layer(x.reshape(1, 7, 1, 1))
    assert keras.backend.standardize_dtype(made.dtype) == "uint8"
    assert values(made).ravel().tolist() == [0, 0, 0, 1, 140, 255, 255]
    assert layer(keras.Input((4, 4, 3))).dtype == "uint8"
