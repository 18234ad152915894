"""JSON to arrays and back, as TensorFlow Serving's REST interface defines it."""

import base64
import binascii
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlkit.export.server._errors import ServeError, invalid
from dlkit.export.server._loaded import Arrays, Signature

MAX_RANK = 32
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Request:
    """A parsed body: the signature, its inputs, and whether it came in rows (`instances`) or columns (`inputs`)."""

    signature: Signature
    inputs: Arrays
    rows: bool


def parse(body: bytes, signature_of: Callable[[str], Signature], most: int = 1 << 30) -> Request:
    """Reads the body of a predict request with at most `most` rows.

    Raises:
        ServeError: it is no JSON, has the wrong form, or its values do not fit the signature; 400 with the reason.
    """
    value = parse_object(body)
    name = value.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"'signature_name' is {_kind(name)}; expected a string")
    signature = signature_of(name)
    if ("instances" in value) == ("inputs" in value):
        both = "both 'instances' and 'inputs'" if "inputs" in value else "neither 'instances' nor 'inputs'"
        raise invalid(f"the request has {both}; expected one of them: rows or columns")
    if "instances" in value:
        columns = _of_rows(value["instances"], signature, most)
    else:
        columns = _of_columns(value["inputs"], signature)
    inputs = {key: array(columns[key], spec, key) for key, spec in signature.inputs.items()}
    return Request(signature, inputs, "instances" in value)


def parse_object(body: bytes) -> dict[str, Any]:
    """Returns the JSON object in a body."""
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise invalid(f"the body is {_kind(value)}; expected an object with 'instances' or 'inputs'")
    return value


def _of_rows(rows: Any, signature: Signature, most: int) -> dict[str, Any]:
    if not isinstance(rows, list):
        raise invalid(f"'instances' is {_kind(rows)}; expected a list with one value per row")
    if not rows:
        raise invalid("no values in 'instances'; expected at least one row")
    if len(rows) > most:
        raise invalid(f"{len(rows)} rows in one request; this server takes at most {most}")
    if not isinstance(rows[0], dict) or _is_binary(rows[0]):
        return {_only(signature, "'instances'"): rows}
    names = set(signature.inputs)
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != names:
            found = sorted(row) if isinstance(row, dict) else _kind(row)
            raise invalid(f"row {number} of 'instances' is {found}; expected an object with {sorted(names)}")
    return {name: [row[name] for row in rows] for name in names}


def _of_columns(columns: Any, signature: Signature) -> dict[str, Any]:
    if not isinstance(columns, dict) or _is_binary(columns):
        return {_only(signature, "'inputs'"): columns}
    if columns.keys() != set(signature.inputs):
        raise invalid(f"'inputs' has {sorted(columns)}; expected {sorted(signature.inputs)}")
    return columns


def _only(signature: Signature, key: str) -> str:
    if len(signature.inputs) != 1:
        raise invalid(f"{key} has no names, but the signature has {sorted(signature.inputs)}; give objects with names")
    return next(iter(signature.inputs))


def array(value: Any, spec: Any, name: str) -> np.ndarray:
    """Returns a JSON value as an array of the type and shape that `spec` asks for."""
    kind = spec.dtype.as_numpy_dtype
    found = _strings(value, name) if spec.dtype.name == "string" else _numbers(value, np.dtype(kind), name)
    check_shape(found, spec, name)
    return found


def check_shape(found: np.ndarray, spec: Any, name: str) -> None:
    """Refuses an array whose shape the signature does not take."""
    if not spec.shape.is_compatible_with(found.shape):
        wanted = "(" + ", ".join("any" if side is None else str(side) for side in spec.shape) + ")"
        raise invalid(f"input '{name}' has the shape {found.shape}; expected {wanted}")


def _flat(value: Any, name: str) -> tuple[list[int], list[Any]]:
    """Returns the shape of nested lists and their leaves in order."""
    shape: list[int] = []
    level = [value]
    while level and list in (kinds := set(map(type, level))):
        lengths = set(map(len, level)) if len(kinds) == 1 else set()
        if len(lengths) != 1:
            raise invalid(f"input '{name}' is no regular array: its lists differ in length or depth")
        shape.append(lengths.pop())
        level = list(itertools.chain.from_iterable(level))
        if len(shape) > MAX_RANK:
            raise invalid(f"input '{name}' is nested more than {MAX_RANK} times")
    return shape, level


