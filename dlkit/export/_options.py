"""The arguments of an export, checked before anything is written."""

import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlkit._errors import InputError, unknown
from dlkit.export import _folders

TASKS = ("classification", "regression", "box")
OPTIMIZE = ("fold", "freeze")
PRECISION = ("float32", "bfloat16")
QUANTIZE = ("int8",)
LONGEST = 1000  # letters of a class name: each signature's graph holds them all
UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")  # ends of lines and halves of characters; joiners inside words are letters


@dataclass(frozen=True)
class Options:
    """What `saved_model` was asked for; see its arguments."""

    directory: Path
    version: int | None
    labels: tuple[str, ...]
    task: str
    optimize: str | None
    precision: str
    temperature: float
    about: dict[str, Any]
    form: str = "saved_model"
    quantize: str | None = None
    calibrate: Any = None


def checked(
    labels: Sequence[str] | None,
    directory: str | os.PathLike[str],
    version: int | None,
    optimize: str | None,
    precision: str,
    task: str | None,
    temperature: float,
    about: Mapping[str, Any] | None,
    form: str = "saved_model",
    quantize: str | None = None,
    calibrate: Any = None,
) -> Options:
    """Returns the options, or raises InputError for the first one that cannot be meant."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"a SavedModel is written with the TensorFlow backend, this is {keras.backend.backend()!r}; save the model "
            "with model.save(...) and export it in a process started with KERAS_BACKEND=tensorflow"
        )
    task = task or ("regression" if labels is None else "classification")
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if optimize is not None and optimize not in OPTIMIZE:
        raise unknown("optimize", optimize, OPTIMIZE)
    if precision not in PRECISION:
        raise unknown("precision", precision, PRECISION)
    if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
        raise InputError(
            f"temperature={temperature!r}; expected a positive number, 1 leaves the probabilities as trained"
        )
    if quantize is not None and quantize not in QUANTIZE:
        raise unknown("quantize", quantize, QUANTIZE)
    if calibrate is not None and (task != "classification" or temperature != 1.0):
        raise InputError(
            "calibrate chooses the temperature of a classification's probabilities; leave out "
            + ("calibrate" if task != "classification" else f"temperature={temperature!r}")
        )
    try:
        record: dict[str, Any] = json.loads(json.dumps(dict(about or {})), parse_constant=lambda _: None)  # NaN: null
    except (TypeError, ValueError) as error:
        raise InputError(
            f"about holds what JSON cannot: {error}; give plain numbers, strings, lists and dicts"
        ) from error
    names = _names(labels, task)
    folder = _folders.check_target(directory, version, form)
    given = (optimize, precision, float(temperature), record, form, quantize, calibrate)
    return Options(folder, version, names, task, *given)


def input_shape(model: Any, preprocess: Any) -> tuple[int | None, ...]:
    """Returns the shape of one input of `model`, after comparing it with what `preprocess` yields."""
    if preprocess is not None and not hasattr(preprocess, "from_bytes") and not hasattr(preprocess, "from_rows"):
        raise InputError(
            f"preprocess={preprocess!r}; expected a dlkit.data.Preprocess, a Standardize, or None for tensors"
        )
    expected = getattr(model, "input_shape", None)
    found = getattr(preprocess, "input_shape", None)
    if isinstance(expected, tuple) and expected and isinstance(expected[0], int | None):
        shape = tuple(expected[1:])
    elif found is not None:
        shape = tuple(found)
    else:
        raise InputError(
            f"{getattr(model, 'name', model)!r} does not tell its input shape; call it once on a batch, or give a "
            "preprocess"
        )
    if found is None:
        return shape
    fits = len(found) == len(shape) and all(side in (None, size) for side, size in zip(shape, found, strict=True))
    if not fits:
        raise InputError(
            f"the preprocess yields {tuple(found)}, the model takes {shape}: (height, width, channels); build one of "
            "them for the other's size"
        )
    return tuple(found)


def check_width(model: Any, options: Options) -> None:
    """Raises InputError when the inputs and outputs that the model declares cannot be right, or another backend."""
    from dlkit.train import tasks  # here, so that `predict` and `verify` need no Keras

    tasks.check_backend()
    inputs, outputs = (len(getattr(model, side, None) or [0]) for side in ("inputs", "outputs"))
    output = getattr(model, "output", None) if outputs else None
    if (
        isinstance(output, dict)
        and set(output) == {"probabilities", "disagreement"}
        and options.task == "classification"
    ):
        outputs = 1  # of dlkit.models.ensemble
    if inputs != 1 or outputs != 1:
        raise InputError(f"{model.name!r} has {inputs} inputs and {outputs} outputs; an export takes one of each")
    shape = getattr(model, "output_shape", None)
    if isinstance(shape, tuple) and shape and isinstance(shape[-1], int):
        check_outputs(np.zeros([1 if side is None else side for side in shape]), options)


def check_outputs(outputs: np.ndarray, options: Options) -> None:
    """Raises InputError when the model's outputs and the labels or the task do not belong together."""
    if outputs.ndim != 2:
        raise InputError(
            f"the model's output has shape {outputs.shape[1:]} per example; an export takes a vector (include_top=True)"
        )
    width = outputs.shape[1]
    if options.task == "classification" and width != len(options.labels):
        raise InputError(
            f"{len(options.labels)} labels for a model with {width} outputs; give one name per output, in the order of "
            "the training's class numbers"
        )
    if options.task == "box" and width != 4:
        raise InputError(f"a box task has 4 outputs (x, y, width, height), this model has {width}")
    if not np.all(np.isfinite(outputs)):
        raise InputError("the model answers NaN or infinity on ordinary inputs; it is not fit to be served")


def _names(labels: Sequence[str] | None, task: str) -> tuple[str, ...]:
    if task != "classification":
        if labels:
            raise InputError(f"labels are for classification, the task is {task!r}; leave them out")
        return ()
    if not isinstance(labels, Sequence | np.ndarray) or isinstance(labels, str | bytes) or not len(labels):
        raise InputError(f"labels={labels!r}; expected a list of one class name per output, e.g. ['cat', 'dog']")
    names = tuple(str(label) for label in labels)
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not name.strip() or any(unicodedata.category(letter) in UNWRITABLE for letter in name):
            raise InputError(f"label {i} is {name[:100]!r}; a class name is printable text on one line")
        if len(name) > LONGEST:
            raise InputError(
                f"label {i}, {name[:20]!r}..., has {len(name):,} letters; a class name has at most {LONGEST}"
            )
        if name in seen:
            raise InputError(f"label {name!r} occurs twice; every class needs a name of its own")
        seen.add(name)
    return names
