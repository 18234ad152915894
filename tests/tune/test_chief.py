"""The chief rebuilds any oracle from the records of its trials, whatever was cut off or damaged."""

import json
import warnings

import keras_tuner
import pytest
from keras_tuner import oracles as kt

from dlkit.tune import DamagedRecordWarning, _records, oracles
from dlkit.tune._chief import INFEASIBLE_RUN, Chief
from dlkit.tune._keep import prune

EPOCHS, BUDGET = 9, 36


def grid(objective):
    return kt.GridSearchOracle(objective=objective)


def make(name):
    if name == "grid":
        return grid(keras_tuner.Objective("val_accuracy", "max"))
    return oracles.get(name, "val_accuracy", EPOCHS, BUDGET, 0)


def space(hp):
    hp.Float("x", 0.0, 1.0, step=0.001)
    if hp.Choice("kind", ["a", "b"]) == "b":
        with hp.conditional_scope("kind", ["b"]):
            hp.Int("depth", 1, 4)


def chief(name, directory, budget=BUDGET, **keywords):
    oracle = make(name)
    keras_tuner.engine.base_tuner.BaseTuner(oracle, space, directory=str(directory), project_name="trials")
    return Chief(oracle, directory, budget, EPOCHS, **keywords)


def score(values):
    return values["x"] - 0.1 * values.get("depth", 0) + 0.01 * values.get("tuner/epochs", EPOCHS)


def finish(found, trial, directory, **more):
    result = {"status": "COMPLETED", "metrics": {"val_accuracy": score(trial.hyperparameters.values)}, **more}
    _records.write(_records.trial_folder(directory, trial.trial_id), "result", result)
    trial.status = "COMPLETED"
    found.end_trial(trial)
    assert found.error is None, found.error


def play(name, directory, cut=None, budget=BUDGET, restart_every=None, worker="w"):
    """Runs a search whose trials cost nothing; with `restart_every` a fresh chief takes over after so many events."""
    found, events = chief(name, directory, budget), 0
    while True:
        trial = found.create_trial(worker)
        if trial.status != "RUNNING":
            return found
        events += 1
        if restart_every and events % restart_every == 0:
            found = chief(name, directory, budget)
            trial = found.create_trial(worker)
        finish(found, trial, directory)
        events += 1
        if restart_every and events % restart_every == 0:
            found = chief(name, directory, budget)
        if cut and len(found.ended) == cut:
            return found


def story(found):
    return {i: (r["values"], r["score"], r["started"], r["ended"]) for i, r in found.ended.items()}


