"""The search: KerasTuner asks, `dlkit.train.fit` answers, and a promoted trial continues where it stopped."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from dlkit._errors import InputError
from dlkit._files import write_json
from dlkit.train import Recipe, fit
from dlkit.train._progress import bar
from dlkit.tune import oracles

Space = Callable[[keras_tuner.HyperParameters], Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class TrialResult:
    """One trial: what was tried, how far it was trained and how good it was.

    Attributes:
        id: KerasTuner's trial id.
        status: "COMPLETED" or "FAILED"; a failed one carries its traceback in `message`.
        score: the objective at the last epoch, None if it failed.
        epochs: epochs trained, those of the trials it continues included.
        values: hyperparameter name to value.
        model: keyword arguments of the builder.
        recipe: the recipe, the overrides of the space applied.
        run_dir: the folder of its run; `dlkit.train.load_run` reads it.
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


@dataclass(frozen=True)
class Search:
    """What a search gives back: the trials, best first, and where they lie."""

    trials: tuple[TrialResult, ...]
    directory: Path
    epochs: int

    @property
    def best(self) -> TrialResult:
        """The trial with the best score.

        Raises:
            InputError: no trial completed; the message holds the first failure.
        """
        if not self.trials or self.trials[0].score is None:
            raise InputError("no trial completed: " + (self.trials[0].message if self.trials else "none was started"))
        return self.trials[0]


def search(
    build: Callable[..., keras.Model],
    space: Space,
    recipe: Recipe,
    train: Any,
    validation: Any,
    *,
    preprocess: Any,
    objective: str = "val_accuracy",
    oracle: str = "bohb",
    epochs_budget: int,
    directory: str | Path,
    seed: int = 0,
    verbose: bool = True,
) -> Search:
    """Searches `space` for the builder arguments and recipe fields with the best objective.

    Each trial is `fit(build(**model), recipe, ...)` in a run directory of its own. A trial that is promoted
    continues from its last checkpoint: weights, optimizer, schedule and position in the stream. The schedule spans
    `recipe.epochs` in every trial. A killed search continues when it is called again.

    Args:
        build: called with the "model" overrides of the space, for example `functools.partial(resnet_cifar, 8)`.
        space: `hp -> {"model": {...}, "recipe": {...}}`, see `default_space`.
        recipe: the recipe whose fields the space overrides; its epochs are the most that one trial trains.
        train, validation: sources; the validation source decides.
        preprocess: the input definition of every trial.
        objective: a column of the runs' history; "loss" or "mae" in its name means that less is better.
        oracle: a name of `ORACLES`.
        epochs_budget: epochs of all trials together; no new trial starts beyond it.
        directory: folder of the search; another search in it is refused.
        seed: of the suggestions and, with the trial's id, of each model's initial weights.
        verbose: show the progress with the time left and the best so far.

    Raises:
        InputError: the folder holds another search, or a name is unknown.
        RuntimeError: three trials failed one after the other; the message holds the traceback.

    Example: see README.md and `examples/tune_digits.py`.
    """
    directory = Path(directory)
    chosen = oracles.get(oracle, objective, recipe.epochs, epochs_budget, seed)
    identity = _identity(space, recipe, train, validation, preprocess, objective, oracle, seed)
    _claim(directory, identity)
    with bar("search", epochs_budget, show=verbose) as update:
        tuner = _Tuner(
            build, space, recipe, train, validation, preprocess, chosen, directory, epochs_budget, seed, update
        )
        tuner.search(verbose=0)
    trials = [tuner.result(trial) for trial in chosen.trials.values()]
    sign = -1 if chosen.objective.direction == "max" else 1
    ranked = sorted(trials, key=lambda t: (t.score is None, sign * (t.score or 0.0), t.id))
    return Search(tuple(ranked), directory, tuner.spent())


class _Overrides(keras_tuner.HyperModel):
    """Lets KerasTuner discover the space without building a model."""

    def __init__(self, space: Space):
        super().__init__()
        self._space = space

    def build(self, hp: Any) -> Any:
        overrides = self._space(hp)
        if not isinstance(overrides, Mapping) or set(overrides) - {"model", "recipe"}:
            raise InputError(f'a space returns {{"model": {{...}}, "recipe": {{...}}}}, got {overrides!r}')
        return {"model": dict(overrides.get("model", {})), "recipe": dict(overrides.get("recipe", {}))}


