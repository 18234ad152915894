"""Losses by name: squared and absolute errors, cross-entropies, and those of boxes.

`Recipe(loss="huber")` takes the name; `get` gives the object for any Keras model. Every loss is a mean over the batch.
Boxes are (x, y, width, height) with x, y the upper left corner, as in a Source.

Reference: lecture 002 (St Petersburg University) and lecture 003 (M. Gushchin, HSE 2025), the loss functions of
regression and classification.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from dlkit._errors import InputError, unknown

_register = keras.saving.register_keras_serializable(package="dlkit")


@_register
class CrossEntropy(keras.losses.Loss):
    """Cross-entropy of class probabilities, for class ids and for one-hot or mixed targets alike.

        L = - sum_c q_c log p_c,   q = (1 - s) y + s / C

    Keras smooths labels only where they are one-hot; this takes integer ids too.

    Args:
        from_logits: the model's output is logits (True) or probabilities.
        label_smoothing: s, the share of the target spread evenly over the C classes; 0.1 is usual.
        **kwargs: `name`, `reduction`, `dtype`.

    Shapes: targets (B,), (B, 1) integers or (B, C) shares; outputs (B, C).

    Raises:
        InputError: a smoothing outside [0, 1).

    >>> loss = CrossEntropy(label_smoothing=0.1)
    >>> a, b = loss([1], [[0.0, 2.0]]), loss([[0.0, 1.0]], [[0.0, 2.0]])
    >>> round(float(a), 4), round(float(b), 4)
    (0.2269, 0.2269)

    Reference: C. Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7 (label smoothing),
    https://arxiv.org/abs/1512.00567.
    """

    def __init__(self, from_logits: bool = True, label_smoothing: float = 0.0, **kwargs: Any):
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing must lie from 0 to below 1, got {label_smoothing!r}")
        super().__init__(**{"name": "cross_entropy", **kwargs})
        self.from_logits, self.label_smoothing = from_logits, label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_pred = ops.convert_to_tensor(y_pred)
        y_true = ops.convert_to_tensor(y_true)
        classes = y_pred.shape[-1]
        if len(y_true.shape) < 2 or (y_true.shape[-1] == 1 and classes != 1):
            y_true = ops.one_hot(ops.cast(ops.reshape(y_true, [-1]), "int32"), classes, dtype=y_pred.dtype)
        y_true = ops.cast(y_true, y_pred.dtype)
        smoothing = ops.cast(self.label_smoothing, y_true.dtype)  # a tensor while a training step is traced
        y_true = y_true * (1.0 - smoothing) + smoothing / classes
        return ops.categorical_crossentropy(y_true, y_pred, from_logits=self.from_logits)

    def get_config(self) -> dict[str, Any]:
        own = {"from_logits": self.from_logits, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **own}


@_register
class SmoothL1(keras.losses.Loss):
    """Squared near zero, absolute beyond `beta`; the mean over all outputs.

        L = e^2 / (2 beta) for |e| < beta,   |e| - beta / 2 else

    The usual loss of box offsets: its gradient is bounded by 1, so one bad box does not rule the step. Huber's loss is
    `beta` times this.

    Args:
        beta: where the two parts meet, in the unit of the targets: for fractions of the picture 1/9 is usual.
        **kwargs: `name`, `reduction`, `dtype`.

    >>> round(float(SmoothL1(beta=1.0)([[0.0, 0.0]], [[0.5, 3.0]])), 4)
    1.3125

    Reference: R. Girshick, "Fast R-CNN", 2015, eq. 3, https://arxiv.org/abs/1504.08083.
    """

    def __init__(self, beta: float = 1.0 / 9, **kwargs: Any):
        if not beta > 0:
            raise InputError(f"beta must be above 0, got {beta!r}; mae is the limit of 0")
        super().__init__(**{"name": "smooth_l1", **kwargs})
        self.beta = beta

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_pred = ops.convert_to_tensor(y_pred)
        error = ops.abs(ops.cast(y_true, y_pred.dtype) - y_pred)
        inner = 0.5 * ops.square(error) / self.beta
        return ops.mean(ops.where(error < self.beta, inner, error - 0.5 * self.beta), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta}


@_register
class IoU(keras.losses.Loss):
    """One minus the overlap of two boxes: what detection is measured by, as a loss.

        L = 1 - |A n B| / |A u B|

    Independent of the size of a box, unlike a squared error. Its gradient is zero where boxes do not touch: choose
    `GIoU` unless the start is good.

    Args:
        **kwargs: `name`, `reduction`, `dtype`.

    Shapes: targets and outputs (B, 4) as (x, y, width, height); a negative predicted width or height counts as 0.

    >>> round(float(IoU()([[0.0, 0.0, 2.0, 2.0]], [[1.0, 0.0, 2.0, 2.0]])), 4)
    0.6667

    Reference: J. Yu et al., "UnitBox", 2016, https://arxiv.org/abs/1608.01471 (with -log; this is the linear form).
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"name": "iou", **kwargs})

    def call(self, y_true: Any, y_pred: Any) -> Any:
        overlap, _, _ = _overlap(y_true, y_pred)
        return 1.0 - overlap


