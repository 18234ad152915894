"""Averages of the weights along the run: what is validated, saved and exported in place of the last weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


class Averaging:
    """Keeps no average: the interface of all averages, and what a run without one uses."""

    needs_statistics = False

    def __init__(self, model: Any):
        self.model = model
        self.variables: list[Any] = []

    def update(self, step: Any) -> None:
        """Takes the weights after an update into the average; traced. `step`: the steps done before this one."""

    def assign(self) -> None:
        """Writes the average into the model's weights."""

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Holds the averaged weights in the model inside the block."""
        if not self.variables:
            yield
            return
        current = [np.array(keras.ops.convert_to_numpy(variable)) for variable in self.model.variables]
        self.assign()
        try:
            yield
        finally:
            for variable, value in zip(self.model.variables, current, strict=True):
                variable.assign(value)

    def finalize(self) -> None:
        """Leaves the averaged weights in the model."""
        self.assign()


class Ema(Averaging):
    """Exponential moving average: average <- decay average + (1 - decay) w after every step, from the first weights."""

    def __init__(self, model: Any, decay: float):
        super().__init__(model)
        self.decay = decay
        self.variables = [
            keras.Variable(variable, trainable=False, dtype=variable.dtype, name="average")
            for variable in model.trainable_variables
        ]

    def update(self, step: Any) -> None:
        for average, variable in zip(self.variables, self.model.trainable_variables, strict=True):
            average.assign(average * self.decay + variable * (1.0 - self.decay))

    def assign(self) -> None:
        for average, variable in zip(self.variables, self.model.trainable_variables, strict=True):
            variable.assign(average)


def get(recipe: Any, model: Any, steps: int) -> Averaging:
    """Returns the averaging that `recipe` asks for over a run of `steps` steps."""
    return Ema(model, recipe.ema) if recipe.ema else Averaging(model)
