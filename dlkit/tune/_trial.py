"""One trial: a build and a `fit`, continued from the trial it was promoted from."""

import hashlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dlkit._errors import InputError
from dlkit._files import new_folder
from dlkit.models import describe
from dlkit.train import _traced, fit
from dlkit.tune import _records
from dlkit.tune._job import Job

FACTS = ("parameters", "macs", "latency")
_NOT_METRICS = ("epoch", "step", "learning_rate", "seconds", "waiting")


class InfeasibleError(ValueError):
    """A configuration violates a constraint; it was not trained."""


def run(job: Job, trial_id: str, values: dict[str, Any]) -> dict[str, float]:
    """Trains a trial as far as its values say and returns its metrics, the model's facts among them.

    Raises:
        InfeasibleError: a constraint is violated; nothing was trained.
        InputError: no run reports the objective.
        Exception: whatever building or training raises.
    """
    overrides = job.overrides(values)
    recipe = replace(job.recipe, **overrides["recipe"])
    folder, origin = _records.trial_folder(job.directory, trial_id), _origin(job, trial_id)
    facts: dict[str, float] = {}
    rows = []
    for i, (train, validation) in enumerate(_parts(job)):
        keras.utils.set_random_seed(seed_of(job.seed, origin if i == 0 else f"{origin}/{i}"))
        keras.utils.clear_session(free_memory=False)
        model = _same(overrides["model"], job.build(**overrides["model"]))
        if i == 0:
            facts = _facts(job, model)
        rows.append(_fit(job, model, recipe, train, validation, folder / _part(i), values))
    metrics = {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]} | facts
    if len(rows) > 1:
        spread = np.std([row[job.objective] for row in rows], ddof=1) if job.objective in rows[0] else math.nan
        metrics[f"{job.objective}_std"] = float(spread)
    return metrics


# networks of this process's last trials with their overrides, the latest first, whose traced functions others may use
_networks: list[tuple[dict[str, Any], Any]] = []
KEPT = 4


def _same(overrides: dict[str, Any], model: Any) -> Any:
    """Returns a network of an earlier trial that is built like `model`, with the values of `model`, else `model`.

    `fit` then has nothing to trace again where only numbers differ, such as the rate or the weight decay. Alike are
    networks of the same overrides and the same configuration: a function in a layer may hold an override that its
    configuration does not show.
    """
    found = next((i for i, kept in enumerate(_networks) if _alike(kept, (overrides, model))), None)
    if found is None:
        _networks[:] = [(overrides, model), *_networks[: KEPT - 1]]
        return model
    alike = _networks[found][1]
    _networks.insert(0, _networks.pop(found))
    for variable, value in zip(alike.variables, model.variables, strict=True):
        variable.trainable = value.trainable
        variable.assign(value)
    return alike


def _alike(a: tuple[dict[str, Any], Any], b: tuple[dict[str, Any], Any]) -> bool:
    try:
        return bool(a[0] == b[0] and a[1].get_config() == b[1].get_config())
    except (NotImplementedError, ValueError):  # it cannot say how it is built; an array is neither equal nor unequal
        return False


def forget() -> None:
    """Drops the networks that were kept: another search may build others under the same names."""
    _networks.clear()


def seed_of(seed: int, trial_id: str) -> int:
    """Returns the seed of a trial's initial weights: a function of the search's seed and the trial's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{trial_id}".encode()).digest()[:4])


def _part(i: int) -> str:
    return "run" if i == 0 else f"run_{i}"


def _parts(job: Job) -> Iterator[tuple[Any, Any]]:
    """The runs of a trial: one, one for each seed, or one for each fold."""
    if not job.folds:
        for _ in range(job.seeds):
            yield job.train, job.validation
        return
    parts = job.train.split(*[1 / job.folds] * job.folds, seed=job.seed, stratify=job.train.labels is not None)
    for part in parts:
        yield job.train.subset(np.flatnonzero(~np.isin(job.train.rows, part.rows))), part


def _fit(
    job: Job, model: Any, recipe: Any, train: Any, validation: Any, run_dir: Path, values: dict[str, Any]
) -> dict[str, float]:
    epochs = int(values.get("tuner/epochs") or recipe.epochs)
    share = epochs / job.recipe.epochs
    stop_after = None
    if job.fidelity == "epochs":
        stop_after = epochs
        _continue(job, run_dir, values.get("tuner/trial_id"))
    elif job.fidelity == "fraction" and share < 1:
        train = train.subset(_first(train, share))
    elif job.fidelity == "size" and share < 1:
        side = max(8, round(math.sqrt(share) * job.preprocess.input_shape[0]))
        recipe = replace(recipe, sizes=((0.0, side),))
    with _traced.keeping():
        outcome = fit(
            model, recipe, train, validation, preprocess=job.preprocess, run_dir=run_dir, stop_after=stop_after,
            verbose=False,
        )  # fmt: skip
    row = {name: value for name, value in outcome.history[-1].items() if name not in _NOT_METRICS}
    if not math.isfinite(row.get(job.objective, 0.0)):
        raise FloatingPointError(f"the objective {job.objective} is {row[job.objective]}")
    return row


def _first(train: Any, share: float) -> np.ndarray:
    """The first samples of each class, so that a larger share contains a smaller one."""
    if train.labels is None:
        return np.arange(max(1, round(share * len(train))))
    chosen = [np.flatnonzero(train.labels == label) for label in np.unique(train.labels)]
    return np.sort(np.concatenate([rows[: max(1, round(share * len(rows)))] for rows in chosen]))


def _facts(job: Job, model: Any) -> dict[str, float]:
    """Parameters, multiply-adds and, with a `measure`, latency; refuses what violates a constraint."""
    facts = {"parameters": float(model.count_params())}
    try:
        macs = describe(model).multiply_adds
        facts |= {"macs": float(macs)} if macs is not None else {}
    except InputError:
        pass  # not a functional graph: there is nothing to count
    limits = dict(job.constraints or {})
    _refuse(facts, limits)
    if job.measure is not None:
        facts["latency"] = float(job.measure(model, job.preprocess))
        _refuse(facts, limits)
    return facts


def _refuse(facts: dict[str, float], limits: dict[str, float]) -> None:
    over = [f"{name} {facts[name]:g} > {limits[name]:g}" for name in limits if facts.get(name, 0.0) > limits[name]]
    if over:
        raise InfeasibleError(f"infeasible: {', '.join(over)}")


def _origin(job: Job, trial_id: str) -> str:
    """Returns the trial that the chain of promotions began with; without promotion it is the trial itself."""
    record = _records.read(_records.trial_folder(job.directory, trial_id), "started")
    parent = record["values"].get("tuner/trial_id") if record and job.fidelity == "epochs" else None
    return _origin(job, parent) if parent else trial_id


def _continue(job: Job, run_dir: Path, parent: str | None) -> None:
    """Copies the state of the trial that this one was promoted from; without it the trial trains from the start.

    Both give the same bits, because they have the same seed and the same stream.
    """
    if not parent or run_dir.exists():
        return
    held = _records.trial_folder(job.directory, parent) / run_dir.name
    newest = sorted((held / "checkpoints").glob("step_*.ckpt"))[-1:]
    if not newest:
        return
    with new_folder(run_dir) as copied:
        for name in ("recipe.json", "history.csv"):
            shutil.copy2(held / name, copied / name)
        (copied / "checkpoints").mkdir()
        shutil.copy2(newest[0], copied / "checkpoints")
        if (held / "best").exists():
            shutil.copytree(held / "best", copied / "best")
