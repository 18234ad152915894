"""Criteria and plateau as functions of a history."""

import math

import pytest

from dlkit._errors import InputError
from dlkit.train import stopping
from dlkit.train.stopping import GradientNorm, LossStalled, Patience, Plateau, Target, TimeBudget, WeightChange


def rows(name, *values):
    return [{name: value} for value in values]


@pytest.mark.parametrize(
    ("criterion", "history", "seconds", "stops"),
    [
        (GradientNorm(0.1), rows("gradient_norm", 5.0, 0.2), 0, False),
        (GradientNorm(0.1), rows("gradient_norm", 5.0, 0.09), 0, True),
        (WeightChange(1e-3), rows("weight_change", 1e-2), 0, False),
        (WeightChange(1e-3), rows("weight_change", 1e-4), 0, True),
        (LossStalled(2), rows("loss", 3, 2, 2.5), 0, False),
        (LossStalled(2), rows("loss", 3, 2, 2.5, 2.1), 0, True),
        (LossStalled(2, min_delta=0.5), rows("loss", 3, 2.9, 2.8), 0, True),
        (LossStalled(2, min_delta=0.5), rows("loss", 3, 2.9, 2.4), 0, False),
        (Patience("val_accuracy", 1), rows("val_accuracy", 0.5, 0.6), 0, False),
        (Patience("val_accuracy", 1), rows("val_accuracy", 0.6, 0.6), 0, True),
        (Patience("val_loss", 2), rows("val_loss", math.nan, 2.0, 1.0), 0, False),
        (Patience("val_loss", 2), rows("val_loss", 1.0, math.nan, math.nan), 0, True),
        (Target("val_iou", 0.5), rows("val_iou", 0.49), 0, False),
        (Target("val_iou", 0.5), rows("val_iou", 0.5), 0, True),
        (Target("val_mae", 0.5), rows("val_mae", 0.51), 0, False),
        (Target("val_mae", 0.5), rows("val_mae", 0.4), 0, True),
        (TimeBudget(60), [], 59.9, False),
        (TimeBudget(60), [], 60.0, True),
    ],
)
def test_a_criterion_stops_when_it_says_so(criterion, history, seconds, stops):
    assert bool(criterion.reason(history, seconds)) is stops


def test_the_best_epoch_is_the_first_of_equals():
    assert stopping.best_row(rows("val_loss", 3, 1, 2, 1), "val_loss") == 1
    assert stopping.best_row(rows("val_accuracy", 0.1, 0.9, 0.9), "val_accuracy") == 1


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 1.0),
        ([3, 2, 1], 1.0),
        ([3, 3, 3], 0.5),
        ([3, 3, 3, 3, 3], 0.25),
        ([3, 3, 2, 2, 2], 0.5),
        ([3] * 20, 0.1),
        ([3, 2.95, 2.9], 0.5),  # an improvement below min_delta
    ],
)
def test_a_plateau_multiplies_after_each_wait(losses, expected):
    plateau = Plateau("loss", factor=0.5, patience=2, min_delta=0.2, floor=0.1)
    assert plateau.scale(rows("loss", *losses)) == pytest.approx(expected)


def test_a_plateau_watches_validation_where_there_is_one():
    plateau = Plateau(factor=0.5, patience=1)
    assert plateau.scale([{"loss": 3, "val_loss": 1}, {"loss": 2, "val_loss": 1}]) == 0.5
    assert plateau.scale([{"loss": 3}, {"loss": 2}]) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientNorm(0), "above 0"),
        (lambda: TimeBudget(math.inf), "above 0"),
        (lambda: Patience(patience=0), "from 1"),
        (lambda: LossStalled(min_delta=-1), "at least 0"),
        (lambda: Plateau(factor=1.0), "between 0 and 1"),
        (lambda: Plateau(floor=1.0), "below 1"),
        (lambda: stopping.check_columns([Patience()], ["loss", "mae"]), "give fit a validation source"),
        (lambda: stopping.check_columns([Target("val_acuracy")], ["loss", "val_accuracy"]), "loss, val_accuracy"),
    ],
)
def test_what_means_nothing_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
