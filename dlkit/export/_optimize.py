"""Rewrites of the served network that keep its function: batch normalisation folded into the weights before it.

    y = gamma * (W x + b - mean) / sqrt(var + epsilon) + beta  =  (s W) x + (s (b - mean) + beta),
    s = gamma / sqrt(var + epsilon)

The products are formed in float64 and rounded once.
"""

import dataclasses
import statistics
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.models import Functional  # keras.Model(...) of tensors makes one; it has no public name

from dlkit.export._cases import LIMITS
from dlkit.export._signatures import Core, trace
from dlkit.models._blocks import GroupedConv2D

PARITY = 1e-4  # what a rewrite may change, relative to the largest output above 1
LINEAR = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.Dense)


class Convolution(keras.layers.Conv2D):
    """A convolution whose bias is added as it is stored: Keras reshapes it first, two operations per layer."""

    def call(self, inputs: Any) -> Any:
        padding = self.padding.upper()
        outputs = tf.nn.conv2d(inputs, self.kernel, list(self.strides), padding, dilations=list(self.dilation_rate))
        return self.activation(tf.nn.bias_add(outputs, self.bias))


@dataclasses.dataclass(frozen=True)
class Folded:
    """A network with folded normalisation, and what was done to it."""

    model: keras.Model
    batch_norms: int = 0
    kept: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Returns plain values for the manifest."""
        return {"folded_batch_norms": self.batch_norms, "kept_batch_norms": list(self.kept)}


def fold(model: keras.Model) -> Folded:
    """Returns the functional `model` with batch normalisation folded wherever that is exact.

    That is behind a convolution or dense layer without activation whose output nothing else reads. The others stay
    (`kept`). Models inside the model are folded too.
    """
    if not isinstance(model, Functional):
        return Folded(model)
    pairs = _pairs(model)
    merged = {linear.name: norm for linear, norm in pairs}
    skipped = {norm.name for _, norm in pairs}
    inner: dict[str, Folded] = {}

    def cloned(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, Functional):
            inner[layer.name] = fold(layer)
            return inner[layer.name].model
        config = layer.get_config()
        if layer.name in merged:
            config |= {"use_bias": True, "bias_initializer": "zeros"}
            if type(layer) is keras.layers.Conv2D and layer.groups == 1:
                return Convolution.from_config(config)
        return type(layer).from_config(config)

    def called(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in skipped else layer(*args, **kwargs)

    new = keras.models.clone_model(model, clone_function=cloned, call_function=called)
    for layer in model.layers:
        if layer.name in merged:
            new.get_layer(layer.name).set_weights(_folded(layer, merged[layer.name]))
        elif layer.name not in skipped and layer.name not in inner and layer.weights:
            new.get_layer(layer.name).set_weights(layer.get_weights())
    kept = [layer.name for layer in model.layers if is_batch_norm(layer) and layer.name not in skipped]
    kept += [name for part in inner.values() for name in part.kept]
    return Folded(new, len(pairs) + sum(part.batch_norms for part in inner.values()), tuple(kept))


def is_batch_norm(layer: Any) -> bool:
    """Tells whether a layer normalises with moving averages, Keras' own or dlkit's."""
    return isinstance(layer, keras.layers.BatchNormalization) or type(layer).__name__ == "BatchNorm"


def freeze(core: Core) -> Core:
    """Returns `core` with its weights as constants of one function, which every signature shares."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(core.function, lower_control_flow=False)
    return Core(frozen, core.names, core.weights)


def _pairs(model: keras.Model) -> list[tuple[Any, Any]]:
    """The (linear layer, batch normalisation) pairs of the graph that can become one layer."""
    outputs = {id(tensor) for tensor in model.outputs}
    readers: dict[int, int] = {}
    nodes = [node for level in model._nodes_by_depth.values() for node in level]
    for node in nodes:
        for tensor in node.input_tensors:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    calls: dict[int, int] = {}
    for node in nodes:
        calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
    found = []
    for node in nodes:
        norm = node.operation
        if not is_batch_norm(norm) or calls[id(norm)] != 1:
            continue
        tensor = node.input_tensors[0]
        linear = tensor._keras_history.operation
        alone = calls.get(id(linear)) == 1 and readers[id(tensor)] == 1 and id(tensor) not in outputs
        if alone and _is_linear(linear) and _last_axis(norm, tensor):
            found.append((linear, norm))
    return found


