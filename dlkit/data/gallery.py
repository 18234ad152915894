"""Draws the gallery of augmentations: python -m dlkit.data.gallery docs/images/augment.png"""

import sys
from importlib import resources
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit.data import augment as a
from dlkit.data._arrays import from_arrays
from dlkit.data.preprocess import Preprocess

OPERATIONS: tuple[Any, ...] = (
    a.Affine(rotate=25), a.Affine(shift=0.2), a.Affine(scale=(0.6, 1.5)), a.Affine(shear=25), a.Flip(0.5, 0.5),
    a.RandomCrop(12), a.RandomResizedCrop((0.1, 0.6)),
    a.Color(brightness=0.5), a.Color(contrast=0.7), a.Color(saturation=1.0), a.Color(hue=90), a.Color(grey=0.5),
    a.GaussianNoise(0.15), a.Blur(2.5), a.Erase(), a.Erase(area=1 / 16, inside=False, fill="noise"),
    a.MixUp(1.0), a.CutMix(), a.RandAugment(2, 15), a.TrivialAugment(),
)  # fmt: skip


def pictures(side: int = 96) -> np.ndarray:
    """Returns 16 pictures from the two photographs that scikit-learn ships: uint8 (16, side, side, 3)."""
    preprocess = Preprocess(side, resize=side + side // 4)
    folder = resources.files("sklearn.datasets.images")
    both = [
        preprocess.decode(tf.constant((folder / name).read_bytes())).numpy() for name in ("china.jpg", "flower.jpg")
    ]
    return np.stack([both[i % 2] for i in range(16)])


def draw(path: str, columns: int = 7) -> None:
    """Writes one row per operation: the picture, then what the first epochs of a stream make of it."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    images = pictures()
    source = from_arrays(images, np.arange(16) % 2, classes=["temple", "flower"])
    preprocess = Preprocess(images.shape[1])
    figure, axes = plt.subplots(len(OPERATIONS), columns, figsize=(1.35 * columns + 2.2, 1.35 * len(OPERATIONS)))
    for row, op in zip(axes, OPERATIONS, strict=True):
        epochs = [a.preview(source, (op,), 0, epoch, seed=2, preprocess=preprocess) for epoch in range(columns - 1)]
        shown = [images[0], *(sample.image for sample in epochs)]
        for axis, image in zip(row, shown, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label(op), rotation=0, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(left=0.24, right=0.995, top=0.998, bottom=0.002, wspace=0.04, hspace=0.04)
    figure.savefig(path, dpi=50)


def label(op: Any) -> str:
    """Returns the operation with the arguments that differ from its defaults."""
    changed = [f"{k}={_short(v)}" for k, v in vars(op).items() if v != type(op).__dataclass_fields__[k].default]
    return f"{type(op).__name__}(" + ",\n".join(changed) + ")"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


if __name__ == "__main__":
    draw(sys.argv[1])
