"""What follows from a recipe's task: the loss, the metrics, and what a model's output must look like."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from dlkit._errors import InputError
from dlkit.train import losses


def loss(task: str, model: Any, label_smoothing: float = 0.0, name: str = "") -> keras.losses.Loss:
    """Returns the named loss, or the task's; cross-entropies ask the model whether it gives logits or probabilities.

    Raises:
        InputError: a loss that does not suit the task, or a label smoothing for one without classes.
    """
    losses.check_task(name, task)
    if not name and task != "classification":
        return keras.losses.MeanSquaredError()
    return losses.get(
        name or "cross_entropy", from_logits=not gives_probabilities(model), label_smoothing=label_smoothing
    )


def metrics(task: str) -> list[Any]:
    """Returns fresh Keras metrics of `task`, for a compiled model that leaves dlkit."""
    if task == "classification":
        return [keras.metrics.CategoricalAccuracy(name="accuracy")]
    return [keras.metrics.MeanAbsoluteError(name="mae")]


def batch_metrics(task: str) -> dict[str, Callable[[Any, Any], Any]]:
    """Returns the metrics of a training step: functions of (targets, outputs) to the mean over the batch."""
    return {"accuracy": _accuracy} if task == "classification" else {"mae": _mae}


def columns(task: str, classes: int = 0) -> tuple[str, ...]:
    """Returns the metrics that `score` computes."""
    if task != "classification":
        return ("loss", "mae", "iou") if task == "box" else ("loss", "mae")
    return ("loss", "accuracy", "top5_accuracy") if classes > 5 else ("loss", "accuracy")


def _accuracy(targets: Any, outputs: Any) -> Any:
    return ops.mean(ops.cast(ops.equal(ops.argmax(targets, -1), ops.argmax(outputs, -1)), "float32"))


def _mae(targets: Any, outputs: Any) -> Any:
    outputs = ops.cast(outputs, "float32")
    return ops.mean(ops.abs(ops.reshape(ops.cast(targets, "float32"), ops.shape(outputs)) - outputs))


def score(task: str, outputs: np.ndarray, targets: np.ndarray, probabilities: bool) -> dict[str, float]:
    """Computes the final metrics in float64 over all items at once.

    Classification: mean cross-entropy `loss`, `accuracy` and, above five classes, `top5_accuracy`. Regression and box:
    mean squared error `loss` and `mae`; box adds `iou`, the mean intersection over union.
    """
    outputs, targets = outputs.astype(np.float64), targets.astype(np.float64)
    if task != "classification":
        error = outputs - targets.reshape(outputs.shape)
        values = {"loss": float(np.mean(error**2)), "mae": float(np.mean(np.abs(error)))}
        return values | ({"iou": float(np.mean(iou(outputs, targets)))} if task == "box" else {})
    if probabilities:
        logs = np.log(np.clip(outputs, 1e-12, 1.0))
    else:
        shifted = outputs - outputs.max(axis=-1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    truth = targets.argmax(axis=-1)
    values = {
        "loss": float(-np.mean(np.sum(targets * logs, axis=-1))),
        "accuracy": float(np.mean(outputs.argmax(axis=-1) == truth)),
    }
    if outputs.shape[-1] > 5:
        better = (outputs > np.take_along_axis(outputs, truth[:, None], axis=-1)).sum(axis=-1)
        values["top5_accuracy"] = float(np.mean(better < 5))
    return values


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (x, y, width, height), row by row.

    >>> iou(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 2, 2.0]]))
    array([0.33333333])
    """
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    either = np.prod(np.clip(a[:, 2:], 0, None), axis=-1) + np.prod(np.clip(b[:, 2:], 0, None), axis=-1) - both
    return both / np.maximum(either, 1e-12)


def gives_probabilities(model: Any) -> bool:
    """Tells whether the model ends in a softmax or sigmoid rather than in logits."""
    last = model.layers[-1]
    name = getattr(getattr(last, "activation", None), "__name__", "")
    return name in ("softmax", "sigmoid") or isinstance(last, keras.layers.Softmax)


def check_backend() -> None:
    """Refuses JAX and torch: layers and models run there, training and export are TensorFlow's."""
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"training and export need Keras on TensorFlow, it runs on {keras.backend.backend()}: set "
            "KERAS_BACKEND=tensorflow before Python starts"
        )


def check(model: Any, task: str, source: Any, preprocess: Any) -> None:
    """Refuses a model whose input or output does not fit the data, before anything is written.

    Raises:
        InputError: what the model takes or gives, what the data has, and the argument that makes them agree; Keras runs
            on another backend than TensorFlow.
    """
    check_backend()
    takes, gives = _shapes(model)
    shape = tuple(preprocess.input_shape)
    if len(takes) != len(shape) or any(a not in (None, b) for a, b in zip(takes, shape, strict=True)):
        raise InputError(
            f"the model takes inputs of shape {takes}, preprocess yields {shape}: "
            f"build the model with input_shape={shape}"
        )
    if task != source.task:
        raise InputError(
            f"the recipe's task is {task!r}, {source.name!r} is a source for {source.task!r}: "
            f"set task={source.task!r} in the recipe"
        )
    outputs = gives[-1]
    if task == "classification" and len(source.classes) < 2:
        raise InputError(f"{source.name!r} has one class, {source.classes[0]!r}: there is nothing to tell apart")
    if task == "classification" and outputs != len(source.classes):
        raise InputError(
            f"the model has {outputs} outputs, {source.name!r} has {len(source.classes)} classes: "
            f"build the model with classes={len(source.classes)}"
        )
    if task == "regression" and source.values is not None and outputs != source.values.shape[1]:
        raise InputError(
            f"the model has {outputs} outputs, {source.name!r} has {source.values.shape[1]} targets per sample: "
            f"build the model with classes={source.values.shape[1]}"
        )
    if task == "box" and source.labels is not None:
        raise InputError(
            f"{source.name!r} holds classes beside its boxes, a model has one output: take source.as_task('box') or "
            "source.as_task('classification')"
        )
    if task == "box" and outputs != 4:
        raise InputError(f"a box is x, y, width, height: the model must have 4 outputs, it has {outputs}")


def _shapes(model: Any) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Returns the shapes of one input and of one output, without the batch."""
    inputs: Any = getattr(model, "inputs", None)
    gives: Any = getattr(model, "output_shape", None)
    alone = isinstance(gives, tuple) and len(gives) == 2 and not isinstance(gives[1], tuple)
    if not inputs or len(inputs) != 1 or not alone or isinstance(getattr(model, "output", None), (dict, list, tuple)):
        raise InputError(
            f"{getattr(model, 'name', model)!r} is no functional model of one input and one output (batch, numbers); "
            "of several outputs take one: keras.Model(model.input, model.output[...])"
        )
    return tuple(inputs[0].shape[1:]), gives[1:]
