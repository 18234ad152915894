"""Normalisation within one sample: RMSNorm, LayerNorm, GroupNorm, InstanceNorm."""

from typing import Any

import keras

from dlkit._errors import InputError
from dlkit.layers import _fast, _plain
from dlkit.layers._axes import axis_argument, channel_axis, feature_axes, number, positive


def kernels() -> Any:
    """Returns the module that computes: `_fast` on the TensorFlow backend, `_plain` elsewhere."""
    return _fast if _fast.available() else _plain


class Norm(keras.layers.Layer):
    """What the norms share: epsilon, the learnt scale and offset, and a config that is the constructor's arguments."""

    def __init__(
        self, axis: Any, epsilon: float, center: bool, scale: bool, gamma_initializer: Any, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        layer = type(self).__name__
        self.axis = axis_argument(axis, layer)
        self.epsilon = number(epsilon, "epsilon", layer, 0.0, 1.0, 1e-5)
        self.center, self.scale = bool(center), bool(scale)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.supports_masking = True
        self.gamma = self.beta = None

    def add_parameters(self, shape: tuple[int, ...], scale_name: str = "gamma") -> None:
        """Creates gamma and beta of `shape`, kept in the variable dtype also under a half-precision policy."""
        if self.scale:
            self.gamma = self.add_weight(
                shape=shape, name=scale_name, initializer=self.gamma_initializer, autocast=False
            )
        if self.center:
            self.beta = self.add_weight(shape=shape, name="beta", initializer="zeros", autocast=False)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {
            "axis": self.axis,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
        }
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="dlkit")
class RMSNorm(Norm):
    """Divides each feature vector by its root mean square.

        y = x / sqrt(mean(x**2, axis) + epsilon) * scale

    Cheaper than `LayerNorm`: no mean is subtracted and no offset is learnt. The usual choice of today's transformers;
    choose `LayerNorm` where the features' common offset carries no information and should go.

    Args:
        axis: int or tuple of ints, the axes whose features are divided together; never the batch axis.
        epsilon: added to the mean square, inside the root. The lecture's small constant; 1e-6 as in common use.
        scale: whether a factor per feature is learnt (initially 1).
        gamma_initializer: of that factor.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: any shape of rank 2 or more; the named axes must be known, all others may be None. Half
    precision in, half precision out; the statistics are float32.

    Raises:
        InputError: the axis is the batch axis, does not exist, or has an unknown size.

    Example:
        >>> import numpy as np
        >>> y = RMSNorm(epsilon=0.0)(np.array([[3.0, 4.0]], "float32"))   # root mean square: sqrt(12.5)
        >>> [round(float(v), 4) for v in keras.ops.convert_to_numpy(y)[0]]
        [0.8485, 1.1314]

    Reference: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4,
    https://arxiv.org/abs/1910.07467. Lecture 000 (E. Sokolov), section 6.2.
    """

    def __init__(
        self,
        axis: int | tuple[int, ...] = -1,
        epsilon: float = 1e-6,
        scale: bool = True,
        gamma_initializer: Any = "ones",
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, epsilon, False, scale, gamma_initializer, **kwargs)

    def build(self, input_shape: Any) -> None:
        self._axes = feature_axes(self.axis, input_shape, "RMSNorm")
        self.add_parameters(tuple(input_shape[a] for a in self._axes), "scale")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return kernels().rms_norm(inputs, self.gamma, self._axes, self.epsilon, training)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["center"]
        return config


@keras.saving.register_keras_serializable(package="dlkit")
class LayerNorm(Norm):
    """Normalises each feature vector to zero mean and unit variance.

        y = (x - mean(x, axis)) / sqrt(var(x, axis) + epsilon) * gamma + beta

    Independent of the batch, so it suits sequences and small batches. `RMSNorm` is cheaper; in convolutional networks
    `GroupNorm` normalises over the positions too. `axis=(-3, -2, -1)` is the form of the convolutional lecture, over
    height, width and channels of a picture; scale and offset then have one number per pixel and channel.

    Args:
        axis: int or tuple of ints, the axes normalised together; never the batch axis.
        epsilon: added to the variance, inside the root. 1e-5, the value of the paper's code.
        center: whether an offset per feature is learnt (initially 0).
        scale: whether a factor per feature is learnt (initially 1).
        gamma_initializer: of the factor.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: any shape of rank 2 or more; the named axes must be known, all others may be None. Half
    precision in, half precision out; the statistics are float32 and the variance is two-pass.

    Raises:
        InputError: the axis is the batch axis, does not exist, or has an unknown size.

    Example:
        >>> import numpy as np
        >>> y = LayerNorm(epsilon=0.0)(np.array([[1.0, 2.0, 3.0]], "float32"))
        >>> [round(float(v), 3) for v in keras.ops.convert_to_numpy(y)[0]]
        [-1.225, 0.0, 1.225]

    Reference: J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016, eq. 3-4,
    https://arxiv.org/abs/1607.06450. Lecture 000 (E. Sokolov), section 6.2; lecture 004 (I. Ivanov), "LN".
    """

    def __init__(
        self,
        axis: int | tuple[int, ...] = -1,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        gamma_initializer: Any = "ones",
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, epsilon, center, scale, gamma_initializer, **kwargs)

    def build(self, input_shape: Any) -> None:
        self._axes = feature_axes(self.axis, input_shape, "LayerNorm")
        self.add_parameters(tuple(input_shape[a] for a in self._axes))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return kernels().layer_norm(inputs, self.gamma, self.beta, self._axes, self.epsilon, training)


