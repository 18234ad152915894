"""The local workers of a search: started, watched and replaced."""

import atexit
import contextlib
import errno
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, cast

from dlkit.tune import _worker
from dlkit.tune._ray import RayNursery

PLACES = ("processes", "ray")  # where workers run: this machine, or wherever a Ray cluster has room

_idle: list["_Nursery"] = []  # nurseries wait for the next search of this process: starting one takes seconds


class Crew:
    """Keeps a number of worker processes alive.

    Args:
        count: how many.
        name: workers are called name-0, name-1, ...
        job: the file of the job, and its digest.
        address: of the chief.
        logs: folder of the workers' output.
        on: a name of `PLACES`.
        processors: of each worker, for places that set them aside.
    """

    def __init__(
        self, count: int, name: str, job: tuple[Path, str], address: tuple[str, int], logs: Path, on: str = "processes",
        processors: int = 1,
    ) -> None:  # fmt: skip
        self.names = [f"{name}-{i}" for i in range(count)]
        self._job, self._address, self._logs = job, address, logs
        self._running: dict[str, float] = {}
        self._early: dict[str, int] = {}
        self._on, self._processors = on, processors
        self._nursery = _idle.pop() if _idle and on == "processes" else self._made()

    def _made(self) -> Any:
        return RayNursery(self._processors) if self._on == "ray" else _Nursery()

    def __enter__(self) -> "Crew":
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Asks the workers to end after the step they are in, and sees to it."""
        for number, patience in ((signal.SIGTERM, 1.0 if kind is None else 10.0), (signal.SIGKILL, 2.0)):
            for name in self._running:
                self.end(name, number)
            until = time.monotonic() + patience
            while self._running and time.monotonic() < until:
                self.ended()
                time.sleep(0.02)
        if self._nursery.alive and self._on == "processes":
            _idle.append(self._nursery)
        else:
            self._nursery.close()

    def fill(self, without: Collection[str] = ()) -> None:
        """Starts the workers that are missing."""
        if not self._nursery.alive:
            self._nursery.close()
            self._nursery = self._made()
        for name in self.names:
            if name not in self._running and name not in without:
                self._running[name] = time.monotonic()
                self._nursery.order(
                    start=name, job=str(self._job[0].resolve()), digest=self._job[1], address=self._address,
                    path=[os.path.abspath(p) for p in sys.path], folder=os.getcwd(), log=str(self._log(name)),
                )  # fmt: skip

    def end(self, name: str, number: int = signal.SIGKILL) -> None:
        """Sends a signal to a worker."""
        self._nursery.order(end=name, signal=int(number))

    def ended(self) -> list[tuple[str, int]]:
        """Returns the workers that have ended since the last call, with their exit status, or minus the signal.

        Raises:
            RuntimeError: workers cannot start; the message holds what they wrote.
            OSError: a worker found the disk full.
        """
        found = [(name, status) for name, status in self._nursery.ended() if name in self._running]
        if not self._nursery.alive:
            found += [(name, -signal.SIGKILL) for name in self._running if name not in dict(found)]
        for name, status in found:
            lived = time.monotonic() - self._running.pop(name)
            if status == _worker.UNREADABLE:
                raise RuntimeError(f"a worker could not begin, or read the functions or the data:\n{self.said(name)}")
            if status == _worker.NO_SPACE:
                raise OSError(
                    errno.ENOSPC, "the disk is full; make room and call again: the search continues", str(self._logs)
                )
            self._early[name] = self._early.get(name, 0) + 1 if status == 1 and lived < 10 else 0
            if self._early[name] >= 3:
                raise RuntimeError(f"workers end as soon as they start:\n{self.said(name)}")
        return found

    def said(self, name: str) -> str:
        """Returns the last lines that a worker wrote, or why it could not begin."""
        if name in self._nursery.refused:
            return str(self._nursery.refused[name])[-3000:]
        with contextlib.suppress(OSError):
            return self._log(name).read_text(errors="replace")[-3000:]
        return ""

    def _log(self, name: str) -> Path:
        return self._logs.resolve() / f"{name}.log"


class _Nursery:
    """The process that forks workers; see `_nursery`."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dlkit.tune._nursery"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._said, env=environment, start_new_session=True,
        )  # fmt: skip
        self._orders = cast(IO[bytes], self._process.stdin)
        self._reports: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._ready = False
        self.refused: dict[str, str] = {}  # none: where this process runs, workers can begin
        threading.Thread(target=self._listen, daemon=True, name="reports of the nursery").start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def order(self, **values: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # `ended` says what that means
            self._orders.write(json.dumps(values).encode() + b"\n")
            self._orders.flush()

    def ended(self) -> list[tuple[str, int]]:
        found = []
        while not self._reports.empty():
            report = self._reports.get()
            if report is None:
                if not self._ready:
                    self._said.seek(0)
                    raise RuntimeError(f"workers cannot start:\n{self._said.read()[-3000:].decode(errors='replace')}")
                continue
            self._ready = self._ready or "ready" in report
            if "ended" in report:
                found.append((report["ended"], int(report["status"])))
        return found

    def close(self) -> None:
        """Ends the process: it sees that nobody gives orders any more."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._said.close()

    def _listen(self) -> None:
        for line in cast(IO[bytes], self._process.stdout):
            self._reports.put(json.loads(line))
        self._reports.put(None)


@atexit.register
def _close() -> None:
    while _idle:
        _idle.pop().close()
