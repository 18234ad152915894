"""norm(): a normalisation layer by name, class or callable."""

from collections.abc import Callable
from typing import Any

import keras

from dlkit._errors import InputError, unknown
from dlkit.layers._activations import one_instance
from dlkit.layers._batch_norm import BatchNorm
from dlkit.layers._norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from dlkit.layers._response import LocalResponseNorm

NORMS: dict[str, Callable[..., keras.layers.Layer]] = {
    "batch": BatchNorm,
    "group": GroupNorm,
    "layer": LayerNorm,
    "instance": InstanceNorm,
    "rms": RMSNorm,
    "response": LocalResponseNorm,
    "none": keras.layers.Identity,
}


def norm(name: Any, /, **kw: Any) -> keras.layers.Layer:
    """Returns a new normalisation layer for a name, a layer class or a callable that makes one.

    Args:
        name: "batch", "group", "layer", "instance", "rms", "response" (LocalResponseNorm), "none" (or None: the
            identity), a layer class, or a callable that takes `**kw` and returns a layer, such as
            `functools.partial(GroupNorm, groups=8)`. By position only, so that `name=` names the layer.
        **kw: passed on: `name`, `dtype` and the layer's own arguments.

    Raises:
        InputError: the name is unknown (the known ones are listed), the callable returns no layer, or a layer instance
            was given, whose weights would be shared between all places that use it.

    Example:
        >>> norm("group", groups=8, name="gn1").groups
        8
    """
    if isinstance(name, keras.layers.Layer):
        raise one_instance("norm", name)
    if callable(name):
        layer = name(**kw)
        if not isinstance(layer, keras.layers.Layer):
            raise InputError(f"norm: {name!r} returned {layer!r}; it must return a layer, for example GroupNorm")
        return layer
    key = "none" if name is None else str(name).lower()
    if key not in NORMS:
        raise unknown("norm", name, NORMS)
    return NORMS[key](**kw)
