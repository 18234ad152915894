"""A sensible start for data nobody has described: input size, model and recipe, each with its reason."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from dlkit._errors import InputError
from dlkit.data import Preprocess
from dlkit.train import recipes
from dlkit.train.recipe import Recipe

SAMPLE = 64  # pictures that are looked at


@dataclass(frozen=True)
class Plan:
    """What to train and why.

    Attributes:
        model: a name of `dlkit.models.names()`.
        preprocess: the input definition.
        recipe: the recipe.
        reasons: one sentence for each choice.
    """

    model: str
    preprocess: Preprocess
    recipe: Recipe
    reasons: tuple[str, ...]

    def override(self, settings: Mapping[str, Any]) -> "Plan":
        """Returns the plan with recipe fields replaced, see `Recipe.override`."""
        return dataclasses.replace(self, recipe=self.recipe.override(settings))


def plan(source: Any, *, model: str = "", recipe: str = "", size: int = 0, pretrained: bool = False) -> Plan:
    """Chooses what the caller leaves open, by looking at `SAMPLE` pictures of `source`.

    Args:
        source: a source of pictures.
        model: keep this model instead of choosing one.
        recipe: a name of `RECIPES`, or a YAML or JSON file of recipe fields, instead of choosing one.
        size: side of the input in pixels instead of choosing one.
        pretrained: trained weights will be loaded into the model: fine-tune it.

    Raises:
        InputError: an unknown recipe, or a source without pictures.
    """
    chosen = recipes.get(recipe) if recipe else None
    if source.task != "classification":
        raise InputError(f"{source.name!r} is a source for {source.task}; a plan is made for classes of pictures only")
    source.check().refuse()
    side, channels = _look(source)
    reasons = []
    if not size:
        size = 16 if side <= 16 else 32 if side <= 40 else 64 if side <= 80 else 224 if pretrained else 128
        reasons.append(f"input {size}x{size}x{channels}: the pictures' shorter sides are about {side} pixels")
    if not model:
        model = "resnet_cifar20" if size <= 64 else "resnet18"
        reasons.append(
            f"{model}: {'a small' if size <= 64 else 'the smallest ImageNet'} residual network for this size"
        )
    if chosen is None:
        name = "finetune" if pretrained else "small_images"
        name = "digits" if source.name.startswith("digits") else name
        chosen = recipes.RECIPES[name]
        reasons.append(f"recipe {name}: {len(source)} training pictures{', trained weights' if pretrained else ''}")
    batch = min(chosen.batch, max(8, 2 ** int(np.log2(max(1, len(source) // 8)))))
    batch = max(1, batch // chosen.accumulate) * chosen.accumulate
    if batch < chosen.batch:
        # the rate goes with the batch: Goyal et al. 2017, section 2.1
        chosen = dataclasses.replace(chosen, batch=batch, peak_lr=chosen.peak_lr * batch / chosen.batch)
        steps = f"{len(source) / batch:.0f} steps per epoch of {len(source)} pictures"
        reasons.append(f"batch {batch}, learning rate {chosen.peak_lr:g}: {steps}")
    return Plan(model, Preprocess(size, channels=channels), chosen, tuple(reasons))


def _look(source: Any) -> tuple[int, int]:
    """Returns the median shorter side and the channels (1 if every sampled picture is grey, else 3).

    Raises:
        InputError: a table.
    """
    rows = source.rows[np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int)]
    read = Preprocess(1).read if source.store.encoded else np.asarray
    pictures = [np.asarray(read(item)) for item in source.store.take(tf.constant(rows))]
    if pictures[0].ndim != 3:
        raise InputError(f"{source.name!r} is a table; a plan is made for classes of pictures only")
    grey = all((picture[..., :1] == picture[..., :3]).all() for picture in pictures)
    return int(np.median([min(picture.shape[:2]) for picture in pictures])), 1 if grey else 3
