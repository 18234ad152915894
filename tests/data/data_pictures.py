"""Files of every kind for the tests, made with Pillow."""

import io
import zlib

import numpy as np
from PIL import Image


def photo(height=40, width=56, seed=0):
    """A smooth picture with some noise, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (5 + 3 * c) + seed) * np.cos(y / (7 - c)) for c in range(3)]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(image, kind, **options):
    """The bytes of a picture (array or PIL image) in a format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def folder(root, per_class=4, classes=("cat", "dog"), size=(16, 20)):
    """A class folder tree of PNG files; returns the root."""
    for label in classes:
        (root / label).mkdir(parents=True)
        for i in range(per_class):
            seed = zlib.crc32(f"{label} {i}".encode()) % 999  # hash() of a string differs from process to process
            (root / label / f"{i:03}.png").write_bytes(encoded(photo(*size, seed=seed), "PNG"))
    return root
