"""The loop learns, repeats itself to the bit, continues to the bit after any stop, and refuses what does not fit."""

import csv
import dataclasses
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import digits_run as small
import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.data import Preprocess, from_arrays
from dlkit.train import DivergedError, Interrupted, Recipe, _fit, evaluate, fit, load_run, optimizers

STEPS = 25  # round(4 * 200 / 32)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing interrupts."""
    return small.run(tmp_path_factory.mktemp("straight") / "run")


def without_times(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in history]


def test_a_run_learns_and_leaves_what_the_design_promises(straight):
    result, _ = straight
    assert [row["step"] for row in result.history] == [6, 12, 19, 25]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.metrics["accuracy"] > 0.3  # chance is 0.1
    assert result.best["val_accuracy"] == max(row["val_accuracy"] for row in result.history)
    names = {path.name for path in result.run_dir.iterdir()}
    assert names == {"recipe.json", "history.csv", "events", "checkpoints", "model.keras", "summary.json"}
    with open(result.run_dir / "history.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == [dict(row) for row in result.history]


def test_the_learning_rate_warms_up_and_reaches_its_end(straight):
    rates = [row["learning_rate"] for row in straight[0].history]
    assert max(rates) <= 0.01
    assert rates[-1] < 0.001


def test_load_run_gives_back_the_model_that_was_evaluated(straight):
    result, _ = straight
    held = load_run(result.run_dir)
    assert held.recipe == small.RECIPE
    assert held.preprocess == small.PREPROCESS
    assert held.classes == tuple("0123456789")
    assert evaluate(held.model, small.sources()[1], preprocess=held.preprocess) == result.metrics


def test_the_same_arguments_give_the_same_bits(straight, tmp_path):
    result, digest = small.run(tmp_path / "run")
    assert digest == straight[1]
    assert without_times(result.history) == without_times(straight[0].history)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_with_a_checkpoint_and_the_same_call_continues_to_the_same_bits(
    straight, tmp_path, number
):
    counted = small.at_step([9], lambda: os.kill(os.getpid(), number))
    try:
        with pytest.raises(Interrupted, match="stopped at step 9 of 25"):
            small.run(tmp_path / "run")
    finally:
        _fit._Run._count = counted
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_0000000009.ckpt"]
    result, digest = small.run(tmp_path / "run")
    assert digest == straight[1]
    assert without_times(result.history) == without_times(straight[0].history)


def test_a_run_stopped_after_some_epochs_continues_to_the_same_bits(straight, tmp_path):
    first, _ = small.run(tmp_path / "run", stop_after=2)
    assert [row["step"] for row in first.history] == [6, 12]
    result, digest = small.run(tmp_path / "run")
    assert digest == straight[1]
    assert without_times(result.history) == without_times(straight[0].history)


def test_a_finished_run_is_not_trained_again(straight):
    _, digest = small.run(straight[0].run_dir)
    assert digest == straight[1]


def killed(run_dir, steps):
    script = Path(small.__file__)
    return subprocess.run(
        [sys.executable, str(script), str(run_dir), *map(str, steps)], capture_output=True, text=True, check=False
    )


def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_same_bits(straight, tmp_path):
    assert killed(tmp_path / "run", [8]).returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "model.keras").exists()
    result, digest = small.run(tmp_path / "run")
    assert digest == straight[1]
    assert without_times(result.history) == without_times(straight[0].history)


@pytest.mark.slow
def test_a_run_killed_at_eight_random_steps_one_after_the_other_ends_with_the_same_bits(straight, tmp_path):
    steps = sorted(random.Random(0).sample(range(1, STEPS + 1), 8))
    for step in steps:
        assert killed(tmp_path / "run", [step]).returncode == -signal.SIGKILL
    ended = killed(tmp_path / "run", [])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-1] == straight[1]


