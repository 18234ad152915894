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
from dlkit.data import Preprocess
from dlkit.models._archive import read_model
from dlkit.train.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """What a run directory holds: the trained model and everything needed to use, fine-tune or export it."""

    model: keras.Model
    preprocess: Preprocess
    classes: tuple[str, ...] | None
    recipe: Recipe
    run_dir: Path


def load_run(run_dir: str | Path) -> Run:
    """Reads a run directory written by `fit`; what is in it is checked before Keras builds the model.

    Args:
        run_dir: the folder given to `fit`.

    Raises:
        InputError: no run there, or one that was stopped before its first end.

    Example: `run = load_run("runs/digits"); saved_model(run.model, run.preprocess, run.classes, "saved_models/digits")`
    """
    run_dir = Path(run_dir)
    if not (run_dir / "recipe.json").is_file():
        raise InputError(f"{run_dir} is no run directory: it has no recipe.json. fit(..., run_dir=...) writes one")
    if not (run_dir / "model.keras").is_file():
        raise InputError(f"the run in {run_dir} has not ended: call fit with the same arguments to continue it")
    held = json.loads((run_dir / "recipe.json").read_text())
    return Run(
        model=read_model(run_dir / "model.keras"),
        preprocess=Preprocess.from_config(held["preprocess"]),
        classes=tuple(held["classes"]) if held["classes"] is not None else None,
        recipe=Recipe.from_dict(held["recipe"]),
        run_dir=run_dir,
    )


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
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def identity(model: Any, recipe: Recipe, train: Any, preprocess: Any) -> dict[str, Any]:
    structure = [[type(layer).__name__, [tuple(w.shape) for w in layer.weights]] for layer in model.layers]
    return {
        "recipe": recipe.to_dict(),
        "preprocess": preprocess.get_config(),
        "classes": list(train.classes) if train.classes is not None else None,
        "data": {"name": train.name, "items": len(train), "fingerprint": train.fingerprint},
        "model": {"structure": hashlib.sha256(json.dumps(structure).encode()).hexdigest()[:16]},
        "versions": {"dlkit": dlkit.__version__, "keras": keras.__version__, "tensorflow": tf.__version__},
    }


def claim(run_dir: Path, identity: dict[str, Any], resume: bool, write: bool = True) -> None:
    """Writes recipe.json into a fresh folder (if `write`); compares it in one that holds a run."""
    path = run_dir / "recipe.json"
    if not path.exists():
        if write:
            write_json(path, identity)
        return
    if not resume:
        raise InputError(f"{run_dir} holds a run already; choose another run_dir, or resume=True to continue it")
    try:
        held = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); choose another run_dir") from None
    now = json.loads(json.dumps(identity))
    held["recipe"] = Recipe().to_dict() | (held.get("recipe") or {})  # fields that came later have their defaults
    held = json.loads(json.dumps(held))
    differences = [
        f"{part}.{key}: {_short((held.get(part) or {}).get(key))} there, {_short(value)} now"
        for part in ("recipe", "preprocess", "data", "model")
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
