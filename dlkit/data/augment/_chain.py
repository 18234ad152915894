"""Composition: a list of operations becomes, per stretch, one map of places, one gather and one pass over the values.

A stretch is computed by a few XLA functions, because XLA would otherwise repeat the gather for every channel, compute
the places twice with different rounding, and round the numbers of a lone picture unlike those of a batch:

    sums    integer sums of the channels, for contrast
    plan    draws -> the numbers of each picture: affine map, colour matrix, strengths; always on a multiple of 16 rows
    places  affine maps -> fixed-point source coordinates (1/65536 pixel)
    taps    the four neighbours of every source coordinate, all channels of two of them in one 64-bit word
    values  bilinear mean, colour matrix, noise, erasing, clipping, normalisation: one fused loop

A large picture is finished alone, straight from the window that was decoded (`of_window`, see `_direct`).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data.augment import _direct
from dlkit.data.augment._base import Augmentation, Colors, Matrix, Where, sum_of
from dlkit.data.augment._places import ONE, places
from dlkit.data.augment.color import Color
from dlkit.data.augment.geometry import Geometry, RandomResizedCrop, moved_boxes
from dlkit.data.augment.mix import Mix
from dlkit.data.augment.noise import Pixels
from dlkit.data.augment.policy import Policy
from dlkit.data.draws import compiled, padded


@dataclasses.dataclass
class _Stretch:
    """Geometry that merges into one resampling, then operations on values in order."""

    moves: list[tuple[Any, int]] = dataclasses.field(default_factory=list)
    fill: Any = "any"
    values: list[tuple[Any, int]] = dataclasses.field(default_factory=list)
    policy: tuple[Policy, int] | None = None

    def accepts(self, op: Any) -> bool:
        if self.policy or any(not isinstance(other, Color) for other, _ in self.values):
            return False
        return "any" in (self.fill, op.fill) or self.fill == op.fill

    @property
    def colors(self) -> bool:
        """Whether there is a colour matrix."""
        return any(isinstance(op, Color) for op, _ in self.values)

    @property
    def samples(self) -> int:
        """Readings per output pixel along one axis: 1, or enough to average what a shrinking map skips."""
        shrink = math.prod(op.shrink() for op, _ in self.moves)
        return 1 if shrink <= _direct.TOLERATED_SHRINK else math.ceil(shrink)


class Chain:
    """A list of operations, ready to be applied to batches.

    Args:
        augment: operations in order. MixUp and CutMix come last; they need the pipeline and are kept in `mixes`.
        crop_at_source: leave a leading `RandomResizedCrop` to the caller (`crop`), who reads only that window.
        normalize: (offset, scale) per channel, applied last as (x - offset) * scale.
    """

    def __init__(
        self, augment: Sequence[Any] | None, *, crop_at_source: bool = False, normalize: tuple[Any, Any] | None = None
    ) -> None:
        ops = tuple(augment or ())
        for op in ops:
            if not isinstance(op, Augmentation):
                raise InputError(f"augment holds {op!r}, which is no operation of dlkit.data.augment")
            if not isinstance(op, (Geometry, Color, Pixels, Policy, Mix)):
                raise InputError(
                    f"augment holds {op!r}, of which nothing is known but its draws: derive {type(op).__name__} from "
                    f"Geometry, Color or Pixels, see dlkit.data.augment.Augmentation"
                )
        columns, self.columns = [], 0
        for op in ops:
            columns.append(self.columns)
            self.columns += op.draws
        self.width = max(4, padded(self.columns))
        body = [(op, at) for op, at in zip(ops, columns, strict=True) if not isinstance(op, Mix)]
        self.mixes = [(op, at) for op, at in zip(ops, columns, strict=True) if isinstance(op, Mix)]
        if self.mixes and body and self.mixes[0][1] < body[-1][1]:
            raise InputError("MixUp and CutMix mix finished pictures: they must be the last operations")
        self.crop: tuple[RandomResizedCrop, int] | None = None
        moves = [pair for pair in body if isinstance(pair[0], Geometry)]
        if crop_at_source and moves and isinstance(moves[0][0], RandomResizedCrop):
            self.crop = moves[0]
            body.remove(moves[0])
        self.stretches = _stretches(body)
        self.normalize = normalize
        self._compiled: dict[Any, Any] = {}

    def _jit(self, name: str, make: Any) -> Any:
        if name not in self._compiled:
            self._compiled[name] = compiled(make)
        return self._compiled[name]

    def __call__(
        self, images: Any, draws: Any, *, boxes: Any = None, index: Any = None, epoch: Any = None, seed: int = 0
    ) -> tuple[Any, Any]:
        """Returns (pictures, boxes): float32 (b, H, W, C) grey levels, normalised if asked for, and boxes or None."""
        images = tf.convert_to_tensor(images)
        if images.dtype != tf.uint8 or images.shape.rank != 4:
            raise InputError(f"pictures of {images.dtype.name} {images.shape}: uint8 (b, H, W, C) is needed")
        return self._run(images, None, draws, boxes, index, epoch, seed)

    def of_window(
        self, window: Any, size: tuple[int, int], draws: Any, *, boxes: Any, index: Any, epoch: Any, seed: int
    ) -> tuple[Any, Any]:
        """Returns the same for one picture that is still a window of any size, uint8 (h, w, C), which must fit.

        Its resizing to `size` and the first stretch's geometry are one reading.
        """
        return self._run(window, size, draws, boxes, index, epoch, seed)

    def _run(
        self, images: Any, size: tuple[int, int] | None, draws: Any, boxes: Any, index: Any, epoch: Any, seed: int
    ) -> tuple[Any, Any]:
        draws = tf.convert_to_tensor(draws, tf.float32)
        zeros = tf.zeros_like(draws[:, 0], tf.int64)
        where = Where(
            zeros if index is None else tf.cast(index, tf.int64),
            zeros if epoch is None else tf.cast(epoch, tf.int64),
            seed,
        )
        stretches = self.stretches or ([_Stretch()] if size else [])
        for number, stretch in enumerate(stretches):
            last = number == len(stretches) - 1
            plain = last and stretch.policy is None
            if size and number == 0:
                images, boxes = self._from_window(stretch, images, size, draws, where, boxes, plain)
            else:
                images, boxes = self._stretch(number, stretch, images, draws, where, boxes, plain)
            if stretch.policy is not None:
                policy, at = stretch.policy
                images = policy.layered(images, draws[:, at : at + policy.draws])
        if not stretches or stretches[-1].policy is not None:
            images = self._jit("finish", lambda x: self._finished(_channels(x)))(images)
        return images, boxes

    def _from_window(
        self, stretch: _Stretch, window: Any, size: tuple[int, int], u: Any, where: Where, boxes: Any, last: bool
    ) -> tuple[Any, Any]:
        run = self._jit(
            f"window/{where.seed}/{size}/{last}",
            lambda *arguments: self._windowed(stretch, size, last, where.seed, *arguments),
        )
        sides = tf.shape(window)[:2]
        matrix, images = run(_direct.padded(window, size), sides, u, where.index, where.epoch)
        if boxes is not None and matrix is not None:
            boxes = moved_boxes(boxes, Matrix(*matrix), size)
        return images, boxes

    def _windowed(
        self, stretch: _Stretch, size: tuple[int, int], last: bool, seed: int,
        words: Any, sides: Any, u: Any, index: Any, epoch: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Returns (affine map or None, pictures) of the words of a padded window."""
        channels, there = words.shape[-1], sides[0] > 0
        mean = None
        if stretch.colors:
            mean = _direct.step(there, lambda: _direct.means(words, sides, channels))
        moved, parameters = _plan(stretch, u, mean, Where(index, epoch, seed), size)
        matrix = _direct.resizing(sides, size)
        matrix = matrix if moved is None else matrix.then(Matrix(*moved))
        tall, wide = tf.unstack(tf.cast(sides, tf.float32))
        x, y, *cover = _direct.step(there, lambda: places(matrix, size, stretch.fill, stretch.samples, (tall, wide)))
        table = _direct.step(there, lambda: _direct.table(words, channels))

        def values() -> Any:
            pixels = tf.reduce_mean(_direct.reading(table, sides[1], x, y, channels), 1)
            return self._toned(stretch, last, pixels, cover, parameters)

        return moved, _direct.step(there, values)

    def _stretch(
        self, number: int, stretch: _Stretch, images: Any, u: Any, where: Where, boxes: Any, last: bool
    ) -> tuple[Any, Any]:
        size = images.shape[1:3]
        mean = None
        if stretch.colors:
            mean = [_whole_rows(channel) for channel in self._jit("sums", _means)(images)]
        plan = self._jit(
            f"plan{number}/{where.seed}/{size}",
            lambda u, mean, index, epoch: _plan(stretch, u, mean, Where(index, epoch, where.seed), size),
        )
        matrix, parameters = plan(_whole_rows(u), mean, _whole_rows(where.index), _whole_rows(where.epoch))
        x = y = None
        cover: list[Any] = []
        source = images
        if matrix is not None:
            where_from = self._jit(
                f"places{number}/{size}/{images.shape[0]}",
                lambda m: places(
                    Matrix(*(value[: images.shape[0]] for value in m)), size, stretch.fill, stretch.samples
                ),
            )
            x, y, *cover = where_from(matrix)
            source = self._jit("taps", _taps)(images, x, y)
            if boxes is not None:
                boxes = moved_boxes(boxes, Matrix(*(value[: images.shape[0]] for value in matrix)), size)
        values = self._jit(f"values{number}/{last}", lambda *arguments: self._values(stretch, last, *arguments))
        return values(source, x, y, cover, parameters), boxes

    def _values(self, stretch: _Stretch, last: bool, source: Any, x: Any, y: Any, cover: Any, parameters: Any) -> Any:
        if stretch.moves:
            channels = _bilinear(source, x, y)
            if cover:
                fill = 255.0 * stretch.fill
                channels = [channel * cover[0] + fill * (1 - cover[0]) for channel in channels]
        else:
            channels = _channels(source)
        return self._valued(stretch, last, channels, parameters)

    def _toned(self, stretch: _Stretch, last: bool, pixels: Any, cover: Any, parameters: Any) -> Any:
        """Returns the values of pixels float32 (1, H, W, C); colours alone are one loop over adjacent channels."""
        if cover:
            inside = cover[0][..., None]
            pixels = pixels * inside + 255.0 * stretch.fill * (1 - inside)
        if parameters[1] or pixels.shape[-1] != 3:
            return self._valued(stretch, last, tf.unstack(pixels, axis=-1), parameters)
        if parameters[0]:
            rows = tf.stack([tf.stack([value[0] for value in row]) for row in parameters[0]])
            pixels = sum_of(rows[:, j] * pixels[..., j : j + 1] for j in range(3)) + rows[:, 3]
        pixels = _clipped(pixels)
        if not last:
            return tf.cast(tf.round(pixels), tf.uint8)
        if self.normalize is not None:
            pixels = (pixels - tf.constant(self.normalize[0])) * tf.constant(self.normalize[1])
        return pixels

    def _valued(self, stretch: _Stretch, last: bool, channels: list[Any], parameters: Any) -> Any:
        colors, others = tf.nest.map_structure(lambda value: value[: channels[0].shape[0]], parameters)
        if colors:
            channels = _colored(channels, Colors(colors))
        pixels = (op for op, _ in stretch.values if not isinstance(op, Color))
        for op, numbers in zip(pixels, others, strict=True):
            channels = op.pixels(channels, numbers)
        if last:
            return self._finished(channels)
        return tf.cast(tf.round(tf.stack([_clipped(channel) for channel in channels], -1)), tf.uint8)

    def _finished(self, channels: list[Any]) -> Any:
        channels = [_clipped(channel) for channel in channels]
        if self.normalize is not None:
            channels = [
                (channel - offset) * scale for channel, offset, scale in zip(channels, *self.normalize, strict=True)
            ]
        return tf.stack(channels, -1)


