"""What an augmentation is, and the small arithmetic that they share. Everything here compiles with XLA."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data.draws import mixed_bits

Range = float | tuple[float, float]


class Where(NamedTuple):
    """Which samples a batch holds, for operations that depend on more than draws: int64 (b,) each, and the seed."""

    index: Any
    epoch: Any
    seed: int


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The base of every operation: a frozen value that takes its random numbers as an argument.

    An operation sets `draws`, how many uniform numbers of [0, 1) one picture needs, and derives from one of

    - `Geometry`: `matrix(u, where, size)`, the map from output to input pixels (see `Matrix`);
    - `Color`: `color(u, mean)`, a 3x4 colour matrix (see `Colors`);
    - `Pixels`: `parameters(u, where, size)` and `pixels(channels, parameters)`, anything else.
    """

    draws: ClassVar[int] = 0

    def __call__(
        self, images: Any, draws: Any, *, index: Any = None, epoch: Any = None, seed: int = 0, dtype: str = "float32"
    ) -> Any:
        """Returns augmented pictures in grey levels: uint8 (b, H, W, C), float32 (b, draws) -> (b, H, W, C).

        Args:
            images: uint8 pictures.
            draws: uniform numbers of [0, 1), at least `self.draws` columns.
            index, epoch: int64 (b,), for operations that alternate over epochs; default zeros.
            seed: for the same operations.
            dtype: "float32", or "uint8" for rounded values.
        """
        if dtype not in ("float32", "uint8"):
            raise InputError(f"dtype={dtype!r}; allowed: 'float32', 'uint8'")
        from dlkit.data.augment._chain import Chain

        result = Chain([self])(images, draws, index=index, epoch=epoch, seed=seed)[0]
        return result if dtype == "float32" else tf.cast(tf.round(result), tf.uint8)


class Matrix(NamedTuple):
    """The affine map of each picture from output to input pixels: x' = a x + b y + c, y' = d x + e y + f.

    Six float32 (b,) tensors; coordinates are pixels from the picture's centre. Maps multiply in the order in which the
    operations are listed.
    """

    a: Any
    b: Any
    c: Any
    d: Any
    e: Any
    f: Any

    def then(self, other: "Matrix") -> "Matrix":
        """Returns the map of this operation followed by `other` (the product self x other)."""
        s, o = self, other
        return Matrix(
            s.a * o.a + s.b * o.d, s.a * o.b + s.b * o.e, s.a * o.c + s.b * o.f + s.c,
            s.d * o.a + s.e * o.d, s.d * o.b + s.e * o.e, s.d * o.c + s.e * o.f + s.f,
        )  # fmt: skip


class Colors(NamedTuple):
    """The colour map of each picture, y[i] = sum_j rows[i][j] x[j] + rows[i][3]: 3 x 4 float32 (b,) tensors."""

    rows: tuple[tuple[Any, ...], ...]

    def then(self, other: "Colors") -> "Colors":
        """Returns the map of this operation followed by `other`."""
        rows = []
        for row in other.rows:
            linear = [sum_of(row[k] * self.rows[k][j] for k in range(3)) for j in range(4)]
            rows.append((*linear[:3], linear[3] + row[3]))
        return Colors(tuple(rows))

    def of(self, channels: Sequence[Any]) -> list[Any]:
        """Returns the three mapped channels; each has the batch as its first axis."""
        spread = (-1,) + (1,) * (channels[0].shape.rank - 1)

        def weight(value: Any) -> Any:
            return tf.reshape(value, spread)

        return [sum_of(weight(row[j]) * channels[j] for j in range(3)) + weight(row[3]) for row in self.rows]


def sum_of(terms: Any) -> Any:
    """Returns the sum of tensors, first to last, without the 0 that `sum` begins with."""
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total


def between(low: float, high: float, u: Any) -> Any:
    """Returns low + u (high - low); exactly `low` where both are equal."""
    return low + u * (high - low)


def pair(name: str, value: Range, centre: float = 0.0, *, minimum: float | None = None) -> tuple[float, float]:
    """Returns the (low, high) that a user's strength means: a number s is centre - s .. centre + s.

    Raises:
        InputError: neither a number nor a pair, a range that is reversed or endless, or that reaches below `minimum`.
    """
    ends = (centre - value, centre + value) if isinstance(value, (int, float)) else value
    if not isinstance(ends, (tuple, list)) or len(ends) != 2 or not all(isinstance(v, (int, float)) for v in ends):
        raise InputError(f"{name} takes a number or a pair (low, high), got {value!r}")
    low, high = ends
    if not -math.inf < low <= high < math.inf or (minimum is not None and low < minimum):
        limit = "" if minimum is None else f", and at least {minimum}"
        raise InputError(
            f"{name}={value!r} means {low}..{high}; both finite, the first must not exceed the second{limit}"
        )
    return float(low), float(high)


def probability(name: str, value: float) -> float:
    """Returns a probability, or raises InputError."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(f"{name}={value!r} is no probability: 0..1 is allowed")
    return float(value)


def word(u: Any) -> Any:
    """Returns the 23 random bits of a uniform number as uint32."""
    return tf.cast(u * 8388608.0, tf.uint32)


def to_unit(words: Any) -> Any:
    """Returns float32 in (0, 1) from uint32 words."""
    return (
        tf.cast(tf.cast(tf.bitwise.right_shift(words, tf.constant(9, tf.uint32)), tf.int32), tf.float32) * 2.0**-23
        + 2.0**-24
    )


def pixel_words(keys: Any, size: Sequence[int], channel: int) -> Any:
    """Returns one uint32 word per pixel of one channel of each picture: keys uint32 (b,) -> (b, H, W)."""
    numbers = tf.cast(tf.reshape(tf.range(size[0] * size[1]), [1, *size]), tf.uint32)
    salt = tf.constant((channel + 1) * 0x9E3779B9 % 2**32, tf.uint32)
    return mixed_bits(mixed_bits(numbers + salt) + tf.reshape(mixed_bits(keys), [-1, 1, 1]))
