"""Which models and versions a folder holds: the layout of TensorFlow Serving."""

from dataclasses import dataclass
from pathlib import Path

from dlkit._errors import InputError
from dlkit.export._folders import MODEL_FILES, number


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
            there = (self._folder / MODEL_FILES["saved_model"]).is_file()
            return {self._one: [Found(self._one, self._only, self._folder, _stamp(self._folder))]} if there else {}
        if self._one:
            return {self._one: _of_model(self._one, self._folder)}
        names = [path.name for path in _listed(self._folder) if path.is_dir() and not path.name.startswith(".")]
        models = {name: _of_model(name, self._folder / name) for name in names if ":" not in name}
        return {name: versions for name, versions in models.items() if versions}


def _of_model(name: str, folder: Path) -> list[Found]:
    found = [Found(name, version, path, _stamp(path)) for version, path in _versions(folder).items()]
    return sorted(found, key=lambda version: -version.version)


def _versions(folder: Path) -> dict[int, Path]:
    """The numeric folders, but for exports that other runtimes serve and models whose name is a number."""
    versions: dict[int, Path] = {}
    for path in _listed(folder):
        version = number(path.name)
        if version is not None and path.is_dir() and _is_version(path):
            versions.setdefault(version, path)
    return versions


def _is_version(path: Path) -> bool:
    names = {entry.name for entry in _listed(path)}
    return MODEL_FILES["saved_model"] in names or not (
        names & set(MODEL_FILES.values()) or any(number(name) is not None for name in names)
    )


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
    """What is in a folder, nothing if it is not there or not ours to read.

    Any other error, such as too many open files, tells nothing of what is there: nothing may be ended because of it.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
