"""One self-contained page per search: progress, curves, importance, parallel coordinates, Pareto front, failures."""

import csv
import json
import math
from html import escape
from pathlib import Path
from typing import Any

from dlkit._errors import InputError
from dlkit._files import write_text
from dlkit.report import _search_figures as figures
from dlkit.report._importance import LEAST, importance
from dlkit.report._page import html
from dlkit.tune import _records, oracles

_MORE = """
.wide { overflow-x: auto } .wide svg { max-width: none } .importance svg { max-width: 34rem; height: auto }
.slices { grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)) }
td.number, th.number { text-align: right } .best td { font-weight: 600 } pre { white-space: pre-wrap; font-size: 12px }
"""
SECONDS = ("latency", "macs", "parameters")  # what the Pareto front is drawn against: the first that differs


def write_search(directory: str | Path) -> Path:
    """Draws DIRECTORY/report.html from the records of a search and returns its path; the search may be under way.

    Raises:
        InputError: the folder holds no search, or one without an ended trial.
    """
    directory = Path(directory)
    try:
        held = json.loads((directory / "search.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{directory} holds no search: search.json is missing") from None
    except ValueError as error:
        raise InputError(f"{directory}: search.json is damaged: {error}") from None
    found = [kinds["ended"] for kinds in _records.read_all(directory).values() if "ended" in kinds]
    if not found:
        raise InputError(f"{directory} holds no ended trial yet")
    return write_text(directory / "report.html", _page(directory, held, sorted(found, key=lambda r: r["ended"])))


def _page(directory: Path, held: dict[str, Any], records: list[dict[str, Any]]) -> str:
    objective, epochs = held["objective"], int(held["recipe"]["epochs"])
    sign = -oracles.sign(objective)
    for record in records:
        values = record["values"]
        record["epochs"] = int(values.get("tuner/epochs") or epochs)
        begun = int(values.get("tuner/initial_epoch") or 0) if held.get("fidelity", "epochs") == "epochs" else 0
        cost = (record["epochs"] - begun) * max(held.get("seeds", 1), held.get("folds", 0))
        record["cost"] = cost if record["status"] != "INFEASIBLE" else 0
    good = [r for r in records if r["status"] == "COMPLETED" and math.isfinite(r["score"])]
    ranked = sorted(good, key=lambda r: (-sign * r["score"], r["id"]))
    space = {name: hp for name, hp in held["space"].items() if not name.startswith("tuner/")}
    parts = [f"<h1>{escape(directory.resolve().name)}</h1>", _summary(held, records, ranked)]
    if ranked:
        parts += [_main(directory, objective, sign, records, ranked), _space(space, objective, sign, ranked)]
        parts.append(_table(space, objective, ranked[:25]))
    parts.append(_failures(records))
    for title in ("recipe", "preprocess"):
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(json.dumps(v))}</td></tr>" for k, v in held[title].items())
        parts.append(f"<h2>{title.capitalize()} that the space overrides</h2><table>{rows}</table>")
    return html(directory.resolve().name, parts, _MORE)


def _summary(held: dict[str, Any], records: list[dict[str, Any]], ranked: list[dict[str, Any]]) -> str:
    counts = {status: sum(r["status"] == status for r in records) for status in ("COMPLETED", "FAILED", "INFEASIBLE")}
    text = ", ".join(f"{count} {status.lower()}" for status, count in counts.items() if count)
    best = ""
    if ranked:
        values = ", ".join(f"{name} {_text(value)}" for name, value in _plain(ranked[0]["values"]).items())
        best = f"<p>Best: trial {ranked[0]['id']}, {escape(held['objective'])} <b>{ranked[0]['score']:.4f}</b> after "
        best += f"{ranked[0]['epochs']} epochs with {escape(values)}</p>"
    spent = sum(r["cost"] for r in records)
    about = f"oracle {held['oracle']}, seed {held['seed']}; trials: {text}; {spent} epochs"
    return f'<p class="sub">{escape(about)}</p>{best}'


