"""Where a number that is not finite came from."""

import contextlib
from typing import Any

import keras
import numpy as np


def first_bad(model: Any, inputs: Any, targets: Any) -> str:
    """Runs a batch through the model layer by layer and says in words what was not finite first.

    Looks at the inputs and targets, then at each layer in the order of computation: its weights before its output. A
    model without a graph of layers is looked at as one layer.
    """
    if not _finite(inputs):
        return "the batch's inputs are not finite"
    if not _finite(targets):
        return "the batch's targets are not finite"
    layers, outputs = [], []
    for layer in getattr(model, "layers", []):
        with contextlib.suppress(AttributeError, ValueError):  # a layer used several times has no single output
            outputs.append(layer.output)
            layers.append(layer)
    if not layers or not getattr(model, "inputs", None):
        layers, found = [model], [model(inputs, training=True)]
    else:
        given = model.inputs[0] if len(model.inputs) == 1 else model.inputs
        found = keras.Model(given, outputs)(inputs, training=True)
    for layer, output in zip(layers, found, strict=True):
        for weight in layer.trainable_variables:
            if not _finite(weight):
                return f"the weight {weight.name!r} of layer {layer.name!r} was not finite before this step"
        for tensor in output if isinstance(output, (list, tuple)) else [output]:
            if not _finite(tensor):
                return f"the output of layer {layer.name!r} is the first that is not finite{_size(layer)}"
    return "every layer's output is finite, the loss of them is not"


def _size(layer: Any) -> str:
    weights = [float(np.max(np.abs(keras.ops.convert_to_numpy(w)))) for w in layer.trainable_variables]
    return f"; its largest weight is {max(weights):.3g}" if weights else ""


def _finite(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else [value]
    return all(np.isfinite(np.asarray(keras.ops.convert_to_numpy(item), np.float64)).all() for item in values)
