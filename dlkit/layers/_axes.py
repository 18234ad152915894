"""Checks of arguments that several layers share: axes, counts, rates; every error shows a call that works."""

from collections.abc import Iterable, Sequence
from typing import Any

from dlkit._errors import InputError

Shape = Sequence[int | None]


def feature_axes(axis: int | Iterable[int], input_shape: Shape, layer: str) -> tuple[int, ...]:
    """Returns the sorted non-negative axes that `axis` names in `input_shape`, each of known size.

    >>> feature_axes((-1, -2), (None, 5, 8), "LayerNorm")
    (1, 2)
    """
    rank = len(input_shape)
    given = [axis] if isinstance(axis, int) else list(axis)
    found: list[int] = []
    for a in given:
        if not -rank <= a < rank:
            raise InputError(
                f"{layer}: axis {a} does not exist in an input of shape {tuple(input_shape)} (rank {rank}); "
                f"allowed: {-rank + 1} to -1 or 1 to {rank - 1}, for example {layer}(axis=-1)"
            )
        found.append(a % rank)
    if not found or len(set(found)) < len(found):
        raise InputError(f"{layer}: axis={axis!r} must name each axis once, for example {layer}(axis=-1)")
    if 0 in found:
        raise InputError(
            f"{layer}: axis={axis!r} is the batch axis of an input of shape {tuple(input_shape)}; "
            f"samples must stay independent: name a feature axis, for example {layer}(axis=-1)"
        )
    for a in found:
        if input_shape[a] is None:
            raise InputError(
                f"{layer}: the size of axis {a} must be known when the layer is built, but the input has shape "
                f"{tuple(input_shape)}; give it, for example keras.Input({_example(input_shape, a)})"
            )
    return tuple(sorted(found))


def _example(input_shape: Shape, axis: int) -> str:
    """Returns the sample shape of `input_shape` with a size filled in at `axis`."""
    return str(tuple(64 if i == axis else n for i, n in enumerate(input_shape))[1:])


def channel_axis(axis: Any, input_shape: Shape, layer: str) -> int:
    """Returns the one non-negative axis that `axis` names, its size known."""
    if not is_whole(axis):
        raise InputError(f"{layer}: axis={axis!r} must be one whole number, for example {layer}(axis=-1)")
    return feature_axes(axis, input_shape, layer)[0]


def axis_argument(axis: Any, layer: str) -> int | tuple[int, ...]:
    """Returns `axis` as an int or a tuple of ints, the two forms a config keeps."""
    if is_whole(axis):
        return int(axis)
    if isinstance(axis, (list, tuple)) and axis and all(is_whole(a) for a in axis):
        return tuple(int(a) for a in axis)
    raise InputError(f"{layer}: axis={axis!r} must be a whole number or a tuple of them, for example {layer}(axis=-1)")


def is_whole(value: Any) -> bool:
    """Tells whether `value` is a whole number and not a bool (NumPy's whole numbers count)."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def positive(value: Any, name: str, layer: str, example: int) -> int:
    """Returns a count that must be a whole number from 1."""
    if not is_whole(value) or value < 1:
        raise InputError(f"{layer}: {name}={value!r} must be a whole number from 1, for example {name}={example}")
    return int(value)


def number(value: Any, name: str, layer: str, low: float, high: float, example: float) -> float:
    """Returns a number that must lie in [low, high]."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = float("nan")
    if isinstance(value, (str, bool)) or not low <= result <= high:
        limits = f"a number from {low:g}" + (f" to {high:g}" if high < float("inf") else "")
        raise InputError(f"{layer}: {name}={value!r} must be {limits}, for example {name}={example:g}")
    return result


def broadcast_shape(input_shape: Shape, axes: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape with which a parameter over `axes` meets the input: 1 elsewhere."""
    return tuple(int(n or 1) if i in axes else 1 for i, n in enumerate(input_shape))