@_register
class GIoU(keras.losses.Loss):
    """Generalised overlap: the smallest box C around both pulls boxes together that do not touch.

        L = 1 - |A n B| / |A u B| + (|C| - |A u B|) / |C|

    Args:
        **kwargs: `name`, `reduction`, `dtype`.

    Shapes: targets and outputs (B, 4) as (x, y, width, height); a negative predicted width or height counts as 0.

    >>> round(float(GIoU()([[0.0, 0.0, 1.0, 1.0]], [[3.0, 0.0, 1.0, 1.0]])), 4)
    1.5

    Reference: H. Rezatofighi et al., "Generalized Intersection over Union", 2019, algorithm 1,
    https://arxiv.org/abs/1902.09630.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"name": "giou", **kwargs})

    def call(self, y_true: Any, y_pred: Any) -> Any:
        overlap, union, around = _overlap(y_true, y_pred)
        return 1.0 - overlap + (around - union) / ops.maximum(around, keras.config.epsilon())


def _overlap(y_true: Any, y_pred: Any) -> tuple[Any, Any, Any]:
    """Returns (intersection / union, union, smallest enclosing area) of boxes, row by row."""
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = ops.cast(y_true, y_pred.dtype)
    a_low, a_size = y_true[..., :2], ops.maximum(y_true[..., 2:], 0.0)
    b_low, b_size = y_pred[..., :2], ops.maximum(y_pred[..., 2:], 0.0)
    a_high, b_high = a_low + a_size, b_low + b_size
    inner = ops.maximum(ops.minimum(a_high, b_high) - ops.maximum(a_low, b_low), 0.0)
    outer = ops.maximum(a_high, b_high) - ops.minimum(a_low, b_low)
    both = inner[..., 0] * inner[..., 1]
    union = a_size[..., 0] * a_size[..., 1] + b_size[..., 0] * b_size[..., 1] - both
    return both / ops.maximum(union, keras.config.epsilon()), union, outer[..., 0] * outer[..., 1]


def _mse(logits: bool, smoothing: float) -> keras.losses.Loss:
    return keras.losses.MeanSquaredError()


def _bce(logits: bool, smoothing: float) -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=logits, label_smoothing=smoothing)


# name -> loss for a model that gives (logits or not, label smoothing); what `Recipe.loss` may be
LOSSES: dict[str, Callable[[bool, float], keras.losses.Loss]] = {
    "mse": _mse,
    "mae": lambda logits, smoothing: keras.losses.MeanAbsoluteError(),
    "huber": lambda logits, smoothing: keras.losses.Huber(),
    "bce": _bce,
    "cross_entropy": lambda logits, smoothing: CrossEntropy(logits, smoothing),
    "smooth_l1": lambda logits, smoothing: SmoothL1(),
    "iou": lambda logits, smoothing: IoU(),
    "giou": lambda logits, smoothing: GIoU(),
}
_SMOOTHED = ("bce", "cross_entropy")
_TASKS = {
    "classification": ("cross_entropy", "bce", "mse", "mae"),
    "regression": ("mse", "mae", "huber", "bce"),
    "box": ("mse", "mae", "huber", "smooth_l1", "iou", "giou"),
}


def get(name: str, *, from_logits: bool = True, label_smoothing: float = 0.0) -> keras.losses.Loss:
    """Returns the named loss as a Keras object.

        mse            mean (y - o)^2                              regression, lecture 003
        mae            mean |y - o|                                robust against outliers
        huber          e^2 / 2 for |e| <= 1, |e| - 1/2 else        between the two
        bce            - y log p - (1 - y) log(1 - p)              one or several independent yes/no outputs
        cross_entropy  `CrossEntropy`                              one class of several; ids or one-hot
        smooth_l1      `SmoothL1`                                  offsets of boxes
        iou, giou      `IoU`, `GIoU`                               overlap of boxes

    Args:
        name: see above.
        from_logits: for bce and cross_entropy, whether the model gives logits or probabilities.
        label_smoothing: for bce and cross_entropy.

    Raises:
        InputError: an unknown name, with the nearest one, or a smoothing for a loss without classes.

    >>> round(float(get("mse")([[1.0, 2.0]], [[1.0, 4.0]])), 4)
    2.0
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    if label_smoothing and name not in _SMOOTHED:
        raise InputError(f"label_smoothing is for {' and '.join(_SMOOTHED)}, not for {name!r}: set it to 0")
    return LOSSES[name](from_logits, label_smoothing)


def check_task(name: str, task: str) -> None:
    """Refuses a loss that does not suit the task.

    Raises:
        InputError: the losses that do.
    """
    if name and name not in _TASKS[task]:
        raise InputError(f"loss {name!r} does not suit the task {task!r}; choose one of {', '.join(_TASKS[task])}")
