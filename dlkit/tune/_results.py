"""What a search gives back, read from its records."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dlkit._errors import InputError
from dlkit.train import Recipe
from dlkit.tune import _job, _records
from dlkit.tune._chief import spent
from dlkit.tune.oracles import sign


@dataclass(frozen=True)
class TrialResult:
    """One trial: what was tried, how far it was trained and how good it was.

    Attributes:
        id: KerasTuner's trial id.
        status: "COMPLETED", "FAILED" (the reason or traceback is in `message`) or "INFEASIBLE" (violates a constraint).
        score: the objective at the last epoch, None if there is none.
        epochs: epochs trained, those of the trials it continues included.
        values: hyperparameter name to value.
        model: keyword arguments of the builder.
        recipe: the recipe, the overrides of the space applied.
        run_dir: the folder of its run; `dlkit.train.load_run` reads it while its weights are kept.
        metrics: the last row of its history, the model's "parameters" and "macs", and "latency" if it was measured.
        seconds: from the build to the result.
    """

    id: str
    status: str
    score: float | None
    epochs: int
    values: dict[str, Any]
    model: dict[str, Any]
    recipe: Recipe
    run_dir: Path
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Search:
    """What a search gives back.

    Attributes:
        trials: best first; those without a score at the end.
        directory: where everything lies.
        epochs: trained in all trials together.
        objectives: the first one, and the second one where there is one.
    """

    trials: tuple[TrialResult, ...]
    directory: Path
    epochs: int
    objectives: tuple[str, ...] = ()

    @property
    def best(self) -> TrialResult:
        """The trial with the best score.

        Raises:
            InputError: no trial completed; the message holds the first failure.
        """
        if not self.trials or self.trials[0].score is None:
            raise InputError("no trial completed: " + (self.trials[0].message if self.trials else "none was started"))
        return self.trials[0]

    @property
    def front(self) -> tuple[TrialResult, ...]:
        """The trials that no other one beats in both objectives, by the first: the Pareto front.

        Raises:
            InputError: the search had no second objective, or no trial reports it.
        """
        if len(self.objectives) < 2:
            raise InputError('a front needs a second objective: search(..., second="macs")')
        first, second = self.objectives
        held = [t for t in self.trials if t.score is not None and second in t.metrics]
        if self.trials and not held:
            raise InputError(f"no trial reports {second!r}; they have {', '.join(self.trials[0].metrics)}")

        def cost(trial: TrialResult) -> tuple[float, float]:
            values = (trial.score or 0.0, trial.metrics[second])
            return values[0] * sign(first), values[1] * sign(second)

        front: list[TrialResult] = []
        for trial in sorted(held, key=cost):
            if not front or cost(trial)[1] < cost(front[-1])[1]:
                front.append(trial)
        return tuple(front)


def read(directory: str | Path, job: _job.Job, second: str = "") -> Search:
    """Returns what the records of a directory say, without a chief."""
    ended = {i: kinds["ended"] for i, kinds in _records.read_all(Path(directory)).items() if "ended" in kinds}
    return found(job, ended, second)


def found(job: _job.Job, ended: dict[str, dict[str, Any]], second: str) -> Search:
    """Returns the search that these records describe."""
    trials = [_result(job, trial_id, record) for trial_id, record in ended.items()]
    direction = sign(job.objective)
    ranked = sorted(trials, key=lambda t: (t.score is None, direction * (t.score or 0.0), t.id))
    epochs = spent(ended, job.recipe.epochs, job.runs, job.restarts)
    return Search(tuple(ranked), job.directory, epochs, (job.objective, second) if second else (job.objective,))


def _result(job: _job.Job, trial_id: str, record: dict[str, Any]) -> TrialResult:
    values = record["values"]
    overrides = job.overrides(values)
    recipe = replace(job.recipe, **overrides["recipe"])
    return TrialResult(
        id=trial_id, status=record["status"], score=record["score"],
        epochs=int(values.get("tuner/epochs") or recipe.epochs),
        values={name: value for name, value in values.items() if not name.startswith("tuner/")},
        model=overrides["model"], recipe=recipe, run_dir=_records.trial_folder(job.directory, trial_id) / "run",
        message=record.get("message") or "", metrics=dict(record.get("metrics") or {}),
        seconds=float(record.get("seconds") or 0.0),
    )  # fmt: skip
