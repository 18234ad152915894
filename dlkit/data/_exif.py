"""EXIF orientation of encoded pictures, in pure TensorFlow: part of the pipeline and of exported graphs.

Reference: CIPA DC-008 "Exif 2.32", 4.6.4, tag 274; W3C "Portable Network Graphics, Third Edition", 11.3.5.1 (eXIf comes
before the pixels); Google, "WebP Container Specification", section "Metadata".
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_SEGMENTS = 64  # a JPEG's or PNG's metadata beyond it are not searched
_CHUNKS = 4096  # of a WebP, whose EXIF follows all frames


def apart(function: Any) -> Any:
    """Returns a function that stays a node of its own in a graph.

    A branch that is not taken is otherwise spread out in the graph, and each of its nodes costs a little time: all
    together a tenth of the time of decoding a photograph.
    """
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


def byte_values(content: Any, start: Any, count: Any) -> Any:
    """Returns `count` bytes from `start` as int32, fewer where the content ends (never an error)."""
    return tf.cast(tf.io.decode_raw(_piece(content, start, count), tf.uint8), tf.int32)


def number(values: Any, big: Any) -> Any:
    """Returns an unsigned number from its bytes, 0 where there are none."""
    values = tf.cond(tf.convert_to_tensor(big), lambda: tf.reverse(values, [0]), lambda: values)
    return tf.reduce_sum(tf.bitwise.left_shift(values, 8 * tf.range(tf.size(values))))


def orientation(content: Any, kind: str) -> Any:
    """Returns the EXIF orientation of a "jpeg", "png" or "webp": int32, 1..8, how to turn it upright; 1 without one."""
    suspected = _KINDS[kind][0](content)
    return tf.cond(suspected, lambda: _searched(content, kind), lambda: tf.constant(1))


def _piece(content: Any, start: Any, count: Any) -> Any:
    length = tf.strings.length(content)
    start = tf.clip_by_value(start, 0, length)
    return tf.strings.substr(content, start, tf.minimum(count, length - start))


def _jpeg_suspected(content: Any) -> Any:
    """Returns whether a search is worth its time: the segment behind JFIF's, or the first one, may hold EXIF."""
    head = byte_values(tf.strings.join([content, bytes(8)]), 0, 8)
    start = tf.where(head[3] == 0xE0, 4 + 256 * head[4] + head[5], 2)
    after = _piece(content, start, 2)
    return tf.reduce_all(after != [b"\xff\xdb", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdd"])


def _png_suspected(content: Any) -> Any:
    return _piece(content, 37, 4) != b"IDAT"  # right behind the header


def _webp_suspected(content: Any) -> Any:
    flags = byte_values(tf.strings.join([content, bytes(24)]), 20, 1)[0]
    return (_piece(content, 12, 4) == b"VP8X") & (tf.bitwise.bitwise_and(flags, 8) > 0)


@apart
def _searched(content: Any, kind: str) -> Any:
    _, first, part, limit = _KINDS[kind]
    start = _walk(content, first, part, limit)
    start = tf.where(_piece(content, start, 6) == b"Exif\0\0", start + 6, start)
    readable = (start > 0) & (start + 8 < tf.strings.length(content))
    return tf.cond(readable, lambda: _orientation_at(content, start), lambda: tf.constant(1))


def _walk(content: Any, first: int, part: Callable[[Any, Any], tuple[Any, Any, Any]], limit: int) -> Any:
    """Returns where the EXIF data of a file begin, -1 without any. `part` gives (next part, is it EXIF, its data)."""
    length = tf.strings.length(content)

    def more(at: Any, found: Any) -> Any:
        return (at > 0) & (at + 8 <= length) & (found < 0)

    def step(at: Any, found: Any) -> tuple[Any, Any]:
        following, is_exif, data = part(content, at)
        return tf.where(following > at, following, -1), tf.where(is_exif, data, found)  # a damaged length ends the walk

    return tf.while_loop(more, step, (tf.constant(first), tf.constant(-1)), maximum_iterations=limit)[1]


def _segment(content: Any, at: Any) -> tuple[Any, Any, Any]:
    head = byte_values(content, at, 4)
    metadata = (head[0] == 0xFF) & (((head[1] >= 0xE0) & (head[1] <= 0xEF)) | (head[1] == 0xFE))
    is_exif = metadata & (_piece(content, at + 4, 6) == b"Exif\0\0")
    return tf.where(metadata, at + 2 + 256 * head[2] + head[3], -1), is_exif, at + 4


def _png_chunk(content: Any, at: Any) -> tuple[Any, Any, Any]:
    name = _piece(content, at + 4, 4)
    following = at + 12 + number(byte_values(content, at, 4), True)
    return tf.where(name == b"IDAT", -1, following), name == b"eXIf", at + 8


def _webp_chunk(content: Any, at: Any) -> tuple[Any, Any, Any]:
    size = number(byte_values(content, at + 4, 4), False)
    return at + 8 + size + size % 2, _piece(content, at, 4) == b"EXIF", at + 8


def _orientation_at(content: Any, start: Any) -> Any:
    """Returns tag 0x0112 of the first directory of the TIFF block at `start`, 1 where it is missing or odd."""
    big = _piece(content, start, 2) == b"MM"
    directory = start + number(byte_values(content, start + 4, 4), big)
    directory = tf.clip_by_value(directory, 0, tf.strings.length(content))
    count = tf.clip_by_value(number(byte_values(content, directory, 2), big), 0, 512)
    table = byte_values(content, directory + 2, 12 * count)
    rows = tf.size(table) // 12
    table = tf.reshape(table[: 12 * rows], [rows, 12])
    high, low = tf.cond(big, lambda: (0, 1), lambda: (1, 0))
    tag = tf.gather(table, high, axis=1) * 256 + tf.gather(table, low, axis=1)
    value = tf.gather(table, 8 + high, axis=1) * 256 + tf.gather(table, 8 + low, axis=1)
    found = tf.boolean_mask(value, tag == 0x0112)
    found = tf.concat([found, [1]], 0)[0]
    return tf.where((found >= 1) & (found <= 8), found, 1)


_KINDS: dict[str, tuple[Any, int, Any, int]] = {  # is it worth searching, from where, one part of the file, how many
    "jpeg": (_jpeg_suspected, 2, _segment, _SEGMENTS),
    "png": (_png_suspected, 8, _png_chunk, _SEGMENTS),
    "webp": (_webp_suspected, 12, _webp_chunk, _CHUNKS),
}
