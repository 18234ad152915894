"""A recipe is a value: it refuses what is out of range, and survives JSON and YAML."""

import dataclasses
import json

import pytest

from dlkit._errors import InputError
from dlkit.data.augment import Affine, Color, Flip
from dlkit.train import RECIPES, Recipe

FULL = Recipe(epochs=3, ema=0.99, augment=(Flip(), Affine(rotate=10, scale=(0.9, 1.2)), Color(brightness=0.2)))


@pytest.mark.parametrize("recipe", [FULL, *RECIPES.values()])
def test_a_recipe_survives_json(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_is_read_from_yaml_and_json(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("epochs: 7\npeak_lr: 0.02\naugment:\n  - {type: Affine, rotate: 10, scale: [0.9, 1.1]}\n  - Flip\n")
    expected = Recipe(epochs=7, peak_lr=0.02, augment=(Affine(rotate=10, scale=(0.9, 1.1)), Flip()))
    assert Recipe.from_file(path) == expected
    path.write_text(json.dumps(FULL.to_dict()))
    assert Recipe.from_file(path) == FULL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must hold fields"),
        ("epoch: 3\n", "did you mean 'epochs'"),
        ("epochs: [3\n", "cannot be read as a recipe"),
        ("epochs: !!python/object/apply:os.system ['true']\n", "cannot be read as a recipe"),
        ("augment: [Affin]\n", "did you mean"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Recipe.from_file(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="cannot be read as a recipe"):
        Recipe.from_file(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer", "adamm", "did you mean 'adam'"),
        ("schedule", "cosin", "did you mean 'cosine'"),
        ("task", "boxes", "did you mean 'box'"),
        ("precision", "float16", "unknown precision"),
        ("epochs", 0, "at least 1"),
        ("epochs", 2.5, "an integer"),
        ("batch", True, "an integer"),
        ("momentum", 1.0, "from 0 to below 1"),
        ("label_smoothing", -0.1, "from 0 to below 1"),
        ("augment", (lambda x: x,), "augmentations of dlkit.data.augment"),
    ],
)
def test_a_field_out_of_range_is_refused_with_what_is_allowed(field, value, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Recipe(), **{field: value})


def test_settings_are_read_as_the_type_of_the_field():
    recipe = Recipe().override({"epochs": "4", "peak_lr": "1e-2", "optimizer": "adam", "augment": "Flip,Color"})
    assert recipe == Recipe(epochs=4, peak_lr=0.01, optimizer="adam", augment=(Flip(), Color()))
    assert recipe.override({"augment": "none"}).augment == ()
