"""Bayesian optimisation over trials of different lengths, an oracle for KerasTuner."""

import math
from typing import Any

import numpy as np

from dlkit._errors import InputError
from dlkit.tune._asha import Asha
from dlkit.tune._cube import Cube
from dlkit.tune._surrogate import GaussianProcess, expected_improvement, winsorize

Array = np.ndarray
RUNGS = 5  # the last ones: scores before a sixteenth of the epochs say too little
CANDIDATES = 400  # configurations among which the expected improvement is maximised
DENSITY_CANDIDATES = 64
POINTS = 200  # trials the process sees: the best half and the latest half
AHEAD = 3  # trials that the model starts before it continues any
GROWTH = 1.2  # the process's scales are found anew after this much more data
FAILURES = 100  # trials without a score that the process sees, the latest
LIVE = 150  # the best trials that a promotion is chosen from
APART = 0.06  # of a hyperparameter's range: closer to another trial in all of them, a new one would tell little


class Bohb(Asha):
    """Bayesian optimisation and trials of different lengths: a model chooses who starts and who goes on.

        f(x, epochs) ~ GP,   next = argmax E[max(f(x, max_epochs) - best, 0)]

    First 2 d trials spread over the d hyperparameters (a Sobol sequence). From then on half of the epochs go to new
    trials and half to continuing, by one rung, the one that promises most at `max_epochs`. A new trial maximises the
    expected improvement at `max_epochs` under a Gaussian process of configuration and epochs, which learns from all
    rungs how much an early score is worth. Or, a share `density_fraction` of them, it maximises BOHB's ratio
    l(x) / g(x) of kernel densities of the good and the other configurations at the longest rung with enough of them.
    A choice that differs from another trial by less than 6 % of every range is passed over for the model's next one:
    it would tell more about noise than about the space. Two models that err in different ways find the best more surely
    than each alone: `python benchmarks/search.py --data FOLDER`.

    Args:
        density_fraction: the share of new trials that come from the kernel densities.
        good_fraction: the share of the configurations that l is built on, never fewer than d + 1.
        factor: each rung is this much longer than the one before; only the last five rungs are used.
        objective, max_epochs, min_epochs, max_trials, seed and the rest: as in `Asha`.

    Raises:
        InputError: as `Asha`, or a fraction outside 0..1.

    >>> Bohb("val_accuracy", max_epochs=52).rungs
    (4, 7, 13, 26, 52)

    Reference: Falkner, Klein and Hutter, 2018, "BOHB", equations 3 to 5, https://arxiv.org/abs/1807.01774; Swersky,
    Snoek and Adams, 2014, "Freeze-Thaw Bayesian Optimization", section 4, https://arxiv.org/abs/1406.3896
    """

    def __init__(
        self,
        objective: Any = None,
        max_epochs: int = 100,
        factor: float = 2.0,
        *,
        density_fraction: float = 0.5,
        good_fraction: float = 0.15,
        **kwargs: Any,
    ):
        super().__init__(objective, max_epochs, factor, **kwargs)
        for name, given in (("density_fraction", density_fraction), ("good_fraction", good_fraction)):
            if not 0 <= given <= 1:
                raise InputError(f"{name} is a share from 0 to 1, got {given}")
        self.density_fraction, self.good_fraction = density_fraction, good_fraction
        self._rows: dict[str, Array] = {}  # trial id -> places; follows from the trials, so it is not saved
        self._scales: tuple[Any, Array] | None = None

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which trials are compared, the shortest first."""
        return super().rungs[-RUNGS:]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Answers KerasTuner's request for the next trial: a promotion if fewer epochs went there than to new ones."""
        first = self._initial + AHEAD
        started, continued = self.rungs[0] * (len(self._fresh()) - first), self._continued_epochs()
        due = continued <= started and len(self._done()) >= first
        return (self._promotion() if due else None) or self._start(trial_id)

    def _continued_epochs(self) -> int:
        """The epochs of all trials that continue others."""
        held = [trial.hyperparameters.values for trial in self.trials.values()]
        return sum(
            int(values["tuner/epochs"]) - int(values["tuner/initial_epoch"])
            for values in held
            if values.get("tuner/trial_id")
        )

    @property
    def _initial(self) -> int:
        return max(2 * len(Cube(self.hyperparameters.space)), 4)

    def _first_rung(self) -> int:
        return self.rungs[0]

    def _done(self) -> list[Any]:
        """The trials with a score, in the order in which they ended."""
        ended = [self.trials[i] for i in self.end_order]
        return [t for t in ended if t.status == "COMPLETED" and t.score is not None and math.isfinite(t.score)]

    def _without_score(self, done: list[Any]) -> list[Any]:
        """The latest trials that ended and are not `done`: they failed or broke a constraint."""
        scored = {trial.trial_id for trial in done}
        return [self.trials[i] for i in self.end_order if i not in scored][-FAILURES:]

    def _promotion(self) -> dict[str, Any] | None:
        """Continues the trial with the largest expected improvement at the last rung."""
        continued, done, cube = self._continued(), self._done(), Cube(self.hyperparameters.space)
        live = [t for t in done if t.trial_id not in continued and _epochs(t) in self.rungs[:-1]]
        if not live:
            return None
        scores = self._scores(live)
        live = [live[i] for i in np.argsort(-scores, kind="stable")[:LIVE]]
        model, _, y = self._model(cube, done)
        mean, deviation = model.predict(cube.features(self._places(cube, live)))
        return self._continue(live[int(np.argmax(expected_improvement(mean, deviation, float(y.max()))))])

    def _suggest(self, random: np.random.Generator) -> dict[str, Any]:
        cube, done, fresh = Cube(self.hyperparameters.space), self._done(), self._fresh()
        if not len(cube):
            return super()._suggest(random)
        if len(fresh) < self._initial:
            values = cube.values(_spread(len(cube), len(fresh), self.seed))
            return super()._suggest(random) if self._duplicate(values) else values
        if len(done) < self._initial:  # other workers are still busy with the first ones
            return super()._suggest(random)
        by_density = random.uniform() < self.density_fraction
        rows = self._by_density(cube, done, random) if by_density else self._by_improvement(cube, done, random)
        tried = self._places(cube, fresh)
        for row in rows:
            if not _near(row, tried, cube.kinds) and not self._duplicate(values := cube.values(row)):
                return values
        return super()._suggest(random)

    def _by_improvement(self, cube: Cube, done: list[Any], random: np.random.Generator) -> Array:
        """Candidates with the largest expected improvement at the last rung, the best first."""
        model, order, _ = self._model(cube, done)
        known = self._places(cube, [done[i] for i in order])
        mean, _ = model.predict(cube.features(known))
        top = known[np.argsort(-mean, kind="stable")]
        top = top[np.sort(np.unique(top, axis=0, return_index=True)[1])][:8]
        near = CANDIDATES // 15
        rows = [random.uniform(size=(CANDIDATES - 3 * near, len(cube)))]
        for width in (0.2, 0.1, 0.03):
            rows.append(_moved(top[random.integers(len(top), size=near)], width, cube.kinds, random))
        candidates = cube.settle(np.concatenate(rows))
        found, deviation = model.predict(cube.features(candidates))
        gain = expected_improvement(found, deviation, float(mean.max()))
        return candidates[np.argsort(-gain, kind="stable")]

    def _model(self, cube: Cube, done: list[Any]) -> tuple[GaussianProcess, Array, Array]:
        """The process given the trials, the indices of those it holds, and their scores as it sees them.

        Its scales are a function of the first GROWTH^k trials alone, so that a search that was interrupted goes on with
        the same model.
        """
        first = 1
        while (larger := math.ceil(first * GROWTH - 1e-9)) <= len(done):
            first = larger
        held = (first, cube.names)
        if self._scales is None or self._scales[0] != held:
            model = GaussianProcess(cube.features(np.full((1, len(cube)), 0.5)).shape[1])
            part = done[:first]
            model.fit_scales(
                cube.features(self._places(cube, part)), self._fidelity(part), winsorize(self._scores(part))
            )
            self._scales = (held, model.scales)
        scores = self._scores(done)
        y = winsorize(scores)
        order = np.arange(len(done))
        if len(done) > POINTS:
            order = np.union1d(np.argsort(-scores, kind="stable")[: POINTS // 2], order[-POINTS // 2 :])
        points = [done[i] for i in order]
        model = GaussianProcess(len(self._scales[1]) - 3)
        model.scales = self._scales[1]
        failed = self._without_score(done)  # as bad as the worst, or they come back for ever
        points += failed
        seen = np.concatenate([y[order], np.full(len(failed), y.min())])
        model.condition(cube.features(self._places(cube, points)), self._fidelity(points), seen)
        return model, order, y

    def _by_density(self, cube: Cube, done: list[Any], random: np.random.Generator) -> Array:
        """Draws from the density of the good configurations, the largest ratio to the density of the others first."""
        enough = len(cube) + 2
        for epochs in reversed(self.rungs):
            part = [t for t in done if _epochs(t) == epochs]
            if len(part) >= enough:
                break
        rows = self._places(cube, part)[np.argsort(-self._scores(part), kind="stable")]
        cut = min(max(enough - 1, int(self.good_fraction * len(rows))), len(rows))
        good, bad = rows[:cut], rows[-max(cut, len(rows) - cut) :]
        if failed := self._without_score(done):
            bad = np.concatenate([bad, self._places(cube, failed)])
        width, bad_width = _bandwidth(good), _bandwidth(bad)
        centres = good[random.integers(len(good), size=DENSITY_CANDIDATES)]
        drawn = np.clip(centres + 3 * width * random.standard_normal(centres.shape), 0, 1)
        anywhere = random.uniform(size=drawn.shape)
        jump = (cube.kinds > 0) & (random.uniform(size=drawn.shape) < np.clip(3 * width, 0.05, 0.5))
        drawn = np.where(jump | np.isnan(drawn), anywhere, np.where(cube.kinds > 0, centres, drawn))
        drawn = cube.settle(np.where(np.isnan(drawn), anywhere, drawn))
        ratio = _log_density(drawn, good, width, cube.kinds) - _log_density(drawn, bad, bad_width, cube.kinds)
        return drawn[np.argsort(-ratio, kind="stable")]

    def _places(self, cube: Cube, trials: list[Any]) -> Array:
        missing = [t for t in trials if len(self._rows.get(t.trial_id, ())) != len(cube)]
        for trial in missing:
            self._rows[trial.trial_id] = cube.row(trial.hyperparameters.values)
        return np.stack([self._rows[t.trial_id] for t in trials])

    def _scores(self, trials: list[Any]) -> Array:
        sign = 1.0 if self.objective.direction == "max" else -1.0
        return sign * np.array([t.score for t in trials], float)

    def _fidelity(self, trials: list[Any]) -> Array:
        """The logarithm of the epochs, 1 at the last rung."""
        return (
            np.log([_epochs(t) + 0.0 for t in trials]) / math.log(self.max_epochs)
            if self.max_epochs > 1
            else (np.ones(len(trials)))
        )

    def get_state(self) -> dict[str, Any]:
        """Returns what KerasTuner saves; everything else follows from the trials."""
        return super().get_state() | {"density_fraction": self.density_fraction, "good_fraction": self.good_fraction}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back what `get_state` returned."""
        super().set_state(state)
        self.density_fraction, self.good_fraction = state["density_fraction"], state["good_fraction"]


def _epochs(trial: Any) -> int:
    return int(trial.hyperparameters.values["tuner/epochs"])


def _spread(dimensions: int, index: int, seed: int) -> Array:
    """Point `index` of a sequence that fills the cube evenly."""
    from scipy.stats import qmc

    count = 2 ** math.ceil(math.log2(index + 2))
    return qmc.Sobol(dimensions, seed=np.random.default_rng(seed)).random(count)[index]


def _near(row: Array, tried: Array, kinds: Array) -> bool:
    """Whether one of the rows tried has the same values without an order and is within `APART` in the others.

    Where there are few hyperparameters with an order, less than half of their space may lie that near.
    """
    ordered = kinds == 0
    if not ordered.any():
        return False
    apart = min(APART, 0.5 * (0.5 / len(tried)) ** (1 / ordered.sum()))
    with np.errstate(invalid="ignore"):
        close = np.abs(tried - row) < np.where(ordered, apart, 1e-9)
    return bool((close | (np.isnan(tried) & np.isnan(row))).all(1).any())


def _moved(rows: Array, width: float, kinds: Array, random: np.random.Generator) -> Array:
    """Moves about half of the places of each row; values without an order jump anywhere."""
    moved = np.clip(np.where(np.isnan(rows), 0.5, rows) + width * random.standard_normal(rows.shape), 0, 1)
    moved = np.where(kinds > 0, random.uniform(size=rows.shape), moved)
    anywhere = random.uniform(size=rows.shape)
    kept = np.where(np.isnan(rows), anywhere, rows)
    return np.where(random.uniform(size=rows.shape) < 0.5, moved, kept)


def _bandwidth(rows: Array) -> Array:
    """Scott's rule per column, over the rows in which it is active."""
    d = rows.shape[1]
    widths = np.full(d, 0.2)
    for column in range(d):
        places = rows[~np.isnan(rows[:, column]), column]
        if len(places) > 1:
            widths[column] = max(1e-3, 1.06 * float(places.std()) * len(places) ** (-1 / (4 + d)))
    return widths


def _log_density(points: Array, rows: Array, width: Array, kinds: Array) -> Array:
    """The log of the mean over `rows` of the product over the columns of kernels; inactive places count as 1."""
    away = points[:, None] - rows[None]
    with np.errstate(invalid="ignore"):
        ordered = -0.5 * (away / width) ** 2 - np.log(width)
        share = np.clip(3 * width, 0.05, 0.5)
        same = np.abs(away) < 1e-9
        levels = np.maximum(kinds, 1)
        unordered = np.log(np.where(same, 1 - share + share / levels, share / levels))
    logs = np.where(np.isnan(away), 0.0, np.where(kinds > 0, unordered, ordered)).sum(-1)
    top = logs.max(1, keepdims=True)
    return top[:, 0] + np.log(np.exp(logs - top).mean(1) + 1e-32)
