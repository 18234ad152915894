"""Spaces: every combination gives a valid model and recipe, conditions hold, and all of it saves and reloads."""

from dataclasses import replace

import keras_tuner
import numpy as np
import pytest

from dlkit import models
from dlkit._errors import InputError
from dlkit.train import Recipe
from dlkit.tune import space
from dlkit.tune._preview import preview

SHAPES = {"mlp": (12,), "cnn": (16, 16, 1), "alexnet": (32, 32, 1), "vgg": (32, 32, 1)}


def explored(function):
    oracle = keras_tuner.oracles.RandomSearchOracle(objective=keras_tuner.Objective("val_loss", "min"), seed=1)
    hp = keras_tuner.HyperParameters()
    function(hp)
    oracle.hyperparameters = hp.copy()
    oracle.hyperparameters.values = {}
    return oracle


@pytest.mark.parametrize("name", space.SPACES)
def test_random_points_of_a_space_are_valid_recipes(name):
    oracle = explored(space.SPACES[name])
    for _ in range(30):
        hp = keras_tuner.HyperParameters()
        hp.values = oracle._random_values() or {}
        found = space.SPACES[name](hp)
        replace(Recipe(epochs=9), **found["recipe"])
        assert all(hp.values[other.name] is not None for other in hp.space if hp.is_active(other))


@pytest.mark.parametrize("family", space.FAMILIES)
@pytest.mark.parametrize("large", [False, True])
def test_the_corners_of_an_architecture_space_describe_models(family, large):
    function = space.architecture(family, large=large)
    oracle = explored(function)
    builder = {"resnet_cifar": models.resnet_cifar, "resnet": models.resnet}.get(family) or getattr(models, family)
    names = set()
    for i in range(25):
        hp = keras_tuner.HyperParameters()
        hp.values = oracle._random_values()
        found = function(hp)["model"]
        names |= set(found)
        if i == 0 and not large:
            shape = SHAPES.get(family, (32, 32, 3))
            assert builder(classes=4, input_shape=shape, **found).output_shape == (None, 4)
    assert {"norm", "activation"} <= names


@pytest.mark.parametrize("name", ["optimizer", "loss", "augmentation"])
def test_conditional_values_exist_only_under_their_condition_and_survive_a_reload(name):
    function = space.SPACES[name]
    oracle = explored(function)
    conditional = [hp for hp in oracle.get_space().space if hp.conditions]
    assert conditional
    reloaded = keras_tuner.HyperParameters.from_config(oracle.get_space().get_config())
    assert reloaded.get_config() == oracle.get_space().get_config()
    seen = set()
    for _ in range(40):
        values = oracle._random_values()
        if values is None:
            break
        for hp in conditional:
            wanted = all(c.is_active(values) for c in hp.conditions)
            assert (hp.name in values) == wanted
            seen.add((hp.name, wanted))
    assert len(seen) == 2 * len(conditional)


def test_what_a_condition_excludes_is_not_in_the_recipe():
    hp = keras_tuner.HyperParameters()
    hp.values = {"optimizer": "adamw", "adamw_lr": 0.002, "nesterov_lr": 0.7}
    assert space.optimizer(hp)["recipe"] == {"optimizer": "adamw", "peak_lr": 0.002}


def test_spaces_are_combined_and_the_later_one_wins():
    hp = keras_tuner.HyperParameters()
    found = space.combine(space.default_space, space.batch, lambda hp: {"recipe": {"peak_lr": 0.3}})(hp)
    assert found["recipe"]["peak_lr"] == 0.3
    assert found["recipe"]["batch"] == 64
    assert found["model"] == {"width": 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: space.get("optimiser"), "did you mean 'optimizer'"),
        (lambda: space.get(" , "), "no space in"),
        (lambda: space.architecture("resnet_cifa"), "did you mean 'resnet_cifar'"),
    ],
)
def test_unknown_spaces_and_families_name_the_nearest(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("oracle", ["random", "hyperband", "asha", "bohb"])
def test_a_preview_shows_the_space_and_spends_the_budget(oracle):
    found = preview(space.get("default,optimizer"), Recipe(epochs=9), epochs_budget=90, oracle=oracle)
    assert 70 <= found.epochs <= 110
    assert max(found.rungs) == 9
    assert sum(found.rungs.values()) >= found.trials
    rows = {row[0]: row for row in found.space}
    assert rows["adamw_lr"][2] == "0.0001 to 0.01, log"
    assert rows["adamw_lr"][4] == "optimizer in adamw"
    assert np.isclose(float(rows["peak_lr"][3]), 0.1)
