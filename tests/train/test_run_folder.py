"""The folder of a run: what may continue it, what leaves no trace in it, what reads it again."""

import dataclasses
import io
import json
import logging
import os
import shutil
import signal

import digits_run as small
import filelock
import keras
import numpy as np
import pytest
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import Preprocess, Standardize, from_arrays, from_folder
from dlkit.models import mlp
from dlkit.train import DivergedError, Interrupted, Recipe, _fit, evaluate, fit, load_run
from dlkit.train._run_dir import locked
from dlkit.train.stopping import Patience

RECIPE = Recipe(epochs=2, batch=10, optimizer="sgd", peak_lr=0.01, warmup_epochs=0, weight_decay=0.0)


def pictures(seed=0, classes=("кот", "пёс")):
    images = np.random.default_rng(seed).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    return from_arrays(images, np.arange(20) % 2, classes=classes)


def network(shape=(8, 8, 1)):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))


def train(run_dir, validation=None, source=None, preprocess=small.PREPROCESS, stop_after=None, **fields):
    return fit(
        network(preprocess.input_shape), dataclasses.replace(RECIPE, **fields), source or pictures(), validation,
        preprocess=preprocess, run_dir=run_dir, stop_after=stop_after, verbose=False,
    )  # fmt: skip


def test_a_run_that_fails_before_its_first_checkpoint_leaves_its_folder_to_the_next(tmp_path):
    folder = tmp_path / "run"
    for fields, error in (
        ({"stop": (Patience(),)}, InputError), ({"stop_after": 0}, InputError), ({"peak_lr": 1e38}, DivergedError),
    ):  # fmt: skip
        with pytest.raises(error):
            train(folder, **fields)
        assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="fits no layer"):
        train(folder, freeze=("nothing",))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    train(folder, stop_after=1)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(InputError, match="every checkpoint"):
        train(folder)
    assert (folder / "recipe.json").exists()  # a run that has saved something keeps what it has


def test_a_file_that_cannot_be_read_is_refused_before_anything_is_written(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(3):
            picture = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            (tmp_path / label / f"{i}.png").write_bytes(tf.io.encode_png(picture).numpy())
    bad, preprocess = tmp_path / "cat" / "bad.png", Preprocess(8)
    bad.write_bytes(b"no picture")
    broken, sound = from_folder(tmp_path), pictures(classes=("cat", "dog"))
    for source, validation in ((broken, None), (sound, broken)):
        with pytest.raises(InputError, match=r"cat/bad\.png"):
            train(tmp_path / "run", validation, source, preprocess)
        assert not (tmp_path / "run").exists()
    bad.unlink()
    train(tmp_path / "run", source=from_folder(tmp_path), preprocess=preprocess)  # mended: the same folder takes it


def test_a_run_goes_on_with_the_validation_that_it_began_with(tmp_path):
    train(tmp_path / "without", stop_after=1)
    with pytest.raises(InputError, match="was trained without a validation source so far; leave it out"):
        train(tmp_path / "without", pictures(1))
    train(tmp_path / "with", pictures(1), stop_after=1)
    with pytest.raises(InputError, match="was trained with a validation source so far; give it again"):
        train(tmp_path / "with")
    with pytest.raises(InputError, match=r"validation\.fingerprint"):
        train(tmp_path / "with", pictures(2))
    assert len(train(tmp_path / "with", pictures(1)).history) == 2
    assert train(tmp_path / "with").metrics  # a finished run tells what it measured
    train(tmp_path / "without")
    assert train(tmp_path / "without", pictures(1)).metrics  # and is measured now if it was not


def test_a_signal_during_the_last_step_is_not_lost(tmp_path):
    counted = small.at_step([4], lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Interrupted, match="all is saved"):
            train(tmp_path)
    finally:
        _fit._Run._count = counted
    assert (tmp_path / "model.keras").exists()
    assert len(train(tmp_path).history) == 2


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / "checkpoints" / ".step_0000000002.ckpt.abc.tmp", tmp_path / ".model.keras.x1.tmp"]
    kept = [tmp_path / ".mine.tmp", tmp_path / "checkpoints" / "step_2.tmp"]
    for path in left + kept:
        path.write_bytes(b"half")
    train(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_the_lock_file_is_gone_before_the_lock_is(tmp_path, monkeypatch):
    """Removed afterwards it might be the one that another process holds by then, and a third would get in."""
    seen = []
    release = filelock.FileLock.release
    monkeypatch.setattr(
        filelock.FileLock, "release", lambda self, *a, **k: (seen.append((tmp_path / ".lock").exists()), release(self))
    )
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert seen[0] is False


def test_missing_best_weights_are_an_error_and_never_the_last_ones(tmp_path):
    stop = (Patience(patience=5),)
    train(tmp_path, pictures(1), stop=stop)
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(InputError, match="the best epoch's weights"):
        train(tmp_path, pictures(1), stop=stop)


def test_the_run_of_a_table_is_read_again(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 3))
    source = from_arrays(x, x.sum(1))
    preprocess = Standardize.of(source)
    model = mlp((4,), classes=1, input_shape=(3,))
    recipe = dataclasses.replace(RECIPE, task="regression")
    result = fit(model, recipe, source, source, preprocess=preprocess, run_dir=tmp_path, verbose=False)
    held = load_run(tmp_path)
    assert held.preprocess == preprocess
    assert held.classes is None
    assert evaluate(held.model, source, preprocess=held.preprocess) == result.metrics


@pytest.mark.parametrize("text", ["{", "[1]", '{"recipe": {}}'])
def test_a_damaged_description_of_a_run_is_named(tmp_path, text):
    (tmp_path / "model.keras").write_bytes(b"")
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(InputError, match=r"recipe\.json is damaged"):
        load_run(tmp_path)


def test_the_description_of_a_run_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    """Python reads text in the locale's encoding where none is named."""
    train(tmp_path, stop_after=1)
    assert json.loads((tmp_path / "recipe.json").read_bytes())["classes"] == ["кот", "пёс"]
    monkeypatch.setattr(io, "text_encoding", lambda encoding, level=2: encoding or "cp1251")
    assert load_run(tmp_path).classes == ("кот", "пёс")
    assert len(train(tmp_path).history) == 2


def test_many_models_in_one_process_are_no_reason_for_a_warning(tmp_path, caplog):
    """TensorFlow counts the traces of all models together and warns from the fifth on."""
    from tensorflow.python.eager.polymorphic_function import polymorphic_function

    polymorphic_function._frequent_tracing_detector_manager._detectors.clear()
    logging.getLogger("tensorflow").addHandler(caplog.handler)
    try:
        for i in range(6):
            train(tmp_path / str(i), pictures(1), epochs=1, batch=20)
    finally:
        logging.getLogger("tensorflow").removeHandler(caplog.handler)
    assert "retracing" not in caplog.text
