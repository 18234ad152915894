"""Random numbers and orders as functions of a counter."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from dlkit.data import draws


@pytest.mark.parametrize("batch", [1, 7, 64, 256])
def test_rows_do_not_depend_on_the_block_they_are_asked_in(batch):
    key = draws.key(3, "x")
    expected = draws.uniform(key, 0, 256, 12).numpy()
    parts = [draws.uniform(key, start, batch, 12).numpy() for start in range(0, 256 - batch + 1, batch)]
    np.testing.assert_array_equal(np.concatenate(parts), expected[: batch * len(parts)])


def test_streams_and_seeds_differ():
    rows = [draws.uniform(draws.key(seed, name), 0, 4, 4).numpy() for seed in (0, 1, 2**40) for name in ("a", "b")]
    assert len({row.tobytes() for row in rows}) == 6


def order(size, epoch, seed=0):
    place = tf.range(size, dtype=tf.int64)
    return draws.permuted(seed, "order", place, size, tf.fill([size], tf.constant(epoch, tf.int64))).numpy()


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1000, 4097])
def test_every_epoch_is_a_full_permutation(size):
    for epoch in (0, 1, 2**33):
        assert sorted(order(size, epoch)) == list(range(size))


def test_consecutive_epochs_are_not_correlated():
    """TensorFlow's index_shuffle with its 4 rounds and plain epoch seeds reaches 0.75 here."""
    orders = [order(20_000, epoch) for epoch in range(6)]
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(orders)]
    assert np.abs(correlations).max() < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(orders[0], np.arange(20_000))[0, 1]) < 4 / np.sqrt(20_000)


def test_places_of_a_small_set_are_uniform_over_epochs():
    epochs, size = 4000, 10
    place = tf.constant(np.tile(np.arange(size), epochs), tf.int64)
    orders = draws.permuted(0, "order", place, size, tf.constant(np.repeat(np.arange(epochs), size), tf.int64))
    orders = orders.numpy().reshape(epochs, size)
    counts = np.stack([np.bincount(orders[:, i], minlength=size) for i in range(size)])
    chi_square = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
    assert chi_square < 81 + 5 * np.sqrt(2 * 81)  # 81 degrees of freedom, five standard deviations
