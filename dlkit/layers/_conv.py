"""Weight standardisation, as a convolution of its own and around any convolution."""

from typing import Any

import keras
from keras import ops

from dlkit._errors import InputError
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
        **kwargs: strides, padding, and all other arguments of `keras.layers.Conv2D`.
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


@keras.saving.register_keras_serializable(package="dlkit")
class WeightStandardization(keras.layers.Wrapper):
    """Standardises the kernel of any convolution or dense layer each time it is used.

        W^ = (W - mean(W)) / sqrt(var(W) + epsilon),  over all weights that lead to one output channel

    For convolutions of other ranks, transposed, depthwise and dense layers; `WSConv2D` is the same around `Conv2D`
    without a wrapper.

    Args:
        layer: the layer, with one kernel: Conv1D to Conv3D, their transposed and depthwise forms, Dense. It keeps its
            weight W, and with it regularisers and constraints.
        epsilon: added to the variance, inside the root.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: those of the wrapped layer.

    Raises:
        InputError: the layer has no kernel, or epsilon is out of range.

    Example:
        >>> import keras
        >>> WeightStandardization(keras.layers.Conv1D(8, 3)).compute_output_shape((None, 10, 4))
        (None, 8, 8)

    Reference: S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, "Weight Standardization", 2019, eq. 5-7,
    https://arxiv.org/abs/1903.10520. Lecture 004 (I. Ivanov), "WS".
    """

    def __init__(self, layer: keras.layers.Layer, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.epsilon = number(epsilon, "epsilon", "WeightStandardization", 0.0, 1.0, 1e-5)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        found = [name for name in ("_kernel", "kernel") if name in vars(self.layer)]
        if not found:
            raise InputError(
                f"WeightStandardization: {type(self.layer).__name__} has no kernel; allowed: convolutions and Dense, "
                "for example WeightStandardization(keras.layers.Conv1D(8, 3))"
            )
        self._kernel_name = found[0]
        rank, kind = len(self.layer.kernel.shape), type(self.layer).__name__
        kept = {rank - 1}
        if "Transpose" in kind:
            kept = {rank - 2}  # the kernel of a transposed convolution is (window, outputs, inputs)
        elif "Depthwise" in kind:
            kept = {rank - 2, rank - 1}  # (window, inputs, multiplier): one filter for each pair
        self._kernel_axes = tuple(i for i in range(rank) if i not in kept)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        attributes, name = self.layer.__dict__, self._kernel_name
        kernel = attributes[name]
        value = standardized(ops.convert_to_tensor(kernel), self.epsilon, self._kernel_axes)
        attributes[name] = ops.cast(value, self.layer.compute_dtype)
        try:
            return self.layer(inputs)
        finally:
            attributes[name] = kernel

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "epsilon": self.epsilon}
        config["layer"].pop("build_config", None)  # appears once the layer is built; a config must not change
        return config
