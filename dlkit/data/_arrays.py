"""Sources of arrays in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlkit._errors import InputError
from dlkit.data._stores import Arrays
from dlkit.data.sources import Source, refuse_twice, valid_boxes


def from_arrays(
    x: Any,
    y: Any,
    *,
    classes: Sequence[str] | None = None,
    boxes: Any = None,
    name: str = "arrays",
) -> Source:
    """Returns the source of arrays in memory.

    Args:
        x: pictures uint8 (n, H, W, C) or (n, H, W), or a table float (n, d).
        y: int class ids (n,), float targets (n,) or (n, t), or None when `boxes` are the only targets. Floats make a
            regression.
        classes: class names, for class ids; default "0", "1", ... up to the largest id.
        boxes: (n, 4) as (x, y, width, height) in fractions of the picture.
        name: what reports call it.

    Raises:
        InputError: lengths that differ, pictures that are not uint8, ids outside the classes, class names without ids
            or one name twice, values that are not finite, boxes outside the picture.

    >>> source = from_arrays(np.zeros([4, 8, 8, 1], np.uint8), [0, 1, 1, 0], classes=["cat", "dog"])
    >>> source, source.class_counts
    (Source('arrays', classification, 4 samples, 2 classes), {'cat': 2, 'dog': 2})
    """
    x = _inputs(x)
    count = len(x)
    if y is not None and len(y) != count:
        raise InputError(f"x has {count} samples and y has {len(y)}: one target per sample is needed")
    labels = values = None
    if y is not None:
        y = np.asarray(y)
        if np.issubdtype(y.dtype, np.integer) or y.dtype == bool:
            labels, classes = _class_ids(y, classes)
        else:
            values = _finite("y", y.reshape(count, -1))
    if boxes is not None:
        boxes = valid_boxes(boxes, count)
    elif y is None:
        raise InputError("y=None needs boxes: a source without targets has nothing to train on")
    if classes is not None and labels is None:
        raise InputError(
            f"classes={tuple(classes)!r} name class ids, and there are none: y is "
            f"{'None' if y is None else f'{y.dtype}, which makes a regression; pass y.astype(int)'}"
        )
    if values is not None and boxes is not None:
        raise InputError(
            "float targets and boxes together are not a known task; pass class ids with boxes, or boxes alone"
        )
    task = "box" if boxes is not None else "classification" if labels is not None else "regression"
    return Source(
        name, task, Arrays(x), classes=tuple(classes) if labels is not None and classes else None, labels=labels,
        values=values, boxes=boxes, rows=np.arange(count, dtype=np.int64),
    )  # fmt: skip


def _inputs(x: Any) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim == 0 or len(x) == 0:
        raise InputError("x is empty: a source needs at least one sample")
    if x.ndim == 2:
        return _finite("x", x)
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4):
        raise InputError(f"x of shape {x.shape} is neither pictures (n, H, W, 1|3|4) nor a table (n, d)")
    if x.dtype != np.uint8:
        raise InputError(f"pictures of dtype {x.dtype}: uint8 grey levels 0..255 are needed; scale and cast them first")
    return x


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    try:
        values = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} of dtype {np.asarray(values).dtype} holds no numbers") from error
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        raise InputError(f"{name} is not finite in {len(bad)} rows, first row {bad[0]}: {values[bad[0]]}")
    return values


def _class_ids(y: np.ndarray, classes: Sequence[str] | None) -> tuple[np.ndarray, Sequence[str]]:
    y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        raise InputError(f"class ids of shape {y.shape}: (n,) is needed; take argmax of one-hot rows, or pass floats")
    if classes is not None:
        refuse_twice(classes)
    y = y.astype(np.int64)
    known = len(classes) if classes is not None else int(y.max()) + 1
    bad = np.flatnonzero((y < 0) | (y >= known))
    if len(bad):
        raise InputError(f"class id {y[bad[0]]} of sample {bad[0]} ({len(bad)} such) is not among the {known} classes")
    return y, tuple(map(str, classes)) if classes is not None else tuple(str(i) for i in range(known))
