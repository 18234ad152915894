"""One reading straight from a decoded window of any size: its resizing and the geometry after it are one affine map.

The window is copied into a buffer of fixed length, so that XLA compiles for all windows once, and read as 32-bit words.
Everything here works on one picture, so nothing depends on the batch that it ends up in.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dlkit.data.augment._base import Matrix

TOLERATED_SHRINK = 1.25  # bilinear reading aliases visibly beyond it
_ROWS = 256  # so many bytes can be summed in 16 bits


def groups(size: tuple[int, int]) -> int:
    """Returns how many groups of four pixels the buffer has for an output of `size`."""
    pixels = int(TOLERATED_SHRINK * size[0]) * int(TOLERATED_SHRINK * size[1])
    return -(-pixels // (4 * _ROWS)) * _ROWS


def fits(height: Any, width: Any, size: tuple[int, int]) -> Any:
    """Returns whether a window of height x width can be read directly: it fits and hardly shrinks."""
    most = tf.floor(TOLERATED_SHRINK * tf.constant(size, tf.float32))
    return tf.reduce_all(tf.cast(tf.stack([height, width]), tf.float32) <= most)


def padded(window: Any, size: tuple[int, int]) -> Any:
    """Returns a window uint8 (h, w, C) with zeros behind it as uint32 (groups + 1, C): four pixels in a row."""
    channels = window.shape[-1]
    length = 4 * (groups(size) + 1) * channels
    flat = tf.reshape(window, [-1])
    flat = tf.concat([flat, tf.zeros([length - tf.size(flat)], tf.uint8)], 0)
    return tf.bitcast(tf.reshape(flat, [groups(size) + 1, channels, 4]), tf.uint32)


def step(always: Any, make: Callable[[], Any]) -> Any:
    """Returns what `make` makes, as one step of a compiled function.

    XLA would compute the steps before it again for every value that reads them, and divide each among threads that all
    have a picture of their own to work on. It does neither across a condition that it cannot foresee.

    Args:
        always: a bool scalar that is True whenever the function runs.
        make: returns tensors.
    """
    like = tf.function(make, autograph=False).get_concrete_function().structured_outputs

    def never() -> Any:
        return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), like)

    return tf.cond(always, make, never)


def means(words: Any, sides: Any, channels: int) -> list[Any]:
    """Returns the means of the first three channels (of one: three times), float32 (1,) each.

    They are summed in integers, so no order matters.
    """
    rows = tf.reshape(words[:-1], [_ROWS, -1])
    sums = []
    for shift in (0, 8, 16, 24):  # byte i of every word, two bytes in one sum
        pair = tf.bitwise.bitwise_and(_right(rows, shift % 16), tf.constant(0x00FF00FF, tf.uint32))
        total = _right(tf.reduce_sum(pair, 0), shift // 16 * 16)
        sums.append(tf.cast(tf.bitwise.bitwise_and(total, tf.constant(0xFFFF, tf.uint32)), tf.int32))
    totals = tf.reduce_sum(tf.reshape(tf.stack(sums, -1), [-1, channels]), 0)
    mean = tf.cast(totals, tf.float32) / tf.cast(sides[0] * sides[1], tf.float32)
    return [mean[min(i, channels - 1)][None] for i in range(3)]


def table(words: Any, channels: int) -> Any:
    """Returns one uint32 word per pixel, channel i in byte i: pixels 0, 4, 8, ..., then 1, 5, 9, ... and so on."""

    def word(i: int) -> Any:
        return words[:-1, i] if i < channels else words[1:, i - channels]

    parts = []
    for pixel in range(4):
        at, inside = divmod(channels * pixel, 4)
        value = _right(word(at), 8 * inside)
        if inside + channels > 4:
            value |= tf.bitwise.left_shift(word(at + 1), tf.constant(32 - 8 * inside, tf.uint32))
        parts.append(value)
    return tf.concat(parts, 0)


def resizing(sides: Any, size: tuple[int, int]) -> Matrix:
    """Returns the map that resizes a window of `sides` int32 (2,) to `size`."""
    one, zero = tf.ones([1]), tf.zeros([1])
    tall, wide = tf.unstack(tf.cast(sides, tf.float32))
    return Matrix(one * (wide / size[1]), zero, zero, zero, one * (tall / size[0]), zero)


def reading(words: Any, width: Any, x: Any, y: Any, channels: int) -> Any:
    """Returns float32 (..., channels) read from a `table` between pixels at fixed-point places int32 (...)."""
    at = tf.bitwise.right_shift(y, 16) * width + tf.bitwise.right_shift(x, 16)
    right = tf.cast(tf.bitwise.bitwise_and(x, 65535), tf.float32)[..., None] * (1 / 65536)
    low = tf.cast(tf.bitwise.bitwise_and(y, 65535), tf.float32)[..., None] * (1 / 65536)
    shift = tf.constant([8 * i for i in range(channels)], tf.uint32)
    part = words.shape[0] // 4

    def pixel(place: Any) -> Any:
        place = tf.bitwise.bitwise_and(place, 3) * part + tf.bitwise.right_shift(place, 2)
        byte = tf.bitwise.right_shift(tf.gather(words, place)[..., None], shift)
        return tf.cast(tf.cast(tf.bitwise.bitwise_and(byte, tf.constant(255, tf.uint32)), tf.int32), tf.float32)

    upper, lower = pixel(at), pixel(at + width)
    upper = upper + right * (pixel(at + 1) - upper)
    lower = lower + right * (pixel(at + width + 1) - lower)
    return upper + low * (lower - upper)


def _right(words: Any, bits: int) -> Any:
    return tf.bitwise.right_shift(words, tf.constant(bits, tf.uint32))
