"""KerasTuner's Hyperband against dlkit's search by wall-clock: python benchmarks/tune_cifar.py --data FOLDER

FOLDER holds one subfolder of pictures per class (CIFAR-10's training images). Both search the same space for the same
network on the same fixed 2,000 training and 1,000 validation pictures, trials of at most 9 epochs, on the same machine:

1. `keras_tuner.Hyperband` with plain Keras, as its user writes it: layers of Keras, `model.fit`, arrays in memory.
   It runs for --seconds or one full Hyperband iteration, whichever ends first.
2. `dlkit.tune.search(oracle="bohb")`, until it has a trial as good as Hyperband's best, or for as long as Hyperband.

The figure is the second's time until then, as a share of the first's. Logs of both: results/tune_cifar_*.jsonl.
"""

import argparse
import json
import math
import os
import platform
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
    model.compile(
        optimizer, keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing), ["accuracy"]
    )
    return model


def hyperband(folder, seconds, seed, log):
    """KerasTuner's own tuner; a line per ended trial."""
    import keras
    import keras_tuner

    held, _ = data(folder)
    began = time.monotonic()

    class Logged(keras_tuner.Hyperband):
        def on_trial_end(self, trial):
            super().on_trial_end(trial)
            score = self.oracle.get_trial(trial.trial_id).score
            write(log, began, trial.trial_id, score, trial.hyperparameters.values)
            if time.monotonic() - began > seconds:
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
        "model": {"activation": hp.Choice("activation", ["relu", "swish"])},
        "recipe": {
            "peak_lr": hp.Float("peak_lr", 0.005, 0.5, sampling="log"),
            "weight_decay": hp.Float("weight_decay", 1e-5, 1e-2, sampling="log"),
            "label_smoothing": hp.Choice("label_smoothing", [0.0, 0.1]),
        },
    }


def ours(folder, seconds, seed, log, target):
    """dlkit's search; a line per ended trial; it ends when the target is reached."""
    from dlkit.data import Preprocess, from_arrays
    from dlkit.data.augment import Affine, Flip
    from dlkit.train import Recipe
    from dlkit.tune import search

    held, classes = data(folder)
    sources = [from_arrays(x, y, classes=classes, name=name) for name, (x, y) in held.items()]
    recipe = Recipe(
        epochs=EPOCHS, batch=64, optimizer="nesterov", warmup_epochs=0.0, precision="auto",
        augment=(Flip(), Affine(shift=0.125)),
    )  # fmt: skip
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        watch(Path(directory), began, seconds, log, target)
        search(
            build, space, recipe, *sources, preprocess=Preprocess(SIDE, mean=0.5, std=0.25), oracle="bohb",
            epochs_budget=10_000, directory=directory, seed=seed, verbose=False,
        )  # fmt: skip


def watch(directory, began, seconds, log, target):
    """Logs the records of ended trials as they appear and ends the process at the target or the time."""
    seen = set()

    def look():
        while True:
            for path in sorted(directory.glob("trials/*/ended.json")):
                if path not in seen:
                    seen.add(path)
                    record = json.loads(path.read_text())["record"]
                    write(log, began, record["id"], record["score"], record["values"])
                    if (record["score"] or 0) >= target:
                        os._exit(0)
            if time.monotonic() - began > seconds:
                os._exit(0)
            time.sleep(0.05)

    threading.Thread(target=look, daemon=True).start()


def write(log, began, trial, score, values):
    row = {"seconds": round(time.monotonic() - began, 2), "trial": trial, "score": score, "values": values}
    with open(log, "a") as file:
        file.write(json.dumps(row) + "\n")


def rows(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def part(arguments, seed, name, log, *more):
    """Runs one contestant in a process of its own, which counts its imports too."""
    log.unlink(missing_ok=True)
    began = time.monotonic()
    command = [sys.executable, __file__, "--data", arguments.data, "--part", name, "--log", str(log)]
    subprocess.run(
        [*command, "--seconds", str(arguments.seconds), "--seed", str(seed), *more], check=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - began


def main(arguments):
    RESULTS.mkdir(exist_ok=True)
    found = []
    for seed in range(arguments.seeds):
        logs = [RESULTS / f"tune_cifar_{name}_{seed}.jsonl" for name in ("hyperband", "bohb")]
        wall = part(arguments, seed, "hyperband", logs[0])
        theirs = rows(logs[0])
        best = max(row["score"] for row in theirs if row["score"] is not None)
        part(arguments, seed, "bohb", logs[1], "--target", str(best))
        mine = rows(logs[1])
        reached = next((row["seconds"] for row in mine if (row["score"] or 0) >= best), None)
        found.append(
            {
                "seed": seed, "hyperband_best": best, "hyperband_seconds": theirs[-1]["seconds"],
                "hyperband_seconds_until_its_best": next(r["seconds"] for r in theirs if r["score"] == best),
                "hyperband_trials": len(theirs), "hyperband_wall": round(wall, 1), "bohb_seconds": reached,
                "bohb_best": max((row["score"] or 0) for row in mine), "bohb_trials": len(mine),
                "share": reached and round(reached / theirs[-1]["seconds"], 3),
            }
        )  # fmt: skip
        print(json.dumps(found[-1], indent=1))
    about = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "runs": found}
    (RESULTS / "tune_cifar.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with a subfolder of pictures for each class")
    parser.add_argument("--seconds", type=float, default=600, help="the most that either search may take")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=float, default=2.0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "hyperband":
        hyperband(given.data, given.seconds, given.seed, given.log)
    elif given.part == "bohb":
        ours(given.data, given.seconds, given.seed, given.log, given.target)
    else:
        main(given)
