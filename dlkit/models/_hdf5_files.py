"""Reads the weights in Keras' files (.h5, .weights.h5, .keras) by layer name, without building what they describe."""

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dlkit._errors import InputError

# a layer's weights in the order in which Keras 3 numbers them, by their count and the first one's rank
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_LARGEST_CONFIG = 64 * 2**20

Layers = dict[str, dict[str, np.ndarray]]


def read_keras(path: Path) -> tuple[Layers, dict[str, dict[str, Any]]]:
    """Returns weights by layer name and weight name, and the layers' configurations where the file has them.

    Raises:
        InputError: the file is broken, points outside itself, or declares more than it holds.
    """
    import h5py

    try:
        if zipfile.is_zipfile(path):
            content, config = _from_zip(path)
            with h5py.File(io.BytesIO(content), "r") as file:
                return _read(file, len(content)), _configs(config)
        with h5py.File(path, "r") as file:
            raw = file.attrs.get("model_config")
            return _read(file, path.stat().st_size), _configs(json.loads(raw) if raw is not None else {})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, RecursionError) as error:
        raise InputError(f"{path} is no readable Keras file ({type(error).__name__}: {error})") from None


def _from_zip(path: Path) -> tuple[bytes, Any]:
    """Returns the weights' bytes and the configuration of a .keras archive; nothing is written to the disk."""
    with zipfile.ZipFile(path) as archive:
        found = {}
        for name in ("model.weights.h5", "config.json"):
            try:
                info = archive.getinfo(name)
            except KeyError:
                raise InputError(f"the archive holds no {name}: it is no .keras file") from None
            limit = _LARGEST_CONFIG if name == "config.json" else 4 * path.stat().st_size + 2**20
            if info.file_size > limit:
                raise InputError(f"{name} would unpack to {info.file_size:,} bytes")
            with archive.open(info) as member:
                found[name] = member.read(limit + 1)
        return found["model.weights.h5"], json.loads(found["config.json"])


def _read(file: Any, size: int) -> Layers:
    if "layer_names" in file.attrs or "model_weights" in file:
        return _read_legacy(_group(file, "model_weights") if "model_weights" in file else file, size)
    layers: Layers = {}
    _walk(file, "", layers, size)
    if not layers:
        raise InputError("the file holds no weights of layers")
    return layers


def _read_legacy(root: Any, size: int) -> Layers:
    """Returns the layers of Keras 2's format: one group per layer, names in attributes."""
    layers: Layers = {}
    for layer in root.attrs["layer_names"]:
        name = layer.decode() if isinstance(layer, bytes) else str(layer)
        group = _group(root, name)
        for weight in group.attrs["weight_names"]:
            key = weight.decode() if isinstance(weight, bytes) else str(weight)
            short = key.rsplit("/", 1)[-1].split(":")[0]
            layers.setdefault(name, {})[short] = _dataset(group, key, size)
    return layers


def _walk(group: Any, path: str, layers: Layers, size: int) -> None:
    """Collects every `vars` group of Keras 3's format under the layer's name, which is an attribute."""
    for key in group:
        if key == "optimizer":
            continue
        child = _group(group, key)
        if key == "vars":
            _collect(child, str(child.attrs.get("name", path)), layers, size)
        elif hasattr(child, "keys"):
            _walk(child, f"{path}/{key}", layers, size)


def _collect(group: Any, name: str, layers: Layers, size: int) -> None:
    arrays = {key: _dataset(group, key, size) for key in group}
    if not arrays:
        return
    if not all(key.isdigit() for key in arrays):  # a looped stage keeps its blocks' weights by name
        for key, value in arrays.items():
            layer, _, weight = key.partition(".")
            layers.setdefault(layer, {})[weight or key] = value
        return
    ordered = [arrays[key] for key in sorted(arrays, key=int)]
    if ordered[0].ndim >= 2:
        roles: tuple[str, ...] = ("kernel", "bias")
    else:
        roles = _NORM
    if name in layers:
        raise InputError(f"two layers bear the name {name!r}")
    layers[name] = dict(zip((*roles, *map(str, range(9))), ordered, strict=False))


def _group(parent: Any, name: str) -> Any:
    """Returns a member after refusing links that leave the file."""
    import h5py

    for part in name.split("/"):
        link = parent.get(part, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{name} is missing or a link out of its place ({type(link).__name__})")
        parent = parent[part]
    return parent


def _dataset(group: Any, name: str, size: int) -> np.ndarray:
    """Returns an array after comparing what it declares with what the file holds."""
    data = _group(group, name)
    if not hasattr(data, "shape") or data.is_virtual or data.external:
        raise InputError(f"{name} is no array inside the file")
    declared = math.prod(data.shape) * data.dtype.itemsize
    if declared > size or data.id.get_storage_size() < declared:
        raise InputError(
            f"{name} declares {declared:,} bytes and the file holds {data.id.get_storage_size():,} of them"
        )
    return np.asarray(data[()])


def _configs(model: Any) -> dict[str, dict[str, Any]]:
    """Returns the configuration of every layer of a functional model by name; empty where there is none."""
    try:
        return {entry["config"]["name"]: entry["config"] for entry in model["config"]["layers"]}
    except (KeyError, TypeError):
        return {}
