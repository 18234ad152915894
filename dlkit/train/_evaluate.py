"""Measuring a model on every item of a source."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dlkit._errors import InputError, unknown
from dlkit.data import draws, eval_pipeline
from dlkit.data.augment import views
from dlkit.train import tasks

# name -> the views of `dlkit.data.augment.views` whose outputs are averaged
TTA: dict[str, dict[str, Any] | None] = {
    "none": None,
    "flip": {"flip": True},
    "shift": {"flip": False, "shift": 1},
    "flip_shift": {"flip": True, "shift": 1},
}


def evaluate(
    model: keras.Model, source: Any, *, preprocess: Any, batch: int = 256, tta: str = "none"
) -> dict[str, float]:
    """Measures `model` on every item of `source`, through the same preprocessing that is exported.

    Args:
        model: with logits or probabilities.
        source: classification, regression or boxes.
        preprocess: the one definition of the input.
        batch: items per call; changes the speed, and the last digits.
        tta: test-time augmentation: the model's outputs are averaged over fixed views of each picture. "flip": 2, also
            mirrored; "shift": 3, also a pixel up-left and down-right; "flip_shift": the 6 of both. Costs as many
            times more; an export holds the plain view only.

    Returns:
        Classification: `loss` (mean cross-entropy), `accuracy`, `top5_accuracy` above five classes. Regression and
        box: `loss` (mean squared error), `mae`; box adds `iou`. Fractions, not percent.

    Raises:
        InputError: the model does not fit the data, or views of what has none: tables, and boxes, which would move.
    """
    tasks.check(model, source.task, source, preprocess)
    check_views(tta, source.task, preprocess)
    return measure(predictor(model), model, source, preprocess, batch, tta)


def check_views(tta: str, task: str, preprocess: Any) -> None:
    """Refuses unknown views, and views of what has none."""
    if tta not in TTA:
        raise unknown("tta", tta, TTA)
    if tta != "none" and (task == "box" or len(preprocess.input_shape) != 3):
        raise InputError(f"tta={tta!r} averages outputs over views of a picture; a {task} on this input has none")


def measure(
    predict: Callable[[Any], Any], model: Any, source: Any, preprocess: Any, batch: int = 256, tta: str = "none"
) -> dict[str, float]:
    """Scores `predict`, which maps a batch of inputs to the model's outputs."""
    found, targets = outputs(predict, source, preprocess, batch, tta)
    return tasks.score(source.task, found, targets, tasks.gives_probabilities(model))


def outputs(
    predict: Callable[[Any], Any], source: Any, preprocess: Any, batch: int = 256, tta: str = "none"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (outputs, targets) of every item, in the source's order."""
    all_outputs, targets = [], []
    for inputs, target in eval_pipeline(source, preprocess, batch):
        several = inputs[None] if TTA[tta] is None else views(inputs, **TTA[tta])  # type: ignore[arg-type]
        found = [np.asarray(predict(view)) for view in several]
        all_outputs.append(found[0] if len(found) == 1 else np.mean(found, axis=0, dtype=np.float64))
        targets.append(np.asarray(target))
    return np.concatenate(all_outputs), np.concatenate(targets)


def predictor(model: Any) -> Callable[[Any], Any]:
    """Returns `model.predict_on_batch` without TensorFlow's warning, which counts all models of a process as one."""
    model.make_predict_function()
    model.predict_function._omit_frequent_tracing_warning = True
    return model.predict_on_batch


def replicated(model: Any) -> Callable[[Any], Any]:
    """Returns `predict` for a model whose variables live on several replicas: this process computes by itself."""
    return draws.traced(lambda inputs: model(inputs, training=False), reduce_retracing=True)
