"""Trials in worker processes: the same answers, faults that do not end the search, kills that lose nothing."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
from search_script import RECIPE, answers, build, run, space

from dlkit._errors import InputError
from dlkit.tune import _records, _worker

SCRIPT = Path(__file__).with_name("search_script.py")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The search without worker processes."""
    return answers(run(tmp_path_factory.mktemp("here") / "s", workers=0))


def test_a_worker_process_gives_the_bits_of_this_process(here, tmp_path):
    assert answers(run(tmp_path / "s")) == here


def statuses(directory):
    """Of the ended trials of a search."""
    return [kinds["ended"]["status"] for kinds in _records.read_all(directory).values() if "ended" in kinds]


def grid(*names):
    """One trial for each value."""
    oracle = keras_tuner.oracles.GridSearchOracle(objective=keras_tuner.Objective("val_accuracy", "max"))
    return oracle, lambda hp: {"model": {"fault": hp.Choice("fault", list(names))}}


def faulty(fault):
    if fault == "raise":
        raise MemoryError("too wide for this test")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(1000)
    if fault == "nan":
        model = build(4)
        model.trainable_variables[-1].assign(np.full(model.trainable_variables[-1].shape, np.nan))
        return model
    return build(4)


def fates(found):
    return {trial.values["fault"]: (trial.status, trial.message) for trial in found.trials}


def test_trials_that_raise_diverge_or_are_killed_are_recorded_and_the_search_goes_on(tmp_path):
    oracle, faults = grid("none", "raise", "nan", "kill", "fine")
    found = run(tmp_path / "s", oracle, build=faulty, space=faults, budget=5, recipe=replace(RECIPE, epochs=1))
    held = fates(found)
    assert {fault: status for fault, (status, _) in held.items()} == {
        "none": "COMPLETED", "raise": "FAILED", "nan": "FAILED", "kill": "FAILED", "fine": "COMPLETED",
    }  # fmt: skip
    assert "too wide for this test" in held["raise"][1]
    assert "Traceback" in held["raise"][1]
    assert "DivergedError: the loss is nan" in held["nan"][1]
    assert "3 times its process ended with signal 9 (out of memory, or killed)" in held["kill"][1]


@pytest.mark.slow
def test_a_hanging_trial_fails_when_its_time_is_up_and_says_where_it_was(tmp_path):
    oracle, faults = grid("hang", "fine")
    found = run(
        tmp_path / "s", oracle, build=faulty, space=faults, budget=2, recipe=replace(RECIPE, epochs=1),
        trial_seconds=20,
    )  # fmt: skip
    held = fates(found)
    assert held["fine"][0] == "COMPLETED"
    assert held["hang"][0] == "FAILED"
    assert "time.sleep(1000)" in held["hang"][1]


def test_a_full_disk_ends_the_search_and_fails_no_trial(here, tmp_path):
    built = []

    def full(units):
        built.append(units)
        if len(built) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return build(units)

    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "s", workers=0, build=full)
    assert statuses(tmp_path / "s") == ["COMPLETED"] * 2
    assert answers(run(tmp_path / "s", workers=0, build=full)) == here


