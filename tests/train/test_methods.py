"""What a recipe can ask of `fit` beyond the plain loop, and what stands beside it: lr_find, k_fold, views."""

import dataclasses
import json

import digits_run as small
import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.data import Preprocess, load, sources
from dlkit.layers import BatchNorm
from dlkit.train import DivergedError, Recipe, evaluate, fit, k_fold, load_run, lr_find
from dlkit.train.stopping import GradientNorm, LossStalled, Patience, Plateau, Target, TimeBudget, WeightChange

PLAIN = Recipe(epochs=6, batch=50, optimizer="adam", peak_lr=0.01, weight_decay=0.0, schedule="constant")


def parts():
    train, test = load("digits")
    return train.subset(range(100)), test.subset(range(50))


def network(inputs=small.PREPROCESS.input_shape, pooled=False):
    """Convolution, norm and head; `pooled` takes pictures of any size."""
    keras.utils.set_random_seed(0)
    given = keras.Input(inputs)
    x = keras.layers.Conv2D(4, 3, strides=2, name="conv")(given)
    x = keras.layers.Activation("relu")(BatchNorm(name="norm")(x))
    x = keras.layers.GlobalAveragePooling2D()(x) if pooled else keras.layers.Flatten()(x)
    return keras.Model(given, keras.layers.Dense(10, name="head")(x))


def train(run_dir, model=None, preprocess=small.PREPROCESS, validation=True, **fields):
    source, held_out = parts()
    model = model or network()
    recipe = dataclasses.replace(PLAIN, **fields)
    given = held_out if validation else None
    return model, fit(model, recipe, source, given, preprocess=preprocess, run_dir=run_dir, verbose=False)


def test_patience_ends_the_run_and_brings_back_the_best_epoch(tmp_path):
    # a rate that grows the loss again after some epochs
    model, result = train(tmp_path, epochs=40, peak_lr=0.1, optimizer="adam", stop=(Patience(patience=2),))
    losses = [row["val_loss"] for row in result.history]
    assert result.stopped.startswith("val_loss has not improved for 2 epochs")
    assert len(losses) == int(np.argmin(losses)) + 3 < 40
    assert result.metrics["loss"] == min(losses)
    assert evaluate(model, parts()[1], preprocess=small.PREPROCESS) == result.metrics
    assert evaluate(load_run(tmp_path).model, parts()[1], preprocess=small.PREPROCESS) == result.metrics
    assert json.loads((tmp_path / "summary.json").read_text())["stopped"] == result.stopped
    _, again = train(tmp_path, epochs=40, peak_lr=0.1, optimizer="adam", stop=(Patience(patience=2),))
    assert again.history == result.history
    assert again.metrics == result.metrics


def test_the_first_criterion_that_holds_ends_the_run(tmp_path):
    criteria = (Target("accuracy", 2.0), LossStalled(50), WeightChange(1e-12), GradientNorm(1e6))
    _, result = train(tmp_path, stop=criteria, validation=False)
    assert len(result.history) == 1
    assert result.stopped.startswith("the gradient norm")
    assert result.history[0]["gradient_norm"] > 0
    assert result.history[0]["weight_change"] > 0
    assert result.metrics == {}


def test_a_time_budget_ends_the_run_within_an_epoch(tmp_path):
    _, result = train(tmp_path, epochs=1000, batch=10, stop=(TimeBudget(0.05),))
    assert result.stopped == "the time budget of 0.05 s is used up"
    assert result.history[-1]["step"] < 10  # of the ten steps of an epoch
    assert result.metrics


def test_a_plateau_lowers_the_rate_on_top_of_a_schedule(tmp_path):
    plateau = Plateau("loss", factor=0.1, patience=1, min_delta=1e6)
    _, result = train(tmp_path, epochs=3, schedule="linear", plateau=plateau)
    _, plain = train(tmp_path / "plain", epochs=3, schedule="linear")
    factors = [a["learning_rate"] / b["learning_rate"] for a, b in zip(result.history, plain.history, strict=True)]
    assert factors == pytest.approx([1.0, 1.0, 0.1])
    assert result.history[1]["loss"] == plain.history[1]["loss"]
    assert result.history[2]["loss"] != plain.history[2]["loss"]


