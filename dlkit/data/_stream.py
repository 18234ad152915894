"""What sample k of a training stream is, and the data sets that compute many of them."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import draws
from dlkit.data._window import cut_window, moved_into, read_window, resized
from dlkit.data.augment import mix as _mixing
from dlkit.data.augment._chain import Chain
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
        self.source, self.preprocess, self.seed, self.repeats = source, preprocess, seed, repeats
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
        self.by_sample = source.store.encoded or self.chain.crop is not None
        self.large = not self.tabular and preprocess.input_shape[0] * preprocess.input_shape[1] > _LARGE

    # which sample ---------------------------------------------------------------------------------

    def place(self, counters: Any) -> tuple[Any, Any]:
        """Returns (sample index, epoch) of counters: int64 (b,) each."""
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

    def stored(self, counter: Any) -> tuple[Any, ...]:
        """Returns (picture uint8, index, epoch, window) of one counter, a scalar, before its augmentation."""
        index, epoch = self.place(counter[None])
        stored = self.source.take(index)[0]
        window = tf.constant([0.0, 0.0, 1.0, 1.0])
        if self.chain.crop is not None:
            crop, at = self.chain.crop
            u = self.draws(counter, 1)[0, at : at + crop.draws]
            if self.source.store.encoded:
                picture, window = read_window(self.preprocess, stored, crop, u)
            else:
                part, window = cut_window(stored, crop, u)
                picture = resized(part, self.preprocess)
        else:
            picture = self.preprocess.decode(stored)
        picture.set_shape(self.preprocess.input_shape)
        return picture, index[0], epoch[0], window

    def block(self, first: Any, rows: int) -> Any:
        """Returns (inputs, targets) of samples first .. first+rows-1, unmixed."""
        counters = first + tf.range(rows, dtype=tf.int64)
        if self.by_sample:
            signature = (
                tf.TensorSpec(self.preprocess.input_shape, tf.uint8), tf.TensorSpec([], tf.int64),
                tf.TensorSpec([], tf.int64), tf.TensorSpec([4], tf.float32),
            )  # fmt: skip
            pictures, index, epoch, window = tf.map_fn(self.stored, counters, fn_output_signature=signature)
        else:
            index, epoch = self.place(counters)
            pictures, window = self.source.take(index), None
            if self.tabular:
                return self.preprocess.from_rows(pictures), self.source.targets(index)
            pictures = self.preprocess.fit(pictures)
        return self.finished(pictures, index, epoch, window, first, rows)

    def finished(self, pictures: Any, index: Any, epoch: Any, window: Any, first: Any, rows: int) -> Any:
        """Returns (inputs, targets) from stored pictures of consecutive counters, unmixed."""
        pictures.set_shape([rows, *self.preprocess.input_shape])
        targets = self.source.targets(index)
        if self.plain:
            return self.preprocess.normalize(pictures), targets
        boxes = self.source.boxes_of(index)
        if boxes is not None and window is not None:
            boxes = moved_into(boxes, window)
        u = self.draws(first, rows)
        inputs, boxes = self.chain(pictures, u, boxes=boxes, index=index, epoch=epoch, seed=self.seed)
        if boxes is not None:
            targets = {**targets, "box": boxes} if isinstance(targets, dict) else boxes
        return inputs, targets

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

        return samples.batch(batch, drop_remainder=True).map(part)

    def _by_block(self, batch: int, start_step: int, worker: int, rows: int, aligned: bool, options: Any) -> Any:
        def make(step: Any) -> Any:
            first = step * batch + worker * rows
            inputs, targets = self.mixed(self.block(first, rows), first, rows) if aligned else self.exact(first, rows)
            inputs.set_shape([rows, *self.preprocess.input_shape])
            return inputs, targets

        return tf.data.Dataset.counter(start_step, dtype=tf.int64).map(make, **options)

    def _by_sample(self, batch: int, start_step: int, worker: int, rows: int, options: Any) -> Any:
        def one(number: Any) -> Any:
            counter = number // rows * batch + worker * rows + number % rows
            picture, index, epoch, window = self.stored(counter)
            if not self.large:
                return picture, index, epoch, window, counter
            inputs, targets = self.finished(picture[None], index[None], epoch[None], window[None], counter, 1)
            return inputs[0], tf.nest.map_structure(lambda value: value[0], targets), counter

        def small(pictures: Any, index: Any, epoch: Any, window: Any, counters: Any) -> Any:
            samples = self.finished(pictures, index, epoch, window, counters[0], rows)
            return self.mixed(samples, counters[0], rows)

        def large(inputs: Any, targets: Any, counters: Any) -> Any:
            return self.mixed((inputs, targets), counters[0], rows)

        numbers = tf.data.Dataset.counter(start_step * rows, dtype=tf.int64)
        samples = numbers.map(one, **options).batch(rows, drop_remainder=True)
        return samples.map(large if self.large else small, **options)


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
