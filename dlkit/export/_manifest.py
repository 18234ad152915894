"""The papers of an export: manifest, labels, model card."""

import datetime
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import dlkit
from dlkit import _files
from dlkit._errors import InputError
from dlkit.export._report import Report

FORMAT = 1
_LARGEST = 64 * 2**20  # bytes of a manifest that is read
_KINDS: dict[str, Any] = {
    "task": str,
    "labels": list,
    "top": int,
    "temperature": (int, float),
    "precision": str,
    "form": str,
    "model": dict,
    "signatures": dict,
    "preprocess": (dict, type(None)),
    "quantize": (str, type(None)),
}
MANIFEST, VERIFICATION, CARD = "manifest.json", "verification.json", "README.md"
SAMPLES = "assets.extra/verification.npz"
_ESCAPES = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {sign: f"\\{sign}" for sign in "\\`*_{}[]()#|!"})


def weights_record(variables: Iterable[Any]) -> dict[str, Any]:
    """Returns number, bytes and SHA-256 of the weights, in their order, with shapes and types."""
    digest, count, size = hashlib.sha256(), 0, 0
    for variable in variables:
        value = np.ascontiguousarray(variable)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
        count += value.size
        size += value.nbytes
    return {"parameters": count, "bytes": size, "sha256": digest.hexdigest()}


def preprocess_record(preprocess: Any) -> dict[str, Any] | None:
    """Returns class and configuration, from which `verify` rebuilds the evaluation pipeline."""
    if preprocess is None:
        return None
    config = preprocess.get_config() if hasattr(preprocess, "get_config") else {}
    return {"class": type(preprocess).__name__, "config": config}


def versions() -> dict[str, str]:
    """Returns the versions that made the export."""
    from importlib.metadata import version

    return {
        "dlkit": dlkit.__version__,
        "tensorflow": tf.__version__,
        "keras": version("keras"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def read(folder: Path) -> dict[str, Any]:
    """Returns the manifest of an export.

    Raises:
        InputError: there is none, it is no JSON, or a newer dlkit wrote it.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made = manifest["format"]
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no {MANIFEST}; only an export by dlkit.export.saved_model can be read here"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); export the model again") from error
    if made != FORMAT:
        raise InputError(f"{path} has format {made!r}, this dlkit reads {FORMAT}; use the dlkit that wrote it")
    manifest = {"form": "saved_model", "quantize": None, "calibration": None, "temperature": 1.0, **manifest}
    wrong = [key for key, kind in _KINDS.items() if not isinstance(manifest.get(key), kind)]
    if not wrong:
        model, signatures = manifest["model"], manifest["signatures"].values()
        wrong += [f"model.{key}" for key in ("bytes", "gives") if key not in model]
        wrong += ["labels"] * any(not isinstance(label, str) for label in manifest["labels"])
        wrong += ["signatures"] * any(not isinstance(each, dict) or not each.get("inputs") for each in signatures)
        wrong += ["task"] * (manifest["task"] not in ("classification", "regression", "box"))
        wrong += ["precision"] * (manifest["precision"] not in ("float32", "bfloat16"))
    if wrong:
        raise InputError(f"{path} is damaged ({', '.join(wrong)}); export the model again")
    return manifest


def write_papers(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the class names and the manifest."""
    if manifest["labels"]:
        _files.write_text(folder / "assets" / "labels.txt", "\n".join(manifest["labels"]) + "\n")
    _files.write_json(folder / MANIFEST, manifest)


def now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def model_card(manifest: Mapping[str, Any], report: Report) -> str:
    """Returns the model card: what it is, what goes in and out, how it was checked."""
    model, about = manifest["model"], manifest["about"]
    rows = [
        ("Task", manifest["task"]),
        ("Architecture", model["name"]),
        ("Parameters", f"{model['parameters']:,}"),
        ("Exported", manifest["created"]),
        ("Form", manifest["form"]),
        ("Optimised", f"{manifest['optimize'] or 'no'}, {manifest['quantize'] or manifest['precision']}"),
        ("Temperature", _temperature(manifest)),
        ("Weights (SHA-256)", model["sha256"]),
        ("Made with", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())),
    ]
    lines = [f"# {_plain(manifest['name'])}, version {manifest['version']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_plain(value)} |" for name, value in rows]
    for title in sorted(about):
        lines += ["", f"## {_plain(title).capitalize()}", "", *_entries(about[title])]
    lines += ["", "## Inputs and outputs", "", "| signature | inputs | outputs |", "|---|---|---|"]
    for name, signature in manifest["signatures"].items():
        inputs, outputs = (
            ", ".join(f"`{key}` {_type(value)}" for key, value in signature[side].items())
            for side in ("inputs", "outputs")
        )
        lines.append(f"| `{name}` | {inputs} | {outputs} |")
    lines += ["", *_preprocessing(manifest), *_labels(manifest["labels"]), *_limits(manifest), *_verification(report)]
    return "\n".join(lines) + "\n"


def _preprocessing(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest["preprocess"]:
        return ["No preprocessing is inside: the network takes tensors.", ""]
    config = manifest["preprocess"]["config"]
    return ["Preprocessing is inside the graph:", "", *_entries(config), ""]


def _labels(labels: Sequence[str]) -> list[str]:
    if not labels:
        return []
    shown = ", ".join(_plain(label) for label in labels[:50])
    more = f" and {len(labels) - 50} more in `assets/labels.txt`" if len(labels) > 50 else ""
    return [f"## {len(labels)} classes", "", shown + more, ""]


def _temperature(manifest: Mapping[str, Any]) -> str:
    record = manifest["calibration"]
    if record is None:
        return f"{manifest['temperature']:g}"
    before, after = record["expected_calibration_error"]
    return (
        f"{manifest['temperature']:g}, chosen on {record['samples']} samples of {record['source']}: expected "
        f"calibration error {before:.4f} before, {after:.4f} after"
    )


def _limits(manifest: Mapping[str, Any]) -> list[str]:
    """What a reader must not conclude from the answers."""
    about = {
        "classification": "Every input is answered with one of the classes above, also one that shows none of them.",
        "regression": "Every input is answered with a number, also one unlike the training data.",
        "box": "Every picture is answered with one box, also one that shows no object or several.",
    }[manifest["task"]]
    known = [name for name in ("recipe", "metrics", "data") if name not in manifest["about"]]
    unknown = f" Not recorded by whoever exported it: {', '.join(known)}." if known else ""
    return ["## Limits", "", f"{about} How well it does outside its test data is unknown.{unknown}", ""]


def _verification(report: Report) -> list[str]:
    state = "passed" if report.ok else "FAILED"
    accuracy = "" if report.accuracy is None else f" Accuracy on the labelled sample: {100 * report.accuracy:.2f} %."
    return [
        "## Verification",
        "",
        f"{len(report.checks)} checks {state} in a fresh process with TensorFlow alone, {report.samples} samples, "
        f"largest difference from the evaluation pipeline {report.max_difference:.3g}.{accuracy} "
        "Details: `verification.json`.",
    ]


def _entries(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"- {_plain(key)}: {_plain(item)}" for key, item in value.items()]
    return [_plain(value)]


def _type(value: Sequence[Any]) -> str:
    dtype, shape = value
    return f"{dtype} ({', '.join('any' if side is None else str(side) for side in shape or [])})"


def _plain(value: Any) -> str:
    """Text that cannot become markup: a label or a recipe is data, never HTML, links or tables."""
    return " ".join(str(value).split()).translate(_ESCAPES)
