"""What a worker process is given: the functions, the recipe and the data, in one file that the search itself writes."""

import copy
import hashlib
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import cloudpickle
import keras_tuner
import numpy as np

from dlkit._errors import InputError, unknown
from dlkit._files import write_bytes
from dlkit.data.sources import Source
from dlkit.train import Recipe

FIDELITIES = ("epochs", "size", "fraction")

_FIELDS = [field.name for field in fields(Recipe)]


@dataclass(frozen=True)
class Job:
    """The arguments of `search` that a trial needs; see there."""

    build: Callable[..., Any]
    space: Callable[[Any], Mapping[str, Mapping[str, Any]]]
    recipe: Recipe
    train: Any
    validation: Any
    preprocess: Any
    objective: str
    directory: Path
    seed: int = 0
    fidelity: str = "epochs"
    seeds: int = 1
    folds: int = 0
    constraints: Mapping[str, float] | None = None
    measure: Callable[[Any, Any], float] | None = None
    trial_seconds: float | None = None
    threads: int = 0

    @property
    def runs(self) -> int:
        """Runs of each trial: seeds or folds."""
        return max(self.seeds, self.folds)

    @property
    def restarts(self) -> bool:
        """Whether a promoted trial starts again instead of continuing."""
        return self.fidelity != "epochs"

    def overrides(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Returns what the space makes of hyperparameter values: {"model": {...}, "recipe": {...}}."""
        hp = keras_tuner.HyperParameters()
        hp.values = dict(values)
        return overrides(self.space, hp)


def overrides(space: Callable[[Any], Any], hp: Any) -> dict[str, dict[str, Any]]:
    """Calls a space and checks what it returns.

    Raises:
        InputError: it is no mapping with "model" and "recipe", or names a field that recipes lack.
    """
    found = space(hp)
    if not isinstance(found, Mapping) or set(found) - {"model", "recipe"}:
        raise InputError(f'a space returns {{"model": {{...}}, "recipe": {{...}}}}, got {found!r}')
    for name in found.get("recipe", {}):
        if name not in _FIELDS:
            raise unknown("recipe field", name, _FIELDS)
    return {"model": dict(found.get("model", {})), "recipe": dict(found.get("recipe", {}))}


def write(job: Job, folder: Path | None = None) -> str:
    """Writes the job for worker processes into its directory (or `folder`) and returns the digest they check.

    Raises:
        InputError: a function or the data cannot be sent to another process.
    """
    stores: dict[int, Any] = {}
    folder = (folder or job.directory).resolve()
    shared = replace(
        job,
        train=_shared(job.train, folder, stores),
        validation=_shared(job.validation, folder, stores),
        directory=job.directory.resolve(),
    )
    try:
        content = cloudpickle.dumps(shared)
    except (TypeError, pickle.PicklingError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"build, space, recipe and data must be sendable to a worker process, and something in them is not: "
            f"{error}. Create it inside the function, or run the trials in this process with workers=0"
        ) from error
    write_bytes(folder / "job.pkl", content)
    return hashlib.sha256(content).hexdigest()


def read(path: Path, digest: str) -> Job:
    """Reads the job that the chief has written; anything else is refused before it is unpickled.

    Raises:
        InputError: the file is not the one that the chief wrote.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{path} is not the file that the search has written")
    return cast(Job, pickle.loads(content))


class MappedArrays:
    """Makes the store of arrays in a file: pages are shared by all processes of a machine that map it."""

    def __init__(self, kind: type, path: Path, identities: list[str]) -> None:
        self.kind, self.path, self.identities = kind, path, identities

    def open(self) -> Any:
        """Maps the file."""
        return self.kind(np.load(self.path, mmap_mode="r", allow_pickle=False), self.identities)


def opened(source: Any) -> Any:
    """Returns a source with its arrays mapped."""
    if source is None or not isinstance(source.store, MappedArrays):
        return source
    return replace(source, store=source.store.open())


def _shared(source: Any, directory: Path, stores: dict[int, Any]) -> Any:
    """Returns a copy of a source whose arrays lie in a file of the directory; files stay where they are."""
    if not isinstance(source, Source):
        return source
    store = source.store
    if id(store) not in stores:
        if hasattr(store, "values"):
            path = directory / "data" / f"{len(stores)}.npy"
            _save(path, store.values)
            stores[id(store)] = MappedArrays(type(store), path, list(store.identities))
        else:
            plain = copy.copy(store)
            plain.__dict__.pop("_tensor", None)  # what TensorFlow holds of it belongs to this process
            stores[id(store)] = plain
    copied = replace(source, store=stores[id(store)])
    if "_report" in source.__dict__:
        copied.__dict__["_report"] = source.__dict__["_report"]
    return copied


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, values, allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
