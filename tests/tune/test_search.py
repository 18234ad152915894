"""The search trains real models: promoted trials continue to the bit, and a stopped search loses nothing."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.data import Preprocess, load
from dlkit.train import Recipe, _traced, fit, load_run
from dlkit.tune import ORACLES, _trial, default_space, search

RECIPE = Recipe(epochs=3, batch=50, optimizer="adam", peak_lr=0.01, warmup_epochs=0.0, weight_decay=0.0)
PREPROCESS = Preprocess(8, channels=1, mean=0.3, std=0.37)


def sources():
    train, test = load("digits")
    return train.subset(range(150)), test.subset(range(60))


def build(units=8):
    inputs = keras.Input(PREPROCESS.input_shape)
    x = keras.layers.Dense(units, activation="relu")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def space(hp):
    return {
        "model": {"units": hp.Choice("units", [4, 16])},
        "recipe": {"peak_lr": hp.Float("peak_lr", 1e-3, 0.1, sampling="log")},
    }


def run(directory, **keywords):
    train, validation = sources()
    keywords = {"epochs_budget": 12, "oracle": "asha", "seed": 0, "verbose": False, "workers": 0} | keywords
    return search(
        keywords.pop("build", build), keywords.pop("space", space), RECIPE, train, validation, preprocess=PREPROCESS,
        directory=directory, **keywords,
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The search that nothing interrupts."""
    return run(tmp_path_factory.mktemp("search") / "s")


def answers(found):
    return {trial.id: (trial.score, trial.epochs, trial.values) for trial in found.trials}


def test_a_search_spends_its_budget_and_ranks_its_trials(straight):
    assert 12 <= straight.epochs <= 14
    scores = [trial.score for trial in straight.trials]
    assert scores == sorted(scores, reverse=True)
    assert straight.best.score == scores[0]
    assert {trial.epochs for trial in straight.trials} == {1, 3}
    assert straight.best.recipe.peak_lr == straight.best.values["peak_lr"]
    assert load_run(straight.best.run_dir).model.layers[2].units == straight.best.model["units"]


def test_a_promoted_trial_has_the_bits_of_one_that_was_never_stopped(straight, tmp_path):
    promoted = next(trial for trial in straight.trials if trial.epochs == 3)
    values = json.loads((promoted.run_dir.parent / "trial.json").read_text())["hyperparameters"]["values"]
    keras.utils.set_random_seed(_trial.seed_of(0, values["tuner/trial_id"]))
    model = build(**promoted.model)
    fit(model, promoted.recipe, *sources(), preprocess=PREPROCESS, run_dir=tmp_path / "run", verbose=False)
    for a, b in zip(model.weights, load_run(promoted.run_dir).model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_search_stopped_in_the_middle_of_a_trial_continues_to_the_same_answers(straight, tmp_path):
    trials = []

    def stopping(**keywords):
        trials.append(keywords)
        if len(trials) == 4:
            raise KeyboardInterrupt
        return build(**keywords)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "s", build=stopping)
    assert answers(run(tmp_path / "s")) == answers(straight)


def test_a_finished_search_answers_again_without_training(straight):
    assert answers(run(straight.directory, build=None)) == answers(straight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "Different: seed: 0 there, 1 now"),
        ({"oracle": "random"}, 'oracle: "asha" there, "random" now'),
        ({"space": default_space}, "space.units: .* there, null now"),
    ],
)
def test_the_directory_of_another_search_is_refused(straight, change, message):
    with pytest.raises(InputError, match=message):
        run(straight.directory, **change)


def test_a_trial_that_fails_is_kept_with_its_traceback_and_the_search_goes_on(tmp_path):
    def fragile(units):
        if units == 4:
            raise MemoryError("too wide for this test")
        return build(units)

    found = run(tmp_path / "s", build=fragile, oracle="random", epochs_budget=18, seed=1)
    failed = [trial for trial in found.trials if trial.status == "FAILED"]
    assert failed
    assert all("too wide for this test" in trial.message for trial in failed)
    assert found.best.model["units"] == 16


def test_the_same_error_in_every_trial_ends_the_search_with_it(tmp_path):
    def broken(units):
        raise TypeError("unexpected keyword argument 'units'")

    with pytest.raises(RuntimeError, match="unexpected keyword argument 'units'"):
        run(tmp_path / "s", build=broken, epochs_budget=30)


def test_an_objective_that_no_run_reports_ends_the_search_with_the_names_it_has(tmp_path):
    with pytest.raises(Exception, match=r"'val_acuracy' is not in the history; it has .*val_accuracy"):
        run(tmp_path / "s", objective="val_acuracy")


@pytest.mark.parametrize("oracle", ORACLES)
def test_every_oracle_runs(oracle, tmp_path):
    found = run(tmp_path / "s", oracle=oracle, epochs_budget=9)
    assert found.epochs >= 9
    assert found.best.score > 0.1


def test_a_space_of_another_form_is_refused(tmp_path):
    with pytest.raises(InputError, match="a space returns"):
        run(tmp_path / "s", space=lambda hp: {"units": hp.Choice("units", [1, 2])})


def test_a_recipe_keeps_what_the_space_leaves_alone(straight):
    assert replace(straight.best.recipe, peak_lr=RECIPE.peak_lr) == RECIPE


def test_trials_that_differ_in_numbers_only_share_one_trace(tmp_path, monkeypatch):
    counted = []
    step = _traced.Step.__init__
    monkeypatch.setattr(_traced.Step, "__init__", lambda self, *values: (counted.append(1), step(self, *values))[1])
    numbers = lambda hp: {  # noqa: E731
        "recipe": {name: hp.Float(name, 1e-3, 0.1, sampling="log") for name in ("peak_lr", "weight_decay")}
    }
    found = run(tmp_path / "s", space=numbers)
    assert len(found.trials) > 2
    assert len(counted) == 1


def test_a_network_whose_function_holds_another_override_is_another_network():
    def network(factor):
        def steep(x):
            return factor * x

        keras.utils.clear_session(free_memory=False)  # as every trial does: names begin anew
        inputs = keras.Input(PREPROCESS.input_shape)
        x = keras.layers.Activation(steep)(keras.layers.Flatten()(inputs))
        return keras.Model(inputs, keras.layers.Dense(10)(x))

    one, other, again = (_trial._same({"factor": factor}, network(factor)) for factor in (1.0, 3.0, 1.0))
    assert one.get_config() == other.get_config()
    assert one is not other
    assert one is again


def test_another_search_in_this_process_trains_its_own_networks(tmp_path):
    class Block(keras.layers.Layer):
        factor = 0.0

        def call(self, inputs):
            return inputs * self.factor

    def build():
        inputs = keras.Input(PREPROCESS.input_shape)
        return keras.Model(inputs, keras.layers.Dense(10)(Block()(keras.layers.Flatten()(inputs))))

    space = lambda hp: {"recipe": {"peak_lr": hp.Float("peak_lr", 0.01, 0.1)}}  # noqa: E731
    scores = []
    for factor in (0.0, 1.0):
        Block.factor = factor
        scores.append(run(tmp_path / str(factor), build=build, space=space).best.score)
    assert scores[1] > scores[0] + 0.1


def test_networks_of_equal_arrays_are_no_reason_to_fail():
    def network():
        keras.utils.clear_session(free_memory=False)
        inputs = keras.Input(PREPROCESS.input_shape)
        return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))

    one, other = (_trial._same({"table": np.arange(3)}, network()) for _ in range(2))
    assert one is not other
