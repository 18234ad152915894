"""The calls that make up a functional model, and copies of it with some of its layers changed."""

import collections
from collections.abc import Callable
from typing import Any

import keras
from keras.src.models import Functional  # keras.Model(...) of tensors makes one; it has no public name

from dlkit.models._blocks import RANKED


def is_functional(model: Any) -> bool:
    """Tells whether the model is a graph of layers that can be copied with changes."""
    return isinstance(model, Functional)


def parts_of(model: Any) -> list[Any]:
    """Returns the functional models that are layers of the functional `model`."""
    return [layer for layer in model.layers if is_functional(layer)]


def nodes_of(model: Any) -> list[Any]:
    """Returns the calls that make up a functional model, from its inputs to its outputs."""
    return [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]


def has_one_argument(node: Any) -> bool:
    """Tells whether a layer was called with its tensors, or the list of them, as the only positional argument."""
    args = node.arguments.args
    return len(args) == 1 and len(keras.tree.flatten(args[0])) == len(node.input_tensors)


def once(model: Any) -> tuple[list[Any], dict[int, Any]]:
    """Returns the calls of layers that are called once, and those of them whose tensor is read once, by its id.

    The model reads what it gives: such a tensor, read by a layer too, is read twice.
    """
    nodes = nodes_of(model)
    calls = collections.Counter(id(node.operation) for node in nodes)
    readers = collections.Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    readers.update(id(tensor) for tensor in model.outputs)
    single = [node for node in nodes if calls[id(node.operation)] == 1 and node.input_tensors]
    made = {id(node.output_tensors[0]): node for node in single}
    return single, {tensor: node for tensor, node in made.items() if readers[tensor] == 1}


def rebuilt(
    model: Any,
    parts: dict[str, Any],
    cloned: Callable[[Any], Any],
    called: Callable[..., Any],
    weights: Callable[[Any], list[Any]] = lambda layer: layer.get_weights(),
) -> keras.Model:
    """Returns a copy of the functional `model` with other layers.

    Args:
        parts: the same rewrite of each model inside the model, by name; its `model` takes that place.
        cloned: gives a new layer, of the same name, for each other layer.
        called: gives what comes out of a new layer: `layer(*args)`, or something else.
        weights: gives the new layer's weights for the old layer of its name.
    """

    def clone(layer: Any) -> Any:
        return parts[layer.name].model if layer.name in parts else cloned(layer)

    new = keras.models.clone_model(model, clone_function=clone, call_function=called)
    for layer in new.layers:
        if layer.name not in parts and layer.weights:
            layer.set_weights(weights(model.get_layer(layer.name)))
    return new


def every(step: int, tensor: Any, name: str) -> Any:
    """Every `step`-th position: the maximum of one, because TensorFlow's strided slices take several times as long."""
    return tensor if step == 1 else RANKED["MaxPooling"][len(tensor.shape) - 2](1, step, name=name)(tensor)
