"""The training stream, a pure function of (seed, sample counter), and the evaluation pass."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import draws
from dlkit.data.sources import Source


def order(source: Source, counters: Any, seed: int) -> Any:
    """Returns which sample the counters k show: place k mod n in the permutation of epoch k div n. int64 (b,)."""
    size = len(source)
    return draws.permuted(draws.key(seed, "order"), counters % size, counters // size, size)


def train_pipeline(
    source: Source,
    preprocess: Any,
    augment: Sequence[Any] | None,
    batch: int,
    seed: int,
    start_step: int = 0,
    *,
    num_parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Returns the endless training stream; its element i is global step start_step + i.

    Sample k = step * batch + j belongs to epoch k // n and is a function of (seed, k) alone: which picture, and how
    it is augmented. So the stream is the same, bit for bit, for any `num_parallel_calls`, and it starts at any step
    at once.

    Args:
        source: the samples.
        preprocess: a `Preprocess` (or `Standardize` for tables).
        augment: operations of `dlkit.data.augment`, applied in the given order; None or () for none.
        batch: samples per step, over all workers.
        seed: of the order and of every draw.
        start_step: the step of the first element.
        num_parallel_calls: as in `tf.data`; changes the speed only.

    Yields:
        (inputs, targets): float32 (batch, height, width, channels), and one-hot float32 (batch, classes), values or
        boxes.

    Raises:
        InputError: a batch below 1, a negative step, or a source with files that cannot be read.
    """
    if batch < 1 or start_step < 0:
        raise InputError(f"batch={batch} must be at least 1 and start_step={start_step} at least 0")

    if augment:
        raise InputError(f"augment={augment!r} holds something that is no augmentation")
    source.check().refuse()

    def make(step: Any) -> Any:
        counters = step * batch + tf.range(batch, dtype=tf.int64)
        rows = order(source, counters, seed)
        return _prepared(source, preprocess, rows, batch)

    steps = tf.data.Dataset.counter(start_step, dtype=tf.int64)
    return steps.map(make, num_parallel_calls=num_parallel_calls, deterministic=True).prefetch(tf.data.AUTOTUNE)


def _prepared(source: Source, preprocess: Any, rows: Any, batch: int | None) -> Any:
    stored = source.take(rows)
    inputs = preprocess.from_bytes(stored) if source.store.encoded else preprocess.from_images(stored)
    inputs.set_shape([batch, *preprocess.input_shape])
    return inputs, source.targets(rows)


def eval_pipeline(source: Source, preprocess: Any, batch: int) -> tf.data.Dataset:
    """Returns every sample once, in the order of the source, prepared as the exported graph prepares it.

    Args:
        source: the samples.
        preprocess: a `Preprocess` (or `Standardize` for tables).
        batch: samples per element; the last one holds what is left.

    Yields:
        (inputs, targets) in the formats of `train_pipeline`; the number of elements is known (`cardinality()`).
    """
    if batch < 1:
        raise InputError(f"batch={batch} must be at least 1")
    count = len(source)
    source.check().refuse()

    def make(start: Any) -> Any:
        return _prepared(source, preprocess, tf.range(start, tf.minimum(start + batch, count)), None)

    starts = tf.data.Dataset.range(0, count, batch)
    return starts.map(make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
