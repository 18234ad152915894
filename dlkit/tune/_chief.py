"""The chief of a search: gives trials out, takes their results, and knows what to do when a worker is lost."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_tuner

from dlkit._errors import InputError
from dlkit.tune import _records

ATTEMPTS = 3  # a trial whose process was killed this often counts as failed
SILENT = 20.0  # seconds without a sign of life after which a trial goes to another worker
INFEASIBLE_RUN = 100  # so many configurations in a row that break a constraint end the search
SAME_ERROR = 3  # so many first trials with one error end the search; one is enough for an error of an import
_IMPORTS = ("ImportError", "ModuleNotFoundError", "SyntaxError", "NameError")


class Chief:
    """KerasTuner's oracle protocol around any of its oracles, with records of its own.

    What an oracle knows is a function of the events it saw: trials given out and results told, in order. A chief that
    starts again shows a fresh oracle the same events, so it goes on with the same suggestions whatever the oracle
    keeps in memory; a trial that was under way is given out first.

    Args:
        oracle: a fresh KerasTuner oracle whose space is known.
        directory: of the search.
        budget: epochs of all trials together; no new trial starts beyond it.
        epochs: of a trial whose oracle does not say how many.
        runs: of each trial: seeds or folds; each costs its epochs.
        restarts: promoted trials start again and cost all their epochs, instead of continuing.
        attempts, silent: see ATTEMPTS and SILENT.
    """

    def __init__(
        self, oracle: Any, directory: Path, budget: int, epochs: int, *, runs: int = 1, restarts: bool = False,
        attempts: int = ATTEMPTS, silent: float = SILENT,
    ) -> None:  # fmt: skip
        self.oracle, self.directory, self.budget, self.epochs = oracle, directory, budget, epochs
        self.runs, self.restarts = runs, restarts
        self.attempts, self.silent = attempts, silent
        self.error: BaseException | None = None
        self.finished = False
        self.lock = threading.RLock()
        self.ended: dict[str, dict[str, Any]] = {}
        self._started: dict[str, int] = {}
        self._order = 0
        self._age: dict[str, float] = {}
        self._kills: dict[str, int] = {}
        oracle.max_trials = None  # the budget decides; a limit would also change the form of the trials' ids
        oracle.max_consecutive_failed_trials = math.inf
        oracle.verbose = 0
        self._replay()

    # KerasTuner's protocol ------------------------------------------------------------------------

    def create_trial(self, tuner_id: str) -> Any:
        """Gives out a trial: RUNNING with values, IDLE while others may still need this worker, or STOPPED."""
        with self.lock, self._failing():
            waiting = self.oracle.ongoing_trials
            if self.error is not None or self.finished:
                return _answer("STOPPED")
            fresh = tuner_id not in waiting and not self.oracle._retry_queue
            if fresh and (self._committed() >= self.budget or self._stuck()):
                self.finished = not waiting
                return _answer("IDLE" if waiting else "STOPPED")
            trial = self.oracle.create_trial(tuner_id)
            if trial.status in ("IDLE", "STOPPED"):
                self.finished = not waiting  # an oracle that waits for nobody waits for ever
                return _answer("IDLE" if waiting else "STOPPED")
            self._age[trial.trial_id] = 0.0
            if trial.trial_id not in self._started:
                self._started[trial.trial_id] = self._next_order()
                self._record("started", trial, {"started": self._started[trial.trial_id], "tuner": tuner_id})
            return trial

    def get_trial(self, trial_id: str) -> Any:
        """Returns a trial; a worker asks for its own every few seconds as a sign of life."""
        with self.lock:
            self._age[trial_id] = 0.0
            return self.oracle.get_trial(trial_id)

    def end_trial(self, trial: Any) -> None:
        """Takes a result: from the worker's record, or what a worker without records told by update_trial."""
        with self.lock:
            if trial.trial_id not in self.ongoing.values():
                return  # the second answer to a trial that was given out twice
            with contextlib.suppress(Exception), self._failing():
                self._take(trial.trial_id, trial.status)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.oracle, name)  # the rest of the protocol: spaces, best trials, metrics

    # what the search asks -------------------------------------------------------------------------

    @property
    def ongoing(self) -> dict[str, str]:
        """Tuner id to trial id of the trials that are under way."""
        return {tuner: trial.trial_id for tuner, trial in self.oracle.ongoing_trials.items()}

    def spent(self) -> int:
        """Epochs of all ended trials; a promoted one counts what it added, an infeasible one nothing."""
        return spent(dict(self.ended), self.epochs, self.runs, self.restarts)

    def lost(self, tuner_id: str, reason: str) -> None:
        """Gives the trial of a worker that is no more to the next one; after some attempts it has failed."""
        with self.lock:
            trial = self.oracle.ongoing_trials.get(tuner_id)
            if trial is None:
                return
            trial_id = trial.trial_id
            self._kills[trial_id] = self._kills.get(trial_id, 0) + 1
            folder = _records.trial_folder(self.directory, trial_id)
            if (folder / "result.json").exists():
                self._take(trial_id, "COMPLETED")  # it had finished
            elif self._kills[trial_id] >= self.attempts:
                self._end(trial_id, {"status": "FAILED", "kind": "lost", "message": f"{self.attempts} times {reason}"})
            else:
                self.oracle.ongoing_trials.pop(tuner_id)
                self.oracle._retry_queue.append(trial_id)

    def silent_tuners(self, elapsed: float) -> list[str]:
        """Returns the tuners that have not been heard of for too long, `elapsed` seconds after the last call.

        A long pause of the chief itself (a suspended machine) does not count against the workers.
        """
        with self.lock:
            found = []
            for tuner, trial_id in self.ongoing.items():
                self._age[trial_id] = self._age.get(trial_id, 0.0) + min(elapsed, 1.0)
                if self._age[trial_id] > self.silent:
                    found.append(tuner)
            return found

    # records --------------------------------------------------------------------------------------

    def _replay(self) -> None:
        held = _records.read_all(self.directory)
        events: dict[int, tuple[str, str]] = {}
        for trial_id, kinds in held.items():
            for record in kinds.values():
                events |= {record[k]: (trial_id, k) for k in ("started", "ended") if record.get(k) is not None}
        open_ends = [i for i, kinds in held.items() if "result" in kinds and "ended" not in kinds]
        for order in sorted(set(range(1, max(events, default=0))) - set(events)):
            if open_ends:  # the record of an end is damaged: its place in the order is free
                events[order] = (open_ends.pop(0), "ended")
        for order, (trial_id, what) in sorted(events.items()):
            self._order = order
            if what == "started":
                self._start_again(trial_id, held[trial_id], order)
            elif trial_id in self.ongoing.values():
                self._end(trial_id, held[trial_id].get("ended") or held[trial_id]["result"], order)
        self._check_errors()
        for trial in sorted(self.oracle.ongoing_trials.values(), key=lambda t: t.trial_id, reverse=True):
            self.oracle._retry_queue.append(trial.trial_id)  # KerasTuner takes the last one first
        self.oracle.ongoing_trials.clear()
        self.oracle.tuner_ids.clear()

    def _start_again(self, trial_id: str, kinds: dict[str, dict[str, Any]], order: int) -> None:
        """Lets the oracle suggest the trial anew; the recorded values win should they differ."""
        for _ in range(1 + int(trial_id)):
            number = len(self.oracle.trials)
            trial = self.oracle.create_trial(f"replayed {number}")
            if trial.status != "RUNNING" or trial.trial_id == trial_id:
                break
            self._started.setdefault(trial.trial_id, order)  # its records are gone; it is run again
        if trial.status != "RUNNING":
            hyperparameters = self.oracle.get_space()
            trial = keras_tuner.engine.trial.Trial(hyperparameters, trial_id=trial_id, status="RUNNING")
            self.oracle.trials[trial_id] = trial
            self.oracle.ongoing_trials[f"replayed {trial_id}"] = trial
        record = next(r for r in (kinds.get("started"), kinds.get("ended")) if r is not None)
        if dict(trial.hyperparameters.values) != record["values"]:
            trial.hyperparameters.values = dict(record["values"])
            self.oracle._record_values(trial)
        self._started[trial_id] = order

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Keeps an error of the chief itself, a full disk for example, for whoever waits for the search."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def _take(self, trial_id: str, status: str) -> None:
        folder = _records.trial_folder(self.directory, trial_id)
        result = _records.read(folder, "result")
        if result is None:  # a worker that is not ours
            metrics = self.oracle.trials[trial_id].metrics
            told = {name: metrics.get_last_value(name) for name in metrics.metrics}
            result = {"status": status if told else "FAILED", "metrics": told, "message": ""}
        self._end(trial_id, result)
        self._check_errors()

    def _end(self, trial_id: str, result: dict[str, Any], order: int | None = None) -> None:
        """Tells the oracle how a trial ended and records it; with `order` it was recorded before."""
        trial = self.oracle.trials[trial_id]
        metrics = result.get("metrics") or {}
        if result["status"] == "COMPLETED":
            if self.oracle.objective.name not in metrics:
                raise InputError(
                    f"objective {self.oracle.objective.name!r} is not in the history; it has {', '.join(metrics)}"
                )
            trial.metrics = type(trial.metrics)()
            self.oracle.update_trial(trial_id, metrics)
        trial.status = "COMPLETED" if result["status"] == "COMPLETED" else "FAILED"
        trial.message = result.get("message") or None
        self.oracle.end_trial(trial)
        kept = {key: result.get(key) for key in ("status", "kind", "metrics", "message", "seconds")}
        kept |= {
            "started": self._started[trial_id],
            "ended": order or self._next_order(),
            "score": None if trial.score is None else float(trial.score),
        }
        self.ended[trial_id] = kept | {"values": dict(trial.hyperparameters.values)}
        self._record("ended", trial, kept)

    def _record(self, kind: str, trial: Any, more: dict[str, Any]) -> None:
        folder = _records.trial_folder(self.directory, trial.trial_id)
        _records.write(folder, kind, {"id": trial.trial_id, "values": dict(trial.hyperparameters.values)} | more)

    def _next_order(self) -> int:
        self._order += 1
        return self._order

    def _check_errors(self) -> None:
        """Ends the search where every trial so far failed with one error: it is the program's."""
        failed = [r for r in self.ended.values() if r["status"] == "FAILED" and r.get("kind") == "error"]
        if not failed or len(failed) < len(self.ended):
            infeasible = [r for r in self.ended.values() if r["status"] == "INFEASIBLE"]
            if len(infeasible) == len(self.ended) >= INFEASIBLE_RUN:
                raise InputError(
                    f"none of {INFEASIBLE_RUN} configurations meets the constraints: {infeasible[-1]['message']}"
                )
            return
        last = [record["message"].strip().splitlines()[-1] for record in failed]
        enough = 1 if last[0].split(":")[0].split(".")[-1] in _IMPORTS else SAME_ERROR
        if len(last) >= enough and len(set(last)) == 1:
            raise RuntimeError(f"every trial failed with the same error:\n{failed[0]['message']}")

    def _stuck(self) -> bool:
        """Whether the last configurations all broke a constraint: they cost nothing, so no budget would end it."""
        last = list(self.ended.values())[-INFEASIBLE_RUN:]  # in the order in which they ended
        return len(last) == INFEASIBLE_RUN and all(record["status"] == "INFEASIBLE" for record in last)

    def _committed(self) -> int:
        running = [trial.hyperparameters.values for trial in self.oracle.ongoing_trials.values()]
        return self.spent() + sum(_cost(values, self.epochs, self.runs, self.restarts) for values in running)


def spent(ended: dict[str, dict[str, Any]], epochs: int, runs: int, restarts: bool) -> int:
    """Returns the epochs of ended trials; the arguments are those of `Chief`."""
    costs = [_cost(r["values"], epochs, runs, restarts) for r in ended.values() if r["status"] != "INFEASIBLE"]
    return sum(costs)


def _cost(values: dict[str, Any], epochs: int, runs: int, restarts: bool) -> int:
    begun = 0 if restarts else int(values.get("tuner/initial_epoch") or 0)
    return runs * (int(values.get("tuner/epochs") or epochs) - begun)


def _answer(status: str) -> Any:
    return keras_tuner.engine.trial.Trial(keras_tuner.HyperParameters(), trial_id="none", status=status)


class Clock:
    """Tells how many seconds have passed since it was last asked."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> float:
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return elapsed
