"""Progressive resizing: which side the training pictures have at which step."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

from dlkit._errors import InputError
from dlkit.data import Preprocess

SMALLEST = 2 / 3  # of the size of evaluation; smaller training pictures show objects of another scale


def check(model: Any, recipe: Any, preprocess: Any) -> None:
    """Refuses sizes for a model that takes only one, and warns of a recipe for much smaller pictures.

    Raises:
        InputError: the reason and what to build.
    """
    if not recipe.sizes:
        return
    if not isinstance(preprocess, Preprocess):
        raise InputError(f"sizes={recipe.sizes} are for pictures; {type(preprocess).__name__} prepares a table")
    takes = tuple(model.input_shape[1:3])
    if takes != (None, None):
        raise InputError(
            f"sizes={recipe.sizes} need a model that takes any size; {model.name!r} takes {takes} only. Build it with "
            f"input_shape=(None, None, {preprocess.channels}); a model with a dense layer on flattened positions "
            f"(such as vgg, alexnet) cannot"
        )
    side, last = max(preprocess.input_shape[:2]), recipe.sizes[-1][1]
    if len(recipe.sizes) > 1 and last < SMALLEST * side:  # a single size is a choice
        fitting = tuple((start, round(size * side / last)) for start, size in recipe.sizes)
        warnings.warn(
            f"sizes={recipe.sizes}: training ends with pictures of {last} pixels, evaluation has {side}; "
            f"sizes={fitting} would end there",
            stacklevel=4,
        )


def parts(recipe: Any, preprocess: Any, total: int) -> Iterator[tuple[int, Any]]:
    """Yields (the step at which it ends, preprocessing) for every part of a run of `total` steps."""
    starts = [round(fraction * total) for fraction, _ in recipe.sizes]
    if not starts or starts[0] > 0:
        yield (starts[0] if starts else total), preprocess
    for (_, side), end in zip(recipe.sizes, [*starts[1:], total], strict=True):
        yield end, resized(preprocess, side)


def resized(preprocess: Any, side: int) -> Any:
    """Returns the preprocessing for pictures of another side; a centre crop keeps its share of the picture."""
    resize = preprocess.resize
    if resize is not None:
        resize = max(side, round(resize * side / max(preprocess.size)))
    return dataclasses.replace(preprocess, size=side, resize=resize)
