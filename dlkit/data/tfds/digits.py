"""The built-in data set: handwritten digits that ship inside scikit-learn, so that nothing is downloaded."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

TEST_SHARE = 5  # every fifth picture of a class, in a fixed permutation, is a test picture


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits, 8x8 grey levels scaled from 0..16 to 0..255, split 80/20 within each class."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of the UCI optical recognition set, 8x8, as scikit-learn ships them.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation="Alpaydin, E., Kaynak, C.: Optical Recognition of Handwritten Digits. UCI (1998).",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
        test = np.zeros(len(images), bool)
        for digit in range(10):
            members = np.random.default_rng(digit).permutation(np.flatnonzero(bunch.target == digit))
            test[members[::TEST_SHARE]] = True
        return {
            "train": self._generate_examples(images, bunch.target, np.flatnonzero(~test)),
            "test": self._generate_examples(images, bunch.target, np.flatnonzero(test)),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Iterator[Any]:
        for row in rows:
            yield int(row), {"image": images[row], "label": int(labels[row])}
