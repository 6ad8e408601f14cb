"""What ends a network."""

import keras
from keras import layers


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
        x: float `[batch, height, width, channels]`.
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
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if include_top:
        if dropout:
            x = layers.Dropout(dropout, name="dropout")(x)
        x = layers.Dense(classes, dtype="float32", name="logits")(x)
    return x
