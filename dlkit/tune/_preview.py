"""What a search would do, before it does it: the space as a table, and how many trials reach which rung."""

import collections
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from rich.table import Table

from dlkit.train import Recipe
from dlkit.tune import _job, _records, oracles
from dlkit.tune._chief import Chief


@dataclass(frozen=True)
class Preview:
    """The space and the budget of a search; print it with rich.

    Attributes:
        space: one (name, kind, range, default, condition) of texts for each hyperparameter.
        rungs: epochs -> how many trials train so long; a promoted trial counts at each of its rungs.
        trials: configurations tried.
        epochs: trained in all.
    """

    space: tuple[tuple[str, str, str, str, str], ...]
    rungs: dict[int, int]
    trials: int
    epochs: int

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        table = Table("hyperparameter", "kind", "values", "default", "only if", title="space", title_justify="left")
        for row in self.space:
            table.add_row(*row)
        yield table
        rungs = Table("epochs", "trials", title="budget", title_justify="left")
        for epochs, count in self.rungs.items():
            rungs.add_row(str(epochs), str(count))
        yield rungs
        yield f"about {self.trials} configurations, {self.epochs} epochs in all"


def preview(
    space: Any,
    recipe: Recipe,
    *,
    epochs_budget: int,
    oracle: str = "bohb",
    objective: str = "val_accuracy",
    seed: int = 0,
) -> Preview:
    """Returns what `search` with these arguments would do; nothing is trained.

    The trials at each rung come from the oracle itself, played with scores drawn at random: a real search differs by
    the few trials that its scores decide.

    Raises:
        InputError: as `search`.

    >>> from dlkit.tune import default_space
    >>> preview(default_space, Recipe(epochs=9), epochs_budget=81, oracle="random").rungs
    {9: 9}
    """
    found = keras_tuner.HyperParameters()
    _job.overrides(space, found)
    chosen = oracles.get(oracle, objective, recipe.epochs, epochs_budget, seed)
    rows = tuple(_row(hp) for hp in found.space)
    if oracle in ("random", "bayesian"):
        count = -(-epochs_budget // recipe.epochs)
        return Preview(rows, {recipe.epochs: count}, count, count * recipe.epochs)
    chosen.hyperparameters = found.copy()
    chosen.hyperparameters.values = {}
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        chosen._set_project_dir(folder, "trials")
        chief = Chief(chosen, Path(folder), epochs_budget, recipe.epochs)
        while (trial := chief.create_trial("preview")).status == "RUNNING":
            result = {"status": "COMPLETED", "metrics": {objective: float(random.uniform())}, "message": ""}
            _records.write(_records.trial_folder(Path(folder), trial.trial_id), "result", result)
            chief.end_trial(trial)
        values = [record["values"] for record in chief.ended.values()]
        spent = chief.spent()
    rungs = collections.Counter(int(v.get("tuner/epochs") or recipe.epochs) for v in values)
    fresh = sum(not v.get("tuner/trial_id") for v in values)
    return Preview(rows, dict(sorted(rungs.items())), fresh, spent)


def _row(hp: Any) -> tuple[str, str, str, str, str]:
    config = hp.get_config()
    if "values" in config:
        values = ", ".join(str(value) for value in config["values"])
    elif "min_value" in config:
        values = f"{config['min_value']:g} to {config['max_value']:g}"
        values += f", step {config['step']:g}" if config.get("step") not in (None, 1) else ""
        values += ", log" if config.get("sampling") == "log" else ""
    else:
        values = "True, False" if type(hp).__name__ == "Boolean" else str(config.get("value", ""))
    conditions = " and ".join(f"{c.name} in {', '.join(map(str, c.values))}" for c in hp.conditions)
    default = f"{hp.default:g}" if isinstance(hp.default, float) else str(hp.default)
    return hp.name, type(hp).__name__.lower(), values, default, conditions
