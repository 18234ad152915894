"""Single pixels: noise, blur and erased rectangles."""

import dataclasses
import math
from typing import Any, ClassVar

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data.augment._base import (
    Augmentation,
    Range,
    Where,
    between,
    pair,
    pixel_words,
    probability,
    to_unit,
    word,
)  # fmt: skip


class Pixels(Augmentation):
    """Operations on pixels in place; they follow one another in the listed order.

    What an operation does to a picture is decided in `parameters`, a few numbers per picture; `pixels` only applies
    them. The two are compiled apart, so that a picture does not depend on how many others are computed with it.
    """

    def parameters(self, u: Any, where: Where, size: tuple[int, int]) -> tuple[Any, ...]:
        """Returns tensors with the batch as first axis, for draws u (b, draws)."""
        raise NotImplementedError

    def pixels(self, channels: list[Any], parameters: tuple[Any, ...]) -> list[Any]:
        """Returns the changed channels: each float32 (b, H, W) in grey levels."""
        raise NotImplementedError


def spread(value: Any) -> Any:
    """Returns one number per picture so that it broadcasts over its pixels: (b,) -> (b, 1, 1)."""
    return tf.reshape(value, [-1, 1, 1])


@dataclasses.dataclass(frozen=True)
class GaussianNoise(Pixels):
    """Adds independent normal noise to every value, of a strength drawn for each picture.

        y = x + 255 s n,   n ~ N(0, 1),   s ~ U(low, high)

    The third group of the lecture's list. Semantic rule: keep it below the contrast of the detail that tells classes
    apart. The noise is the inverse normal distribution of a hash of (draws of the picture, pixel), so it needs no
    generator state.

    Args:
        std: standard deviation as a fraction of full scale, s for 0..s or (low, high).

    >>> GaussianNoise(0.05).draws
    3

    Reference: Е. А. Соколов, "Введение в глубинное обучение", lecture 7, section 7; M. Giles, "Approximating the
    erfinv function" (2010).
    """

    std: Range = 0.02
    draws: ClassVar[int] = 3

    def _range(self) -> tuple[float, float]:
        return pair("std", (0.0, self.std) if isinstance(self.std, (int, float)) else self.std, minimum=0.0)

    def __post_init__(self) -> None:
        self._range()

    def parameters(self, u: Any, where: Where, size: tuple[int, int]) -> tuple[Any, ...]:
        """Returns the strength in grey levels times sqrt(2), and the key of the hash."""
        strength = between(*self._range(), u[:, 0]) * (255 * math.sqrt(2))
        return strength, word(u[:, 1]) * tf.constant(2048, tf.uint32) + word(u[:, 2])

    def pixels(self, channels: list[Any], parameters: tuple[Any, ...]) -> list[Any]:
        """See `Pixels.pixels`."""
        strength, keys = parameters
        result = []
        for number, channel in enumerate(channels):
            uniform = to_unit(pixel_words(keys, channel.shape[1:], number))
            result.append(channel + spread(strength) * tf.math.erfinv(2 * uniform - 1))
        return result


@dataclasses.dataclass(frozen=True)
class Blur(Pixels):
    """Blurs each picture with a Gaussian of random width.

        y = sum_d w(d) x(. - d),   w(d) ~ exp(-d^2 / (2 sigma^2))

    The "small blur" of the lecture's list. Semantic rule: a sigma beyond one pixel removes texture, which may be the
    class.

    Args:
        sigma: standard deviation in pixels, s for 0..s or (low, high). The window reaches three standard deviations.

    >>> Blur(1.0).draws
    1

    Reference: Е. А. Соколов, "Введение в глубинное обучение", lecture 7, section 7.
    """

    sigma: Range = 1.0
    draws: ClassVar[int] = 1

    def _range(self) -> tuple[float, float]:
        return pair("sigma", (0.0, self.sigma) if isinstance(self.sigma, (int, float)) else self.sigma, minimum=0.0)

    def __post_init__(self) -> None:
        if self._range()[1] > 16:
            raise InputError(f"sigma={self.sigma!r} exceeds 16 pixels: resize the picture instead")

    def parameters(self, u: Any, where: Where, size: tuple[int, int]) -> tuple[Any, ...]:
        """Returns the weights at distances 0, 1, ..., radius."""
        sigma = tf.maximum(between(*self._range(), u[:, 0]), 1e-3)
        radius = max(1, math.ceil(3 * self._range()[1]))
        weights = [tf.exp(-(d * d) / (2 * sigma * sigma)) for d in range(radius + 1)]
        total = weights[0]
        for weight in weights[1:]:
            total = total + 2 * weight
        return tuple(weight / total for weight in weights)

    def pixels(self, channels: list[Any], parameters: tuple[Any, ...]) -> list[Any]:
        """See `Pixels.pixels`."""
        weights = [spread(weight) for weight in parameters]
        return [_convolved(_convolved(channel, weights, 1), weights, 2) for channel in channels]


