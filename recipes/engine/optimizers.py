"""Optimizers and learning-rate schedules by name."""

import functools
from typing import Literal

import keras
from keras import ops

OptimizerName = Literal["sgd", "momentum", "adam", "rmsprop", "adadelta", "gradient_descent"]
ScheduleName = Literal["constant", "step", "cosine"]


@keras.saving.register_keras_serializable("tiffin")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly from zero, then stays, falls in steps, or along a cosine.

    Cosine: Loshchilov & Hutter 2017 (SGDR, equation 5) with one period. Warm-up: Goyal et al. 2017,
    section 2.2.

    Args:
        learning_rate: the rate after the warm-up.
        total_steps: steps of the whole training, warm-up included.
        warmup_steps: steps of the linear rise.
        kind: `constant`, `step` or `cosine`.
        milestones: for `step`: the steps after which the rate is multiplied by `factor`.
        factor: for `step`.
    """

    def __init__(
        self, learning_rate, total_steps, warmup_steps=0, kind="cosine", milestones=(), factor=0.1
    ):
        super().__init__()
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.kind = kind
        self.milestones = tuple(milestones)
        self.factor = factor

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.learning_rate, "float32")
        if self.kind == "cosine":
            span = max(1, self.total_steps - self.warmup_steps)
            share = ops.clip((step - self.warmup_steps) / span, 0.0, 1.0)
            rate = rate * 0.5 * (1 + ops.cos(3.141592653589793 * share))
        elif self.kind == "step":
            for milestone in self.milestones:
                rate = ops.where(step >= milestone, rate * self.factor, rate)
        if self.warmup_steps:
            rate = rate * ops.minimum(1.0, (step + 1) / self.warmup_steps)
        return rate

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "kind": self.kind,
            "milestones": self.milestones,
            "factor": self.factor,
        }


def make_optimizer(
    name: OptimizerName,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    variables: list[keras.Variable],
    weight_decay: float = 0.0,
    ema: float = 0.0,
    steps_per_epoch: int = 1,
    clip_norm: float | None = None,
    momentum: float = 0.9,
) -> keras.optimizers.Optimizer:
    """Return an optimizer whose weight decay leaves biases and normalisation alone.

    Args:
        name: `sgd`; `momentum`; `adam`; `rmsprop` (rho 0.9); `adadelta`; `gradient_descent`:
            one step an epoch with the gradient of the whole training set.
        learning_rate: a number or a schedule.
        variables: the model's trainable variables.
        weight_decay: share of each kernel, times the learning rate, that a step takes away
            (Loshchilov & Hutter 2019); equal to an L2 penalty of half of it for `sgd`.
        ema: decay of a moving average of the weights, 0 for none.
        steps_per_epoch: batches in an epoch, for `gradient_descent`.
        clip_norm: length beyond which the gradient of all variables is scaled down (Pascanu et al.
            2013, arXiv 1211.5063, section 3.2).
        momentum: of `momentum`, and Adam's beta 1.
    """
    common = {"weight_decay": weight_decay or None, "global_clipnorm": clip_norm}
    if ema:
        common |= {"use_ema": True, "ema_momentum": ema}
    if name == "gradient_descent" and steps_per_epoch > 1:
        common |= {"gradient_accumulation_steps": steps_per_epoch}
    optimizer = {
        "sgd": keras.optimizers.SGD,
        "momentum": functools.partial(keras.optimizers.SGD, momentum=momentum),
        "adam": functools.partial(keras.optimizers.Adam, beta_1=momentum),
        "rmsprop": keras.optimizers.RMSprop,
        "adadelta": keras.optimizers.Adadelta,
        "gradient_descent": keras.optimizers.SGD,
    }[name](learning_rate, **common)
    # A decayed gamma, beta, bias or PReLU slope only fights the data: kernels alone shrink.
    optimizer.exclude_from_weight_decay([v for v in variables if "kernel" not in v.name])
    return optimizer
