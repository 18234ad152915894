"""A search space as the unit cube: KerasTuner's values to places and back, places to features of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner
import numpy as np

Array = np.ndarray


def place(hp: Any, value: Any) -> float:
    """Where a value lies in the unit interval; 0.5 for one that has no place."""
    try:
        return float(hp.value_to_prob(value))
    except (AttributeError, NotImplementedError, TypeError):
        return 0.5


def value(hp: Any, at: float) -> Any:
    """The value at a place of the unit interval."""
    return hp.prob_to_value(min(max(float(at), 0.0), 1.0 - 1e-12))


def fill(space: Sequence[Any], at: Any) -> dict[str, Any]:
    """Walks the space and sets each active hyperparameter to its value at the place `at(hp)`."""
    chosen = keras_tuner.HyperParameters()
    for hp in space:
        chosen.merge([hp])
        if chosen.is_active(hp):
            chosen.values[hp.name] = value(hp, at(hp))
    return chosen.values


class Cube:
    """Rows of places, one column per hyperparameter that can vary; NaN where it is not active.

    Args:
        space: KerasTuner's hyperparameters.
    """

    def __init__(self, space: Sequence[Any]):
        fixed = keras_tuner.engine.hyperparameters.Fixed
        self.space = list(space)
        self.varying = [hp for hp in self.space if not isinstance(hp, fixed)]
        self.names = tuple(hp.name for hp in self.varying)
        self.kinds = np.array([_kinds(hp) for hp in self.varying], int)  # values without an order, else 0

    def __len__(self) -> int:
        return len(self.varying)

    def row(self, values: Mapping[str, Any]) -> Array:
        """The places of a configuration."""
        return np.array([place(hp, values[hp.name]) if hp.name in values else np.nan for hp in self.varying])

    def values(self, row: Array) -> dict[str, Any]:
        """The configuration at these places, inactive hyperparameters left out."""
        places = dict(zip(self.names, row, strict=True))
        return fill(self.space, lambda hp: places.get(hp.name, 0.5))

    def settle(self, rows: Array) -> Array:
        """Sets to NaN what is not active, and moves values without an order to the middle of their interval."""
        rows = np.array(rows)
        for column, kinds in enumerate(self.kinds):
            if kinds:
                rows[:, column] = (np.minimum(np.floor(rows[:, column] * kinds), kinds - 1) + 0.5) / kinds
        for column, hp in enumerate(self.varying):  # parents come before their children
            for condition in hp.conditions:
                if condition.name in self.names:
                    parent = self.names.index(condition.name)
                    held = [not np.isnan(p) and value(self.varying[parent], p) for p in rows[:, parent]]
                    rows[~np.isin(np.array(held, object), np.array(condition.values, object)), column] = np.nan
        return rows

    def features(self, rows: Array) -> Array:
        """Numbers for a model: ordered places as they are (0.5 if inactive), the others as indicators."""
        columns = []
        for column, kinds in enumerate(self.kinds):
            if kinds:
                index = np.where(np.isnan(rows[:, column]), -1, np.floor(rows[:, column] * kinds))
                columns += [(index == kind) / np.sqrt(2) for kind in range(kinds)]
            else:
                columns.append(np.where(np.isnan(rows[:, column]), 0.5, rows[:, column]))
        return np.stack(columns, axis=1).astype(float)


def _kinds(hp: Any) -> int:
    if isinstance(hp, keras_tuner.engine.hyperparameters.Boolean):
        return 2
    if isinstance(hp, keras_tuner.engine.hyperparameters.Choice) and not hp.ordered:
        return len(hp.values)
    return 0
