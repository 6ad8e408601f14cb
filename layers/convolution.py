"""Convolutions that Keras has, in a form that exports."""

import keras


@keras.saving.register_keras_serializable("tiffin")
class GroupedConv2D(keras.layers.Conv2D):
    """A grouped convolution that converts to valid ONNX and TFLite files.

    `keras.layers.Conv2D(groups=...)` with the same arguments and weights; what differs is that
    Keras on TensorFlow runs it inside a jitted function of its own, which converters cannot read
    and whose gradient takes a hundred times as long on a CPU.
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
        return _grouped_conv2d(
            inputs,
            kernel,
            self.groups,
            {
                "strides": [1, *self.strides, 1],
                "padding": self.padding.upper(),
                "dilations": [1, *self.dilation_rate, 1],
            },
        )


def _grouped_conv2d(image, kernel, groups: int, options: dict):
    """Convolve by TensorFlow, as one operation forward and one for each group backward.

    Where a processor lacks AVX-512, TensorFlow knows no gradient of a grouped convolution, and it
    joins one with the bias and the activation behind it to an operation that refuses groups. It
    does the latter within a function only.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def convolve(image, kernel):
        def forward():
            return tf.nn.conv2d(image, kernel, **options)

        def gradient(error):
            parts = [tf.split(value, groups, axis=-1) for value in (image, kernel, error)]
            of_image, of_kernel = [], []
            for x, w, dy in zip(*parts, strict=True):
                of_image.append(
                    tf.raw_ops.Conv2DBackpropInput(
                        input_sizes=tf.shape(x), filter=w, out_backprop=dy, **options
                    )
                )
                of_kernel.append(
                    tf.raw_ops.Conv2DBackpropFilter(
                        input=x, filter_sizes=tf.shape(w), out_backprop=dy, **options
                    )
                )
            return tf.concat(of_image, axis=-1), tf.concat(of_kernel, axis=-1)

        if tf.executing_eagerly():
            return forward(), gradient
        apart = {"_noinline": True}
        apart = tf.function(forward, autograph=False, experimental_attributes=apart)
        return apart(), gradient

    return convolve(tf.convert_to_tensor(image), tf.convert_to_tensor(kernel))
