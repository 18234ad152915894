"""The named recipes: what each is for is documented, and each fits a model it is meant for."""

from pathlib import Path

import pytest

from dlkit import _commands, models
from dlkit.data import load
from dlkit.data.augment import MixUp
from dlkit.train import RECIPES, averaging, optimizers, plan, schedules, whitening
from dlkit.train._kinds import kind
from dlkit.train.optimizers import rate_factor

MODELS = {
    "digits": ("resnet_cifar8", {"input_shape": (8, 8, 1)}),
    "small_images": ("resnet_cifar8", {}),
    "cifar_fast": ("cifar_fast", {"width": 0.125, "input_shape": (None, None, 3)}),
    "resnet_cifar": ("resnet_cifar8", {}),
    "alexnet": ("alexnet", {"width": 0.05, "stem": "cifar", "input_shape": (32, 32, 3)}),
    "vgg": ("vgg11", {"width": 0.05, "stem": "cifar", "input_shape": (32, 32, 3)}),
    "resnet_imagenet": ("resnet18", {"width": 0.05, "input_shape": (64, 64, 3)}),
    "resnet_strikes_back_a3": ("resnet18", {"width": 0.05, "input_shape": (64, 64, 3)}),
    "finetune": ("resnet18", {"width": 0.05, "input_shape": (64, 64, 3)}),
}


def test_every_recipe_has_a_row_in_the_documentation_and_a_model_here():
    text = Path(__file__).parents[2].joinpath("docs", "training.md").read_text()
    assert list(MODELS) == list(RECIPES)
    for name in RECIPES:
        assert f"| `{name}` |" in text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_optimizer_its_schedule_and_its_average_for_its_model(name):
    recipe = RECIPES[name]
    model = models.create(MODELS[name][0], classes=10, **MODELS[name][1])
    if recipe.whiten:
        whitening.prepare(model)
    schedule = schedules.get(recipe.schedule, recipe.peak_lr, 1000, round(1000 * recipe.warmup_epochs / recipe.epochs))
    optimizer = optimizers.get(
        recipe.optimizer, schedule, model.trainable_variables, momentum=recipe.momentum,
        weight_decay=recipe.weight_decay, lr_groups=recipe.lr_groups,
    )  # fmt: skip
    assert optimizer.variables
    assert 0 <= float(schedule(1000)) <= recipe.peak_lr
    assert averaging.get(recipe, model, 1000).model is model


def test_the_fast_recipe_gives_the_records_rates_to_each_part_of_its_network():
    recipe, model = RECIPES["cifar_fast"], models.cifar_fast(width=0.125)
    whitening.prepare(model)
    optimizer = optimizers.get("muon", 0.1, model.trainable_variables)
    for variable in model.trainable_variables:
        factor = rate_factor(variable, recipe.lr_groups) * recipe.peak_lr
        if "fc" in variable.path:
            expected = 0.67 * 500 / 256**2  # the record's logits are divided by 256, its losses summed
        elif kind(variable) == "kernel":
            expected = 0.12
        else:
            expected = 0.053 * 500
        assert factor == pytest.approx(expected, rel=0.01)
        assert optimizer.orthogonalises(variable) == (kind(variable) == "kernel" and "fc" not in variable.path)


def test_the_command_line_builds_a_network_for_any_size_where_the_recipe_has_sizes():
    train, _ = load("digits")
    for recipe, sides in (("cifar_fast", (None, None)), ("digits", (32, 32))):
        chosen = plan(train, model="cifar_fast", recipe=recipe, size=32, pretrained=False)
        assert _commands.builder(chosen, train)(width=0.125).input_shape == (None, *sides, 1)


def test_mixing_comes_last_in_the_strong_recipe():
    names = [type(operation).__name__ for operation in RECIPES["resnet_strikes_back_a3"].augment]
    assert names[-2:] == ["MixUp", "CutMix"]
    assert MixUp(0.1, 0.5) in RECIPES["resnet_strikes_back_a3"].augment
