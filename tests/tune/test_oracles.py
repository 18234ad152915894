"""Asha and Bohb as KerasTuner oracles: rungs, promotions, reload, and a model that beats chance."""

import keras_tuner
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.tune import Asha, Bohb, oracles
from dlkit.tune._cube import Cube


def space(hp):
    x = hp.Float("x", 0.0, 1.0)
    lr = hp.Float("lr", 1e-4, 1.0, sampling="log")
    kind = hp.Choice("kind", ["a", "b", "c"])
    if kind == "b":
        hp.Int("depth", 1, 8)
    return x, lr, kind


def score(values, epochs):
    """A learning curve whose best configuration is x = 0.7, lr = 0.01, kind "b", depth 6."""
    loss = (values["x"] - 0.7) ** 2 + 0.05 * (np.log10(values["lr"]) + 2) ** 2
    loss += 0.0 if values["kind"] == "b" else 0.15
    loss += 0.01 * (values.get("depth", 6) - 6) ** 2
    return 1 - loss - 0.3 / epochs


class Tuner(keras_tuner.engine.base_tuner.BaseTuner):
    def run_trial(self, trial, **_):
        values = trial.hyperparameters.values
        return {"val_accuracy": score(values, values["tuner/epochs"])}


def tuner(oracle, directory):
    return Tuner(oracle, space, directory=str(directory), project_name="p")


def run(oracle, directory):
    tuner(oracle, directory).search(verbose=0)
    return [trial.hyperparameters.values for trial in oracle.trials.values()]


def objective():
    return keras_tuner.Objective("val_accuracy", "max")


@pytest.mark.parametrize(
    ("most", "factor", "least", "rungs"),
    [(27, 3, 1, (1, 3, 9, 27)), (100, 3, 1, (2, 4, 12, 34, 100)), (16, 2, 4, (4, 8, 16)), (1, 3, 1, (1,))],
)  # fmt: skip
def test_the_rungs_grow_by_the_factor_up_to_the_most_epochs(most, factor, least, rungs):
    assert Asha("val_accuracy", max_epochs=most, factor=factor, min_epochs=least).rungs == rungs


