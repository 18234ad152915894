"""Two operations that become one, where that spares TensorFlow's kernels a large map.

Two 1x1 convolutions that are added are one, over the channels of both inputs:

    (U x + a) + (V y + b)  =  [U V] [x; y] + (a + b)

So ends the first block of each stage of a bottleneck ResNet (He et al. 2015, fig. 5 right): its last convolution is
added to that of the shortcut. The arithmetic is the same. Copying the inputs side by side costs less than writing and
reading one more sum, the widest map of the stage, as long as they are together narrower.

A maximum over windows at the edge needs no zeros around a map that is never below zero: TensorFlow's pooling leaves out
what lies beyond the map by itself.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlkit.export._fold import Convolution
from dlkit.export._graph import every, has_one_argument, is_functional, once, parts_of, rebuilt
from dlkit.models._blocks import EdgePadding

_A, _L = keras.activations, keras.layers


class PaddedMaxPooling(keras.layers.Layer):
    """The maximum over windows that may reach beyond the map by `margin`, the pairs of its rows and columns."""

    def __init__(self, pool_size: Any, strides: Any, margin: Any, **keywords: Any):
        super().__init__(**keywords)
        self.pool_size, self.strides, self.margin = pool_size, strides, margin

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the layer again."""
        own = {"pool_size": self.pool_size, "strides": self.strides, "margin": self.margin}
        return super().get_config() | own

    def call(self, inputs: Any) -> Any:
        return tf.nn.max_pool2d(inputs, self.pool_size, self.strides, [(0, 0), *self.margin, (0, 0)])


@dataclasses.dataclass(frozen=True)
class Merged:
    """A network with merged operations, and the names of these sums and poolings."""

    model: keras.Model
    sums: tuple[str, ...] = ()
    paddings: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Returns plain values for the manifest."""
        return {"merged_sums": list(self.sums), "merged_paddings": list(self.paddings)}


def merge(model: keras.Model) -> Merged:
    """Returns the functional `model`, and the models inside it, with one operation for two."""
    if not is_functional(model):
        return Merged(model)
    nodes, alone = once(model)
    sums, pools = _sums(nodes, alone), _paddings(nodes, alone)
    inner = {part.name: merge(part) for part in parts_of(model)}
    all_sums = (*sums, *(name for part in inner.values() for name in part.sums))
    all_paddings = (*pools, *(name for part in inner.values() for name in part.paddings))
    if not all_sums and not all_paddings:
        return Merged(model)
    strides = {layer.name: layer.strides[0] for pair in sums.values() for layer in pair}
    skipped = {padding.name for padding in pools.values()}

    def cloned(layer: keras.layers.Layer) -> keras.layers.Layer:
        keywords = {"name": layer.name, "dtype": layer.dtype_policy}
        if layer.name in sums:
            return Convolution(sums[layer.name][0].filters, 1, **keywords)
        if layer.name in pools:
            return PaddedMaxPooling(layer.pool_size, layer.strides, _margin(pools[layer.name]), **keywords)
        return type(layer).from_config(layer.get_config())

    def called(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if layer.name in skipped:
            return args[0]
        if layer.name in strides:
            return every(strides[layer.name], args[0], f"{layer.name}_positions")
        if layer.name in sums:
            args = (_L.Concatenate(name=f"{layer.name}_inputs")(args[0]),)
        return layer(*args, **kwargs)

    def weights(layer: keras.layers.Layer) -> list[np.ndarray]:
        return _added(*sums[layer.name]) if layer.name in sums else layer.get_weights()

    new = rebuilt(model, inner, cloned, called, weights)
    return Merged(new, all_sums, all_paddings)


def _sums(nodes: list[Any], alone: dict[int, Any]) -> dict[str, tuple[Any, Any]]:
    """The two convolutions of each sum that can become one, by the name of the sum."""
    found = {}
    for node in nodes:
        pair = [alone[id(tensor)] for tensor in node.input_tensors if id(tensor) in alone]
        if (
            type(node.operation) is _L.Add
            and len(node.input_tensors) == len(pair) == 2
            and all(_is_matrix(one.operation) for one in pair)
            and all(has_one_argument(one) for one in (node, *pair))
            and len({one.operation.dtype_policy.name for one in (node, *pair)}) == 1
            and sum(one.input_tensors[0].shape[-1] for one in pair) < node.output_tensors[0].shape[-1]
        ):
            found[node.operation.name] = (pair[0].operation, pair[1].operation)
    return found


def _is_matrix(layer: Any) -> bool:
    """Tells whether a layer multiplies every s-th position by one matrix and adds at most a bias."""
    return (
        type(layer) in (_L.Conv2D, Convolution)
        and layer.kernel_size == (1, 1)
        and layer.strides[0] == layer.strides[1]
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and layer.activation is _A.linear
    )


def _added(*pair: Any) -> list[np.ndarray]:
    """The kernel and bias of the convolution that gives the sum of two."""
    kernels = [np.asarray(layer.kernel) for layer in pair]
    biases = [np.asarray(layer.bias) if layer.use_bias else np.float32(0) for layer in pair]
    return [np.concatenate(kernels, axis=2), np.broadcast_to(biases[0] + biases[1], pair[0].filters)]


def _paddings(nodes: list[Any], alone: dict[int, Any]) -> dict[str, Any]:
    """The padding that each pooling can do without, by the name of the pooling."""
    found = {}
    for node in nodes:
        padded = alone.get(id(node.input_tensors[0]))
        if (
            type(node.operation) is _L.MaxPooling2D
            and padded is not None
            and all(has_one_argument(one) for one in (node, padded))
            and _is_lowest(padded)
            and _can_pad(node.operation, padded.operation)
        ):
            found[node.operation.name] = padded.operation
    return found


def _is_lowest(padded: Any) -> bool:
    """Tells whether what the call puts around a map is never more than what is in the windows there."""
    if type(padded.operation) is not _L.ZeroPadding2D:
        return type(padded.operation) is EdgePadding
    layer = padded.input_tensors[0]._keras_history.operation
    if type(layer) is _L.ReLU:
        return not layer.negative_slope
    return type(layer) in (_L.Activation, _L.Conv2D, Convolution) and layer.activation in (_A.relu, _A.relu6)


def _can_pad(pool: Any, padding: Any) -> bool:
    """Tells whether each window of the pooling meets the map that is inside the padding."""
    last = pool.data_format == getattr(padding, "data_format", "channels_last") == "channels_last"
    meets = all(max(edge) < size for edge, size in zip(_margin(padding), pool.pool_size, strict=True))
    return last and meets and pool.padding == "valid"


def _margin(padding: Any) -> tuple[tuple[int, int], ...]:
    """The rows and columns that the layer adds on each side."""
    return ((1, 1), (1, 1)) if type(padding) is EdgePadding else tuple(tuple(edge) for edge in padding.padding)
