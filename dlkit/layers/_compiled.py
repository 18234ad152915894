"""The bodies of the compiled functions, written with TensorFlow's operations; `tf` is passed in, so that importing this
module needs no TensorFlow. `_fast` compiles them and says when they run.
"""

import math
from collections.abc import Callable
from typing import Any

from dlkit.layers import _plain

Tensor = Any


def _f32(tf: Any, x: Tensor) -> Tensor:
    return tf.cast(x, tf.float32)


def group_mean(tf: Any, t: Tensor, groups: int) -> Tensor:
    """Averages (..., channels) within each group and repeats the mean for each channel.

    A product with a constant block matrix: as reshape and repeat XLA would recompute it for every element.
    """
    import numpy as np

    channels = t.shape[-1]
    if groups == channels:
        return t
    blocks = np.kron(np.eye(groups), np.full((channels // groups,) * 2, groups / channels)).astype("float32")
    return tf.reshape(tf.matmul(tf.reshape(t, [-1, channels]), blocks), tf.shape(t))


def features(tf: Any, epsilon: float, center: bool) -> tuple[Callable[..., Any], ...]:
    """LayerNorm (`center`) and RMSNorm over the last axis: forward, backward, and the same in standard operations."""

    def centred(x2: Tensor, shift: Tensor | None, mean: Tensor | None) -> Tensor:
        return (_f32(tf, x2) - shift[:, None]) - mean[:, None] if center else _f32(tf, x2)  # type: ignore[index]

    def forward(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        channels = x.shape[-1]
        x2, average = tf.reshape(x, [-1, channels]), tf.fill([channels], 1.0 / channels)
        shift = mean = None
        if center:
            shift = _f32(tf, x2[:, 0])
            mean = tf.linalg.matvec(_f32(tf, x2) - shift[:, None], average)
        d = centred(x2, shift, mean)
        inverse = tf.math.rsqrt(tf.linalg.matvec(tf.square(d), average) + epsilon)
        y = d * inverse[:, None] * gamma + beta if center else d * inverse[:, None] * gamma
        y = tf.reshape(tf.cast(y, x.dtype), tf.shape(x))
        return (y, inverse, shift, mean) if center else (y, inverse)

    def backward(x: Tensor, gamma: Tensor, dy: Tensor, inverse: Tensor, *shift_mean: Tensor) -> tuple[Tensor, ...]:
        channels = x.shape[-1]
        x2, g2 = tf.reshape(x, [-1, channels]), tf.reshape(dy, [-1, channels])
        d, g, r = centred(x2, *(shift_mean or (None, None))), _f32(tf, g2), inverse[:, None]
        c2 = tf.linalg.matvec(g * d, gamma / channels) * inverse * inverse
        inner = g * gamma - d * c2[:, None]
        if center:
            inner = inner - tf.linalg.matvec(g, gamma / channels)[:, None]
        dx = tf.reshape(tf.cast(r * inner, x.dtype), tf.shape(x))
        rows = math.prod(x.shape[1:-1])
        shaped = [tf.reshape(t, [-1, rows, channels]) for t in (g, d * r)]
        dgamma = tf.reduce_sum(sum_positions(tf, lambda p, q: p * q, *shaped), axis=0)
        dbeta = tf.reduce_sum(sum_positions(tf, lambda p: p, shaped[0]), axis=0) if center else tf.zeros_like(gamma)
        return dx, dgamma, dbeta

    def standard(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        axes = (len(x.shape) - 1,)
        if center:
            return _plain.layer_norm(x, gamma, beta, axes, epsilon)
        return _plain.rms_norm(x, gamma, axes, epsilon)

    return forward, backward, standard


def positions(tf: Any, epsilon: float, groups: int) -> tuple[Callable[..., Any], ...]:
    """GroupNorm and InstanceNorm, channels last: forward, backward, and the same in standard operations."""

    def shaped(t: Tensor) -> Tensor:
        return tf.reshape(t, [-1, math.prod(t.shape[1:-1]), t.shape[-1]])

    def average(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return group_mean(tf, sum_positions(tf, function, *tensors) / tensors[0].shape[1], groups)

    def forward(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        x3 = shaped(x)
        some = _f32(tf, x3[:, :: max(1, x3.shape[1] // 8)])
        shift = group_mean(tf, tf.reduce_mean(some, axis=1), groups)[:, None]
        mean = average(lambda t: _f32(tf, t) - shift, x3)[:, None]
        variance = average(lambda t: tf.square((_f32(tf, t) - shift) - mean), x3)[:, None]
        inverse = tf.math.rsqrt(variance + epsilon)
        y = ((_f32(tf, x3) - shift) - mean) * (inverse * gamma) + beta
        return tf.reshape(tf.cast(y, x.dtype), tf.shape(x)), shift, mean, inverse

    def backward(
        x: Tensor, gamma: Tensor, dy: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, ...]:
        x3, g3 = shaped(x), shaped(dy)
        s1 = sum_positions(tf, lambda g: tf.cast(g, tf.float32), g3)
        s2 = sum_positions(tf, lambda g, t: _f32(tf, g) * ((_f32(tf, t) - shift) - mean), g3, x3)
        count = x3.shape[1]
        c1 = group_mean(tf, s1 * gamma / count, groups)[:, None] * inverse
        c2 = group_mean(tf, s2 * gamma / count, groups)[:, None] * inverse**3
        dx = _f32(tf, g3) * (inverse * gamma) - c1 - ((_f32(tf, x3) - shift) - mean) * c2
        dgamma = tf.reduce_sum(s2 * inverse[:, 0], axis=0)
        return tf.reshape(tf.cast(dx, x.dtype), tf.shape(x)), dgamma, tf.reduce_sum(s1, axis=0)

    def standard(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return _plain.group_norm(x, gamma, beta, groups, len(x.shape) - 1, epsilon)

    return forward, backward, standard


def sum_positions(tf: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Returns the sum of function(...) over axis 1 of (batch, positions, channels) tensors, in float32.

    Seven or eight neighbours are added first: one fused loop that reads each input once.
    """
    positions, channels = tensors[0].shape[1:]
    near = next((k for k in (8, 7, 6, 5, 4, 3, 2) if positions % k == 0), 1)
    parts = [tf.reshape(t, [-1, positions // near, near, channels]) for t in tensors]
    total = None
    for j in range(near):
        part = function(*(p[:, :, j] for p in parts))
        total = part if total is None else total + part
    return tf.reduce_sum(total, axis=1)
