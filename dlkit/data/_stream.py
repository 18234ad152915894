"""What sample k of a training stream is, and the data sets that compute many of them."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import draws
from dlkit.data._sequential import Sequential
from dlkit.data._window import cut_window, moved_into, read_window, reduced, resized
from dlkit.data.augment import mix as _mixing
from dlkit.data.augment._chain import Chain
from dlkit.data.augment._direct import fits as window_fits
from dlkit.data.preprocess import Standardize
from dlkit.data.sources import Source

_TILE = _mixing.TILE
_LARGE = 96 * 96  # pictures beyond it are finished one by one: a batch of them leaves the processor's cache


class Stream:
    """The function from sample counters to samples. Arguments as in `train_pipeline`."""

    def __init__(
        self,
        source: Source,
        preprocess: Any,
        augment: Sequence[Any] | None,
        seed: int,
        *,
        balance: bool = False,
        repeats: int = 1,
    ) -> None:
        if repeats < 1:
            raise InputError(f"repeats={repeats} must be at least 1")
        self.source: Any = source
        self.preprocess, self.seed, self.repeats = preprocess, seed, repeats
        self.tabular = isinstance(preprocess, Standardize)
        if self.tabular and augment:
            raise InputError(f"augment={tuple(augment)!r} changes pictures; {source!r} with Standardize is a table")
        normalize = None if self.tabular else preprocess.offset_and_scale()
        self.chain = _chain(tuple(augment or ()), normalize)
        self.plain = not augment
        if self.chain.mixes and source.boxes is not None:
            raise InputError(
                "MixUp and CutMix mix targets by share, which boxes cannot express; leave them out for a box task"
            )
        self.members = _members(source) if balance else None
        self.sequential = isinstance(source, Sequential)
        self.by_sample = source.store.encoded or self.chain.crop is not None
        self.is_large = not self.tabular and preprocess.input_shape[0] * preprocess.input_shape[1] > _LARGE

    # which sample ---------------------------------------------------------------------------------

    def place(self, counters: Any) -> tuple[Any, Any]:
        """Returns (sample index, epoch) of counters: int64 (b,) each."""
        if self.sequential:
            raise InputError(f"{self.source!r} is read from front to back: it has no access to sample k")
        count, position = len(self.source), counters // self.repeats
        if self.members is None:
            epoch = position // count
            return draws.permuted(self.seed, "order", position % count, count, epoch), epoch
        table, starts, sizes = (tf.constant(part) for part in self.members)
        classes = len(self.members[2])
        turn = position // classes
        kind = draws.permuted(self.seed, "classes", position % classes, classes, turn)
        size = tf.gather(sizes, kind)
        within = draws.permuted(self.seed, "members", turn % size, size, kind, turn // size)
        return tf.gather(table, tf.gather(starts, kind) + within), position // count

    def draws(self, first: Any, rows: int) -> Any:
        """Returns the uniform numbers of samples first .. first+rows-1: float32 (rows, width)."""
        return draws.uniform(draws.key(self.seed, "augment"), first, rows, self.chain.width)

    # making samples -------------------------------------------------------------------------------

    def stored(self, index: Any, u: Any) -> tuple[Any, Any]:
        """Returns (picture uint8, window) of one sample before its augmentation; a window keeps its own size."""
        stored = self.source.one(index)
        if self.chain.crop is None:
            return self.preprocess.decode(stored), tf.constant([0.0, 0.0, 1.0, 1.0])
        crop, at = self.chain.crop
        u = u[at : at + crop.draws]
        if self.source.store.encoded:
            return read_window(self.preprocess, stored, crop, u)
        picture, window = cut_window(stored, crop, u)
        return self.preprocess.with_channels(picture), window

    def small(self, index: Any, u: Any) -> tuple[Any, Any]:
        """Returns (picture uint8 of the input's size, window) of one sample before its augmentation."""
        picture, window = self.stored(index, u)
        picture = picture if self.chain.crop is None else resized(picture, self.preprocess)
        picture.set_shape(self.preprocess.input_shape)
        return picture, window

    def large(self, index: Any, epoch: Any, u: Any) -> Any:
        """Returns (input, target) of one sample, finished alone."""
        picture, window = self.stored(index, u)
        index, epoch, u = tf.nest.map_structure(lambda value: value[None], (index, epoch, u))
        if self.chain.crop is None:
            samples = self.finished(picture[None], index, epoch, None, u)
        else:
            size = self.preprocess.input_shape[:2]
            fits = window_fits(tf.shape(picture)[0], tf.shape(picture)[1], size)
            picture = tf.cond(fits, lambda: picture, lambda: reduced(picture, size))
            picture.set_shape([None, None, self.preprocess.channels])
            boxes = self.source.boxes_of(index)
            boxes = None if boxes is None else moved_into(boxes, window[None])
            number = index["index"] if self.sequential else index
            inputs, boxes = self.chain.of_window(
                picture, size, u, boxes=boxes, index=number, epoch=epoch, seed=self.seed
            )
            samples = inputs, _with_boxes(self.source.targets(index), boxes)
        return tf.nest.map_structure(lambda value: tf.squeeze(value, 0), samples)

    def block(self, first: Any, rows: int) -> Any:
        """Returns (inputs, targets) of samples first .. first+rows-1, unmixed."""
        index, epoch = self.place(first + tf.range(rows, dtype=tf.int64))
        u = self.draws(first, rows)
        if self.by_sample and self.is_large:
            large = _traced(self.large, rows)
            samples = [large(index[row], epoch[row], u[row]) for row in range(rows)]
            return tf.nest.map_structure(lambda *values: tf.stack(values), *samples)
        window = None
        if self.by_sample:
            small = _traced(self.small, rows)
            made = [small(index[row], u[row]) for row in range(rows)]
            pictures, window = (tf.stack(part) for part in zip(*made, strict=True))
        else:
            pictures = self.source.take(index)
            if self.tabular:
                return self.preprocess.from_rows(pictures), self.source.targets(index)
            pictures = self.preprocess.fit(pictures)
        return self.finished(pictures, index, epoch, window, u)

    def finished(self, pictures: Any, index: Any, epoch: Any, window: Any, u: Any) -> Any:
        """Returns (inputs, targets) from pictures of the input's size, unmixed."""
        pictures.set_shape([u.shape[0], *self.preprocess.input_shape])
        targets = self.source.targets(index)
        if self.plain:
            return self.preprocess.normalize(pictures), targets
        boxes = self.source.boxes_of(index)
        if boxes is not None and window is not None:
            boxes = moved_into(boxes, window)
        number = index["index"] if self.sequential else index
        inputs, boxes = self.chain(pictures, u, boxes=boxes, index=number, epoch=epoch, seed=self.seed)
        return inputs, _with_boxes(targets, boxes)

    def mixed(self, samples: tuple[Any, Any], first: Any, rows: int) -> tuple[Any, Any]:
        """Returns whole tiles of samples after MixUp and CutMix."""
        inputs, targets = samples
        if not self.chain.mixes:
            return inputs, targets
        u = self.draws(first, rows)
        partner = _mixing.partners(first, rows, self.seed)
        for op, at in self.chain.mixes:
            inputs, targets = _mixing.mixed(op, inputs, targets, u[:, at : at + op.draws], partner)
        return inputs, targets

    def exact(self, first: Any, rows: int) -> Any:
        """Returns (inputs, targets) of any block of samples, mixed, by computing the tiles around it."""
        if not self.chain.mixes:
            return self.block(first, rows)
        start = first // _TILE * _TILE
        whole = (rows // _TILE + 2) * _TILE
        inputs, targets = self.mixed(self.block(start, whole), start, whole)
        return inputs[first - start :][:rows], targets[first - start :][:rows]

    # data sets ------------------------------------------------------------------------------------

    def dataset(self, batch: int, start_step: int, worker: int, workers: int, calls: int) -> tf.data.Dataset:
        """Returns the stream of one worker's blocks."""
        rows = batch // workers
        aligned = not self.chain.mixes or (batch % _TILE == 0 and rows % _TILE == 0)
        options = {"num_parallel_calls": calls, "deterministic": True}
        if not self.by_sample:
            return self._by_block(batch, start_step, worker, rows, aligned, options)
        if aligned:
            return self._by_sample(batch, start_step, worker, rows, options)
        begin = start_step * batch // _TILE
        tiles = self._by_sample(_TILE, begin, 0, _TILE, options)
        samples = tiles.unbatch().skip(start_step * batch - begin * _TILE)
        low = worker * rows

        def part(inputs: Any, targets: Any) -> Any:
            return inputs[low : low + rows], tf.nest.map_structure(lambda value: value[low : low + rows], targets)

        return samples.batch(batch, drop_remainder=True).map(draws.plain(part))

    def _by_block(self, batch: int, start_step: int, worker: int, rows: int, aligned: bool, options: Any) -> Any:
        def make(step: Any) -> Any:
            first = step * batch + worker * rows
            inputs, targets = self.mixed(self.block(first, rows), first, rows) if aligned else self.exact(first, rows)
            inputs.set_shape([rows, *self.preprocess.input_shape])
            return inputs, targets

        return tf.data.Dataset.counter(start_step, dtype=tf.int64).map(draws.plain(make), **options)

    def _by_sample(self, batch: int, start_step: int, worker: int, rows: int, options: Any) -> Any:
        def begin(step: Any) -> Any:
            first = step * batch + worker * rows
            index, epoch = self.place(first + tf.range(rows, dtype=tf.int64))
            return index, epoch, self.draws(first, rows)

        def begin_read(step: Any, records: Any) -> Any:
            first = step * batch + worker * rows
            epoch = (first + tf.range(rows, dtype=tf.int64)) // (self.repeats * len(self.source))
            records = tf.nest.map_structure(lambda value: value[worker * rows :][:rows], records)
            return records, epoch, self.draws(first, rows)

        def small(index: Any, epoch: Any, u: Any) -> Any:
            return *self.small(index, u), index, epoch, u

        def small_batch(pictures: Any, window: Any, index: Any, epoch: Any, u: Any) -> Any:
            return self.finished(pictures, index, epoch, window, u)

        def mix(step: Any, samples: Any) -> Any:
            return self.mixed(samples, step * batch + worker * rows, rows)

        steps = tf.data.Dataset.counter(start_step, dtype=tf.int64)
        if self.sequential:
            records = self._records(start_step * batch).batch(batch, drop_remainder=True)
            samples = tf.data.Dataset.zip(steps, records).map(draws.plain(begin_read), **options).unbatch()
        else:
            samples = steps.map(draws.plain(begin), **options).unbatch()
        samples = samples.map(draws.plain(self.large if self.is_large else small), **options)
        samples = samples.batch(rows, drop_remainder=True)
        if not self.is_large:
            samples = samples.map(draws.plain(small_batch), **options)
        return tf.data.Dataset.zip(steps, samples).map(draws.plain(mix), **options) if self.chain.mixes else samples

    def _records(self, first: int) -> tf.data.Dataset:
        """Returns the shuffled records from counter `first` on."""
        records = self.source.passes(self.seed, first // self.repeats)
        if self.repeats == 1:
            return records
        repeated = records.flat_map(
            draws.plain(lambda record: tf.data.Dataset.from_tensors(record).repeat(self.repeats))
        )
        return repeated.skip(first % self.repeats)


def _traced(function: Any, calls: int) -> Any:
    """Returns a function that is traced once for many calls."""
    return function if calls == 1 else draws.traced(function)


def _with_boxes(targets: Any, boxes: Any) -> Any:
    """Returns the targets with boxes that moved."""
    if boxes is None:
        return targets
    return {**targets, "box": boxes} if isinstance(targets, dict) else boxes


@functools.lru_cache(64)
def _chain(augment: tuple[Any, ...], normalize: Any) -> Chain:
    """Returns one chain for all streams that share it, so that it is compiled once."""
    return Chain(augment, crop_at_source=True, normalize=normalize)


def _members(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (indices sorted by class, where each class starts, how many it has) over the classes that occur."""
    if source.labels is None:
        raise InputError(f"balance=True needs class labels; {source!r} has none")
    table = np.argsort(source.labels, kind="stable").astype(np.int64)
    sizes = np.bincount(source.labels)
    sizes = sizes[sizes > 0].astype(np.int64)
    return table, np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64), sizes
