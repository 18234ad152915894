"""Looks at single samples of a training stream."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data._stream import Stream
from dlkit.data.preprocess import Preprocess
from dlkit.data.sources import Source


class Preview(NamedTuple):
    """One sample of the stream: its counter k, the network's input, the target, and the picture as uint8."""

    k: int
    inputs: np.ndarray
    targets: Any
    image: np.ndarray


def preview(
    source: Source,
    augment: Sequence[Any] | None,
    index: int | None = None,
    epoch: int = 0,
    seed: int = 0,
    *,
    k: int | None = None,
    preprocess: Preprocess | None = None,
    balance: bool = False,
    repeats: int = 1,
) -> Preview:
    """Returns what a training stream shows as picture `index` in an epoch, or as sample k: the very pixels.

    Args:
        source: the samples.
        augment: the operations of the stream.
        index: a sample of the source; or
        k: a sample counter.
        epoch: of `index`. With `balance` a picture may appear several times or not at all; the first time counts.
        seed, balance, repeats: of the stream.
        preprocess: of the stream; default: the picture's own size, not normalised further than to -1..1.

    Raises:
        InputError: an index that the source lacks, neither index nor k, or both, a counter below 0, or a table, which
            is no picture.

    >>> from dlkit.data import from_arrays
    >>> source = from_arrays(np.zeros([6, 8, 8, 1], np.uint8), [0, 1, 0, 1, 0, 1])
    >>> preview(source, (), index=2, epoch=7).image.shape
    (8, 8, 1)
    """
    if (index is None) == (k is None):
        raise InputError("preview needs either index (with epoch) or k")
    if index is not None and not 0 <= index < len(source):
        raise InputError(f"index={index} is not a sample of {source!r}")
    if epoch < 0 or (k is not None and k < 0):
        raise InputError(f"epoch={epoch} and k={k} are counted from 0")
    if not source.store.encoded and source.take(tf.constant([0], tf.int64)).shape.rank != 4:
        raise InputError(f"{source!r} is a table; preview shows pictures")
    if preprocess is None:
        row = index if index is not None else 0
        stored = source.take(tf.constant([row], tf.int64))[0]
        shape = stored.shape if not source.store.encoded else Preprocess(1).read(stored).shape
        preprocess = Preprocess((int(shape[0]), int(shape[1])), channels=int(shape[2]), mean=0.5, std=0.5)
    stream = Stream(source, preprocess, augment, seed, balance=balance, repeats=repeats)
    if k is None:
        counters = epoch * len(source) * (1 if balance else repeats) + tf.range(len(source) * repeats, dtype=tf.int64)
        found = np.flatnonzero(stream.place(counters)[0].numpy() == index)
        if not len(found):
            raise InputError(f"picture {index} does not appear in epoch {epoch} of this balanced stream")
        k = int(counters[int(found[0])])
    inputs, targets = stream.exact(tf.constant(k, tf.int64), 1)
    image = _grey_levels(inputs, preprocess)[0]
    return Preview(k, inputs[0].numpy(), tf.nest.map_structure(lambda value: value[0].numpy(), targets), image)


def epochs_of(
    source: Source, augment: Sequence[Any] | None, epochs: int, seed: int = 0, *, preprocess: Preprocess
) -> np.ndarray:
    """Returns what the first epochs of a training stream make of every picture: uint8 (items, epochs, H, W, C)."""
    stream = Stream(source, preprocess, augment, seed)
    count = len(source) * epochs
    inputs, _ = stream.exact(tf.constant(0, tf.int64), count)
    order = np.argsort(stream.place(tf.range(count, dtype=tf.int64))[0].numpy(), kind="stable")
    return _grey_levels(inputs, preprocess)[order].reshape(len(source), epochs, *inputs.shape[1:])


def _grey_levels(inputs: Any, preprocess: Preprocess) -> np.ndarray:
    offset, scale = preprocess.offset_and_scale()
    return np.clip(np.rint(inputs.numpy() / np.array(scale) + np.array(offset)), 0, 255).astype(np.uint8)