def test_a_promotion_continues_one_of_the_best_third_and_never_the_same_trial_twice(tmp_path):
    oracle = Asha(objective(), max_epochs=27, max_trials=90, seed=1)
    run(oracle, tmp_path)
    trials = oracle.trials
    parents = [v for t in trials.values() if (v := t.hyperparameters.values.get("tuner/trial_id"))]
    assert len(parents) == len(set(parents)) > 20
    for trial in trials.values():
        values = trial.hyperparameters.values
        if parent := values.get("tuner/trial_id"):
            before = trials[parent].hyperparameters.values
            assert values["tuner/initial_epoch"] == before["tuner/epochs"]
            assert {k: v for k, v in values.items() if "tuner/" not in k} == {
                k: v for k, v in before.items() if "tuner/" not in k
            }
            rung = [t for t in trials.values() if t.hyperparameters.values["tuner/epochs"] == before["tuner/epochs"]]
            earlier = [t for t in rung if t.trial_id < trial.trial_id]
            assert sum(t.score > trials[parent].score for t in earlier) < max(1, len(earlier) // 3)
    assert {t.hyperparameters.values["tuner/epochs"] for t in trials.values()} == {1, 3, 9, 27}


@pytest.mark.parametrize("oracle", [Asha, Bohb])
def test_the_same_seed_gives_the_same_search_also_when_it_is_interrupted(oracle, tmp_path):
    straight = run(oracle(objective(), max_epochs=9, max_trials=40, seed=0), tmp_path / "a")
    run(oracle(objective(), max_epochs=9, max_trials=17, seed=0), tmp_path / "b")
    continued = oracle(objective(), max_epochs=9, max_trials=40, seed=0)
    found = tuner(continued, tmp_path / "b")
    continued.max_trials = 40
    found.search(verbose=0)
    assert [t.hyperparameters.values for _, t in sorted(continued.trials.items())] == straight
    other = run(oracle(objective(), max_epochs=9, max_trials=40, seed=5), tmp_path / "c")
    assert other[0] != straight[0]


def test_the_model_spends_the_same_epochs_on_better_trials_than_chance(tmp_path):
    means = {}
    for kind in (Asha, Bohb):
        scores = []
        for seed in range(3):
            trials = run(kind(objective(), max_epochs=9, max_trials=90, seed=seed), tmp_path / f"{kind.__name__}{seed}")
            fresh = [v for v in trials if v["tuner/initial_epoch"] == 0][-30:]
            scores.append(np.mean([score(v, 9) for v in fresh]))
        means[kind] = np.mean(scores)
    assert means[Bohb] > means[Asha] + 0.1


def test_noise_at_an_edge_of_the_space_does_not_draw_the_model_to_the_same_place_again(tmp_path):
    def corner(hp):
        hp.Float("lr", 1e-4, 1.0, sampling="log")
        hp.Float("decay", 1e-5, 1e-2, sampling="log")
        hp.Choice("kind", ["a", "b"])

    class Noisy(Tuner):
        def run_trial(self, trial, **_):
            values = trial.hyperparameters.values
            noise = np.random.default_rng(int(trial.trial_id)).normal(0, 0.02)
            best_at_the_edge = 0.1 * np.log10(values["decay"]) - 0.02 * (np.log10(values["lr"]) + 2) ** 2
            return {"val_accuracy": best_at_the_edge - 0.3 / values["tuner/epochs"] + noise}

    oracle = Bohb(objective(), max_epochs=9, max_trials=60, seed=0)
    Noisy(oracle, corner, directory=str(tmp_path), project_name="p").search(verbose=0)
    cube = Cube(oracle.hyperparameters.space)
    values = [trial.hyperparameters.values for trial in oracle.trials.values()]
    rows = np.array([cube.row(v) for v in values if not v.get("tuner/trial_id")])
    again = [(np.abs(rows[:i] - rows[i]) < 0.03).all(1).any() for i in range(1, len(rows))]
    assert len(rows) > 30
    assert sum(again) == 0  # 14 to 16 of 34 where the model's first choice is taken as it comes
    assert np.median(rows[-10:, 1]) > 0.7  # and it knows where the good ones are


def test_a_single_hyperparameter_is_searched_near_its_best_and_finely(tmp_path):
    class Line(Tuner):
        def run_trial(self, trial, **_):
            return {"val_accuracy": -((trial.hyperparameters.values["x"] - 0.3) ** 2)}

    oracle = Bohb(objective(), max_epochs=9, max_trials=80, seed=0)
    Line(oracle, lambda hp: hp.Float("x", 0.0, 1.0), directory=str(tmp_path), project_name="p").search(verbose=0)
    values = [trial.hyperparameters.values for trial in oracle.trials.values()]
    away = np.array([abs(v["x"] - 0.3) for v in values if not v.get("tuner/trial_id")])
    assert np.mean(away[:20] < 0.1) >= 0.4  # 0.2 by chance
    assert away.min() < 0.005


@pytest.mark.parametrize("kind", [Asha, Bohb])
def test_a_trial_whose_loss_is_finite_but_hopeless_ends_at_its_first_rung(kind, tmp_path):
    class Diverging(Tuner):
        def run_trial(self, trial, **_):
            values = trial.hyperparameters.values
            return {"val_loss": 1e12 if values["lr"] > 0.03 else 2 - score(values, values["tuner/epochs"])}

    oracle = kind(keras_tuner.Objective("val_loss", "min"), max_epochs=9, max_trials=50, seed=0)
    Diverging(oracle, space, directory=str(tmp_path), project_name="p").search(verbose=0)
    trials = [trial.hyperparameters.values for trial in oracle.trials.values()]
    hopeless = [values for values in trials if values["lr"] > 0.03]
    assert hopeless
    assert not any(values["tuner/initial_epoch"] for values in hopeless)
    assert min(t.score for t in oracle.trials.values()) < 1.2  # the others are still told apart


@pytest.mark.parametrize("kind", [Asha, Bohb])
def test_an_exhausted_space_ends_the_search(kind, tmp_path):
    oracle = kind(objective(), max_epochs=3, seed=0)

    class Small(Tuner):
        def run_trial(self, trial, **_):
            return {"val_accuracy": trial.hyperparameters.values["n"] / 10}

    Small(oracle, lambda hp: hp.Int("n", 1, 4), directory=str(tmp_path), project_name="p").search(verbose=0)
    fresh = [t for t in oracle.trials.values() if not t.hyperparameters.values.get("tuner/trial_id")]
    assert sorted(t.hyperparameters.values["n"] for t in fresh) == [1, 2, 3, 4]


@pytest.mark.parametrize("arguments", [{"factor": 1}, {"min_epochs": 0}, {"min_epochs": 11}])
def test_impossible_rungs_are_refused(arguments):
    with pytest.raises(InputError, match="factor must be at least 2"):
        Asha("val_accuracy", **({"max_epochs": 10} | arguments))


def test_an_unknown_oracle_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'bohb'"):
        oracles.get("boh", "val_accuracy", 9, 90, 0)
    with pytest.raises(InputError, match="does not pay for one training"):
        oracles.get("bohb", "val_accuracy", 9, 5, 0)
