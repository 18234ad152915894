"""How colours change: brightness, contrast, saturation, hue and grey, all as one 3x4 matrix per picture."""

import dataclasses
import math
from typing import Any, ClassVar

import tensorflow as tf

from dlkit.data.augment._base import Augmentation, Colors, Range, between, pair, probability

LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Color(Augmentation):
    """Changes brightness, contrast, saturation and hue of each picture by random amounts, in one pass over the pixels.

        y = S H C (b x)     b brightness, C contrast, H hue, S saturation

    C x = c x + (1 - c) m with m the picture's mean luma; H turns colours about the grey axis; S x = s x + (1 - s)
    luma(x), with s = 0 where colour is dropped. All are linear in x, so they multiply into one 3x4 matrix; values are
    clipped to 0..255 once, at the end (a chain of separate operations clips after each). The second group of the
    lecture's list. Semantic rule: hue and grey must not be used where colour is the class (ripe fruit, traffic lights,
    stained tissue).

    Args:
        brightness: factor, s for 1 - s..1 + s or (low, high).
        contrast: factor about the picture's mean luma.
        saturation: factor; 0 is grey.
        hue: degrees on the colour circle, h for -h..h.
        grey: probability of dropping colour altogether.

    >>> Color(brightness=0.2, contrast=0.2, saturation=0.2).draws
    5

    Reference: Е. А. Соколов, "Введение в глубинное обучение", lecture 7, section 7 "Аугментация данных";
    P. Haeberli, "Matrix operations for image processing" (1993).
    """

    brightness: Range = 0.0
    contrast: Range = 0.0
    saturation: Range = 0.0
    hue: Range = 0.0
    grey: float = 0.0
    draws: ClassVar[int] = 5

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            pair(name, getattr(self, name), 1.0, minimum=0.0)
        pair("hue", self.hue)
        probability("grey", self.grey)

    def color(self, u: Any, mean: list[Any]) -> Colors:
        """Returns the colour matrix for draws u (b, 5) and the pictures' channel means, three float32 (b,)."""
        bright = between(*pair("brightness", self.brightness, 1.0), u[:, 0])
        contrast = between(*pair("contrast", self.contrast, 1.0), u[:, 1])
        vivid = between(*pair("saturation", self.saturation, 1.0), u[:, 2])
        turn = between(*pair("hue", self.hue), u[:, 3]) * (math.pi / 180)
        vivid_or_grey = tf.where(u[:, 4] < self.grey, tf.zeros_like(vivid), vivid)
        luma = bright * (LUMA[0] * mean[0] + LUMA[1] * mean[1] + LUMA[2] * mean[2])
        zero = tf.zeros_like(bright)
        scaled = bright * contrast
        result = Colors(
            tuple((*(scaled if i == j else zero for j in range(3)), (1 - contrast) * luma) for i in range(3))
        )
        if pair("hue", self.hue) != (0.0, 0.0):
            result = result.then(_hue(turn))
        if pair("saturation", self.saturation, 1.0) != (1.0, 1.0) or self.grey:
            result = result.then(_saturation(vivid_or_grey))
        return result


def _saturation(factor: Any) -> Colors:
    rest = 1 - factor
    zero = tf.zeros_like(factor)
    return Colors(tuple((*(rest * LUMA[j] + (factor if i == j else 0.0) for j in range(3)), zero) for i in range(3)))


def _hue(angle: Any) -> Colors:
    """Rodrigues' rotation about (1, 1, 1) / sqrt(3)."""
    cos, sin = tf.cos(angle), tf.sin(angle) / math.sqrt(3)
    same, zero = (1 - cos) / 3, tf.zeros_like(cos)
    rows = []
    for i in range(3):
        row = [same + cos if j == i else same - sin if j == (i + 1) % 3 else same + sin for j in range(3)]
        rows.append((*row, zero))
    return Colors(tuple(rows))
