"""Random numbers and gradients on whatever backend Keras has."""

import hypothesis
import keras
import numpy as np
import torch
from keras import ops

# Programs of JAX that are compiled in less time, as each of them runs a few times only.
FAST_XLA = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FAST_XLA += " --xla_cpu_use_fusion_emitters=false"
RANDOM = np.random.default_rng(3)


def examples(count: int) -> hypothesis.settings:
    """Return settings for so many examples of a property, or for as few as the profile wants."""
    most = min(count, hypothesis.settings.default.max_examples)
    return hypothesis.settings(deadline=None, max_examples=most)


def normal(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def values(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def gradients(function, *arrays):
    """Return the gradients of a scalar function of arrays on the backend that runs."""
    if keras.backend.backend() == "jax":
        import jax

        return [values(g) for g in jax.jit(jax.grad(function, range(len(arrays))))(*arrays)]
    tensors = [ops.convert_to_tensor(a) for a in arrays]
    if keras.backend.backend() == "torch":
        tensors = [t.requires_grad_() for t in tensors]
        return [values(g) for g in torch.autograd.grad(function(*tensors), tensors)]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        result = function(*tensors)
    return [values(g) for g in tape.gradient(result, tensors)]
