"""Averages of weights: each formula against NumPy, what they put into the model, and statistics measured again."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from dlkit import layers
from dlkit._errors import InputError
from dlkit.data import Preprocess, from_arrays
from dlkit.train import Recipe, averaging, evaluate, fit

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_draws_in_whatever_order_tests_run():
    RNG.bit_generator.state = START


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


def values(variables):
    return [np.asarray(ops.convert_to_numpy(v), "float64") for v in variables]


def walk(model, average, steps):
    """Sets new random weights at every step and returns what they were after each update."""
    path = []
    for step in range(steps):
        for variable in model.trainable_variables:
            variable.assign(RNG.normal(size=variable.shape).astype("float32"))
        drawn = values(model.trainable_variables)
        average.update(ops.convert_to_tensor(step, "int64"))
        path.append((drawn, values(model.trainable_variables)))
    return path


def recipe(**fields):
    return dataclasses.replace(Recipe(), **fields)


def test_the_exponential_average_is_its_formula(model):
    average = averaging.get(recipe(ema=0.8), model, 6)
    expected = values(model.trainable_variables)
    for drawn, _ in walk(model, average, 6):
        expected = [0.8 * e + 0.2 * w for e, w in zip(expected, drawn, strict=True)]
    average.finalize()
    for value, wanted in zip(values(model.trainable_variables), expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-6)


def test_stochastic_weight_averaging_is_the_mean_of_the_last_part_of_the_run(model):
    average = averaging.get(recipe(swa_from=0.5), model, 8)
    path = walk(model, average, 8)
    average.finalize()
    assert average.needs_statistics
    for i, value in enumerate(values(model.trainable_variables)):
        np.testing.assert_allclose(value, np.mean([drawn[i] for drawn, _ in path[4:]], axis=0), atol=1e-6)


def test_before_it_begins_the_average_is_the_weights_themselves(model):
    average = averaging.get(recipe(swa_from=0.9), model, 100)
    drawn, _ = walk(model, average, 3)[-1]
    with average.swapped():
        for value, wanted in zip(values(model.trainable_variables), drawn, strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-6)


def test_lookahead_moves_the_weights_half_way_back_every_k_steps(model):
    average = averaging.get(recipe(lookahead=3), model, 7)
    slow = values(model.trainable_variables)
    for step, (drawn, after) in enumerate(walk(model, average, 7)):
        if (step + 1) % 3 == 0:
            slow = [s + 0.5 * (w - s) for s, w in zip(slow, drawn, strict=True)]
            drawn = slow
        for value, wanted in zip(after, drawn, strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-6)
    average.finalize()
    for value, wanted in zip(values(model.trainable_variables), slow, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-6)


def test_an_average_on_top_of_lookahead_sees_the_weights_after_it(model):
    average = averaging.get(recipe(lookahead=2, ema=0.5), model, 4)
    expected = values(model.trainable_variables)
    for _, after in walk(model, average, 4):
        expected = [0.5 * e + 0.5 * w for e, w in zip(expected, after, strict=True)]
    average.finalize()
    for value, wanted in zip(values(model.trainable_variables), expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-6)


@pytest.mark.parametrize("fields", [{"ema": 0.9}, {"swa_from": 0.1}, {"lookahead": 2}, {}])
def test_swapping_puts_every_variable_back(model, fields):
    average = averaging.get(recipe(**fields), model, 5)
    walk(model, average, 5)
    before = values(model.variables)
    with average.swapped():
        model.trainable_variables[0].assign(np.zeros((3, 2), "float32") if fields else model.trainable_variables[0])
    for value, wanted in zip(values(model.variables), before, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_two_averages_at_once_are_refused(model):
    with pytest.raises(InputError, match="swa_from"):
        averaging.get(recipe(ema=0.9, swa_from=0.5), model, 5)


@pytest.mark.parametrize("kind", [layers.BatchNorm, keras.layers.BatchNormalization])
def test_statistics_measured_again_are_the_means_over_the_batches_whatever_the_momentum(kind):
    model = keras.Sequential([
        keras.Input((4,)),
        kind(momentum=0.7),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3),
        kind(momentum=0.99),
    ])  # fmt: skip
    batches = [(2.0 + 3.0 * RNG.normal(size=(64, 4))).astype("float32") for _ in range(5)]
    dropout = values(model.layers[1].variables)
    assert averaging.recalibrate(model, batches) == 5
    first = model.layers[0]
    np.testing.assert_allclose(values([first.moving_mean])[0], np.mean(batches, (0, 1)), rtol=1e-4)
    np.testing.assert_allclose(values([first.moving_variance])[0], np.mean([b.var(0) for b in batches], 0), rtol=1e-3)
    deviation = np.sqrt(values([model.layers[3].moving_variance])[0])
    assert (deviation > 0.5).all()
    for value, wanted in zip(values(model.layers[1].variables), dropout, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_a_pass_that_is_used_again_is_traced_once_and_measures_the_same():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layers.BatchNorm()])
    batches = [RNG.normal(size=(8, 4)).astype("float32") for _ in range(2)]
    found, forward = [], averaging.training_pass(model)
    for given in (forward, forward, None):
        averaging.recalibrate(model, batches, given)
        found.append(values(model.non_trainable_variables))
    assert forward.experimental_get_tracing_count() == 1
    for again in found[1:]:
        for value, wanted in zip(again, found[0], strict=True):
            np.testing.assert_array_equal(value, wanted)


def test_a_model_without_statistics_needs_none(model):
    assert averaging.recalibrate(model, [np.zeros((2, 3), "float32")]) == 0


@pytest.mark.parametrize("field", [{"swa_from": 0.5}, {"whiten": True}])
def test_what_is_measured_on_training_pictures_does_not_see_the_first_class_only(field, tmp_path):
    labels = np.sort(np.arange(12_000 if "whiten" in field else 400) % 2)
    pictures = np.where(labels == 1, 255, 0).astype("uint8")[:, None, None, None] * np.ones((1, 2, 2, 1), "uint8")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, 2, 1))
    x = layers.BatchNorm(name="norm")(keras.layers.Conv2D(2, 1, name="first")(inputs) if "whiten" in field else inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    fields = {"epochs": 1, "batch": 10, "warmup_epochs": 0.0} | ({"batch": 3000} if "whiten" in field else {}) | field
    source = from_arrays(pictures, labels, classes=("dark", "bright"))
    scale = Preprocess(2, channels=1, mean=0.0, std=1.0)
    fit(model, Recipe(**fields), source, preprocess=scale, run_dir=tmp_path / "run", verbose=False)
    if "whiten" in field:  # one direction, scaled by the root of the mean square, 1/2
        np.testing.assert_allclose(np.abs(values([model.get_layer("first").kernel])[0]).ravel(), 2**0.5, rtol=0.05)
    else:
        assert 0.35 < float(model.get_layer("norm").moving_mean[0]) < 0.65


def test_what_a_run_in_bfloat16_reports_is_what_its_saved_network_gives(tmp_path):
    pixels = RNG.integers(0, 255, (96, 8, 8, 3), np.uint8)
    source, preprocess = from_arrays(pixels, np.arange(96) % 3, classes=["a", "b", "c"]), Preprocess(8)
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for _ in range(3):
        x = keras.layers.ReLU()(layers.BatchNorm()(keras.layers.Conv2D(32, 3, padding="same")(x)))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    recipe = Recipe(epochs=3, batch=32, optimizer="momentum", peak_lr=0.05, swa_from=0.5, precision="bfloat16")
    result = fit(model, recipe, source, source, preprocess=preprocess, run_dir=tmp_path / "run", verbose=False)
    assert evaluate(model, source, preprocess=preprocess)["loss"] == pytest.approx(result.metrics["loss"], abs=1e-6)
