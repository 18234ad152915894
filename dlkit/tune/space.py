"""Search spaces: small functions `hp -> {"model": {...}, "recipe": {...}}` that can be put together.

`hp` is a `keras_tuner.HyperParameters`; the result holds keyword arguments of a builder and fields of a recipe. A value
that only one choice uses lies in a `conditional_scope`, so that an oracle sees it where it means something, and a saved
search holds the condition.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dlkit._errors import InputError, unknown
from dlkit.data.augment import Affine, CutMix, Erase, Flip, MixUp, RandAugment, RandomCrop, TrivialAugment

Space = Callable[[Any], Mapping[str, Mapping[str, Any]]]

FAMILIES = ("mlp", "cnn", "alexnet", "vgg", "resnet_cifar", "resnet")
# optimizer -> range of its learning rate, range of its momentum
_RATES: dict[str, tuple[tuple[float, float], tuple[float, float] | None]] = {
    "nesterov": ((0.01, 1.0), (0.8, 0.98)),
    "adamw": ((1e-4, 1e-2), None),
    "lamb": ((1e-3, 1e-1), None),
    "muon": ((1e-3, 1e-1), (0.8, 0.98)),
}


def combine(*spaces: Space) -> Space:
    """Returns the space that varies what all of `spaces` vary; where two set one field the later one wins.

    >>> import keras_tuner
    >>> both = combine(default_space, batch)
    >>> sorted(both(keras_tuner.HyperParameters())["recipe"])
    ['batch', 'label_smoothing', 'peak_lr', 'weight_decay']
    """

    def combined(hp: Any) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {"model": {}, "recipe": {}}
        for space in spaces:
            for part, values in space(hp).items():
                found[part] |= values
        return found

    return combined


def default_space(hp: Any) -> dict[str, dict[str, Any]]:
    """A small space that suits every convolutional builder: learning rate, weight decay, smoothing and width.

    A space of your own is any function of this shape.

    >>> import keras_tuner
    >>> default_space(keras_tuner.HyperParameters())["model"]
    {'width': 1.0}
    """
    return {
        "model": {"width": hp.Choice("width", [0.5, 0.75, 1.0], default=1.0)},
        "recipe": {
            "peak_lr": hp.Float("peak_lr", 0.01, 0.5, sampling="log", default=0.1),
            "weight_decay": hp.Float("weight_decay", 1e-5, 1e-2, sampling="log", default=5e-4),
            "label_smoothing": hp.Choice("label_smoothing", [0.0, 0.1]),
        },
    }


def optimizer(hp: Any) -> dict[str, dict[str, Any]]:
    """Varies the optimizer, and for each its own learning rate and momentum: they do not mean the same in two of them.

    >>> import keras_tuner
    >>> optimizer(keras_tuner.HyperParameters())["recipe"]
    {'optimizer': 'nesterov', 'peak_lr': 0.1, 'momentum': 0.9}
    """
    name = hp.Choice("optimizer", list(_RATES))
    recipe = {"optimizer": name}
    for other, (rate, momentum) in _RATES.items():
        with hp.conditional_scope("optimizer", [other]):
            low, high = rate
            found = {
                "peak_lr": hp.Float(f"{other}_lr", low, high, sampling="log", default=round((low * high) ** 0.5, 6))
            }
            if momentum:
                found["momentum"] = hp.Float(f"{other}_momentum", *momentum, default=0.9)
        if other == name:
            recipe |= found
    return {"recipe": recipe}


def schedule(hp: Any) -> dict[str, dict[str, Any]]:
    """Varies the form of the learning rate's schedule and the length of its rise, in epochs."""
    return {
        "recipe": {
            "schedule": hp.Choice("schedule", ["cosine", "linear", "one_cycle", "piecewise"]),
            "warmup_epochs": hp.Choice("warmup_epochs", [0.0, 0.5, 1.0], default=0.5),
        }
    }


def batch(hp: Any) -> dict[str, dict[str, Any]]:
    """Varies the images per step."""
    return {"recipe": {"batch": hp.Choice("batch", [32, 64, 128, 256], default=64)}}


