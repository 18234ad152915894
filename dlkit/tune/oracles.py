"""Oracles by name: who suggests the next trial, and how many epochs it gets."""

import math
from collections.abc import Callable
from typing import Any

import keras_tuner
from keras_tuner import oracles as kt

from dlkit._errors import InputError, unknown
from dlkit.tune._asha import Asha
from dlkit.tune._bohb import Bohb
from dlkit.tune._trial import FACTS


def _random(objective: keras_tuner.Objective, epochs: int, budget: int, seed: int) -> Any:
    return kt.RandomSearchOracle(objective=objective, max_trials=max(1, budget // epochs), seed=seed)


def _bayesian(objective: keras_tuner.Objective, epochs: int, budget: int, seed: int) -> Any:
    return kt.BayesianOptimizationOracle(objective=objective, max_trials=max(1, budget // epochs), seed=seed)


def _hyperband(objective: keras_tuner.Objective, epochs: int, budget: int, seed: int) -> Any:
    sweep = epochs * (math.log(epochs, 3) + 1) ** 2
    return kt.HyperbandOracle(
        objective=objective, max_epochs=epochs, factor=3, hyperband_iterations=math.ceil(budget / sweep), seed=seed
    )


def _asha(objective: keras_tuner.Objective, epochs: int, budget: int, seed: int) -> Any:
    return Asha(objective=objective, max_epochs=epochs, seed=seed)


def _bohb(objective: keras_tuner.Objective, epochs: int, budget: int, seed: int) -> Any:
    return Bohb(objective=objective, max_epochs=epochs, seed=seed)


# name -> oracle for trials of at most `epochs` epochs and `budget` epochs in all
ORACLES: dict[str, Callable[[keras_tuner.Objective, int, int, int], Any]] = {
    "random": _random,
    "bayesian": _bayesian,
    "hyperband": _hyperband,
    "asha": _asha,
    "bohb": _bohb,
}


def check(name: str) -> None:
    """Raises InputError for an unknown oracle, with the nearest one."""
    if name not in ORACLES:
        raise unknown("oracle", name, ORACLES)


def sign(objective: str) -> int:
    """1 if less is better, as of losses, errors and what a model costs; -1 if more is."""
    return 1 if any(part in objective for part in ("loss", "mae", *FACTS)) else -1


def get(name: str, objective: str, epochs: int, budget: int, seed: int) -> Any:
    """Builds the named oracle.

    Args:
        name: one of `ORACLES`.
        objective: what a trial reports, such as "val_accuracy"; names with "loss" or "mae" are minimised.
        epochs: the most that one trial may train.
        budget: epochs of all trials together.
        seed: of the suggestions; KerasTuner takes 0 for "no seed", so it is moved by one.

    Raises:
        InputError: an unknown name, with the nearest one; a budget below one training.
    """
    check(name)
    if budget < epochs:
        raise InputError(f"epochs_budget={budget} does not pay for one training of {epochs} epochs")
    direction = "min" if sign(objective) > 0 else "max"
    return ORACLES[name](keras_tuner.Objective(objective, direction), epochs, budget, seed + 1)
