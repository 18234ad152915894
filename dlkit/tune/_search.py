"""The search: an oracle suggests, `dlkit.train.fit` answers in worker processes, and nothing computed is lost."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import keras
import keras_tuner

from dlkit._errors import InputError, unknown
from dlkit._files import write_json
from dlkit.train import Recipe
from dlkit.train._progress import bar
from dlkit.tune import _job, _records, _trial, _worker, oracles
from dlkit.tune._chief import Chief, Clock
from dlkit.tune._crew import Crew
from dlkit.tune._keep import prune

Space = Callable[[keras_tuner.HyperParameters], Mapping[str, Mapping[str, Any]]]


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
    """What a search gives back: the trials, best first, and where they lie."""

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
            return values[0] * _sign(first), values[1] * _sign(second)

        front: list[TrialResult] = []
        for trial in sorted(held, key=cost):
            if not front or cost(trial)[1] < cost(front[-1])[1]:
                front.append(trial)
        return tuple(front)


def search(
    build: Callable[..., keras.Model],
    space: Space,
    recipe: Recipe,
    train: Any,
    validation: Any,
    *,
    preprocess: Any,
    objective: str = "val_accuracy",
    oracle: str | keras_tuner.Oracle = "bohb",
    epochs_budget: int,
    directory: str | Path,
    workers: int = 1,
    seed: int = 0,
    second: str = "",
    constraints: Mapping[str, float] | None = None,
    measure: Callable[[Any, Any], float] | None = None,
    fidelity: str = "epochs",
    seeds: int = 1,
    folds: int = 0,
    trial_seconds: float | None = None,
    keep: int = 5,
    verbose: bool = True,
) -> Search:
    """Searches `space` for the builder arguments and recipe fields with the best objective.

    Each trial is `fit(build(**model), recipe, ...)` in a run directory of its own, in a worker process. A trial that
    is promoted continues from its last checkpoint: weights, optimizer, schedule and position in the stream. The
    schedule spans `recipe.epochs` in every trial. A killed search continues when it is called again: no ended trial is
    lost or run twice. With one worker the same seed gives the same search, bit for bit, interrupted or not.

    Args:
        build: called with the "model" overrides of the space, for example `functools.partial(resnet_cifar, 8)`.
        space: `hp -> {"model": {...}, "recipe": {...}}`, see `default_space`.
        recipe: the recipe whose fields the space overrides; its epochs are the most that one trial trains.
        train, validation: sources; the validation source decides.
        preprocess: the input definition of every trial.
        objective: a column of the runs' history; "loss" or "mae" in its name means that less is better.
        oracle: a name of `ORACLES`, or a fresh KerasTuner oracle.
        epochs_budget: epochs of all trials together; no new trial starts beyond it. More of it continues a search.
        directory: folder of the search; another search in it is refused. All workers must see it.
        workers: processes that run trials. 0 runs them in this process: for a debugger; it grows with every trial.
        seed: of the suggestions and, with the trial's id, of each model's initial weights.
        second: another objective for `Search.front`: a column of the history, "parameters", "macs" or "latency". The
            oracle follows the first one.
        constraints: largest allowed "parameters", "macs" or "latency"; a configuration beyond is recorded as
            infeasible before it is trained.
        measure: `measure(model, preprocess) -> seconds`, for "latency": of the exported model, for example.
        fidelity: what fewer epochs stand for: "epochs"; "fraction" (the full recipe on a part of the data) or "size"
            (on smaller images; the model must take any size). Only epochs continue, the others start again.
        seeds: runs of each trial with other initial weights; the mean counts.
        folds: instead of validating on `validation`, the mean over so many folds of `train` counts.
        trial_seconds: a trial that takes longer, or hangs, has failed.
        keep: so many of the best trials keep their weights; besides those that may still be promoted.
        verbose: show the progress with the time left and the best so far.

    Raises:
        InputError: the folder holds another search, or a name is unknown.
        RuntimeError: every trial fails with the same error, which the message holds.

    Example: see README.md, `examples/tune_digits.py` and docs/tuning.md (several machines).
    """
    _check(fidelity, seeds, folds, workers, constraints, measure)
    directory = Path(directory)
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0
    job = _job.Job(
        build, space, recipe, train, validation, preprocess, objective, directory, seed, fidelity, seeds, folds,
        constraints, measure, trial_seconds, threads,
    )  # fmt: skip
    if _attached():
        return _attend(job, max(1, workers), second)
    chosen = oracles.get(oracle, objective, recipe.epochs, epochs_budget, seed) if isinstance(oracle, str) else oracle
    with _locked(directory):
        _explore(chosen, space, directory)
        name = oracle if isinstance(oracle, str) else type(oracle).__name__
        _claim(directory, _identity(job, chosen, name))
        _forget_failures(directory)
        chief = Chief(chosen, directory, epochs_budget, recipe.epochs)
        with bar("search", epochs_budget, chief.spent(), show=verbose) as update:
            _run(chief, job, workers, keep, update)
        return _found(job, chief.ended, chief.spent(), second)


def read(directory: str | Path, job: _job.Job, second: str = "") -> Search:
    """Returns what the records of a directory say, without a chief."""
    ended = {i: kinds["ended"] for i, kinds in _records.read_all(Path(directory)).items() if "ended" in kinds}
    return _found(job, ended, 0, second)


def _run(chief: Chief, job: _job.Job, workers: int, keep: int, update: Any) -> None:
    seen = -1

    def show() -> None:
        nonlocal seen
        if len(chief.ended) != seen:
            seen = len(chief.ended)
            prune(
                dict(chief.ended), [dict(t.hyperparameters.values) for t in list(chief.ongoing_trials.values())],
                job.directory, keep, _sign(job.objective),
            )  # fmt: skip
        update(min(chief.spent(), chief.budget), _best_text(chief, job.objective))

    if not chief.oracle._retry_queue and chief._committed() >= chief.budget:
        show()
    elif workers == 0:
        _here(chief, job, show)
    else:
        _with_workers(chief, job, workers, show)


def _with_workers(chief: Chief, job: _job.Job, workers: int, show: Callable[[], None]) -> None:
    digest = _job.write(job)
    with _serving(chief) as address, Crew(
        workers, "worker", (job.directory / "job.pkl", digest), address, job.directory / "workers"
    ) as crew:  # fmt: skip
        elapsed = Clock()
        while not chief.finished:
            _look(chief, crew, elapsed())
            if chief.error is not None:
                raise chief.error
            crew.fill()
            show()
            time.sleep(0.05)
    show()


def _look(chief: Chief, crew: Crew, elapsed: float) -> None:
    """Hands on the trials of workers that have ended or fallen silent."""
    for name, status in crew.ended():
        chief.lost(
            name, f"its process ended with {f'signal {-status}' if status < 0 else f'status {status}'}{_hint(status)}"
        )
    for name in chief.silent_tuners(elapsed):
        crew.end(name)
        chief.lost(name, f"nothing was heard of {name} for {chief.silent:g} s")


def _hint(status: int) -> str:
    return " (out of memory, or killed)" if status == -9 else ""


def _here(chief: Chief, job: _job.Job, show: Callable[[], None]) -> None:
    """Runs the trials in this process."""

    class Client:
        def create_trial(self, tuner_id: str) -> Any:
            show()
            return chief.create_trial(tuner_id)

        def end_trial(self, trial: Any) -> None:
            chief.end_trial(trial)
            if chief.error is not None:
                raise chief.error

    _worker.loop(Client(), job, "here", own_process=False)
    show()


def _attached() -> bool:
    """Whether this process was told to work for the chief on another machine, as KerasTuner's workers are."""
    names = os.environ
    return "KERASTUNER_ORACLE_IP" in names and "chief" not in names.get("KERASTUNER_TUNER_ID", "")


