"""What the commands do once the frameworks are loaded: find the data, call the package, show the answer."""

import contextlib
import json
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import dlkit.data
import dlkit.export
import dlkit.models
import dlkit.report
import dlkit.train
import dlkit.tune
from dlkit._errors import InputError, unknown
from dlkit.models._registry import ENTRIES, find
from dlkit.train import recipes

console = Console()


def say(text: str) -> None:
    """Prints one line as it is: paths are not broken, so that they can be copied."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def load(data: str) -> tuple[Any, Any]:
    """Returns (train, test) of a folder, of the built-in digits or of a TFDS data set; test is None for a folder.

    A folder with subfolders `train` and `test` (or `val`) gives both.
    """
    path = Path(data)
    if path.is_dir():
        parts = {name: path / name for name in ("train", "test", "val", "validation") if (path / name).is_dir()}
        held_out = next((parts[name] for name in ("test", "val", "validation") if name in parts), None)
        if "train" in parts and held_out is not None:
            return dlkit.data.from_folder(parts["train"]), dlkit.data.from_folder(held_out)
        return dlkit.data.from_folder(path), None
    if any(sign in data for sign in "/\\.") or not data:
        raise InputError(f"{data!r} is no folder; give a folder with one subfolder per class, or a data set's name")
    return dlkit.data.load(data)


def train(
    model: str, data: str, recipe: str, settings: dict[str, str], size: int, run_dir: str, seed: int, weights: str,
    saved_models: str,
) -> None:  # fmt: skip
    settings = settings | {"seed": str(seed)}
    vet(model, recipe, settings)
    source, held_out = load(data)
    part, validation = divide(source, held_out, seed)
    plan = choose(part, model, recipe, settings, size, weights)
    network = builder(plan, part, seed)()
    if weights:
        say(str(dlkit.models.load_weights(network, weights, adapt=True)))
    folder = Path(run_dir or f"runs/{Path(data).resolve().name}-{plan.model}")
    say(f"training {plan.model} on {len(part)} pictures, validating on {len(validation)}; run in {folder}")
    result = dlkit.train.fit(network, plan.recipe, part, validation, preprocess=plan.preprocess, run_dir=folder)
    if result.stopped:
        say(f"stopped early: {result.stopped}")
    page = dlkit.report.write(folder, validation)
    facts("trained", {**_shown(result.metrics), "seconds": f"{result.seconds:.1f}", "report": str(page)})
    if held_out is not None:
        metrics = dlkit.train.evaluate(network, held_out, preprocess=plan.preprocess)
        facts(f"on {held_out.name}, which nothing was chosen by", _shown(metrics) | {"items": str(len(held_out))})
    if saved_models:
        path = dlkit.export.saved_model(
            network, plan.preprocess, part.classes, Path(saved_models, Path(data).resolve().name),
            verify_on=held_out if held_out is not None else validation, about=_about(str(folder), plan),
        )  # fmt: skip
        say(f"verified and written: {path}\nnext: dlkit predict {path} FILE...   or   dlkit serve {saved_models}")
    else:
        say(f"next: dlkit export {folder}")


def report(runs: tuple[str, ...], data: str, out: str) -> None:
    """Draws the page of a run or a search, or the comparison of runs."""
    if len(runs) > 1:
        if data:
            raise InputError("--data goes with one run; a comparison shows what the runs themselves wrote")
        say(str(dlkit.report.compare(runs, out)))
    elif Path(runs[0], "search.json").is_file():
        say(str(dlkit.report.write_search(runs[0])))
    elif not data:
        say(str(dlkit.report.write(runs[0])))
    else:
        held = dlkit.train.load_run(runs[0])
        say(str(dlkit.report.write(runs[0], seen_and_unseen(data, held)[1])))


def evaluate(run: str, data: str) -> None:
    held = dlkit.train.load_run(run)
    source, held_out = load(data)
    source = held_out if held_out is not None else source
    if held.classes is not None and source.classes != held.classes:
        raise InputError(f"the run's classes are {held.classes}, those of {data} are {source.classes}")
    metrics = dlkit.train.evaluate(held.model, source, preprocess=held.preprocess)
    facts(f"{run} on {source.name}", {**_shown(metrics), "items": str(len(source))})


def export(
    run: str, name: str, saved_models: str, version: int, optimize: str, precision: str, format: str, data: str,
    calibrate: bool,
) -> None:  # fmt: skip
    forms = {form: getattr(dlkit.export, form) for form in ("saved_model", "onnx", "openvino", "litert")}
    if format not in forms:
        raise unknown("format", format, forms)
    if (precision == "int8" or calibrate) and not data:
        raise InputError(f"{'--precision int8' if precision == 'int8' else '--calibrate'} needs --data FOLDER")
    if calibrate and format != "saved_model":
        raise InputError("--calibrate goes with --format saved_model")
    if optimize != "fold" and format != "saved_model":
        raise InputError(f"--optimize {optimize} goes with --format saved_model; the other forms are always folded")
    held = dlkit.train.load_run(run)
    train, test = seen_and_unseen(data, held) if data else (None, None)
    given: dict[str, Any] = {"version": version or None, "task": held.recipe.task, "about": _about(run, held)}
    given["verify_on"] = test
    if format == "saved_model":
        given |= {"optimize": None if optimize == "none" else optimize, "precision": precision}
        given["calibrate"] = test if calibrate else None
    elif format == "litert" and precision == "int8":
        given |= {"quantize": "int8", "samples": train}
    elif precision != "float32":
        raise InputError(
            f"--precision {precision} with --format {format}; bfloat16 is for saved_model, int8 for litert"
        )
    directory = Path(saved_models, name or Path(run).resolve().name)
    path = forms[format](held.model, held.preprocess, held.classes, directory, **given)
    after = f"dlkit predict {path} FILE..." if format == "saved_model" else f"dlkit verify {path}"
    say(f"verified and written: {path}\nnext: {after}")


def _about(run: str, held: Any) -> dict[str, Any]:
    """Returns what the model card says of the run: recipe, data and the metrics of the saved model."""
    about = {"recipe": held.recipe.to_dict(), "run": str(run)}
    with contextlib.suppress(OSError, ValueError, KeyError):
        about["data"] = json.loads(Path(run, "recipe.json").read_text(encoding="utf-8"))["data"]
    with contextlib.suppress(OSError, ValueError, KeyError):
        about["metrics"] = json.loads(Path(run, "summary.json").read_text(encoding="utf-8"))["final"]
    return about


def verify(path: str, data: str) -> None:
    source = load(data)[0] if data else None
    report = dlkit.export.verify(path, data=source)
    console.print(report)
    if not report.ok:
        raise RuntimeError(f"{path} failed its verification")


def predict(path: str, files: tuple[str, ...]) -> None:
    if not files:
        raise InputError("no files to classify: dlkit predict EXPORT FILE...")
    table = Table("file", "answer", "score")
    for row in dlkit.export.predict(path, list(files)):
        answer = row.label or ", ".join(f"{value:.5g}" for value in row.values)
        table.add_row(escape(str(row.file)), escape(answer), f"{row.score:.4f}" if row.classes else "")
    console.print(table)


def models(as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: entry.paper for name, entry in ENTRIES.items()}))
        return
    table = Table("model", "source")
    for name, entry in ENTRIES.items():
        table.add_row(name, escape(entry.paper))
    console.print(table)
    say(
        "resnet_cifar, plain_cifar, resnet and plain take any depth of their rule after the name, such as resnet_cifar8"
    )


def describe(model: str, side: int, channels: int, classes: int, as_json: bool) -> None:
    keywords: dict[str, Any] = {"classes": classes}
    if channels != 3 and not side:
        raise InputError(f"--channels {channels} goes with --input SIDE, for example --input 32")
    if side:
        keywords["input_shape"] = (side, side, channels)
    description = dlkit.models.describe(dlkit.models.create(model, **keywords))
    if as_json:
        print(json.dumps(description.to_dict()))
    else:
        console.print(description)


def lectures(action: str, name: str, quick: bool, data: str, out: str) -> None:
    """Lists the experiments, runs one, or writes the page of all results."""
    from dlkit import lectures as experiments

    if action == "list":
        facts("experiments", {name: experiments.load(name).TITLE for name in experiments.names()})
        say("run one: dlkit lectures run NAME --quick")
    elif action == "gallery":
        say(str(experiments.gallery(name or "docs/lectures", out)))
    else:
        folder = experiments.run(name, quick=quick, data=data or None, out=out)
        say((folder / "result.md").read_text(encoding="utf-8"))
        say(f"written: {folder}")


def check(folder: str) -> None:
    report = dlkit.data.from_folder(folder).check()
    console.print(report)
    if not report.ok:
        raise InputError(f"{folder}: some files cannot be used; see above")


def vet(model: str, recipe: str, settings: dict[str, str]) -> None:
    """Refuses names and values that no data could make right, before any data are read."""
    if model:
        find(model)
    (recipes.get(recipe) if recipe else dlkit.train.Recipe()).override(settings)


def divide(source: Any, held_out: Any, seed: int) -> tuple[Any, Any]:
    """Training part and validation part; a held-out test set is never used to choose anything."""
    source.check().refuse()
    return source.split(0.85, 0.15, seed=seed)


def seen_and_unseen(data: str, run: Any) -> tuple[Any, Any]:
    """The part of the data that the run trained on, and the part that it did not: a test set, else its own division."""
    source, held_out = load(data)
    return (source, held_out) if held_out is not None else divide(source, None, run.recipe.seed)


def choose(
    source: Any, model: str, recipe: str, settings: dict[str, str], size: int, weights: str = ""
) -> dlkit.train.Plan:
    """Returns the plan for this data, and says what it chose."""
    plan = dlkit.train.plan(source, model=model, recipe=recipe, size=size, pretrained=bool(weights))
    for reason in plan.reasons:
        say(f"chosen: {reason}")
    return plan.override(settings)


def builder(plan: Any, source: Any, seed: int | None = None) -> Any:
    """Returns the builder of the plan's model for this data; with a seed its weights are drawn from it."""

    classes = len(source.classes)  # workers of a search are sent this number, not the source
    shape: tuple[int | None, ...] = plan.preprocess.input_shape
    if plan.recipe.sizes:  # training pictures have several
        shape = (*(None for _ in shape[:-1]), shape[-1])

    def build(**overrides: Any) -> Any:
        if seed is not None:
            keras.utils.set_random_seed(seed)
        return dlkit.models.create(plan.model, classes=classes, input_shape=shape, **overrides)

    return build


def _shown(metrics: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in metrics.items()}


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def facts(title: str, rows: dict[str, str]) -> None:
    """Prints a table of two columns."""
    drawn = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        drawn.add_row(name, escape(value))
    console.print(drawn)
