"""The pixels of an encoded picture, read from its header: nothing is decoded, so a bomb costs nothing.

Where a file claims several sizes (frames of a GIF, containers of WebP) the decoder's work counts, not the first size.
"""

import re
import struct
from typing import Any

from dlkit.export.server._errors import ServeError, invalid, too_large

STEPS = 200_000  # a file that is all headers must not hold up the others
_NOT_FILL = re.compile(rb"[^\xff]")


def pixels(content: bytes) -> int:
    """Returns width times height as the decoder will see it, 0 for what is no picture.

    Raises:
        ServeError: the file is cut into more parts than a picture has (400).

    >>> pixels(b"BM" + bytes(16) + (640).to_bytes(4, "little") + (480).to_bytes(4, "little"))
    307200
    """
    for start, read in _READERS.items():
        if content.startswith(start):
            try:
                return read(content)
            except (struct.error, IndexError):
                return 0  # cut off inside its header: the decoder will say so
    return 0


def check(values: Any, limit: int) -> list[int]:
    """Returns the pixels of each value; a value may also be a `tf.train.Example` with pictures in it.

    Raises:
        ServeError: one has more than `limit` pixels (413).
    """
    found: list[int] = []
    known: dict[bytes, int] = {}  # gRPC writes one value for a million equal rows
    for row, value in enumerate(values):
        count = known.get(value)
        if count is None:
            count = known[value] = pixels(value) or _of_example(value)
        if count > limit:
            raise too_large(
                f"the picture in row {row} has {count:,} pixels; this server decodes at most {limit:,} per picture"
            )
        found.append(count)
    return found


def _of_example(value: bytes) -> int:
    """The pixels of all pictures in a serialized Example; 0 for bytes that are none."""
    if not value.startswith(b"\x0a"):  # the key of its only field
        return 0
    from google.protobuf.message import DecodeError
    from tensorflow.core.example import example_pb2

    try:
        features = example_pb2.Example.FromString(value).features.feature
    except DecodeError:
        return 0
    return sum(pixels(content) for feature in features.values() for content in feature.bytes_list.value)


def _png(content: bytes) -> int:
    width, height = struct.unpack_from(">II", content, 16)
    return width * height


def _bmp(content: bytes) -> int:
    width, height = struct.unpack_from("<ii", content, 18)
    return abs(width) * abs(height)


def _jpeg(content: bytes) -> int:
    """The first frame header; bytes between segments are skipped, as the decoder does."""
    at = 2
    for _ in range(STEPS):
        at = content.find(b"\xff", at)
        found = _NOT_FILL.search(content, at) if at >= 0 else None
        if found is None:
            return 0
        marker, at = content[found.start()], found.end()
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        if marker in (0xD9, 0xDA):
            return 0
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, at + 3)
            return width * height
        at += max(struct.unpack_from(">H", content, at)[0], 2)
    raise _endless("JPEG")


def _gif(content: bytes) -> int:
    """The canvas and all frames: the decoder unpacks every one of them before it takes the first."""
    width, height, packed = struct.unpack_from("<HHB", content, 6)
    total = width * height
    at = 13 + _table(packed)
    steps = 0
    try:
        while content[at] in (0x21, 0x2C):
            if content[at] == 0x2C:
                width, height, packed = struct.unpack_from("<HHB", content, at + 5)
                total += width * height
                at += 11 + _table(packed)
            else:
                at += 2
            while content[at]:
                at += 1 + content[at]
                steps += 1
                if steps > STEPS:
                    raise _endless("GIF")
            at += 1
    except (IndexError, struct.error):
        pass  # cut off behind the frames that were counted
    return total


def _table(packed: int) -> int:
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _webp(content: bytes) -> int:
    """The largest size that a chunk states: canvas, lossy or lossless frame."""
    if content[8:12] != b"WEBP":
        return 0
    largest, at = 0, 12
    for _ in range(STEPS):
        if at + 8 > len(content):
            return largest
        kind, size = content[at : at + 4], struct.unpack_from("<I", content, at + 4)[0]
        body = at + 8
        try:
            if kind == b"VP8X":
                largest = max(largest, (_three(content, body + 4) + 1) * (_three(content, body + 7) + 1))
            elif kind == b"ANMF":
                largest = max(largest, (_three(content, body + 6) + 1) * (_three(content, body + 9) + 1))
            elif kind == b"VP8 ":
                width, height = struct.unpack_from("<HH", content, body + 6)
                largest = max(largest, (width & 0x3FFF) * (height & 0x3FFF))
            elif kind == b"VP8L":
                bits = struct.unpack_from("<I", content, body + 1)[0]
                largest = max(largest, ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1))
        except (IndexError, struct.error):
            return largest
        at = body + size + (size & 1)
    raise _endless("WebP")


def _endless(kind: str) -> ServeError:
    return invalid(f"this {kind} file has more than {STEPS:,} parts; no camera or program writes such files")


def _three(content: bytes, at: int) -> int:
    return content[at] | content[at + 1] << 8 | content[at + 2] << 16


_READERS = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8\xff": _jpeg,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"RIFF": _webp,
}
