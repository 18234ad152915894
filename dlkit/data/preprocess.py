"""The one preparation of inputs that training, evaluation and the exported graph share."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import _decode

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_INTERPOLATIONS = {"bilinear": "triangle", "bicubic": "keyscubic", "lanczos3": "lanczos3", "lanczos5": "lanczos5"}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Turns encoded files or stored pictures into what the network sees: decode, resize, normalise.

        y[c] = (x[c] / 255 - mean[c]) / std[c]

    Its methods are pure TensorFlow. The evaluation pipeline calls them and the exported graph contains them, so there
    is no second definition that could drift.

    Args:
        size: height and width of the network's input in pixels, one int for a square.
        channels: 3 RGB, 1 luma, 4 RGBA.
        resize: None resizes the whole picture to `size`, which changes its proportions when they differ; an int resizes
            the shorter side to it and then crops the centre, ImageNet's convention (256 for 224). It may not be smaller
            than the sides of `size`.
        mean, std: of each channel as fractions of full scale (0..1), a number for all channels or one per channel.
            None takes the statistics of ImageNet's RGB channels (their average for luma), which suit photographs.
        interpolation: "bilinear", "bicubic", "lanczos3" or "lanczos5". Always antialiased when a picture shrinks, as
            in Pillow: without it a resized photograph differs by up to 148 grey levels.

    Shapes:
        `from_bytes`: string (B,) -> float32 (B, height, width, channels);
        `from_images`: uint8 (B, H, W, C) -> float32 (B, height, width, channels).

    Raises:
        InputError: for a size, channel count or interpolation that does not exist, and for means and deviations that
            are none of fractions (grey levels 0..255 have to be divided by 255).

    >>> preprocess = Preprocess(8, channels=1, mean=0.5, std=0.25)
    >>> preprocess.input_shape
    (8, 8, 1)
    >>> preprocess.from_images(tf.zeros([2, 8, 8, 1], tf.uint8))[0, 0, 0, 0].numpy()
    np.float32(-2.0)
    >>> Preprocess.from_config(preprocess.get_config()) == preprocess
    True

    Reference: "Обучение нейронных сетей", lecture 3, section "Нормализация данных".
    """

    size: int | tuple[int, int]
    channels: int = dataclasses.field(default=3, kw_only=True)
    resize: int | None = dataclasses.field(default=None, kw_only=True)
    mean: float | Sequence[float] | None = dataclasses.field(default=None, kw_only=True)
    std: float | Sequence[float] | None = dataclasses.field(default=None, kw_only=True)
    interpolation: str = dataclasses.field(default="bilinear", kw_only=True)

    def __post_init__(self) -> None:
        pair = _sides(self.size)
        if self.channels not in (1, 3, 4):
            raise InputError(f"channels={self.channels!r}; allowed: 1 (luma), 3 (RGB), 4 (RGBA)")
        if self.interpolation not in _INTERPOLATIONS:
            raise InputError(f"interpolation={self.interpolation!r}; allowed: {', '.join(_INTERPOLATIONS)}")
        if self.resize is not None and not (isinstance(self.resize, int) and self.resize >= max(pair)):
            raise InputError(
                f"resize={self.resize!r} is no int of at least size={pair}, so no {pair[0]}x{pair[1]} crop fits; "
                f"use resize={max(pair)} or more, or None to resize the whole picture to size"
            )
        object.__setattr__(self, "size", pair)
        object.__setattr__(self, "mean", self._per_channel("mean", self.mean, _IMAGENET[0]))
        object.__setattr__(self, "std", self._per_channel("std", self.std, _IMAGENET[1]))
        if not all(0 < value < math.inf for value in self.std):  # type: ignore[union-attr]
            raise InputError(f"std={self.std!r} must be positive and finite: it divides")
        if not all(0 <= value <= 1 for value in self.mean):  # type: ignore[union-attr]
            raise InputError(f"mean={self.mean!r} must hold fractions of full scale, 0..1: divide grey levels by 255")

    def _per_channel(self, name: str, value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
        if value is None:
            average = round(sum(default) / 3, 6)
            return {1: (average,), 3: default, 4: (*default, average)}[self.channels]
        try:
            found = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"{name}={value!r} is no number, and none for each channel") from None
        values = tuple(found.tolist()) if found.ndim == 1 else (float(found),) * self.channels if not found.ndim else ()
        if len(values) != self.channels:
            raise InputError(f"{name} has {len(values)} numbers for channels={self.channels}")
        return values

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one prepared picture: (height, width, channels)."""
        height, width = self.size  # type: ignore[misc]
        return height, width, self.channels

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as values that JSON can hold."""
        config = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Preprocess":
        """Returns the object that `get_config` described."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if strange := sorted(set(config) - fields):
            raise InputError(f"Preprocess has no {', '.join(strange)}; its arguments are {', '.join(sorted(fields))}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        return cls(**arguments)

    def read(self, content: Any) -> Any:
        """Returns the picture in an encoded string at its own size: uint8 (H, W, channels). See `decode`."""
        # a tensor: each Python string would be traced anew
        return _decode.decode(tf.convert_to_tensor(content, tf.string), self.channels)

    def fit(self, images: Any) -> Any:
        """Returns uint8 pictures (..., H, W, C) resized (and cropped) to `input_shape`, rounded to uint8.

        Grey pictures are repeated to RGB and RGB is reduced to luma where `channels` asks for it.
        """
        images = self.with_channels(images)
        height, width, channels = self.input_shape
        if images.shape[-3:-1] == (height, width) and self.resize in (None, min(height, width)):
            return images
        single = images.shape.rank == 3
        images = self._resized(images[None] if single else images)
        images.set_shape([None, height, width, channels])
        return images[0] if single else images

    def with_channels(self, images: Any) -> Any:
        """Returns uint8 pictures (..., C) with the channels of this Preprocess: grey repeated, RGB reduced to luma."""
        found = images.shape[-1]
        if found == self.channels:
            return images
        if found not in (1, 3, 4):
            raise InputError(f"pictures have {found} channels; a Preprocess takes 1, 3 or 4")
        if self.channels == 1:
            return _decode.grey(images[..., :3])
        rgb = tf.repeat(images, 3, axis=-1) if found == 1 else images[..., :3]
        return (
            rgb
            if self.channels == 3
            else tf.concat([rgb, tf.fill(tf.shape(rgb[..., :1]), tf.constant(255, tf.uint8))], -1)
        )

    def stretched(self, images: Any) -> Any:
        """Returns uint8 pictures (..., H, W, C) resized as a whole to `input_shape`, whatever `resize` says."""
        return dataclasses.replace(self, resize=None).fit(images)

    def _resized(self, images: Any) -> Any:
        height, width, _ = self.input_shape
        shape = tf.cast(tf.shape(images)[1:3], tf.float32)
        target = tf.constant([height, width], tf.float32)
        if self.resize is None:
            scale = target / shape
            offset = tf.zeros([2], tf.float32)
        else:
            ratio = self.resize / tf.reduce_min(shape)
            resized = tf.maximum(tf.floor(shape * ratio + 0.5), target)
            scale = resized / shape
            offset = -tf.floor((resized - target) / 2)

        def moved() -> Any:
            values = tf.raw_ops.ScaleAndTranslate(
                images=images, size=[height, width], scale=scale, translation=offset,
                kernel_type=_INTERPOLATIONS[self.interpolation], antialias=True,
            )  # fmt: skip
            return tf.cast(tf.clip_by_value(tf.floor(values + 0.5), 0.0, 255.0), tf.uint8)

        if self.resize is not None and self.resize != min(height, width):
            return moved()
        return tf.cond(tf.reduce_all(shape == target), lambda: images, moved)  # every kernel keeps whole pixels

    def decode(self, content: Any) -> Any:
        """Returns the picture in an encoded string, decoded and resized: uint8 (height, width, channels).

        The first bytes decide the format: JPEG (integer DCT, equal to Pillow), PNG, GIF, BMP, WebP. The EXIF
        orientation of JPEG, PNG and WebP is applied, transparency is blended over white.
        """
        return self.fit(self.read(content))

    def normalize(self, images: Any) -> Any:
        """Returns float32 (x / 255 - mean) / std of pictures in grey levels 0..255 (uint8 or float32)."""
        offset, scale = self.offset_and_scale()
        return (tf.cast(images, tf.float32) - tf.constant(offset, tf.float32)) * tf.constant(scale, tf.float32)

    def offset_and_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns per channel the a and b of y = (x - a) b, with x in grey levels 0..255.

        This form rounds alike whether or not a compiler contracts it (a b + c does not), so the compiled training
        chain and the exported graph agree to the last bit.
        """
        pairs = list(zip(self.mean, self.std, strict=True))  # type: ignore[arg-type]
        return tuple(255 * mean for mean, _ in pairs), tuple(1 / (255 * std) for _, std in pairs)

    def from_bytes(self, contents: Any) -> Any:
        """Returns the network's input from encoded pictures: string (B,) -> float32 (B, height, width, channels)."""
        contents = tf.convert_to_tensor(contents, tf.string)
        images = tf.map_fn(self.decode, contents, fn_output_signature=tf.TensorSpec(self.input_shape, tf.uint8))
        return self.normalize(images)

    def from_images(self, images: Any) -> Any:
        """Returns the network's input from pictures: uint8 (B, H, W, C) -> float32 (B, height, width, channels)."""
        return self.normalize(self.fit(images))


