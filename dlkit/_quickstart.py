"""The whole job once, on real pictures that ship with scikit-learn: data, search, training, export, prediction."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.table import Table

from dlkit._commands import console, say
from dlkit.data import Preprocess, Source, load
from dlkit.export import Report, predict, saved_model
from dlkit.models import resnet_cifar
from dlkit.report import write
from dlkit.train import RECIPES, Result, evaluate, fit
from dlkit.tune import search

SEED = 0
SIZE = 16  # the digits are 8x8; at twice the size shifts and rotations keep their strokes apart
TRIAL_EPOCHS, BUDGET = 9, 36
FILES = 5


def space(hp: Any) -> dict[str, dict[str, Any]]:
    """What the search varies: the highest learning rate, the weight decay and the activation."""
    return {
        "model": {"activation": hp.Choice("activation", ["relu", "swish"])},
        "recipe": {
            "peak_lr": hp.Float("peak_lr", 0.02, 0.5, sampling="log", default=0.1),
            "weight_decay": hp.Float("weight_decay", 1e-4, 5e-3, sampling="log", default=5e-4),
        },
    }


def run(runs: Path, saved_models: Path) -> Path:
    """Runs the quickstart and returns the export's path."""
    started = time.monotonic()
    folder = _next(runs)
    train, test = load("digits")
    part, validation = train.split(0.85, 0.15, seed=SEED)
    preprocess = Preprocess(SIZE, channels=1, mean=0.3, std=0.37)
    recipe = RECIPES["digits"]

    def build(**overrides: Any) -> keras.Model:
        return resnet_cifar(8, classes=10, input_shape=preprocess.input_shape, **overrides)

    say(f"1 data: {len(train)} digits to train on, {len(test)} held out by the builder")
    say(f"2 search: trials of up to {TRIAL_EPOCHS} epochs, none started after {BUDGET} in all")
    found = search(
        build, space, replace(recipe, epochs=TRIAL_EPOCHS), part, validation, preprocess=preprocess,
        epochs_budget=BUDGET, directory=folder / "search", seed=SEED,
    )  # fmt: skip
    best = found.best
    say(f"  {len(found.trials)} trials, best validation accuracy {best.score:.4f} with {_values(best.values)}")

    say(f"3 training: {recipe.epochs} epochs on all {len(train)} digits")
    keras.utils.set_random_seed(SEED)
    model = build(**best.model)
    result = fit(
        model, replace(best.recipe, epochs=recipe.epochs), train, preprocess=preprocess, run_dir=folder / "run"
    )  # fmt: skip
    metrics = evaluate(model, test, preprocess=preprocess)
    write(folder / "run")

    say("4 export: SavedModel with preprocessing and class names inside, checked in a fresh process")
    export = saved_model(model, preprocess, train.classes, saved_models / "digits", verify_on=test)
    report = Report.from_dict(json.loads((export / "verification.json").read_text(encoding="utf-8")))

    files = _write_pictures(test, folder / "pictures")
    say(f"5 prediction: {FILES} PNG files in {folder / 'pictures'}, read by the export with TensorFlow alone")
    for row in predict(export, files):
        say(f"  {Path(row.file).name}: {row.label} ({row.score:.1%})")

    table = Table(title=f"quickstart, {time.monotonic() - started:.0f} s", show_header=False, title_justify="left")
    table.add_row("test accuracy", f"{metrics['accuracy']:.2%} of {len(test)}")
    table.add_row("parameters", f"{model.count_params():,}")
    table.add_row("export", str(export))
    table.add_row("largest difference to the evaluation", f"{report.max_difference:.1e}")
    table.add_row("seconds per step", f"{_seconds_per_step(result):.4f} (batch {recipe.batch})")
    table.add_row("report", str(folder / "run" / "report.html"))
    console.print(table)
    say(f"again: dlkit predict {export} {files[0]}")
    return export


def _next(runs: Path) -> Path:
    taken = [int(path.name) for path in runs.glob("*") if path.name.isdecimal()]
    return runs / str(max(taken, default=0) + 1)


def _values(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _seconds_per_step(result: Result) -> float:
    """The median over the epochs, so that tracing in the first one does not count."""
    rows = [(row["seconds"], row["step"] - before) for row, before in zip(result.history, _starts(result), strict=True)]
    return sorted(seconds / steps for seconds, steps in rows)[len(rows) // 2]


def _starts(result: Result) -> list[float]:
    return [0, *(row["step"] for row in result.history[:-1])]


def _write_pictures(source: Source, folder: Path) -> list[str]:
    """Writes the first pictures of `source` as PNG files named after their class."""
    folder.mkdir(parents=True)
    files = []
    names = [source.classes[label] for label in source.labels[:FILES]]  # type: ignore[index]
    for index in range(FILES):
        picture = source.store.take(tf.constant(source.rows[index : index + 1]))[0]
        content = picture if source.store.encoded else tf.io.encode_png(picture)
        path = folder / f"{index}_is_{names[index]}.png"
        path.write_bytes(content.numpy())
        files.append(str(path))
    return files
