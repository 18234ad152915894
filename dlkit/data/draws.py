"""Random numbers and the shuffled order as pure functions of (seed, sample counter k).

Nothing here has a state. Row k of a stream is the same whatever block of rows it is asked for with, so it does not
depend on the batch size, on parallelism or on where a run was resumed.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011): Philox, a counter-based
generator.
"""

import functools
import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

_PHILOX = 1
# TensorFlow's own index_shuffle is not used: with its 4 rounds and a seed per epoch, two epochs in a row correlate by
# 0.75, and below some thousand samples it takes up to 0.3 ms for each.
_ROUNDS = 8


def key(seed: int, stream: str) -> Any:
    """Returns the Philox key of one named stream: 64 bits of a hash of `seed` and `stream`, shape (1,)."""
    digest = hashlib.blake2b(f"{int(seed)}/{stream}".encode(), digest_size=8).digest()
    return tf.constant([int.from_bytes(digest, "little")], tf.uint64)


def padded(columns: int) -> int:
    """Returns `columns` rounded up to a multiple of four: one Philox block makes four numbers.

    >>> padded(5)
    8
    """
    return -(-columns // 4) * 4


def _counter(first: Any, columns: int) -> Any:
    blocks = tf.cast(first, tf.uint64) * tf.constant(columns // 4, tf.uint64)
    return tf.stack([blocks, tf.zeros_like(blocks)])


def uniform(stream: Any, first: Any, rows: Any, columns: int) -> Any:
    """Returns rows first .. first+rows-1 of a stream of uniform numbers in [0, 1).

    Args:
        stream: a `key`.
        first: int64 scalar, the counter of the first row.
        rows: number of rows.
        columns: numbers per row, a multiple of 4 (see `padded`).

    Returns:
        float32 (rows, columns).

    >>> stream = key(0, "example")
    >>> bool(tf.reduce_all(uniform(stream, 5, 3, 4)[1:] == uniform(stream, 6, 2, 4)))
    True
    """
    return tf.raw_ops.StatelessRandomUniformV2(
        shape=[rows, columns], key=stream, counter=_counter(first, columns), alg=_PHILOX
    )


def mixed_bits(words: Any) -> Any:
    """Returns uint32 words that each depend on all bits of a given word: a bijective hash.

    Reference: C. Wellons, "Prospecting for hash functions" (2018), the family found by exhaustive search there.
    """
    shift, xor = tf.bitwise.right_shift, tf.bitwise.bitwise_xor
    words = xor(words, shift(words, tf.constant(16, tf.uint32))) * tf.constant(0x21F0AAAD, tf.uint32)
    words = xor(words, shift(words, tf.constant(15, tf.uint32))) * tf.constant(0xD35A2D97, tf.uint32)
    return xor(words, shift(words, tf.constant(15, tf.uint32)))


@functools.lru_cache(1024)
def _start(seed: int, stream: str, words: int) -> np.ndarray:
    digest = hashlib.blake2b(f"{int(seed)}/{stream}".encode(), digest_size=4 * words).digest()
    return np.frombuffer(digest, "<u4").astype(np.uint32)[None]


def _hashed(state: Any, *numbers: Any) -> Any:
    """Returns uint32 (n, words) that depend on a `_start` uint32 (1, words) and on numbers int64 (n,) each."""
    state = tf.convert_to_tensor(state)
    for number in numbers:
        for part in (number, tf.bitwise.right_shift(number, tf.constant(32, tf.int64))):
            low = tf.cast(tf.bitwise.bitwise_and(part, tf.constant(2**32 - 1, tf.int64)), tf.uint32)
            state = mixed_bits(state + low[:, None]) + tf.constant(0x9E3779B9, tf.uint32)
    return mixed_bits(state)


def permuted(seed: int, stream: str, position: Any, size: Any, *epoch: Any) -> Any:
    """Returns the element at `position` of the permutation of 0..size-1 that belongs to (seed, stream, epoch).

    A full permutation that is never stored: memory and time per element do not grow with `size`. A Feistel network
    permutes the smallest square that holds 0..size-1, and a result outside is permuted again until it is inside.

    Args:
        seed, stream: which family of permutations.
        position: int64 (n,), each below `size`.
        size: int64 scalar or (n,).
        epoch: int64 (n,) each, which permutation of the family.

    Returns:
        int64 (n,).

    >>> order = permuted(0, "example", tf.range(5, dtype=tf.int64), 5, tf.zeros(5, tf.int64))
    >>> sorted(order.numpy().tolist())
    [0, 1, 2, 3, 4]

    Reference: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), sections 3 (cycle walking) and 4.
    """
    position = tf.convert_to_tensor(position, tf.int64)
    size = tf.broadcast_to(tf.cast(size, tf.int64), tf.shape(position))
    return _walked(_start(seed, stream, _ROUNDS), position, size, epoch)


def plain(function: Any) -> Any:
    """Returns a function for `Dataset.map` that is traced as it stands: converting Python takes a second and more."""
    return tf.autograph.experimental.do_not_convert(function)


def traced(function: Any, **options: Any) -> Any:
    """Returns a `tf.function` that is traced as it stands, without the warning about many traces.

    TensorFlow counts all functions of one piece of code together: several shapes, streams, models and runs of a
    process are meant, not a mistake. `options` are `tf.function`'s.
    """
    result = tf.function(function, autograph=False, **options)
    result._omit_frequent_tracing_warning = True
    return result


def compiled(function: Any) -> Any:
    """Returns a function compiled by XLA for each shape that it is called with."""
    return traced(function, jit_compile=True)


@compiled
def _walked(start: Any, position: Any, size: Any, epoch: tuple[Any, ...]) -> Any:
    keys = _hashed(start, *epoch)
    side = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(size, tf.float64))), tf.int64)
    side = side + tf.cast(side * side < size, tf.int64)
    modulus = tf.cast(side, tf.uint32)

    def once(place: Any) -> Any:
        left, right = tf.cast(place // side, tf.uint32), tf.cast(place % side, tf.uint32)
        for number in range(_ROUNDS):
            mixed = tf.cast(mixed_bits(mixed_bits(right) + keys[:, number]), tf.uint64) * tf.cast(modulus, tf.uint64)
            below = tf.cast(tf.bitwise.right_shift(mixed, tf.constant(32, tf.uint64)), tf.uint32)
            total = left + below  # sides are below 2**31, so this does not overflow
            left, right = right, tf.where(total >= modulus, total - modulus, total)
        return tf.cast(left, tf.int64) * side + tf.cast(right, tf.int64)

    def outside(place: Any) -> Any:
        return tf.reduce_any(place >= size)

    def again(place: Any) -> tuple[Any]:
        return (tf.where(place >= size, once(place), place),)

    return tf.while_loop(outside, again, (once(position),))[0]
