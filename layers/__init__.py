"""Custom Keras layers, written with `keras.ops`: they run on TensorFlow, JAX and torch."""
