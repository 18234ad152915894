"""Policies: RandAugment and TrivialAugment draw operations from one fixed list of fourteen."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data.augment._base import Augmentation, Matrix, Where
from dlkit.data.augment.color import LUMA
from dlkit.data.augment.geometry import Fill, checked_fill
from dlkit.data.draws import compiled

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
    "brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_ID = {name: i for i, name in enumerate(OPERATIONS)}
_BINS = 30


@dataclasses.dataclass(frozen=True)
class _Strengths:
    """What magnitude 30 of 30 means for each kind of operation."""

    shear: float  # tangent
    translate: float  # fraction of the side, or pixels
    pixels: bool
    rotate: float  # degrees
    enhance: float  # distance of the factor from 1
    posterize: int  # bits removed


_RAND = _Strengths(shear=0.3, translate=150 / 331, pixels=False, rotate=30, enhance=0.9, posterize=4)
_WIDE = _Strengths(shear=0.99, translate=32, pixels=True, rotate=135, enhance=0.99, posterize=6)


class Policy(Augmentation):
    """Layers of operations drawn per picture; their geometry merges into the warp, their colours follow it in order."""

    fill: Fill
    layers: int
    strengths: ClassVar[_Strengths]

    def _choice(self, u: Any, layer: int) -> tuple[Any, Any, Any]:
        """Returns (operation id, sign, magnitude 0..1), each (b,), of one layer."""
        part = u[:, 3 * layer : 3 * layer + 3]
        chosen = tf.cast(part[:, 0] * len(OPERATIONS), tf.int32)
        return chosen, tf.where(part[:, 1] < 0.5, -1.0, 1.0), self._magnitude(part[:, 2])

    def _magnitude(self, u: Any) -> Any:
        raise NotImplementedError

    def shrink(self) -> float:
        """Returns 1: rotations, shifts and shears of the list keep the scale."""
        return 1.0

    def matrix(self, u: Any, where: Where, size: tuple[int, int]) -> Matrix:
        """See `Geometry.matrix`."""
        steps = []
        for layer in range(self.layers):
            chosen, sign, magnitude = self._choice(u, layer)
            signed = sign * magnitude
            zero, one = tf.zeros_like(signed), tf.ones_like(signed)

            def amount(name: str, value: float, chosen: Any = chosen, signed: Any = signed, zero: Any = zero) -> Any:
                return tf.where(chosen == _ID[name], signed * value, zero)

            s = self.strengths
            angle = amount("rotate", math.radians(s.rotate))
            across = amount("translate_x", s.translate if s.pixels else s.translate * size[1])
            down = amount("translate_y", s.translate if s.pixels else s.translate * size[0])
            cos, sin = tf.cos(angle), tf.sin(angle)
            turn = Matrix(cos, -sin, tf.round(across), sin, cos, tf.round(down))
            shear = Matrix(one, amount("shear_x", s.shear), zero, amount("shear_y", s.shear), one, zero)
            steps.append(turn.then(shear))
        return functools.reduce(Matrix.then, steps)

    def layered(self, images: Any, u: Any) -> Any:
        """Returns uint8 pictures after the layers' operations on values."""
        for layer in range(self.layers):
            chosen, sign, magnitude = self._choice(u, layer)
            images = _equalized(_pointwise(self.strengths)(images, chosen, sign, magnitude), chosen == _ID["equalize"])
        return images


@functools.lru_cache
def _pointwise(strengths: _Strengths) -> Any:
    @compiled
    def run(images: Any, chosen: Any, sign: Any, magnitude: Any) -> Any:
        x = tf.cast(images, tf.float32)
        chosen, sign, magnitude = (tf.reshape(value, [-1, 1, 1, 1]) for value in (chosen, sign, magnitude))
        factor = 1 + sign * magnitude * strengths.enhance
        luma = LUMA[0] * x[..., :1] + LUMA[1] * x[..., 1:2] + LUMA[2] * x[..., 2:3] if x.shape[-1] >= 3 else x
        whole = tf.cast(tf.round(luma), tf.int32)
        pixels = float(images.shape[1] * images.shape[2])
        mean = tf.round(tf.cast(tf.reduce_sum(whole, [1, 2], keepdims=True), tf.float32) / pixels)
        low = tf.reduce_min(images, [1, 2], keepdims=True)
        high = tf.reduce_max(images, [1, 2], keepdims=True)
        low, high = tf.cast(low, tf.float32), tf.cast(high, tf.float32)
        step = _power_of_two(tf.round(magnitude * strengths.posterize))
        limit = 255 * (1 - magnitude)

        def blended(base: Any) -> Any:
            return base + factor * (x - base)

        results = {
            "brightness": factor * x,
            "color": blended(luma),
            "contrast": blended(mean),
            "sharpness": blended(_smooth(x)),
            "posterize": tf.floor(x / step) * step,
            "solarize": tf.where(x >= limit, 255 - x, x),
            "autocontrast": tf.where(high > low, (x - low) * (255 / tf.maximum(high - low, 1.0)), x),
        }
        result = x
        for name, value in results.items():
            result = tf.where(chosen == _ID[name], value, result)
        return tf.cast(tf.round(tf.clip_by_value(result, 0.0, 255.0)), tf.uint8)

    return run


