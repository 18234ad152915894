"""What the head of a JPEG says, read by one compiled function: its size, and whether nothing can ask to turn it.

The general search of `_exif` is some two hundred small operations, which cost a third of decoding a photograph.

Reference: ITU-T T.81 (JPEG), B.1.1 (markers) and B.2.2 (frame header).
"""

from typing import Any

import tensorflow as tf

BYTES = 16384  # colour profiles and comments usually end before it; what they hide is left to the general search
_SEGMENTS = 64


def head(content: Any) -> Any:
    """Returns the first bytes of an encoded picture, uint8 (BYTES,), zeros behind its end."""
    return tf.io.decode_raw(content, tf.uint8, fixed_length=BYTES)


def size(data: Any) -> Any:
    """Returns height and width of a JPEG that surely is shown as it is stored, else (0, 0): int32 (2,).

    Not sure are a JPEG with EXIF data (or any other APP1 segment), one whose frame header lies beyond `BYTES`, and
    whatever is damaged or no JPEG at all. For a compiled function.

    Args:
        data: the `head` of an encoded picture.
    """
    data = tf.cast(data, tf.int32)

    def searching(at: Any, number: Any, found: Any) -> Any:
        return (at > 0) & (number < _SEGMENTS)

    def segment(at: Any, number: Any, found: Any) -> tuple[Any, Any, Any]:
        part = tf.slice(data, [at], [9])
        marker = part[1]
        valid = (part[0] == 0xFF) & (marker >= 0xC0) & (marker != 0xDA) & (marker != 0xE1)
        is_frame = valid & (marker <= 0xCF) & (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
        found = tf.where(is_frame, tf.stack([256 * part[5] + part[6], 256 * part[7] + part[8]]), found)
        following = at + 2 + 256 * part[2] + part[3]
        return tf.where(valid & ~is_frame & (following <= BYTES - 9), following, -1), number + 1, found

    first = tf.where((data[0] == 0xFF) & (data[1] == 0xD8), 2, -1)
    return tf.while_loop(searching, segment, (first, 0, tf.zeros([2], tf.int32)))[2]