@pytest.mark.parametrize(
    "name", ["random", pytest.param("bayesian", marks=pytest.mark.slow), "hyperband", "grid", "asha", "bohb"]
)
def test_a_chief_that_is_replaced_again_and_again_tells_the_same_story(name, tmp_path):
    budget = 9 * EPOCHS if name in ("random", "bayesian", "grid") else BUDGET
    straight = story(play(name, tmp_path / "a", budget=budget))
    assert len(straight) >= 8
    assert story(play(name, tmp_path / "b", budget=budget, restart_every=3)) == straight


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("started", "half"), ("ended", "empty"), ("ended", "missing"), ("both", "flipped"), ("all", "half")],
)
def test_a_damaged_record_is_named_and_rebuilt(kind, damage, tmp_path):
    straight = story(play("asha", tmp_path / "a"))
    play("asha", tmp_path / "b", cut=12)
    kinds = {"both": ("started", "ended"), "all": ("started", "result", "ended")}.get(kind, (kind,))
    for name in kinds:
        path = tmp_path / "b" / "trials" / "trial_0006" / f"{name}.json"
        text = path.read_text()
        if damage == "missing":
            path.unlink()
        else:
            path.write_text(
                {"empty": "", "half": text[: len(text) // 2], "flipped": text.replace("0.", "1.", 1)}[damage]
            )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = story(play("asha", tmp_path / "b"))
    named = [str(w.message) for w in caught if w.category is DamagedRecordWarning]
    assert damage == "missing" or any("trial_0006" in text for text in named)
    if kind == "all" and damage in ("empty", "half", "missing"):
        assert {i: r[:2] for i, r in again.items() if i < "0006"} == {
            i: r[:2] for i, r in straight.items() if i < "0006"
        }
        assert set(again) >= {f"{i:04d}" for i in range(12)}
    else:
        assert {i: r[:2] for i, r in again.items()} == {i: r[:2] for i, r in straight.items()}


def test_keras_tuners_own_files_may_be_torn(tmp_path):
    straight = story(play("bohb", tmp_path / "a"))
    play("bohb", tmp_path / "b", cut=5)
    for path in (tmp_path / "b" / "trials" / "oracle.json", tmp_path / "b" / "trials" / "trial_0002" / "trial.json"):
        path.write_text(path.read_text()[:40])
    assert story(play("bohb", tmp_path / "b")) == straight


def test_more_budget_continues_with_the_suggestions_it_would_have_had(tmp_path):
    straight = story(play("bohb", tmp_path / "a", budget=54))
    play("bohb", tmp_path / "b", budget=20)
    assert story(play("bohb", tmp_path / "b", budget=54)) == straight


def test_a_lost_trial_is_given_out_again_and_fails_at_the_third_loss(tmp_path):
    found = chief("asha", tmp_path)
    first = found.create_trial("w")
    for attempt in range(2):
        found.lost("w", "its process ended with signal 9")
        again = found.create_trial("w")
        assert again.trial_id == first.trial_id, attempt
    found.lost("w", "its process ended with signal 9")
    assert found.create_trial("w").trial_id != first.trial_id
    assert found.ended[first.trial_id]["message"] == "3 times its process ended with signal 9"


def test_a_worker_that_died_after_writing_its_result_has_finished(tmp_path):
    found = chief("asha", tmp_path)
    trial = found.create_trial("w")
    result = {"status": "COMPLETED", "metrics": {"val_accuracy": 0.5}}
    _records.write(_records.trial_folder(tmp_path, trial.trial_id), "result", result)
    found.lost("w", "its process ended with signal 9")
    assert found.ended[trial.trial_id]["score"] == 0.5


def test_a_silent_worker_is_reported_and_a_pause_of_the_chief_is_not(tmp_path):
    found = chief("asha", tmp_path, silent=5.0)
    trial = found.create_trial("w")
    assert found.silent_tuners(3600.0) == []
    assert [found.silent_tuners(1.0) for _ in range(5)][-1] == ["w"]
    found.get_trial(trial.trial_id)
    assert found.silent_tuners(1.0) == []


def test_the_second_answer_to_a_trial_is_ignored(tmp_path):
    found = chief("asha", tmp_path)
    trial = found.create_trial("a")
    found.lost("a", "silent")
    assert found.create_trial("b").trial_id == trial.trial_id
    finish(found, trial, tmp_path)
    before = story(found)
    finish(found, trial, tmp_path, seconds=7)
    assert story(found) == before


def test_a_worker_idles_while_others_run_the_last_trials_and_stops_after_them(tmp_path):
    found = chief("random", tmp_path, budget=EPOCHS)
    trial = found.create_trial("a")
    assert found.create_trial("b").status == "IDLE"
    finish(found, trial, tmp_path)
    assert found.create_trial("b").status == "STOPPED"
    assert found.finished


@pytest.mark.parametrize(("error", "trials"), [("ImportError: no module x", 1), ("TypeError: units", 3)])
def test_an_error_of_the_program_ends_the_search(error, trials, tmp_path):
    found = chief("asha", tmp_path)
    for _ in range(trials):
        assert found.error is None
        trial = found.create_trial("w")
        result = {"status": "FAILED", "kind": "error", "message": f"Traceback ...\n{error}"}
        _records.write(_records.trial_folder(tmp_path, trial.trial_id), "result", result)
        found.end_trial(trial)
    assert isinstance(found.error, RuntimeError)
    assert error in str(found.error)
    assert found.create_trial("w").status == "STOPPED"


def test_only_the_best_and_those_that_may_be_promoted_keep_their_weights(tmp_path):
    found = play("asha", tmp_path)
    for trial_id in found.ended:
        folder = _records.trial_folder(tmp_path, trial_id) / "run" / "checkpoints"
        folder.mkdir(parents=True)
        (folder.parent / "recipe.json").write_text("{}")
    prune(found.ended, [], tmp_path, keep=2, sign=-1)
    left = {i for i in found.ended if (_records.trial_folder(tmp_path, i) / "run" / "checkpoints").exists()}
    best = sorted(found.ended, key=lambda i: (-found.ended[i]["score"], i))[:2]
    continued = {r["values"].get("tuner/trial_id") for r in found.ended.values()}
    assert set(best) <= left
    assert len(left) < len(found.ended)
    assert not (continued & left) - set(best)
    assert all((_records.trial_folder(tmp_path, i) / "run" / "recipe.json").exists() for i in found.ended)


def test_a_record_says_what_was_written_or_that_it_is_damaged(tmp_path):
    _records.write(tmp_path, "result", {"metrics": {"loss": float("nan")}})
    assert _records.read(tmp_path, "ended") is None
    assert _records.read(tmp_path, "result")["metrics"]["loss"] != 0
    held = json.loads((tmp_path / "result.json").read_text())
    held["record"]["metrics"]["loss"] = 0.1
    (tmp_path / "result.json").write_text(json.dumps(held))
    with pytest.warns(DamagedRecordWarning, match="checksum"):
        assert _records.read(tmp_path, "result") is None


def constrained(name, directory, feasible):
    """A search in which configurations that are not `feasible` cost nothing; returns whether each trial was."""
    found, told = chief(name, directory), []
    while (trial := found.create_trial("w")).status == "RUNNING":
        told.append(feasible(trial.hyperparameters.values))
        more = {} if told[-1] else {"status": "INFEASIBLE", "metrics": {}, "message": "too large"}
        finish(found, trial, directory, **more)
    return told


def test_a_search_ends_when_no_configuration_meets_the_constraints_any_more(tmp_path):
    first = iter([True])
    told = constrained("random", tmp_path, lambda values: next(first, False))
    assert told == [True] + [False] * INFEASIBLE_RUN


def test_bohb_leaves_the_region_that_a_constraint_forbids_though_scores_rise_towards_it(tmp_path):
    told = constrained("bohb", tmp_path, lambda values: values["x"] < 0.5)
    assert sum(told) > BUDGET // EPOCHS
    assert sum(told) > 0.6 * len(told)
