"""Files that are either the old ones or the new ones, never half of each."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_UMASK = os.umask(0)  # it can only be read by setting it, which every thread would see: once, at the import
os.umask(_UMASK)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Replaces `path` by `content` in one step: temporary file, fsync, rename, fsync of the folder.

    Raises:
        OSError: the disk is full or the folder is read-only; the old file is untouched then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Replaces `path` by `text` (UTF-8) in one step."""
    return write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Replaces `path` by `value` as JSON in one step."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a hidden folder beside `path` that becomes `path` by one rename when the block ends without an error.

    Raises:
        FileExistsError: `path` exists already; nothing was written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(folder, name))
            sync_folder(folder)
        os.chmod(temporary, 0o777 & ~_UMASK)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if path.exists():
                raise FileExistsError(f"{path} appeared meanwhile and is left alone") from error
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Flushes a folder's entries to the disk, so that a rename inside it survives a power cut."""
    _sync(Path(path), os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))


def _sync(path: Path, flags: int = os.O_RDONLY) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
