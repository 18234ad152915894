"""A search whose workers are Ray's: the same answers as at home, and what a killed one was at goes on."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from test_search import answers, run

ray = pytest.importorskip("ray", reason="workers on Ray need the extra ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    yield
    ray.shutdown()


def test_one_worker_on_ray_answers_as_one_in_this_process(tmp_path):
    here = run(tmp_path / "here")
    there = run(tmp_path / "there", workers=1, on="ray")
    assert answers(there) == answers(here)


def test_a_killed_task_is_started_again_and_nothing_is_lost(tmp_path, monkeypatch):
    from dlkit.tune import _ray

    killed = []
    ended = _ray.RayNursery.ended

    def kill_once(nursery):
        for log in (tmp_path / "s" / "trials").glob("*/started.json"):
            if not killed and not (log.parent / "result.json").exists():
                killed.extend(worker for worker in workers())
                os.kill(killed[0], signal.SIGKILL)
        return ended(nursery)

    monkeypatch.setattr(_ray.RayNursery, "ended", kill_once)
    found = run(tmp_path / "s", workers=1, on="ray")
    assert killed
    assert answers(found) == answers(run(tmp_path / "here"))


def workers():
    """The processes of Ray that run a worker of a search."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::_work"):
            yield int(folder.name)


def test_a_machine_without_the_folder_ends_the_search_and_says_why(tmp_path):
    from dlkit.tune._crew import Crew

    crew = Crew(1, "worker", (tmp_path / "job", ""), ("127.0.0.1", 1), tmp_path / "nowhere" / "logs", on="ray")
    crew.fill()

    def wait():
        until = time.monotonic() + 120
        while time.monotonic() < until:
            crew.ended()
            time.sleep(0.1)

    with pytest.raises(RuntimeError, match="all workers must see the search's folder"):
        wait()


@pytest.mark.parametrize(
    ("machines", "workers", "expected"),
    [([8, 8], 3, 4), ([6, 2], 2, 3), ([3, 5], 2, 3), ([16, 4, 4], 3, 5), ([4.0], 1, 4), ([2], 5, 1), ([], 1, 1)],
)
def test_all_workers_run_at_once_each_on_one_machine(machines, workers, expected):
    from dlkit.tune import _ray

    assert _ray.share(machines, workers) == expected


@pytest.mark.parametrize(("workers", "expected"), [(1, 2), (2, 1), (5, 1)])
def test_workers_share_the_processors_of_the_cluster(workers, expected):
    from dlkit.tune import _ray

    assert _ray.processors(workers) == expected
