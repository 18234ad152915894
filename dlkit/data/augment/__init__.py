"""Augmentations as frozen values that compose before they touch pixels.

    augment = (RandomCrop(4), Flip(), Color(brightness=0.2), Erase(area=1 / 16, inside=False), MixUp(0.2))

Geometry multiplies into one resampling and colours into one matrix. Every operation takes its random numbers as an
argument, so what a picture becomes is a function of (seed, sample counter) alone.
"""

from typing import TYPE_CHECKING, Any

from dlkit.data.augment._base import Augmentation, Colors, Matrix
from dlkit.data.augment._chain import Chain
from dlkit.data.augment.color import Color
from dlkit.data.augment.geometry import Affine, Flip, Geometry, RandomCrop, RandomResizedCrop
from dlkit.data.augment.mix import CutMix, MixUp
from dlkit.data.augment.noise import Blur, Erase, GaussianNoise, Pixels
from dlkit.data.augment.policy import RandAugment, TrivialAugment
from dlkit.data.augment.views import views

__all__ = [
    "Affine", "Flip", "RandomCrop", "RandomResizedCrop",
    "Color",
    "GaussianNoise", "Blur", "Erase",
    "MixUp", "CutMix",
    "RandAugment", "TrivialAugment",
    "preview", "views",
    "Augmentation", "Geometry", "Pixels", "Matrix", "Colors", "Chain",
]  # fmt: skip

if TYPE_CHECKING:
    from dlkit.data._preview import preview


def __getattr__(name: str) -> Any:
    if name == "preview":  # it needs the stream, which needs this package
        from dlkit.data._preview import preview

        return preview
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
