"""Repeats the check of an export later, anywhere: with the samples it carries, or with a folder of pictures."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dlkit._errors import InputError
from dlkit.export import _cases, _folders, _manifest
from dlkit.export._packages import check_runtime
from dlkit.export._predict import check_form
from dlkit.export._process import Checker
from dlkit.export._report import Report
from dlkit.export._runtimes import Runtime

_MAIN = {"classification": "logits", "regression": "predictions", "box": "boxes"}


def verify(path: str | os.PathLike[str], *, data: Any = None) -> Report:
    """Checks an export in a fresh process that imports only TensorFlow, and returns the report.

    The samples that the export carries go through every signature and must answer what the evaluated model answered:
    logits within 1e-4 (relative to the largest above 1), probabilities within 1e-5, pixels without any difference.
    With `data`, its pictures go through too; their reference is the evaluation pipeline in front of `tensors`.

    Args:
        path: a version folder, or a folder of versions (its newest is taken).
        data: a folder with one subfolder per class, or a `dlkit.data.Source`; None uses the carried samples.

    Raises:
        InputError: `path` is no export of dlkit, or the classes of `data` are not its labels.

    Example:
        >>> verify("saved_models/digits").ok  # doctest: +SKIP
        True
    """
    folder = _folders.version_folder(path)
    manifest = _manifest.read(folder)
    if manifest["form"] != _folders.form(folder):
        raise InputError(f"{folder} holds {_folders.form(folder)}, its manifest says {manifest['form']!r}")
    if manifest["form"] != "saved_model":
        check_runtime(manifest["form"])
    source = _source(data, manifest)
    preprocess = _preprocess(manifest, folder)
    samples = folder / _manifest.SAMPLES
    if not samples.is_file():
        raise InputError(f"{folder} has lost {_manifest.SAMPLES}, which its check needs; export the model again")
    cases = _cases.load(samples, preprocess)  # before a process starts: what is refused costs nothing
    with Checker() as checker, tempfile.TemporaryDirectory(prefix="dlkit-verify-") as scratch:
        if source is not None:
            cases = _with_data(cases, source, preprocess, manifest, folder)
        request = _cases.request(cases, manifest, exact=False) | {"export": str(folder)}
        return checker.run(Path(scratch), request, cases.arrays())


def _source(data: Any, manifest: dict[str, Any]) -> Any:
    if data is None:
        return None
    from dlkit.data import from_folder

    source = from_folder(data) if isinstance(data, str | os.PathLike) else data
    _cases.check_classes(source, manifest["labels"])
    return source


def _with_data(
    cases: _cases.Cases, source: Any, preprocess: Any, manifest: dict[str, Any], folder: Path
) -> _cases.Cases:
    """Adds the samples of a source; expected of them is the answer of `tensors` behind the evaluation pipeline."""
    import tensorflow as tf

    more = _cases.of_source(source, preprocess, manifest["labels"])
    if manifest["form"] == "saved_model":
        check_form(folder)
        signatures = tf.saved_model.load(str(folder)).signatures

        def call(rows: np.ndarray) -> Any:
            return signatures["tensors"](tensors=tf.constant(rows))[main]
    else:
        runtime = Runtime(manifest["form"], folder)

        def call(rows: np.ndarray) -> Any:
            return runtime(rows)[main]

    main = "probabilities" if manifest["model"]["gives"] == "probabilities" else _MAIN[manifest["task"]]
    batch = min(_cases.BATCH, len(more.tensors))
    more.expected = _cases.in_batches(call, more.tensors, batch)[0]
    both = _cases.joined(cases, more)
    both.expected, both.features = np.concatenate([cases.expected, more.expected]), cases.features
    return both


def _preprocess(manifest: dict[str, Any], folder: Path) -> Any:
    record = manifest["preprocess"]
    if record is None:
        return None
    from dlkit import data

    name = record.get("class")
    made = getattr(data, name, None) if name in ("Preprocess", "Standardize") else None
    if made is None:
        raise InputError(f"{folder} was made with a preprocess of your own, {name!r}; dlkit cannot rebuild it")
    try:
        return made.from_config(record["config"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: the preprocess in its {_manifest.MANIFEST} is damaged ({error})") from error
