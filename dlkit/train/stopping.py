"""When a run ends before its last epoch: the lectures' criteria, patience, a target and a budget of time.

A criterion is a frozen value in `Recipe.stop`; the first that holds ends the run after the epoch (`TimeBudget`: after
the step). Each is a function of the run's history alone, which every checkpoint holds, so a run that was killed and
continued stops at the same step as one that was not. A loss that is not finite always ends a run: `DivergedError`.

Reference: lecture 003 (M. Gushchin, HSE 2025), "Stopping criteria": gradient near zero, small change of the weight
vector, the loss no longer falls; lecture 002 (St Petersburg University), "Regularisation": early stopping on the
validation sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dlkit._errors import InputError

Row = dict[str, Any]
HIGHER_IS_BETTER = ("accuracy", "top5_accuracy", "iou")


def better(metric: str, a: float, b: float, margin: float = 0.0) -> bool:
    """Tells whether `a` improves on `b` by more than `margin`; accuracies and overlaps rise, all else falls.

    >>> better("val_accuracy", 0.9, 0.8), better("val_loss", 0.9, 0.8), better("loss", math.nan, 0.8)
    (True, False, False)
    """
    return a > b + margin if metric.removeprefix("val_") in HIGHER_IS_BETTER else a < b - margin


def best_row(history: Sequence[Row], metric: str, margin: float = 0.0) -> int:
    """Returns the index of the row that last improved `metric` by more than `margin`."""
    best = 0
    for i, row in enumerate(history):
        if math.isnan(history[best][metric]) or better(metric, row[metric], history[best][metric], margin):
            best = i
    return best


def best_of(history: Sequence[Row]) -> Row:
    """Returns the row of the best validation (else training) accuracy, overlap or loss; empty without any row.

    >>> best_of([{"loss": 2.0, "val_loss": math.nan}, {"loss": 1.0, "val_loss": 3.0}])
    {'loss': 1.0, 'val_loss': 3.0}
    """
    for name in ("val_accuracy", "val_iou", "val_loss", "accuracy", "loss"):
        if history and name in history[-1]:
            return dict(history[best_row(history, name)])
    return dict(history[-1]) if history else {}


@dataclass(frozen=True)
class Criterion:
    """What every criterion has.

    Attributes:
        measures: columns that the training step must add to the history: "gradient_norm", "weight_change".
    """

    measures: ClassVar[tuple[str, ...]] = ()

    def reason(self, history: Sequence[Row], seconds: float) -> str:
        """Returns why the run ends now, in words, or "" while it goes on."""
        raise NotImplementedError


@dataclass(frozen=True)
class GradientNorm(Criterion):
    """Stops when the gradient is near zero: its mean norm over an epoch is below a bound.

        mean_t || grad L(w_t) || < below

    For full batches and convex problems. The gradient of a batch keeps its noise at the optimum, so on batches prefer
    `LossStalled`.

    Args:
        below: the bound on the Euclidean norm over all trainable variables, penalties included, before clipping.

    >>> GradientNorm(below=0.1).reason([{"gradient_norm": 0.05}], 0.0)
    'the gradient norm 0.05 is below 0.1'

    Reference: lecture 003 (M. Gushchin, HSE 2025), "Stopping criteria", the first.
    """

    below: float = 1e-3
    measures: ClassVar[tuple[str, ...]] = ("gradient_norm",)

    def __post_init__(self) -> None:
        _positive(self, "below")

    def reason(self, history: Sequence[Row], seconds: float) -> str:
        norm = history[-1]["gradient_norm"]
        return f"the gradient norm {norm:.4g} is below {self.below:g}" if norm < self.below else ""


@dataclass(frozen=True)
class WeightChange(Criterion):
    """Stops when the weights hardly change: a step's mean relative change over an epoch is below a bound.

        mean_t || w_{t+1} - w_t || / || w_t || < below

    The learning rate is a factor of it: under a schedule that falls to zero it holds at the end by itself.

    Args:
        below: the bound, as a fraction of the norm of all trainable variables.

    >>> WeightChange().reason([{"weight_change": 0.01}], 0.0)
    ''

    Reference: lecture 003 (M. Gushchin, HSE 2025), "Stopping criteria", the second.
    """

    below: float = 1e-5
    measures: ClassVar[tuple[str, ...]] = ("weight_change",)

    def __post_init__(self) -> None:
        _positive(self, "below")

    def reason(self, history: Sequence[Row], seconds: float) -> str:
        change = history[-1]["weight_change"]
        return f"the relative weight change {change:.4g} is below {self.below:g}" if change < self.below else ""


@dataclass(frozen=True)
class LossStalled(Criterion):
    """Stops when the training loss no longer falls.

        min(loss of the last `patience` epochs) >= loss before them - min_delta

    Args:
        patience: epochs without an improvement.
        min_delta: an improvement is a fall by more than this.

    >>> LossStalled(patience=2).reason([{"loss": 1.0}, {"loss": 1.0}, {"loss": 1.1}], 0.0)
    'loss has not improved for 2 epochs (best 1 at epoch 1)'

    Reference: lecture 003 (M. Gushchin, HSE 2025), "Stopping criteria", the third.
    """

    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _patience(self)

    def reason(self, history: Sequence[Row], seconds: float) -> str:
        return _waited(history, "loss", self.patience, self.min_delta)


@dataclass(frozen=True)
class Patience(Criterion):
    """Early stopping: stops when a validation metric has not improved for some epochs.

    Args:
        metric: a column of the history; accuracies and overlaps count upwards, everything else downwards.
        patience: epochs without an improvement.
        min_delta: an improvement is a change by more than this.
        restore_best: the run ends with the weights of its best epoch, whether it stops early or not.

    >>> rows = [{"val_loss": v} for v in (0.5, 0.4, 0.6, 0.7)]
    >>> Patience(patience=2).reason(rows, 0.0)
    'val_loss has not improved for 2 epochs (best 0.4 at epoch 2)'

    Reference: L. Prechelt, "Early Stopping - But When?", 1998; lecture 002 (St Petersburg University),
    "Regularisation", early stopping.
    """

    metric: str = "val_loss"
    patience: int = 10
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self) -> None:
        _patience(self)

    def reason(self, history: Sequence[Row], seconds: float) -> str:
        return _waited(history, self.metric, self.patience, self.min_delta)


@dataclass(frozen=True)
class Target(Criterion):
    """Stops when a metric has reached a value.

    Args:
        metric: a column of the history.
        value: to reach; accuracies and overlaps from below, everything else from above.

    >>> Target(value=0.9).reason([{"val_accuracy": 0.91}], 0.0)
    'val_accuracy 0.91 has reached 0.9'
    """

    metric: str = "val_accuracy"
    value: float = 0.99

    def reason(self, history: Sequence[Row], seconds: float) -> str:
        found = history[-1][self.metric]
        reached = found == self.value or better(self.metric, found, self.value)
        return f"{self.metric} {found:.4g} has reached {self.value:g}" if reached else ""


@dataclass(frozen=True)
class TimeBudget(Criterion):
    """Stops when the run has used its time; checked after every step, so the last epoch may be a short one.

    Args:
        seconds: of training and validation in all, those of an earlier part of a resumed run included.

    >>> TimeBudget(60).reason([], 61.0)
    'the time budget of 60 s is used up'
    """

    seconds: float = 3600.0

    def __post_init__(self) -> None:
        _positive(self, "seconds")

    def reason(self, history: Sequence[Row], seconds: float) -> str:
        return f"the time budget of {self.seconds:g} s is used up" if seconds >= self.seconds else ""


@dataclass(frozen=True)
class Plateau:
    """Lowers the learning rate when a metric no longer improves; a factor on top of any schedule.

        eta_t = scale * schedule(t);  scale <- max(floor, factor * scale) after `patience` epochs without improvement

    No criterion, but of the same kind: the scale is a function of the history, so it survives a kill. Choose it where
    the length of the run is not known; a schedule that falls to zero needs none.

    Args:
        metric: a column of the history; "" is val_loss, or loss without a validation source.
        factor: of the scale, between 0 and 1.
        patience: epochs without an improvement before each factor.
        min_delta: an improvement is a change by more than this.
        floor: the smallest scale.

    >>> Plateau(metric="loss", factor=0.1, patience=2).scale([{"loss": v} for v in (3.0, 2.0, 2.0, 2.0, 1.0, 1.0)])
    0.1
    """

    metric: str = ""
    factor: float = 0.1
    patience: int = 10
    min_delta: float = 1e-4
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise InputError(f"Plateau.factor must lie between 0 and 1, got {self.factor!r}; for example 0.1")
        if not 0 <= self.floor < 1:
            raise InputError(f"Plateau.floor must lie from 0 to below 1, got {self.floor!r}")
        _patience(self)

    def scale(self, history: Sequence[Row]) -> float:
        """Returns the factor on the schedule after these epochs."""
        if not history:
            return 1.0
        metric = self.metric or ("val_loss" if "val_loss" in history[0] else "loss")
        scale, best, waited = 1.0, history[0][metric], 0
        for row in history[1:]:
            if better(metric, row[metric], best, self.min_delta):
                best, waited = row[metric], 0
                continue
            waited += 1
            if waited == self.patience:
                scale, waited = max(self.floor, scale * self.factor), 0
        return scale


CRITERIA = (GradientNorm, WeightChange, LossStalled, Patience, Target, TimeBudget)


def check_columns(criteria: Sequence[Any], columns: Sequence[str]) -> None:
    """Refuses a criterion or plateau that watches a column which the run's history will not have.

    Raises:
        InputError: the columns that it will have.
    """
    for criterion in criteria:
        metric = getattr(criterion, "metric", "")
        if metric and metric not in columns:
            hint = "; give fit a validation source" if metric.startswith("val_") else ""
            raise InputError(f"{criterion} watches {metric!r}, which this run has not: {', '.join(columns)}{hint}")


def _waited(history: Sequence[Row], metric: str, patience: int, margin: float) -> str:
    best = best_row(history, metric, margin)
    if len(history) - 1 - best < patience:
        return ""
    return f"{metric} has not improved for {patience} epochs (best {history[best][metric]:.4g} at epoch {best + 1})"


def _positive(value: Any, name: str) -> None:
    number = getattr(value, name)
    if not (isinstance(number, (int, float)) and math.isfinite(number) and number > 0):
        raise InputError(f"{type(value).__name__}.{name} must be a number above 0, got {number!r}")


def _patience(value: Any) -> None:
    if not isinstance(value.patience, int) or isinstance(value.patience, bool) or value.patience < 1:
        raise InputError(f"{type(value).__name__}.patience must be a whole number from 1, got {value.patience!r}")
    if not value.min_delta >= 0:
        raise InputError(f"{type(value).__name__}.min_delta must be at least 0, got {value.min_delta!r}")
