"""What can be set about a server: one frozen value, checked before anything is loaded."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dlkit._errors import InputError, require, unknown

MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """Settings of the local server.

    Args:
        directory: a folder of models (`NAME/VERSION`), one model (`VERSION` folders), or one version.
        host: address to listen on; the default is this machine only.
        port: of HTTP, 0 for a free one.
        grpc_port: of gRPC, 0 for a free one, None for none.
        max_batch: rows that run together at most; 1 switches batching off. A larger request is split.
        batch_timeout: seconds that a request waits for others; a lone client never waits.
        workers: batches of one version that run at the same time. TensorFlow itself uses all cores for one.
        max_queue: rows that wait per version at most; more are answered 503.
        max_body: bytes of a request at most; more is 413. 16 MiB hold a camera's picture in base64.
        max_held: bytes of all requests in work at most; more is 503.
        max_pixels: width times height of a picture at most, read from its header: 413. A batch decodes at most
            as many pixels together.
        max_connections: HTTP connections at most; more are answered 503.
        timeout: seconds until a request that is not answered yet gets 504.
        read_timeout: seconds that a client may take for head and body of a request; then it is cut off.
        versions: newest versions of a model served at the same time.
        poll: seconds between two looks at the folder; 0 never looks again.
        load_timeout: seconds that trying a new version may take before it is refused.
        grace: seconds for running requests after SIGTERM or Ctrl-C.

    >>> Options.of("no/such/folder")
    Traceback (most recent call last):
    ...
    dlkit._errors.InputError: no/such/folder is no folder; expected saved_models/ with NAME/VERSION in it
    """

    directory: Path
    host: str = "127.0.0.1"
    port: int = 8501
    grpc_port: int | None = 8500
    max_batch: int = 32
    batch_timeout: float = 0.002
    workers: int = 1
    max_queue: int = 1024
    max_body: int = 16 * MIB
    max_held: int = 256 * MIB
    max_pixels: int = 32_000_000
    max_connections: int = 1024
    timeout: float = 30.0
    read_timeout: float = 10.0
    versions: int = 1
    poll: float = 1.0
    load_timeout: float = 300.0
    grace: float = 30.0

    @classmethod
    def of(cls, directory: str | os.PathLike[str], **given: Any) -> "Options":
        """Returns the checked options.

        Raises:
            InputError: an unknown option, a value out of range, no folder, or the extra `serve` is missing.
        """
        folder = Path(directory)
        known = [field.name for field in fields(cls) if field.name != "directory"]
        for name in given:
            if name not in known:
                raise unknown("option", name, known)
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; expected saved_models/ with NAME/VERSION in it")
        options = cls(folder, **given)
        for name, (low, high) in _RANGES.items():
            _in_range(name, getattr(options, name), low, high)
        for package in ("starlette", "uvicorn", "prometheus_client", "tensorflow_serving"):
            if importlib.util.find_spec(package) is None:
                raise require(package, "serve", "dlkit serve")
        return options

    @staticmethod
    def parsed(texts: Mapping[str, str]) -> dict[str, int | float]:
        """Returns settings of the command line as numbers.

        Raises:
            InputError: an unknown one, or no number.
        """
        for name in texts:
            if name in ("port", "grpc_port"):
                raise InputError(f"--set {name}={texts[name]}: it has an option of its own, --{name.replace('_', '-')}")
            if name not in _RANGES:
                raise unknown("setting", name, _RANGES)
        try:
            return {name: (int if name in _WHOLE else float)(text) for name, text in texts.items()}
        except ValueError as error:
            raise InputError(f"{dict(texts)}: {error}; expected numbers, such as max_batch=64") from error


_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535), "grpc_port": (0, 65535), "max_batch": (1, 65536), "batch_timeout": (0, 60), "workers": (1, 256),
    "max_queue": (1, 1 << 30), "max_body": (1, 1 << 31), "max_held": (1, 1 << 40), "max_pixels": (1, 1 << 40),
    "max_connections": (1, 1 << 20), "timeout": (0.001, 86400), "read_timeout": (0.001, 86400), "versions": (1, 1000),
    "poll": (0, 86400), "load_timeout": (1, 86400), "grace": (0, 86400),
}  # fmt: skip
_WHOLE = {field.name for field in fields(Options) if field.type in ("int", int)}


def _in_range(name: str, value: Any, low: float, high: float) -> None:
    if name == "grpc_port" and value is None:
        return
    whole = name in _WHOLE or name == "grpc_port"
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{name}={value!r}; expected {kind} from {low} to {high}")