@keras.saving.register_keras_serializable(package="dlkit")
class GroupNorm(Norm):
    """Normalises each sample's groups of channels over all positions.

        y = (x - mean) / sqrt(var + epsilon) * gamma + beta
        mean and var over the positions and the channels of one group of one sample

    The choice for convolutional networks with small batches, where `BatchNorm` becomes noisy. One group is layer
    normalisation over the picture (with one gamma and beta per channel), one channel per group is `InstanceNorm`.

    Args:
        groups: number of groups; must divide the channels. 32, the paper's default.
        axis: the channel axis; never the batch axis.
        epsilon: added to the variance, inside the root. 1e-5, the value of the paper's code.
        center: whether an offset per channel is learnt (initially 0).
        scale: whether a factor per channel is learnt (initially 1).
        gamma_initializer: of the factor.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: any shape of rank 2 or more with known channels; positions and batch may be None. Half precision
    in, half precision out; the statistics are float32 and the variance is exact also at a large mean.

    Raises:
        InputError: the groups do not divide the channels, or the axis is wrong or of unknown size.

    Example:
        >>> import numpy as np
        >>> x = np.arange(8, dtype="float32").reshape(1, 2, 4)
        >>> y = GroupNorm(groups=2, epsilon=0.0)(x)     # channels 0, 1 together: 0, 1, 4, 5, mean 2.5
        >>> [[round(float(v), 3) for v in row] for row in keras.ops.convert_to_numpy(y)[0, :, :2]]
        [[-1.213, -0.728], [0.728, 1.213]]

    Reference: Y. Wu, K. He, "Group Normalization", 2018, eq. 7, https://arxiv.org/abs/1803.08494.
    Lecture 000 (E. Sokolov), section 6.2; lecture 004 (I. Ivanov), "GN".
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        gamma_initializer: Any = "ones",
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, epsilon, center, scale, gamma_initializer, **kwargs)
        self.groups = positive(groups, "groups", "GroupNorm", 32)

    def build(self, input_shape: Any) -> None:
        self._axis = channel_axis(self.axis, input_shape, "GroupNorm")
        channels = int(input_shape[self._axis])
        if channels % self.groups:
            near = min((g for g in range(1, channels + 1) if channels % g == 0), key=lambda g: abs(g - self.groups))
            raise InputError(
                f"GroupNorm: groups={self.groups} does not divide the {channels} channels of an input of shape "
                f"{tuple(input_shape)}; allowed: the divisors of {channels}, for example GroupNorm(groups={near})"
            )
        self.add_parameters((channels,))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return kernels().group_norm(inputs, self.gamma, self.beta, self.groups, self._axis, self.epsilon, training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}


@keras.saving.register_keras_serializable(package="dlkit")
class InstanceNorm(Norm):
    """Normalises every channel of every sample over its positions.

        y = (x - mean) / sqrt(var + epsilon) * gamma + beta
        mean and var over the positions of one channel of one sample

    Removes the contrast of a picture from its features: the choice for style transfer. Choose `GroupNorm` for
    recognition, where the contrast between channels carries information.

    Args:
        axis: the channel axis; never the batch axis.
        epsilon: added to the variance, inside the root.
        center: whether an offset per channel is learnt (initially 0).
        scale: whether a factor per channel is learnt (initially 1).
        gamma_initializer: of the factor.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: any shape of rank 3 or more with known channels; positions and batch may be None. Half precision
    in, half precision out; the statistics are float32 and the variance is exact also at a large mean.

    Raises:
        InputError: the input has no positions (rank 2), or the axis is wrong or of unknown size.

    Example:
        >>> import numpy as np
        >>> y = InstanceNorm(epsilon=0.0)(np.array([[[1.0], [3.0]]], "float32"))
        >>> keras.ops.convert_to_numpy(y).tolist()
        [[[-1.0], [1.0]]]

    Reference: D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016, eq. 3, https://arxiv.org/abs/1607.08022. Lecture 004 (I. Ivanov), "IN".
    """

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        gamma_initializer: Any = "ones",
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, epsilon, center, scale, gamma_initializer, **kwargs)

    def build(self, input_shape: Any) -> None:
        if len(input_shape) < 3:
            raise InputError(
                f"InstanceNorm: an input of shape {tuple(input_shape)} has no positions to average over, every output "
                "would be 0; allowed: rank 3 or more, for example (None, 32, 32, 64). Use LayerNorm for vectors"
            )
        self._axis = channel_axis(self.axis, input_shape, "InstanceNorm")
        self.add_parameters((int(input_shape[self._axis]),))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        channels = int(inputs.shape[self._axis])
        return kernels().group_norm(inputs, self.gamma, self.beta, channels, self._axis, self.epsilon, training)
