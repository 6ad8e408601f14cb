"""Softmax with a margin: heads that pull the embeddings of a class together and classes apart.

A head is a layer with one weight, `kernel` `[dimensions, classes]`, whose column j stands for class
j. Called with embeddings alone it returns plain logits; called with their labels too, the logit of
each true class is made smaller by the margin, so that training has to do more than separate. Only
training needs the head (see `EmbeddingTrainer`): what is exported is the embedder.
"""

import math
from typing import Any

import keras
from keras import ops

# Below this squared length a vector has no direction; its gradient is 0 instead of infinite.
_NO_LENGTH = 1e-30


def inverse_length(x, axis: int = -1):
    """Return `1 / |x|` along an axis, which is kept, and 0 with a gradient of 0 where x is zero."""
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    positive = squares > _NO_LENGTH
    # Chosen before the root as well: the gradient of the branch not taken would be 0 * inf.
    return ops.where(positive, ops.rsqrt(ops.where(positive, squares, 1.0)), 0.0)


@keras.saving.register_keras_serializable("tiffin")
class MarginSoftmax(keras.layers.Layer):
    """What the margin heads share: `magnitude * cos(theta)` for every class but the true one.

    Everything is computed in float32, under mixed precision too, or in float64 where that is the
    dtype policy. No matrix of one-hot labels is made: beside the `[batch, classes]` logits all else
    is of the size of the embeddings, for tens of thousands of classes.

    Args:
        classes: number of classes, at least 2.
        kernel_initializer: of the weight.
        kernel_regularizer: of the weight.
        **kwargs: `name`, `dtype`.

    Call arguments:
        embeddings: float `[batch, dimensions]`.
        labels: None, or integers `[batch]` (or `[batch, 1]`) in [0, classes).

    Returns:
        Logits, float32 `[batch, classes]`.

    Raises:
        ValueError: an argument outside its range, or embeddings of another rank.
    """

    def __init__(
        self,
        classes: int,
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if classes < 2:
            raise ValueError(f"classes={classes} must be 2 or more.")
        self.classes = classes
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        if len(input_shape) != 2 or input_shape[-1] is None:
            raise ValueError(
                f"{type(self).__name__} takes embeddings [batch, dimensions], not "
                f"{tuple(input_shape)}: flatten or pool before it."
            )
        self.kernel = self.add_weight(
            (input_shape[-1], self.classes),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )

    def call(self, embeddings, labels=None):
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        x, kernel = ops.cast(embeddings, dtype), ops.cast(self.kernel, dtype)
        logits = self._logits(x, kernel)
        if labels is None:
            return logits
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        own = ops.take(ops.transpose(kernel), labels, axis=0)
        x_unit, own_unit = x * inverse_length(x), own * inverse_length(own)
        cosine = ops.clip(ops.sum(x_unit * own_unit, axis=-1, keepdims=True), -1.0, 1.0)
        lengths = (
            ops.sum(x * x_unit, axis=-1, keepdims=True),
            ops.sum(own * own_unit, axis=-1, keepdims=True),
        )
        target = self._magnitude(*lengths) * self._psi(cosine, x_unit, own_unit)
        rows = ops.arange(ops.shape(labels)[0], dtype="int32")
        places = ops.stack([rows, labels], axis=-1)
        return ops.scatter_update(logits, places, ops.squeeze(target, -1))

    def loss(self, embeddings, labels):
        """Return the cross-entropy of each example, with the margin: float32 `[batch]`."""
        logits = self(embeddings, labels)
        places = ops.reshape(ops.cast(labels, "int32"), (-1, 1))
        own = ops.take_along_axis(logits, places, axis=-1)
        return ops.logsumexp(logits, axis=-1) - ops.squeeze(own, -1)

    def get_config(self):
        return super().get_config() | {
            "classes": self.classes,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }

    def _logits(self, x, kernel):
        """Return the logits without a margin: the product with columns of length 1."""
        return ops.matmul(x, kernel * inverse_length(kernel, 0))

    def _magnitude(self, x_length, own_length):
        """Return what multiplies the cosine, `[batch, 1]` like the lengths, or a number."""
        return x_length

    def _psi(self, cosine, x_unit, own_unit):
        """Return what stands in for the cosine of the true class, at most as large: `[batch, 1]`.

        Args:
            cosine: of the angle between an embedding and the column of its class, `[batch, 1]`.
            x_unit: embeddings of length 1, `[batch, dimensions]`.
            own_unit: those columns, of length 1, `[batch, dimensions]`.
        """
        return cosine


class _MultiplicativeMargin(MarginSoftmax):
    """A margin on m times the angle: L-softmax and A-softmax."""

    def __init__(self, classes: int, margin: int = 4, annealing: float = 0.0, **kwargs):
        super().__init__(classes, **kwargs)
        if margin not in (1, 2, 3, 4):
            raise ValueError(f"margin={margin} must be 1, 2, 3 or 4: the m of cos(m * theta).")
        if not 0 <= annealing < math.inf:
            raise ValueError(f"annealing={annealing} must be finite, at least 0.")
        self.margin, self.initial_annealing = int(margin), float(annealing)

    def build(self, input_shape):
        super().build(input_shape)
        # A weight, so that it is saved and restored with the rest.
        self.annealing = self.add_weight(
            (),
            initializer=keras.initializers.Constant(self.initial_annealing),
            trainable=False,
            name="annealing",
        )

    def _psi(self, cosine, x_unit, own_unit):
        # k counts the whole steps of pi / m in the angle. It jumps where psi is continuous.
        steps = [math.cos(j * math.pi / self.margin) for j in range(1, self.margin)]
        k = sum((ops.cast(cosine <= step, cosine.dtype) for step in steps), ops.zeros_like(cosine))
        multiple = {
            1: lambda c: c,
            2: lambda c: 2 * c**2 - 1,
            3: lambda c: 4 * c**3 - 3 * c,
            4: lambda c: 8 * c**4 - 8 * c**2 + 1,
        }[self.margin](cosine)  # the Chebyshev polynomials of cos(m * theta)
        sign = 1 - 2 * (k % 2)
        annealing = ops.cast(self.annealing, cosine.dtype)
        return (annealing * cosine + sign * multiple - 2 * k) / (1 + annealing)

    def get_config(self):
        own = {"margin": self.margin, "annealing": self.initial_annealing}
        return super().get_config() | own


@keras.saving.register_keras_serializable("tiffin")
class LSoftmax(_MultiplicativeMargin):
    """Large-margin softmax: the true class's logit is `|w| |x| psi(theta)`.

    Liu et al. 2016 (arXiv 1612.02295), equations 4 to 7: `psi(theta) = (-1)^k cos(m theta) - 2k`
    for theta in `[k pi / m, (k + 1) pi / m]`, `cos(m theta)` as a polynomial of `cos(theta)`. There
    is no bias. m = 1 is plain softmax.

    Deep nets learn m > 2 only when eased into it (section 5.1): with `annealing` lambda the logit
    is `(lambda |w| |x| cos(theta) + |w| |x| psi(theta)) / (1 + lambda)`. `MarginAnnealing` lets it
    fall in training.

    Args:
        classes: number of classes, at least 2.
        margin: m, from 1 to 4.
        annealing: lambda at the start, at least 0; kept as a weight, `annealing`.
        **kwargs: see `MarginSoftmax`, as for the call.

    Raises:
        ValueError: an argument outside its range.
    """

    def _logits(self, x, kernel):
        return ops.matmul(x, kernel)

    def _magnitude(self, x_length, own_length):
        return x_length * own_length


@keras.saving.register_keras_serializable("tiffin")
class ASoftmax(_MultiplicativeMargin):
    """Angular softmax (SphereFace): the true class's logit is `|x| psi(theta)`, with `|w| = 1`.

    Liu et al. 2017 (arXiv 1704.08063), equations 6 and 7: psi as in `LSoftmax`, columns of length 1
    and no bias. The authors' code eases in with lambda = max(5, 1000 / (1 + 0.12 * step)), the
    default of `MarginAnnealing`. m = 1 is the paper's modified softmax.

    Arguments, call, returns and errors: see `LSoftmax`.
    """


class _Normalized(MarginSoftmax):
    """Cosines times a scale: neither length matters."""

    def __init__(self, classes: int, margin: float, scale: float, **kwargs):
        super().__init__(classes, **kwargs)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale} must be positive.")
        self.margin, self.scale = margin, scale

    def _logits(self, x, kernel):
        return self.scale * super()._logits(x * inverse_length(x), kernel)

    def _magnitude(self, x_length, own_length):
        return self.scale

    def get_config(self):
        return super().get_config() | {"margin": self.margin, "scale": self.scale}


