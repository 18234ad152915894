"""The folder of an export: versions, the lock of its writer, leftovers of killed ones."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from dlkit._errors import InputError

MODEL_FILES = {"saved_model": "saved_model.pb", "onnx": "model.onnx", "openvino": "model.xml", "litert": "model.tflite"}


def form(folder: Path) -> str | None:
    """Returns what kind of export a version folder holds, None if none."""
    return next((name for name, file in MODEL_FILES.items() if (folder / file).is_file()), None)


def number(name: str) -> int | None:
    """Returns the version that a folder's name means; leading zeros do not count, as in TensorFlow Serving."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 19 else None


def versions(directory: str | os.PathLike[str]) -> dict[int, Path]:
    """Returns the versions that TensorFlow Serving would see in `directory`, in the order of their numbers."""
    folder = Path(directory)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {number(entry.name): entry for entry in entries if entry.is_dir()}
    return {key: found[key] for key in sorted(key for key in found if key is not None)}


def version_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the export that `path` means: a version folder itself, or the newest version inside a folder of them.

    Raises:
        InputError: there is neither.
    """
    folder = Path(path)
    if form(folder):
        return folder
    found = versions(folder)
    if found:
        return found[max(found)]
    what = "does not exist" if not folder.exists() else "holds neither an exported model nor numbered versions"
    raise InputError(f"{folder} {what}; expected an export such as saved_models/digits/1, see dlkit.export.saved_model")


def check_target(directory: str | os.PathLike[str], version: int | None, kind: str = "saved_model") -> Path:
    """Returns `directory` as a path, after refusing what cannot become an export.

    Raises:
        InputError: `directory` is a file, itself a version, beside versions or holds versions of another kind;
            `version` is no positive integer or exists already.
    """
    folder = Path(directory)
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(
            f"{folder} is a file or a link to nothing; give the folder that holds the versions: saved_models/digits"
        )
    if form(folder):
        raise InputError(f"{folder} is an exported version itself; give its parent, {folder.parent}")
    if number(folder.name) is not None and any(form(path) for path in versions(folder.parent).values()):
        raise InputError(
            f"{folder} lies among the versions in {folder.parent}; give that folder, and version={number(folder.name)}"
        )
    taken = versions(folder)
    found = form(taken[max(taken)]) if taken else None
    if found not in (None, kind):
        raise InputError(
            f"{folder} holds versions in the form {found}, a server reads one form per folder; give another folder "
            f"for {kind}, e.g. {folder}-{kind}"
        )
    if version is None:
        return folder
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"version={version!r}; expected a positive integer, or None for the next free one")
    if version in taken or os.path.lexists(folder / str(version)):
        raise InputError(
            f"{folder / str(version)} exists already and is left alone; use version=None for the next free number "
            f"({next_version(folder)})"
        )
    return folder


def next_version(directory: str | os.PathLike[str]) -> int:
    """Returns the number behind the highest one that exists, 1 in an empty folder."""
    folder = Path(directory)
    taken = [number(entry.name) or 0 for entry in folder.iterdir()] if folder.is_dir() else []
    return max(taken, default=0) + 1


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[Path]:
    """Holds the folder for one writer and yields a hidden scratch folder in it; clears what killed exports left.

    The lock belongs to the process, so a killed one never keeps it. A folder that was made for an export which then
    failed is removed again.
    """
    existed = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    lock = directory / ".lock"
    try:
        with filelock.FileLock(lock):
            for leftover in directory.glob(".*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(dir=directory, prefix=".check.", suffix=".tmp"))
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:
        if not existed:
            lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise
