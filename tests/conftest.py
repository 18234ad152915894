"""A strict, quiet and repeatable environment for every test: fixed seeds, no network, warnings are errors."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["COLUMNS"] = "200"  # whichever test comes first makes the console: tables as in a wide terminal
os.environ.setdefault("NO_GCE_CHECK", "true")  # tensorflow-datasets asks the cloud's metadata server otherwise

import keras
import pytest


@pytest.fixture(autouse=True)
def _fresh_keras_state():
    """Seeds every generator and restores the global state of Keras that a test may have changed."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)