def _attend(job: _job.Job, workers: int, second: str) -> Search:
    """Works for the chief on another machine until it has no more trials."""
    name = os.environ.get("KERASTUNER_TUNER_ID", "tuner")
    if not (job.directory / "search.json").exists():
        raise InputError(f"{job.directory} holds no search: the chief and all workers must see one directory")
    here = job.directory / "workers" / name
    local = replace(job, directory=job.directory)
    digest = _job.write(local, here)
    with Crew(workers, name, (here / "job.pkl", digest), _address(), here) as crew:
        done: set[str] = set()
        while len(done) < workers:
            ended = crew.ended()
            done |= {worker for worker, status in ended if status == _worker.FINISHED}
            if any(status == _worker.INTERRUPTED for _, status in ended):
                raise RuntimeError(f"the chief at {_address()} does not answer any more:\n{crew.said(ended[0][0])}")
            crew.fill(done)
            time.sleep(0.1)
    return read(job.directory, job, second)


def _address() -> tuple[str, int]:
    return os.environ.get("KERASTUNER_ORACLE_IP", "127.0.0.1"), int(os.environ.get("KERASTUNER_ORACLE_PORT", "0"))


@contextlib.contextmanager
def _serving(chief: Chief) -> Iterator[tuple[str, int]]:
    """Serves KerasTuner's protocol on this machine only, unless KERASTUNER_ORACLE_IP names another address."""
    import grpc
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(chief), server)
    host, port = _address()
    bound = server.add_insecure_port(f"{host}:{port}")
    if not bound:
        raise InputError(f"cannot listen on {host}:{port}; set KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT")
    server.start()
    try:
        yield host, bound
        if port:
            time.sleep(2.0)  # workers on other machines ask once more and are told that it is over
    finally:
        server.stop(0.5).wait()


