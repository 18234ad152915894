"""A tiny network with trained-looking statistics, and one export of it that many tests read."""

from pathlib import Path

import keras
import numpy as np
import pytest

from dlkit.data import Preprocess
from dlkit.export import _folders, _options
from dlkit.export._process import Checker
from dlkit.export._saved_model import Export

LABELS = ("cat", "dog", "<b>bird</b>", "fish|star", "Ёж")


def _randomised(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives every scale, offset and moving statistic a value that a wrong fold would show."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance", "scale"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


@pytest.fixture(scope="session")
def randomised():
    """The function above, for networks that a test builds itself."""
    return _randomised


@pytest.fixture(scope="session")
def tiny():
    """Returns a builder of the tiny network: convolution, batch normalisation, dropout, a dense classifier."""

    def build(classes: int = len(LABELS), activation: str | None = None, side: int = 12) -> keras.Model:
        keras.utils.set_random_seed(3)
        x = inputs = keras.Input((side, side, 3))
        for i, filters in enumerate((6, 8)):
            x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=bool(i), name=f"conv{i}")(x)
            x = keras.layers.BatchNormalization(name=f"norm{i}")(x)
            x = keras.layers.ReLU(name=f"relu{i}")(x)
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        x = keras.layers.Dropout(0.5, name="drop")(x)
        outputs = keras.layers.Dense(classes, activation=activation, name="fc")(x)
        return _randomised(keras.Model(inputs, outputs, name="tiny"))

    return build


@pytest.fixture(scope="session")
def preprocess():
    """What stands before the tiny network."""
    return Preprocess(12)


@pytest.fixture(scope="session")
def checker():
    """One checking process for all exports of the tests: its start is most of its cost."""
    with Checker() as process:
        yield process


def _export(checker, model, preprocess, labels, directory, verify_on=None, **given) -> Path:
    """Does what `saved_model` does, with a checking process that is there already."""
    values = {"version": None, "optimize": "fold", "precision": "float32", "task": None, "temperature": 1.0}
    options = _options.checked(labels, directory, **({**values, "about": None} | given))
    _options.check_width(model, options)
    shape = _options.input_shape(model, preprocess)
    with _folders.writing(options.directory) as scratch:
        return Export(model, preprocess, shape, options).write(verify_on, checker, scratch)


@pytest.fixture(scope="session")
def exported(checker, tiny, preprocess, tmp_path_factory) -> Path:
    """One default export (folded); tests read it and change only copies."""
    directory = tmp_path_factory.mktemp("saved_models") / "animals"
    return _export(checker, tiny(), preprocess, LABELS, directory, about={"metrics": {"val_accuracy": 0.5}})


@pytest.fixture
def export(checker, tmp_path):
    """Returns `saved_model` with the shared checking process instead of one of its own."""

    def call(model, preprocess, labels, directory=tmp_path / "net", *, verify_on=None, **given) -> Path:
        return _export(checker, model, preprocess, labels, directory, verify_on, **given)

    return call