def _power_of_two(exponent: Any) -> Any:
    return tf.cast(tf.bitwise.left_shift(tf.ones_like(exponent, tf.int32), tf.cast(exponent, tf.int32)), tf.float32)


def _smooth(x: Any) -> Any:
    """Returns (sum of the 3x3 neighbours + 4 centre) / 13 inside; the one-pixel border is kept."""
    _, height, width, _ = x.shape
    if height < 3 or width < 3:
        return x
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = tf.round((total + 4 * x[:, 1:-1, 1:-1]) / 13)
    middle = tf.concat([x[:, 1:-1, :1], inner, x[:, 1:-1, -1:]], 2)
    return tf.concat([x[:, :1], middle, x[:, -1:]], 1)


def _equalized(images: Any, chosen: Any) -> Any:
    """Returns the pictures with the histograms of the chosen ones equalised channel by channel."""
    places = tf.where(chosen)
    picked = tf.gather_nd(images, places)
    _, height, width, channels = images.shape
    flat = tf.cast(tf.reshape(tf.transpose(picked, [0, 3, 1, 2]), [-1, height * width]), tf.int32)
    empty = tf.zeros([0], tf.int32)
    counts = tf.raw_ops.DenseBincount(input=flat, size=256, weights=empty, binary_output=False)
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256)[None], 0), 1)
    step = (height * width - tf.gather(counts, last, batch_dims=1)) // 255
    before = tf.cumsum(counts, 1, exclusive=True)
    table = tf.minimum((step[:, None] // 2 + before) // tf.maximum(step, 1)[:, None], 255)
    table = tf.where(step[:, None] > 0, table, tf.range(256)[None])
    equal = tf.cast(tf.gather(table, flat, batch_dims=1), tf.uint8)
    equal = tf.transpose(tf.reshape(equal, [-1, channels, height, width]), [0, 2, 3, 1])
    return tf.tensor_scatter_nd_update(images, places, equal)


@dataclasses.dataclass(frozen=True)
class RandAugment(Policy):
    """Applies `layers` operations, each drawn from a list of fourteen, all at one magnitude.

    Two numbers instead of a searched policy. The list: identity, shear, translation, rotation, brightness, colour,
    contrast, sharpness, posterise, solarise, autocontrast, equalise. Semantic rule: it bends shapes and inverts
    tones, so it is for natural photographs, not for digits, text or measurements.

    Args:
        layers: operations per picture.
        magnitude: 0..30; 9 is the paper's choice for ResNet-50.
        fill: what comes in from outside: "reflect", "edge" or a grey level 0..1.

    >>> RandAugment(2, 9).draws
    6

    Reference: Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data augmentation with a reduced search
    space" (2020), figure 2.
    """

    layers: int = 2
    magnitude: float = 9
    fill: Fill = 0.0
    strengths: ClassVar[_Strengths] = _RAND

    def __post_init__(self) -> None:
        if not isinstance(self.layers, int) or self.layers < 1:
            raise InputError(f"layers={self.layers!r} must be an int of at least 1")
        if not 0 <= self.magnitude <= _BINS:
            raise InputError(f"magnitude={self.magnitude!r}; allowed: 0..{_BINS}")
        checked_fill(self.fill)

    @property
    def draws(self) -> int:  # type: ignore[override]
        """Three numbers per layer."""
        return 3 * self.layers

    def _magnitude(self, u: Any) -> Any:
        return tf.zeros_like(u) + self.magnitude / _BINS


@dataclasses.dataclass(frozen=True)
class TrivialAugment(Policy):
    """Applies one operation per picture at a magnitude drawn uniformly: a policy without anything to tune.

    Wider ranges than `RandAugment` (rotation to 135 degrees, shear to 45). Semantic rule: as for `RandAugment`.

    Args:
        fill: what comes in from outside: "reflect", "edge" or a grey level 0..1.

    >>> TrivialAugment().draws
    3

    Reference: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (2021), table 1
    (wide).
    """

    fill: Fill = 0.0
    draws: ClassVar[int] = 3
    layers: ClassVar[int] = 1  # type: ignore[misc]
    strengths: ClassVar[_Strengths] = _WIDE

    def __post_init__(self) -> None:
        checked_fill(self.fill)

    def _magnitude(self, u: Any) -> Any:
        return tf.floor(u * (_BINS + 1)) / _BINS
