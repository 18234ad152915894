"""A small run that a test can kill: `python digits_run.py RUN_DIR [STEP ...]` kills itself after each of these steps.

Prints the digest of every variable at the end. Everything that could drift is in it: shuffle, augmentation, dropout,
batch normalisation, AdamW, warm-up and cosine, averaged weights, validation.
"""

import hashlib
import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from dlkit.data import Preprocess, load
from dlkit.data.augment import Affine
from dlkit.layers import BatchNorm
from dlkit.train import Recipe, _fit, fit

RECIPE = Recipe(
    epochs=4, batch=32, optimizer="adamw", peak_lr=0.01, warmup_epochs=0.5, label_smoothing=0.1, ema=0.9,
    augment=(Affine(rotate=10, shift=0.1),), seed=3,
)  # fmt: skip
PREPROCESS = Preprocess(8, channels=1, mean=0.3, std=0.37)


def sources():
    train, test = load("digits")
    return train.subset(range(200)), test.subset(range(60))


def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(PREPROCESS.input_shape)
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(inputs)
    x = keras.layers.Activation("relu")(BatchNorm()(x))
    x = keras.layers.Dropout(0.2, seed=1)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def run(run_dir, **keywords):
    """Trains a fresh model and returns (result, digest of all variables)."""
    network = model()
    train, validation = sources()
    result = fit(network, RECIPE, train, validation, preprocess=PREPROCESS, run_dir=run_dir, verbose=False, **keywords)
    return result, digest(network)


def digest(network):
    state = hashlib.sha256()
    for variable in [*network.variables, *network.optimizer.variables]:
        state.update(np.asarray(variable).tobytes())
    return state.hexdigest()


def at_step(steps, action):
    """Calls `action` once after each of these steps, before anything of the step is saved."""
    counted = _fit._Run._count

    def count(self, *times):
        counted(self, *times)
        if self.state.step in steps:
            steps.remove(self.state.step)
            action()

    _fit._Run._count = count
    return counted


if __name__ == "__main__":
    _fit.SAVE_SECONDS = 0.0
    at_step([int(step) for step in sys.argv[2:]], lambda: os.kill(os.getpid(), signal.SIGKILL))
    print(run(sys.argv[1])[1])