def loss(hp: Any) -> dict[str, dict[str, Any]]:
    """Varies the loss of a classification; label smoothing belongs to the cross-entropies alone."""
    name = hp.Choice("loss", ["cross_entropy", "bce", "mse"])
    with hp.conditional_scope("loss", ["cross_entropy", "bce"]):
        smoothing = hp.Float("label_smoothing", 0.0, 0.2, step=0.05)
    return {"recipe": {"loss": name, "label_smoothing": smoothing if name != "mse" else 0.0}}


def regularization(hp: Any) -> dict[str, dict[str, Any]]:
    """Varies weight decay, the largest norm of a gradient and the averaging of the weights."""
    return {
        "recipe": {
            "weight_decay": hp.Float("weight_decay", 1e-5, 1e-2, sampling="log", default=5e-4),
            "clip_norm": hp.Choice("clip_norm", [0.0, 1.0, 5.0]),
            "ema": hp.Choice("ema", [0.0, 0.99, 0.999]),
        }
    }


def augmentation(hp: Any) -> dict[str, dict[str, Any]]:
    """Varies the geometry and colour policy, erasing, and the mixing of two images, each with its own strength.

    >>> import keras_tuner
    >>> augmentation(keras_tuner.HyperParameters())["recipe"]["augment"]
    (RandomCrop(padding=4, fill=0.0), Flip(horizontal=0.5, vertical=0.0, mode='random'))
    """
    policy = hp.Choice("policy", ["crop_flip", "affine", "randaugment", "trivialaugment", "none"])
    with hp.conditional_scope("policy", ["affine"]):
        rotate = hp.Float("rotate", 0.0, 30.0, default=10.0)
        shift = hp.Float("shift", 0.0, 0.25, default=0.1)
    with hp.conditional_scope("policy", ["randaugment"]):
        magnitude = hp.Int("magnitude", 2, 14, default=9)
    mix = hp.Choice("mix", ["none", "mixup", "cutmix"])
    with hp.conditional_scope("mix", ["mixup"]):
        mixup = hp.Float("mixup_alpha", 0.05, 1.0, sampling="log", default=0.2)
    with hp.conditional_scope("mix", ["cutmix"]):
        cutmix = hp.Float("cutmix_chance", 0.1, 1.0, default=0.5)
    erase = hp.Boolean("erase")
    operations: list[Any] = []
    if policy == "crop_flip":
        operations += [RandomCrop(), Flip()]
    elif policy == "affine":
        operations.append(Affine(rotate=rotate, shift=shift))
    elif policy == "randaugment":
        operations.append(RandAugment(magnitude=magnitude))
    elif policy == "trivialaugment":
        operations.append(TrivialAugment())
    operations += [Erase()] if erase else []
    operations += [MixUp(mixup)] if mix == "mixup" else [CutMix(chance=cutmix)] if mix == "cutmix" else []
    return {"recipe": {"augment": tuple(operations)}}


