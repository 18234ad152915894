"""The bodies of the compiled functions, written with TensorFlow's operations; `tf` is passed in, so that importing this
module needs no TensorFlow. `_fast` compiles them and says when they run.

Two habits, each measured on XLA:CPU:

- One pass over memory for two sums. A sum over positions is written as the sum of neighbouring slices, which becomes
  one vectorised loop, and two such sums travel as one complex number: as two reductions they would read the input
  twice. The rest, some thirtieth of the input, is added by a matrix product, which XLA does not fuse with the loop.
- Statistics and the pass that applies them are functions of their own: in one function XLA shares the conversion of a
  half-precision input between them by writing a float32 copy to memory, and computes the per-channel coefficients again
  for every element.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from dlkit.layers import _plain

Tensor = Any
SAMPLED = 16  # every 16th position at least is averaged for the shift
NEAR = {"float32": 32, "half": 14}  # slices added in one loop; beyond, XLA:CPU writes the converted slices to memory
LANES = 16  # float32 numbers in a vector register


class Kernel(NamedTuple):
    """A normalisation in four functions to compile, and in standard operations.

    `statistics(x, gamma, beta)` returns (what the backward pass needs besides x, the arguments of `normalise`);
    `normalise(x, *arguments)` returns y; `gradient_sums(x, gamma, dy, *kept)` returns (the arguments of `gradient`,
    dgamma, dbeta); `gradient(x, dy, *arguments)` returns dx; `standard(x, gamma, beta)` returns y.
    """

    statistics: Callable[..., Any]
    normalise: Callable[..., Tensor]
    gradient_sums: Callable[..., Any]
    gradient: Callable[..., Tensor]
    standard: Callable[..., Tensor]


def _f32(tf: Any, x: Tensor) -> Tensor:
    return tf.cast(x, tf.float32)


def group_mean(tf: Any, t: Tensor, groups: int) -> Tensor:
    """Averages (rows, channels) within each group and repeats the mean, the same bits, for each channel.

    Repeated by a product with zeros and ones: an expanded and reshaped mean XLA would compute again for every element.
    """
    import numpy as np

    channels = t.shape[-1]
    if groups == channels:
        return t
    means = tf.reduce_mean(tf.reshape(t, [-1, groups, channels // groups]), axis=-1)
    return tf.matmul(means, np.kron(np.eye(groups), np.ones((1, channels // groups))).astype("float32"))


def features(tf: Any, epsilon: float, center: bool) -> Kernel:
    """LayerNorm (`center`) and RMSNorm over the last axis."""

    def centred(x: Tensor, shift: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
        return _f32(tf, x) if shift is None else (_f32(tf, x) - shift) - mean

    def rows(t: Tensor) -> Tensor:
        return tf.reshape(t, [-1, t.shape[-1]])

    def statistics(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        x2 = rows(x)
        where: tuple[Tensor, ...] = ()
        if center:
            shift = _f32(tf, x2[:, :1])
            where = shift, mean_features(tf, lambda t: _f32(tf, t) - shift, x2)
        variance = mean_features(tf, lambda t: tf.square(centred(t, *where)), x2)
        inverse = tf.math.rsqrt(variance + epsilon)
        return (inverse, *where), ((gamma, beta, inverse, *where) if center else (gamma, inverse))

    def normalise(x: Tensor, gamma: Tensor, *rest: Tensor) -> Tensor:
        beta, inverse, *where = rest if center else (None, *rest)
        y = centred(rows(x), *where) * inverse * gamma
        return tf.reshape(tf.cast(y + beta if center else y, x.dtype), tf.shape(x))

    def gradient_sums(x: Tensor, gamma: Tensor, dy: Tensor, inverse: Tensor, *where: Tensor) -> Any:
        x2, g2 = rows(x), rows(dy)
        c1 = (mean_features(tf, lambda g: _f32(tf, g), g2, weight=gamma),) if center else ()
        c2 = mean_features(tf, lambda g, t: _f32(tf, g) * centred(t, *where), g2, x2, weight=gamma) * tf.square(inverse)
        several = math.prod(x.shape[1:-1])
        shaped = [tf.reshape(t, [-1, several, t.shape[-1]]) for t in (g2, x2, inverse, *where)]

        def terms(g: Tensor, t: Tensor, r: Tensor, *w: Tensor) -> tuple[Tensor, ...]:
            g = _f32(tf, g)
            dgamma = g * (centred(t, *w) * r)
            return (dgamma, g) if center else (dgamma,)

        sums = [tf.reduce_sum(s, axis=0) for s in sum_positions(tf, terms, *shaped)]
        return (gamma, inverse, c2, *c1, *where), sums[0], sums[1] if center else tf.zeros_like(gamma)

    def gradient(x: Tensor, dy: Tensor, gamma: Tensor, inverse: Tensor, c2: Tensor, *rest: Tensor) -> Tensor:
        c1, *where = rest or (None,)
        inner = _f32(tf, rows(dy)) * gamma - centred(rows(x), *where) * c2
        return tf.reshape(tf.cast(inverse * (inner - c1 if center else inner), x.dtype), tf.shape(x))

    def standard(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        axes = (len(x.shape) - 1,)
        if center:
            return _plain.layer_norm(x, gamma, beta, axes, epsilon)
        return _plain.rms_norm(x, gamma, axes, epsilon)

    return Kernel(statistics, normalise, gradient_sums, gradient, standard)


def positions(tf: Any, epsilon: float, groups: int) -> Kernel:
    """GroupNorm and InstanceNorm, channels last.

    The variance is mean(d**2) - mean(d)**2 of d = x - shift, where shift is the group's mean over every `SAMPLED`th
    position at least. Whatever the input, mean(d)**2 is at most variance * positions / sampled positions, because the
    sampled ones alone contribute that much to the variance: the subtraction costs at most log2(16) bits, usually none.
    """

    def shaped(t: Tensor) -> Tensor:
        return tf.reshape(t, [-1, math.prod(t.shape[1:-1]), t.shape[-1]])

    def statistics(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        x3 = shaped(x)
        count = x3.shape[1]
        sample = x3[:, :: max(1, min(count // 8, SAMPLED))]
        shift = group_mean(tf, tf.reduce_mean(_f32(tf, sample), axis=1), groups)[:, None]

        def terms(t: Tensor) -> tuple[Tensor, Tensor]:
            d = _f32(tf, t) - shift
            return d, tf.square(d)

        mean, square = (group_mean(tf, s / count, groups)[:, None] for s in sum_positions(tf, terms, x3))
        inverse = tf.math.rsqrt(tf.maximum(square - tf.square(mean), 0.0) + epsilon)
        scale = inverse * gamma
        return (shift, mean, inverse), (shift, scale, beta - mean * scale)

    def normalise(x: Tensor, shift: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        return tf.reshape(tf.cast((_f32(tf, shaped(x)) - shift) * scale + offset, x.dtype), tf.shape(x))

    def gradient_sums(x: Tensor, gamma: Tensor, dy: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor) -> Any:
        def terms(g: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            g = _f32(tf, g)
            return g, g * ((_f32(tf, t) - shift) - mean)

        s1, s2 = sum_positions(tf, terms, shaped(dy), shaped(x))
        weight = gamma / math.prod(x.shape[1:-1])
        c1 = group_mean(tf, s1 * weight, groups)[:, None] * inverse
        c2 = group_mean(tf, s2 * weight, groups)[:, None] * inverse**3
        arguments = shift, inverse * gamma, c2, mean * c2 - c1
        return arguments, tf.reduce_sum(s2 * inverse[:, 0], axis=0), tf.reduce_sum(s1, axis=0)

    def gradient(x: Tensor, dy: Tensor, shift: Tensor, scale: Tensor, c2: Tensor, offset: Tensor) -> Tensor:
        dx = _f32(tf, shaped(dy)) * scale - (_f32(tf, shaped(x)) - shift) * c2 + offset
        return tf.reshape(tf.cast(dx, x.dtype), tf.shape(x))

    def standard(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return _plain.group_norm(x, gamma, beta, groups, len(x.shape) - 1, epsilon)

    return Kernel(statistics, normalise, gradient_sums, gradient, standard)


def _total(terms: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Adds tuples element by element, from the first to the last."""
    total = list(terms[0])
    for term in terms[1:]:
        total = [a + b for a, b in zip(total, term, strict=True)]
    return total


