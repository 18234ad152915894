"""A thousand layers within the stated time and memory; each measurement in a process of its own."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

CODE = """
import json, sys, time
import keras, numpy as np
from dlkit import models

depth, remat, batch = int(sys.argv[1]), sys.argv[2] == "remat", int(sys.argv[3])
t = time.perf_counter()
model = models.resnet_cifar(depth, remat=remat)
build = time.perf_counter() - t
x = np.random.default_rng(0).normal(size=(batch, 32, 32, 3)).astype("float32")
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
t = time.perf_counter()
model.train_on_batch(x, np.arange(batch) % 10)
step = time.perf_counter() - t
status = open("/proc/self/status").read()  # ru_maxrss would begin at that of the process that forked this one
peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
print(json.dumps({"build": build, "step": step, "peak": peak}))
"""


def measure(depth: int, kind: str, batch: int) -> dict[str, float]:
    command = [sys.executable, "-c", CODE, str(depth), kind, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_tracing_grows_slower_than_depth():
    deep, shallow = measure(1202, "plain", 2), measure(110, "plain", 2)
    assert deep["build"] < 8.0
    assert deep["step"] <= 5.0 * shallow["step"]


def test_a_rematerialised_step_of_1202_layers_at_batch_128_stays_under_six_gibibytes():
    assert measure(1202, "remat", 128)["peak"] < 6.0
