"""The worker of a search: asks the chief for trials, runs them, and ends before it has grown."""

import contextlib
import errno
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import tensorflow as tf

from dlkit.train import DivergedError
from dlkit.tune import _job, _records, _trial

FINISHED, RECYCLED, UNREADABLE, INTERRUPTED, NO_SPACE = 0, 10, 11, 12, 13  # exit statuses of a worker process
GROWTH_MIB = 40  # a worker whose memory has grown by this since its first trial makes room for a fresh one
BEAT = 2.0  # seconds between two signs of life
LOST_CHIEF = 120  # seconds after which a worker gives up a chief that does not answer
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(job_path: str, digest: str, address: tuple[str, int], tuner_id: str) -> int:
    """Runs trials for the chief at `address` and returns the exit status; called in a process of its own."""
    from keras_tuner.src.distribute import oracle_client

    try:
        job = _job.read(Path(job_path), digest)
        job = replace(job, train=_job.opened(job.train), validation=_job.opened(job.validation))
    except Exception:
        traceback.print_exc()
        return UNREADABLE
    if job.threads:
        tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    os.environ |= {
        "KERASTUNER_ORACLE_IP": address[0], "KERASTUNER_ORACLE_PORT": str(address[1]), "KERASTUNER_TUNER_ID": tuner_id,
    }  # fmt: skip
    oracle_client.TIMEOUT = LOST_CHIEF
    try:
        return FINISHED if loop(oracle_client.OracleClient(None), job, tuner_id) else RECYCLED
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        traceback.print_exc()
        return NO_SPACE


def loop(client: Any, job: _job.Job, tuner_id: str, own_process: bool = True) -> bool:
    """Runs trials until there are none (True), or until this process has grown (False)."""
    first: float | None = None
    while True:
        trial = client.create_trial(tuner_id)
        if trial.status == "STOPPED":
            return True
        if trial.status == "IDLE":
            time.sleep(0.2)
            continue
        folder = _records.trial_folder(job.directory, trial.trial_id)
        with filelock.FileLock(folder / ".worker", timeout=60):
            with _watched(client, job, trial) if own_process else contextlib.nullcontext():
                result = _attempt(job, trial.trial_id, folder)
            _records.write(folder, "result", result)
        trial.status = "COMPLETED" if result["status"] == "COMPLETED" else "FAILED"
        client.end_trial(trial)
        if own_process:
            first = resident_mib() if first is None else first
            if result["status"] == "FAILED" or resident_mib() - first > GROWTH_MIB:
                return False


def resident_mib() -> float:
    """Returns the memory of this process in MiB: what is resident now, or where that is unknown its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _attempt(job: _job.Job, trial_id: str, folder: Path) -> dict[str, Any]:
    """Runs a trial; whatever goes wrong becomes a result that says so, except a full disk: that is not the trial's."""
    began = time.monotonic()
    started = _records.read(folder, "started")
    try:
        if started is None:
            raise FileNotFoundError(f"{folder} holds no values; a search's workers must see its directory")
        metrics = _trial.run(job, trial_id, started["values"])
        result: dict[str, Any] = {"status": "COMPLETED", "metrics": metrics, "message": ""}
    except _trial.InfeasibleError as error:
        result = {"status": "INFEASIBLE", "message": str(error)}
    except (DivergedError, FloatingPointError) as error:
        result = {"status": "FAILED", "kind": "diverged", "message": f"{type(error).__name__}: {error}"}
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        result = {"status": "FAILED", "kind": "error", "message": traceback.format_exc()}
    return result | {"seconds": round(time.monotonic() - began, 2)}


@contextlib.contextmanager
def _watched(client: Any, job: _job.Job, trial: Any) -> Iterator[None]:
    """Gives the chief a sign of life while the block runs, and ends this process when the trial's time is up."""
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(client, job, trial, done, threading.get_ident()), daemon=True, name="signs of life"
    )
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(client: Any, job: _job.Job, trial: Any, done: threading.Event, thread: int) -> None:
    began = time.monotonic()
    while not done.wait(min(BEAT, job.trial_seconds or BEAT)):
        seconds = time.monotonic() - began
        if job.trial_seconds and seconds > job.trial_seconds:
            where = "".join(traceback.format_stack(sys._current_frames()[thread]))
            message = f"the trial's time of {job.trial_seconds:g} s was up; it was here:\n{where}"
            folder = _records.trial_folder(job.directory, trial.trial_id)
            result = {"status": "FAILED", "kind": "time", "message": message, "seconds": round(seconds, 2)}
            _records.write(folder, "result", result)
            trial.status = "FAILED"
            client.end_trial(trial)
            os._exit(RECYCLED)
        try:
            client.get_trial(trial.trial_id)
        except Exception:
            traceback.print_exc()
            os._exit(INTERRUPTED)  # the chief is gone; what was computed is in the trial's checkpoint
