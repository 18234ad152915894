"""The network as it is served: float32, one main output before any softmax, and the pooled features beside it."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from dlkit._errors import InputError

ENSEMBLE = ("probabilities", "disagreement")
MAIN = {"classification": "logits", "regression": "predictions", "box": "boxes"}


@dataclass(frozen=True)
class Net:
    """A functional model whose outputs are `names`, for `training=False`.

    Args:
        model: outputs the main tensor and, where the graph shows them, the features.
        names: of the outputs, the main one first.
    """

    model: keras.Model
    names: tuple[str, ...]


def is_ensemble(model: Any) -> bool:
    """Tells whether the model answers with `dlkit.models.ensemble`'s mean probabilities and disagreement."""
    output = getattr(model, "output", None)
    return isinstance(output, dict) and set(output) == set(ENSEMBLE)


def check_graph(model: Any, options: Any) -> None:
    """Raises InputError when the model shows no graph of layers, which the other forms and precisions rewrite."""
    if getattr(model, "outputs", None):
        return
    what = f"precision={options.precision!r}" if options.form == "saved_model" else options.form
    raise InputError(
        f"{getattr(model, 'name', model)!r} is no functional or sequential model, and {what} rewrites its graph; build "
        "it with keras.Model(inputs, outputs), or export a float32 SavedModel"
    )


def in_float32(model: keras.Model) -> keras.Model:
    """Returns `model` itself when every layer computes in float32, otherwise a float32 clone with the same weights."""
    if all(_is_float32(layer) for layer in model._flatten_layers()):
        return model
    clone = keras.models.clone_model(model, clone_function=_float32_layer, recursive=True)
    copy_weights(model, clone)
    return clone


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies every weight by position, and refuses when a path or a shape differs."""
    if len(source.weights) != len(target.weights):
        raise InputError(f"the clone of {source.name!r} has {len(target.weights)} weights, not {len(source.weights)}")
    for old, new in zip(source.weights, target.weights, strict=True):
        if tuple(old.shape) != tuple(new.shape) or old.name != new.name:
            raise InputError(f"the clone's weight {new.path!r} {new.shape} does not match {old.path!r} {old.shape}")
        new.assign(keras.ops.cast(old, new.dtype))


def served(model: keras.Model, task: str) -> Net:
    """Returns the network to serve: the softmax of a classifier taken off, the features added."""
    if not hasattr(model, "outputs") or not model.outputs:
        return Net(model, (MAIN[task],))
    if is_ensemble(model):
        return Net(keras.Model(model.inputs[0], [model.output[name] for name in ENSEMBLE]), ("logits", ENSEMBLE[1]))
    main = model.outputs[0]
    if task == "classification":
        main = _before_softmax(main)
    features = _features(main)
    outputs = [main] if features is None else [main, features]
    names = (MAIN[task],) if features is None else (MAIN[task], "features")
    return Net(keras.Model(model.inputs[0], outputs, name=model.name), names)


def ends_in_softmax(model: keras.Model) -> bool:
    """Tells whether the graph shows a softmax at the end."""
    if not getattr(model, "outputs", None) or is_ensemble(model):
        return False
    operation, _ = _made_by(model.outputs[0])
    if isinstance(operation, keras.layers.Softmax):
        return True
    return getattr(operation, "activation", None) is keras.activations.softmax


def sums_to_one(outputs: np.ndarray) -> bool:
    """Tells whether every row is a distribution: a softmax the graph does not show (a nested or subclassed model)."""
    return bool(np.all(outputs >= 0) and np.all(np.abs(outputs.sum(-1) - 1) < 1e-3))


def _before_softmax(tensor: Any) -> Any:
    operation, inputs = _made_by(tensor)
    activation = getattr(operation, "activation", None)
    if activation is keras.activations.sigmoid:
        raise InputError(
            f"the last layer {operation.name!r} is a sigmoid; classification needs one output per class: logits or "
            "a softmax"
        )
    if isinstance(operation, keras.layers.Softmax) and operation.axis in (-1, len(tensor.shape) - 1):
        return inputs[0]
    if activation is not keras.activations.softmax:
        return tensor
    if isinstance(operation, keras.layers.Activation):
        return inputs[0]
    linear = type(operation).from_config({**operation.get_config(), "activation": "linear"})
    logits = linear(inputs[0], training=False) if operation._call_has_training_arg else linear(inputs[0])
    linear.set_weights(operation.get_weights())
    return logits


def _features(tensor: Any) -> Any:
    """The input of the last layer that has weights, averaged over the picture; None where the graph hides it."""
    while True:
        operation, inputs = _made_by(tensor)
        if not inputs or len(inputs) != 1 or isinstance(operation, keras.Model):
            return None
        tensor = inputs[0]
        if getattr(operation, "weights", None):
            break
    if len(tensor.shape) == 2:
        return tensor
    return keras.layers.GlobalAveragePooling2D(name="pooled_features")(tensor) if len(tensor.shape) == 4 else None


def _made_by(tensor: Any) -> tuple[Any, list[Any]]:
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return history.operation, list(node.input_tensors)


def _is_float32(layer: keras.layers.Layer) -> bool:
    policy = layer.dtype_policy
    return policy.compute_dtype in (None, "float32") or not str(policy.compute_dtype).startswith(("float", "bfloat"))


def _float32_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    return type(layer).from_config(_float32_config(layer.get_config()))


def _float32_config(value: Any) -> Any:
    """Replaces every half-precision policy in a layer's config, at any depth."""
    if isinstance(value, dict):
        if value.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
            return {**value, "config": {**value["config"], "name": "float32"}}
        return {key: _float32_config(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_float32_config(item) for item in value)
    return "float32" if value in ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16") else value
