"""How the fields of a recipe are checked, written as plain values and read from plain values or strings."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import yaml

from dlkit._errors import InputError, unknown
from dlkit.data import augment as augmentations
from dlkit.train import stopping

# field, smallest value, bound that is not reached, whole number
RANGES: tuple[tuple[str, float, float | None, bool], ...] = (
    ("epochs", 1, None, True), ("batch", 1, None, True), ("seed", 0, None, True), ("peak_lr", 0, None, False),
    ("warmup_epochs", 0, None, False), ("momentum", 0, 1, False), ("weight_decay", 0, None, False),
    ("label_smoothing", 0, 1, False), ("ema", 0, 1, False), ("l1", 0, None, False), ("l2", 0, None, False),
    ("clip_norm", 0, None, False), ("accumulate", 1, None, True), ("swa_from", 0, 1, False),
    ("lookahead", 0, None, True),
)  # fmt: skip
_VALUES = {  # the fields that hold frozen values, and what may stand in them
    "augment": {name: getattr(augmentations, name) for name in augmentations.__all__ if name[0].isupper()},
    "stop": {kind.__name__: kind for kind in stopping.CRITERIA},
    "plateau": {"Plateau": stopping.Plateau},
}
_LISTS = ("augment", "stop", "sizes", "freeze", "lr_groups")


def check_number(name: str, value: Any, low: float, high: float | None, whole: bool) -> None:
    """Refuses what is no number from `low` to below `high`."""
    number = isinstance(value, int) if whole else isinstance(value, (int, float))
    if not number or isinstance(value, bool) or not low <= value < (math.inf if high is None else high):
        bound = f"from {low} to below {high}" if high is not None else f"at least {low}{'' if whole else ' and finite'}"
        raise InputError(f"Recipe.{name} must be {'an integer' if whole else 'a number'} {bound}, got {value!r}")


def sequence(name: str, value: Any) -> tuple[Any, ...]:
    """Returns `value` as a tuple; a string or a single value is not a sequence."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, (list, tuple)):
        raise InputError(f"Recipe.{name} must be a list or tuple, got {value!r}; for one entry write ({value!r},)")
    return tuple(value)


def pairs(name: str, value: Any) -> tuple[tuple[Any, Any], ...]:
    """Returns `value` as a tuple of pairs."""
    example = {"sizes": "((0.0, 96), (0.5, 128))", "lr_groups": '(("bias", 2.0),)'}[name]
    items = sequence(name, value)
    if not all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items):
        raise InputError(f"Recipe.{name} must hold pairs, such as {example}; got {value!r}")
    return tuple((first, second) for first, second in items)


def check_extras(recipe: Any) -> None:
    """Refuses criteria, sizes, patterns and groups that mean nothing."""
    for criterion in recipe.stop:
        if not isinstance(criterion, stopping.CRITERIA):
            raise InputError(f"Recipe.stop takes criteria of dlkit.train.stopping, got {criterion!r}")
    if recipe.plateau is not None and not isinstance(recipe.plateau, stopping.Plateau):
        raise InputError(f"Recipe.plateau takes a dlkit.train.stopping.Plateau or None, got {recipe.plateau!r}")
    last = -1.0
    for fraction, side in recipe.sizes:
        check_number("sizes (fraction)", fraction, 0, 1, False)
        check_number("sizes (side)", side, 1, None, True)
        if fraction <= last:
            raise InputError(f"Recipe.sizes must be in the order of the run, got {recipe.sizes!r}")
        last = fraction
    for pattern in (*recipe.freeze, *(pattern for pattern, _ in recipe.lr_groups)):
        if not isinstance(pattern, str) or not pattern:
            raise InputError(f"Recipe.freeze and Recipe.lr_groups take name patterns, got {pattern!r}")
    for _, factor in recipe.lr_groups:
        check_number("lr_groups (factor)", factor, 0, None, False)
    if not isinstance(recipe.whiten, bool):
        raise InputError(f"Recipe.whiten must be True or False, got {recipe.whiten!r}")
    if recipe.batch % recipe.accumulate:
        raise InputError(
            f"Recipe.batch={recipe.batch} cannot be cut into accumulate={recipe.accumulate} equal micro-batches"
        )


def plain(value: Any) -> Any:
    """Returns a field as JSON values; frozen values become {"type": name, fields...}."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def read(recipe: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `values` as the types of the recipe's fields; strings are what a command line holds.

    Raises:
        InputError: an unknown field, augmentation or criterion, with the nearest one; a string that is no such value.
    """
    fields = {field.name: field for field in dataclasses.fields(recipe)}
    found = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown("recipe field", name, fields)
        if isinstance(value, str):
            value = _from_string(name, type(fields[name].default), value)
        if name in ("augment", "stop"):
            value = tuple(_value(name, item) for item in ([value] if isinstance(value, (str, Mapping)) else value))
        elif name == "plateau" and value is not None:
            value = _value(name, {"type": "Plateau", **value} if isinstance(value, Mapping) else value)
        found[name] = value
    return found


def _from_string(name: str, kind: type, text: str) -> Any:
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise InputError(f"Recipe.{name} must be {kind.__name__}, got {text!r}") from None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"Recipe.{name} must be true or false, got {text!r}")
        return text.lower() == "true"
    if name not in (*_LISTS, "plateau"):
        return text
    if text in ("", "none"):
        return None if name == "plateau" else ()
    if text[0] not in "[{":
        return text if name == "plateau" else tuple(part for part in text.split(",") if part)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"Recipe.{name} cannot be read from {text!r}: {error}") from None


def _value(field: str, item: Any) -> Any:
    """Returns the frozen value that a name or a mapping describes; anything else is returned as it is."""
    item = {"type": item} if isinstance(item, str) else item
    if not isinstance(item, Mapping):
        return item
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in item.items()}
    name = values.pop("type", None)
    if name not in _VALUES[field]:
        kind = {"augment": "augmentation", "stop": "stopping criterion"}.get(field, field)
        raise unknown(kind, name, _VALUES[field])
    try:
        return _VALUES[field][name](**values)
    except TypeError as error:
        raise InputError(f"{name} does not take these values: {error}") from None
