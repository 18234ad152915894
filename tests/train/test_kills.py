"""Kills, damage and full disks: the run ends with the same bits, or says what is wrong and keeps what is good."""

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import digits_run as small
import keras
import killed_run
import numpy as np
import pytest

from dlkit.train import DamagedCheckpointWarning, Interrupted, _fit, resume

LAST = f"step_{killed_run.STEPS:010d}.ckpt"


def killed(run_dir, kills):
    done = subprocess.run(
        [sys.executable, killed_run.__file__, str(run_dir), *kills], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [line.rsplit(" ", 1) for line in done.stdout.splitlines()]


def contents(run_dir):
    """Everything that the last checkpoint holds, times left out, and the weights of the saved model."""
    with np.load(io.BytesIO((run_dir / "checkpoints" / LAST).read_bytes()[:-32])) as archive:
        arrays = {name: archive[name].tobytes() for name in archive.files if name != "state"}
        state = json.loads(archive["state"].tobytes())
    history = [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in state.pop("history")]
    state = {k: v for k, v in state.items() if k not in ("seconds", "epoch_seconds", "waiting")}
    model = keras.models.load_model(run_dir / "model.keras", compile=False)
    return arrays, state, history, [np.asarray(variable).tobytes() for variable in model.weights]


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_bits_of_one_that_was_not(tmp_path):
    """Shuffle, augmentation, mixup, dropout, batch normalisation, AdamW, warm-up and cosine, averaged weights, early
    stopping, plateau, clipping and micro-batches; epochs end at steps 6, 12, 19, 25, 31, 38 and 44."""
    rng = random.Random(0)
    steps = sorted({6, 44, *rng.sample([s for s in range(1, killed_run.STEPS) if s != 6], 18)})
    kills = [f"{step}:{rng.choice(['step', 'save'])}" for step in steps]
    assert len(kills) == 20
    ended = killed(tmp_path / "killed", kills)
    assert [[kill, code] for kill, code in ended] == [*([kill, str(int(signal.SIGKILL))] for kill in kills), ["", "0"]]
    assert killed(tmp_path / "straight", []) == [["", "0"]]
    found, expected = contents(tmp_path / "killed"), contents(tmp_path / "straight")
    for part, (a, b) in zip(("variables", "state", "history", "model"), zip(found, expected, strict=True), strict=True):
        assert a == b, part
    assert expected[1]["stopped"].startswith("val_loss has not improved")
    assert len(expected[2]) == 7
    rates = [row["learning_rate"] for row in expected[2]]
    assert rates[5] / rates[4] < 0.5  # the plateau's factor, on top of the cosine


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return small.run(tmp_path_factory.mktemp("straight") / "run")


def interrupted(run_dir, monkeypatch):
    """Stops the small run at its 14th step with three checkpoints."""
    monkeypatch.setattr(_fit, "SAVE_SECONDS", 0.0)
    counted = small.at_step([14], lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Interrupted):
            small.run(run_dir)
    finally:
        _fit._Run._count = counted


def zeroed(content):
    return bytes(len(content))


def halved(content):
    return content[: len(content) // 2]


def flipped(content):
    return content[:-40] + bytes([content[-40] ^ 4]) + content[-39:]


@pytest.mark.slow
def test_each_kind_of_damage_to_the_newest_checkpoint_ends_in_the_same_bits(straight, tmp_path, monkeypatch):
    interrupted(tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "mine.txt").write_text("mine")
    for damage in (zeroed, halved, flipped, None):
        run_dir = tmp_path / (damage.__name__ if damage else "missing")
        shutil.copytree(tmp_path / "run", run_dir)
        newest = max((run_dir / "checkpoints").iterdir())
        assert newest.name == "step_0000000014.ckpt"
        if damage is None:
            newest.unlink()
            _, digest = small.run(run_dir)
        else:
            newest.write_bytes(damage(newest.read_bytes()))
            with pytest.warns(DamagedCheckpointWarning, match=newest.name):
                _, digest = small.run(run_dir)
        assert digest == straight[1]
        assert (run_dir / "mine.txt").read_text() == "mine"


def test_a_file_that_cannot_grow_is_an_error_that_keeps_the_last_good_checkpoint(tmp_path):
    variable = keras.Variable(np.zeros(1000), name="v")
    resume.save(tmp_path, 1, [variable], {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"step 2 could not be written.*step_0000000001\.ckpt, is kept"):
            resume.save(tmp_path, 2, [variable], {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000000001.ckpt"]
    assert resume.restore(tmp_path, [variable]) == {"step": 1}


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_run_continues_when_there_is_space(straight, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    checkpoint = max((straight[0].run_dir / "checkpoints").iterdir()).stat().st_size
    size = f"size={checkpoint * 5 // 2048 + 16}k"  # two checkpoints and not three
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    monkeypatch.setattr(_fit, "SAVE_SECONDS", 0.0)
    try:
        with pytest.raises(OSError, match=r"No space left on device.*is kept\. Free space and call again"):
            small.run(disk / "run")
        held = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
        assert held
        assert all(name.endswith(".ckpt") for name in held)
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        _, digest = small.run(disk / "run")
        assert digest == straight[1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_missing_history_file_is_written_again(straight, tmp_path, monkeypatch):
    interrupted(tmp_path / "run", monkeypatch)
    Path(tmp_path / "run" / "history.csv").unlink()
    result, digest = small.run(tmp_path / "run")
    assert digest == straight[1]
    assert len((result.run_dir / "history.csv").read_text().splitlines()) == 1 + len(result.history)
