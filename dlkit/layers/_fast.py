"""The TensorFlow backend's fast paths; each function equals its namesake in `_plain`. TensorFlow loads on first use."""

from collections.abc import Sequence
from typing import Any

import keras

from dlkit.layers import _plain
from dlkit.layers._plain import group_norm, layer_norm, rms_norm, scale_shift  # noqa: F401

Tensor = Any

_FUSED_TYPES = ("float32", "bfloat16", "float16")


def available() -> bool:
    """Tells whether these functions can run here: on the TensorFlow backend."""
    return keras.backend.backend() == "tensorflow"


def batch_norm_training(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns output, mean and biased variance from FusedBatchNormV3, which runs with the channels last.

    The kernel returns the unbiased variance, N/(N-1) times the batch's: that factor is taken back.
    """
    import tensorflow as tf

    rank = len(x.shape)
    if axis != rank - 1 or keras.backend.standardize_dtype(x.dtype) not in _FUSED_TYPES:
        return _plain.batch_norm_training(x, gamma, beta, axis, epsilon)
    channels = x.shape[-1]
    shape = tf.shape(x)
    flat = x if rank == 4 else tf.reshape(x, [-1, 1, 1, channels])
    one, zero = tf.ones([channels]), tf.zeros([channels])
    fused = tf.raw_ops.FusedBatchNormV3(
        x=flat,
        scale=one if gamma is None else tf.cast(tf.convert_to_tensor(gamma), "float32"),
        offset=zero if beta is None else tf.cast(tf.convert_to_tensor(beta), "float32"),
        mean=zero,
        variance=one,
        epsilon=epsilon,
        is_training=True,
    )
    y = fused.y if rank == 4 else tf.reshape(fused.y, shape)
    y.set_shape(x.shape)
    count = tf.cast(tf.reduce_prod(_leading(x)), "float32")
    biased = fused.batch_variance * tf.maximum(count - 1.0, 1.0) / count
    return y, fused.batch_mean, biased


def _leading(x: Tensor) -> Sequence[int] | Tensor:
    """Returns the sizes of all axes but the last, static where they are known."""
    import tensorflow as tf

    return tf.constant(x.shape[:-1]) if x.shape[:-1].is_fully_defined() else tf.shape(x)[:-1]
