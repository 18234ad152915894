"""Random numbers and the shuffled order as pure functions of (seed, sample counter k).

Nothing here has a state. Row k of a stream is the same whatever block of rows it is asked for with, so it does not
depend on the batch size, on parallelism or on where a run was resumed.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011): Philox, a counter-based
generator.
"""

import hashlib
from typing import Any

import tensorflow as tf

_PHILOX = 1
# TensorFlow's public `index_shuffle` uses 4 rounds and pads short seeds with a constant: two epochs whose seeds
# differ in one bit then give permutations with a correlation of 0.75. Keys from Philox and 16 rounds: none measurable.
_ROUNDS = 16


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


def bits(stream: Any, first: Any, rows: Any, columns: int) -> Any:
    """Returns rows first .. first+rows-1 of a stream of 32-bit words: uint32 (rows, columns)."""
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[rows, columns], key=stream, counter=_counter(first, columns), alg=_PHILOX, dtype=tf.uint32
    )


def mixed_bits(words: Any) -> Any:
    """Returns uint32 words that each depend on all bits of a given word: a bijective hash.

    Reference: C. Wellons, "Prospecting for hash functions" (2018), the family found by exhaustive search there.
    """
    shift, xor = tf.bitwise.right_shift, tf.bitwise.bitwise_xor
    words = xor(words, shift(words, tf.constant(16, tf.uint32))) * tf.constant(0x21F0AAAD, tf.uint32)
    words = xor(words, shift(words, tf.constant(15, tf.uint32))) * tf.constant(0xD35A2D97, tf.uint32)
    return xor(words, shift(words, tf.constant(15, tf.uint32)))


def hashed(seed: int, stream: str, *numbers: Any, words: int = 1) -> Any:
    """Returns uint32 (n, words) that depend on the seed, the stream's name and numbers int64 (n,) each."""
    digest = hashlib.blake2b(f"{int(seed)}/{stream}".encode(), digest_size=4 * words).digest()
    state = tf.constant([[int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(words)]], tf.uint32)
    for number in numbers:
        for part in (number % 2**32, number // 2**32):
            state = mixed_bits(state + tf.cast(part, tf.uint32)[:, None]) + tf.constant(0x9E3779B9, tf.uint32)
    return mixed_bits(state)


def permuted(seed: int, stream: str, position: Any, size: Any, *epoch: Any) -> Any:
    """Returns the element at `position` of the permutation of 0..size-1 that belongs to (seed, stream, epoch).

    A full permutation that is never stored: memory and time per element do not grow with `size`.

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
    """
    keys = hashed(seed, stream, *epoch, words=3)
    return tf.raw_ops.RandomIndexShuffle(
        index=position, seed=keys, max_index=tf.cast(size, tf.int64) - 1, rounds=_ROUNDS
    )