def test_a_column_that_the_run_does_not_have_is_refused_before_it_starts(tmp_path):
    with pytest.raises(InputError, match="give fit a validation source"):
        train(tmp_path, stop=(Patience(),), validation=False)


def test_frozen_layers_and_their_averages_stay_and_are_free_again_afterwards(tmp_path):
    model = network()
    kernel, head = model.get_layer("conv").get_weights()[0], model.get_layer("head").get_weights()[0]
    train(tmp_path, model, epochs=1, freeze=("conv", "nor*"))
    np.testing.assert_array_equal(model.get_layer("conv").get_weights()[0], kernel)
    assert not np.array_equal(model.get_layer("head").get_weights()[0], head)
    for weight, start in zip(model.get_layer("norm").get_weights(), (1.0, 0.0, 0.0, 1.0), strict=True):
        np.testing.assert_array_equal(weight, np.full(4, start))
    assert all(layer.trainable for layer in model.layers)
    assert all(layer.trainable for layer in load_run(tmp_path).model.layers)


def test_frozen_averages_survive_an_average_of_the_weights(tmp_path, monkeypatch):
    from dlkit.train import averaging

    made, training_pass = [], averaging.training_pass
    monkeypatch.setattr(averaging, "training_pass", lambda model: made.append(1) or training_pass(model))
    model = network()
    model.get_layer("norm").moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    train(tmp_path, model, epochs=4, freeze=("norm",), swa_from=0.5)
    assert len(made) == 2  # traced once for all epochs, and in float32 for the weights that are saved
    np.testing.assert_array_equal(model.get_layer("norm").get_weights()[2], [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(("pattern", "message"), [("stage*", "fits no layer"), ("*", "leaves nothing to train")])
def test_a_freeze_that_means_nothing_is_refused(tmp_path, pattern, message):
    model = network()
    with pytest.raises(InputError, match=message):
        train(tmp_path, model, freeze=(pattern,))
    assert all(layer.trainable for layer in model.layers)


def test_a_run_that_was_loaded_is_trained_further(tmp_path):
    _, first = train(tmp_path / "first", epochs=4)
    held = load_run(tmp_path / "first")
    _, second = train(tmp_path / "second", held.model, held.preprocess, epochs=3, freeze=("conv",))
    assert second.history[0]["loss"] < first.history[1]["loss"]


def test_pictures_grow_along_the_run(tmp_path, monkeypatch):
    from dlkit.train import _fit

    seen = []
    whole = _fit.train_pipeline
    monkeypatch.setattr(
        _fit, "train_pipeline", lambda source, preprocess, *a, **k: seen.append((k["start_step"], preprocess.size))
        or whole(source, preprocess, *a, **k),
    )  # fmt: skip
    preprocess = dataclasses.replace(small.PREPROCESS, size=12)
    model = network((None, None, 1), pooled=True)
    _, result = train(tmp_path, model, preprocess, epochs=4, sizes=((0, 6), (0.5, 9)))
    assert seen == [(0, (6, 6)), (4, (9, 9))]
    assert result.history[-1]["step"] == 8
    model = network((12, 12, 1))
    with pytest.raises(InputError, match=r"takes \(12, 12\) only. Build it with input_shape=\(None, None, 1\)"):
        train(tmp_path / "other", model, preprocess, sizes=((0, 6),))


def test_a_recipe_for_much_smaller_pictures_says_what_would_fit(tmp_path):
    preprocess = dataclasses.replace(small.PREPROCESS, size=12)
    model = network((None, None, 1), pooled=True)
    with pytest.warns(UserWarning, match=r"pictures of 7 pixels, evaluation has 12; sizes=\(\(0, 10\), \(0.5, 12\)\)"):
        train(tmp_path, model, preprocess, epochs=1, sizes=((0, 6), (0.5, 7)))


def test_a_crop_keeps_its_share_when_the_pictures_shrink():
    from dlkit.train._sizes import parts as segments
    from dlkit.train._sizes import resized

    assert resized(Preprocess(224, resize=256), 112).resize == 128
    recipe = Recipe(sizes=((0.25, 8), (0.5, 10)))
    assert [(end, p.size[0]) for end, p in segments(recipe, Preprocess(12), 100)] == [(25, 12), (50, 8), (100, 10)]


def test_a_loss_that_is_no_number_names_the_layer_it_came_from(tmp_path):
    model = network()
    head = model.get_layer("head")
    head.kernel.assign(np.full(head.kernel.shape, 3e38, "float32"))
    with pytest.raises(DivergedError, match="at step 1 of 12: the output of layer 'head' is the first"):
        train(tmp_path, model)
    assert np.isfinite(head.get_weights()[0]).all()
    head.kernel.assign(np.linspace(-3e37, 3e37, head.kernel.shape.num_elements()).reshape(head.kernel.shape))
    with pytest.raises(DivergedError, match="every layer's output is finite, the loss of them is not"):
        train(tmp_path / "c", model)
    model.get_layer("conv").bias.assign([np.nan, 0, 0, 0])
    with pytest.raises(DivergedError, match="the weight 'bias' of layer 'conv' was not finite before this step"):
        train(tmp_path / "b", model)


def test_the_loss_of_a_recipe_is_what_is_trained(tmp_path):
    _, result = train(tmp_path, epochs=1, loss="mse")
    assert result.history[0]["loss"] < result.history[0]["val_loss"]  # of one-hot targets; validation: cross-entropy


def test_views_are_averaged(tmp_path):
    model = network()
    _, held_out = parts()
    plain = evaluate(model, held_out, preprocess=small.PREPROCESS)
    for tta in ("flip", "shift", "flip_shift"):
        assert evaluate(model, held_out, preprocess=small.PREPROCESS, tta=tta) != plain
    inputs = keras.Input((8, 8, 1))
    symmetric = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(inputs)))
    one = evaluate(symmetric, held_out, preprocess=small.PREPROCESS)
    both = evaluate(symmetric, held_out, preprocess=small.PREPROCESS, tta="flip")
    assert both == pytest.approx(one, rel=1e-5)
    with pytest.raises(InputError, match="did you mean 'flip'"):
        evaluate(model, held_out, preprocess=small.PREPROCESS, tta="flp")


