"""Local response normalisation of AlexNet."""

from typing import Any

import keras
import numpy as np
from keras import ops

from dlkit._errors import InputError
from dlkit.layers._axes import channel_axis, number, positive
from dlkit.layers._plain import wide


@keras.saving.register_keras_serializable(package="dlkit")
class LocalResponseNorm(keras.layers.Layer):
    """Divides each channel by a power of the squares of its neighbouring channels.

        y_i = x_i / (k + alpha * sum(x_j**2, j = i - (size-1)/2 .. i + (size-1)/2)) ** beta

    The sum stays within the channels and alpha is not divided by `size`: the formula of the AlexNet paper. (PyTorch
    divides alpha by the size; TensorFlow's `depth_radius` is (size-1)/2.) Later networks use `BatchNorm` instead.

    Args:
        size: channels in the sum, odd. The paper's n = 5.
        k, alpha, beta: as in the formula; the paper's 2, 1e-4, 0.75.
        axis: the channel axis; never the batch axis.
        **kwargs: `name`, `dtype`.

    Input and output: any shape of rank 2 or more with known channels. The squares are summed in float32.

    Raises:
        InputError: an even size, a negative number, or an axis that is wrong or of unknown size.

    Example:
        >>> import numpy as np
        >>> layer = LocalResponseNorm(size=3, k=1.0, alpha=1.0, beta=1.0)
        >>> [round(float(v), 4) for v in keras.ops.convert_to_numpy(layer(np.array([[1.0, 2.0, 0.0]], "float32")))[0]]
        [0.1667, 0.3333, 0.0]

    Reference: A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks", 2012, section 3.3. Lecture 000 (E. Sokolov), section 8.1 (AlexNet) and the table of 8.2 (A-LRN).
    """

    def __init__(
        self,
        size: int = 5,
        k: float = 2.0,
        alpha: float = 1e-4,
        beta: float = 0.75,
        axis: int = -1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = positive(size, "size", "LocalResponseNorm", 5)
        if self.size % 2 == 0:
            raise InputError(
                f"LocalResponseNorm: size={size} is even, the window would not be centred; allowed: odd numbers, "
                f"for example size={self.size + 1}"
            )
        infinity = float("inf")
        self.k = number(k, "k", "LocalResponseNorm", 0.0, infinity, 2.0)
        self.alpha = number(alpha, "alpha", "LocalResponseNorm", 0.0, infinity, 1e-4)
        self.beta = number(beta, "beta", "LocalResponseNorm", 0.0, infinity, 0.75)
        self.axis = axis
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self._axis = channel_axis(self.axis, input_shape, "LocalResponseNorm")
        index = np.arange(int(input_shape[self._axis]))
        near = np.abs(index[:, None] - index[None, :]) <= self.size // 2
        self._band = near.astype("float32")  # band[i, j] = 1 where channel j lies in the window of channel i

    def call(self, inputs: Any) -> Any:
        x = wide(inputs)
        last = len(inputs.shape) - 1
        squares = ops.square(x)
        if self._axis != last:
            squares = ops.moveaxis(squares, self._axis, last)
        total = ops.matmul(squares, ops.cast(ops.convert_to_tensor(self._band), x.dtype))
        if self._axis != last:
            total = ops.moveaxis(total, last, self._axis)
        return ops.cast(x * _power(self.k + self.alpha * total, self.beta), inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"size": self.size, "k": self.k, "alpha": self.alpha, "beta": self.beta, "axis": self.axis}
        return {**super().get_config(), **own}


def _power(base: Any, beta: float) -> Any:
    """Returns base ** -beta; the paper's 0.75 by two reciprocal roots, which cost a tenth of a power."""
    if beta == 0.75:
        half = ops.rsqrt(base)
        return half * ops.sqrt(half)
    return ops.power(base, -beta)
