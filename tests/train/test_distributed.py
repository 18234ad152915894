"""Two replicas, in one process and in two, train what one does: the stream is a function of the sample counter."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.train import Recipe, load_run
from dlkit.train._distribute import Workers

SCRIPT = Path(__file__).with_name("distributed_run.py")
# measured: losses 4e-8 and weights 6e-8 without batch normalisation, 6e-8 and 2e-7 with it
TOLERANCE = {"none": 1e-6, "batch": 1e-5}


def start(kind, norm, run_dir, step=0, *cluster):
    command = [sys.executable, str(SCRIPT), kind, norm, str(run_dir), str(step), *map(str, cluster)]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def results(*processes):
    found = []
    for process in processes:
        out, error = process.communicate(timeout=150)
        assert process.returncode == 0, error[-3000:]
        found.append(json.loads(next(line for line in out.splitlines() if line.startswith("RESULT "))[7:]))
    return found


def two_workers(norm, run_dir, step=0):
    with socket.socket() as a, socket.socket() as b:
        for port in (a, b):
            port.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{port.getsockname()[1]}" for port in (a, b)]
    return results(*(start("workers", norm, run_dir, step, index, *addresses) for index in (0, 1)))


def assert_equal(found, expected, tolerance):
    assert [row["step"] for row in found["history"]] == [row["step"] for row in expected["history"]]
    for row, other in zip(found["history"], expected["history"], strict=True):
        for name in ("loss", "val_loss", "accuracy", "gradient_norm", "learning_rate"):
            assert row[name] == pytest.approx(other[name], abs=tolerance), name
    for values, others in zip(found["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(values, others, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_two_devices_and_two_processes_train_what_one_device_does(norm, tmp_path):
    (one,) = results(start("one", norm, tmp_path / "one"))
    (mirrored,) = results(start("mirrored", norm, tmp_path / "mirrored"))
    assert_equal(mirrored, one, TOLERANCE[norm])
    if norm == "batch":  # a signal to the second of them stops both after the next step; new processes continue
        stopped = two_workers(norm, tmp_path / "workers", step=8)
        assert [found["interrupted"][:20] for found in stopped] == ["stopped at step 9 of"] * 2
        assert [path.name for path in (tmp_path / "workers" / "checkpoints").iterdir()] == ["step_0000000009.ckpt"]
    first, second = two_workers(norm, tmp_path / "workers")
    assert_equal(first, one, TOLERANCE[norm])
    assert first["weights"] == second["weights"]
    assert [r["val_loss"] for r in first["history"]] == [r["val_loss"] for r in second["history"]]
    held = load_run(tmp_path / "workers")  # written once, by the first process
    saved = [np.asarray(variable).astype(float).ravel().tolist() for variable in held.model.weights]
    assert saved == first["weights"]


def test_a_batch_that_replicas_and_micro_batches_cannot_share_is_refused():
    class Two:
        num_replicas_in_sync = 2

    class Variable:
        value = type("Value", (), {"distribute_strategy": Two()})()

    class Model:
        variables = [Variable()]  # noqa: RUF012

    assert Workers.of(Model, Recipe(batch=12, accumulate=3)).replicas == 2
    with pytest.raises(InputError, match="choose a multiple of 6"):
        Workers.of(Model, Recipe(batch=15, accumulate=3))


def test_a_model_built_outside_a_strategy_has_one_replica():
    inputs = keras.Input((2,))
    workers = Workers.of(keras.Model(inputs, keras.layers.Dense(1)(inputs)), Recipe())
    assert (workers.index, workers.count, workers.replicas, workers.chief) == (0, 1, 1, True)
    assert workers.agreed(3.5) == 3.5
    batch = (np.zeros((4, 2)), np.zeros((4, 1)))
    assert workers.split(batch) is batch
