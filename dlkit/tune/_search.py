"""The search: an oracle suggests, `dlkit.train.fit` answers in worker processes, and nothing computed is lost."""

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from dlkit._errors import InputError, unknown
from dlkit.train import Recipe
from dlkit.train._progress import bar
from dlkit.train._run_dir import locked
from dlkit.tune import _job, _ray, _records, _trial, _worker, oracles
from dlkit.tune._chief import Chief, Clock
from dlkit.tune._crew import PLACES, Crew
from dlkit.tune._identity import claim, compare, identity, trials
from dlkit.tune._keep import prune
from dlkit.tune._results import Search, found, read
from dlkit.tune.oracles import sign

Space = Callable[[keras_tuner.HyperParameters], Mapping[str, Mapping[str, Any]]]


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
    on: str = "processes",
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
        epochs_budget: epochs of all runs of all trials together, a full pass over all data at full size being one; no
            new trial starts beyond it. More of it continues a search.
        directory: folder of the search; another search in it is refused. All workers must see it.
        workers: processes that run trials. 0 runs them in this process: for a debugger; it grows with every trial.
        on: "processes" of this machine, or "ray": tasks on the Ray cluster that the program has joined, else on a Ray
            of this machine (extra `ray`; the chief then listens at this machine's address in the cluster).
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
        OSError: the disk is full; the same call continues the search when there is room.

    Example: see README.md, `examples/tune_digits.py` and docs/tuning.md (several machines).
    """
    _check(fidelity, seeds, folds, workers, on, constraints, measure)
    directory = Path(directory)
    if on == "ray" and workers and not _attached():
        threads = _ray.processors(workers)
    else:
        threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0
    job = _job.Job(
        build, space, recipe, train, validation, preprocess, objective, directory, seed, fidelity, seeds, folds,
        constraints, measure, trial_seconds, threads,
    )  # fmt: skip
    if _attached():
        return _attend(job, max(1, workers), second)
    chosen = oracles.get(oracle, objective, recipe.epochs, epochs_budget, seed) if isinstance(oracle, str) else oracle
    with locked(directory, "searching"):
        _explore(chosen, space, directory)
        name = oracle if isinstance(oracle, str) else type(oracle).__name__
        claim(directory, identity(job, chosen, name))
        _forget_failures(directory)
        chief = Chief(chosen, directory, epochs_budget, recipe.epochs, runs=job.runs, restarts=job.restarts)
        with bar("search", epochs_budget, chief.spent(), show=verbose) as update:
            _run(chief, job, workers, on, keep, update)
        return found(job, chief.ended, second)


def _run(chief: Chief, job: _job.Job, workers: int, on: str, keep: int, update: Any) -> None:
    seen = -1

    def show() -> None:
        nonlocal seen
        if len(chief.ended) != seen:
            seen = len(chief.ended)
            prune(
                dict(chief.ended), [dict(t.hyperparameters.values) for t in list(chief.ongoing_trials.values())],
                job.directory, keep, sign(job.objective),
            )  # fmt: skip
        update(min(chief.spent(), chief.budget), _best_text(chief, job.objective))

    if not chief.oracle._retry_queue and chief._committed() >= chief.budget:
        show()
    elif workers == 0:
        _here(chief, job, show)
    else:
        _with_workers(chief, job, workers, on, show)


def _with_workers(chief: Chief, job: _job.Job, workers: int, on: str, show: Callable[[], None]) -> None:
    digest = _job.write(job)
    host = _ray.address() if on == "ray" else "127.0.0.1"
    with _serving(chief, host) as address, Crew(
        workers, "worker", (job.directory / "job.pkl", digest), address, job.directory / "workers", on, job.threads
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

    try:
        _worker.loop(Client(), job, "here", own_process=False)
    finally:
        _trial.forget()
    show()


def _attached() -> bool:
    """Whether this process was told to work for the chief on another machine, as KerasTuner's workers are."""
    names = os.environ
    return "KERASTUNER_ORACLE_IP" in names and "chief" not in names.get("KERASTUNER_TUNER_ID", "")


def _attend(job: _job.Job, workers: int, second: str) -> Search:
    """Works for the chief on another machine until it has no more trials."""
    name = os.environ.get("KERASTUNER_TUNER_ID", "tuner")
    until = time.monotonic() + _worker.LOST_CHIEF
    while not (job.directory / "search.json").exists():
        if time.monotonic() > until:
            raise InputError(f"{job.directory} holds no search: the chief and all workers must see one directory")
        time.sleep(0.5)
    compare(job.directory, trials(job))
    here = job.directory / "workers" / name
    digest = _job.write(job, here)
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


class _Bare:
    """Sends trials with their values only: KerasTuner prints a line for every condition of a space that it sends."""

    def __init__(self, chief: Chief) -> None:
        self._chief = chief

    def create_trial(self, tuner_id: str) -> Any:
        return self._plain(self._chief.create_trial(tuner_id))

    def get_trial(self, trial_id: str) -> Any:
        return self._plain(self._chief.get_trial(trial_id))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chief, name)

    @staticmethod
    def _plain(trial: Any) -> Any:
        hp = keras_tuner.HyperParameters()
        held = trial.hyperparameters.values
        hp.values = {name: value.item() if hasattr(value, "item") else value for name, value in held.items()}
        return keras_tuner.engine.trial.Trial(hp, trial_id=trial.trial_id, status=trial.status)


@contextlib.contextmanager
def _serving(chief: Chief, host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """Serves KerasTuner's protocol at `host`, unless KERASTUNER_ORACLE_IP names another address."""
    import grpc
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(_Bare(chief)), server)
    host, port = os.environ.get("KERASTUNER_ORACLE_IP", host), _address()[1]
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


def _forget_failures(directory: Path) -> None:
    """Starts anew where every trial failed: the error was in the program, and nothing is lost."""
    ended = [kinds["ended"] for kinds in _records.read_all(directory).values() if "ended" in kinds]
    if ended and all(record["status"] == "FAILED" and record.get("kind") == "error" for record in ended):
        shutil.rmtree(directory / "trials")


def _best_text(chief: Chief, objective: str) -> str:
    scores = [record["score"] for record in list(chief.ended.values()) if record["score"] is not None]
    best = f"best {objective} {min(scores, key=lambda s: sign(objective) * s):.4f}  " if scores else ""
    failed = sum(record["status"] == "FAILED" for record in list(chief.ended.values()))
    return f"{best}{len(chief.ended)} trials{f', {failed} failed' if failed else ''}"


def _check(
    fidelity: str, seeds: int, folds: int, workers: int, on: str, constraints: Any, measure: Any
) -> None:  # fmt: skip
    if fidelity not in _job.FIDELITIES:
        raise unknown("fidelity", fidelity, _job.FIDELITIES)
    if on not in PLACES:
        raise unknown("place of workers", on, PLACES)
    for name, value, least in (("seeds", seeds, 1), ("folds", folds, 0), ("workers", workers, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if workers and sys.platform == "win32":
        raise InputError("worker processes need Linux or macOS; run the trials in this process with workers=0")
    if folds == 1 or (folds and seeds > 1):
        raise InputError(f"folds={folds} with seeds={seeds}: take at least 2 folds, or several seeds, not both")
    for name, limit in (constraints or {}).items():
        if name not in _trial.FACTS:
            raise unknown("constraint", name, _trial.FACTS)
        if not limit > 0 or not math.isfinite(limit):
            raise InputError(f"constraints[{name!r}] must be a positive number, got {limit!r}")
    if "latency" in (constraints or {}) and measure is None:
        raise InputError("a constraint on the latency needs measure(model, preprocess) -> seconds")
