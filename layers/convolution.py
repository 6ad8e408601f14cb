"""Convolutions that Keras has, in a form that exports."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("tiffin")
class GroupedConv2D(keras.layers.Conv2D):
    """A grouped convolution that converts to valid ONNX and TFLite files.

    `keras.layers.Conv2D(groups=...)` with the same arguments and weights; what differs is that
    Keras on TensorFlow runs it inside a jitted function of its own, which converters cannot read.
    Krizhevsky et al. 2012, section 3.5; Xie et al. 2017 (arXiv 1611.05431), figure 3c.

    Args: those of `keras.layers.Conv2D`; `groups` divides input channels and `filters`.

    Input: float `[batch, height, width, channels]`.
    Output: `[batch, new height, new width, filters]`. The kernel is
    `[height, width, channels / groups, filters]`.

    Raises:
        ValueError: channels or filters are no multiple of `groups`, or `channels_first` is asked.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.data_format != "channels_last":
            raise ValueError(
                "GroupedConv2D takes data_format='channels_last' only: TensorFlow has no other on "
                "the CPU, where models are exported."
            )

    def convolution_op(self, inputs, kernel):
        if self.groups == 1 or keras.backend.backend() != "tensorflow":
            return super().convolution_op(inputs, kernel)
        import tensorflow as tf

        return tf.nn.conv2d(
            inputs,
            ops.convert_to_tensor(kernel),
            strides=self.strides,
            padding=self.padding.upper(),
            dilations=self.dilation_rate,
        )
