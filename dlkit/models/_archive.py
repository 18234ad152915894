"""Opens a .keras file that somebody else made: what is in it is checked before Keras builds anything of it.

Keras' safe mode refuses Python code in a configuration, and has been bypassed about once a year. In front of it stand:
members of known names and sizes, weights that lie inside their file, classes of Keras and registered ones only, and no
more numbers than the weights file holds.
"""

import contextlib
import importlib
import json
import math
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from dlkit._errors import InputError

MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
# layers that run code, read other files or belong to another framework
FORBIDDEN = (
    *("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"),
    *("IndexLookup", "StringLookup", "IntegerLookup", "TextVectorization"),
)
_PLAIN = ("__keras_tensor__", "__tuple__", "__dict__", "__slice__", "__ellipsis__")
_MODULES = ("keras", "keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints", "keras.models")
_INNER = ("keras.src.models.functional", "keras.src.models.sequential", "keras.src.ops.")
_LARGEST_TEXT = 64 * 2**20
_SLACK = 65536  # numbers beside the weights: counters, states of random generators
_WIDEST, _WIDEST_ROW = 2**14, 2**20  # sides of a picture or a map; numbers of a row
_lock = threading.Lock()


def read_model(path: Path) -> keras.Model:
    """Returns the model of a .keras file, not compiled.

    Classes that this process has registered itself (`keras.saving.register_keras_serializable`) are accepted.

    Raises:
        InputError: the archive is broken, points outside itself, declares more than it holds, or names a class that is
            neither Keras' nor registered.
    """
    path = Path(path)
    for package in ("dlkit.layers", "dlkit.models"):  # they register what a model may name
        importlib.import_module(package)
    try:
        _check_members(path)
        _check_config(_config(path), path)
        with _at_most(_numbers(path) + _SLACK, path):
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except InputError:
        raise
    except Exception as error:
        # a broken configuration may raise nearly anything inside Keras; none of it is the reader's fault
        text = " ".join(str(error).split())[:300]
        raise InputError(f"{path} is no readable .keras file ({type(error).__name__}: {text})") from error


def _check_members(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .keras file: it is no zip archive")
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
        if sorted(names) != sorted(MEMBERS):
            shown = ", ".join(repr(name) for name in names[:5])
            raise InputError(f"{path} holds {shown}; a .keras file that is read here holds {', '.join(MEMBERS)}")
        for info in archive.infolist():
            limit = _LARGEST_TEXT if info.filename.endswith(".json") else 4 * size + 2**20
            if info.file_size > limit:
                raise InputError(f"{path}: {info.filename} would unpack to {info.file_size:,} bytes")


def _config(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive, archive.open("config.json") as member:
        return json.loads(member.read(_LARGEST_TEXT + 1))


def _numbers(path: Path) -> int:
    """Returns how many numbers the weights file holds, after refusing what lies outside it."""
    import h5py

    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as member, h5py.File(member, "r") as file:
        count, waiting, seen = 0, [file], set()
        while waiting:
            group = waiting.pop()
            for key in group:
                link, item = group.get(key, getlink=True), None
                if isinstance(link, h5py.HardLink):
                    item = group[key]
                if isinstance(item, h5py.Group) and h5py.h5o.get_info(item.id).addr not in seen:
                    seen.add(h5py.h5o.get_info(item.id).addr)
                    waiting.append(item)
                elif isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external:
                    if item.nbytes > item.id.get_storage_size():
                        raise InputError(f"{path}: {item.name} declares {item.nbytes:,} bytes and holds fewer")
                    count += item.size
                else:
                    raise InputError(f"{path}: {group.name}/{key} in the weights is a link or no plain array")
        return count


def _check_config(root: Any, path: Path) -> None:
    """Walks the configuration without recursion; what is not compiled is not read either."""
    if not isinstance(root, dict) or not isinstance(root.get("config"), dict):
        raise InputError(f"{path}: its config.json describes no model")
    waiting: list[Any] = [{**root, "compile_config": None}]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            if "class_name" in value:
                _check_object(value, path)
            for key in ("batch_shape", "input_shape"):
                _check_shape(value.get(key), path)


def _check_object(value: dict[str, Any], path: Path) -> None:
    name, module, registered = (value.get(key) for key in ("class_name", "module", "registered_name"))
    if name in _PLAIN:
        return
    if name == "function":
        known = keras.saving.get_registered_object(str(value.get("config")))
        if known is not None and module in (None, "builtins"):
            return
    elif isinstance(registered, str) and keras.saving.get_registered_object(registered) is not None:
        if name not in FORBIDDEN:
            return
    elif name not in FORBIDDEN and _is_kerases(name, module):
        return
    raise InputError(
        f"{path} wants {module or 'an unnamed module'}.{name}; only registered classes and layers of Keras that run no "
        "code of the file are loaded: build the model in Python and read its weights with dlkit.models.load_weights"
    )


def _is_kerases(name: Any, module: Any) -> bool:
    """Tells whether Keras itself has a class of that name which describes a model, without importing anything."""
    if not isinstance(name, str) or not isinstance(module, str) or not module.startswith((*_MODULES, *_INNER)):
        return False
    if module not in _MODULES and not module.startswith(_INNER):
        return False
    found = getattr(sys.modules.get(module), name, None)
    kinds = (keras.Operation, keras.Initializer, keras.Regularizer, keras.constraints.Constraint, keras.DTypePolicy)
    return isinstance(found, type) and issubclass(found, kinds)


def _check_shape(shape: Any, path: Path) -> None:
    if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape if side is not None):
        return
    sides = [side for side in shape if side is not None]
    widest = _WIDEST_ROW if len(shape) <= 2 else _WIDEST
    if any(side > widest or side < 0 for side in sides):
        raise InputError(f"{path}: the shape {shape} in its configuration is none of a picture or a table")


@contextlib.contextmanager
def _at_most(numbers: int, path: Path) -> Iterator[None]:
    """Stops the building of a model when its layers ask for more weights than the file has."""
    left = numbers
    right = keras.layers.Layer.add_weight

    def counted(self: Any, shape: Any = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= math.prod(shape) if shape else 1
        if left < 0:
            raise InputError(f"{path}: the configuration describes more weights than the file holds ({numbers:,})")
        return right(self, shape, *args, **kwargs)

    with _lock:
        keras.layers.Layer.add_weight = counted
        try:
            yield
        finally:
            keras.layers.Layer.add_weight = right
