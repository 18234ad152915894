"""Where each output pixel is read: affine maps to fixed-point source coordinates. Everything here compiles with XLA."""

from typing import Any

import tensorflow as tf

from dlkit.data.augment._base import Matrix

ONE = 65536  # fixed point of source coordinates


def places(matrix: Matrix, size: tuple[int, int], fill: Any, samples: int, source: Any = None) -> tuple[Any, ...]:
    """Returns (x, y) or (x, y, cover): fixed-point source coordinates (b, s, H, W), and the share inside the picture.

    Args:
        matrix: the map from output to source pixels.
        size: height and width of the output.
        fill: what comes in from outside; with "reflect", "edge" and "any" nothing does, and there is no cover.
        samples: readings per output pixel along one axis.
        source: height and width of what is read, float32 scalars; default the output's.
    """
    height, width = size
    tall, wide = (float(height), float(width)) if source is None else source
    down, across = _offsets(matrix, samples)
    spread = [tf.reshape(value, [-1, 1, 1, 1]) for value in matrix]
    across = across + tf.reshape(tf.range(width, dtype=tf.float32) - (width - 1) / 2, [1, 1, 1, -1])
    down = down + tf.reshape(tf.range(height, dtype=tf.float32) - (height - 1) / 2, [1, 1, -1, 1])
    x = spread[0] * across + spread[1] * down + spread[2] + (wide - 1) / 2
    y = spread[3] * across + spread[4] * down + spread[5] + (tall - 1) / 2
    cover: tuple[Any, ...] = ()
    if fill == "reflect":
        x, y = _reflected(x, wide), _reflected(y, tall)
    elif fill not in ("edge", "any"):
        cover = (tf.reduce_mean(_inside(x, wide) * _inside(y, tall), 1),)
    return _fixed(x, wide), _fixed(y, tall), *cover


def _offsets(matrix: Matrix, samples: int) -> tuple[Any, Any]:
    """Returns the (down, across) offsets of the readings of a pixel, (b, s, 1, 1); 0 where nothing shrinks."""
    if samples == 1:
        zero = tf.zeros([1, 1, 1, 1])
        return zero, zero

    def reach(p: Any, q: Any) -> Any:
        return tf.sqrt(tf.maximum(1 - 1 / tf.maximum(p * p + q * q, 1e-6), 0.0))

    steps = [(i + 0.5) / samples - 0.5 for i in range(samples)]
    down = tf.constant([step for step in steps for _ in steps]) * reach(matrix.b, matrix.e)[:, None]
    across = tf.constant([step for _ in steps for step in steps]) * reach(matrix.a, matrix.d)[:, None]
    return down[:, :, None, None], across[:, :, None, None]


def _reflected(place: Any, side: Any) -> Any:
    place = place + 0.5
    place = place - (2.0 * side) * tf.floor(place / (2.0 * side))
    return tf.minimum(place, 2.0 * side - place) - 0.5


def _inside(place: Any, side: Any) -> Any:
    """Returns the weight of the picture in a bilinear reading whose other part is outside."""
    return tf.clip_by_value(tf.minimum(place + 1, side - place), 0.0, 1.0)


def _fixed(place: Any, side: Any) -> Any:
    return tf.cast(tf.round(tf.clip_by_value(place, 0.0, side - 1.0) * float(ONE)), tf.int32)
