"""Classifies files with an export, as a server would: TensorFlow only."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from dlkit._errors import InputError
from dlkit.export import _folders
from dlkit.export._operations import strange_operations

BATCH, TOP = 32, 5


@dataclass(frozen=True)
class Prediction:
    """The answer for one file: the best names with their probabilities, or the values of a regression or box."""

    file: str
    classes: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """The best class name, empty for a regression."""
        return self.classes[0] if self.classes else ""

    @property
    def score(self) -> float:
        """The probability of the best class, NaN for a regression."""
        return self.scores[0] if self.scores else float("nan")


def predict(path: str | os.PathLike[str], files: Iterable[str | os.PathLike[str]], *, top: int = 1) -> list[Prediction]:
    """Loads an export and classifies picture files, in their order.

    Args:
        path: a version folder, or a folder of versions (its newest is taken).
        files: JPEG, PNG, BMP, GIF or WebP files; one alone needs no list.
        top: number of classes per file, 1 to 5; an export answers the best five.

    Raises:
        InputError: `path` is no export, takes no files, or a file is missing or cannot be decoded (its name is given).

    Example:
        >>> predict("saved_models/digits", ["three.png"])[0].label  # doctest: +SKIP
        '3'
    """
    folder = _folders.version_folder(path)
    names = [Path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    if not names:
        raise InputError("no files to classify; give at least one picture")
    if top not in range(1, TOP + 1):
        raise InputError(f"top={top!r}; expected a whole number from 1 to {TOP}, which an export answers")
    contents = [_read(name) for name in names]
    check_form(folder)
    signatures = tf.saved_model.load(str(folder)).signatures
    if "tolerant" not in signatures:
        raise InputError(f"{folder} takes no picture files; its signatures are {', '.join(sorted(signatures))}")
    return list(_answers(signatures["tolerant"], names, contents, top))


def check_form(folder: Path) -> None:
    """Raises InputError when `folder` holds no SavedModel, or one that does more than compute."""
    kind = _folders.form(folder)
    if kind != "saved_model":
        raise InputError(f"{folder} is an export for {kind}; files are classified by a SavedModel only")
    try:
        strange = strange_operations(folder)
    except Exception as error:  # the protocol buffers' own error class is not public
        raise InputError(f"{folder}/saved_model.pb is damaged ({type(error).__name__}); export it again") from error
    if strange:
        raise InputError(f"{folder} is refused: its graph holds {', '.join(strange)}, which no network needs")


def _answers(signature: Any, names: list[Path], contents: list[bytes], top: int) -> Iterator[Prediction]:
    for i in range(0, len(names), BATCH):
        found = {
            name: value.numpy() for name, value in signature(image_bytes=tf.constant(contents[i : i + BATCH])).items()
        }
        for row, file in enumerate(names[i : i + BATCH]):
            if found["error"][row]:
                raise InputError(f"{file}: {found['error'][row].decode()}")
            if "classes" in found:
                classes = tuple(name.decode() for name in found["classes"][row][:top])
                yield Prediction(str(file), classes, tuple(float(score) for score in found["scores"][row][:top]))
            else:
                values = next(value for name, value in found.items() if name != "error")
                yield Prediction(str(file), values=tuple(float(value) for value in values[row]))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected a picture file") from error
