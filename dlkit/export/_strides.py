"""Strides taken as early as possible: positions of a map that no layer reads are not computed.

A 1x1 convolution of stride s reads every s-th position of its input:

    y[i] = W x[s i]  =  W x'[i],    x'[i] = x[s i]

If nothing reads the others, the layer that makes x makes x' at once: a convolution by a stride s times as large, a sum
or an activation from x' of its inputs. In the ResNets of He et al. 2015 (table 1; the first 1x1 of a stage has the
stride), the last 3x3 and 1x1 convolutions of three stages shrink to a quarter: 9.7 % of ResNet-50's multiply-adds. In
training those positions are needed: the statistics of batch normalisation are taken over them.
"""

import collections
import dataclasses
import math
from typing import Any

import keras

from dlkit.export._fold import Convolution, is_batch_norm, on_last_axis
from dlkit.export._graph import every, has_one_argument, is_functional, nodes_of, parts_of, rebuilt
from dlkit.layers import Dropout, StochasticDepth, Swish
from dlkit.layers._activations import Gelu
from dlkit.models import describe
from dlkit.models._blocks import RANKED, GroupedConv2D, zero_padding

_A, _L = keras.activations, keras.layers
CONVOLUTIONS = (_L.Conv1D, _L.Conv2D, _L.Conv3D, Convolution, GroupedConv2D)
# what makes each position of its output of that position of its inputs alone, at inference
FUNCTIONS = (
    *(_A.linear, _A.relu, _A.relu6, _A.leaky_relu, _A.elu, _A.selu, _A.gelu, _A.silu, _A.mish, _A.softplus),
    *(_A.sigmoid, _A.tanh, _A.hard_sigmoid, _A.hard_silu, _A.softmax),
)
POINTWISE = (
    *(_L.Add, _L.Subtract, _L.Multiply, _L.Average, _L.Maximum, _L.Minimum),
    *(_L.ReLU, _L.LeakyReLU, _L.ELU, Swish, _L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D),
    *(_L.Identity, Dropout, StochasticDepth, Gelu),
)


@dataclasses.dataclass(frozen=True)
class Strided:
    """A network with earlier strides, the layers that got a larger one, and its multiply-adds before and after."""

    model: keras.Model
    layers: tuple[str, ...] = ()
    multiply_adds: tuple[int | None, int | None] = (None, None)

    def record(self) -> dict[str, Any]:
        """Returns plain values for the manifest."""
        before, after = self.multiply_adds
        return {"larger_strides": list(self.layers)} | (
            {"multiply_adds_before": before, "multiply_adds_after": after} if self.layers else {}
        )


def early_strides(model: keras.Model) -> Strided:
    """Returns the functional `model` with the same outputs, without work at positions that nothing reads.

    Models inside the model are rewritten too. A layer that is called twice stays as it is.
    """
    if not is_functional(model):
        return Strided(model)
    strides, steps = _changes(model)
    inner = {part.name: early_strides(part) for part in parts_of(model)}
    larger = [name for name, (old, new) in strides.items() if new > old]
    larger += [name for part in inner.values() for name in part.layers]
    if not larger:
        return Strided(model)

    def cloned(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if layer.name in strides:
            config |= {"strides": strides[layer.name][1], "padding": "valid"}
        return type(layer).from_config(config)

    def called(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if layer.name in strides and model.get_layer(layer.name).padding == "same":
            margin = [k // 2 for k in layer.kernel_size]
            args = (zero_padding(args[0], margin, f"{layer.name}_margin") if any(margin) else args[0],)
        if layer.name in steps:
            several = isinstance(args[0], list | tuple)
            pairs = zip(steps[layer.name], args[0] if several else args, strict=True)
            read = [every(step, tensor, f"{layer.name}_positions{i}") for i, (step, tensor) in enumerate(pairs)]
            args = (read if several else read[0],)
        return layer(*args, **kwargs)

    new = rebuilt(model, inner, cloned, called)
    return Strided(new, tuple(larger), (describe(model).multiply_adds, describe(new).multiply_adds))


def _changes(model: Any) -> tuple[dict[str, tuple[int, int]], dict[str, list[int]]]:
    """The strides (old, new) of convolutions, and the steps by which other layers take their inputs, by name."""
    nodes = nodes_of(model)
    calls = collections.Counter(id(node.operation) for node in nodes)
    able: set[int] = set()  # the tensors of which every s-th position can be made alone
    for node in nodes:
        if calls[id(node.operation)] == 1 and has_one_argument(node):
            passes = _is_pointwise(node) and any(id(tensor) in able for tensor in node.input_tensors)
            if passes or _is_convolution(node):
                able.add(id(node.output_tensors[0]))
    made = {id(tensor): 1 for tensor in model.outputs}  # the step between the positions that are read, hence made
    for node in reversed(nodes):
        out, step = id(node.output_tensors[0]), 1
        if out in able:
            step = made[out]
            if _is_convolution(node):
                step = step * node.operation.strides[0] if max(node.operation.kernel_size) == 1 else 1
        else:
            made[out] = 1
        for tensor in node.input_tensors:
            made[id(tensor)] = math.gcd(made.get(id(tensor), 0), step)
    strides, steps = {}, {}
    for node in nodes:
        layer, out = node.operation, id(node.output_tensors[0])
        if out not in able:
            continue
        ratios = [made[out] // made[id(tensor)] for tensor in node.input_tensors]
        if not _is_convolution(node):
            if max(ratios) > 1:
                steps[layer.name] = ratios
        else:
            old = layer.strides[0]
            new = old * made[out] // made[id(node.input_tensors[0])]
            if new != old:
                strides[layer.name] = (old, new)
    return strides, steps


def _is_convolution(node: Any) -> bool:
    """Tells whether the node is a convolution whose output can be thinned out by a larger stride."""
    layer = node.operation
    return (
        type(layer) in CONVOLUTIONS
        and layer.data_format == "channels_last"
        and len(set(layer.strides)) == 1
        and set(layer.dilation_rate) == {1}
        and layer.activation in FUNCTIONS
        # "same" pads by the stride; it is known beforehand, and equal on both sides, for stride 1 and odd sizes
        and (
            layer.padding == "valid"
            or max(layer.kernel_size) == 1
            or (layer.padding == "same" and layer.strides[0] == 1 and all(k % 2 for k in layer.kernel_size))
        )
    )


def _is_pointwise(node: Any) -> bool:
    layer, shape = node.operation, tuple(node.output_tensors[0].shape)
    if len(shape) - 2 not in RANKED["MaxPooling"] or any(tuple(t.shape) != shape for t in node.input_tensors):
        return False
    if type(layer) is _L.Activation:
        return layer.activation in FUNCTIONS
    if type(layer) is _L.PReLU:  # one slope per channel
        return set(layer.shared_axes or ()) == set(range(1, len(shape) - 1))
    return type(layer) in POINTWISE or (is_batch_norm(layer) and on_last_axis(layer, node.output_tensors[0]))
