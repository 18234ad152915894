"""One update against formulas written down in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit.layers import BatchNorm
from dlkit.train import Recipe, averaging, optimizers, tasks
from dlkit.train._step import Step

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)).astype("float32"), RNG.normal(size=(12, 2)).astype("float32")
RATE = 0.1


def linear(norm=False):
    inputs = keras.Input((3,))
    x = BatchNorm()(inputs) if norm else inputs
    return keras.Model(inputs, keras.layers.Dense(2, name="dense")(x))


def step_of(model, measures=(), **fields):
    recipe = Recipe(task="regression", batch=12, **fields)
    optimizer = optimizers.get("sgd", RATE, model.trainable_variables)
    loss = tasks.loss("regression", model)
    kept = averaging.get(recipe, model, 10)
    return Step(model, optimizer, recipe, loss, kept, measures, tf.distribute.get_strategy())


def values(model):
    return [np.asarray(variable).astype(float) for variable in model.trainable_variables]


def gradient(kernel, bias, x=X, y=Y):
    """Of the mean squared error over batch and outputs, in float64."""
    error = x.astype(float) @ kernel + bias - y
    return [2 * x.T.astype(float) @ error / error.size, 2 * error.sum(0) / error.size]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "penalties", [{}, {"l2": 0.3}, {"l1": 0.2}, {"l1": 0.2, "l2": 0.3}, {"l2": 0.3, "clip_norm": 0.5}]
)
def test_an_update_is_the_formula(penalties, accumulate):
    model = linear()
    kernel, bias = values(model)
    step = step_of(model, measures=("gradient_norm", "weight_change"), accumulate=accumulate, **penalties)
    found = np.asarray(step(tf.constant(X), tf.constant(Y), 0))
    g_kernel, g_bias = gradient(kernel, bias)
    g_kernel = g_kernel + penalties.get("l2", 0) * kernel + penalties.get("l1", 0) * np.sign(kernel)
    norm = np.sqrt((g_kernel**2).sum() + (g_bias**2).sum())
    factor = min(1.0, penalties.get("clip_norm", np.inf) / norm)
    assert ("clip_norm" in penalties) == (factor < 1)
    expected = kernel - RATE * factor * g_kernel, bias - RATE * factor * g_bias
    for variable, value in zip(values(model), expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=1e-6)
    error = X.astype(float) @ kernel + bias - Y
    change = RATE * factor * norm / np.sqrt((kernel**2).sum() + (bias**2).sum())
    assert step.columns == ("loss", "mae", "gradient_norm", "weight_change")
    np.testing.assert_allclose(found, [(error**2).mean(), np.abs(error).mean(), norm, change, 0.0], rtol=1e-5)


def test_micro_batches_are_normalised_each_by_itself_and_move_the_averages_one_after_the_other():
    model = linear(norm=True)
    step_of(model, accumulate=3)(tf.constant(X), tf.constant(Y), 0)
    mean = np.zeros(3)
    for part in np.split(X.astype(float), 3):
        mean = 0.9 * mean + 0.1 * part.mean(0)
    np.testing.assert_allclose(np.asarray(model.layers[1].moving_mean), mean, rtol=1e-4, atol=1e-6)


def test_an_update_whose_loss_is_not_finite_is_left_out():
    model = linear()
    before = values(model)
    broken = X.copy()
    broken[0, 0] = np.inf
    found = np.asarray(step_of(model)(tf.constant(broken), tf.constant(Y), 0))
    assert not np.isfinite(found[0])
    for a, b in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_penalties_of_layers_of_the_model_count():
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5))
    model = keras.Model(inputs, dense(inputs))
    kernel, bias = values(model)
    found = np.asarray(step_of(model)(tf.constant(X), tf.constant(Y), 0))
    error = X.astype(float) @ kernel + bias - Y
    assert found[0] == pytest.approx((error**2).mean() + 0.5 * (kernel**2).sum(), rel=1e-5)
