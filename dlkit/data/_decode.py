"""Encoded pictures to pixels, in pure TensorFlow: the same function for the pipeline and an exported graph."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit.data._exif import apart, byte_values, number, orientation

PIXEL_LIMIT = 100_000_000  # a bomb declares more than any photograph has; 100 megapixels are 300 MB of RGB

_JPEG, _PNG, _GIF, _BMP, _WEBP, _OTHER = range(6)


def kind(content: Any) -> Any:
    """Returns the format of an encoded picture from its first bytes: an int32 scalar, 5 for anything else."""
    head = tf.strings.join([tf.strings.substr(content, 0, 12), tf.constant(bytes(12))])  # also when content is shorter
    tests = (
        tf.strings.substr(head, 0, 3) == b"\xff\xd8\xff",
        tf.strings.substr(head, 0, 8) == b"\x89PNG\r\n\x1a\n",
        tf.strings.substr(head, 0, 4) == b"GIF8",
        tf.strings.substr(head, 0, 2) == b"BM",
        (tf.strings.substr(head, 0, 4) == b"RIFF") & (tf.strings.substr(head, 8, 4) == b"WEBP"),
        tf.constant(True),
    )
    return tf.argmax(tf.stack(tests), output_type=tf.int32)


def upright(image: Any, turn: Any) -> Any:
    """Returns the picture (H, W, C) as EXIF orientation `turn` wants it shown."""
    image = tf.cond(turn >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    left_right = (turn == 2) | (turn == 3) | (turn == 6) | (turn == 7)
    image = tf.cond(left_right, lambda: tf.reverse(image, [1]), lambda: image)
    up_down = (turn == 3) | (turn == 4) | (turn == 7) | (turn == 8)
    return tf.cond(up_down, lambda: tf.reverse(image, [0]), lambda: image)


def _turned(image: Any, turn: Any) -> Any:
    return tf.cond(turn > 1, lambda: upright(image, turn), lambda: image)


def over_white(image: Any) -> Any:
    """Returns RGB (H, W, 3) from RGBA (H, W, 4): alpha blended over white; opaque pictures keep every value."""

    def blend() -> Any:
        wide = tf.cast(image, tf.int32)
        alpha = wide[..., 3:]
        return tf.cast((wide[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)

    return tf.cond(tf.reduce_all(image[..., 3] == 255), lambda: image[..., :3], blend)


def grey(image: Any) -> Any:
    """Returns luma (..., 1) of an RGB uint8 picture, BT.601: (19595 R + 38470 G + 7471 B + 32768) / 65536."""
    wide = tf.cast(image, tf.int32)
    luma = 19595 * wide[..., 0:1] + 38470 * wide[..., 1:2] + 7471 * wide[..., 2:3] + 32768
    return tf.cast(tf.bitwise.right_shift(luma, 16), tf.uint8)


def _rgb_or_grey(image: Any) -> Any:
    """Returns RGB from what a BMP holds: grey repeated; a fourth byte, which writers leave undefined, dropped."""
    channels = tf.shape(image)[2]
    return tf.cond(channels < 3, lambda: tf.repeat(image[..., :1], 3, axis=2), lambda: image[..., :3])


def declared(content: Any, which: Any) -> Any:
    """Returns the height and width that the header declares, int32 (2,); zeros where it is cut short."""

    def fields(start: int, width: int, big: bool, swap: bool = True) -> Any:
        def read() -> Any:
            first = number(byte_values(content, start, width), big)
            second = number(byte_values(content, start + width, width), big)
            return tf.stack([second, first] if swap else [first, second])

        return read

    def bmp() -> Any:
        return tf.abs(fields(18, 4, False)())

    def webp() -> Any:
        chunk = tf.strings.substr(content, tf.minimum(12, tf.strings.length(content)), 4)

        def extended() -> Any:
            first = number(byte_values(content, 24, 3), False)
            second = number(byte_values(content, 27, 3), False)
            return tf.stack([second + 1, first + 1])

        def lossless() -> Any:
            packed = number(byte_values(content, 21, 4), False)
            return tf.stack([(tf.bitwise.right_shift(packed, 14) & 0x3FFF) + 1, (packed & 0x3FFF) + 1])

        def lossy() -> Any:
            return tf.bitwise.bitwise_and(fields(26, 2, False)(), 0x3FFF)

        return tf.cond(chunk == b"VP8X", extended, lambda: tf.cond(chunk == b"VP8L", lossless, lossy))

    def jpeg() -> Any:
        return tf.image.extract_jpeg_shape(content)[:2]

    def nothing() -> Any:
        return tf.zeros([2], tf.int32)

    return tf.switch_case(which, [jpeg, fields(16, 4, True), fields(6, 2, False), bmp, webp, nothing])


def within_limit(content: Any, size: Any) -> Any:
    """Returns `content`, or fails in the graph where `size` (height, width) holds more than `PIXEL_LIMIT` pixels."""
    size = tf.cast(size, tf.float32)
    message = f"the picture declares more than {PIXEL_LIMIT} pixels: refused before it is decoded; height and width"
    with tf.control_dependencies([tf.debugging.Assert(size[0] * size[1] <= PIXEL_LIMIT, [message, size])]):
        return tf.identity(content)


def _first_frame(content: Any) -> Any:
    """Returns a GIF cut behind its first frame: the decoder would unpack, and allocate, every frame of an animation.

    Fails in the graph where that frame declares more than `PIXEL_LIMIT` pixels. Reference: CompuServe, GIF89a (1990).
    """
    data = tf.io.decode_raw(content, tf.uint8)
    size = tf.size(data)

    def byte(at: Any) -> Any:
        return tf.cast(data[tf.minimum(at, size - 1)], tf.int32)

    def colors(packed: Any) -> Any:
        return tf.where(packed >= 128, 3 * tf.bitwise.left_shift(2, packed % 8), 0)

    def behind_blocks(at: Any) -> Any:
        def more(at: Any) -> Any:
            return (at < size) & (byte(at) != 0)

        return tf.while_loop(more, lambda at: (at + 1 + byte(at),), (at,))[0] + 1

    def extension(at: Any) -> Any:
        return (at < size) & (byte(at) == 0x21)

    frame = tf.while_loop(extension, lambda at: (behind_blocks(at + 2),), (13 + colors(byte(10)),))[0]
    sides = tf.stack([byte(frame + 7) + 256 * byte(frame + 8), byte(frame + 5) + 256 * byte(frame + 6)])
    end = behind_blocks(frame + 11 + colors(byte(frame + 9)))
    return within_limit(tf.strings.substr(content, 0, tf.minimum(end, size)) + b";", sides)


def _with_alpha(image: Any, channels: int) -> Any:
    """Returns RGB with an opaque fourth channel where four are wanted."""
    return tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=255) if channels == 4 else image


def _png(content: Any, channels: int) -> Any:
    image = _turned(tf.io.decode_png(content, channels=4), orientation(content, "png"))
    return image if channels == 4 else over_white(image)


def _webp(content: Any, channels: int) -> Any:
    image = tf.raw_ops.DecodeWebP(contents=content, channels=0)[0]  # first frame; three or four channels
    image = tf.pad(image, [[0, 0], [0, 0], [0, 4 - tf.shape(image)[2]]], constant_values=255)
    image = _turned(image, orientation(content, "webp"))
    return image if channels == 4 else over_white(image)


def _bmp(content: Any, channels: int) -> Any:
    return _with_alpha(_rgb_or_grey(tf.io.decode_bmp(content)), channels)


def _gif(content: Any, channels: int) -> Any:
    return _with_alpha(tf.io.decode_gif(_first_frame(content))[0], channels)


def _other(content: Any, channels: int) -> Any:  # only for its error message
    return _with_alpha(tf.io.decode_image(content, channels=3, expand_animations=False), channels)


def decode(content: Any, channels: int) -> Any:
    """Returns the picture that an encoded string holds, upright, at its own size.

    JPEG is decoded by libjpeg's integer DCT (equal to Pillow to the last bit); 16-bit PNG keeps the high byte; CMYK
    becomes RGB; of an animation the first frame is taken; the EXIF orientation of JPEG, PNG and WebP is applied;
    transparent pixels are blended over white unless `channels` is 4.

    Args:
        content: string scalar.
        channels: 1 (luma), 3 (RGB) or 4 (RGBA).

    Returns:
        uint8 (H, W, channels).

    Raises:
        tf.errors.InvalidArgumentError: in the graph, for anything that is not such a picture, or one beyond
        `PIXEL_LIMIT`.
    """

    def plain() -> Any:
        return _with_alpha(tf.io.decode_png(content, channels=3), channels)

    image = tf.cond(_is_plain_png(content), plain, lambda: _general(channels)(content))
    image.set_shape([None, None, 4 if channels == 4 else 3])
    return grey(image) if channels == 1 else image


def _is_plain_png(content: Any) -> Any:
    """Returns whether this is a PNG of eight bits, grey or RGB, of at most 8192 x 8192, its pixels behind its header.

    Then there is no palette, transparency or EXIF to look for, which takes four times as long as decoding 32 x 32.
    """
    head = tf.cast(tf.io.decode_raw(content, tf.uint8, fixed_length=len(_PLAIN_PNG)), tf.int32)
    return tf.reduce_all(tf.gather(_PLAIN_PNG.reshape(-1), head + 256 * np.arange(len(_PLAIN_PNG), dtype=np.int32)))


def _plain_png() -> np.ndarray:
    """Returns which byte may stand at each place of such a file's head: bool (41, 256)."""
    allowed = np.ones([41, 256], bool)

    def only(start: int, *values: Sequence[int]) -> None:
        for at, choice in enumerate(values, start):
            allowed[at] = np.isin(np.arange(256), list(choice))

    only(0, *([value] for value in b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"))
    only(16, [0], [0], range(32), range(256), [0], [0], range(32), range(256))  # width, height
    only(24, [8], [0, 2])  # bits, grey or RGB
    only(37, *([value] for value in b"IDAT"))
    return allowed


_PLAIN_PNG = _plain_png()


@functools.lru_cache
def _general(channels: int) -> Any:
    """Returns `_any` as one function, traced once: decoding is also called outside of graphs."""
    return apart(lambda content: _any(content, channels))


def _any(content: Any, channels: int) -> Any:
    """Returns RGB, or RGBA for four channels, of any picture."""
    which = kind(content)
    content = within_limit(content, declared(content, which))

    def jpeg() -> Any:
        image = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
        return _with_alpha(_turned(image, orientation(content, "jpeg")), channels)

    others = (_png, _gif, _bmp, _webp, _other)
    branches = [jpeg, *((lambda other=other: apart(other)(content, channels)) for other in others)]
    return tf.switch_case(which, branches)
