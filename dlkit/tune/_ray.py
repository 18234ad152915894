"""Workers of a search as tasks of Ray: on whichever machines of its cluster have room."""

import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlkit._errors import require
from dlkit.tune import _worker


class RayNursery:
    """Starts workers as Ray tasks; has the methods of `_crew._Nursery`.

    A task is one worker process of Ray's and ends with it, so that a recycled worker gives its memory back. Ray that
    is not running yet is started on this machine; `ray.init(address=...)` before the search names a cluster.

    Args:
        processors: that Ray sets aside for each worker.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self, processors: int) -> None:
        self._ray = started()
        self._tasks: dict[Any, str] = {}
        self.refused: dict[str, str] = {}  # why a worker could not begin
        self._work = self._ray.remote(num_cpus=processors, max_calls=1, max_retries=0)(_work)

    @property
    def alive(self) -> bool:
        return bool(self._ray.is_initialized())

    def order(self, **values: Any) -> None:
        """Starts a worker, or ends one: at once, because what it had reached is in its trial's checkpoint."""
        if "start" in values:
            self._tasks[self._work.remote(values)] = values["start"]
            return
        for task in [task for task, name in self._tasks.items() if name == values["end"]]:
            self._ray.cancel(task, force=True)

    def ended(self) -> list[tuple[str, int]]:
        """Returns the workers that have ended, with their exit status, or -9 where their process is gone.

        One that could not begin has the status of one that cannot read its job: the search ends and says why.
        """
        found: list[tuple[str, int]] = []
        done, _ = (
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0) if self._tasks else ([], [])
        )
        for task in done:
            name, status = self._tasks.pop(task), -int(signal.SIGKILL)
            try:
                status = int(self._ray.get(task))
            except self._ray.exceptions.RayTaskError as error:  # no dlkit there, another version, no folder
                self.refused[name], status = str(error), _worker.UNREADABLE
            except self._ray.exceptions.RayError:
                pass
            found.append((name, status))
        return found

    def close(self) -> None:
        """Leaves Ray running: it may not be ours."""


def started() -> Any:
    """Returns Ray, connected to the cluster that the program named, else started on this machine without reporting."""
    try:
        import ray
    except ImportError:
        raise require("ray", "ray", 'on="ray"') from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False)
    return ray


def processors(workers: int) -> int:
    """Returns how many processors each of `workers` gets: as many as let all of them run, each on one machine."""
    return share([node["Resources"].get("CPU", 0.0) for node in started().nodes() if node["Alive"]], workers)


def share(machines: Sequence[float], workers: int) -> int:
    """Returns the largest number of processors that each of `workers` can have at once; 1 if there are too few.

    >>> share([8, 8], 3)
    4
    """
    most = int(min(sum(machines) / workers, max(machines, default=0.0)))
    return next((n for n in range(most, 1, -1) if sum(count // n for count in machines) >= workers), 1)


def address() -> str:
    """Returns the address of this machine that the cluster's other machines reach."""
    return str(started().util.get_node_ip_address())


def _work(order: dict[str, Any]) -> int:
    from dlkit.tune import _nursery

    folder = Path(order["log"]).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not on {socket.gethostname()}: all workers must see the search's folder")
    return _nursery.worked(order)
