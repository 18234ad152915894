"""Checkpoints: the whole state of a run in one file that is either good or recognised as damaged.

A file holds a NumPy archive (every variable by position and path, and the loop's state as JSON) followed by the
SHA-256 of that archive. It appears by one rename, so there are never two files that must agree.
"""

import hashlib
import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dlkit._errors import InputError
from dlkit._files import write_bytes

KEEP = 3
_NAME = re.compile(r"step_(\d{10})\.ckpt")


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read; the one before it is used."""


def save(folder: Path, step: int, variables: list[Any], state: dict[str, Any], keep: int = KEEP) -> Path:
    """Writes the checkpoint of `step` and removes all but the newest `keep`.

    Raises:
        OSError: the disk is full or read-only; the earlier checkpoints are untouched then.
    """
    arrays = {_key(i, variable): _plain(np.asarray(variable)) for i, variable in enumerate(variables)}
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    path = folder / f"step_{step:010d}.ckpt"
    try:
        write_bytes(path, content + hashlib.sha256(content).digest())
    except OSError as error:
        held = _files(folder)
        kept = f"the last good one, {held[-1].name}, is kept" if held else "there is none before it"
        reason = (
            f"the checkpoint of step {step} could not be written: {error.strerror}; {kept}. Free space and call again"
        )
        raise OSError(error.errno, reason, str(path)) from error
    others = [other for other in _files(folder) if other != path]
    for old in others[: len(others) + 1 - keep]:
        old.unlink(missing_ok=True)
    return path


def restore(folder: Path, variables: list[Any]) -> dict[str, Any] | None:
    """Reads the newest good checkpoint into `variables` and returns the loop's state; None where there is none.

    Warns:
        DamagedCheckpointWarning: a newer file is damaged; it is named and the one before it is used.

    Raises:
        InputError: every file is damaged, or a good one belongs to other variables; nothing is assigned then.
    """
    files = _files(folder)
    for path in reversed(files):
        try:
            content = path.read_bytes()
            body, digest = content[:-32], content[-32:]
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("its checksum does not match")
            with np.load(io.BytesIO(body), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            warnings.warn(
                f"{path} is damaged ({error}); trying the one before it", DamagedCheckpointWarning, stacklevel=2
            )
            continue
        state = json.loads(arrays.pop("state").tobytes())
        _assign(path, arrays, variables)
        return state
    if files:
        raise InputError(f"every checkpoint in {folder} is damaged; remove the folder to start the run anew")
    return None


def _assign(path: Path, arrays: dict[str, np.ndarray], variables: list[Any]) -> None:
    keys = [_key(i, variable) for i, variable in enumerate(variables)]
    if keys != list(arrays):
        differing = next((pair for pair in zip(keys, arrays, strict=False) if pair[0] != pair[1]), None)
        detail = f"expected {differing[0]}, found {differing[1]}" if differing else f"{len(keys)} against {len(arrays)}"
        raise InputError(f"{path} holds the variables of another model or optimizer: {detail}")
    for key, variable in zip(keys, variables, strict=True):
        if tuple(variable.shape) != _restored(arrays[key], variable).shape:
            raise InputError(f"{path}: {key} has shape {arrays[key].shape}, the model needs {tuple(variable.shape)}")
    for key, variable in zip(keys, variables, strict=True):
        variable.assign(_restored(arrays[key], variable))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.ckpt") if _NAME.fullmatch(path.name))


def _key(index: int, variable: Any) -> str:
    """Names a variable by position, last word and dtype: Keras numbers the scopes before it anew in every process."""
    return f"{index:05d}:{re.split('[/_]', variable.path)[-1]}:{variable.dtype}"


def _plain(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def _restored(array: np.ndarray, variable: Any) -> np.ndarray:
    return array.view(ml_dtypes.bfloat16) if str(variable.dtype) == "bfloat16" else array
