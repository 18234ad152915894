"""The model behind Bohb: gradients, predictions, and the way between KerasTuner's values and the unit cube."""

import keras_tuner
import numpy as np
import pytest
from scipy.optimize import approx_fprime

from dlkit.tune._bohb import _log_density
from dlkit.tune._cube import Cube
from dlkit.tune._surrogate import GaussianProcess, expected_improvement, winsorize


def data(count=40, seed=0):
    random = np.random.default_rng(seed)
    x, f = random.uniform(size=(count, 3)), random.choice([0.4, 0.7, 1.0], size=count)
    return x, f, winsorize(-((x[:, 0] - 0.6) ** 2) + 0.3 * x[:, 1] - 0.2 * (1 - f))


def space():
    hp = keras_tuner.HyperParameters()
    hp.Fixed("epochs", 3)
    hp.Float("rate", 1e-4, 1.0, sampling="log")
    hp.Choice("kind", ["a", "b", "c"])
    with hp.conditional_scope("kind", ["b"]):
        hp.Int("depth", 1, 8)
    hp.Boolean("flip")
    return hp


def test_the_gradient_of_the_posterior_of_the_scales_agrees_with_differences():
    x, f, y = data()
    model = GaussianProcess(3)
    for seed in range(3):
        scales = model.expected + 0.3 * np.random.default_rng(seed).standard_normal(len(model.expected))
        exact = model._loss(scales, x, f, y)[1]
        differences = approx_fprime(scales, lambda s: model._loss(s, x, f, y)[0], 1e-6)
        np.testing.assert_allclose(exact, differences, rtol=1e-3, atol=1e-3)


def test_the_process_knows_its_data_and_ranks_what_it_has_not_seen():
    x, f, y = data(60)
    model = GaussianProcess(3)
    model.fit_scales(x, f, y)
    model.condition(x, f, y)
    last = f == 1.0
    mean, deviation = model.predict(x[last])
    np.testing.assert_allclose(mean, y[last], atol=0.15)
    unseen = np.random.default_rng(9).uniform(size=(200, 3))
    truth = -((unseen[:, 0] - 0.6) ** 2) + 0.3 * unseen[:, 1]
    assert np.corrcoef(model.predict(unseen)[0], truth)[0, 1] > 0.97
    assert model.predict(np.full((1, 3), 5.0))[1] > 2 * deviation.max()


def test_early_scores_that_say_nothing_about_the_end_are_not_believed():
    random = np.random.default_rng(0)
    x = np.repeat(random.uniform(size=(40, 2)), 2, axis=0)
    f = np.tile([0.3, 1.0], 40)
    for related in (True, False):
        early = x[::2, 0] if related else random.uniform(size=40)
        y = np.empty(80)
        y[::2], y[1::2] = early, x[1::2, 0]
        model = GaussianProcess(2)
        model.fit_scales(x, f, winsorize(y))
        model.condition(x[::2], f[::2], winsorize(y[::2]))  # early scores alone
        spread = np.ptp(model.predict(x[::2])[0])
        assert spread > 1.5 if related else spread < 1.5


def test_expected_improvement_is_the_mean_of_what_exceeds_the_best():
    random = np.random.default_rng(0).standard_normal(400_000)
    for mean, deviation, best in ((0.0, 1.0, 0.5), (1.0, 0.3, 0.8), (-1.0, 0.5, 0.5)):
        drawn = np.maximum(mean + deviation * random - best, 0).mean()
        found = expected_improvement(np.array([mean]), np.array([deviation]), best)[0]
        assert found == pytest.approx(drawn, abs=3e-3)


def test_the_worst_scores_are_raised_to_three_times_the_way_from_the_median_to_the_best():
    y = winsorize(np.array([1.0, 2.0, 3.0, -1000.0, 0.0]))
    assert y.mean() == pytest.approx(0)
    assert y.std() == pytest.approx(1)
    assert y[3] == y.min()
    assert np.ptp(y) == pytest.approx((3 - -5) / np.std([1, 2, 3, -5, 0]))


def test_values_go_to_the_cube_and_come_back():
    cube = Cube(space().space)
    assert cube.names == ("rate", "kind", "depth", "flip")
    assert list(cube.kinds) == [0, 3, 0, 2]
    for values in (
        {"epochs": 3, "rate": 0.01, "kind": "b", "depth": 5, "flip": True},
        {"epochs": 3, "rate": 1e-4, "kind": "c", "flip": False},
    ):
        row = cube.row(values)
        assert np.isnan(row[2]) == ("depth" not in values)
        back = cube.values(row)
        assert back.pop("rate") == pytest.approx(values.pop("rate"))
        assert back == values
    assert cube.features(np.stack([row, row])).shape == (2, 1 + 3 + 1 + 2)


def test_what_is_not_active_has_no_place_and_counts_as_even():
    cube = Cube(space().space)
    rows = cube.settle(np.random.default_rng(0).uniform(size=(300, 4)))
    assert set(np.unique(rows[:, 1]).round(3)) == {0.167, 0.5, 0.833}
    np.testing.assert_array_equal(np.isnan(rows[:, 2]), rows[:, 1].round(3) != 0.5)
    assert np.isfinite(cube.features(rows)).all()
    assert np.isfinite(_log_density(rows[:5], rows[5:], np.full(4, 0.2), cube.kinds)).all()


def test_densities_are_those_of_normal_kernels():
    rows = np.array([[0.2, 0.4], [0.6, 0.5]])
    width = np.array([0.1, 0.3])
    point = np.array([[0.3, 0.3]])
    kernels = np.exp(-0.5 * ((point - rows) / width) ** 2).prod(1) / width.prod()
    assert _log_density(point, rows, width, np.zeros(2, int))[0] == pytest.approx(np.log(kernels.mean()))
