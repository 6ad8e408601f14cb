"""Center loss: embeddings near the centre of their class."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("tiffin")
class CenterLoss(keras.layers.Layer):
    """Half the squared distance of each embedding to the centre of its class.

    Wen et al. 2016 (A Discriminative Feature Learning Approach for Deep Face Recognition), equation
    2: `L_C = 1/2 sum |x_i - c_{y_i}|^2`, added to softmax with a weight lambda (equation 5). The
    centres are no affair of the optimizer: after each training step a class j that occurs in the
    batch moves by equation 4, `c_j -= alpha * sum (c_j - x_i) / (1 + n_j)`, the sum over its n_j
    examples.

    Args:
        classes: number of classes, at least 1.
        alpha: how far the centres move, in [0, 1]; 0.5 in the paper.
        trainable_centers: leave the paper's rule and let the optimizer move the centres along the
            gradient, as many ports do.
        **kwargs: `name`, `dtype`.

    Call arguments:
        embeddings: float `[batch, dimensions]`.
        labels: integers `[batch]` (or `[batch, 1]`) in [0, classes).
        training: whether the centres move.

    Returns:
        The loss of each example, float32 `[batch]`, by the centres from before the move.

    Raises:
        ValueError: an argument outside its range, or embeddings of another rank.
    """

    def __init__(self, classes: int, alpha: float = 0.5, trainable_centers: bool = False, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if classes < 1:
            raise ValueError(f"classes={classes} must be 1 or more.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must lie in [0, 1]; 0.5 in the paper.")
        self.classes, self.alpha, self.trainable_centers = classes, alpha, trainable_centers

    def build(self, input_shape):
        if len(input_shape) != 2 or input_shape[-1] is None:
            raise ValueError(
                f"CenterLoss takes embeddings [batch, dimensions], not {tuple(input_shape)}."
            )
        self.centers = self.add_weight(
            (self.classes, input_shape[-1]),
            initializer="zeros",
            trainable=self.trainable_centers,
            name="centers",
        )

    def call(self, embeddings, labels, training=False):
        centers = ops.convert_to_tensor(self.centers)
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        apart = ops.cast(embeddings, centers.dtype) - ops.take(centers, labels, axis=0)
        if training and not self.trainable_centers:
            total = ops.segment_sum(ops.stop_gradient(apart), labels, self.classes)
            count = ops.segment_sum(ops.ones_like(apart[:, :1]), labels, self.classes)
            self.centers.assign(centers + self.alpha * total / (1 + count))
        return ops.sum(ops.square(apart), axis=-1) / 2

    def get_config(self):
        own = {"alpha": self.alpha, "trainable_centers": self.trainable_centers}
        return super().get_config() | {"classes": self.classes} | own
