"""Finds an experiment, runs it, and writes what it found."""

import importlib
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import keras

import dlkit
from dlkit._errors import InputError, unknown
from dlkit._files import write_bytes, write_json, write_text
from dlkit.lectures._lab import Lab

# in the order of the lectures; the names are those of the modules
_NAMES = (
    "backprop", "activations", "descent", "schedules", "initialization", "convolution", "pooling", "batch_norm",
    "norms", "regularization", "augmentation", "architectures", "degradation", "ensembles", "gated", "localization",
)  # fmt: skip


def names() -> list[str]:
    """Returns the names of the experiments, in the order of the lectures."""
    return list(_NAMES)


def load(name: str) -> ModuleType:
    """Returns the script: TITLE, RUSSIAN (the lecture's title), WHERE (lecture, section), FORMULA and experiment(lab).

    Raises:
        InputError: an unknown name, with the nearest one.
    """
    if name not in _NAMES:
        raise unknown("experiment", name, _NAMES)
    return importlib.import_module(f"dlkit.lectures.{name}")


def run(name: str, *, quick: bool = False, data: str | os.PathLike[str] | None = None, out: str = "") -> Path:
    """Runs one experiment and writes its figures, result.md and result.json.

    Args:
        name: one of `names()`.
        quick: a small run of at most 20 s on two cores; effects are measured, and not judged.
        data: CIFAR-10 as a folder with train/ and test/, one subfolder per class; full runs need it where an
            experiment trains on photographs.
        out: the folder of the result; empty takes runs/lectures/NAME.

    Returns:
        The folder of the result.

    Raises:
        InputError: an unknown name, or data that are missing.
    """
    script = load(name)
    if data is not None and not Path(data).is_dir():
        raise InputError(f"--data must be a folder with train/ and test/, got {os.fspath(data)!r}")
    folder = Path(out or Path("runs", "lectures", name))
    keras.utils.set_random_seed(0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(quick, None if data is None else Path(data), Path(scratch))
        script.experiment(lab)
    result = {
        "name": name, "title": script.TITLE, "russian": script.RUSSIAN, "where": script.WHERE,
        "formula": script.FORMULA, "quick": quick,
        "command": f"dlkit lectures run {name}" + (" --quick" if quick else " --data FOLDER" if data else ""),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": f"{os.cpu_count()} cores, {_processor()}; dlkit {dlkit.__version__}, Keras {keras.__version__}",
        "claims": [asdict(claim) for claim in lab.claims],
        "tables": [{"caption": c, "header": h, "rows": r} for c, h, r in lab.tables],
        "figures": {f"{figure}.png": caption for figure, (_, caption) in lab.figures.items()},
    }  # fmt: skip
    for figure, (png, _) in lab.figures.items():
        write_bytes(folder / f"{figure}.png", png)
    write_text(folder / "result.md", text(result))
    write_json(folder / "result.json", result)
    return folder


def text(result: dict, level: int = 1, folder: str = "") -> str:
    """Returns a result as Markdown; `folder` is where its figures lie."""
    lines = [
        f"{'#' * level} {result['title']}", "", f"*{result['russian']}*. {result['where']}.", "",
        "```text", result["formula"], "```", "",
        "| the lecture says | measured | |", "|---|---|---|",
        *(f"| {c['says']} | {c['measured']} | {verdict(c, result['quick'])} |" for c in result["claims"]), "",
    ]  # fmt: skip
    for table in result["tables"]:
        lines += [f"{table['caption']}:", "", f"| {' | '.join(table['header'])} |", "|---" * len(table["header"]) + "|"]
        lines += [*(f"| {' | '.join(row)} |" for row in table["rows"]), ""]
    for figure, caption in result["figures"].items():
        lines += [f"![{caption}]({Path(folder, figure).as_posix()})", "", caption, ""]
    lines += [f"`{result['command']}`: {result['seconds']:.0f} s on {result['machine']}.", ""]
    return "\n".join(lines)


def verdict(claim: dict, quick: bool) -> str:
    """Returns the last column of a claim's row."""
    if quick and not claim["exact"]:
        return "quick run: not judged"
    return "agrees" if claim["agrees"] else "**does not reproduce**"


def read(folder: str | os.PathLike[str]) -> dict:
    """Returns result.json of a folder that `run` wrote."""
    return json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
