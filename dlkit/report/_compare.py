"""One page that sets runs side by side: curves over epochs and time, final figures, what differs in their recipes."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from dlkit._errors import InputError
from dlkit._files import write_text
from dlkit.report._page import PARTS, html, read
from dlkit.report._plots import overlay

MOST = 8  # as many colours as a reader can tell apart


def compare(run_dirs: Sequence[str | Path], page: str | Path = "runs/compare.html") -> Path:
    """Draws runs side by side into one file that stands alone, and returns its path.

    Args:
        run_dirs: two to eight folders given to `fit`; runs that have not ended show what they have.
        page: the file to write.

    Raises:
        InputError: fewer or more runs, the same run twice, or a folder without a finished epoch.

    Example: `report.compare(["runs/a", "runs/b"])`
    """
    folders = [Path(folder) for folder in run_dirs]
    if not 2 <= len(folders) <= MOST:
        raise InputError(f"a comparison takes 2 to {MOST} runs, got {len(folders)}")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"the same run twice: {', '.join(str(folder) for folder in folders)}")
    runs = dict(zip(_labels(folders), map(read, folders), strict=True))
    parts = [
        f"<h1>{len(runs)} runs</h1>",
        _table(["run", "epochs", *_METRICS, "seconds"], [_final(name, rows) for name, (_, rows) in runs.items()]),
        f'<div class="figures">{"".join(_figures(runs))}</div>',
        "<h2>What differs</h2>",
        _differences(runs),
    ]
    return write_text(page, html(f"{len(runs)} runs", parts))


# column -> the name in the history, whether less is better, and the label of its axis
_METRICS = {
    "validation loss": ("val_loss", True, "loss"),
    "validation accuracy": ("val_accuracy", False, "accuracy (fraction)"),
    "validation error": ("val_mae", True, "mean absolute error"),
    "validation IoU": ("val_iou", False, "overlap (fraction)"),
    "training loss": ("loss", True, "loss"),
}


def _labels(folders: list[Path]) -> list[str]:
    """The shortest path ends that tell the runs apart."""
    for parts in range(1, max(len(folder.resolve().parts) for folder in folders) + 1):
        labels = [os.path.join(*folder.resolve().parts[-parts:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _final(name: str, rows: list[dict[str, float]]) -> list[str]:
    last = rows[-1]
    best = []
    for key, less, _ in _METRICS.values():
        values = [row[key] for row in rows if key in row]
        best.append(f"{last[key]:.4f} (best {(min if less else max)(values):.4f})" if values else "")
    return [name, f"{last['epoch']:.0f}", *best, f"{sum(row['seconds'] for row in rows):,.1f}"]


def _figures(runs: dict[str, Any]) -> list[str]:
    figures = []
    for column, (key, _, unit) in _METRICS.items():
        held = {name: rows for name, (_, rows) in runs.items() if key in rows[0]}
        if not held:
            continue
        title = column[0].upper() + column[1:]
        over_epochs = {name: ([r["epoch"] for r in rows], [r[key] for r in rows]) for name, rows in held.items()}
        figures.append(overlay(title, "epoch", unit, over_epochs, log=unit == "loss"))
        over_time = {}
        for name, rows in held.items():
            seconds = [r["seconds"] for r in rows]
            over_time[name] = ([sum(seconds[: i + 1]) for i in range(len(seconds))], [r[key] for r in rows])
        figures.append(overlay(f"{title} over time", "seconds", unit, over_time, log=unit == "loss"))
    return figures


def _differences(runs: dict[str, Any]) -> str:
    rows = []
    for part in PARTS:
        for key in dict.fromkeys(key for held, _ in runs.values() for key in held[part]):
            values = [json.dumps(held[part].get(key)) for held, _ in runs.values()]
            if len(set(values)) > 1:
                rows.append([f"{part}.{key}", *values])
    return _table(["", *runs], rows) if rows else "<p>Nothing: the same recipe, data and versions.</p>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    kept = [i for i, name in enumerate(head) if not i or any(row[i] for row in rows)]
    top = "".join(f"<th>{escape(head[i])}</th>" for i in kept)
    body = "".join("<tr>" + "".join(f"<td>{escape(row[i])}</td>" for i in kept) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'
