"""A process that has imported everything and done nothing: it forks workers, which therefore start at once.

It reads orders and writes reports, a line of JSON each, on standard input and output. When the chief is gone its
standard input ends; it then ends its workers and itself. Forking is safe because no TensorFlow operation and no
gRPC channel was made in it. Where there is no safe fork (not on Linux) every worker imports anew.
"""

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

from dlkit.tune import _worker

PATIENCE = 5.0  # seconds between a request to end and its enforcement


def main() -> None:
    """Serves the chief until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write between the reports
    workers: dict[int, str] = {}

    def report(**values: Any) -> None:
        reports.write(json.dumps(values) + "\n")
        reports.flush()

    gc.collect()
    gc.freeze()  # a full collection in a worker then takes milliseconds instead of a second, and shares more memory
    report(ready=os.getpid())
    rest = b""
    while True:
        if select.select([0], [], [], 0.05)[0]:
            data = os.read(0, 1 << 20)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if "start" in order:
                    pid = _start(order)
                    workers[pid] = order["start"]
                    report(started=order["start"], pid=pid)
                else:
                    for pid in [pid for pid, name in workers.items() if name == order["end"]]:
                        os.kill(pid, order["signal"])
        for pid, status in _reaped(workers):
            report(ended=workers.pop(pid), status=status)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in workers:
            os.kill(pid, number)
        until = time.monotonic() + PATIENCE
        while workers and time.monotonic() < until:
            for pid, _ in _reaped(workers):
                del workers[pid]
            time.sleep(0.02)


def _reaped(workers: dict[int, str]) -> list[tuple[int, int]]:
    """The workers that have ended, with exit status, or minus the signal that killed them."""
    found = []
    for pid in workers:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _start(order: dict[str, Any]) -> int:
    if sys.platform == "linux":
        pid = os.fork()
        if pid == 0:
            work(order)
        return pid
    return subprocess.Popen([sys.executable, "-m", "dlkit.tune._nursery", json.dumps(order)]).pid


def work(order: dict[str, Any]) -> None:
    """Is a worker from here on; never returns."""
    status = 1
    try:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        status = worked(order)
    finally:
        os._exit(status)


def worked(order: dict[str, Any]) -> int:
    """Is a worker until there is no more to do; returns its exit status."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        sys.path[:] = dict.fromkeys([*order["path"], *sys.path])
        os.chdir(order["folder"])
        status = _worker.main(order["job"], order["digest"], tuple(order["address"]), order["start"])
    except BaseException:
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return status


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(_worker.INTERRUPTED)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(json.loads(sys.argv[1]))
    main()
