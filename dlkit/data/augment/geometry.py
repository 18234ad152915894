"""Where pixels move: rotation, shift, scale, shear, flip and crops, all as one affine map per picture."""

import dataclasses
import math
from typing import Any, ClassVar

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data.augment._base import (
    Augmentation,
    Matrix,
    Range,
    Where,
    between,
    pair,
    probability,
)  # fmt: skip
from dlkit.data.draws import mixed_bits

Fill = str | float


class Geometry(Augmentation):
    """Operations that move pixels; consecutive ones multiply into one map and the picture is resampled once."""

    fill: Fill

    def matrix(self, u: Any, where: Where, size: tuple[int, int]) -> Matrix:
        """Returns the map from output to input pixels about the centre for draws u (b, draws)."""
        raise NotImplementedError

    def shrink(self) -> float:
        """Returns by how much the operation can shrink a picture at most, 1 for not at all: decides on antialiasing."""
        return 1.0


def checked_fill(fill: Fill) -> Fill:
    """Returns what lies outside the picture: "reflect", "edge", or a grey level as a fraction of full scale."""
    if fill in ("reflect", "edge") or (isinstance(fill, (int, float)) and 0 <= fill <= 1):
        return fill
    raise InputError(f"fill={fill!r}; allowed: 'reflect', 'edge', or a grey level 0..1")


@dataclasses.dataclass(frozen=True)
class Affine(Geometry):
    """Rotates, shears, scales and shifts each picture by random amounts, in one resampling.

        input = R(angle) Shear(kx) (output - shift) / scale

    The first group of the lecture's list. Semantic rule: rotation keeps most photographs' class up to about 15
    degrees, but a 6 turned by 180 degrees is a 9, and signs or text lose their meaning earlier; scale and shift must
    keep the object inside.

    Args:
        rotate: degrees counter-clockwise, r for -r..r or (low, high).
        shift: fraction of the side, horizontally and vertically, s for -s..s.
        scale: zoom factor (low, high); above 1 enlarges; a number s means 1 - s..1 + s.
        shear: degrees along x, s for -s..s.
        fill: what comes in from outside: "reflect" (keeps the picture's statistics), "edge", or a grey level 0..1.

    Raises:
        InputError: a reversed range, a scale that is not positive, an unknown fill.

    >>> Affine(rotate=10, shift=0.1, scale=(0.9, 1.1)).draws
    5

    Reference: Е. А. Соколов, "Введение в глубинное обучение", lecture 7, section 7 "Аугментация данных".
    """

    rotate: Range = 0.0
    shift: Range = 0.0
    scale: Range = (1.0, 1.0)
    shear: Range = 0.0
    fill: Fill = "reflect"
    draws: ClassVar[int] = 5

    def __post_init__(self) -> None:
        pair("rotate", self.rotate)
        pair("shift", self.shift)
        if pair("scale", self.scale, 1.0)[0] <= 0:
            raise InputError(f"scale={self.scale!r} must stay positive")
        if max(map(abs, pair("shear", self.shear))) >= 90:
            raise InputError(f"shear={self.shear!r} must stay below 90 degrees")
        checked_fill(self.fill)

    def shrink(self) -> float:
        """Returns 1 / the smallest zoom."""
        return max(1.0, 1 / pair("scale", self.scale, 1.0)[0])

    def matrix(self, u: Any, where: Where, size: tuple[int, int]) -> Matrix:
        """See `Geometry.matrix`."""
        angle = between(*pair("rotate", self.rotate), u[:, 0]) * (math.pi / 180)
        low, high = (math.tan(math.radians(degrees)) for degrees in pair("shear", self.shear))
        shear = between(low, high, u[:, 1])
        zoom = 1 / between(*pair("scale", self.scale, 1.0), u[:, 2])
        right = between(*pair("shift", self.shift), u[:, 3]) * size[1]
        down = between(*pair("shift", self.shift), u[:, 4]) * size[0]
        cos, sin = tf.cos(angle) * zoom, tf.sin(angle) * zoom
        a, b, d, e = cos, cos * shear - sin, sin, sin * shear + cos
        return Matrix(a, b, -(a * right + b * down), d, e, -(d * right + e * down))


@dataclasses.dataclass(frozen=True)
class Flip(Geometry):
    """Mirrors pictures left to right and top to bottom.

    Semantic rule: left-right suits photographs, top-bottom only pictures without an up (microscopy, aerial). Neither
    suits digits and letters: a mirrored 3 is no digit. Mode "alternating" shows every picture once plain and once
    mirrored in each pair of epochs, so no picture is seen the same way twice in a row by chance; it speeds up short
    trainings.

    Args:
        horizontal: probability of mirroring left to right.
        vertical: probability of mirroring top to bottom.
        mode: "random" draws anew each time; "alternating" mirrors left to right by the parity of (epoch + a bit of the
            picture) and ignores the size of `horizontal` (which must not be 0).

    >>> Flip(), Flip(mode="alternating").mode
    (Flip(horizontal=0.5, vertical=0.0, mode='random'), 'alternating')

    Reference: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024), section 3.6 (alternating flip);
    Е. А. Соколов, lecture 7, section 7.
    """

    horizontal: float = 0.5
    vertical: float = 0.0
    mode: str = "random"
    draws: ClassVar[int] = 2
    fill: ClassVar[Fill] = "any"  # type: ignore[misc]

    def __post_init__(self) -> None:
        probability("horizontal", self.horizontal)
        probability("vertical", self.vertical)
        if self.mode not in ("random", "alternating"):
            raise InputError(f"mode={self.mode!r}; allowed: 'random', 'alternating'")
        if self.mode == "alternating" and not self.horizontal:
            raise InputError(
                "mode='alternating' mirrors left to right in every second epoch; horizontal=0 contradicts it"
            )

    def matrix(self, u: Any, where: Where, size: tuple[int, int]) -> Matrix:
        """See `Geometry.matrix`."""
        left_right = u[:, 0] < self.horizontal
        if self.mode == "alternating":
            salt = tf.constant((where.seed * 2654435761 + 97) % 2**32, tf.uint32)
            coin = tf.bitwise.bitwise_and(mixed_bits(tf.cast(where.index, tf.uint32) + salt), tf.constant(1, tf.uint32))
            left_right = (tf.cast(coin, tf.int64) + where.epoch) % 2 == 1
        one, zero = tf.ones_like(u[:, 0]), tf.zeros_like(u[:, 0])
        return Matrix(
            tf.where(left_right, -one, one), zero, zero, zero, tf.where(u[:, 1] < self.vertical, -one, one), zero
        )