def architecture(family: str = "resnet_cifar", *, large: bool = False) -> Space:
    """Returns the space of one family of builders: depth, width, norm, activation and what is the family's own.

    Args:
        family: "mlp", "cnn", "alexnet", "vgg", "resnet_cifar" or "resnet".
        large: deeper and wider networks, for large pictures or many of them.

    Raises:
        InputError: an unknown family, with the nearest one.

    >>> import keras_tuner
    >>> architecture("resnet_cifar")(keras_tuner.HyperParameters())["model"]["depth"]
    8
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)

    def space(hp: Any) -> dict[str, dict[str, Any]]:
        model = _OWN[family](hp, large)
        norms = ["none", "batch"] if family in ("alexnet", "vgg") else ["batch", "layer", "none"]
        norms = ["batch", "group"] if family.startswith("resnet") else norms
        model["norm"] = hp.Choice("norm", norms, default=norms[0])
        model["activation"] = hp.Choice("activation", ["relu", "swish", "leaky_relu"])
        return {"model": model}

    return space


def get(names: str, family: str = "resnet_cifar") -> Space:
    """Returns the space of a comma-separated list of names, as the command line takes it.

    Args:
        names: of `SPACES`, or "architecture".
        family: of "architecture".

    Raises:
        InputError: an unknown name, with the nearest one.
    """
    chosen = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name != "architecture" and name not in SPACES:
            raise unknown("space", name, [*SPACES, "architecture"])
        chosen.append(architecture(family) if name == "architecture" else SPACES[name])
    if not chosen:
        raise InputError(f"no space in {names!r}; known: {', '.join([*SPACES, 'architecture'])}")
    return combine(*chosen)


def _mlp(hp: Any, large: bool) -> dict[str, Any]:
    layers = hp.Int("layers", 1, 5 if large else 3, default=2)
    units = hp.Choice("units", [256, 512, 1024, 2048] if large else [32, 64, 128, 256])
    return {"units": (units,) * layers, "dropout": hp.Float("dropout", 0.0, 0.5, step=0.1)}


def _cnn(hp: Any, large: bool) -> dict[str, Any]:
    return {
        "blocks": hp.Int("blocks", 2, 4 if large else 3),
        "convs": hp.Int("convs", 1, 3 if large else 2),
        "filters": hp.Choice("filters", [32, 48, 64] if large else [8, 16, 32]),
        "head": hp.Choice("head", ["average", "dense"]),
        "downsample": hp.Choice("downsample", ["max", "stride"]),
        "norm_position": hp.Choice("norm_position", ["before", "after"]),
    }


def _alexnet(hp: Any, large: bool) -> dict[str, Any]:
    return {
        "columns": hp.Choice("columns", [1, 2]),
        "width": hp.Choice("width", [0.5, 0.75, 1.0] if large else [0.125, 0.25, 0.5]),
        "dropout": hp.Float("dropout", 0.0, 0.5, step=0.1, default=0.5),
        "stem": hp.Choice("stem", ["imagenet", "cifar"] if large else ["auto"]),
    }


def _vgg(hp: Any, large: bool) -> dict[str, Any]:
    return {
        "config": hp.Choice("config", ["B", "D", "E"] if large else ["A", "B", "D"]),
        "width": hp.Choice("width", [0.5, 0.75, 1.0] if large else [0.125, 0.25, 0.5]),
        "dropout": hp.Float("dropout", 0.0, 0.5, step=0.1, default=0.5),
        "stem": hp.Choice("stem", ["imagenet", "cifar"] if large else ["auto"]),
    }


def _resnet_cifar(hp: Any, large: bool) -> dict[str, Any]:
    return {
        "depth": hp.Choice("depth", [20, 32, 44, 56] if large else [8, 14, 20]),
        "width": hp.Choice("width", [1.0, 2.0, 4.0] if large else [0.25, 0.5, 1.0]),
        "version": hp.Choice("version", ["v1", "v2"]),
        "shortcut": hp.Choice("shortcut", ["A", "B"]),
    }


def _resnet(hp: Any, large: bool) -> dict[str, Any]:
    return {
        "depth": hp.Choice("depth", [34, 50, 101] if large else [18, 34]),
        "width": hp.Choice("width", [0.75, 1.0, 1.5] if large else [0.25, 0.5, 1.0]),
        "version": hp.Choice("version", ["v1", "v1.5", "v2", "d"]),
        "shortcut": hp.Choice("shortcut", ["B", "A"]),
        "stem": hp.Choice("stem", ["imagenet", "cifar"] if large else ["auto", "cifar"]),
    }


_OWN: dict[str, Callable[[Any, bool], dict[str, Any]]] = {
    "mlp": _mlp, "cnn": _cnn, "alexnet": _alexnet, "vgg": _vgg, "resnet_cifar": _resnet_cifar, "resnet": _resnet,
}  # fmt: skip

# name -> space that suits any image classifier; the command line's --space
SPACES: dict[str, Space] = {
    "default": default_space,
    "optimizer": optimizer,
    "schedule": schedule,
    "batch": batch,
    "loss": loss,
    "regularization": regularization,
    "augmentation": augmentation,
}
