"""How much each hyperparameter decided, by a random forest that is asked about trials it has not seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold

LEAST = 12  # trials below which nothing can be said


def importance(
    space: Mapping[str, Any], values: Sequence[Mapping[str, Any]], scores: Sequence[float], rungs: Sequence[int]
) -> tuple[dict[str, float], float]:
    """Returns each hyperparameter's importance and the share of variance the forest explains on unseen trials.

        importance = mean over held-out thirds of (R^2 - R^2 with the hyperparameter's values permuted), at least 0

    Scores are replaced by their ranks among the trials that trained as long, so that neither outliers nor the length
    of the training count. Where the explained share is near zero, no importance means anything.

    Args:
        space: name -> KerasTuner's configuration of the hyperparameter.
        values: hyperparameter values of each trial.
        scores: the larger the better.
        rungs: epochs of each trial.

    Reference: Breiman 2001, "Random forests", section 10; Hutter et al. 2014, "An efficient approach for assessing
    hyperparameter importance", for the forest over configurations.
    """
    names = [name for name in space if len({repr(v.get(name)) for v in values}) > 1]
    if len(values) < LEAST or not names:
        return {}, 0.0
    table = np.array([[place(space[name], v.get(name)) for name in names] for v in values])
    target = np.zeros(len(values))
    for rung in set(rungs):
        members = np.flatnonzero(np.asarray(rungs) == rung)
        order = np.argsort(np.argsort(np.asarray(scores)[members], kind="stable"))
        target[members] = (order + 0.5) / len(members)
    lost, explained = np.zeros(len(names)), []
    for fold, (seen, held) in enumerate(KFold(3, shuffle=True, random_state=0).split(table)):
        forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=fold).fit(table[seen], target[seen])
        explained.append(forest.score(table[held], target[held]))
        found = permutation_importance(forest, table[held], target[held], n_repeats=20, random_state=fold)
        lost += found.importances_mean / 3
    shares = {name: float(max(0.0, value)) for name, value in zip(names, lost, strict=True)}
    return dict(sorted(shares.items(), key=lambda item: -item[1])), float(np.mean(explained))


def place(hp: Mapping[str, Any], value: Any) -> float:
    """Returns where a value lies: from 0 to 1 on the hyperparameter's own scale, -0.2 where it was not active."""
    config = hp["config"]
    if value is None:
        return -0.2
    if "values" in config:
        choices = list(config["values"])
        return choices.index(value) / max(1, len(choices) - 1) if value in choices else -0.2
    if "min_value" in config:
        low, high, here = float(config["min_value"]), float(config["max_value"]), float(value)
        if config.get("sampling") == "log":
            low, high, here = np.log(low), np.log(high), np.log(here)
        return float((here - low) / (high - low)) if high > low else 0.5
    return float(bool(value))
