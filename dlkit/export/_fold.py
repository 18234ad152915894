"""Batch normalisation folded into the weights before it.

    y = gamma * (W x + b - mean) / sqrt(var + epsilon) + beta  =  (s W) x + (s (b - mean) + beta),
    s = gamma / sqrt(var + epsilon)

The products are formed in float64 and rounded once.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlkit.export._graph import has_one_argument, is_functional, once, parts_of, rebuilt
from dlkit.models._blocks import GroupedConv2D

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
    if not is_functional(model):
        return Folded(model)
    pairs = _pairs(model)
    merged = {linear.name: norm for linear, norm in pairs}
    skipped = {norm.name for _, norm in pairs}
    inner = {part.name: fold(part) for part in parts_of(model)}

    def cloned(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if layer.name in merged:
            config |= {"use_bias": True, "bias_initializer": "zeros"}
            if type(layer) is keras.layers.Conv2D and layer.groups == 1:
                return Convolution.from_config(config)
        return type(layer).from_config(config)

    def called(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in skipped else layer(*args, **kwargs)

    def weights(layer: keras.layers.Layer) -> list[np.ndarray]:
        return _folded(layer, merged[layer.name]) if layer.name in merged else layer.get_weights()

    new = rebuilt(model, inner, cloned, called, weights)
    kept = [layer.name for layer in model.layers if is_batch_norm(layer) and layer.name not in skipped]
    kept += [name for part in inner.values() for name in part.kept]
    return Folded(new, len(pairs) + sum(part.batch_norms for part in inner.values()), tuple(kept))


def is_batch_norm(layer: Any) -> bool:
    """Tells whether a layer normalises with moving averages, Keras' own or dlkit's."""
    return isinstance(layer, keras.layers.BatchNormalization) or type(layer).__name__ == "BatchNorm"


def _pairs(model: keras.Model) -> list[tuple[Any, Any]]:
    """The (linear layer, batch normalisation) pairs of the graph that can become one layer."""
    nodes, alone = once(model)
    found = []
    for node in nodes:
        norm, tensor = node.operation, node.input_tensors[0]
        if is_batch_norm(norm) and has_one_argument(node) and id(tensor) in alone and on_last_axis(norm, tensor):
            linear = alone[id(tensor)].operation
            if _is_linear(linear):
                found.append((linear, norm))
    return found


def _is_linear(layer: Any) -> bool:
    known = type(layer) in (*LINEAR, GroupedConv2D, keras.layers.DepthwiseConv2D)
    return (
        known
        and layer.activation is keras.activations.linear
        and getattr(layer, "data_format", "channels_last") == "channels_last"
    )


def on_last_axis(norm: Any, tensor: Any) -> bool:
    """Tells whether the layer normalises each channel of a tensor whose last axis they are."""
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
