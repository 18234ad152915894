"""A search with a tiny network, for the tests that kill it: python search_script.py DIRECTORY ORACLE WORKERS BUDGET."""

import json
import sys

from dlkit.data import Preprocess, load
from dlkit.models import mlp
from dlkit.train import Recipe
from dlkit.tune import search

PREPROCESS = Preprocess(8, channels=1, mean=0.3, std=0.37)
RECIPE = Recipe(epochs=3, batch=50, optimizer="adam", peak_lr=0.01, warmup_epochs=0.0, weight_decay=0.0)


def build(units):
    return mlp((units,), classes=10, input_shape=PREPROCESS.input_shape, dropout=0.1)


def space(hp):
    return {
        "model": {"units": hp.Choice("units", [4, 8, 16])},
        "recipe": {"peak_lr": hp.Float("peak_lr", 1e-3, 0.1, sampling="log")},
    }


def run(directory, oracle="bohb", workers=1, budget=12, **keywords):
    train, test = load("digits")
    keywords = {"epochs_budget": budget, "seed": 0, "verbose": False, "workers": workers} | keywords
    return search(
        keywords.pop("build", build), keywords.pop("space", space), keywords.pop("recipe", RECIPE),
        train.subset(range(150)), test.subset(range(60)), preprocess=PREPROCESS, oracle=oracle, directory=directory,
        **keywords,
    )  # fmt: skip


def answers(found):
    return {trial.id: [trial.score, trial.epochs, trial.values] for trial in found.trials}


if __name__ == "__main__":
    found = run(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps(answers(found)))