def test_the_range_test_finds_a_rate_that_learns_and_leaves_the_model_alone(tmp_path):
    model = network()
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]
    found = lr_find(model, PLAIN, parts()[0], preprocess=small.PREPROCESS, low=1e-4, high=10, steps=60)
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), old)
    assert 1e-3 <= found.suggestion <= 0.3
    assert found.rates[0] == 1e-4
    assert len(found.rates) == len(found.losses) == len(found.smoothed)
    assert found.plot(tmp_path / "lr.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in found.plot(tmp_path / "lr.svg").read_bytes()
    with pytest.raises(InputError, match="at least 10 steps"):
        lr_find(model, PLAIN, parts()[0], preprocess=small.PREPROCESS, steps=5)


def test_every_sample_is_held_out_once_and_finished_folds_are_not_trained_again(tmp_path, monkeypatch):
    source, _ = parts()
    recipe = dataclasses.replace(PLAIN, epochs=1)
    keywords = {"k": 3, "preprocess": small.PREPROCESS, "run_dir": tmp_path, "verbose": False}
    checked, check = [], sources.check
    monkeypatch.setattr(sources, "check", lambda *a, **k: checked.append(1) or check(*a, **k))
    found = k_fold(network, recipe, source, **keywords)
    assert len(checked) <= 1
    assert len(found.results) == 3
    values = [result.metrics["accuracy"] for result in found.results]
    assert found.mean["accuracy"] == pytest.approx(np.mean(values))
    assert found.std["accuracy"] == pytest.approx(np.std(values, ddof=1))
    items = [json.loads((tmp_path / f"fold_{i}" / "recipe.json").read_text())["data"]["items"] for i in range(3)]
    assert sum(items) == 2 * len(source)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    again = k_fold(network, recipe, source, **keywords)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")} == times
    assert again.mean == found.mean
    with pytest.raises(InputError, match="from 2 to"):
        k_fold(network, recipe, source, **(keywords | {"k": 1}))
