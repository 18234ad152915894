"""The learning rate range test: one short ramp of the rate shows where the loss falls and where it explodes."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit._files import write_bytes
from dlkit.data import train_pipeline
from dlkit.train import averaging, optimizers, precision, schedules, tasks
from dlkit.train._freeze import frozen
from dlkit.train._step import Step

SMOOTHING = 0.9  # weight of the past in the smoothed loss
EXPLODED = 4.0  # the ramp ends where the smoothed loss is this multiple of its minimum


@dataclass(frozen=True)
class LrFind:
    """What the ramp saw.

    Attributes:
        rates, losses: of every step.
        smoothed: the losses' running mean.
        suggestion: a tenth of the rate at which the smoothed loss is lowest.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float

    def plot(self, path: str | Path) -> Path:
        """Draws loss against rate, both smoothed and raw, with the suggestion; the suffix of `path` is the format."""
        import io

        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        path = Path(path)
        figure = Figure(figsize=(6.0, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, color="#999999", linewidth=0.8, label="each step")
        axes.plot(self.rates, self.smoothed, color="#0072B2", linewidth=1.8, label="smoothed")
        axes.axvline(self.suggestion, color="#D55E00", linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        falling = slice(0, 1 + int(np.argmin(self.smoothed)))  # what comes after it may be of another order
        low, high = min(self.losses[falling]), max(self.smoothed[falling])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title="Learning rate range test")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        content = io.BytesIO()
        try:
            figure.savefig(content, format=path.suffix.lstrip(".") or "png", dpi=120)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        return write_bytes(path, content.getvalue())


def lr_find(
    model: Any, recipe: Any, train: Any, *, preprocess: Any, low: float = 1e-5, high: float = 10.0, steps: int = 100
) -> LrFind:
    """Raises the learning rate from step to step and watches the loss; the model is left as it was.

        eta_t = low (high / low)^(t / (steps - 1))

    The suggestion, for `Recipe.peak_lr`, is a tenth of the rate with the lowest smoothed loss: beyond that one the
    loss rises, and a long run at it would. Look at the picture too: where the valley is flat, more is possible.

    Args:
        model: as for `fit`, freshly built or trained before.
        recipe: of the run; its optimizer, batch, augmentation, penalties and frozen layers are used, its schedule and
            averages are not.
        train: the training source.
        preprocess: the one definition of the input.
        low, high: the first and the last rate.
        steps: of the ramp; it ends early where the smoothed loss is four times its minimum or not finite.

    Raises:
        InputError: the model does not fit the data, or low, high and steps make no ramp.

    Example: `found = lr_find(model, recipe, train, preprocess=preprocess); found.plot("lr.png")`

    Reference: L. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3,
    https://arxiv.org/abs/1506.01186.
    """
    if not 0 < low < high < math.inf or steps < 10:
        raise InputError(
            f"low={low!r}, high={high!r}, steps={steps!r}: 0 < low < high and at least 10 steps are needed"
        )
    tasks.check(model, recipe.task, train, preprocess)
    loss = tasks.loss(recipe.task, model, recipe.label_smoothing, recipe.loss)
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]
    schedule = schedules.Scaled(schedules.Constant(1.0))
    stream = train_pipeline(train, preprocess, recipe.augment, recipe.batch, recipe.seed).take(steps)
    ramp = [low * (high / low) ** (t / (steps - 1)) for t in range(steps)]
    losses: list[float] = []
    try:
        with frozen(model, recipe.freeze), precision.arithmetic(precision.of(recipe)):
            optimizer = optimizers.of(recipe, schedule, model.trainable_variables)
            plain = averaging.get(dataclasses.replace(recipe, ema=0.0, swa_from=0.0, lookahead=0), model, steps)
            step = Step(model, optimizer, recipe, loss, plain, (), tf.distribute.get_strategy())
            for rate, (inputs, targets) in zip(ramp, stream, strict=True):
                schedule.scale.assign(rate)
                losses.append(float(step(inputs, targets, len(losses))[0]))
                if _exploded(losses):
                    break
    finally:
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
    return _found(ramp, losses)


def _found(ramp: list[float], losses: list[float]) -> LrFind:
    finite = [value for value in losses if math.isfinite(value)]
    if len(finite) < 3:
        raise InputError(
            f"the loss is not finite from rate {ramp[len(finite)]:.3g} on; try a smaller low ({ramp[0]!r})"
        )
    smooth = _smoothed(finite)
    suggestion = ramp[int(np.argmin(smooth))] / 10
    return LrFind(tuple(ramp[: len(finite)]), tuple(finite), tuple(smooth), suggestion)


def _exploded(losses: list[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smooth = _smoothed(losses)
    return len(losses) > 10 and smooth[-1] > EXPLODED * min(smooth)


def _smoothed(losses: list[float]) -> list[float]:
    """Running mean with the bias of its start removed."""
    mean, result = 0.0, []
    for t, value in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        result.append(mean / (1 - SMOOTHING**t))
    return result
