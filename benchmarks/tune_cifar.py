"""KerasTuner's Hyperband against dlkit's search by wall-clock: python benchmarks/tune_cifar.py --data FOLDER

FOLDER holds one subfolder of pictures per class (CIFAR-10's training images). Both search the same space for the same
network on the same fixed 2,000 training and 1,000 validation pictures, trials of at most 9 epochs, on the same machine:

1. `keras_tuner.Hyperband` with plain Keras, as its user writes it: layers of Keras, `model.fit`, arrays in memory.
   It runs one full Hyperband iteration, or for --seconds.
2. `dlkit.tune.search(oracle="bohb")`, until it has a trial as good as Hyperband's best, or for as long as Hyperband.

The figure is the second's time until then, as a share of the first's; both count from the start of their process. A
trial's score is that of its best epoch in Hyperband and that of its last epoch here. The best of Hyperband is a maximum
over trials on 1,000 pictures, so take several seeds. Logs of both: results/tune_cifar_*.jsonl.
"""

import _thread
import argparse
import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TRAIN, VALIDATION, SIDE, EPOCHS = 2000, 1000, 32, 9
RESULTS = Path(__file__).parent / "results"


def data(folder):
    """The same pictures for both: the first 200 and the next 100 of every class, by name."""
    import numpy as np
    import tensorflow as tf

    classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
    parts = {"train": ([], []), "validation": ([], [])}
    for label, name in enumerate(classes):
        files = sorted((Path(folder) / name).iterdir())[: (TRAIN + VALIDATION) // len(classes)]
        for i, file in enumerate(files):
            x, y = parts["train" if i < TRAIN // len(classes) else "validation"]
            x.append(tf.io.decode_image(file.read_bytes(), channels=3).numpy())
            y.append(label)
    return {name: (np.stack(x), np.array(y)) for name, (x, y) in parts.items()}, classes


def plain_resnet(hp):
    """ResNet-8 at half width, as a Keras user writes it."""
    import keras
    from keras import layers

    def unit(x, filters, strides):
        shortcut = x
        y = layers.Conv2D(filters, 3, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
        y = layers.Activation(activation)(layers.BatchNormalization(momentum=0.9)(y))
        y = layers.Conv2D(filters, 3, 1, "same", use_bias=False, kernel_initializer="he_normal")(y)
        y = layers.BatchNormalization(momentum=0.9)(y)
        if strides != 1:
            shortcut = layers.Conv2D(filters, 1, strides, use_bias=False, kernel_initializer="he_normal")(x)
            shortcut = layers.BatchNormalization(momentum=0.9)(shortcut)
        return layers.Activation(activation)(layers.Add()([y, shortcut]))

    activation = hp.Choice("activation", ["relu", "swish"])
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 64, offset=-2)(inputs)
    x = layers.RandomTranslation(0.125, 0.125)(layers.RandomFlip("horizontal")(x))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.Activation(activation)(layers.BatchNormalization(momentum=0.9)(x))
    for filters, strides in ((8, 1), (16, 2), (32, 2)):
        x = unit(x, filters, strides)
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    rate = hp.Float("peak_lr", 0.005, 0.5, sampling="log")
    decay = hp.Float("weight_decay", 1e-5, 1e-2, sampling="log")
    steps = math.ceil(TRAIN / 64)
    schedule = keras.optimizers.schedules.CosineDecay(rate, EPOCHS * steps)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=decay)
    smoothing = hp.Choice("label_smoothing", [0.0, 0.1])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def hyperband(folder, seconds, seed, log, began):
    """KerasTuner's own tuner; a line per ended trial, whose score is that of its best epoch."""
    import keras
    import keras_tuner

    held, _ = data(folder)

    class Logged(keras_tuner.Hyperband):
        def on_trial_end(self, trial):
            super().on_trial_end(trial)
            score = self.oracle.get_trial(trial.trial_id).score
            write(log, began, trial.trial_id, score, trial.hyperparameters.values)
            if time.time() - began > seconds:
                self.oracle.max_trials = len(self.oracle.trials)

    keras.utils.set_random_seed(seed)
    with tempfile.TemporaryDirectory() as directory:
        tuner = Logged(
            plain_resnet, "val_accuracy", max_epochs=EPOCHS, factor=3, seed=seed + 1, directory=directory
        )  # fmt: skip
        (x, y), (vx, vy) = held["train"], held["validation"]
        tuner.search(
            x, keras.utils.to_categorical(y), validation_data=(vx, keras.utils.to_categorical(vy)), batch_size=64,
            verbose=0,
        )  # fmt: skip


def build(**overrides):
    from dlkit.models import resnet_cifar

    return resnet_cifar(8, classes=10, width=0.5, shortcut="B", **overrides)


def space(hp):
    return {
        "model": {"activation": hp.Choice("activation", ["relu", "silu"])},  # Keras' swish; dlkit's has a learnt beta
        "recipe": {
            "peak_lr": hp.Float("peak_lr", 0.005, 0.5, sampling="log"),
            "weight_decay": hp.Float("weight_decay", 1e-5, 1e-2, sampling="log"),
            "label_smoothing": hp.Choice("label_smoothing", [0.0, 0.1]),
        },
    }


def ours(folder, seconds, seed, log, began, target, workers):
    """dlkit's search; a line per ended trial, whose score is that of its last epoch; it ends at the target."""
    from dlkit.data import Preprocess, from_arrays
    from dlkit.data.augment import Affine, Flip
    from dlkit.train import Recipe
    from dlkit.tune import search

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    held, classes = data(folder)
    sources = [from_arrays(x, y, classes=classes, name=name) for name, (x, y) in held.items()]
    recipe = Recipe(
        epochs=EPOCHS, batch=64, optimizer="nesterov", warmup_epochs=0.0, precision="float32",
        augment=(Flip(), Affine(shift=0.125)),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(KeyboardInterrupt):
        watch(Path(directory), began, seconds, log, target)
        search(
            build, space, recipe, *sources, preprocess=Preprocess(SIDE, mean=0.5, std=0.25), oracle="bohb",
            epochs_budget=10_000, directory=directory, seed=seed, workers=workers, verbose=False,
        )  # fmt: skip


def watch(directory, began, seconds, log, target):
    """Logs the records of ended trials as they appear and ends the search at the target or the time."""
    seen = set()

    def look():
        best = 0.0
        while best < target and time.time() - began < seconds:
            for path in sorted(set(directory.glob("trials/*/ended.json")) - seen):
                seen.add(path)
                record = json.loads(path.read_text())["record"]
                best = max(best, record["score"] or 0.0)
                write(log, began, record["id"], record["score"], record["values"])
            time.sleep(0.05)
        _thread.interrupt_main()

    threading.Thread(target=look, daemon=True).start()


def write(log, began, trial, score, values):
    row = {"seconds": round(time.time() - began, 2), "trial": trial, "score": score, "values": values}
    with open(log, "a") as file:
        file.write(json.dumps(row) + "\n")


def part(arguments, seed, name, seconds, *more):
    """Runs one contestant in a process of its own and returns the lines of its log; imports count."""
    log = RESULTS / f"tune_cifar_{name}_{seed}.jsonl"
    log.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--data", arguments.data, "--part", name, "--log", str(log)]
    command += ["--seconds", str(seconds), "--workers", str(arguments.workers), "--seed", str(seed), *more]
    subprocess.run(
        [*command, "--began", str(time.time())], check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return [json.loads(line) for line in log.read_text().splitlines()]


def first(rows, target):
    """Seconds until a trial was as good as the target, or None."""
    return next((row["seconds"] for row in rows if (row["score"] or 0.0) >= target), None)


def main(arguments):
    RESULTS.mkdir(exist_ok=True)
    found = []
    for seed in range(arguments.seeds):
        theirs = part(arguments, seed, "hyperband", arguments.seconds)
        best, seconds = max(row["score"] or 0.0 for row in theirs), theirs[-1]["seconds"]
        mine = part(arguments, seed, "bohb", seconds, "--target", str(best))
        reached = first(mine, best)
        found.append(
            {
                "seed": seed, "hyperband_best": best, "hyperband_trials": len(theirs), "hyperband_seconds": seconds,
                "hyperband_seconds_until_its_best": first(theirs, best), "bohb_seconds": reached,
                "bohb_best": max((row["score"] or 0.0) for row in mine), "bohb_trials": len(mine),
                "share": reached and round(reached / seconds, 3),
            }
        )  # fmt: skip
        print(json.dumps(found[-1], indent=1), flush=True)
        about = {
            "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(),
            "workers": arguments.workers, "runs": found,
        }  # fmt: skip
        (RESULTS / "tune_cifar.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with a subfolder of pictures for each class")
    parser.add_argument("--seconds", type=float, default=600, help="the most that Hyperband may take")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="of dlkit's search, on the same processors")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=float, default=2.0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "hyperband":
        hyperband(given.data, given.seconds, given.seed, given.log, given.began)
    elif given.part == "bohb":
        ours(given.data, given.seconds, given.seed, given.log, given.began, given.target, given.workers)
    else:
        main(given)
