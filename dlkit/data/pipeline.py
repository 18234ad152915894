"""The training stream, a pure function of (seed, sample counter), and the evaluation pass."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data._sequential import Sequential
from dlkit.data._stream import Stream
from dlkit.data.draws import plain
from dlkit.data.preprocess import Standardize
from dlkit.data.sources import Source


def train_pipeline(
    source: Source,
    preprocess: Any,
    augment: Sequence[Any] | None,
    batch: int,
    seed: int,
    start_step: int = 0,
    *,
    balance: bool = False,
    repeats: int = 1,
    worker: int = 0,
    workers: int = 1,
    num_parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Returns the endless training stream; its element i is global step start_step + i.

    Sample k = step * batch + j belongs to epoch k // n and is a function of (seed, k) alone: which picture, how it is
    augmented, and with which other sample it is mixed. So the stream is the same, bit for bit, for any
    `num_parallel_calls`, batch size and number of workers, and it starts at any step at once.

    Args:
        source: the samples.
        preprocess: a `Preprocess` (or `Standardize` for tables).
        augment: operations of `dlkit.data.augment`, applied in the given order; None or () for none.
        batch: samples per step, over all workers.
        seed: of the order and of every draw.
        start_step: the step of the first element.
        balance: every class equally often, whatever its size: each block of as many samples as there are classes shows
            every class once, and each class goes through its own shuffled order.
        repeats: each picture this many times in a row, each time with draws of its own (repeated augmentation); an
            epoch of n samples then shows n / repeats pictures.
        worker, workers: which contiguous block of the global batch this process makes, of how many.
        num_parallel_calls: as in `tf.data`; changes the speed only.

    Yields:
        (inputs, targets): float32 (batch / workers, height, width, channels), and one-hot float32 (batch / workers,
        classes), values, boxes, or {"label", "box"}.

    Raises:
        InputError: a batch below 1 or not divisible by the workers, a negative step, operations that do not suit the
            task, or a source that is empty or holds files that cannot be read (the list is in the message).

    Reference: Hoffer et al., "Augment your batch: better training with larger batches" (2020), for `repeats`.
    """
    if batch < 1 or start_step < 0:
        raise InputError(f"batch={batch} must be at least 1 and start_step={start_step} at least 0")
    if not 0 <= worker < workers or batch % workers:
        raise InputError(
            f"worker={worker} of workers={workers} for batch={batch}: 0 <= worker < workers is needed, "
            f"and a batch divisible by the workers"
        )
    refuse_bad(source)
    stream = Stream(source, preprocess, augment, seed, balance=balance, repeats=repeats)
    return stream.dataset(batch, start_step, worker, workers, num_parallel_calls).prefetch(tf.data.AUTOTUNE)


def eval_pipeline(source: Source, preprocess: Any, batch: int) -> tf.data.Dataset:
    """Returns every sample once, in the order of the source, prepared as the exported graph prepares it.

    Args:
        source: the samples.
        preprocess: a `Preprocess` (or `Standardize` for tables).
        batch: samples per element; the last one holds what is left.

    Yields:
        (inputs, targets) in the formats of `train_pipeline`; the number of elements is known (`cardinality()`).

    Raises:
        InputError: a batch below 1, or a source that is empty or holds files that cannot be read.
    """
    if batch < 1:
        raise InputError(f"batch={batch} must be at least 1")
    refuse_bad(source)
    count = len(source)

    def whole(start: Any) -> Any:
        rows = tf.range(start, tf.minimum(start + batch, count))
        stored = source.take(rows)
        inputs = preprocess.from_rows(stored) if isinstance(preprocess, Standardize) else preprocess.from_images(stored)
        inputs.set_shape([None, *preprocess.input_shape])
        return inputs, source.targets(rows)

    def one(row: Any) -> Any:
        return preprocess.decode(source.one(row)), row

    def finished(images: Any, rows: Any) -> Any:
        return preprocess.normalize(images), source.targets(rows)

    if source.store.encoded:
        rows = source.in_order() if isinstance(source, Sequential) else tf.data.Dataset.range(count)
        samples = rows.map(plain(one), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        result = samples.batch(batch).map(plain(finished), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    else:
        starts = tf.data.Dataset.range(0, count, batch)
        result = starts.map(plain(whole), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if isinstance(source, Sequential):
        result = result.apply(tf.data.experimental.assert_cardinality(-(-count // batch)))
    return result.prefetch(tf.data.AUTOTUNE)


def refuse_bad(source: Source) -> None:
    """Refuses a source without samples or with some that cannot be read.

    A stream is not read once more than needed for it: its check is the caller's to ask for.

    Raises:
        InputError: there is none, or the list of the bad ones.
    """
    if not len(source):
        raise InputError(f"{source!r} is empty: nothing can be read from it")
    if not isinstance(source, Sequential) or source.__dict__.get("_report"):
        source.check().refuse()
