"""What the command `dlkit doctor` finds: versions, devices, arithmetic, and what is not installed."""

import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from packaging.requirements import Requirement

import dlkit
from dlkit._commands import facts, say
from dlkit._errors import InputError
from dlkit.train.precision import Machine, has_bfloat16
from dlkit.train.tasks import check_backend

_FOR = {  # what an extra is for
    "onnx": "export to ONNX", "openvino": "export to OpenVINO", "litert": "export to LiteRT", "serve": "dlkit serve",
    "optuna": "Optuna's samplers", "ray": "searches on a Ray cluster", "docs": "building the docs",
    "backends": "layers and models on JAX and torch",
    "test": "running the tests", "dev": "linters and types", "peers": "parity tests", "bench": "benchmarks",
}  # fmt: skip


def show(as_json: bool) -> None:
    """Prints what is found; a requirement of dlkit that is not met is named with the command that mends it."""
    found = examine()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    facts("versions", found["versions"])
    facts("machine", found["machine"])
    facts("extras", found["extras"])
    for problem in found["problems"]:
        say(f"problem: {problem}")
    if not found["problems"]:
        say("no problem found")


def examine() -> dict[str, Any]:
    """Returns versions, machine, extras (installed, or the command that installs them) and problems."""
    needed, extras = _requirements()
    problems = [f"{text}: pip install {text!r}" for text in needed if not _met(Requirement(text))]
    try:
        check_backend()
    except InputError as error:
        problems.append(str(error))
    names = dict.fromkeys(Requirement(text).name for text in needed)
    return {
        "versions": {"python": platform.python_version(), "dlkit": dlkit.__version__}
        | {name: _version(name) or "missing" for name in names},
        "machine": _machine(),
        "extras": {
            extra: "installed" if not (missing := [r for r in texts if not _met(Requirement(r))])
            else f"{_FOR.get(extra, extra)}: {', '.join(Requirement(r).name for r in missing)} missing; "
            f'pip install "dlkit[{extra}]"'
            for extra, texts in extras.items()
        },
        "problems": problems,
    }  # fmt: skip


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """What dlkit's own metadata ask for: (always, extra -> texts)."""
    always: list[str] = []
    extras: dict[str, list[str]] = {}
    for text in metadata.requires("dlkit") or []:
        need, _, marker = text.partition(";")
        extra = marker.partition("extra ==")[2].strip().strip("\"'")
        (extras.setdefault(extra, []) if extra else always).append(need.strip())
    return always, extras


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _met(need: Requirement) -> bool:
    held = _version(need.name)
    return held is not None and need.specifier.contains(held, prereleases=True)


def _machine() -> dict[str, str]:
    machine = Machine.this()
    gpus = [tf.config.experimental.get_device_details(d).get("device_name", d.name) for d in _gpus()]
    data = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    place = next(folder for folder in (data, *data.parents) if folder.exists())
    return {
        "system": f"{platform.system()} {platform.machine()}, {sys.platform}",
        "processors": f"{machine.cpus} for this process of {machine.counted}; TensorFlow starts {_threads()} threads",
        "memory": _memory(),
        "GPUs": ", ".join(gpus) or "none",
        "bfloat16": "in hardware: precision='auto' uses it" if has_bfloat16() else "not in hardware: float32",
        "Keras backend": keras.backend.backend(),
        "data sets": f"{data} ({shutil.disk_usage(place).free / 2**30:.0f} GiB free)",
    }


def _gpus() -> list[Any]:
    return list(tf.config.list_physical_devices("GPU"))


def _threads() -> int:
    return tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{pages * size / 2**30:.0f} GiB"
