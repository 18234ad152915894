"""The folder of a run: what it holds, who may write into it, and how to read it again.

recipe.json    recipe, preprocessing, classes, data fingerprint, versions: what makes the run this run
history.csv    a row per epoch
events/        the same for TensorBoard
checkpoints/   the newest states, each complete
best/          the weights of the best epoch, where a stopping criterion restores them
model.keras    the model as the last call of fit left it
summary.json   why the run ended, its best epoch and the figures of the saved model
"""

import contextlib
import csv
import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import keras
import tensorflow as tf

import dlkit
from dlkit._errors import InputError
from dlkit._files import write_bytes, write_json, write_text
from dlkit.data import Preprocess, Standardize
from dlkit.models._archive import read_model
from dlkit.train.recipe import Recipe

_WRITTEN = ("recipe.json", "events", "best", "checkpoints")  # before a run's first checkpoint is complete
_HALF_WRITTEN = re.compile(r"\.(recipe\.json|history\.csv|model\.keras|summary\.json|step_\d{10}\.ckpt)\..*tmp")


@dataclass(frozen=True)
class Run:
    """What a run directory holds: the trained model and everything needed to use, fine-tune or export it."""

    model: keras.Model
    preprocess: Preprocess | Standardize
    classes: tuple[str, ...] | None
    recipe: Recipe
    run_dir: Path


def load_run(run_dir: str | Path) -> Run:
    """Reads a run directory written by `fit`; what is in it is checked before Keras builds the model.

    Args:
        run_dir: the folder given to `fit`.

    Raises:
        InputError: no run there, one that was stopped before its first end, or a damaged recipe.json.

    Example: `run = load_run("runs/digits"); saved_model(run.model, run.preprocess, run.classes, "saved_models/digits")`
    """
    run_dir = Path(run_dir)
    if not (run_dir / "recipe.json").is_file():
        raise InputError(f"{run_dir} is no run directory: it has no recipe.json. fit(..., run_dir=...) writes one")
    if not (run_dir / "model.keras").is_file():
        raise InputError(f"the run in {run_dir} has not ended: call fit with the same arguments to continue it")
    held = _held(run_dir / "recipe.json")
    if missing := {"recipe", "preprocess", "classes"} - set(held):
        raise InputError(f"{run_dir}/recipe.json is damaged: it has no {', '.join(sorted(missing))}")
    kind: Any = Preprocess if "size" in held["preprocess"] else Standardize
    return Run(
        model=read_model(run_dir / "model.keras"),
        preprocess=kind.from_config(held["preprocess"]),
        classes=tuple(held["classes"]) if held["classes"] is not None else None,
        recipe=Recipe.from_dict(held["recipe"]),
        run_dir=run_dir,
    )


def _held(path: Path) -> dict[str, Any]:
    """Returns what a recipe.json holds."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); choose another run_dir") from None
    if not isinstance(held, dict):
        raise InputError(f"{path} is damaged (it holds no fields); choose another run_dir")
    return held


@contextlib.contextmanager
def locked(folder: Path, doing: str = "training") -> Iterator[None]:
    """Holds `folder` for one process; one that was made for it and stayed empty is removed again."""
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:  # the file is the other's: it stays
        raise InputError(f"another process is {doing} in {folder}; choose another folder or wait") from None
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows keeps the name of an open file
            (folder / ".lock").unlink(missing_ok=True)  # while it is held: a moment later it may be another's
        lock.release()
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def identity(model: Any, recipe: Recipe, train: Any, validation: Any, preprocess: Any) -> dict[str, Any]:
    """Returns what makes a run this run, as recipe.json holds it."""
    structure = [[type(layer).__name__, [tuple(w.shape) for w in layer.weights]] for layer in model.layers]
    return {
        "recipe": recipe.to_dict(),
        "preprocess": preprocess.get_config(),
        "classes": list(train.classes) if train.classes is not None else None,
        "data": _facts(train),
        "validation": None if validation is None else _facts(validation),
        "model": {"structure": hashlib.sha256(json.dumps(structure).encode()).hexdigest()[:16]},
        "versions": {"dlkit": dlkit.__version__, "keras": keras.__version__, "tensorflow": tf.__version__},
    }


def _facts(source: Any) -> dict[str, Any]:
    return {"name": source.name, "items": len(source), "fingerprint": source.fingerprint}


@contextlib.contextmanager
def claimed(run_dir: Path, identity: dict[str, Any], resume: bool, write: bool = True) -> Iterator[None]:
    """Makes the folder that of this run; an error in the block before the first checkpoint leaves it as it was.

    So a recipe that turns out not to fit, or data that cannot be read, can be mended and given to the same folder.
    What killed processes left half written is removed.

    Args:
        write: whether this process is the one that writes the folder.
    """
    before = {path.name for path in run_dir.iterdir()} if write else set()
    claim(run_dir, identity, resume, write)
    for folder in (run_dir, run_dir / "checkpoints", run_dir / "best") if write else ():
        for path in folder.glob(".*tmp"):
            if _HALF_WRITTEN.fullmatch(path.name):
                path.unlink(missing_ok=True)
    try:
        yield
    except Exception:
        if write and "recipe.json" not in before and not any(run_dir.glob("checkpoints/*.ckpt")):
            (run_dir / "recipe.json").unlink(missing_ok=True)
            for name in set(_WRITTEN) - before:
                shutil.rmtree(run_dir / name, ignore_errors=True)
        raise


def claim(run_dir: Path, identity: dict[str, Any], resume: bool, write: bool = True) -> None:
    """Writes recipe.json into a fresh folder (if `write`); compares it in one that holds a run."""
    path = run_dir / "recipe.json"
    if not path.exists():
        if write:
            write_json(path, identity)
        return
    if not resume:
        raise InputError(f"{run_dir} holds a run already; choose another run_dir, or resume=True to continue it")
    held, now = _held(path), json.loads(json.dumps(identity))
    # fields that came later have their defaults
    held["recipe"] = json.loads(json.dumps(Recipe().to_dict())) | (held.get("recipe") or {})
    parts = ["recipe", "preprocess", "data", "model"]
    if held.get("validation") and now.get("validation"):
        parts.append("validation")
    differences = [
        f"{part}.{key}: {_short((held.get(part) or {}).get(key))} there, {_short(value)} now"
        for part in parts
        for key, value in now[part].items()
        if (held.get(part) or {}).get(key) != value
    ]
    if differences:
        raise InputError(f"{run_dir} holds another run; choose another run_dir. Different: " + "; ".join(differences))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def write_history(run_dir: Path, history: list[dict[str, float]]) -> None:
    """Replaces run_dir/history.csv in one step; a row per epoch."""
    text = io.StringIO()
    if history:
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    write_text(run_dir / "history.csv", text.getvalue())


def save_model(run_dir: Path, model: Any) -> None:
    """Replaces run_dir/model.keras in one step."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, "model.keras")
        model.save(temporary)
        write_bytes(run_dir / "model.keras", temporary.read_bytes())
