"""Oracles for KerasTuner that give most trials few epochs: successive halving without waiting, and a model on top.

They work with anybody's hypermodel: like KerasTuner's Hyperband they hand out the trial values `tuner/epochs`,
`tuner/initial_epoch` and, for a trial that continues another, `tuner/trial_id`.
"""

import math
from typing import Any

import keras_tuner
import numpy as np

from dlkit._errors import InputError


class Asha(keras_tuner.Oracle):
    """Asynchronous successive halving: whoever is in the best third of a rung goes on, without waiting for the rung.

        rungs r_0 < ... < r_K = max_epochs,  r_k = ceil(max_epochs / factor ** (K - k)), r_0 >= min_epochs

    A trial at rung k is continued to rung k + 1 as soon as it is among the best floor(n_k / factor) of the n_k trials
    that finished rung k; otherwise a new trial starts, as many at each rung as in Hyperband's brackets, so that a
    first rung that tells little costs little. Against Hyperband: no bracket must fill before anything is promoted, so
    workers never idle and the search has no fixed length.

    Args:
        objective: what a trial reports, a name or a `keras_tuner.Objective`.
        max_epochs: epochs of the last rung.
        factor: the share promoted is 1 / factor, and each rung is `factor` times as long as the one before.
        min_epochs: the first rung is at least this long.
        max_trials: the search ends after this many trials (a promotion counts as one); None never ends it.
        seed: of the suggestions. Suggestion i is a function of the seed, i and the finished trials alone.
        hyperparameters, allow_new_entries, tune_new_entries, max_retries_per_trial, max_consecutive_failed_trials: as
            in every KerasTuner oracle.

    Raises:
        InputError: a factor below 2, or epochs out of range.

    >>> Asha("val_accuracy", max_epochs=27, factor=3).rungs
    (1, 3, 9, 27)

    Reference: Li et al., 2020, "A System for Massively Parallel Hyperparameter Tuning", algorithm 2,
    https://arxiv.org/abs/1810.05934
    """

    def __init__(
        self,
        objective: Any = None,
        max_epochs: int = 100,
        factor: int = 3,
        min_epochs: int = 1,
        max_trials: int | None = None,
        seed: int | None = None,
        hyperparameters: Any = None,
        allow_new_entries: bool = True,
        tune_new_entries: bool = True,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
    ):
        if factor < 2 or not 1 <= min_epochs <= max_epochs:
            raise InputError(
                f"factor must be at least 2 and 1 <= min_epochs <= max_epochs; "
                f"got factor={factor}, min_epochs={min_epochs}, max_epochs={max_epochs}"
            )
        super().__init__(
            objective=objective,
            max_trials=max_trials,
            hyperparameters=hyperparameters,
            allow_new_entries=allow_new_entries,
            tune_new_entries=tune_new_entries,
            seed=None if seed is None else seed + 1,  # KerasTuner takes 0 for "no seed"
            max_retries_per_trial=max_retries_per_trial,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        self.max_epochs, self.factor, self.min_epochs = max_epochs, factor, min_epochs

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which trials are compared, the shortest first."""
        rungs: list[int] = []
        epochs = float(self.max_epochs)
        while epochs >= self.min_epochs:
            rungs.insert(0, math.ceil(epochs - 1e-9))
            epochs /= self.factor
        return tuple(rungs)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Answers KerasTuner's request for the next trial: a promotion where one is due, else a new suggestion."""
        return self._promotion() or self._start(trial_id)

    def _promotion(self) -> dict[str, Any] | None:
        rungs = self.rungs
        continued = {trial.hyperparameters.values.get("tuner/trial_id") for trial in self.trials.values()}
        for k in reversed(range(len(rungs) - 1)):
            done = self._ranked(rungs[k])
            for trial in done[: len(done) // self.factor]:
                if trial.trial_id not in continued:
                    values = dict(trial.hyperparameters.values)
                    values |= {"tuner/epochs": rungs[k + 1], "tuner/initial_epoch": rungs[k]}
                    values["tuner/trial_id"] = trial.trial_id
                    return {"status": "RUNNING", "values": values}
        return None

    def _start(self, trial_id: str) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, int(trial_id)])
        for _ in range(self._max_collisions):
            values = self._suggest(random)
            if not self._duplicate(values):
                values |= {"tuner/epochs": self._first_rung(), "tuner/initial_epoch": 0}
                return {"status": "RUNNING", "values": values}
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}  # the space is exhausted

    def _first_rung(self) -> int:
        """Where the next new trial starts: as many at each rung, and in the order, as Hyperband's brackets have it."""
        rungs = self.rungs
        sizes = [math.ceil(len(rungs) / (k + 1) * self.factor**k) for k in reversed(range(len(rungs)))]
        started = sum(not t.hyperparameters.values.get("tuner/initial_epoch") for t in self.trials.values())
        return rungs[int(np.searchsorted(np.cumsum(sizes), started % sum(sizes), side="right"))]

    def _suggest(self, random: np.random.Generator) -> dict[str, Any]:
        """Draws the active hyperparameters uniformly (on their own scale)."""
        return self._fill(lambda hp: random.uniform())

    def _fill(self, place: Any) -> dict[str, Any]:
        """Walks the space and sets each active hyperparameter to the value at `place(hp)` in the unit interval."""
        chosen = keras_tuner.HyperParameters()
        for hp in self.hyperparameters.space:
            chosen.merge([hp])
            if chosen.is_active(hp):
                chosen.values[hp.name] = _value(hp, place(hp))
        return chosen.values

    def _ranked(self, epochs: int) -> list[Any]:
        """The trials that finished this rung, the best first; equal scores in the order of their ids."""
        sign = -1 if self.objective.direction == "max" else 1
        done = [
            trial
            for trial in self.trials.values()
            if trial.status == "COMPLETED" and trial.hyperparameters.values.get("tuner/epochs") == epochs
        ]
        return sorted(done, key=lambda trial: (sign * trial.score, trial.trial_id))

    def _compute_values_hash(self, values: dict[str, Any]) -> str:
        return super()._compute_values_hash({k: v for k, v in values.items() if not k.startswith("tuner/")})

    def get_state(self) -> dict[str, Any]:
        """Returns what KerasTuner saves; everything else follows from the trials."""
        return super().get_state() | {
            "max_epochs": self.max_epochs,
            "factor": self.factor,
            "min_epochs": self.min_epochs,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back what `get_state` returned."""
        super().set_state(state)
        self.max_epochs, self.factor, self.min_epochs = state["max_epochs"], state["factor"], state["min_epochs"]


class Bohb(Asha):
    """Asha whose new trials come from a model of the good ones instead of from chance.

        suggest  argmax over candidates x ~ l of  l(x) / g(x)

    l and g are kernel densities over the good and the other configurations, on the unit cube of the hyperparameters'
    own scales. The configurations are those of the longest rung that enough trials (hyperparameters + 2) have finished.
    A share `random_fraction` of the suggestions stays random, so that the search cannot lock itself in.

    Args:
        good_fraction: the share of the configurations that l is built on, never fewer than hyperparameters + 1.
        random_fraction: the share of suggestions that are drawn uniformly.
        candidates: draws from l among which the best ratio is taken.
        objective, max_epochs, factor, min_epochs, max_trials, seed and the rest: as in `Asha`.

    >>> Bohb("val_accuracy", max_epochs=9).rungs
    (1, 3, 9)

    Reference: Falkner, Klein and Hutter, 2018, "BOHB", equations 3 to 5, https://arxiv.org/abs/1807.01774
    """

    def __init__(
        self,
        objective: Any = None,
        max_epochs: int = 100,
        factor: int = 3,
        *,
        good_fraction: float = 0.15,
        random_fraction: float = 1 / 3,
        candidates: int = 64,
        **kwargs: Any,
    ):
        super().__init__(objective, max_epochs, factor, **kwargs)
        self.good_fraction, self.random_fraction, self.candidates = good_fraction, random_fraction, candidates

    def _suggest(self, random: np.random.Generator) -> dict[str, Any]:
        good, bad = self._parts()
        if len(good) < 2 or random.uniform() < self.random_fraction:
            return super()._suggest(random)
        width = _bandwidth(good), _bandwidth(bad)
        best, best_ratio = None, -math.inf
        for _ in range(self.candidates):
            centre = good[random.integers(len(good))]
            values = self._fill(lambda hp, centre=centre: _near(hp, centre, width[0], random))
            point = self._point(values)
            ratio = _log_density(point, good, width[0], self._sizes) - _log_density(point, bad, width[1], self._sizes)
            if ratio > best_ratio and not self._duplicate(values):
                best, best_ratio = values, ratio
        return super()._suggest(random) if best is None else best

    def _parts(self) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """The good and the other configurations of the longest rung with enough of them; empty before that."""
        enough = len(self.hyperparameters.space) + 2
        for epochs in reversed(self.rungs):
            ranked = self._ranked(epochs)
            if len(ranked) >= enough:
                points = [self._point(trial.hyperparameters.values) for trial in ranked]
                cut = max(enough - 1, math.ceil(self.good_fraction * len(points)))
                return points[:cut], points[min(cut, len(points) - cut) :]
        return [], []

    def _point(self, values: dict[str, Any]) -> dict[str, float]:
        return {hp.name: _place(hp, values[hp.name]) for hp in self.hyperparameters.space if hp.name in values}

    @property
    def _sizes(self) -> dict[str, int]:
        """Name to number of values for the hyperparameters whose values have no order; 0 for the others."""
        return {hp.name: _unordered(hp) for hp in self.hyperparameters.space}


def _unordered(hp: Any) -> int:
    if isinstance(hp, keras_tuner.engine.hyperparameters.Boolean):
        return 2
    if isinstance(hp, keras_tuner.engine.hyperparameters.Choice) and not hp.ordered:
        return len(hp.values)
    return 0


def _place(hp: Any, value: Any) -> float:
    """Where a value lies in the unit interval; 0.5 for a fixed one."""
    try:
        return float(hp.value_to_prob(value))
    except (AttributeError, NotImplementedError, TypeError):
        return 0.5


def _value(hp: Any, place: float) -> Any:
    return hp.prob_to_value(min(max(place, 0.0), 1.0 - 1e-12))


def _near(hp: Any, centre: dict[str, float], width: dict[str, float], random: np.random.Generator) -> float:
    """Draws a place near the centre: a reflected normal for ordered values, the same or any for unordered ones."""
    if hp.name not in centre:
        return random.uniform()
    if _unordered(hp):
        return centre[hp.name] if random.uniform() < 1 - width.get(hp.name, 0.3) else random.uniform()
    place = abs(centre[hp.name] + width.get(hp.name, 0.2) * random.standard_normal())
    return 1 - abs(1 - place) if place <= 2 else random.uniform()


def _bandwidth(points: list[dict[str, float]]) -> dict[str, float]:
    """Three times Scott's rule per hyperparameter, as in the paper's code, never below 0.05 nor above 0.5."""
    names = {name for point in points for name in point}
    widths = {}
    for name in names:
        places = [point[name] for point in points if name in point]
        spread = float(np.std(places)) if len(places) > 1 else 0.2
        widths[name] = min(0.5, max(0.05, 3 * 1.06 * spread * len(places) ** (-1 / (len(names) + 4))))
    return widths


def _log_density(
    point: dict[str, float], points: list[dict[str, float]], width: dict[str, float], sizes: dict[str, int]
) -> float:
    """The log of the mean over `points` of the product of kernels of the hyperparameters in `point`."""
    if not points:
        return 0.0
    logs = np.zeros(len(points))
    for name, place in point.items():
        others = np.array([other.get(name, np.nan) for other in points])
        h = width.get(name, 0.3)
        if sizes[name]:
            kernel = np.where(np.abs(others - place) < 1e-9, 1 - h + h / sizes[name], h / sizes[name])
        else:
            kernel = np.exp(-0.5 * ((others - place) / h) ** 2) / (h * math.sqrt(2 * math.pi)) + 1e-3
        logs += np.log(np.where(np.isnan(others), 1.0, kernel))
    top = logs.max()
    return float(top + np.log(np.mean(np.exp(logs - top))))