def _main(
    directory: Path, objective: str, sign: int, records: list[dict[str, Any]], ranked: list[dict[str, Any]]
) -> str:
    histories = [_history(directory, record, objective) for record in ranked]
    spent, total, scores, best = [], 0, [], []
    for record in records:
        total += record["cost"]
        if record["status"] == "COMPLETED" and math.isfinite(record["score"]):
            spent.append(total)
            scores.append(record["score"])
            best.append(max(scores, key=lambda score: sign * score))
    drawn = [
        figures.progress(spent, scores, best, objective),
        figures.trial_curves(histories, objective, 0),
    ]
    for second in SECONDS:
        held = [r for r in ranked if second in (r.get("metrics") or {})]
        if len({r["metrics"][second] for r in held}) > 1:
            chosen, least = [], math.inf
            for i, record in enumerate(held):  # the best first
                if record["metrics"][second] < least:
                    least = record["metrics"][second]
                    chosen.append(i)
            pairs = [r["score"] for r in held], [r["metrics"][second] for r in held]
            drawn.append(figures.front(*pairs, chosen, (objective, second)))
            break
    return f'<div class="figures">{"".join(drawn)}</div>'


def _space(space: dict[str, Any], objective: str, sign: int, ranked: list[dict[str, Any]]) -> str:
    values, rungs = [_plain(r["values"]) for r in ranked], [r["epochs"] for r in ranked]
    varied = {name: hp for name, hp in space.items() if len({repr(v.get(name)) for v in values}) > 1}
    shares, explained = importance(space, values, [sign * r["score"] for r in ranked], rungs)
    parts = ["<h2>What mattered</h2>"]
    if shares:
        parts.append(f'<div class="importance">{figures.bars(shares, explained)}</div>')
        parts.append(
            '<p class="sub">A random forest learns the rank of a trial among those that trained as long, from its '
            "hyperparameters. A bar is what its R<sup>2</sup> on trials it has not seen loses when that hyperparameter "
            "is shuffled. Where it explains little, the bars mean little.</p>"
        )
    else:
        parts.append(f'<p class="sub">Importance needs at least {LEAST} completed trials that differ.</p>')
    if len(varied) > 1 and len(ranked) > 1:
        goodness = [1 - i / (len(ranked) - 1) for i in range(len(ranked))]
        parts.append(f'<div class="wide">{figures.parallel(varied, values, goodness)}</div>')
    order = [name for name in shares if name in varied] or list(varied)
    drawn = [
        figures.slices(space[name], [v.get(name) for v in values], [r["score"] for r in ranked], rungs, objective)
        for name in order[:12]
    ]
    parts.append(f'<div class="figures slices">{"".join(drawn)}</div>')
    parts.append('<p class="sub">A point is a trial; the dark ones trained longest.</p>')
    return "".join(parts)


def _table(space: dict[str, Any], objective: str, ranked: list[dict[str, Any]]) -> str:
    facts = [name for name in SECONDS if any(name in (r.get("metrics") or {}) for r in ranked)]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("trial", objective, "epochs", *facts, "seconds", *space))
    rows = []
    for i, record in enumerate(ranked):
        values, metrics = record["values"], record.get("metrics") or {}
        cells = [record["id"], f"{record['score']:.4f}", str(record["epochs"])]
        cells += [f"{metrics[name]:,.4g}" if name in metrics else "" for name in facts]
        cells += [_text(record.get("seconds")), *(_text(values.get(name)) for name in space)]
        mark = ' class="best"' if i == 0 else ""
        rows.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f'<h2>The best trials</h2><div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _failures(records: list[dict[str, Any]]) -> str:
    failed = [r for r in records if r["status"] != "COMPLETED"]
    if not failed:
        return ""
    parts = [f"<h2>{len(failed)} trials without a result</h2>"]
    for record in failed[:50]:
        message = (record.get("message") or "").strip()
        last = message.splitlines()[-1] if message else "no reason was given"
        values = ", ".join(f"{name} {_text(value)}" for name, value in _plain(record["values"]).items())
        title = f"trial {record['id']}, {record['status'].lower()}: {last}"
        parts.append(
            f"<details><summary>{escape(title)}</summary><p>{escape(values)}</p><pre>{escape(message)}</pre></details>"
        )
    return "".join(parts)


def _history(directory: Path, record: dict[str, Any], objective: str) -> list[tuple[float, float]]:
    """The trial's objective epoch by epoch, from the run's history; its last value alone where that is gone."""
    try:
        with open(
            _records.trial_folder(directory, record["id"]) / "run" / "history.csv", newline="", encoding="utf-8"
        ) as file:
            rows = list(csv.DictReader(file))
        points = [(float(row["epoch"]), float(row[objective])) for row in rows]
        return [(x, y) for x, y in points if math.isfinite(y)]
    except (OSError, KeyError, ValueError):
        return [(float(record["epochs"]), float(record["score"]))]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
