"""Exports in forked children and kills them: `python killed_exports.py DIRECTORY KILLS SEED real|instant`.

The parent imports everything once and computes nothing, so that a fork is clean. Each child builds the network, says
that it is ready, and exports; the parent sends SIGKILL after a delay drawn from the seed, between nothing and somewhat
more than an export takes. "instant" replaces the checking process by a report that is written at once, and leaves out
the preprocessing, which takes longest to trace, so that kills fall on the writing; it goes on until one did. Prints one
JSON line per kill: delay, the visible versions, leftovers.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import keras

from dlkit.data import Preprocess
from dlkit.export import Check, Report, _saved_model, saved_model


class Instant:
    """Stands for the checking process: everything is fine, at once."""

    def __enter__(self):
        return self

    def __exit__(self, *details):
        pass

    def run(self, folder, request, cases):
        return Report(request["export"], (Check("instant", True),), 0.0, {}, request["samples"])


def export(directory: str, ready: int, preprocess: Preprocess | None) -> None:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    os.write(ready, b"!")
    saved_model(model, preprocess, ["cat", "dog"], directory)


def killed(directory: str, delay: float, preprocess: Preprocess | None) -> float:
    """Returns the seconds after which the child was killed or had ended."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        export(directory, write, preprocess)
        os._exit(0)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    started = time.monotonic()
    while (
        time.monotonic() - started < delay and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.monotonic() - started


def main() -> None:
    directory, kills, seed, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    preprocess = Preprocess(8)
    if mode == "instant":
        _saved_model.Checker, preprocess = Instant, None
    longest = killed(directory, 120.0, preprocess)  # one export runs to its end, and tells how long that takes
    rng = random.Random(seed)
    count, hit = 0, mode == "real"
    while count < kills or (not hit and count < 10 * kills):  # a short test goes on until a kill fell into the writing
        count += 1
        delay = killed(directory, rng.uniform(0, 1.05 * longest), preprocess)
        names = [entry.name for entry in Path(directory).iterdir()]
        hit = hit or any(name.endswith(".tmp") for name in names)
        print(json.dumps({"delay": delay, "longest": longest, "names": sorted(names)}), flush=True)


if __name__ == "__main__":
    main()
