"""TensorFlow without Keras: an export needs none, and its import takes a third of the start."""

import contextlib
import importlib.machinery
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class _Hidden:
    """Makes keras look as if it were not installed; TensorFlow then does without."""

    names = ("keras", "tf_keras")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, origin=os.devnull)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        raise ModuleNotFoundError(f"{spec.name} is left out while TensorFlow is imported", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        raise ModuleNotFoundError(module.__name__)


@contextlib.contextmanager
def without_keras() -> Iterator[None]:
    """Hides Keras while TensorFlow is imported in the block; for processes of our own, which never use it.

    Where either is loaded already, nothing is hidden.
    """
    if "tensorflow" in sys.modules or "keras" in sys.modules:
        yield
        return
    hidden: Any = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        yield
    finally:
        sys.meta_path.remove(hidden)
