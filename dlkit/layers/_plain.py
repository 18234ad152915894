"""The reference formulas in `keras.ops`, the same on every backend; `_fast` must equal them.

Every function takes the input in its own dtype, computes in float32 at least (half precision would overflow at 256
in the square and lose the statistics), and returns the input's dtype. Variances are two-pass, and the mean is
subtracted twice: the first time leaves the rounding error of the sum, which is 1e-3 at a mean of 1e3. `training`
changes nothing here; the fast paths ask it.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from dlkit.layers._axes import broadcast_shape

Tensor = Any


def wide(x: Tensor) -> Tensor:
    """Casts half precision to float32 and leaves float32 and float64 as they are."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))


def affine(y: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Returns y * gamma + beta, the parameters reshaped to `shape`; None leaves a step out."""
    if gamma is not None:
        y = y * ops.reshape(ops.cast(gamma, y.dtype), shape)
    if beta is not None:
        y = y + ops.reshape(ops.cast(beta, y.dtype), shape)
    return y


def rms_norm(
    x: Tensor, scale: Tensor | None, axes: Sequence[int], epsilon: float, training: bool | None = None
) -> Tensor:
    """Returns x / sqrt(mean(x**2, axes) + epsilon) * scale."""
    w = wide(x)
    y = w * ops.rsqrt(ops.mean(ops.square(w), axis=axes, keepdims=True) + epsilon)
    return ops.cast(affine(y, scale, None, broadcast_shape(x.shape, axes)), x.dtype)


def layer_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    axes: Sequence[int],
    epsilon: float,
    training: bool | None = None,
) -> Tensor:
    """Returns (x - mean) / sqrt(variance + epsilon) * gamma + beta with the statistics of `axes`."""
    d = wide(x)
    d = d - ops.mean(d, axis=axes, keepdims=True)
    d = d - ops.mean(d, axis=axes, keepdims=True)
    y = d * ops.rsqrt(ops.mean(ops.square(d), axis=axes, keepdims=True) + epsilon)
    return ops.cast(affine(y, gamma, beta, broadcast_shape(x.shape, axes)), x.dtype)


def group_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    groups: int,
    axis: int,
    epsilon: float,
    training: bool | None = None,
) -> Tensor:
    """Returns the input normalised with the statistics of each sample's groups of channels.

    Means over the positions come first, per channel, and are then averaged within a group: equal counts make that the
    group's mean, and no 5-D copy of the input is needed.
    """
    w = wide(x)
    channels = int(x.shape[axis])
    spatial = [i for i in range(1, len(x.shape)) if i != axis]
    d = w - _over_groups(w, spatial, groups, channels, axis)
    d = d - _over_groups(d, spatial, groups, channels, axis)
    y = d * ops.rsqrt(_over_groups(ops.square(d), spatial, groups, channels, axis) + epsilon)
    return ops.cast(affine(y, gamma, beta, broadcast_shape(x.shape, [axis])), x.dtype)


def _over_groups(w: Tensor, spatial: list[int], groups: int, channels: int, axis: int) -> Tensor:
    """Returns the mean of each (sample, group), repeated for every channel and shaped to broadcast against `w`."""
    per_channel = ops.mean(w, axis=spatial) if spatial else w
    if groups < channels:
        per_group = ops.mean(ops.reshape(per_channel, (-1, groups, channels // groups)), axis=-1)
        per_channel = ops.repeat(per_group, channels // groups, axis=-1)
    return ops.reshape(per_channel, [-1] + [channels if i == axis else 1 for i in range(1, len(w.shape))])


def moments(x: Tensor, axis: int, mask: Tensor | None, synchronized: bool) -> tuple[Tensor, Tensor]:
    """Returns the mean and biased variance of each channel over batch and positions, in float32 at least.

    Positions that `mask` (all axes but the last) marks False are left out. With `synchronized` the statistics are
    those of all replicas together.
    """
    w = wide(x)
    axes = [i for i in range(len(x.shape)) if i != axis]
    if mask is None:
        if synchronized:
            return ops.moments(w, axes=axes, synchronized=True)
        mean = ops.mean(w, axis=axes, keepdims=True)
        mean = mean + ops.mean(w - mean, axis=axes, keepdims=True)
        return ops.reshape(mean, [-1]), ops.mean(ops.square(w - mean), axis=axes)
    weight = ops.broadcast_to(ops.expand_dims(ops.cast(mask, w.dtype), -1), ops.shape(w))
    total = ops.sum(weight, axis=axes, keepdims=True) + keras.config.epsilon()
    mean = ops.sum(w * weight, axis=axes, keepdims=True) / total
    variance = ops.sum(ops.square(w - mean) * weight, axis=axes, keepdims=True) / total
    return ops.reshape(mean, [-1]), ops.reshape(variance, [-1])


def scale_shift(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    axis: int,
    epsilon: float,
) -> Tensor:
    """Returns gamma * (x - mean) / sqrt(variance + epsilon) + beta with one number of each per channel.

    The mean is subtracted first: folded into the shift it would cost digits where the mean is large.
    """
    w = wide(x)
    shape = broadcast_shape(x.shape, [axis])
    inverse = ops.rsqrt(ops.cast(variance, w.dtype) + epsilon)
    y = (w - ops.reshape(ops.cast(mean, w.dtype), shape)) * ops.reshape(inverse, shape)
    return ops.cast(affine(y, gamma, beta, shape), x.dtype)


def batch_norm_training(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the input normalised with its own statistics per channel, their mean and their biased variance."""
    mean, variance = moments(x, axis, None, False)
    return scale_shift(x, mean, variance, gamma, beta, axis, epsilon), mean, variance