def sum_positions(tf: Any, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> list[Tensor]:
    """Returns the sums over axis 1 of the one or two float32 terms that `function` makes of (batch, positions, n)."""
    count = tensors[0].shape[1]
    most = min(count, NEAR["float32" if tensors[0].dtype == tf.float32 else "half"])
    near = next((k for k in range(most, most // 2, -1) if count % k == 0), most)
    main = count // near * near
    sums = _total([function(*(t[:, j:main:near] for t in tensors)) for j in range(near)])
    if main == near:
        sums = [s[:, 0] for s in sums]
    elif len(sums) == 1:
        sums = [tf.reduce_sum(sums[0], axis=1)]
    else:
        pair = tf.complex(*sums)
        pair = tf.matmul(tf.ones(tf.stack([tf.shape(pair)[0], 1, main // near]), pair.dtype), pair)[:, 0]
        sums = [tf.math.real(pair), tf.math.imag(pair)]
    if main < count:
        rest = _total([function(*(t[:, j : j + 1] for t in tensors)) for j in range(main, count)])
        sums = [a + b[:, 0] for a, b in zip(sums, rest, strict=True)]
    return sums


def mean_features(tf: Any, function: Callable[..., Tensor], *tensors: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns the means (rows, 1) over the last axis of weight * the float32 `function` of (rows, n).

    A matrix-vector product, which XLA:CPU fuses with its operand. For two or three vectors of `LANES` numbers the
    product is slower than memory: there the vectors are added first.
    """
    channels = tensors[0].shape[-1]
    several = channels // LANES
    if channels % LANES or not 2 <= several <= (3 if tensors[0].dtype == tf.float32 else 2):
        factors = tf.fill([channels], 1.0 / channels) if weight is None else weight / channels
        return tf.linalg.matvec(function(*tensors), factors)[:, None]
    parts = [tf.reshape(t, [-1, several, LANES]) for t in tensors]
    terms = [function(*(t[:, j] for t in parts)) for j in range(several)]
    if weight is not None:
        terms = [t * weight[LANES * j : LANES * (j + 1)] for j, t in enumerate(terms)]
    return tf.reduce_sum(sum(terms[1:], terms[0]), axis=1, keepdims=True) / channels
