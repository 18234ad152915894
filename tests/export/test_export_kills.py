"""SIGKILL at random moments of an export: a version is complete or invisible, and leftovers go at the next run."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from dlkit.data import Preprocess
from dlkit.export import verify

SCRIPT = Path(__file__).with_name("killed_exports.py")


def run(directory: Path, kills: int, mode: str) -> list[dict]:
    command = [sys.executable, str(SCRIPT), str(directory), str(kills), "20260", mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def complete(folder: Path) -> bool:
    report = json.loads((folder / "verification.json").read_text())
    tf.saved_model.load(str(folder))
    return report["ok"] and (folder / "manifest.json").is_file() and (folder / "README.md").is_file()


def next_export_is_clean(directory: Path, export) -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    versions = [int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal()]
    folder = export(model, Preprocess(8), ["cat", "dog"], directory)
    assert int(folder.name) == max(versions) + 1
    assert not list(directory.glob(".*.tmp"))


def test_a_kill_while_an_export_writes_leaves_complete_versions_only(tmp_path):
    directory = tmp_path / "pets"
    kills = run(directory, 3, "instant")
    assert any(any(name.endswith(".tmp") for name in kill["names"]) for kill in kills), "no kill fell into the writing"
    versions = [entry for entry in directory.iterdir() if entry.name.isdecimal()]
    assert all(complete(folder) for folder in versions)
    assert {name for kill in kills for name in kill["names"] if name.isdecimal()} <= {
        folder.name for folder in versions
    }


@pytest.mark.slow
def test_twenty_kills_through_export_and_check_never_show_a_version_that_fails(tmp_path, export):
    directory = tmp_path / "pets"
    kills = run(directory, 20, "real")
    assert len(kills) == 20
    versions = [entry for entry in directory.iterdir() if entry.name.isdecimal()]
    assert all(complete(folder) for folder in versions)
    assert all(verify(folder).ok for folder in versions[:3])
    next_export_is_clean(directory, export)