@keras.saving.register_keras_serializable("tiffin")
class AMSoftmax(_Normalized):
    """Additive margin softmax (CosFace): the true class's logit is `s (cos(theta) - m)`.

    Wang et al. 2018 (arXiv 1801.05599), equations 5 and 6; Wang et al. 2018 (arXiv 1801.09414),
    equation 4, is the same. The others' logits are `s cos(theta)`.

    Args:
        classes: number of classes, at least 2.
        margin: m, at least 0; 0.35 in the paper.
        scale: s, positive; 30 in the paper.
        **kwargs: see `MarginSoftmax`, as for the call.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, classes: int, margin: float = 0.35, scale: float = 30.0, **kwargs):
        super().__init__(classes, margin, scale, **kwargs)
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin={margin} must be finite, at least 0.")

    def _psi(self, cosine, x_unit, own_unit):
        return cosine - self.margin


@keras.saving.register_keras_serializable("tiffin")
class ArcFace(_Normalized):
    """Additive angular margin: the true class's logit is `s cos(theta + m)`.

    Deng et al. 2019 (arXiv 1801.07698), equation 3. Where `theta + m` exceeds pi the cosine would
    rise again; there, as in the authors' code, `cos(theta) - m sin(m)` takes its place.

    Args:
        classes: number of classes, at least 2.
        margin: m in radians, in [0, pi); 0.5 in the paper.
        scale: s, positive; 64 in the paper.
        **kwargs: see `MarginSoftmax`, as for the call.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, classes: int, margin: float = 0.5, scale: float = 64.0, **kwargs):
        super().__init__(classes, margin, scale, **kwargs)
        if not 0 <= margin < math.pi:
            raise ValueError(f"margin={margin} must lie in [0, pi); it is in radians.")

    def _psi(self, cosine, x_unit, own_unit):
        # The length of what the embedding has beside its class: exact for small angles too, where
        # the root of 1 - cos^2 is rounding alone, and of gradient 0 instead of infinite at 0.
        beside = x_unit - cosine * own_unit
        sine = ops.sum(ops.square(beside), axis=-1, keepdims=True) * inverse_length(beside)
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        falling = cosine - self.margin * math.sin(self.margin)
        return ops.where(cosine >= -math.cos(self.margin), turned, falling)