@dataclasses.dataclass(frozen=True)
class RandomCrop(Geometry):
    """Pads by `padding` pixels and crops the original size at a random place: whole-pixel shifts, nothing is blurred.

    The augmentation of the CIFAR experiments of the ResNet paper (padding 4). Semantic rule: the object must survive
    the loss of `padding` pixels at two sides.

    Args:
        padding: pixels on each side.
        fill: 0.0 (black, the paper's), another grey level 0..1, "reflect" or "edge".

    >>> RandomCrop(4).draws
    2

    Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2016), section 4.2.
    """

    padding: int = 4
    fill: Fill = 0.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not isinstance(self.padding, int) or self.padding < 0:
            raise InputError(f"padding={self.padding!r} is no number of pixels: an int of at least 0 is needed")
        checked_fill(self.fill)

    def matrix(self, u: Any, where: Where, size: tuple[int, int]) -> Matrix:
        """See `Geometry.matrix`."""
        one, zero = tf.ones_like(u[:, 0]), tf.zeros_like(u[:, 0])
        right = tf.floor(u[:, 0] * (2 * self.padding + 1)) - self.padding
        down = tf.floor(u[:, 1] * (2 * self.padding + 1)) - self.padding
        return Matrix(one, zero, right, zero, one, down)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Geometry):
    """Crops a part of random area and proportions and resizes it to the whole size: ImageNet's training crop.

    As the first geometric operation of a pipeline it acts on the stored picture: of a JPEG only that window is
    decoded, at 1/2, 1/4 or 1/8 when the window is that much larger than the output, and it is resized with
    antialiasing. Semantic rule: a small part may not show the object; `scale` from 0.08 is for long trainings on
    centred photographs, 0.25 or more for short ones.

    Args:
        scale: area of the part as a fraction of the picture (low, high).
        ratio: width / height of the part (low, high), drawn uniformly in its logarithm.

    >>> RandomResizedCrop().scale
    (0.08, 1.0)

    Reference: Szegedy et al., "Going Deeper with Convolutions" (2015), section 6 (training methodology).
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    draws: ClassVar[int] = 4
    fill: ClassVar[Fill] = "any"  # type: ignore[misc]

    def __post_init__(self) -> None:
        low, high = pair("scale", self.scale)
        if not 0 < low <= high <= 1:
            raise InputError(f"scale={self.scale!r} is an area: 0 < low <= high <= 1 is allowed")
        if pair("ratio", self.ratio)[0] <= 0:
            raise InputError(f"ratio={self.ratio!r} must be positive")

    def window(self, u: Any, height: Any, width: Any) -> tuple[Any, Any, Any, Any]:
        """Returns (top, left, height, width) of the part in pixels, float32, for draws u (..., 4). Always inside."""
        height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
        area = between(*self.scale, u[..., 0]) * height * width
        ratio = tf.exp(between(math.log(self.ratio[0]), math.log(self.ratio[1]), u[..., 1]))
        tall = tf.minimum(tf.sqrt(area / ratio), height)
        wide = tf.minimum(area / tall, width)
        tall = tf.minimum(area / wide, height)
        return u[..., 2] * (height - tall), u[..., 3] * (width - wide), tall, wide

    def matrix(self, u: Any, where: Where, size: tuple[int, int]) -> Matrix:
        """See `Geometry.matrix`."""
        height, width = float(size[0]), float(size[1])
        top, left, tall, wide = self.window(u, height, width)
        zero = tf.zeros_like(top)
        right, down = left + (wide - width) / 2, top + (tall - height) / 2
        return Matrix(wide / width, zero, right, zero, tall / height, down)


def moved_boxes(boxes: Any, matrix: Matrix, size: tuple[int, int]) -> Any:
    """Returns boxes (b, 4) after the pictures moved: the upright hull of the four corners, clipped to the picture.

    A box that left the picture has width or height 0.
    """
    height, width = float(size[0]), float(size[1])
    m = matrix
    determinant = m.a * m.e - m.b * m.d
    xs, ys = [], []
    for across in (0.0, 1.0):
        for down in (0.0, 1.0):
            x = (boxes[:, 0] + across * boxes[:, 2] - 0.5) * width - m.c
            y = (boxes[:, 1] + down * boxes[:, 3] - 0.5) * height - m.f
            xs.append((m.e * x - m.b * y) / determinant / width + 0.5)
            ys.append((m.a * y - m.d * x) / determinant / height + 0.5)
    x, y = tf.clip_by_value(tf.stack(xs, -1), 0.0, 1.0), tf.clip_by_value(tf.stack(ys, -1), 0.0, 1.0)
    left, top = tf.reduce_min(x, -1), tf.reduce_min(y, -1)
    return tf.stack([left, top, tf.reduce_max(x, -1) - left, tf.reduce_max(y, -1) - top], -1)


__all__ = ["Affine", "Flip", "Geometry", "RandomCrop", "RandomResizedCrop", "moved_boxes"]
