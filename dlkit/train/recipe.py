"""A recipe is a value: everything that decides a training run besides the model and the data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlkit._errors import InputError, unknown
from dlkit.data import augment as augmentations
from dlkit.train.optimizers import OPTIMIZERS
from dlkit.train.precision import PRECISIONS
from dlkit.train.schedules import SCHEDULES

TASKS = ("classification", "regression", "box")


@dataclass(frozen=True)
class Recipe:
    """The arguments of a training run; derive others with `dataclasses.replace(recipe, epochs=5)`.

    Args:
        task: "classification" (class ids, cross-entropy), "regression" (float targets, squared error) or "box"
            (x, y, width, height as fractions of the image, squared error as in the lecture).
        epochs: passes over the training data; the schedule spans all of them.
        batch: images per step.
        optimizer: "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam" or "adamw".
        peak_lr: the highest learning rate.
        schedule: a name of `dlkit.train.schedules.SCHEDULES`.
        warmup_epochs: length of the linear rise before it, in epochs; fractions count, and half of the run is the most.
        momentum: beta of h = beta h + g; used by "momentum", "nesterov" and "rmsprop" ("sgd" has none).
        weight_decay: lambda in w -= eta lambda w; norms, biases and other vectors are left alone.
        label_smoothing: share of the target spread evenly over all classes.
        augment: augmentations of `dlkit.data.augment`, applied to the training stream only.
        ema: decay per step of the averaged weights, for example 0.999; 0 keeps none. When it is set the average is
            what is validated, saved and exported.
        seed: of the stream, the augmentation, and nothing else (a model draws its weights when it is built).
        precision: "float32", "bfloat16" (the graph optimiser's automatic bfloat16 on processors that have it; variables
            stay float32) or "auto".

    Raises:
        InputError: a field out of range, with what is allowed.

    >>> Recipe(epochs=2).schedule
    'cosine'
    """

    task: str = "classification"
    epochs: int = 30
    batch: int = 128
    optimizer: str = "nesterov"
    peak_lr: float = 0.1
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    augment: tuple[Any, ...] = ()
    ema: float = 0.0
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", tuple(self.augment))
        for field, choices in (
            ("task", TASKS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS),
        ):  # fmt: skip
            if getattr(self, field) not in choices:
                raise unknown(field, getattr(self, field), choices)
        for field, low, high, whole in (
            ("epochs", 1, None, True), ("batch", 1, None, True), ("seed", 0, None, True), ("peak_lr", 0, None, False),
            ("warmup_epochs", 0, None, False), ("momentum", 0, 1, False), ("weight_decay", 0, None, False),
            ("label_smoothing", 0, 1, False), ("ema", 0, 1, False),
        ):  # fmt: skip
            value = getattr(self, field)
            number = isinstance(value, int) if whole else isinstance(value, (int, float))
            if not number or isinstance(value, bool) or not low <= value or (high is not None and not value < high):
                bound = f"at least {low}" if high is None else f"from {low} to below {high}"
                raise InputError(
                    f"Recipe.{field} must be {'an integer' if whole else 'a number'} {bound}, got {value!r}"
                )
        for operation in self.augment:
            if type(operation).__name__ not in augmentations.__all__:
                raise InputError(f"Recipe.augment takes augmentations of dlkit.data.augment, got {operation!r}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON values; `from_dict` reads them back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["augment"] = [_augmentation_to_dict(operation) for operation in self.augment]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Reads what `to_dict` wrote.

        Raises:
            InputError: an unknown field or augmentation, with the nearest one.
        """
        return dataclasses.replace(cls(), **_checked(values))

    @classmethod
    def from_file(cls, path: str | Path) -> "Recipe":
        """Reads a recipe from a YAML or JSON file of fields; those left out keep their defaults.

        Args:
            path: a file such as `epochs: 20`, `augment: [{type: Affine, rotate: 10}]`; read as plain values, no tag of
                YAML creates objects.

        Raises:
            InputError: no such file, not a mapping of fields, or an unknown field, with the nearest one.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read as a recipe: {error}") from None
        if not isinstance(values, Mapping):
            raise InputError(
                f"{path} must hold fields of a recipe, such as `epochs: 20`; found {type(values).__name__}"
            )
        return cls.from_dict(values)

    def override(self, settings: Mapping[str, Any]) -> "Recipe":
        """Returns a copy with the named fields replaced; strings are read as the field's type.

        >>> Recipe().override({"epochs": "3", "peak_lr": "2e-2"}).peak_lr
        0.02
        """
        return dataclasses.replace(self, **_checked(settings))


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(Recipe)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown("recipe field", name, fields)
        kind = type(fields[name].default)
        if name == "augment":
            if isinstance(value, str):
                value = [part for part in value.split(",") if part and part != "none"]
            value = tuple(_augmentation_from(item) for item in value)
        elif isinstance(value, str) and kind in (int, float):
            try:
                value = kind(value)
            except ValueError:
                raise InputError(f"Recipe.{name} must be {kind.__name__}, got {value!r}") from None
        checked[name] = value
    return checked


def _augmentation_to_dict(operation: Any) -> dict[str, Any]:
    fields = dataclasses.fields(operation)
    return {"type": type(operation).__name__, **{field.name: getattr(operation, field.name) for field in fields}}


def _augmentation_from(item: Any) -> Any:
    if isinstance(item, str):
        item = {"type": item}
    if not isinstance(item, Mapping):
        return item
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in item.items()}
    name = values.pop("type", None)
    if name not in augmentations.__all__:
        raise unknown("augmentation", name, augmentations.__all__)
    return getattr(augmentations, name)(**values)