@pytest.mark.slow
def test_a_search_on_a_full_disk_continues_when_there_is_space(here, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with pytest.raises(OSError, match=r"make room and call again|No space left"):
            run(disk / "s")
        assert set(statuses(disk / "s")) == {"COMPLETED"}
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert answers(run(disk / "s")) == here
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_functions_that_cannot_be_sent_say_what_to_do(tmp_path):
    lock = threading.Lock()
    with pytest.raises(InputError, match="workers=0"):
        run(tmp_path / "s", build=lambda **_: lock)


def test_an_import_error_ends_the_search_at_once(tmp_path):
    def missing(units):
        import no_such_module

        return no_such_module

    with pytest.raises(
        RuntimeError, match=r"every trial failed with the same error(.|\n)*No module named 'no_such_module'"
    ):
        run(tmp_path / "s", build=missing)
    assert len(_records.read_all(tmp_path / "s")) == 1
    assert len(run(tmp_path / "s", workers=0, budget=3).trials) >= 1  # mended, it starts anew


def test_a_configuration_beyond_the_constraints_is_never_trained(tmp_path):
    found = run(tmp_path / "s", workers=0, constraints={"parameters": 700}, second="macs")
    statuses = {trial.values["units"]: trial.status for trial in found.trials}
    assert statuses[16] == "INFEASIBLE"
    assert statuses[4] == "COMPLETED"
    infeasible = [t for t in found.trials if t.status == "INFEASIBLE"]
    assert all("parameters 1210 > 700" in t.message and not t.run_dir.exists() for t in infeasible)
    front = found.front
    assert [t.score for t in front] == sorted((t.score for t in front), reverse=True)
    macs = [t.metrics["macs"] for t in front]
    assert macs == sorted(macs, reverse=True)
    assert found.best in front or found.best.score == front[0].score


def test_a_latency_is_measured_and_constrained(tmp_path):
    found = run(
        tmp_path / "s", workers=0, budget=6, constraints={"latency": 0.01},
        measure=lambda model, preprocess: model.count_params() / 1e5,
    )  # fmt: skip
    assert {t.status for t in found.trials if t.values["units"] == 16} <= {"INFEASIBLE"}
    assert all(t.metrics["latency"] <= 0.01 for t in found.trials if t.status == "COMPLETED")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"constraints": {"paramters": 1}}, "did you mean 'parameters'"),
        ({"constraints": {"latency": 1}}, "needs measure"),
        ({"constraints": {"macs": -1}}, "must be a positive number"),
        ({"fidelity": "epoch"}, "did you mean 'epochs'"),
        ({"seeds": 0}, "seeds must be a whole number"),
        ({"folds": 1}, "at least 2 folds"),
        ({"folds": 3, "seeds": 2}, "not both"),
        ({"workers": -1}, "workers must be"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_allowed(keywords, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "s", **keywords)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("fidelity", ["size", "fraction"])
def test_other_fidelities_train_the_whole_recipe_on_less(fidelity, tmp_path):
    from dlkit.models import cnn

    def sized(units):
        return cnn(1, 1, classes=10, input_shape=(None, None, 1), filters=units, head="average")

    found = run(tmp_path / "s", build=sized, workers=0, fidelity=fidelity, budget=5)
    for trial in found.trials:
        held = json.loads((trial.run_dir / "recipe.json").read_text())
        rows = (trial.run_dir / "history.csv").read_text().splitlines()
        assert len(rows) == 1 + 3
        share = trial.epochs / 3
        if fidelity == "fraction":
            assert abs(held["data"]["items"] - 150 * share) <= 5
        else:
            assert held["recipe"]["sizes"] == ([] if share == 1 else [[0.0, 8]])


@pytest.mark.parametrize("keywords", [{"seeds": 2}, {"folds": 2}])
def test_several_runs_of_a_trial_count_with_their_mean(keywords, tmp_path):
    found = run(tmp_path / "s", workers=0, oracle="random", budget=3, **keywords)
    (trial,) = found.trials
    runs = sorted(trial.run_dir.parent.glob("run*"))
    assert len(runs) == 2
    last = [float(path.joinpath("history.csv").read_text().splitlines()[-1].split(",")[_column(path)]) for path in runs]
    assert last[0] != last[1]
    assert trial.score == pytest.approx(np.mean(last), abs=1e-12)
    assert trial.metrics["val_accuracy_std"] == pytest.approx(np.std(last, ddof=1))


def _column(path):
    return path.joinpath("history.csv").read_text().splitlines()[0].split(",").index("val_accuracy")


# kills ---------------------------------------------------------------------------------------------


def start(directory, oracle="bohb", workers=1, budget=12, **more):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | more
    return subprocess.Popen(
        [sys.executable, SCRIPT, directory, oracle, str(workers), str(budget)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def workers_of(chief):
    return [worker for nursery in children(chief.pid) for worker in children(nursery)]


def count(directory, kind):
    return len(list(Path(directory).glob(f"trials/trial_*/{kind}.json")))


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def finish(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def kill_again_and_again(directory, oracle, budget, kills, seed):
    """Kills chief or worker at moments drawn from the seed, each time after another trial has started."""
    random = np.random.default_rng(seed)
    process, done = start(directory, oracle, budget=budget), 0
    while done < kills and process.poll() is None:
        before = count(directory, "started")
        wait_for(lambda: count(directory, "started") > before or process.poll() is not None)  # noqa: B023
        time.sleep(random.uniform(0.0, 1.0))
        if process.poll() is None:
            if done % 5 == 0:  # the chief, and with it everything
                process.kill()
                process.communicate()
                process = start(directory, oracle, budget=budget)
            else:
                for pid in workers_of(process):
                    os.kill(pid, signal.SIGKILL)
            done += 1
    return finish(process), done


@pytest.mark.slow
def test_two_kills_of_a_search_change_no_bit_of_its_answers(here, tmp_path):
    found, kills = kill_again_and_again(tmp_path / "s", "bohb", 12, 2, 0)
    assert kills == 2
    assert found == json.loads(json.dumps(here))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The optimal value found for dimension")  # of KerasTuner's Gaussian process
@pytest.mark.parametrize("oracle", ["random", "bayesian", "asha", "bohb"])
def test_ten_kills_per_oracle_change_no_bit_of_its_answers(oracle, tmp_path):
    budget = 54 if oracle in ("random", "bayesian") else 36
    straight = answers(run(tmp_path / "a", oracle, workers=0, budget=budget))
    found, kills = kill_again_and_again(tmp_path / "b", oracle, budget, 10, 1)
    assert kills >= 9
    assert found == json.loads(json.dumps(straight))


@pytest.mark.slow
def test_four_workers_survive_the_kill_of_two_and_of_the_chief(tmp_path):
    directory = tmp_path / "s"
    process = start(directory, "asha", workers=4, budget=30)
    wait_for(lambda: len(workers_of(process)) == 4 and count(directory, "started") >= 4)
    for pid in workers_of(process)[:2]:
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: len(workers_of(process)) == 4)
    assert time.monotonic() - killed < 30
    ended = count(directory, "ended")
    wait_for(lambda: count(directory, "ended") > ended + 2)
    process.kill()
    process.communicate()
    process = start(directory, "asha", workers=4, budget=30)
    found = finish(process)
    last = max(path.stat().st_mtime for path in directory.glob("trials/trial_*/ended.json"))
    assert time.time() - last < 5 + 1
    assert len(found) == count(directory, "started") == count(directory, "ended")
    assert all(score is not None for score, _, _ in found.values())


@pytest.mark.slow
def test_workers_on_another_machine_share_the_trials_and_end_with_the_chief(tmp_path):
    directory = tmp_path / "s"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    chief = start(directory, "asha", budget=24, KERASTUNER_TUNER_ID="chief", **place)
    other = start(directory, "asha", budget=24, KERASTUNER_TUNER_ID="left", **place)
    found = finish(chief)
    ended = time.monotonic()
    assert finish(other).keys() == found.keys()
    assert time.monotonic() - ended < 10
    tuners = {r["started"]["tuner"] for r in _records.read_all(directory).values()}
    assert tuners == {"worker-0", "left-0"}


@pytest.mark.slow
def test_memory_of_chief_and_worker_grows_less_than_a_mebibyte_per_trial(tmp_path):
    directory = tmp_path / "s"
    process = start(directory, "random", budget=3 * 56)

    def resident():
        tree = [process.pid, *children(process.pid), *workers_of(process)]
        pages = 0
        for pid in tree:
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def highest(trials):
        """The peak while the next five trials run, since a fresh worker needs less than a used one."""
        wait_for(lambda: count(directory, "ended") >= trials, 200)
        peak = 0.0
        while count(directory, "ended") < trials + 6:
            peak = max(peak, resident())
            time.sleep(0.05)
        return peak

    first, last = highest(1), highest(49)
    process.kill()
    process.communicate()
    assert (last - first) / 48 <= 1.0
    assert _worker.GROWTH_MIB < 48
    print(f"{first:.0f} MiB, {last:.0f} MiB after 48 more trials")


def test_another_process_in_the_same_directory_is_refused(tmp_path):
    import filelock

    directory = tmp_path / "s"
    directory.mkdir()
    with filelock.FileLock(directory / ".lock"):
        with pytest.raises(InputError, match="another process is searching"):
            run(directory)
        assert (directory / ".lock").exists()  # whoever is refused leaves the other's lock


def test_a_changed_space_is_refused_with_the_difference(tmp_path):
    run(tmp_path / "s", workers=0, budget=3)

    def other(hp):
        return {
            "model": {"units": hp.Choice("units", [4, 8, 32])},
            **{k: v for k, v in space(hp).items() if k != "model"},
        }

    with pytest.raises(InputError, match=r"space.units.config.values: \[4, 8, 16\] there, \[4, 8, 32\] now"):
        run(tmp_path / "s", workers=0, space=other)
    with pytest.raises(InputError, match='objective: "val_accuracy" there, "val_loss" now'):
        run(tmp_path / "s", workers=0, objective="val_loss")