class _Overrides(keras_tuner.HyperModel):
    """Lets KerasTuner discover the space without building a model."""

    def __init__(self, space: Space):
        super().__init__()
        self._space = space

    def build(self, hp: Any) -> Any:
        return _job.overrides(self._space, hp)


def _explore(oracle: Any, space: Space, directory: Path) -> None:
    """Shows the oracle the whole space, every conditional part of it; KerasTuner's tuner does that when it is made."""
    (directory / "trials" / "tuner0.json").unlink(missing_ok=True)  # never read: see Chief
    keras_tuner.engine.base_tuner.BaseTuner(
        oracle, _Overrides(space), directory=str(directory), project_name="trials"
    )  # fmt: skip


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(directory / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise InputError(f"another process is searching in {directory}; choose another directory or wait") from None


def _forget_failures(directory: Path) -> None:
    """Starts anew where every trial failed: the error was in the program, and nothing is lost."""
    ended = [kinds["ended"] for kinds in _records.read_all(directory).values() if "ended" in kinds]
    if ended and all(record["status"] == "FAILED" and record.get("kind") == "error" for record in ended):
        shutil.rmtree(directory / "trials")


def _found(job: _job.Job, ended: dict[str, dict[str, Any]], epochs: int, second: str) -> Search:
    trials = [_result(job, trial_id, record) for trial_id, record in ended.items()]
    sign = _sign(job.objective)
    ranked = sorted(trials, key=lambda t: (t.score is None, sign * (t.score or 0.0), t.id))
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


def _sign(objective: str) -> int:
    """1 if less is better, -1 if more is."""
    return 1 if any(part in objective for part in ("loss", "mae", *_trial.FACTS)) else -1


def _best_text(chief: Chief, objective: str) -> str:
    scores = [record["score"] for record in list(chief.ended.values()) if record["score"] is not None]
    best = f"best {objective} {min(scores, key=lambda s: _sign(objective) * s):.4f}  " if scores else ""
    failed = sum(record["status"] == "FAILED" for record in list(chief.ended.values()))
    return f"{best}{len(chief.ended)} trials{f', {failed} failed' if failed else ''}"


def _check(fidelity: str, seeds: int, folds: int, workers: int, constraints: Any, measure: Any) -> None:
    if fidelity not in _job.FIDELITIES:
        raise unknown("fidelity", fidelity, _job.FIDELITIES)
    for name, value, least in (("seeds", seeds, 1), ("folds", folds, 0), ("workers", workers, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if folds == 1 or (folds and seeds > 1):
        raise InputError(f"folds={folds} with seeds={seeds}: take at least 2 folds, or several seeds, not both")
    for name, limit in (constraints or {}).items():
        if name not in _trial.FACTS:
            raise unknown("constraint", name, _trial.FACTS)
        if not limit > 0 or not math.isfinite(limit):
            raise InputError(f"constraints[{name!r}] must be a positive number, got {limit!r}")
    if "latency" in (constraints or {}) and measure is None:
        raise InputError("a constraint on the latency needs measure(model, preprocess) -> seconds")


def _identity(job: _job.Job, oracle: Any, name: str) -> dict[str, Any]:
    return {
        "space": {hp["config"]["name"]: hp for hp in oracle.get_space().get_config()["space"]},
        "recipe": job.recipe.to_dict(),
        "preprocess": job.preprocess.get_config(),
        "data": [source.fingerprint if source is not None else None for source in (job.train, job.validation)],
        "oracle": name,
        **_trial.fields(job),
    }


def _claim(directory: Path, identity: dict[str, Any]) -> None:
    """Writes search.json into a fresh folder; compares it in one that holds a search."""
    path = directory / "search.json"
    now = json.loads(json.dumps(identity))
    try:
        held = json.loads(path.read_text())
    except FileNotFoundError:
        held = None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); remove it if the search in this folder is yours") from None
    if held is None:
        write_json(path, identity)
        return
    differing = [text for name, value in now.items() for text in _differences(name, held.get(name), value)]
    if differing:
        raise InputError(
            f"{directory} holds another search; choose another directory. Different: {'; '.join(differing)}"
        )


def _differences(name: str, held: Any, now: Any) -> list[str]:
    if held == now:
        return []
    if isinstance(held, dict) and isinstance(now, dict):
        keys = [key for key in {**held, **now} if held.get(key) != now.get(key)]
        return [text for key in keys for text in _differences(f"{name}.{key}", held.get(key), now.get(key))]
    there, here = (text if len(text := json.dumps(v)) <= 80 else text[:77] + "..." for v in (held, now))
    return [f"{name}: {there} there, {here} now"]
