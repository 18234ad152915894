"""One self-contained page per run: curves, timing, what the model does with data, recipe, environment."""

import csv
import json
from html import escape
from pathlib import Path
from typing import Any

from dlkit._errors import InputError
from dlkit._files import write_text
from dlkit.data import Source
from dlkit.report import _plots
from dlkit.report._sections import sections
from dlkit.train import load_run, tasks

PARTS = ("recipe", "data", "preprocess", "model", "versions")  # of recipe.json
COLUMNS = ("epoch", "loss", "learning_rate", "seconds", "waiting")  # of history.csv, in every run
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
.figures { display: grid; gap: 1rem; margin: 1rem 0 }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
.scroll { overflow-x: auto } .scroll img { max-width: max(100%, 56rem) }
.scroll td { overflow-wrap: break-word; max-width: 24rem }
img { max-width: 100%; height: auto }
.figures svg { width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
td { border-top: 1px solid #e3e3e3; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.sub { color: #555 }
"""


def write(run_dir: str | Path, data: Source | None = None) -> Path:
    """Draws RUN_DIR/report.html, one file that stands alone, and returns its path.

    Always: curves, learning rate, timing, the share of time that waited for data, recipe, data, environment.
    With `data` also what the trained model does with it: confusion matrix, per-class table, calibration, the worst
    mistakes, Grad-CAM, first filters, feature maps and the augmentation; scatter or boxes for the other tasks.

    Args:
        run_dir: the folder given to `fit`.
        data: labelled pictures of the run's classes, such as its validation source; the run must have ended then.

    Raises:
        InputError: the folder holds no run, or one without a finished epoch; `data` has other classes.

    Example: `report.write("runs/digits", test)`
    """
    run_dir = Path(run_dir)
    held, rows = read(run_dir)
    more: list[str] = []
    if data is not None:
        run = load_run(run_dir)
        tasks.check(run.model, run.recipe.task, data, run.preprocess)
        if data.classes != run.classes:
            raise InputError(f"the run's classes are {run.classes}, those of {data.name} are {data.classes}")
        more = sections(run, data)
    return write_text(run_dir / "report.html", _page(run_dir.name, held, rows, _ended(run_dir), more))


def read(run_dir: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Returns recipe.json and the rows of history.csv."""
    try:
        held = json.loads((run_dir / "recipe.json").read_text(encoding="utf-8"))
        with open(run_dir / "history.csv", newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        lacking = [name for name in PARTS if not isinstance(held.get(name), dict)]
        lacking += [name for name in COLUMNS if rows and name not in rows[0]]
    except FileNotFoundError as error:
        raise InputError(f"{run_dir} holds no run with a finished epoch: {error.filename} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:  # no JSON, no object, a row that is cut off
        raise InputError(f"{run_dir}: recipe.json or history.csv is damaged: {error}") from None
    if lacking:
        raise InputError(f"{run_dir}: recipe.json or history.csv is damaged: {', '.join(lacking)} is missing")
    if not rows:
        raise InputError(f"{run_dir} holds no finished epoch yet")
    return held, rows


def _ended(run_dir: Path) -> dict[str, Any]:
    """What the run says of its end: why it stopped early, the row of the saved model; empty while it goes on."""
    try:
        return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _page(name: str, held: dict[str, Any], rows: list[dict[str, float]], ended: dict[str, Any], more: list[str]) -> str:
    last = rows[-1]
    seconds = sum(row["seconds"] for row in rows)
    waiting = sum(row["waiting"] for row in rows) / max(seconds, 1e-9)
    summary = ", ".join(f"{key} {last[key]:.4f}" for key in _of(last, "loss", "accuracy", "mae", "iou"))
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="sub">after epoch {last["epoch"]:.0f} of {held["recipe"]["epochs"]}: {escape(summary)}</p>',
        *_sentences(ended),
        f'<p class="sub">{seconds:,.1f} s in training steps, {waiting:.1%} of it waiting for data</p>',
        f'<div class="figures">{"".join(_figures(rows, held["recipe"].get("task", "")))}</div>',
        *more,
    ]
    for title in PARTS:
        parts.append(f"<h2>{title.capitalize()}</h2>{_table(held[title])}")
    return html(name, parts)


def html(title: str, parts: list[str], style: str = "") -> str:
    """Returns a whole page that loads nothing."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}{style}</style>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return f'<!doctype html><html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _sentences(ended: dict[str, Any]) -> list[str]:
    texts = [f"stopped early: {ended['stopped']}"] if ended.get("stopped") else []
    if final := ended.get("final"):
        figures = ", ".join(f"{name} {final[name]:.4f}" for name in final if name.startswith("val_"))
        texts.append(f"model.keras holds the weights of epoch {final['epoch']:.0f}{': ' if figures else ''}{figures}")
    return [f'<p class="sub">{escape(text)}</p>' for text in texts]


def _figures(rows: list[dict[str, float]], task: str) -> list[str]:
    epochs = [row["epoch"] for row in rows]

    def both(name: str) -> dict[str, list[float]]:
        names = {"training": name, "validation": f"val_{name}"}
        return {label: [row[key] for row in rows] for label, key in names.items() if key in rows[0]}

    length = "fraction of the picture" if task == "box" else "the data's unit"
    shown = {
        "loss": ("Loss", "loss"),
        "accuracy": ("Accuracy", "accuracy (fraction)"),
        "mae": ("Mean absolute error", f"error ({length})"),
        "iou": ("IoU", "overlap (fraction)"),
    }
    figures = [
        _plots.curves(title, unit, epochs, both(name), log=name == "loss")
        for name, (title, unit) in shown.items()
        if both(name)
    ]
    for name, title in (("gradient_norm", "Gradient norm"), ("weight_change", "Relative weight change per step")):
        if name in rows[0]:
            values = {title.lower(): [row[name] for row in rows]}
            figures.append(_plots.curves(title, "mean over the epoch", epochs, values, log=True))
    rates = {"learning rate": [row["learning_rate"] for row in rows]}
    figures.append(_plots.curves("Learning rate at the end of the epoch", "learning rate", epochs, rates))
    time = {
        "training steps": [row["seconds"] for row in rows],
        "of it waiting for data": [row["waiting"] for row in rows],
    }
    figures.append(_plots.curves("Time per epoch", "seconds", epochs, time))
    return figures


def _of(row: dict[str, float], *names: str) -> list[str]:
    return [key for name in names for key in (name, f"val_{name}") if key in row]


def _table(values: dict[str, Any]) -> str:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in texts.items())
    return f"<table>{rows}</table>"
