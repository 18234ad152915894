"""A recipe is a value: everything that decides a training run besides the model and the data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlkit._errors import InputError, unknown
from dlkit.data import augment as augmentations
from dlkit.train import _recipe_fields as fields
from dlkit.train.losses import LOSSES
from dlkit.train.optimizers import OPTIMIZERS
from dlkit.train.precision import PRECISIONS
from dlkit.train.schedules import SCHEDULES
from dlkit.train.stopping import Plateau

TASKS = ("classification", "regression", "box")


@dataclass(frozen=True)
class Recipe:
    """The arguments of a training run; derive others with `dataclasses.replace(recipe, epochs=5)`.

    Args:
        task: "classification" (class ids, cross-entropy), "regression" (float targets, squared error) or "box"
            (x, y, width, height as fractions of the image, squared error as in the lecture).
        epochs: passes over the training data; the schedule spans all of them.
        batch: images per step, over all micro-batches and replicas.
        optimizer: "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lamb",
            "averaged_momentum" (v = beta v + (1 - beta) g) or "muon".
        peak_lr: the highest learning rate.
        schedule: a name of `dlkit.train.schedules.SCHEDULES`.
        warmup_epochs: length of the linear rise before it, in epochs; fractions count, and half of the run is the most.
        momentum: beta of h = beta h + g; used by "momentum", "averaged_momentum", "nesterov", "rmsprop" and "muon".
        weight_decay: lambda in w -= eta lambda w; norms, biases and other vectors are left alone.
        label_smoothing: share of the target spread evenly over all classes.
        augment: augmentations of `dlkit.data.augment`, applied to the training stream only.
        ema: decay per step of the averaged weights, for example 0.999; 0 keeps none. When it is set the average is
            what is validated, saved and exported.
        seed: of the stream, the augmentation, and nothing else (a model draws its weights when it is built).
        precision: "float32", "bfloat16" (the graph optimiser's automatic bfloat16; variables, sums and norms stay
            float32) or "auto", which takes bfloat16 for classification where the processor multiplies it in hardware.
        loss: a name of `dlkit.train.losses.LOSSES`; "" is the task's: cross-entropy or squared error.
        l1, l2: the penalty l1 sum |w| + l2 / 2 sum w^2 over kernels, as in the lecture: its gradient joins the loss's,
            so an adaptive optimizer rescales it, unlike `weight_decay`. The loss that is shown does not contain it.
        clip_norm: a gradient (penalties included) whose norm over all variables exceeds this is scaled down to it; 0
            clips nothing.
        accumulate: micro-batches per step. Their gradients are averaged, so a step needs 1 / accumulate of the memory
            and computes the same update, except that batch normalisation sees each micro-batch by itself.
        swa_from: the weights are averaged equally over the steps after this fraction of the run; 0 averages none.
        lookahead: every so many steps the weights move half-way back to where they were; 0 never.
        stop: criteria of `dlkit.train.stopping`; the first that holds ends the run.
        plateau: a `dlkit.train.stopping.Plateau` that lowers the learning rate on top of the schedule, or None.
        sizes: progressive resizing: (fraction of the run, side in pixels) pairs, such as ((0, 96), (0.5, 128)); from
            that fraction on, training pictures have that size. Before the first pair, and in validation, the size is
            the preprocessing's. The model must take any size.
        freeze: layers that do not learn, by name patterns such as "stage1_*" or "*bn*"; a frozen batch normalisation
            uses its moving averages and leaves them alone.
        lr_groups: (pattern, factor) pairs; the learning rate of a variable is multiplied by the factor of the first
            pattern that fits its path, such as "conv1*", or its kind: "bias", "norm", "kernel".
        whiten: starts the first convolution as a whitening of the training images' patches, and keeps it so.

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
    precision: str = "auto"
    loss: str = ""
    l1: float = 0.0
    l2: float = 0.0
    clip_norm: float = 0.0
    accumulate: int = 1
    swa_from: float = 0.0
    lookahead: int = 0
    stop: tuple[Any, ...] = ()
    plateau: Plateau | None = None
    sizes: tuple[tuple[float, int], ...] = ()
    freeze: tuple[str, ...] = ()
    lr_groups: tuple[tuple[str, float], ...] = ()
    whiten: bool = False

    def __post_init__(self) -> None:
        for name in ("augment", "stop", "freeze"):
            object.__setattr__(self, name, fields.sequence(name, getattr(self, name)))
        for name in ("sizes", "lr_groups"):
            object.__setattr__(self, name, fields.pairs(name, getattr(self, name)))
        for name, choices in (
            ("task", TASKS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS),
            ("loss", ("", *LOSSES)),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        for name, low, high, whole in fields.RANGES:
            fields.check_number(name, getattr(self, name), low, high, whole)
        for operation in self.augment:
            if type(operation).__name__ not in augmentations.__all__:
                raise InputError(f"Recipe.augment takes augmentations of dlkit.data.augment, got {operation!r}")
        fields.check_extras(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON values; `from_dict` reads them back."""
        return {field.name: fields.plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Reads what `to_dict` wrote.

        Raises:
            InputError: an unknown field or augmentation, with the nearest one.
        """
        return dataclasses.replace(cls(), **fields.read(cls(), values))

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

        Lists and mappings are written as in YAML: `--set "stop=[{type: Patience, patience: 5}]"`, `--set
        "sizes=[[0, 96], [0.5, 128]]"`; a list of names also with commas: `--set augment=Flip,Color`. "none" is empty.

        >>> Recipe().override({"epochs": "3", "peak_lr": "2e-2"}).peak_lr
        0.02
        """
        return dataclasses.replace(self, **fields.read(self, settings))
