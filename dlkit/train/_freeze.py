"""Layers that do not learn for the length of a run."""

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from dlkit._errors import InputError


@contextlib.contextmanager
def frozen(model: Any, patterns: Sequence[str]) -> Iterator[None]:
    """Makes the layers whose name fits a pattern untrainable inside the block.

    A layer that is not trainable keeps its weights; `BatchNorm` (and Keras') then normalises with its moving averages
    and leaves them alone, so what was learnt before is not disturbed by the new data's statistics.

    Raises:
        InputError: a pattern that fits no layer, or nothing left to train.
    """
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    chosen = []
    for pattern in patterns:
        fitting = [layer for layer in layers if fnmatch.fnmatchcase(layer.name, pattern)]
        if not fitting:
            names = ", ".join(layer.name for layer in layers[:20])
            raise InputError(f"freeze pattern {pattern!r} fits no layer with weights; the first are {names}")
        chosen += fitting
    before = [(layer, layer.trainable) for layer in model._flatten_layers(include_self=True)]
    for layer in chosen:
        layer.trainable = False
    try:
        if patterns and not model.trainable_variables:
            raise InputError(f"freeze={tuple(patterns)} leaves nothing to train in {model.name!r}")
        yield
    finally:
        for layer, trainable in before:  # outer layers first: each sets its inner ones too
            if layer.trainable != trainable:
                layer.trainable = trainable
