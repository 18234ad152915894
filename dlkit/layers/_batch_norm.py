"""BatchNorm: batch statistics in training, moving averages at inference."""

from typing import Any

import keras
from keras import ops

from dlkit._errors import InputError
from dlkit.layers import _plain
from dlkit.layers._axes import channel_axis, number
from dlkit.layers._norms import Norm, kernels


@keras.saving.register_keras_serializable(package="dlkit")
class BatchNorm(Norm):
    """Normalises every channel with the statistics of the batch in training, with moving averages at inference.

        training:   y = gamma * (x - mean_B) / sqrt(var_B + epsilon) + beta
                    moving_mean     <- momentum * moving_mean     + (1 - momentum) * mean_B
                    moving_variance <- momentum * moving_variance + (1 - momentum) * var_B
        inference:  y = gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta

    mean_B and var_B (biased, divided by N) are taken over the batch and all positions; the averages start at 0 and 1.
    The choice for convolutional networks with batches of 16 and more; `GroupNorm` does not depend on the batch.

    Args:
        axis: the channel axis; never the batch axis.
        momentum: weight of the old average, the lecture's alpha. 0.9 follows short trainings; Keras' own is 0.99.
        epsilon: added to the variance, inside the root.
        center: whether an offset per channel is learnt (initially 0).
        scale: whether a factor per channel is learnt (initially 1).
        gamma_initializer: of the factor; "zeros" in the last norm of a residual branch starts it as the identity.
        frozen: True uses the moving averages in training too and never moves them; gamma and beta still learn. For
            fine-tuning with small batches. `layer.trainable = False` freezes gamma and beta as well.
        renorm: batch renormalisation for small batches: (r_max, d_max), the largest correction of scale and of shift,
            e.g. (3.0, 5.0) as in the paper once training has settled. None is plain batch normalisation.
        synchronized: statistics over all replicas of a `tf.distribute` strategy (TensorFlow backend only).
        **kwargs: `name`, `dtype`, `trainable`.

    Weights: gamma, beta, moving_mean, moving_variance. Input and output: any shape of rank 2 or more with known
    channels. Half precision in, half precision out; statistics and averages are float32. On TensorFlow, training with
    the channels last runs the fused kernel. A mask (all axes but the last) leaves positions out of the statistics.

    Raises:
        InputError: the axis is wrong or of unknown size, a number is out of range, `synchronized` on another backend.

    Example:
        >>> import numpy as np
        >>> layer = BatchNorm(epsilon=0.0)
        >>> y = layer(np.array([[1.0], [3.0]], "float32"), training=True)
        >>> keras.ops.convert_to_numpy(y).tolist()
        [[-1.0], [1.0]]
        >>> [round(float(keras.ops.convert_to_numpy(w)[0]), 3) for w in (layer.moving_mean, layer.moving_variance)]
        [0.2, 1.0]

    Reference: S. Ioffe, C. Szegedy, "Batch Normalization", 2015, algorithms 1-2, https://arxiv.org/abs/1502.03167;
    S. Ioffe, "Batch Renormalization", 2017, algorithm 1, https://arxiv.org/abs/1702.03275.
    Lecture 000 (E. Sokolov), section 6; lecture 004 (I. Ivanov), "BN". The lectures average the biased variance.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        gamma_initializer: Any = "ones",
        frozen: bool = False,
        renorm: tuple[float, float] | None = None,
        synchronized: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, epsilon, center, scale, gamma_initializer, **kwargs)
        self.momentum = number(momentum, "momentum", "BatchNorm", 0.0, 1.0, 0.9)
        self.frozen, self.synchronized = bool(frozen), bool(synchronized)
        self.renorm = _renorm_limits(renorm)
        if self.synchronized and keras.backend.backend() != "tensorflow":
            raise InputError(
                f"BatchNorm: synchronized=True needs the TensorFlow backend, this is {keras.backend.backend()!r}; "
                "leave it out, or use renorm=(3.0, 5.0) for small batches"
            )

    def build(self, input_shape: Any) -> None:
        self._axis = channel_axis(self.axis, input_shape, "BatchNorm")
        shape = (int(input_shape[self._axis]),)
        self.add_parameters(shape)
        # half-precision averages would stop moving: 0.1 of a small difference is below their resolution
        dtype = keras.backend.result_type(self.variable_dtype, "float32")
        shared = {"shape": shape, "trainable": False, "autocast": False, "dtype": dtype, "aggregation": "mean"}
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **shared)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **shared)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training or self.frozen or not self.trainable:
            return self._apply(inputs, self.moving_mean, self.moving_variance)
        if mask is None and self.renorm is None and not self.synchronized:
            outputs, mean, variance = kernels().batch_norm_training(
                inputs, self.gamma, self.beta, self._axis, self.epsilon
            )
            self._move(inputs, mean, variance)
            return outputs
        mean, variance = _plain.moments(inputs, self._axis, _checked(mask, inputs), self.synchronized)
        if self.renorm is None:
            outputs = _plain.scale_shift(inputs, mean, variance, self.gamma, self.beta, self._axis, self.epsilon)
        else:
            outputs = self._renormalise(inputs, mean, variance)
        self._move(inputs, mean, variance)
        return outputs

    def _apply(self, inputs: Any, mean: Any, variance: Any) -> Any:
        return kernels().scale_shift(inputs, mean, variance, self.gamma, self.beta, self._axis, self.epsilon)

    def _renormalise(self, inputs: Any, mean: Any, variance: Any) -> Any:
        """Corrects the batch statistics towards the moving ones; no gradient flows through the correction."""
        r_max, d_max = self.renorm or (1.0, 0.0)
        batch, moving = (ops.sqrt(v + self.epsilon) for v in (variance, self.moving_variance))
        r = ops.stop_gradient(ops.clip(batch / moving, 1.0 / r_max, r_max))
        d = ops.stop_gradient(ops.clip((mean - self.moving_mean) / moving, -d_max, d_max))
        y = _plain.scale_shift(_plain.wide(inputs), mean, variance, r, d, self._axis, self.epsilon)
        shape = _plain.broadcast_shape(inputs.shape, [self._axis])
        return ops.cast(_plain.affine(y, self.gamma, self.beta, shape), inputs.dtype)

    def _move(self, inputs: Any, mean: Any, variance: Any) -> None:
        """Moves the averages a step of 1 - momentum towards the batch's statistics; an empty batch moves nothing."""
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            new = ops.cast(ops.stop_gradient(value), average.dtype)
            if not all(inputs.shape):  # empty, or of unknown size
                new = ops.where(ops.size(inputs) > 0, new, ops.convert_to_tensor(average))
            average.assign(average * self.momentum + new * (1.0 - self.momentum))

    def get_config(self) -> dict[str, Any]:
        own = {
            "momentum": self.momentum,
            "frozen": self.frozen,
            "renorm": self.renorm,
            "synchronized": self.synchronized,
        }
        return {**super().get_config(), **own}


def _renorm_limits(renorm: Any) -> tuple[float, float] | None:
    """Returns (r_max, d_max), r_max at least 1 and d_max at least 0."""
    if renorm is None:
        return None
    if not isinstance(renorm, (list, tuple)) or len(renorm) != 2:
        raise InputError(f"BatchNorm: renorm={renorm!r} must be None or (r_max, d_max), for example renorm=(3.0, 5.0)")
    infinity = float("inf")
    return (
        number(renorm[0], "renorm[0]", "BatchNorm", 1.0, infinity, 3.0),
        number(renorm[1], "renorm[1]", "BatchNorm", 0.0, infinity, 5.0),
    )


def _checked(mask: Any, inputs: Any) -> Any:
    """Returns the mask if its rank is the input's less one."""
    if mask is not None and len(mask.shape) != len(inputs.shape) - 1:
        raise InputError(
            f"BatchNorm: a mask of shape {tuple(mask.shape)} does not fit an input of shape {tuple(inputs.shape)}; "
            "allowed: one value per position, the input's shape without its last axis"
        )
    return mask
