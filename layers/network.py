"""How an image network begins and ends."""

from collections.abc import Sequence
from typing import TypedDict

import keras
from keras import layers

from tiffin.layers.normalization import BatchNormalization, ImageNormalization


class Top(TypedDict, total=False):
    """What every builder of an image network hands on to `classifier`.

    Attributes:
        dropout: rate before the last layer, in [0, 1).
        include_top: False leaves out dropout and last layer.
        pooling: what ends a network without top: None (the feature map), "avg" or "max".
        features: True gives the named feature maps instead, for detectors.
    """

    dropout: float
    include_top: bool
    pooling: str | None
    features: bool


def image_input(
    shape: tuple[int | None, int | None, int], normalization: tuple | None = None
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Begin a network.

    Args:
        shape: `(height, width, channels)` in pixels.
        normalization: `(mean, std)`, each a number or one a channel, in the input's units: the
            network then takes raw 0-255 pixels. None: the input is normalised already.

    Returns:
        The input `image`, float `[batch, height, width, channels]`, and the same normalised.
    """
    image = x = keras.Input(shape, name="image")
    if normalization is not None:
        x = ImageNormalization(*normalization, name="normalization")(x)
    return image, x


def require_size(shape: Sequence[int | None], least: int, who: str) -> None:
    """Refuse a picture of which the poolings would leave nothing.

    Args:
        shape: `(height, width, ...)` in pixels; None is any size.
        least: smallest height and width.
        who: what the message calls the network, such as "googlenet with stem_stride=2".

    Raises:
        ValueError: height or width is below `least`.
    """
    if min(n or least for n in shape[:2]) < least:
        raise ValueError(
            f"{who} takes pictures of at least {least} x {least} pixels, not "
            f"{shape[0]} x {shape[1]}."
        )


def classification_head(
    x: keras.KerasTensor,
    classes: int,
    *,
    dropout: float = 0.0,
    include_top: bool = True,
    pooling: str | None = None,
) -> keras.KerasTensor:
    """Pool over the picture and apply the one fully connected layer.

    Args:
        x: float `[batch, height, width, channels]`, or `[batch, channels]`, which is not pooled.
        classes: width of the last layer.
        dropout: rate before the last layer, in [0, 1).
        include_top: False leaves out dropout and last layer.
        pooling: what ends a network without top: None (the feature map), "avg" or "max".

    Returns:
        `logits`, float32 `[batch, classes]` also under mixed precision; without top, what
        `pooling` leaves.

    Raises:
        ValueError: another `pooling`.
    """
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"pooling={pooling!r} must be None, 'avg' or 'max'.")
    if len(x.shape) == 4 and (include_top or pooling == "avg"):
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if include_top:
        if dropout:
            x = layers.Dropout(dropout, name="dropout")(x)
        x = layers.Dense(classes, dtype="float32", name="logits")(x)
    return x


def classifier(
    name: str,
    image: keras.KerasTensor,
    x: keras.KerasTensor,
    classes: int,
    maps: dict[int, keras.KerasTensor],
    *,
    features: bool = False,
    auxiliary: dict[str, keras.KerasTensor] | None = None,
    **head,
) -> keras.Model:
    """Close a network: the classifier, the network without top, or its feature maps.

    Args:
        name: of the model.
        image: the input, from `image_input`.
        x: the last feature map, float `[batch, height, width, channels]`; or the last hidden
            layer, `[batch, channels]`.
        classes: width of the last layer.
        maps: the last feature map of every stride, by stride in input pixels.
        features: return the maps, as outputs `stride_4`, `stride_8`, ...
        auxiliary: logits of further heads that help in training, by output name.
        **head: `dropout`, `include_top` and `pooling` of `classification_head`.

    Returns:
        A model to `logits`, float32 `[batch, classes]`; with `auxiliary` to a dict of `logits` and
        those; without top to what `pooling` leaves; with `features` to a dict of maps.
    """
    if features:
        return keras.Model(image, {f"stride_{n}": maps[n] for n in sorted(maps)}, name=name)
    x = classification_head(x, classes, **head)
    return keras.Model(image, {"logits": x, **auxiliary} if auxiliary else x, name=name)


def hidden_layers(
    x: keras.KerasTensor, units: int, dropout: float, *, names: tuple[str, ...]
) -> keras.KerasTensor:
    """Apply fully connected layers with ReLU, and dropout between them.

    So end Krizhevsky et al. 2012 (section 3.5) and Simonyan and Zisserman 2014 (arXiv 1409.1556,
    table 1); the dropout behind the last one is that of `classification_head`.

    Args:
        x: float `[batch, height, width, channels]` of known size; flattened first.
        units: width of each layer.
        dropout: rate between them, in [0, 1).
        names: of the layers; `{name}_dropout` follows each but the last.

    Returns:
        `[batch, units]`.

    Raises:
        ValueError: the size of `x` is not known.
    """
    if None in x.shape[1:]:
        raise ValueError(
            "Fully connected layers need pictures of one size: give height and width in "
            "input_shape, or include_top=False."
        )
    x = layers.Flatten(name="flatten")(x)
    for name in names:
        x = layers.Dense(units, "relu", kernel_initializer="he_normal", name=name)(x)
        if dropout and name != names[-1]:
            x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return x


def flat_embedding(
    x: keras.KerasTensor, dimensions: int, dropout: float = 0.0, bn_momentum: float = 0.9
) -> keras.KerasTensor:
    """Embed all of a feature map: batch norm, dropout, one fully connected layer, batch norm.

    Deng et al. 2019 (arXiv 1801.07698), section 3.1, the BN-Dropout-FC-BN of its networks:
    unlike a mean over the picture it keeps where things are.

    Args:
        x: float `[batch, height, width, channels]` of known size.
        dimensions: length of an embedding.
        dropout: rate, in [0, 1); 0.4 in the paper.
        bn_momentum: of batch normalisation.

    Returns:
        `[batch, dimensions]`.
    """
    bn = {"epsilon": 1e-5, "momentum": bn_momentum}
    x = layers.Flatten()(BatchNormalization(name="neck_bn", **bn)(x))
    x = layers.Dense(dimensions, name="embedding")(layers.Dropout(dropout)(x))
    # Its gamma is fixed at 1: the length of an embedding is of no account.
    return BatchNormalization(name="embedding_bn", scale=False, **bn)(x)
