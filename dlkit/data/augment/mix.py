"""Two pictures into one: MixUp and CutMix, with labels mixed by the true share."""

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import draws
from dlkit.data.augment._base import Augmentation, probability
from dlkit.data.augment.noise import covered, rectangle

TILE = 16  # sample k is mixed with a sample of its own tile, k // 16, whatever the batch size


class Mix(Augmentation):
    """Operations on finished pictures and their partners."""

    def mixed(self, images: Any, partners: Any, u: Any) -> tuple[Any, Any]:
        """Returns (pictures, share): float32 (b, H, W, C), and the share of each own picture, float32 (b,)."""
        raise NotImplementedError


@functools.lru_cache
def beta_quantiles(alpha: float) -> np.ndarray:
    """Returns 4097 quantiles of Beta(alpha, alpha) at 0, 1/4096, ..., 1, for interpolation."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, np.linspace(0, 1, 4097)).astype(np.float32)


def beta(alpha: float, u: Any) -> Any:
    """Returns Beta(alpha, alpha) numbers from uniform ones."""
    table = tf.constant(beta_quantiles(alpha))
    place = u * 4096.0
    low = tf.floor(place)
    at = tf.cast(low, tf.int32)
    left, right = tf.gather(table, at), tf.gather(table, tf.minimum(at + 1, 4096))
    return left + (place - low) * (right - left)


def _checked(alpha: float, chance: float) -> None:
    if not alpha > 0:
        raise InputError(f"alpha={alpha!r} must be positive; leave the operation out to mix nothing")
    probability("chance", chance)


@dataclasses.dataclass(frozen=True)
class MixUp(Mix):
    """Blends two pictures and their labels in a random proportion.

        x = s x1 + (1 - s) x2,   y = s y1 + (1 - s) y2,   s ~ Beta(alpha, alpha)

    Smooths decisions between classes; calibrates better. Semantic rule: the blend belongs to both classes, so targets
    must be able to say so (one-hot or float targets, not boxes).

    Args:
        alpha: small values keep most pictures nearly pure (0.2), 1 draws the proportion uniformly.
        chance: probability that a picture is mixed.

    >>> MixUp(0.2).draws
    2

    Reference: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (2018), equation 1.
    """

    alpha: float = 0.2
    chance: float = 1.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _checked(self.alpha, self.chance)

    def mixed(self, images: Any, partners: Any, u: Any) -> tuple[Any, Any]:
        """See `Mix.mixed`."""
        share = tf.where(u[:, 1] < self.chance, beta(self.alpha, u[:, 0]), 1.0)
        spread = tf.reshape(share, [-1, 1, 1, 1])
        return images * spread + partners * (1 - spread), share


@dataclasses.dataclass(frozen=True)
class CutMix(Mix):
    """Replaces a random rectangle by the same part of another picture; labels are mixed by the area that was replaced.

        area ~ 1 - Beta(alpha, alpha),   y = (1 - a) y1 + a y2 with a the true share of replaced pixels

    The rectangle may stick out; what counts is the part inside, in whole pixels. Semantic rule: the part must be able
    to show its class, so objects should fill the picture.

    Args:
        alpha: of the Beta distribution of the area; 1 is uniform, the paper's choice.
        chance: probability that a picture is mixed.

    >>> CutMix().draws
    5

    Reference: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features"
    (2019), equations 1 and 2.
    """

    alpha: float = 1.0
    chance: float = 1.0
    draws: ClassVar[int] = 5

    def __post_init__(self) -> None:
        _checked(self.alpha, self.chance)

    def mixed(self, images: Any, partners: Any, u: Any) -> tuple[Any, Any]:
        """See `Mix.mixed`."""
        _, height, width, _ = images.shape
        area = 1 - beta(self.alpha, u[:, 0])
        top, left, tall, wide = rectangle(u[:, 1:4], area, (1.0, 1.0), (height, width), inside=False)
        tall = tf.where(u[:, 4] < self.chance, tall, tf.zeros_like(tall))
        replaced = covered((top, left, tall, wide), (height, width))
        count = tf.reduce_sum(tf.cast(replaced, tf.int32), [1, 2])
        return tf.where(replaced[..., None], partners, images), 1 - tf.cast(count, tf.float32) / float(height * width)


def partners(first: Any, rows: int, seed: int) -> Any:
    """Returns for rows first .. first+rows-1 (whole tiles) the place of each one's partner among them: int32 (rows,).

    Within a tile of 16 every sample gives and receives once; nobody is its own partner. A function of (seed, k) alone.
    """
    tiles = rows // TILE
    turn = draws.uniform(draws.key(seed, "partner"), tf.cast(first, tf.int64) // TILE, tiles, 4)[:, :1]
    turn = 1 + tf.cast(turn * (TILE - 1), tf.int32)
    place = tf.range(TILE)[None] + turn
    return tf.reshape(place % TILE + TILE * tf.range(tiles)[:, None], [-1])


def mixed(op: Mix, images: Any, targets: Any, u: Any, partner: Any) -> tuple[Any, Any]:
    """Returns a batch of whole tiles with one operation applied: (pictures, targets)."""
    images, share = op.mixed(images, tf.gather(images, partner), u)
    share = share[:, None]
    return images, targets * share + tf.gather(targets, partner) * (1 - share)
