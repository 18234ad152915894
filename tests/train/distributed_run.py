"""A run on several replicas: `python distributed_run.py KIND NORM RUN_DIR STEP [INDEX ADDRESS ADDRESS]`.

KIND is "one", "mirrored" (two logical CPU devices) or "workers" (two processes, this one is INDEX). The last worker
gets a SIGTERM at STEP, if that is not 0. Prints a line of JSON: the history and the weights as a list, or why it was
interrupted. Each kind needs a process of its own.
"""

# ruff: noqa: E402 - devices and the cluster must be known to TensorFlow before anything else is imported
import json
import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
KIND, NORM, RUN_DIR, STEP, *CLUSTER = sys.argv[1:]
if KIND == "workers":
    task = {"type": "worker", "index": int(CLUSTER[0])}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": CLUSTER[1:]}, "task": task})

import tensorflow as tf


def strategy():
    if KIND == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if KIND == "mirrored":
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return tf.distribute.get_strategy()


chosen = strategy()  # before any other operation

import keras
import numpy as np
from digits_run import PREPROCESS, at_step, sources

from dlkit.data.augment import Affine, MixUp
from dlkit.layers import BatchNorm
from dlkit.train import Interrupted, Recipe, fit
from dlkit.train.stopping import Patience, Plateau

RECIPE = Recipe(
    epochs=3, batch=32, optimizer="momentum", peak_lr=0.05, l2=1e-3, clip_norm=1.0, ema=0.9,
    augment=(Affine(rotate=10, shift=0.1), MixUp(0.2)), accumulate=2 if NORM == "none" else 1,
    stop=(Patience(patience=5),), plateau=Plateau(patience=1, min_delta=10.0),
    precision="float32",  # bfloat16's rounding depends on how a batch is cut
)  # fmt: skip

keras.utils.set_random_seed(0)
with chosen.scope():
    inputs = keras.Input(PREPROCESS.input_shape)
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(inputs)
    if NORM == "batch":
        x = BatchNorm(synchronized=KIND != "one")(x)
    x = keras.layers.Flatten()(keras.layers.Activation("relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
if int(STEP) and CLUSTER[0] == "1":
    at_step([int(STEP)], lambda: os.kill(os.getpid(), signal.SIGTERM))
try:
    result = fit(model, RECIPE, *sources(), preprocess=PREPROCESS, run_dir=RUN_DIR, verbose=False)
except Interrupted as stopped:
    print("RESULT " + json.dumps({"interrupted": str(stopped)}), flush=True)
    sys.exit(0)
weights = [np.asarray(variable).astype(float).ravel().tolist() for variable in model.weights]
print("RESULT " + json.dumps({"history": result.history, "metrics": result.metrics, "weights": weights}), flush=True)