class MarginAnnealing(keras.callbacks.Callback):
    """Let the annealing of `LSoftmax` or `ASoftmax` fall: `max(least, base (1 + gamma t)^-power)`.

    t is the optimizer's step, so that a resumed training goes on where it was. The defaults are
    SphereFace's code; L-softmax's for MNIST has gamma 2.5e-5, power 35 and least 0.

    Args:
        head: the layer.
        base: lambda at step 0, at least 0.
        gamma: how fast it falls, at least 0.
        power: exponent.
        least: where it stops, at least 0.
    """

    def __init__(
        self,
        head: LSoftmax | ASoftmax,
        base: float = 1000.0,
        gamma: float = 0.12,
        power: float = 1.0,
        least: float = 5.0,
    ):
        super().__init__()
        for name, value in (("base", base), ("gamma", gamma), ("least", least)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be finite, at least 0.")
        self.head, self.base, self.gamma, self.power, self.least = head, base, gamma, power, least

    def at(self, step: int) -> float:
        """Return lambda at a step of the optimizer."""
        return max(self.least, self.base * (1 + self.gamma * step) ** -self.power)

    def on_epoch_begin(self, epoch, logs=None):
        self.start = int(self.model.optimizer.iterations)

    def on_train_batch_begin(self, batch, logs=None):
        # Counted here: to read the optimizer's own step would wait for the device each time. Under
        # JAX, what is assigned counts only once `self.model` was asked for.
        optimizer = self.model.optimizer
        step = self.start + batch // (optimizer.gradient_accumulation_steps or 1)
        self.head.annealing.assign(self.at(step))


@keras.saving.register_keras_serializable("tiffin")
class EmbeddingTrainer(keras.Model):
    """Train an embedder under a head that stays behind.

        trainer = EmbeddingTrainer(embedder, AMSoftmax(classes=10))
        trainer.compile("adam", metrics=["accuracy"])
        trainer.fit(images, labels)

    It returns a dict of `embeddings` and `logits`, the head's plain ones, without a margin, which
    metrics see. `embedder` shares its weights and is what to export.

    Args:
        embedder: a model to embeddings, float `[batch, dimensions]`.
        head: a margin head such as `AMSoftmax`, or any layer from embeddings to logits, such as
            `keras.layers.Dense`, which is trained by softmax.
        center_loss: a `CenterLoss` to add, or None.
        center_weight: lambda, what its mean over the batch is multiplied by, at least 0.
        **kwargs: `name`.

    Raises:
        ValueError: a negative `center_weight`.
    """

    def __init__(
        self,
        embedder: keras.Model,
        head: keras.layers.Layer,
        center_loss: keras.layers.Layer | None = None,
        center_weight: float = 0.003,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= center_weight < math.inf:
            raise ValueError(f"center_weight={center_weight} must be finite, at least 0.")
        self.embedder, self.head = embedder, head
        self.center_loss, self.center_weight = center_loss, center_weight
        for layer in (head, center_loss):
            if layer is not None and not layer.built:
                layer.build(embedder.output_shape)
        self.build(embedder.input_shape)

    def call(self, inputs, training=None):
        # Both here: outside of call and loss a jitted step has no weights to compute logits with.
        embeddings = self.embedder(inputs, training=training)
        return {"embeddings": embeddings, "logits": self.head(embeddings)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if isinstance(self.head, MarginSoftmax):
            losses = self.head.loss(y_pred["embeddings"], y)
        else:
            losses = keras.losses.sparse_categorical_crossentropy(
                ops.reshape(y, (-1,)), ops.cast(y_pred["logits"], "float32"), from_logits=True
            )
        if self.center_loss is not None:
            apart = self.center_loss(y_pred["embeddings"], y, training=training)
            losses += self.center_weight * apart
        if sample_weight is not None:
            losses *= ops.reshape(ops.cast(sample_weight, losses.dtype), (-1,))
        return sum(self.losses, ops.mean(losses))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred["logits"], sample_weight)

    def get_config(self):
        parts = {"embedder": self.embedder, "head": self.head, "center_loss": self.center_loss}
        serialized = {
            name: None if part is None else keras.saving.serialize_keras_object(part)
            for name, part in parts.items()
        }
        return {"name": self.name, **serialized, "center_weight": self.center_weight}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("embedder", "head", "center_loss")
            if config[name] is not None
        }
        return cls(**{**config, **parts})
