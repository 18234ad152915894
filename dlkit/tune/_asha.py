"""Successive halving without waiting, an oracle for KerasTuner that gives most trials few epochs.

It works with anybody's hypermodel: like KerasTuner's Hyperband it hands out the trial values `tuner/epochs`,
`tuner/initial_epoch` and, for a trial that continues another, `tuner/trial_id`.
"""

import math
from typing import Any

import keras_tuner
import numpy as np

from dlkit._errors import InputError
from dlkit.tune._cube import fill


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
        factor: float = 3,
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
        rungs, continued = self.rungs, self._continued()
        for k in reversed(range(len(rungs) - 1)):
            done = self._ranked(rungs[k])
            for trial in done[: int(len(done) / self.factor)]:
                if trial.trial_id not in continued:
                    return self._continue(trial)
        return None

    def _continued(self) -> set[str]:
        """The ids of the trials that another one continues."""
        return {t.hyperparameters.values.get("tuner/trial_id", "") for t in self.trials.values()} - {""}

    def _fresh(self) -> list[Any]:
        """The trials that continue no other."""
        return [t for t in self.trials.values() if not t.hyperparameters.values.get("tuner/trial_id")]

    def _continue(self, trial: Any) -> dict[str, Any]:
        """The answer to KerasTuner that takes `trial` to the next rung."""
        reached = int(trial.hyperparameters.values["tuner/epochs"])
        values = dict(trial.hyperparameters.values)
        values["tuner/initial_epoch"] = reached
        values["tuner/epochs"] = self.rungs[self.rungs.index(reached) + 1]
        values["tuner/trial_id"] = trial.trial_id
        return {"status": "RUNNING", "values": values}

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
        return rungs[int(np.searchsorted(np.cumsum(sizes), len(self._fresh()) % sum(sizes), side="right"))]

    def _suggest(self, random: np.random.Generator) -> dict[str, Any]:
        """Draws the active hyperparameters uniformly (on their own scale)."""
        return fill(self.hyperparameters.space, lambda hp: random.uniform())

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
