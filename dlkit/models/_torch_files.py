"""Reads PyTorch's weight files and safetensors without running anything that is in them.

A PyTorch file is a pickle, which can call any function. The reader here admits ordered dictionaries and tensors and
refuses every other name before it is called; sizes are compared with the file before memory is taken.
"""

import collections
import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dlkit._errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 64 * 2**20
_TYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_SAFE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_SAFE.update({"I8": "i1", "U8": "u1", "BOOL": "?"})


class _Sealed:
    """An object that the pickle made and may not change afterwards, or its checks would be void."""

    def __setstate__(self, state: Any) -> None:
        raise InputError("the file changes a tensor after making it")


class _Storage(_Sealed):
    """A block of numbers whose bytes may be read later than the tensors that view it."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count, self.content = kind, count, b""

    @property
    def size(self) -> int:
        return self.count * (2 if self.kind == "bfloat16" else np.dtype(self.kind).itemsize)

    def array(self) -> np.ndarray:
        return _numbers(self.content, self.kind)


class _Tensor(_Sealed):
    """A view of a storage; `array()` after the bytes are there."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        ok = isinstance(storage, _Storage) and all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
        if not ok or len(size) != len(stride):
            raise InputError("the file holds a tensor that is no view of a storage")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if math.prod(size) and (last >= storage.count or math.prod(size) > storage.count):
            raise InputError(f"the file declares a tensor of shape {tuple(size)} over {storage.count} numbers")
        self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)

    def array(self) -> np.ndarray:
        flat = self.storage.array()[self.offset :]
        if not math.prod(self.size):
            return np.zeros(self.size, flat.dtype)
        strides = [s * flat.itemsize for s in self.stride]
        return np.array(np.lib.stride_tricks.as_strided(flat, self.size, strides))


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Reader(pickle.Unpickler):
    """Unpickles ordered dictionaries, tensors and plain values, and nothing else."""

    def __init__(self, file: BinaryIO, storage: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _Tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module in ("torch", "torch.cuda") and name in _TYPES:
            return _TYPES[name]
        if (module, name) == ("torch", "Size"):
            return tuple
        raise InputError(
            f"the file wants to load {module}.{name}, and only tensors in dictionaries are read; save "
            "model.state_dict() in PyTorch and load that"
        )

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a .pth, .pt, .th or .bin file by name.

    Raises:
        InputError: the file is broken, wants to load anything but tensors, or declares more than it holds.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = _read_zip(file) if zipped else _read_legacy(file, os.fstat(file.fileno()).st_size)
        return flat_tensors(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:
        # a broken pickle may raise nearly anything; none of it is the reader's fault
        raise InputError(f"{path} is no readable PyTorch file ({type(error).__name__}: {error})") from None


def _read_zip(file: BinaryIO) -> Any:
    """Returns the content of the zip format of PyTorch 1.6 and later."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        main = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(main) != 1:
            raise InputError("the archive holds no data.pkl: it is no PyTorch file")
        root = main[0].removesuffix("data.pkl")
        if f"{root}byteorder" in members and _member(archive, members[f"{root}byteorder"], 16) != b"little":
            raise InputError("the file was written on a big-endian machine")
        made: dict[str, _Storage] = {}

        def storage(pid: Any) -> _Storage:
            _, kind, key, _, count = pid[:5]
            name = f"{root}data/{key}"
            if name not in members:
                raise InputError(f"the storage {key!r} is missing")
            if name not in made:
                made[name] = _new_storage(kind, count, members[name].file_size)
                made[name].content = _member(archive, members[name], made[name].size)
            return made[name]

        return _Reader(io.BytesIO(_member(archive, members[main[0]], _LARGEST_PICKLE)), storage).load()


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, largest: int) -> bytes:
    """Returns a member's bytes; PyTorch never compresses, so a compressed one may be a bomb."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise InputError(f"{info.filename} is compressed, which PyTorch's files never are")
    if archive.fp is not None and info.file_size > os.fstat(archive.fp.fileno()).st_size:
        raise InputError(f"{info.filename} declares {info.file_size:,} bytes, more than the file has")
    if info.file_size > largest:
        raise InputError(f"{info.filename} has {info.file_size:,} bytes, at most {largest:,} are expected")
    return archive.read(info)


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """Returns the content of the format before PyTorch 1.6: five pickles, then the storages' bytes."""
    made: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        _, kind, key, _, count, *view = pid
        if view and view[0] is not None:
            raise InputError("the file holds views of storages, as PyTorch before 0.4 wrote them; save it again")
        if key not in made:
            made[key] = _new_storage(kind, count, size)
        return made[key]

    if _Reader(file, storage).load() != _MAGIC:
        raise InputError("it is no PyTorch file")
    _Reader(file, storage).load()  # protocol
    if not _Reader(file, storage).load().get("little_endian", True):
        raise InputError("the file was written on a big-endian machine")
    content = _Reader(file, storage).load()
    keys = _Reader(file, storage).load()
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        if key not in made or made[key].count != count:
            raise InputError(f"the storage {key!r} has another length than declared")
        made[key].content = file.read(made[key].size)
        if len(made[key].content) != made[key].size:
            raise InputError("the file ends in the middle of a storage")
    return content


def _new_storage(kind: Any, count: Any, available: int) -> _Storage:
    if kind not in _TYPES.values() or not isinstance(count, int) or count < 0:
        raise InputError(f"unknown storage of {kind!r}")
    storage = _Storage(kind, count)
    if storage.size > available:
        raise InputError(f"the file declares a storage of {storage.size:,} bytes and has {available:,}")
    return storage


def flat_tensors(content: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict, which may lie in a dictionary, under a common prefix such as "module."."""
    for key in ("state_dict", "model", "net", "model_state_dict", "state_dict_ema", "params"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise InputError(f"the file holds a {type(content).__name__} instead of a dictionary of tensors")
    tensors = {str(k): v.array() for k, v in content.items() if isinstance(v, _Tensor)}
    if not tensors:
        raise InputError("the file holds no tensors")
    return strip_prefix(tensors)


def strip_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes what wrappers put in front of every name."""
    for prefix in ("module.", "model.", "_orig_mod.", "module."):
        if all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a .safetensors file by name.

    Raises:
        InputError: the header is broken, or a tensor lies outside the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _LARGEST_PICKLE):
            raise InputError(f"{path} is no safetensors file: its header would have {length:,} bytes")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no safetensors file: {type(error).__name__} in its header") from None
        tensors, start = {}, 8 + length
        for name, entry in header.items() if isinstance(header, dict) else []:
            if name == "__metadata__":
                continue
            try:
                kind, shape, (begin, end) = _SAFE[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
                count = _Storage(kind, math.prod(shape)).size
                fits = all(n >= 0 for n in shape) and begin >= 0 and begin + count == end <= size - start
            except (KeyError, TypeError, ValueError):
                raise InputError(f"{path}: the entry of {name!r} in the header is broken") from None
            if not fits:
                raise InputError(f"{path}: {name!r} lies outside the file")
            file.seek(start + begin)
            tensors[name] = _numbers(file.read(count), kind).reshape(shape)
    return strip_prefix(tensors)


def _numbers(content: bytes, kind: str) -> np.ndarray:
    if kind == "bfloat16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(content, kind)