def test_the_average_is_what_is_validated_and_saved(straight):
    """The last row of the history was measured inside the run, `metrics` on the saved weights."""
    result, _ = straight
    last = {k.removeprefix("val_"): v for k, v in result.history[-1].items() if k.startswith("val_")}
    assert last == result.metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": dataclasses.replace(small.RECIPE, peak_lr=0.02)}, r"recipe.peak_lr: 0.01 there, 0.02 now"),
        ({"train": lambda: small.sources()[0].subset(range(100))}, "data.items: 200 there, 100 now"),
        ({"resume": False}, "holds a run already"),
    ],
)
def test_the_folder_of_another_run_is_refused_with_the_difference(straight, change, message):
    before = {path: path.stat().st_mtime_ns for path in straight[0].run_dir.rglob("*")}
    keywords = {"recipe": small.RECIPE, "train": small.sources()[0], "validation": small.sources()[1]} | change
    if callable(keywords["train"]):
        keywords["train"] = keywords["train"]()
    with pytest.raises(InputError, match=message):
        fit(small.model(), preprocess=small.PREPROCESS, run_dir=straight[0].run_dir, **keywords)
    assert {path: path.stat().st_mtime_ns for path in straight[0].run_dir.rglob("*")} == before


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    train, validation = small.sources()
    inputs = keras.Input((8, 8, 1))
    seven = keras.Model(inputs, keras.layers.Dense(7)(keras.layers.Flatten()(inputs)))
    cases = [
        (seven, small.PREPROCESS, "7 outputs, .* has 10 classes: build the model with classes=10"),
        (small.model(), Preprocess(9, channels=1), r"build the model with input_shape=\(9, 9, 1\)"),
    ]
    for model, preprocess, message in cases:
        with pytest.raises(InputError, match=message):
            fit(model, small.RECIPE, train, validation, preprocess=preprocess, run_dir=tmp_path / "run")
    recipe = dataclasses.replace(small.RECIPE, task="regression")
    with pytest.raises(InputError, match="task is 'regression'"):
        fit(small.model(), recipe, train, preprocess=small.PREPROCESS, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint_before_it(tmp_path):
    recipe = dataclasses.replace(small.RECIPE, optimizer="sgd", peak_lr=1e30, warmup_epochs=0, ema=0)
    with pytest.raises(DivergedError, match="smaller peak_lr"):
        fit(
            small.model(),
            recipe,
            small.sources()[0],
            preprocess=small.PREPROCESS,
            run_dir=tmp_path / "run",
            verbose=False,
        )
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_weight_decay_leaves_vectors_alone_and_shrinks_kernels():
    recipe = Recipe(optimizer="sgd", weight_decay=0.5, peak_lr=0.1)
    model = small.model()
    optimizer = optimizers.get("sgd", 0.1, model.trainable_variables, weight_decay=recipe.weight_decay)
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.trainable_variables]
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        factor = 0.95 if old.ndim > 1 else 1.0
        np.testing.assert_allclose(np.asarray(variable), old * factor, rtol=1e-6, atol=1e-7)


def test_a_stream_of_pictures_with_boxes_trains_a_box_regression(tmp_path):
    rng = np.random.default_rng(0)
    pictures = np.zeros((64, 8, 8, 1), np.uint8)
    boxes = np.zeros((64, 4), np.float32)
    for i in range(64):
        x, y = rng.integers(0, 5, 2)
        pictures[i, y : y + 3, x : x + 3] = 255
        boxes[i] = x / 8, y / 8, 3 / 8, 3 / 8
    source = from_arrays(pictures, None, boxes=boxes)
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs)))
    recipe = Recipe(task="box", epochs=80, batch=16, optimizer="adam", peak_lr=0.02, weight_decay=0.0)
    result = fit(model, recipe, source, source, preprocess=small.PREPROCESS, run_dir=tmp_path / "run", verbose=False)
    assert result.metrics["iou"] > 0.8
    assert result.history[-1]["val_iou"] == result.metrics["iou"]