@dataclasses.dataclass(frozen=True)
class Standardize:
    """Subtracts the mean of each column of a table and divides by its standard deviation.

        y[j] = (x[j] - mean[j]) / std[j]

    The preparation of tabular inputs (for `mlp`). Take the numbers from the training part only:
    `Standardize.of(train)`.

    Args:
        mean, std: one number per column; a std of 0 (a constant column) counts as 1.

    Shapes:
        `from_rows`: float (B, columns) -> float32 (B, columns).

    >>> Standardize((1.0, 2.0), (2.0, 1.0)).from_rows(tf.constant([[3.0, 2.0]])).numpy().tolist()
    [[1.0, 0.0]]

    Reference: "Обучение нейронных сетей", lecture 3, section "Нормализация данных".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; one each per column is needed"
            )
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) < 0:
            raise InputError(f"mean={self.mean!r} and std={self.std!r} must be finite, and std not negative")

    @classmethod
    def of(cls, source: Any) -> "Standardize":
        """Returns the statistics of a tabular source (population standard deviation, computed in float64)."""
        table = np.empty(0) if source.store.encoded else np.asarray(source.take(np.arange(len(source))), np.float64)
        if table.ndim != 2:
            raise InputError(f"{source!r} holds pictures; Standardize is for tables, use Preprocess")
        return cls(tuple(table.mean(0)), tuple(table.std(0)))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one prepared row: (columns,)."""
        return (len(self.mean),)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as values that JSON can hold."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Standardize":
        """Returns the object that `get_config` described."""
        return cls(tuple(config["mean"]), tuple(config["std"]))

    def from_rows(self, rows: Any) -> Any:
        """Returns the network's input from table rows: float (B, columns) -> float32 (B, columns)."""
        std = [value or 1.0 for value in self.std]
        return (tf.cast(rows, tf.float32) - tf.constant(self.mean, tf.float32)) / tf.constant(std, tf.float32)


def _sides(size: Any) -> tuple[int, int]:
    """Returns the height and width that an int or a pair of them means."""
    try:
        pair = (
            tuple(map(operator.index, size)) if isinstance(size, Sequence | np.ndarray) else (operator.index(size),) * 2
        )
    except TypeError:
        pair = ()
    if len(pair) != 2 or min(pair) < 1:
        raise InputError(f"size={size!r} is not a positive int or a pair (height, width) of them")
    return pair
