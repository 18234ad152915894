"""bfloat16 inside the exported graph: half the bytes of every weight, and products that newer processors double.

The casts are operations of the graph, so any loader of the file gets them: grappler's automatic mixed precision is an
option of the session that loads, which a file cannot set. Convolutions and dense layers hold bfloat16 weights and add
up in float32 inside the kernel; the last layer with weights, statistics and pooled means stay in float32.
"""

from typing import Any

import keras
import numpy as np

from dlkit.export._fold import LINEAR, Convolution, is_batch_norm
from dlkit.export._merge import PaddedMaxPooling

_L = keras.layers
HALVED = (*LINEAR, _L.DepthwiseConv2D, Convolution)
# layers without arithmetic of their own, or whose rounding bfloat16 does not make worse than their input's
PASSED = (
    *(_L.Activation, _L.ReLU, _L.LeakyReLU, _L.ELU, _L.Add, _L.Concatenate, _L.Dropout, _L.SpatialDropout2D),
    *(_L.MaxPooling2D, _L.ZeroPadding2D, _L.Flatten, _L.Reshape, _L.Cropping2D, PaddedMaxPooling),
)


def bfloat16(model: keras.Model) -> keras.Model:
    """Returns a clone of the functional, normalisation-folded `model` that computes in bfloat16 where that is safe."""
    last = _last_with_weights(model)

    def cloned(layer: keras.layers.Layer) -> keras.layers.Layer:
        policy = None
        if layer.name != last and type(layer) in HALVED:
            policy = "bfloat16"
        elif (type(layer) in PASSED and not _is_output(layer, model)) or is_batch_norm(layer):
            policy = "mixed_bfloat16"
        config = layer.get_config()
        return type(layer).from_config(config if policy is None else {**config, "dtype": policy})

    new = keras.models.clone_model(model, clone_function=cloned, recursive=True)
    for old, weight in zip(model.weights, new.weights, strict=True):
        weight.assign(keras.ops.cast(np.asarray(old), weight.dtype))
    return new


def _last_with_weights(model: keras.Model) -> str:
    """The name of the layer that makes the outputs: the last one with weights on the way back from the main output."""
    tensor = model.outputs[0]
    while True:
        history = tensor._keras_history
        operation = history.operation
        inputs = operation._inbound_nodes[history.node_index].input_tensors
        if getattr(operation, "weights", None) or len(inputs) != 1:
            return str(operation.name)
        tensor = inputs[0]


def _is_output(layer: Any, model: keras.Model) -> bool:
    return any(tensor._keras_history.operation is layer for tensor in model.outputs)
