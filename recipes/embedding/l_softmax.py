"""Large-margin softmax: the true class has to win by m times its angle.

Softmax is content once the true class's logit is the largest. L-softmax puts `cos(m theta)` in the
place of `cos(theta)` for the true class alone, continued so that it falls all the way to pi: an
embedding has to be m times nearer to its class in angle than softmax would ask. m = 1 is softmax.

Liu, Wen, Yu, Yang: Large-Margin Softmax Loss for Convolutional Neural Networks, ICML 2016,
arXiv 1612.02295.

Reproduces table 2 (MNIST, error in percent):
    softmax 0.40    L-softmax, m = 2: 0.32    m = 3: 0.31    m = 4: 0.31    ours: docs/results.md

Run it:
    python recipes/embedding/l_softmax.py --data mnist --margin 4 --export
"""

import dataclasses
from typing import ClassVar

import keras
from keras import layers

from tiffin.export.errors import one_of
from tiffin.layers import BatchNormalization, LSoftmax, PReLU, image_input
from tiffin.recipes.engine.embedding import AnnealedRecipe
from tiffin.recipes.engine.training import main

VARIANTS = {
    # name: (year, input size, trainable parameters, MACs, error in percent, measured on)
    "l_softmax_mnist": (2016, 28, 484_544, 115_301_376, 0.31, "MNIST"),
    "l_softmax_mnist_code": (2016, 28, 3_140_928, 233_745_408, None, "MNIST"),
}

# Table 1, column MNIST, and the network of the authors' published example, which is wider and has
# ReLU in the place of PReLU.
WIDTHS = {
    # conv0.x, conv1.x, conv2.x, conv3.x, fully connected
    "l_softmax_mnist": (64, 64, 64, 64, 256),
    "l_softmax_mnist_code": (64, 64, 128, 256, 512),
}


def l_softmax(
    variant: str = "l_softmax_mnist",
    input_shape: tuple[int, int, int] = (28, 28, 3),
    dimensions: int | None = None,
    *,
    normalization: tuple | None = None,
) -> keras.Model:
    """Build the paper's network for MNIST, from pictures to features.

    Args:
        variant: one of `VARIANTS`.
        input_shape: `(height, width, channels)` in pixels; 28 x 28 x 1 in the paper.
        dimensions: number of features; None: the paper's 256, the code's 512.
        normalization: see `tiffin.layers.image_input`.

    Returns:
        A model from `image` to float `[batch, dimensions]`, not normalised.

    Raises:
        InputError: an unknown variant.
    """
    one_of("variant", variant, VARIANTS)
    activation = PReLU if variant == "l_softmax_mnist" else layers.ReLU

    def normalized(x, name):
        x = BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn")(x)
        return activation(name=f"{name}_act")(x)

    image, x = image_input(input_shape, normalization)
    *filters, features = WIDTHS[variant]
    for stage, (width, count) in enumerate(zip(filters, (1, 3, 3, 3), strict=True)):
        for i in range(1, count + 1):
            name = f"conv{stage}_{i}"
            x = layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal", name=name)(
                x
            )
            x = normalized(x, name)
        if stage:
            x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)  # 14 x 14, 7 x 7, 3 x 3
    x = layers.Dense(dimensions or features, kernel_initializer="he_normal", name="fc")(
        layers.Flatten()(x)
    )
    return keras.Model(image, normalized(x, "fc"), name=variant)


@dataclasses.dataclass
class Config(AnnealedRecipe):
    """Train under large-margin softmax (Liu et al. 2016, arXiv 1612.02295).

    examples:
      tiffin train l_softmax --data mnist --export
      tiffin train l_softmax --data mnist --margin 1
      tiffin train l_softmax --data faces/ --backbone resnet18
    """

    model: str = "l_softmax_mnist"
    dimensions: int | None = None
    """Length of an embedding; default: the network's own, 256, or 128 behind a --backbone."""
    annealing: tuple[float, float, float, float] = (1000.0, 2.5e-5, 35.0, 0.0)
    """Lambda falls with the step t: base, gamma, power, least of max(least, base (1 + gamma
    t)^-power); the authors' example."""
    # The paper's 0.0005 is part of the gradient, and a momentum of 0.9 makes ten of each.
    weight_decay: float = 5e-3
    builder: ClassVar = staticmethod(l_softmax)

    def head(self, classes: int) -> keras.layers.Layer:
        return LSoftmax(classes, self.margin, self.annealing[0], name="logits")


if __name__ == "__main__":
    main(Config)
