"""Averages of the weights along the run: what is validated, saved and exported in place of the last weights."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from dlkit._errors import InputError
from dlkit.data import draws

STATISTICS = ("moving_mean", "moving_variance")  # last words of the variables that `recalibrate` measures again


class Averaging:
    """Keeps no average: the interface of all averages, and what a run without one uses.

    Attributes:
        variables: the state, part of every checkpoint.
        needs_statistics: the average is far enough from the last weights that batch normalisation's statistics must be
            measured again for it, see `recalibrate`.
    """

    needs_statistics = False

    def __init__(self, model: Any):
        self.model = model
        self.variables: list[Any] = []

    def update(self, step: Any) -> None:
        """Takes the weights after an update into the average; traced. `step`: the steps done before this one."""

    def assign(self) -> None:
        """Writes the average into the model's weights."""
        for average, weight in self._pairs():
            weight.assign(average)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Holds the averaged weights in the model inside the block; everything in it is put back afterwards."""
        if not self.variables:
            yield
            return
        current = [np.array(ops.convert_to_numpy(variable)) for variable in self.model.variables]
        self.assign()
        try:
            yield
        finally:
            for variable, value in zip(self.model.variables, current, strict=True):
                variable.assign(value)

    def finalize(self) -> None:
        """Leaves the averaged weights in the model."""
        self.assign()

    def _copies(self, name: str) -> list[Any]:
        return [
            keras.Variable(variable, trainable=False, dtype=variable.dtype, name=name)
            for variable in self.model.trainable_variables
        ]

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        """Yields (average, weight)."""
        yield from zip(self.variables, self.model.trainable_variables, strict=False)


class Ema(Averaging):
    """Exponential moving average, from the first weights on.

        average <- decay average + (1 - decay) w        after every step

    It forgets the start after a few times 1 / (1 - decay) steps; choose that as a few per cent of the run. The moving
    statistics of batch normalisation, averages themselves, are left as they are.

    Args:
        model: its trainable weights are averaged.
        decay: at least 0 and below 1.

    Reference: B. Polyak, A. Juditsky, 1992 (the average of iterates); C. Szegedy et al., "Rethinking the Inception
    Architecture", 2015, section 8.
    """

    def __init__(self, model: Any, decay: float):
        super().__init__(model)
        self.decay = decay
        self.variables = self._copies("average")

    def update(self, step: Any) -> None:
        for average, weight in self._pairs():
            average.assign(average * self.decay + weight * (1.0 - self.decay))


class Swa(Averaging):
    """Stochastic weight averaging: the plain mean of the weights after every step from `start` on.

        average <- average + (w - average) / n,   n = steps averaged so far, this one included

    Before `start` the average is the weights themselves. Batch normalisation saw other weights, so its statistics are
    measured again (`needs_statistics`). Best with a rate that is still large at the end of the run.

    Args:
        model: its trainable weights are averaged.
        start: the first step whose result is averaged, counted from 0.

    Reference: P. Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018,
    algorithm 1, https://arxiv.org/abs/1803.05407.
    """

    needs_statistics = True

    def __init__(self, model: Any, start: int):
        super().__init__(model)
        self.start = start
        self.variables = self._copies("average")

    def update(self, step: Any) -> None:
        share = 1.0 / ops.cast(ops.maximum(step - self.start + 1, 1), "float32")
        for average, weight in self._pairs():
            average.assign(average + (weight - average) * ops.cast(share, average.dtype))


class Lookahead(Averaging):
    """Every k steps the weights go back to the point `share` of the way from where they were k steps before.

        slow <- slow + share (w - slow),   w <- slow        after every k-th step

    The slow weights are what is evaluated. `inner` averages on top, if given.

    Args:
        model: its trainable weights are moved.
        every: k.
        share: of the way; the paper's 0.5.
        inner: another average of the same model, updated afterwards and evaluated instead.

    Reference: M. Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019, algorithm 1,
    https://arxiv.org/abs/1907.08610.
    """

    def __init__(self, model: Any, every: int, share: float = 0.5, inner: Averaging | None = None):
        super().__init__(model)
        self.every, self.share, self.inner = every, share, inner or Averaging(model)
        self.needs_statistics = self.inner.needs_statistics
        self.variables = [*self._copies("slow"), *self.inner.variables]

    def update(self, step: Any) -> None:
        now = ops.equal(ops.mod(step + 1, self.every), 0)
        for slow, weight in self._pairs():
            new = ops.where(now, slow + (weight - slow) * self.share, slow)
            slow.assign(new)
            weight.assign(ops.where(now, new, weight))
        self.inner.update(step)

    def assign(self) -> None:
        if self.inner.variables:
            self.inner.assign()
        else:
            super().assign()


def get(recipe: Any, model: Any, steps: int) -> Averaging:
    """Returns the averaging that `recipe` asks for over a run of `steps` steps.

    Raises:
        InputError: two averages at once.
    """
    if recipe.ema and recipe.swa_from:
        raise InputError(
            f"Recipe.ema={recipe.ema} and Recipe.swa_from={recipe.swa_from} are two averages of the same weights; "
            "set one of them to 0"
        )
    average = Averaging(model)
    if recipe.ema:
        average = Ema(model, recipe.ema)
    elif recipe.swa_from:
        average = Swa(model, round(recipe.swa_from * steps))
    return Lookahead(model, recipe.lookahead, inner=average) if recipe.lookahead else average


def training_pass(model: Any) -> Callable[[Any], Any]:
    """Returns the function by which `recalibrate` lets `model` see a batch, traced once for all of its uses."""
    return draws.traced(lambda inputs: model(inputs, training=True), reduce_retracing=True)


def recalibrate(model: Any, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None) -> int:
    """Measures the statistics of batch normalisation again for the present weights; returns how many batches it saw.

        moving_mean, moving_variance <- mean over the batches of what each layer measures in training

    Works on every variable called moving_mean or moving_variance, whatever its layer: a pass with the variable at 0 and
    one with it at 1 tell the layer's momentum, and with it the batch's own value. Everything else that a training pass
    changes, such as the state of dropout, is put back.

    Args:
        model: its statistics are replaced; nothing happens where it has none.
        batches: training inputs of one shape; 20 batches give a standard error of a fifth of one batch's.
        forward: the `training_pass` of the model where there is one already.
    """
    moving = [v for v in model.non_trainable_variables if v.path.endswith(STATISTICS)]
    others = [v for v in model.variables if not any(v is m for m in moving) and not v.trainable]
    before = [np.array(ops.convert_to_numpy(v)) for v in others]
    held = [np.array(ops.convert_to_numpy(v)) for v in moving]
    forward = forward or training_pass(model)

    def measured(inputs: Any, start: float) -> list[np.ndarray]:
        for variable in moving:
            variable.assign(np.full(variable.shape, start, "float32"))
        forward(inputs)
        return [np.array(ops.convert_to_numpy(variable), "float64") for variable in moving]

    def put_back() -> None:
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)

    sums = [np.zeros(variable.shape) for variable in moving]
    count = 0
    for inputs in batches if moving else ():
        if not count:
            ones = measured(inputs, 1.0)
            put_back()
        found = measured(inputs, 0.0)
        if not count:
            kept = [float(np.median(one - zero)) for one, zero in zip(ones, found, strict=True)]
        sums = [total + value for total, value in zip(sums, found, strict=True)]
        count += 1
    if count:
        for variable, total, momentum, old in zip(moving, sums, kept, held, strict=True):
            frozen = momentum > 1.0 - 1e-6  # the layer does not move it
            variable.assign(old if frozen else (total / count / (1.0 - momentum)).astype("float32"))
        put_back()
    return count
