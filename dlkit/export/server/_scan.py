"""Which models and versions a folder holds: the layout of TensorFlow Serving."""

import os
from dataclasses import dataclass
from pathlib import Path

from dlkit._errors import InputError
from dlkit.export._folders import number


@dataclass(frozen=True)
class Found:
    """A version on disk. `stamp` changes when a file of it is written, so that a repaired one is tried again."""

    name: str
    version: int
    path: Path
    stamp: tuple[int, int]


class Layout:
    """The folder that is served: many models, one model, or one version of one model.

    Raises:
        InputError: the folder is none of them.
    """

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._only: int | None = None
        if (self._folder / "saved_model.pb").is_file():
            version = number(self._folder.name)
            self._only = 1 if version is None else version
            self._one = self._folder.name if version is None else self._folder.parent.name
        elif _versions(self._folder):
            self._one = self._folder.name
        else:
            self._one = ""
            if not self.scan():
                raise InputError(
                    f"{folder} holds no export; expected {folder}/NAME/VERSION/saved_model.pb, such as "
                    "saved_models/digits/1: dlkit export RUN writes one"
                )

    def scan(self) -> dict[str, list[Found]]:
        """Returns the versions of each model, newest first. Names that begin with a dot are work in progress."""
        if self._only is not None:
            stamp = _stamp(self._folder)
            return {self._one: [Found(self._one, self._only, self._folder, stamp)]} if stamp else {}
        if self._one:
            return {self._one: _of_model(self._one, self._folder)}
        try:
            with os.scandir(self._folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            return {}
        models = {name: _of_model(name, self._folder / name) for name in names if ":" not in name}
        return {name: versions for name, versions in models.items() if versions}


def _of_model(name: str, folder: Path) -> list[Found]:
    found = [Found(name, version, path, _stamp(path)) for version, path in _versions(folder).items()]
    return sorted(found, key=lambda version: -version.version)


def _versions(folder: Path) -> dict[int, Path]:
    """The numeric folders; leading zeros do not count, as in TensorFlow Serving."""
    versions: dict[int, Path] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                version, path = number(entry.name), Path(entry.path)
                if version is not None and entry.is_dir() and not _other_form(path) and not _is_model(path):
                    versions.setdefault(version, path)
    except OSError:
        return {}
    return versions


def _other_form(path: Path) -> bool:
    """True for exports to ONNX, OpenVINO and LiteRT, which other runtimes serve."""
    others = ("model.onnx", "model.xml", "model.tflite")
    return not (path / "saved_model.pb").exists() and any((path / name).exists() for name in others)


def _is_model(path: Path) -> bool:
    """True for a model whose name is a number: versions lie in it, and no graph."""
    return not (path / "saved_model.pb").exists() and any(number(entry.name) is not None for entry in _listed(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Newest change and total size of the graph and the weights."""
    newest, size = 0, 0
    for file in (path / "saved_model.pb", *_listed(path / "variables")):
        try:
            status = file.stat()
        except OSError:
            continue
        newest, size = max(newest, status.st_mtime_ns), size + status.st_size
    return (newest, size)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
