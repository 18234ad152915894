"""The whitening first convolution: what its responses are, what learns, and what it refuses."""

import keras
import numpy as np
import pytest
from keras import ops

from dlkit._errors import InputError
from dlkit.train import whitening

RNG = np.random.default_rng(0)
PICTURES = np.cumsum(RNG.normal(size=(200, 12, 12, 3)), axis=2).astype("float32")  # neighbours are correlated


def network(filters, kernel=2, bias=True):
    return keras.Sequential([
        keras.Input((12, 12, 3)),
        keras.layers.Conv2D(filters, kernel, use_bias=bias, name="first"),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(2),
    ])  # fmt: skip


def test_the_responses_to_the_pictures_are_uncorrelated_with_mean_square_one():
    kernel = whitening.filters(PICTURES, 2, 2, 24, epsilon=0.0).astype("float64").reshape(12, 24)
    windows = np.lib.stride_tricks.sliding_window_view(PICTURES, (2, 2), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    responses = patches @ kernel[:, :12]
    np.testing.assert_allclose(responses.T @ responses / len(patches), np.eye(12), atol=1e-3)
    np.testing.assert_array_equal(kernel[:, 12:], -kernel[:, :12])


def test_fewer_filters_keep_the_directions_of_the_largest_variance():
    few = whitening.filters(PICTURES, 3, 3, 8)
    many = whitening.filters(PICTURES, 3, 3, 54)
    np.testing.assert_array_equal(few[..., :4], many[..., :4])
    assert np.abs(few[..., :4]).max() < np.abs(many[..., 20:27]).max()


@pytest.mark.parametrize(("filters", "kernel"), [(24, 2), (30, 2), (16, 3)])
def test_the_first_kernel_is_set_and_no_longer_learns_but_its_bias_does(filters, kernel):
    model = network(filters, kernel)
    before = np.array(model.layers[0].kernel)
    assert whitening.prepare(model) == whitening.initialise(model, PICTURES) == "first"
    assert model.trainable_variables[0].path.endswith("first/bias")
    assert len(model.trainable_variables) == 3
    used = min(filters, 2 * kernel * kernel * 3)
    after = ops.convert_to_numpy(model.layers[0].kernel)
    np.testing.assert_array_equal(after[..., :used], whitening.filters(PICTURES, kernel, kernel, used))
    np.testing.assert_array_equal(after[..., used:], before[..., used:])


def test_training_leaves_the_filters_alone():
    model = network(24)
    whitening.prepare(model)
    whitening.initialise(model, PICTURES)
    before = np.array(model.layers[0].kernel)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(PICTURES[:8], np.arange(8) % 2)
    np.testing.assert_array_equal(np.array(model.layers[0].kernel), before)


def test_a_model_that_does_not_begin_with_a_convolution_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="dense")])
    with pytest.raises(InputError, match="convolution"):
        whitening.prepare(model)


def test_pictures_of_other_channels_are_refused():
    with pytest.raises(InputError, match="channels"):
        whitening.initialise(network(8), PICTURES[..., :1])


def test_patches_larger_than_the_pictures_are_refused():
    with pytest.raises(InputError, match="patches"):
        whitening.filters(PICTURES[:, :2], 3, 3, 8)