def _numbers(value: Any, dtype: np.dtype, name: str) -> np.ndarray:
    shape, leaves = _flat(value, name)
    allowed: tuple[type, ...] = (int, float)
    if dtype == np.bool_:
        allowed = (bool,)
    elif np.issubdtype(dtype, np.integer):
        allowed = (int,)
    for kind in set(map(type, leaves)).difference(allowed):
        wrong = next(leaf for leaf in leaves if type(leaf) is kind)
        raise invalid(f"input '{name}' has {_kind(wrong)}, {str(wrong)[:20]!r}; expected {dtype.name} throughout")
    try:
        with np.errstate(over="ignore"):
            found = np.array(leaves, np.float64 if float in allowed else dtype).reshape(shape)
            cast = found.astype(dtype)
    except OverflowError as error:
        raise invalid(f"input '{name}' has values beyond {dtype.name}") from error
    if float in allowed and np.isinf(cast).sum() != np.isinf(found).sum():
        raise invalid(f"input '{name}' has values beyond {dtype.name}")
    return cast


def _strings(value: Any, name: str) -> np.ndarray:
    """An array of bytes; a string is its UTF-8, {"b64": ...} is what it encodes."""
    shape, leaves = _flat(value, name)
    found = np.empty(len(leaves), object)
    for number, leaf in enumerate(leaves):
        found[number] = _bytes(leaf, name)
    return found.reshape(shape)


def _bytes(value: Any, name: str) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise invalid(f"input '{name}' has a string that is no valid Unicode") from error
    if not _is_binary(value):
        raise invalid(f"""input '{name}' has {_kind(value)}; expected a string or {{"b64": "..."}}""")
    text = value["b64"]
    if not isinstance(text, str):
        raise invalid(f"the value of 'b64' in input '{name}' is {_kind(text)}; expected a string")
    try:
        if text.endswith("=") or len(text) % 4 == 0:
            return base64.b64decode(text, validate=True)
        text = "".join(text.split())
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise invalid(f"the value of 'b64' in input '{name}' is not base64: {error}") from error


def _is_binary(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and "b64" in value


def encode(outputs: Arrays, rows: bool) -> bytes:
    """Returns the body of the answer, in rows or in columns; a single output loses its name."""
    columns = {name: plain(value, binary=name.endswith("_bytes")) for name, value in outputs.items()}
    if not rows:
        value = next(iter(columns.values())) if len(columns) == 1 else columns
        return dumps({"outputs": value})
    lengths = {value.shape[0] if value.ndim else None for value in outputs.values()}
    if None in lengths or len(lengths) != 1:
        raise ServeError(
            "INVALID_ARGUMENT", "the outputs differ in their number of rows; ask with 'inputs' instead of 'instances'"
        )
    if len(columns) == 1:
        return dumps({"predictions": next(iter(columns.values()))})
    names = list(columns)
    return dumps({"predictions": [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]})


def plain(value: np.ndarray, binary: bool = False) -> Any:
    """Returns an array as JSON values; strings are text unless `binary`."""
    if value.dtype != object:
        return (value if value.dtype.kind in "fiub" else value.astype(np.float32)).tolist()
    return _texts(value.tolist(), binary)


def _texts(value: Any, binary: bool) -> Any:
    if isinstance(value, list):
        return [_texts(item, binary) for item in value]
    content = value if isinstance(value, bytes) else str(value).encode()
    if not binary:
        try:
            return content.decode()
        except UnicodeDecodeError:
            pass  # JSON has no other way to hold it
    return {"b64": base64.b64encode(content).decode()}


def dumps(value: Any) -> bytes:
    """JSON in UTF-8; NaN and Infinity as TensorFlow Serving writes them."""
    return _ENCODER.encode(value).encode()


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
