"""The compiled look at a JPEG's head: either the very size of an upright picture, or nothing."""

import numpy as np
import tensorflow as tf
from data_pictures import encoded, photo

from dlkit.data import Preprocess, _header
from dlkit.data import augment as a
from dlkit.data._window import read_window
from dlkit.data.draws import compiled


def with_segment(jpeg, marker, content):
    return jpeg[:2] + b"\xff" + bytes([marker]) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


def test_only_plain_heads_are_believed():
    """A file is left to the general search as soon as it may be turned, or its head is odd."""
    size = compiled(_header.size)
    jpeg = encoded(photo(20, 36), "JPEG")
    cases = {
        "plain": (jpeg, (20, 36)),
        "progressive": (encoded(photo(20, 36), "JPEG", progressive=True), (20, 36)),
        "grey": (encoded(photo(20, 36)[..., 0], "JPEG"), (20, 36)),
        "colour profile and comment": (with_segment(with_segment(jpeg, 0xE2, b"p" * 3000), 0xFE, b"hello"), (20, 36)),
        "EXIF": (with_segment(jpeg, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0"), (0, 0)),
        "EXIF behind a comment": (with_segment(with_segment(jpeg, 0xE1, b"Exif\0\0"), 0xFE, b"hello"), (0, 0)),
        "head beyond what is read": (with_segment(jpeg, 0xE2, b"p" * _header.BYTES), (0, 0)),
        "segment without a length": (jpeg[:20] + b"\0\0" + jpeg[22:], (0, 0)),
        "cut short": (jpeg[:30], (0, 0)),
        "PNG": (encoded(photo(20, 36), "PNG"), (0, 0)),
        "text": (b"hello", (0, 0)),
        "nothing": (b"", (0, 0)),
    }
    for name, (content, expected) in cases.items():
        found = tuple(size(_header.head(tf.constant(content))).numpy())
        assert found == expected, name
        if found[0]:
            assert found == tuple(tf.image.extract_jpeg_shape(content).numpy()[:2]), name


def test_both_ways_to_a_window_decode_the_same_pixels():
    """EXIF data that ask for nothing send a JPEG through the general search."""
    jpeg = encoded(photo(60, 90), "JPEG")
    turned = with_segment(jpeg, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    read = tf.function(lambda content, u: read_window(Preprocess(10), content, a.RandomResizedCrop(), u))
    for row in np.random.default_rng(0).random((3, 4)).astype(np.float32):
        for got, expected in zip(read(tf.constant(jpeg), row), read(tf.constant(turned), row), strict=True):
            np.testing.assert_array_equal(got, expected)
