"""One reading straight from a decoded window of any size: its resizing and the geometry after it are one affine map.

The window is packed into a table of fixed length, one 32-bit word per pixel, so that XLA compiles for all windows once.
Everything here works on one picture, so nothing depends on the batch that it ends up in.
"""

from typing import Any

import tensorflow as tf

from dlkit.data.augment._base import Matrix, sum_of

TOLERATED_SHRINK = 1.25  # bilinear reading aliases visibly beyond it
_ROW = 256  # so many bytes can be summed in 16 bits


def room(size: tuple[int, int]) -> int:
    """Returns how many pixels a table has for an output of `size`."""
    return -(-int(TOLERATED_SHRINK**2 * size[0] * size[1]) // _ROW) * _ROW


def fits(height: Any, width: Any, size: tuple[int, int]) -> Any:
    """Returns whether a window of height x width can be read directly: it fits and hardly shrinks."""
    most = tf.floor(TOLERATED_SHRINK * tf.constant(size, tf.float32))
    return tf.reduce_all(tf.cast(tf.stack([height, width]), tf.float32) <= most)


def padded(window: Any, size: tuple[int, int]) -> Any:
    """Returns the bytes of a window uint8 (h, w, C) with zeros behind them: uint8 (room * C,)."""
    length = room(size) * window.shape[-1]
    flat = tf.reshape(window, [-1])
    flat = tf.concat([flat, tf.zeros([length - tf.size(flat)], tf.uint8)], 0)
    flat.set_shape([length])
    return flat


def table(flat: Any, sides: Any, channels: int) -> tuple[Any, list[Any]]:
    """Returns (words, means): one uint32 word per pixel, channel i in byte i, and the three channel means (1,).

    The means are summed in integers, so no order matters.
    """
    pixels = tf.cast(tf.reshape(flat, [-1, channels]), tf.uint32)
    words = sum_of(pixels[:, i] * tf.constant(1 << (8 * i), tf.uint32) for i in range(channels))
    rows = tf.reshape(words, [_ROW, -1])
    sums = []
    for shift in (0, 8):  # two channels in one sum
        pair = tf.bitwise.right_shift(rows, tf.constant(shift, tf.uint32))
        pair = tf.reduce_sum(tf.bitwise.bitwise_and(pair, tf.constant(0x00FF00FF, tf.uint32)), 0)
        low = tf.bitwise.bitwise_and(pair, tf.constant(0xFFFF, tf.uint32))
        sums.append((low, tf.bitwise.right_shift(pair, tf.constant(16, tf.uint32))))
    totals = [tf.reduce_sum(tf.cast(sums[i % 2][i // 2], tf.int32)) for i in range(min(channels, 3))]
    count = tf.cast(sides[0] * sides[1], tf.float32)
    return words, [(tf.cast(totals[min(i, len(totals) - 1)], tf.float32) / count)[None] for i in range(3)]


def resizing(sides: Any, size: tuple[int, int]) -> Matrix:
    """Returns the map that resizes a window of `sides` int32 (2,) to `size`."""
    one, zero = tf.ones([1]), tf.zeros([1])
    tall, wide = tf.unstack(tf.cast(sides, tf.float32))
    return Matrix(one * (wide / size[1]), zero, zero, zero, one * (tall / size[0]), zero)


def reading(words: Any, width: Any, x: Any, y: Any, channels: int) -> Any:
    """Returns float32 (b, H, W, channels) read between pixels at fixed-point places int32 (b, H, W)."""
    at = tf.bitwise.right_shift(y, 16) * width + tf.bitwise.right_shift(x, 16)
    right = tf.cast(tf.bitwise.bitwise_and(x, 65535), tf.float32)[..., None] * (1 / 65536)
    low = tf.cast(tf.bitwise.bitwise_and(y, 65535), tf.float32)[..., None] * (1 / 65536)
    shift = tf.constant([8 * i for i in range(channels)], tf.uint32)

    def pixel(place: Any) -> Any:
        byte = tf.bitwise.right_shift(tf.gather(words, place)[..., None], shift)
        return tf.cast(tf.cast(tf.bitwise.bitwise_and(byte, tf.constant(255, tf.uint32)), tf.int32), tf.float32)

    upper, lower = pixel(at), pixel(at + width)
    upper = upper + right * (pixel(at + 1) - upper)
    lower = lower + right * (pixel(at + width + 1) - lower)
    return upper + low * (lower - upper)
