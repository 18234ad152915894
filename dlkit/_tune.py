"""The command `dlkit tune`: search, table, report page; on request the best configuration, retrained and exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
from rich.table import Table

import dlkit.export
import dlkit.report
import dlkit.train
import dlkit.tune
from dlkit import _commands
from dlkit._commands import console, say
from dlkit._errors import InputError
from dlkit.models._registry import ENTRIES
from dlkit.tune._preview import preview

SHOWN = 10  # trials in the table
CACHE_GIB = 4.0  # pictures are decoded once for all trials if they fit


def tune(
    model: str, data: str, budget: int, oracle: str, recipe: str, settings: dict[str, str], size: int, directory: str,
    seed: int, *, space: str = "default", workers: int = 1, dry_run: bool = False, export: str = "",
    saved_models: str = "saved_models",
) -> None:  # fmt: skip
    """Runs the command; the arguments are those of `dlkit.cli.tune`."""
    settings = settings | {"seed": str(seed)}
    _commands.vet(model, recipe, settings)
    dlkit.tune.oracles.check(oracle)
    dlkit.tune.space.get(space, _family(model))
    source, held_out = _commands.load(data)
    part, validation = _commands.divide(source, held_out, seed)
    plan = _commands.choose(part, model, recipe, settings, size)
    budget = budget or 8 * plan.recipe.epochs
    varied = dlkit.tune.space.get(space, _family(plan.model))
    if dry_run:
        console.print(preview(varied, plan.recipe, epochs_budget=budget, oracle=oracle, seed=seed))
        return
    folder = Path(directory or f"runs/tune-{Path(data).resolve().name}-{plan.model}")
    decoded = [_decoded(source, plan.preprocess) for source in (part, validation)]
    found = dlkit.tune.search(
        _commands.builder(plan, part), varied, plan.recipe, *decoded, preprocess=plan.preprocess, oracle=oracle,
        epochs_budget=budget, directory=folder, seed=seed, workers=workers,
    )  # fmt: skip
    _table(found)
    best = found.best
    say(f"{found.epochs} epochs in {len(found.trials)} trials; best run in {best.run_dir}")
    say(f"report: {dlkit.report.write_search(folder)}")
    if export:
        _export(plan, best, source, held_out, folder / f"retrained_{best.id}", Path(saved_models, export), seed)
    else:
        say(f"next: dlkit export {best.run_dir} --name {Path(data).resolve().name}")


def _family(model: str) -> str:
    """The architecture space that suits a model's name."""
    builder = ENTRIES[model].builder.__name__ if model in ENTRIES else model.rstrip("0123456789")
    return builder if builder in dlkit.tune.space.FAMILIES else "resnet_cifar"


def _decoded(source: Any, preprocess: Any) -> Any:
    """Returns the source with its pictures decoded, if they fit; all workers then share one file."""
    if not source.store.encoded:
        return source
    try:
        return source.cached("decoded", preprocess=preprocess, budget=CACHE_GIB)
    except InputError as error:
        say(f"pictures are read from their files in every epoch: {error}")
        return source


def _table(found: Any) -> None:
    names = list(dict.fromkeys(name for trial in found.trials[:SHOWN] for name in trial.values))
    table = Table("trial", "epochs", found.objectives[0], *names)
    for trial in found.trials[:SHOWN]:
        score = f"{trial.score:.4f}" if trial.score is not None else trial.status.lower()
        table.add_row(trial.id, str(trial.epochs), score, *(_text(trial.values.get(name)) for name in names))
    console.print(table)


def _text(value: Any) -> str:
    return "" if value is None else _commands.number(value)


def _without_validation(recipe: Any) -> Any:
    """Returns the recipe without what watches a validation part: all the data train, held-out data choose nothing."""
    stop = tuple(rule for rule in recipe.stop if not getattr(rule, "metric", "").startswith("val_"))
    plateau = recipe.plateau
    if plateau is not None and plateau.metric.startswith("val_"):
        plateau = replace(plateau, metric="")  # the training loss
    return replace(recipe, stop=stop, plateau=plateau)


def _export(plan: Any, best: Any, source: Any, held_out: Any, run: Path, directory: Path, seed: int) -> None:
    """Trains the best configuration on all the data that was not held out, and exports it."""
    recipe = _without_validation(replace(best.recipe, epochs=plan.recipe.epochs))
    say(f"retraining trial {best.id}'s configuration on all {len(source)} pictures for {recipe.epochs} epochs")
    keras.utils.set_random_seed(seed)
    model = _commands.builder(plan, source)(**best.model)
    dlkit.train.fit(model, recipe, source, preprocess=plan.preprocess, run_dir=run)
    if held_out is not None:
        metrics = dlkit.train.evaluate(model, held_out, preprocess=plan.preprocess)
        say("held-out data: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    path = dlkit.export.saved_model(
        model, plan.preprocess, source.classes, directory, task=recipe.task,
        about={"recipe": recipe.to_dict(), "run": str(run), "search": str(run.parent)},
    )  # fmt: skip
    say(f"verified and written: {path}\nnext: dlkit predict {path} FILE...")
