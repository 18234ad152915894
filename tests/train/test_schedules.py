"""Every schedule against its formula in float64, at the corners, in an optimizer and through a save."""

import math

import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.train import schedules as s

STEPS = np.arange(0, 240)

CASES = {
    "constant": (s.Constant(0.3), lambda t: 0.3),
    "factor": (s.Factor(1.0, alpha=0.5, every=7, floor=0.01), lambda t: max(0.01, 0.5 ** (t // 7))),
    "exponential": (s.Exponential(0.2, steps=100, final=0.05), lambda t: 0.2 * 0.05 ** min(t / 100, 1)),
    "polynomial": (s.Polynomial(0.4, alpha=0.02, beta=0.5), lambda t: 0.4 / (1 + 0.02 * t) ** 0.5),
    "cosine": (
        s.Cosine(0.5, steps=150, final=0.1),
        lambda t: 0.1 + (0.5 - 0.1) / 2 * (1 + math.cos(math.pi * min(t / 150, 1))),
    ),
    "linear": (s.Linear(0.5, steps=90, final=0.2), lambda t: 0.5 - 0.3 * min(t / 90, 1)),
    "one_cycle": (
        s.OneCycle(2.0, steps=200, rise=0.25, start=0.1, final=0.01),
        lambda t: (
            2.0 * (0.1 + 0.9 * (1 - math.cos(math.pi * t / 50)) / 2)
            if t < 50
            else 2.0 * (0.01 + 0.99 * (1 + math.cos(math.pi * (min(t / 200, 1) - 0.25) / 0.75)) / 2)
        ),
    ),
    "piecewise": (s.Piecewise(0.1, boundaries=(32, 48)), lambda t: 0.1 * 0.1 ** ((t >= 32) + (t >= 48))),
    "warm_up": (
        s.WarmUp(s.Linear(1.0, steps=100), steps=9),
        lambda t: (t + 1) / 10 if t < 9 else 1 - min((t - 9) / 100, 1),
    ),
    "scaled": (s.Scaled(s.Linear(0.5, steps=90), scale=0.2), lambda t: 0.1 * (1 - min(t / 90, 1))),
}


def test_every_schedule_has_a_case():
    classes = {v for v in vars(s).values() if isinstance(v, type) and issubclass(v, s.Schedule)}
    public = {c for c in classes if not c.__name__.startswith("_") and c is not s.Schedule}
    assert {type(schedule) for schedule, _ in CASES.values()} == public


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_equals_its_formula(name):
    schedule, formula = CASES[name]
    found = np.array([float(schedule(int(t))) for t in STEPS])
    np.testing.assert_allclose(found, [formula(int(t)) for t in STEPS], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_survives_serialisation(name):
    schedule, _ = CASES[name]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert [float(again(t)) for t in (0, 5, 77, 500)] == [float(schedule(t)) for t in (0, 5, 77, 500)]
    assert again.get_config() == schedule.get_config()


@pytest.mark.parametrize("name", s.SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 10])
def test_a_named_schedule_starts_above_zero_peaks_at_the_peak_and_stays_finite(name, warmup):
    schedule = s.get(name, peak=0.1, steps=100, warmup_steps=warmup)
    rates = [float(schedule(t)) for t in range(101)]
    assert rates[0] > 0
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert all(math.isfinite(rate) and rate >= -1e-9 for rate in rates)


def test_an_optimizer_follows_the_schedule():
    variable = keras.Variable([1.0])
    optimizer = keras.optimizers.SGD(s.WarmUp(s.Linear(1.0, steps=4), steps=1))
    moved = []
    for _ in range(4):
        before = float(variable[0])
        optimizer.apply([keras.ops.ones(1)], [variable])
        moved.append(before - float(variable[0]))
    np.testing.assert_allclose(moved, [0.5, 1.0, 0.75, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.get("cosin", 0.1, 10), "did you mean 'cosine'"),
        (lambda: s.get("cosine", 0.1, 10, 10), "warm-up of 10 steps does not fit"),
        (lambda: s.Cosine(-1.0, 10), "peak must be above 0"),
        (lambda: s.Factor(1.0, alpha=1.5), "alpha must lie between 0 and 1"),
        (lambda: s.Piecewise(1.0, (5, 3)), "must rise"),
        (lambda: s.WarmUp(0.1, 3), "Constant\\(0.1\\)"),
        (lambda: s.Constant(float("nan")), "finite"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_allowed(call, message):
    with pytest.raises(InputError, match=message):
        call()
