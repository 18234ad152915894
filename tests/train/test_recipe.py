"""A recipe is a value: it refuses what is out of range, and survives JSON and YAML."""

import dataclasses
import json

import pytest

from dlkit._errors import InputError
from dlkit.data.augment import Affine, Color, Flip
from dlkit.train import RECIPES, Recipe, _run_dir
from dlkit.train.stopping import Patience, Plateau, TimeBudget

FULL = Recipe(epochs=3, ema=0.99, augment=(Flip(), Affine(rotate=10, scale=(0.9, 1.2)), Color(brightness=0.2)))
WHOLE = Recipe(
    loss="cross_entropy", l1=1e-5, l2=1e-4, clip_norm=1.0, accumulate=2, swa_from=0.5, lookahead=5, whiten=True,
    stop=(Patience("val_accuracy", patience=3), TimeBudget(60)), plateau=Plateau(factor=0.5),
    sizes=((0.0, 96), (0.5, 128)),
    freeze=("conv1*",), lr_groups=(("bias", 64.0),),
)  # fmt: skip


@pytest.mark.parametrize("recipe", [FULL, WHOLE, *RECIPES.values()])
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
        ("peak_lr", float("inf"), "at least 0 and finite"),
        ("warmup_epochs", float("nan"), "at least 0 and finite"),
        ("batch", True, "an integer"),
        ("momentum", 1.0, "from 0 to below 1"),
        ("label_smoothing", -0.1, "from 0 to below 1"),
        ("augment", (lambda x: x,), "augmentations of dlkit.data.augment"),
        ("loss", "mean", "unknown loss"),
        ("l2", -1.0, "at least 0"),
        ("swa_from", 1.0, "from 0 to below 1"),
        ("accumulate", 3, "cannot be cut into accumulate=3"),
        ("stop", Patience(), "must be a list or tuple"),
        ("stop", (Plateau(),), "criteria of dlkit.train.stopping"),
        ("plateau", 0.1, "Plateau or None"),
        ("sizes", ((0.5, 8), (0.2, 9)), "in the order of the run"),
        ("sizes", ((0.5, 8.5),), "an integer"),
        ("sizes", (96, 128), "must hold pairs"),
        ("freeze", "conv*", "must be a list or tuple"),
        ("lr_groups", (("bias", -1.0),), "at least 0"),
        ("whiten", 1, "True or False"),
    ],
)
def test_a_field_out_of_range_is_refused_with_what_is_allowed(field, value, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Recipe(), **{field: value})


def test_settings_are_read_as_the_type_of_the_field():
    recipe = Recipe().override({"epochs": "4", "peak_lr": "1e-2", "optimizer": "adam", "augment": "Flip,Color"})
    assert recipe == Recipe(epochs=4, peak_lr=0.01, optimizer="adam", augment=(Flip(), Color()))
    assert recipe.override({"augment": "none"}).augment == ()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stop": "Patience,TimeBudget"}, {"stop": (Patience(), TimeBudget())}),
        ({"stop": "[{type: Patience, patience: 3}]"}, {"stop": (Patience(patience=3),)}),
        ({"plateau": "{factor: 0.5, patience: 3}"}, {"plateau": Plateau(factor=0.5, patience=3)}),
        ({"plateau": "Plateau"}, {"plateau": Plateau()}),
        ({"plateau": "none", "stop": "none"}, {}),
        ({"sizes": "[[0, 8], [0.5, 12]]"}, {"sizes": ((0, 8), (0.5, 12))}),
        ({"freeze": "conv1*,norm1"}, {"freeze": ("conv1*", "norm1")}),
        ({"lr_groups": "[[bias, 64]]", "whiten": "true"}, {"lr_groups": (("bias", 64),), "whiten": True}),
    ],
)
def test_lists_and_values_are_read_from_the_command_line(settings, expected):
    assert Recipe().override(settings) == dataclasses.replace(Recipe(), **expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": "Patienc"}, "did you mean 'Patience'"),
        ({"stop": "[{type: Patience, patient: 3}]"}, "Patience does not take these values"),
        ({"stop": "[{"}, "cannot be read"),
        ({"whiten": "1"}, "true or false"),
        ({"plateau": "{factor: 2}"}, "between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Recipe().override(settings)


def test_a_run_from_before_a_field_existed_is_the_run_with_its_default(tmp_path):
    held = {"recipe": Recipe(epochs=3).to_dict(), "preprocess": {}, "data": {}, "model": {}}
    old = dict(
        held, recipe={name: value for name, value in held["recipe"].items() if name not in ("l2", "stop", "sizes")}
    )
    assert Recipe.from_dict(old["recipe"]) == Recipe(epochs=3)
    _run_dir.claim(tmp_path, old, resume=True)
    _run_dir.claim(tmp_path, held, resume=True)
    with pytest.raises(InputError, match=r"recipe\.l2: 0\.0 there, 0\.5 now"):
        _run_dir.claim(tmp_path, dict(held, recipe=Recipe(epochs=3, l2=0.5).to_dict()), resume=True)
