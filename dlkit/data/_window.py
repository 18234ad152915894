"""Reads only the window of a stored picture that a random resized crop shows."""

import functools
from typing import Any

import tensorflow as tf

from dlkit.data import _decode, _header
from dlkit.data._exif import apart, orientation
from dlkit.data.draws import compiled


def read_window(preprocess: Any, content: Any, crop: Any, u: Any) -> tuple[Any, Any]:
    """Returns (picture, window): uint8 (h, w, channels) and its place (top, left, height, width) as fractions.

    Of an upright JPEG only the window is decoded, at 1/2, 1/4 or 1/8 when it is at least that much larger than the
    output (geometric mean of the sides). From 1.5 times up would be faster, but such a picture has to be enlarged again
    and lies further from an antialiased resize than one read without any filter.

    Args:
        preprocess: a `Preprocess`.
        content: an encoded picture, a string scalar.
        crop: a `RandomResizedCrop`.
        u: its draws, float32 (4,).
    """
    height, width, channels = preprocess.input_shape
    pixels, step, fractions, sure = _compiled_place(crop, (height, width))(_header.head(content), u)

    def plain() -> tuple[Any, Any]:
        return preprocess.with_channels(_scaled(content, pixels, step)), fractions

    def other() -> tuple[Any, Any]:
        return apart(lambda content, u: _searched(preprocess, content, crop, u))(content, u)

    picture, window = tf.cond(sure, plain, other)
    picture.set_shape([None, None, channels])
    return picture, window


def resized(picture: Any, preprocess: Any) -> Any:
    """Returns a window uint8 (H, W, C) resized to the input's size, uint8, without aliasing.

    Area averaging where both sides shrink and bilinear reading where both grow are four times as fast as the general
    antialiased kernel, which is left for windows that shrink one way and grow the other.
    """
    height, width, channels = preprocess.input_shape
    size = tf.constant([height, width])
    shape = tf.shape(picture)[:2]

    def rounded(image: Any) -> Any:
        return tf.cast(image[0] + 0.5, tf.uint8)

    def shrunk() -> Any:
        return rounded(tf.raw_ops.ResizeArea(images=picture[None], size=size))

    def grown() -> Any:
        return rounded(tf.raw_ops.ResizeBilinear(images=picture[None], size=size, half_pixel_centers=True))

    def either() -> Any:
        return tf.cond(tf.reduce_all(shape <= size), grown, lambda: preprocess.stretched(picture))

    image = tf.cond(tf.reduce_all(shape >= size), shrunk, either)
    image.set_shape([height, width, channels])
    return image


def reduced(picture: Any, size: tuple[int, int]) -> Any:
    """Returns a window uint8 (H, W, C), each side that exceeds that of `size` brought down to it by area averages."""
    least = tf.minimum(tf.shape(picture)[:2], tf.constant(size))
    return tf.cast(tf.raw_ops.ResizeArea(images=picture[None], size=least)[0] + 0.5, tf.uint8)


def cut_window(picture: Any, crop: Any, u: Any) -> tuple[Any, Any]:
    """Returns (part, window) of a picture uint8 (H, W, C); the window as fractions of the picture."""
    pixels, fractions = _whole(crop, u, tf.shape(picture)[0], tf.shape(picture)[1])
    top, left, tall, wide = tf.unstack(pixels)
    return picture[top : top + tall, left : left + wide], fractions


def _whole(crop: Any, u: Any, height: Any, width: Any) -> tuple[Any, Any]:
    """Returns the window in whole pixels, int32 (4,), and as fractions, float32 (4,)."""
    top, left, tall, wide = crop.window(u, height, width)
    start = tf.cast(tf.floor(tf.stack([top, left])), tf.int32)
    size = tf.cast(tf.maximum(tf.round(tf.stack([tall, wide])), 1.0), tf.int32)
    whole = tf.stack([height, width])
    size = tf.minimum(size, whole - start)
    pixels = tf.concat([start, size], 0)
    return pixels, tf.cast(pixels, tf.float32) / tf.cast(tf.concat([whole, whole], 0), tf.float32)


def _place(crop: Any, u: Any, stored: Any, size: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Returns (window in pixels of the decoded size, log2 of the decoder's ratio, window as fractions) in a JPEG.

    Args:
        stored: its height and width, int32 (2,).
        size: of the output.
    """
    pixels, _ = _whole(crop, u, stored[0], stored[1])
    least = [round((2 * ratio) ** 2 * size[0] * size[1]) for ratio in (1, 2, 4)]
    step = tf.reduce_sum(tf.cast(pixels[2] * pixels[3] >= least, tf.int32))
    pixels = pixels - pixels % tf.bitwise.left_shift(1, step)  # whole pixels of the smaller size too
    fractions = tf.cast(pixels, tf.float32) / tf.cast(tf.gather(stored, [0, 1, 0, 1]), tf.float32)
    return tf.bitwise.right_shift(pixels, step), step, fractions


@functools.lru_cache(64)
def _compiled_place(crop: Any, size: tuple[int, int]) -> Any:
    @compiled
    def run(data: Any, u: Any) -> tuple[Any, Any, Any, Any]:
        stored = _header.size(data)
        area = tf.cast(stored[0], tf.float32) * tf.cast(stored[1], tf.float32)
        return *_place(crop, u, stored, size), (area > 0) & (area <= _decode.PIXEL_LIMIT)

    return run


def _searched(preprocess: Any, content: Any, crop: Any, u: Any) -> tuple[Any, Any]:
    """Returns the same as `read_window` for any picture."""
    is_jpeg = tf.strings.substr(content, 0, 3) == b"\xff\xd8\xff"
    upright = tf.cond(is_jpeg, lambda: orientation(content, "jpeg") == 1, lambda: tf.constant(False))

    def jpeg() -> tuple[Any, Any]:
        stored = tf.image.extract_jpeg_shape(content)[:2]
        pixels, step, fractions = _place(crop, u, stored, preprocess.input_shape[:2])
        return preprocess.with_channels(_scaled(_decode.within_limit(content, stored), pixels, step)), fractions

    def other() -> tuple[Any, Any]:
        return apart(lambda content, u: cut_window(preprocess.read(content), crop, u))(content, u)

    picture, window = tf.cond(upright, jpeg, other)
    picture.set_shape([None, None, preprocess.channels])
    return picture, window


def _scaled(content: Any, pixels: Any, step: Any) -> Any:
    """Returns the window of a JPEG, decoded at 1 / 2**step: uint8 (h, w, 3)."""

    def at(ratio: int) -> Any:
        def decode() -> Any:
            return tf.raw_ops.DecodeAndCropJpeg(
                contents=content, crop_window=pixels, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
            )

        return decode

    picture = tf.switch_case(step, [at(1), at(2), at(4), at(8)])
    picture.set_shape([None, None, 3])
    return picture


def moved_into(boxes: Any, window: Any) -> Any:
    """Returns boxes (b, 4) as fractions of the window (b, 4) instead of the picture, clipped to it."""
    top, left, tall, wide = (window[:, i] for i in range(4))
    x1, x2 = (boxes[:, 0] - left) / wide, (boxes[:, 0] + boxes[:, 2] - left) / wide
    y1, y2 = (boxes[:, 1] - top) / tall, (boxes[:, 1] + boxes[:, 3] - top) / tall
    x1, y1, x2, y2 = (tf.clip_by_value(value, 0.0, 1.0) for value in (x1, y1, x2, y2))
    return tf.stack([x1, y1, x2 - x1, y2 - y1], 1)