class _Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs a trial as a `fit`; all state that must survive is in KerasTuner's files and the run directories."""

    def __init__(
        self, build: Any, space: Space, recipe: Recipe, train: Any, validation: Any, preprocess: Any, oracle: Any,
        directory: Path, budget: int, seed: int, update: Any,
    ) -> None:  # fmt: skip
        self._make, self._recipe, self._train, self._validation = build, recipe, train, validation
        self._preprocess, self._budget, self._seed, self._update = preprocess, budget, seed, update
        super().__init__(oracle, _Overrides(space), directory=str(directory), project_name="trials")

    def pre_create_trial(self) -> None:
        spent = self.spent()
        self._update(min(spent, self._budget), self._best_text())
        if spent >= self._budget:
            self.oracle.max_trials = len(self.oracle.trials)  # the oracle then answers STOPPED

    def run_trial(self, trial: Any, **_: Any) -> dict[str, float]:
        result = self.result(trial)
        parent = trial.hyperparameters.values.get("tuner/trial_id")
        if parent and not result.run_dir.exists():
            shutil.copytree(Path(self.get_trial_dir(parent), "run"), result.run_dir)
        keras.utils.set_random_seed(_seed(self._seed, trial.trial_id))
        keras.utils.clear_session(free_memory=False)
        outcome = fit(
            self._make(**result.model), result.recipe, self._train, self._validation, preprocess=self._preprocess,
            run_dir=result.run_dir, stop_after=result.epochs, verbose=False,
        )  # fmt: skip
        row = outcome.history[-1]
        if self.oracle.objective.name not in row:
            raise keras_tuner.errors.FatalTypeError(
                f"objective {self.oracle.objective.name!r} is not in the history; it has {', '.join(row)}"
            )
        return {name: value for name, value in row.items() if name not in ("epoch", "step", "learning_rate")}

    def result(self, trial: Any) -> TrialResult:
        values = dict(trial.hyperparameters.values)
        overrides = self.hypermodel.build(trial.hyperparameters)
        recipe = dataclasses.replace(self._recipe, **overrides["recipe"])
        return TrialResult(
            id=trial.trial_id, status=str(trial.status), score=trial.score,
            epochs=int(values.get("tuner/epochs") or recipe.epochs),
            values={name: value for name, value in values.items() if not name.startswith("tuner/")},
            model=overrides["model"], recipe=recipe, run_dir=Path(self.get_trial_dir(trial.trial_id), "run"),
            message=trial.message or "",
        )  # fmt: skip

    def spent(self) -> int:
        """Epochs trained by all finished trials; a promoted one counts what it added."""
        finished = [
            t.hyperparameters.values for t in self.oracle.trials.values() if str(t.status) in ("COMPLETED", "FAILED")
        ]
        return sum(
            int(v.get("tuner/epochs") or self._recipe.epochs) - int(v.get("tuner/initial_epoch") or 0) for v in finished
        )

    def _best_text(self) -> str:
        best = self.oracle.get_best_trials(1)
        return f"best {self.oracle.objective.name} {best[0].score:.4f}" if best and best[0].score is not None else ""


def _seed(seed: int, trial_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{trial_id}".encode()).digest()[:4])


def _identity(
    space: Space, recipe: Recipe, train: Any, validation: Any, preprocess: Any, objective: str, oracle: str, seed: int
) -> dict[str, Any]:
    hp = keras_tuner.HyperParameters()
    space(hp)
    return {
        "space": hp.get_config()["space"],
        "recipe": recipe.to_dict(),
        "preprocess": preprocess.get_config(),
        "data": [train.fingerprint, validation.fingerprint],
        "objective": objective,
        "oracle": oracle,
        "seed": seed,
    }


def _claim(directory: Path, identity: dict[str, Any]) -> None:
    path = directory / "search.json"
    if not path.exists():
        write_json(path, identity)
        return
    held, now = json.loads(path.read_text()), json.loads(json.dumps(identity))
    differing = [name for name, value in now.items() if held.get(name) != value]
    if differing:
        raise InputError(
            f"{directory} holds another search (different: {', '.join(differing)}); choose another directory"
        )