def _whole_rows(values: Any) -> Any:
    """Returns values with zero rows added up to a multiple of 16."""
    rows = tf.shape(values)[0] if values.shape[0] is None else values.shape[0]
    return tf.pad(values, [[0, -rows % 16]] + [[0, 0]] * (values.shape.rank - 1))


def _plan(stretch: _Stretch, u: Any, mean: Any, where: Where, size: tuple[int, int]) -> tuple[Any, Any]:
    """Returns (affine map or None, (colour rows or None, numbers of every other operation))."""
    matrix: Matrix | None = None
    for op, at in stretch.moves:
        one = op.matrix(u[:, at : at + op.draws], where, size)
        matrix = one if matrix is None else matrix.then(one)
    colors: Colors | None = None
    others = []
    for op, at in stretch.values:
        draws = u[:, at : at + op.draws]
        if not isinstance(op, Color):
            others.append(op.parameters(draws, where, size))
        elif colors is None:
            colors = op.color(draws, mean)
        else:
            colors = colors.then(op.color(draws, colors.of(mean)))
    return None if matrix is None else tuple(matrix), (() if colors is None else colors.rows, tuple(others))


def _stretches(body: list[tuple[Any, int]]) -> list[_Stretch]:
    stretches: list[_Stretch] = []
    for op, at in body:
        if not stretches:
            stretches.append(_Stretch())
        if isinstance(op, (Geometry, Policy)):
            if not stretches[-1].accepts(op):
                stretches.append(_Stretch())
            stretches[-1].moves.append((op, at))
            stretches[-1].fill = op.fill if stretches[-1].fill == "any" else stretches[-1].fill
            if isinstance(op, Policy):
                stretches[-1].policy = (op, at)
            continue
        if stretches[-1].policy is not None:
            stretches.append(_Stretch())
        if isinstance(op, Color) and any(not isinstance(other, Color) for other, _ in stretches[-1].values):
            stretches.append(_Stretch())  # its contrast needs the mean of what the operation before it made
        if isinstance(op, (Color, Pixels)):
            stretches[-1].values.append((op, at))
    return stretches


