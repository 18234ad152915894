"""Models by name: one literal table, for the command line, the search and configuration files."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import keras

from dlkit._errors import InputError, unknown
from dlkit.models._alexnet import alexnet
from dlkit.models._cifar_fast import cifar_fast
from dlkit.models._cnn import cnn
from dlkit.models._mlp import mlp
from dlkit.models._resnet import resnet
from dlkit.models._resnet_cifar import resnet_cifar
from dlkit.models._vgg import vgg

_KRIZHEVSKY = "Krizhevsky et al. 2012"
_SIMONYAN = "Simonyan, Zisserman 2014, Table 1"
_HE = "He et al. 2015, Table 1"
_HE_CIFAR = "He et al. 2015, Table 6"
_HE_V2 = "He et al. 2016"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of `dlkit models`."""

    builder: Callable[..., keras.Model]
    arguments: dict[str, Any]
    paper: str


ENTRIES: dict[str, Entry] = {
    "mlp": Entry(mlp, {}, "lecture 000, sections 2-4"),
    "cnn": Entry(cnn, {}, "lecture 004, template"),
    "inception": Entry(
        cnn, {"kind": "inception", "norm": "batch", "head": "average", "dense": 0}, "Szegedy et al. 2015"
    ),
    "alexnet": Entry(alexnet, {"columns": 2}, _KRIZHEVSKY),
    "alexnet_1": Entry(alexnet, {"columns": 1}, "Krizhevsky 2014"),
    "vgg11": Entry(vgg, {"config": "A"}, _SIMONYAN),
    "vgg11_lrn": Entry(vgg, {"config": "A-LRN"}, _SIMONYAN),
    "vgg13": Entry(vgg, {"config": "B"}, _SIMONYAN),
    "vgg16_c": Entry(vgg, {"config": "C"}, _SIMONYAN),
    "vgg16": Entry(vgg, {"config": "D"}, _SIMONYAN),
    "vgg19": Entry(vgg, {"config": "E"}, _SIMONYAN),
    "vgg11_bn": Entry(vgg, {"config": "A", "norm": "batch"}, _SIMONYAN),
    "vgg13_bn": Entry(vgg, {"config": "B", "norm": "batch"}, _SIMONYAN),
    "vgg16_bn": Entry(vgg, {"config": "D", "norm": "batch"}, _SIMONYAN),
    "vgg19_bn": Entry(vgg, {"config": "E", "norm": "batch"}, _SIMONYAN),
    "plain18": Entry(resnet, {"depth": 18, "residual": False}, _HE),
    "plain34": Entry(resnet, {"depth": 34, "residual": False}, _HE),
    "resnet18": Entry(resnet, {"depth": 18}, _HE),
    "resnet34": Entry(resnet, {"depth": 34}, _HE),
    "resnet50": Entry(resnet, {"depth": 50}, _HE),
    "resnet101": Entry(resnet, {"depth": 101}, _HE),
    "resnet152": Entry(resnet, {"depth": 152}, _HE),
    "resnet50_v1_5": Entry(resnet, {"depth": 50, "version": "v1.5"}, "Goyal et al. 2017"),
    "resnet50_v2": Entry(resnet, {"depth": 50, "version": "v2"}, _HE_V2),
    "resnet50_d": Entry(resnet, {"depth": 50, "version": "d"}, "T. He et al. 2018"),
    "plain_cifar20": Entry(resnet_cifar, {"depth": 20, "residual": False}, _HE_CIFAR),
    "plain_cifar56": Entry(resnet_cifar, {"depth": 56, "residual": False}, _HE_CIFAR),
    "resnet_cifar20": Entry(resnet_cifar, {"depth": 20}, _HE_CIFAR),
    "resnet_cifar32": Entry(resnet_cifar, {"depth": 32}, _HE_CIFAR),
    "resnet_cifar44": Entry(resnet_cifar, {"depth": 44}, _HE_CIFAR),
    "resnet_cifar56": Entry(resnet_cifar, {"depth": 56}, _HE_CIFAR),
    "resnet_cifar110": Entry(resnet_cifar, {"depth": 110}, _HE_CIFAR),
    "resnet_cifar1202": Entry(resnet_cifar, {"depth": 1202}, _HE_CIFAR),
    "resnet_cifar164": Entry(resnet_cifar, {"depth": 164, "block": "bottleneck", "version": "v2"}, _HE_V2),
    "resnet_cifar1001": Entry(resnet_cifar, {"depth": 1001, "block": "bottleneck", "version": "v2"}, _HE_V2),
    "cifar_fast": Entry(cifar_fast, {}, "Jordan 2024"),
}

# families whose depth may be any that the builder accepts
_ANY_DEPTH: dict[str, tuple[Callable[..., keras.Model], dict[str, Any]]] = {
    "resnet_cifar": (resnet_cifar, {}),
    "plain_cifar": (resnet_cifar, {"residual": False}),
    "resnet": (resnet, {}),
    "plain": (resnet, {"residual": False}),
}


def names() -> list[str]:
    """Returns the names that `create` knows, in the order of the papers.

    >>> "resnet50" in names()
    True
    """
    return list(ENTRIES)


def create(name: str, **kw: Any) -> keras.Model:
    """Builds a model by name.

    Args:
        name: one of `names()`, a family with another depth, such as "resnet_cifar8", or a family alone ("vgg",
            "resnet", "resnet_cifar"), whose depth or configuration is an argument.
        **kw: passed to the builder and stronger than what the name implies: `create("resnet50", version="d")`.

    Raises:
        InputError: the name or an argument is unknown (the nearest known one is named).

    Example:
        >>> create("resnet_cifar8", classes=3, input_shape=(16, 16, 1)).output_shape
        (None, 3)
    """
    builder, arguments = find(name)
    allowed = inspect.signature(builder).parameters
    for key in kw:
        if key not in allowed:
            raise unknown(f"argument of {builder.__name__}", key, allowed)
    arguments = {**arguments, **kw}
    if arguments.get("block") == "basic" and "depth" not in kw and (arguments.get("depth", 2) - 2) % 6:
        raise InputError(f'{name} has bottleneck blocks; with block="basic" give a depth of 6n+2, such as 110')
    return builder(**arguments)


def find(name: str) -> tuple[Callable[..., keras.Model], dict[str, Any]]:
    """Returns the builder that a name means, and its arguments; raises InputError for an unknown name."""
    if name in ENTRIES:
        return ENTRIES[name].builder, ENTRIES[name].arguments
    if name in _ANY_DEPTH:
        return _ANY_DEPTH[name]
    if name == "vgg":
        return vgg, {}
    family = re.fullmatch(r"([a-z_]+?)_?(\d+)", str(name))
    if family and family[1] in _ANY_DEPTH:
        builder, arguments = _ANY_DEPTH[family[1]]
        return builder, {"depth": int(family[2]), **arguments}
    raise unknown("model", name, ENTRIES)
