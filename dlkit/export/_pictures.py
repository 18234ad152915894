"""Pictures of every format that the decoder takes, for verification without data and for warm-up requests."""

import base64
import struct

import numpy as np
import tensorflow as tf

# 26x18 lossy, 26x18 lossless and a 16x12 palette: TensorFlow reads WebP and GIF but writes neither
_WEBP = (
    "UklGRrAAAABXRUJQVlA4IKQAAAAwBQCdASoaABIAPp1EnEolo7IhqAqqQBOJbACdMtU4SLjIAdKaAxfrHGIjlOldpNr7gAD+9Zjbjyk005cwfNtr"
    "3ZZ5v/y5MebD+HE7nM9Zko58iXAOCeCjp/1hL8ZKRwYZVd/Mo9l2p87cQedtwWEqnvq9cGTiXi8weA7Kpln0vIXeN9n/ScZn6i4ZpSLHVFGJO6c7"
    "BywitGS0BIRzAaeS0AAAAA=="
)
_WEBP_LOSSLESS = (
    "UklGRmAAAABXRUJQVlA4TFMAAAAvGUAEALkuRPQ/FgKBJH/eGWYofPQ/c1ASSZIzBpaetfNPT0f4/JhMGGKvZJoJJpmitm0go9pzXIfzjAnAE/PFjeIJ"
    "qS1mQC59AelV3iKmJpN/DQA="
)
_WEBP_ALPHA = (
    "UklGRvYAAABXRUJQVlA4WAoAAAAQAAAAGQAAEQAAQUxQSDgAAAAJOQJJW7ztj+h/HGwEADByNrKt/z/Pza1tEROQdOL12TB2p9sLQAhGUAwnEElkCpVG"
    "ZzBZbF6/B1ZQOCCYAAAAkAUAnQEqGgASAD61UKFMJySxoigKqjAWiWwAnTKEcDeV72D4AOlVAYs5qhA/hreX/r2Eu5gA/vLb2iktjp98HrgMvT5/+O19"
    "Hr+kVq26jpR0HQehNd3/Bm/TJS1V79P8yj2yjd7fP7ZXxI789WQ8YbtbxXERadQwYnsoz+CbzODA0lz+aUjhKi0/c8ZZXeikHPl790+QAAA="
)
_GIF = (
    "R0lGODdhEAAMAIIAAGZ/lhl9wW06rBJB3OYePH4NtFENzRcN7iwAAAAAEAAMAAAIVAAPCBxooKDBAggLDCRosGBChQsPNHSYcOCAixMFaBRQ4KJH"
    "AiBDEtgowONFkSFJmhyAEqRKjwFajtQIIIBNmzIB6Kx5s+fOnzx7BgD6U6hNojsDAgA7"
)


def pictures(height: int, width: int, seed: int = 0) -> dict[str, bytes]:
    """Returns encoded pictures by name: near `height` x `width`, larger, smaller and oblong ones of every format.

    They are a pure function of the arguments.

    >>> sorted(pictures(8, 8))[:3]
    ['bmp', 'gif', 'jpeg']
    """
    rng = np.random.default_rng(seed)
    same = _pattern(rng, height, width, 3)
    oblong = _pattern(rng, max(4, height * 3 // 4), max(4, width * 5 // 4), 3)
    larger = _pattern(rng, height * 3 // 2 + 1, width * 2 + 1, 3)
    small = _pattern(rng, 9, 7, 4)
    jpeg = tf.io.encode_jpeg(oblong, quality=92).numpy()
    return {
        "png": tf.io.encode_png(same).numpy(),
        "png_grey": tf.io.encode_png(larger[..., :1]).numpy(),
        "png_alpha": tf.io.encode_png(small).numpy(),
        "png_16_bit": tf.io.encode_png(larger.astype(np.uint16) * 257).numpy(),
        "jpeg": tf.io.encode_jpeg(larger, quality=85).numpy(),
        "jpeg_grey": tf.io.encode_jpeg(same[..., 1:2], quality=95).numpy(),
        "jpeg_exif_rotated": with_orientation(jpeg, 6),
        "bmp": bmp(oblong),
        "gif": base64.b64decode(_GIF),
        "webp": base64.b64decode(_WEBP),
        "webp_lossless": base64.b64decode(_WEBP_LOSSLESS),
        "webp_alpha": base64.b64decode(_WEBP_ALPHA),
    }


def bmp(pixels: np.ndarray) -> bytes:
    """Encodes uint8 (height, width, 3) as an uncompressed 24-bit BMP: rows from the bottom, padded to 4 bytes, BGR."""
    height, width, _ = pixels.shape
    row = -(-width * 3 // 4) * 4
    rows = np.zeros((height, row), np.uint8)
    rows[:, : width * 3] = pixels[::-1, :, ::-1].reshape(height, -1)
    size = height * row
    header = struct.pack("<2sIHHI", b"BM", 54 + size, 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, size, 2835, 2835, 0, 0) + rows.tobytes()


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Inserts an EXIF segment that holds only the orientation (1 to 8) behind the start of a JPEG file."""
    tiff = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + struct.pack(">BBH", 0xFF, 0xE1, len(body) + 2) + body + jpeg[2:]


def _pattern(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Draws waves, a disc and a little noise: edges, flat parts and every grey level, unlike white noise."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    waves = [np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + rng.uniform(0, 6)) for _ in range(channels)]
    picture = 127 + 100 * np.stack(waves, -1)
    centre = rng.uniform(0.3, 0.7, 2)
    disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < rng.uniform(0.02, 0.1)
    picture[disc] = rng.uniform(0, 255, channels)
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
