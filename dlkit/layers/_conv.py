"""Weight standardisation, as a convolution of its own and around any convolution."""

from typing import Any

import keras
from keras import ops

from dlkit.layers._axes import number
from dlkit.layers._plain import wide


def standardized(kernel: Any, epsilon: float, axes: tuple[int, ...]) -> Any:
    """Returns (kernel - mean) / sqrt(variance + epsilon) with the statistics of `axes`, computed in float32."""
    w = wide(kernel)
    w = w - ops.mean(w, axis=axes, keepdims=True)
    w = w * ops.rsqrt(ops.mean(ops.square(w), axis=axes, keepdims=True) + epsilon)
    return ops.cast(w, kernel.dtype)


@keras.saving.register_keras_serializable(package="dlkit")
class WSConv2D(keras.layers.Conv2D):
    """Convolves with kernels standardised to zero mean and unit variance per output channel.

        W^ = (W - mean(W)) / sqrt(var(W) + epsilon),  over height, width and input channels of each filter

    Together with `GroupNorm` it reaches at batch 1 what `BatchNorm` reaches at large batches. The learnt weight is W;
    the convolution sees W^. For other convolutions see `WeightStandardization`.

    Args:
        filters: output channels.
        kernel_size: of the window, in pixels.
        strides, padding, and all other arguments of `keras.layers.Conv2D`.
        epsilon: added to the variance, inside the root as in the lecture. 1e-5, the value of the paper's code.

    Weights: kernel, bias. Input (batch, height, width, channels), output (batch, height', width', filters).

    Raises:
        InputError: epsilon out of range. ValueError for wrong arguments of `Conv2D`.

    Example:
        >>> WSConv2D(8, 3, padding="same").compute_output_shape((None, 32, 32, 3))
        (None, 32, 32, 8)

    Reference: S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, "Weight Standardization", 2019, eq. 5-7,
    https://arxiv.org/abs/1903.10520. Lecture 004 (I. Ivanov), "WS".
    """

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], *args: Any, **kwargs: Any) -> None:
        self.epsilon = number(kwargs.pop("epsilon", 1e-5), "epsilon", "WSConv2D", 0.0, 1.0, 1e-5)
        super().__init__(filters, kernel_size, *args, **kwargs)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return super().convolution_op(inputs, standardized(kernel, self.epsilon, (0, 1, 2)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}