def _is_linear(layer: Any) -> bool:
    known = type(layer) in (*LINEAR, GroupedConv2D, keras.layers.DepthwiseConv2D)
    return (
        known
        and layer.activation is keras.activations.linear
        and getattr(layer, "data_format", "channels_last") == "channels_last"
    )


def _last_axis(norm: Any, tensor: Any) -> bool:
    axis = norm.axis[0] if isinstance(norm.axis, list | tuple) and len(norm.axis) == 1 else norm.axis
    return axis in (-1, len(tensor.shape) - 1)


def _folded(linear: Any, norm: Any) -> list[np.ndarray]:
    """The kernel and bias of the layer that does both."""
    scale, shift = affine(norm)
    kernel = np.asarray(linear.get_weights()[0], np.float64)
    bias = np.asarray(linear.get_weights()[1], np.float64) if linear.use_bias else 0.0
    if isinstance(linear, keras.layers.DepthwiseConv2D):
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    else:
        kernel = kernel * scale
    return [kernel.astype(np.float32), (scale * bias + shift).astype(np.float32)]


def affine(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factor and the offset per channel, in float64, that the normalisation is at inference."""
    mean, variance = (np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance))
    gamma = np.asarray(norm.gamma, np.float64) if getattr(norm, "gamma", None) is not None else 1.0
    beta = np.asarray(norm.beta, np.float64) if getattr(norm, "beta", None) is not None else 0.0
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - scale * mean


def optimised(
    core: Core, net: Any, how: str | None, precision: str, shape: tuple[int | None, ...], tensors: np.ndarray, log: bool
) -> tuple[Core, dict[str, Any]]:
    """Returns the faster core and what was done: each rewrite with its difference and latency before and after.

    Raises:
        ParityError: a rewrite changes the outputs by more than its limit.
    """
    cores, names, model = [core], [], net.model
    folded = Folded(net.model)
    if how is not None:
        folded = fold(net.model)
        model = folded.model
    if folded.batch_norms:
        cores.append(trace(model, shape, net.names, log=log))
        names.append("fold")
    if precision == "bfloat16":
        from dlkit.export._reduced import bfloat16

        cores.append(trace(bfloat16(model), shape, net.names, log=log))
        names.append("bfloat16")
    if how == "freeze":
        cores.append(freeze(cores[-1]))
        names.append("freeze")
    milliseconds = latencies(tuple(cores), tensors[:1])
    steps = []
    for i, name in enumerate(names):
        limit = LIMITS[precision]["main"] if name == "bfloat16" else PARITY
        difference = largest_difference(cores[i], cores[i + 1], tensors)
        if not difference <= limit:
            raise ParityError(name, difference, limit)
        step: dict[str, Any] = {"rewrite": name, "difference": difference, "limit": limit}
        steps.append(step | {"milliseconds_before": milliseconds[i], "milliseconds_after": milliseconds[i + 1]})
    total = {"difference": largest_difference(core, cores[-1], tensors), "steps": steps}
    return cores[-1], folded.record() | total | {
        "milliseconds_before": milliseconds[0],
        "milliseconds_after": milliseconds[-1],
    }


class ParityError(RuntimeError):
    """A rewrite of the network that does not keep its function; nothing was published."""

    def __init__(self, name: str, difference: float, limit: float):
        super().__init__(
            f"the rewrite {name!r} changes the outputs by {difference:.3g}, at most {limit:.3g} is allowed; nothing "
            "was published. Export with optimize=None and precision='float32'"
        )


def latencies(cores: tuple[Core, ...], tensors: np.ndarray, runs: int = 9) -> list[float]:
    """Returns the median milliseconds of each core on `tensors`, measured in turns after two calls each."""
    rows = tf.constant(tensors)
    calls = [tf.function(lambda rows, core=core: core(rows)[core.names[0]], autograph=False) for core in cores]
    taken: list[list[float]] = [[] for _ in cores]
    for run in range(runs + 2):
        for i, call in enumerate(calls):
            started = time.perf_counter()
            call(rows).numpy()
            if run >= 2:
                taken[i].append(1000 * (time.perf_counter() - started))
    return [round(statistics.median(times), 3) for times in taken]


def largest_difference(first: Core, second: Core, tensors: np.ndarray) -> float:
    """Returns the largest difference of the main outputs, relative to the largest of them above 1."""
    rows = tf.constant(tensors)
    a, b = (core(rows)[core.names[0]].numpy().astype(np.float64) for core in (first, second))
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(a))))
