"""The page of a search: complete from its records alone, with failures and few trials too; importance."""

import html.parser
import json
import re

import keras_tuner
import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.report import write_search
from dlkit.report._importance import importance, place
from dlkit.train import Recipe
from dlkit.tune import _records, space


def make(directory, count, objective="val_accuracy"):
    """A search whose score is decided by the learning rate, a little by the width, and not at all by the smoothing."""
    hp = keras_tuner.HyperParameters()
    space.combine(space.default_space, space.loss)(hp)
    configs = {held["config"]["name"]: held for held in hp.get_config()["space"]}
    directory.mkdir(parents=True)
    about = {"space": configs, "recipe": Recipe(epochs=9).to_dict(), "preprocess": {"size": 8}, "objective": objective}
    (directory / "search.json").write_text(json.dumps({**about, "oracle": "bohb", "seed": 0}))
    random = np.random.default_rng(0)
    for i in range(count):
        width, rate = float(random.choice([0.5, 0.75, 1.0])), float(10 ** random.uniform(-2, -0.31))
        values = {"width": width, "peak_lr": rate, "weight_decay": float(10 ** random.uniform(-5, -2)), "loss": "mse"}
        if i % 2:
            values |= {"loss": "bce", "label_smoothing": 0.1}
        epochs = int(random.choice([1, 3, 9]))
        score = 0.9 - abs(np.log10(rate) + 1) + 0.1 * width + 0.02 * epochs
        record = {
            "id": f"{i:04d}", "values": {**values, "tuner/epochs": epochs, "tuner/initial_epoch": 0},
            "status": "COMPLETED", "score": float(score), "message": "", "started": 2 * i + 1, "ended": 2 * i + 2,
            "metrics": {objective: float(score), "macs": 1e6 * width**2}, "seconds": 1.5,
        }  # fmt: skip
        if i == 3:
            failure = "Traceback\nValueError: <b>no</b>"
            record |= {"status": "FAILED", "score": None, "metrics": None, "message": failure}
        _records.write(_records.trial_folder(directory, record["id"]), "ended", record)
    return configs


def test_a_page_is_one_well_formed_file_with_every_part(tmp_path):
    make(tmp_path / "s", 40)
    text = write_search(tmp_path / "s").read_text()
    assert "39 completed, 1 failed" in text
    for title in ("Progress", "Trials", "Importance", "Parallel coordinates", "Pareto front", "The best trials"):
        assert title in text
    assert "&lt;b&gt;no&lt;/b&gt;" in text
    assert "<b>no</b>" not in text
    assert not {"<script", "<link", "<img", "@import"} & set(re.findall(r"<script|<link|<img|@import", text))
    tags = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag in ("div", "table", "svg", "details"):
                tags.append(tag)

        def handle_endtag(self, tag):
            if tag in ("div", "table", "svg", "details"):
                assert tags.pop() == tag

    Reader().feed(text)
    assert not tags


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_young_search_has_a_page_too(count, tmp_path):
    make(tmp_path / "s", count)
    assert "Importance needs at least" in write_search(tmp_path / "s").read_text()


def test_a_folder_without_a_search_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no search"):
        write_search(tmp_path)
    make(tmp_path / "s", 0)
    with pytest.raises(InputError, match="no ended trial"):
        write_search(tmp_path / "s")


def test_importance_ranks_what_decides_first_and_what_does_not_matter_near_zero(tmp_path):
    configs = make(tmp_path / "s", 80)
    records = [r["ended"] for r in _records.read_all(tmp_path / "s").values() if r["ended"]["score"] is not None]
    shares, explained = importance(
        configs, [r["values"] for r in records], [r["score"] for r in records],
        [r["values"]["tuner/epochs"] for r in records],
    )  # fmt: skip
    assert next(iter(shares)) == "peak_lr"
    assert shares["peak_lr"] > 10 * max(shares["weight_decay"], shares["loss"])
    assert 0.5 < explained <= 1


def test_importance_says_nothing_about_noise():
    random = np.random.default_rng(0)
    hp = keras_tuner.HyperParameters()
    hp.Float("x", 0, 1)
    hp.Float("y", 0, 1)
    configs = {held["config"]["name"]: held for held in hp.get_config()["space"]}
    values = [{"x": random.uniform(), "y": random.uniform()} for _ in range(60)]
    _, explained = importance(configs, values, list(random.uniform(size=60)), [1] * 60)
    assert explained < 0.2


@pytest.mark.parametrize(
    ("call", "value", "expected"),
    [
        (lambda hp: hp.Float("x", 0.01, 1.0, sampling="log"), 0.1, 0.5),
        (lambda hp: hp.Int("x", 2, 6), 3, 0.25),
        (lambda hp: hp.Choice("x", ["a", "b", "c"]), "b", 0.5),
        (lambda hp: hp.Boolean("x"), True, 1.0),
        (lambda hp: hp.Boolean("x"), None, -0.2),
    ],
)
def test_values_lie_on_their_own_scale(call, value, expected):
    hp = keras_tuner.HyperParameters()
    call(hp)
    assert place(hp.get_config()["space"][0], value) == pytest.approx(expected)
