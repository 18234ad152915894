"""What `plan` chooses and why; what it has nothing to choose for."""

import numpy as np
import pytest

from dlkit._errors import InputError
from dlkit.data import from_arrays
from dlkit.train import RECIPES, plan


def source(count, side=8):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return from_arrays(images, np.arange(count) % 2)


def test_small_pictures_get_a_small_network_and_a_reason_for_each_choice():
    found = plan(source(600))
    assert (found.model, found.preprocess.input_shape, found.recipe) == (
        "resnet_cifar20", (16, 16, 3), RECIPES["small_images"]
    )  # fmt: skip
    assert [reason.split(":")[0] for reason in found.reasons] == [
        "input 16x16x3", "resnet_cifar20", "recipe small_images"
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "batch"), [(512, 64), (511, 32), (100, 8), (20, 8)])
def test_few_pictures_get_a_smaller_batch_and_a_rate_to_match(count, batch):
    whole, found = RECIPES["small_images"], plan(source(count))
    assert found.recipe.batch == batch
    assert found.recipe.peak_lr == pytest.approx(whole.peak_lr * batch / whole.batch)
    steps = f"{count / batch:.0f} steps per epoch of {count} pictures"
    assert found.reasons[-1].endswith(steps) == (batch < whole.batch)


def test_the_batch_of_a_recipe_is_never_raised_and_stays_divisible(tmp_path):
    (tmp_path / "small.json").write_text('{"batch": 4}')
    assert plan(source(20), recipe=str(tmp_path / "small.json")).recipe.batch == 4
    (tmp_path / "parts.json").write_text('{"batch": 96, "accumulate": 6}')
    assert plan(source(100), recipe=str(tmp_path / "parts.json")).recipe.batch == 6


def test_there_is_no_plan_for_what_are_no_classes_of_pictures():
    for given in (from_arrays(np.ones((40, 3)), np.arange(40) % 2), from_arrays(np.ones((40, 3)), np.arange(40.0))):
        with pytest.raises(InputError, match="a plan is made for classes of pictures only"):
            plan(given)