def _clipped(images: Any) -> Any:
    return tf.clip_by_value(images, 0.0, 255.0)


def _colored(channels: list[Any], colors: Colors | None) -> list[Any]:
    if colors is None:
        return channels
    if len(channels) == 1:
        return [_clipped(colors.of(channels * 3)[0])]
    return [_clipped(channel) for channel in colors.of(channels[:3])] + channels[3:]


def _channels(images: Any) -> list[Any]:
    return [tf.cast(channel, tf.float32) for channel in tf.unstack(images, axis=-1)]


def _means(images: Any) -> list[Any]:
    """Returns the three channel means (b,) of uint8 pictures, summed in integers: no order matters."""
    _, height, width, channels = images.shape
    mean = tf.cast(tf.reduce_sum(tf.cast(images, tf.int32), [1, 2]), tf.float32) / float(height * width)
    return [mean[:, min(i, channels - 1)] for i in range(3)]


def _taps(images: Any, x: Any, y: Any) -> list[tuple[Any, Any]]:
    """Returns per group of three channels the words of the upper and lower neighbours, each (b, s, H, W)."""
    batch, height, width, channels = images.shape
    start = tf.reshape(tf.range(batch) * ((height + 1) * width), [-1, 1, 1, 1])
    at = start + tf.bitwise.right_shift(y, 16) * width + tf.bitwise.right_shift(x, 16)
    result = []
    for first in range(0, channels, 3):
        word = tf.int64 if channels - first >= 2 else tf.int32
        group = tf.unstack(tf.cast(images[..., first : first + 3], word), axis=-1)
        bits = 8 * len(group)
        pixel = sum_of(value * (1 << (8 * i)) for i, value in enumerate(group))
        pixel = tf.concat([pixel, pixel[:, -1:]], 1)
        right = tf.concat([pixel[:, :, 1:], pixel[:, :, -1:]], 2)
        table = tf.reshape(pixel + right * (1 << bits), [-1])
        result.append((tf.gather(table, at), tf.gather(table, at + width)))
    return result


def _bilinear(taps: list[tuple[Any, Any]], x: Any, y: Any) -> list[Any]:
    """Returns the channels (b, H, W) of the pictures read between their pixels."""
    right = tf.cast(tf.bitwise.bitwise_and(x, ONE - 1), tf.float32) * (1 / ONE)
    low = tf.cast(tf.bitwise.bitwise_and(y, ONE - 1), tf.float32) * (1 / ONE)
    channels = []
    for upper, lower in taps:
        count = 3 if upper.dtype == tf.int64 else 1

        def value(words: Any, position: int) -> Any:
            shifted = tf.bitwise.right_shift(words, tf.constant(8 * position, words.dtype))
            low_byte = tf.bitwise.bitwise_and(shifted, tf.constant(255, words.dtype))
            return tf.cast(tf.cast(low_byte, tf.int32), tf.float32)

        for channel in range(count):
            ul, ur = value(upper, channel), value(upper, channel + count)
            ll, lr = value(lower, channel), value(lower, channel + count)
            top, bottom = ul + right * (ur - ul), ll + right * (lr - ll)
            between = top + low * (bottom - top)
            channels.append(between[:, 0] if between.shape[1] == 1 else tf.reduce_mean(between, 1))
    return channels