def _convolved(images: Any, weights: list[Any], axis: int) -> Any:
    """Returns pictures (b, H, W) convolved along one axis with a symmetric kernel; the border pixel is repeated."""
    side, radius = images.shape[axis], len(weights) - 1
    first, last = tf.gather(images, [0], axis=axis), tf.gather(images, [side - 1], axis=axis)
    wide = tf.concat([first] * radius + [images] + [last] * radius, axis)

    def shifted(by: int) -> Any:
        begin = [0, 0, 0]
        begin[axis] = radius + by
        return tf.slice(wide, begin, [-1 if i != axis else side for i in range(3)])

    result = weights[0] * images
    for d in range(1, radius + 1):
        result = result + weights[d] * (shifted(-d) + shifted(d))
    return result


@dataclasses.dataclass(frozen=True)
class Erase(Pixels):
    """Covers a random rectangle: cutout with a fixed square, random erasing with a random one.

    Teaches a network not to rely on one part of the object. Semantic rule: the rest must still show the class.

    Args:
        area: of the rectangle as a fraction of the picture, a for exactly a or (low, high).
        ratio: width / height (low, high); (1, 1) for squares, as in cutout.
        chance: probability that a picture is covered at all.
        fill: grey level 0..1, or "noise" for uniform noise.
        inside: True keeps the whole rectangle in the picture (random erasing); False lets its centre lie anywhere, so
            that it may stick out (cutout: 8 of 32 pixels are `Erase(area=1/16, inside=False)`).

    >>> Erase(area=1 / 16, inside=False).draws
    6

    Reference: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017);
    Zhong et al., "Random Erasing Data Augmentation" (2020), algorithm 1.
    """

    area: Range = (0.02, 0.33)
    ratio: tuple[float, float] = (1.0, 1.0)
    chance: float = 1.0
    fill: str | float = 0.5
    inside: bool = True
    draws: ClassVar[int] = 6

    def _area(self) -> tuple[float, float]:
        return pair("area", (self.area, self.area) if isinstance(self.area, (int, float)) else self.area, minimum=0.0)

    def __post_init__(self) -> None:
        if self._area()[1] > 1:
            raise InputError(f"area={self.area!r} is a fraction of the picture: at most 1")
        if pair("ratio", self.ratio)[0] <= 0:
            raise InputError(f"ratio={self.ratio!r} must be positive")
        probability("chance", self.chance)
        if self.fill != "noise" and not (isinstance(self.fill, (int, float)) and 0 <= self.fill <= 1):
            raise InputError(f"fill={self.fill!r}; allowed: a grey level 0..1, or 'noise'")

    def parameters(self, u: Any, where: Where, size: tuple[int, int]) -> tuple[Any, ...]:
        """Returns the rectangle (top, left, height, width), height 0 for none, and the key of the noise."""
        top, left, tall, wide = rectangle(u[:, 1:4], between(*self._area(), u[:, 0]), self.ratio, size, self.inside)
        tall = tf.where(u[:, 4] < self.chance, tall, tf.zeros_like(tall))
        return top, left, tall, wide, word(u[:, 5])

    def pixels(self, channels: list[Any], parameters: tuple[Any, ...]) -> list[Any]:
        """See `Pixels.pixels`."""
        *place, keys = parameters
        hidden = covered(place, channels[0].shape[1:])
        result = []
        for number, channel in enumerate(channels):
            value: Any = 0.0 if isinstance(self.fill, str) else 255.0 * self.fill
            if self.fill == "noise":
                value = 255 * to_unit(pixel_words(keys, channel.shape[1:], number))
            result.append(tf.where(hidden, value, channel))
        return result


def rectangle(u: Any, area: Any, ratio: tuple[float, float], size: tuple[int, int], inside: bool) -> tuple[Any, ...]:
    """Returns (top, left, height, width) in whole pixels, float32 (b,), of a rectangle of given area (a fraction)."""
    height, width = float(size[0]), float(size[1])
    proportion = tf.exp(between(math.log(ratio[0]), math.log(ratio[1]), u[:, 0]))
    pixels = area * (height * width)
    tall = tf.minimum(tf.round(tf.sqrt(pixels / proportion)), height)
    wide = tf.minimum(tf.round(tf.sqrt(pixels * proportion)), width)
    if inside:
        return tf.floor(u[:, 1] * (height - tall + 1)), tf.floor(u[:, 2] * (width - wide + 1)), tall, wide
    return tf.floor(u[:, 1] * height) - tf.floor(tall / 2), tf.floor(u[:, 2] * width) - tf.floor(wide / 2), tall, wide


def covered(place: Any, size: tuple[int, int]) -> Any:
    """Returns bool (b, H, W), True inside the rectangle (top, left, height, width)."""
    top, left, tall, wide = (spread(value) for value in place)
    down = tf.range(size[0], dtype=tf.float32)[None, :, None]
    across = tf.range(size[1], dtype=tf.float32)[None, None, :]
    return (down >= top) & (down < top + tall) & (across >= left) & (across < left + wide)
