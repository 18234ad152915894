"""The figures of a search's page, as SVG text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator, NullFormatter

from dlkit.report._importance import place
from dlkit.report._plots import BLUE, GREEN, ORANGE, canvas, shown, svg

GREY = "#b9bec4"
_MAP = colormaps["viridis_r"]  # dark is good
SHOWN = 300  # curves and lines beyond the best so many are left out


def trial_curves(histories: Sequence[Sequence[tuple[float, float]]], objective: str, best: int) -> str:
    """The objective over the epochs, a line per trial; the best one stands out."""
    figure, axes = canvas((5.2, 3.3))
    for i, points in enumerate(histories[:SHOWN]):
        if points and i != best:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=GREY, linewidth=0.8, marker="o", markersize=1.8 if len(x) > 1 else 3)
    if histories and histories[best]:
        x, y = zip(*histories[best], strict=True)
        axes.plot(x, y, color=ORANGE, linewidth=2, marker="o", markersize=3, label="best")
        axes.legend(frameon=False)
    axes.set(title="Trials", xlabel="epoch", ylabel=objective)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return svg(figure)


def progress(epochs: Sequence[float], scores: Sequence[float], best: Sequence[float], objective: str) -> str:
    """Every trial and the best so far over the epochs spent."""
    figure, axes = canvas((5.2, 3.3))
    axes.scatter(epochs, scores, s=12, color=GREY, label="a trial")
    axes.step(epochs, best, where="post", color=BLUE, linewidth=1.8, label="best so far")
    axes.set(title="Progress", xlabel="epochs of all trials", ylabel=objective)
    axes.legend(frameon=False)
    return svg(figure)


def bars(shares: Mapping[str, float], explained: float) -> str:
    """Importance of each hyperparameter."""
    figure, axes = canvas((5.2, 0.9 + 0.32 * len(shares)))
    names = list(shares)[::-1]
    axes.barh([shown(name) for name in names], [shares[name] for name in names], color=BLUE, height=0.6)
    axes.set(
        title="Importance of the hyperparameters",
        xlabel=f"loss of R² on unseen trials; the forest explains {max(0.0, explained):.0%}",
    )
    axes.set_xlim(left=0)
    return svg(figure)


def front(first: Sequence[float], second: Sequence[float], chosen: Sequence[int], names: tuple[str, str]) -> str:
    """Two objectives against each other, and the trials that no other one beats in both."""
    figure, axes = canvas((5.2, 3.3))
    axes.scatter(second, first, s=14, color=GREY, label="a trial")
    axes.plot(
        [second[i] for i in chosen], [first[i] for i in chosen],
        color=GREEN, marker="o", markersize=5, linewidth=1.4, label="Pareto front",
    )  # fmt: skip
    if min(second, default=0) > 0 and max(second) / min(second) > 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())  # minor labels would overlap
    axes.set(title="Pareto front", xlabel=names[1], ylabel=names[0])
    axes.legend(frameon=False)
    return svg(figure)


def parallel(space: Mapping[str, Any], values: Sequence[Mapping[str, Any]], goodness: Sequence[float]) -> str:
    """Parallel coordinates: a line per trial through its hyperparameters, the good ones dark and on top.

    Args:
        space: name -> configuration, in the order of the axes.
        values: of each trial.
        goodness: of each trial, from 0 (worst) to 1 (best).
    """
    names = list(space)
    figure, axes = canvas((max(5.2, 1.35 * (len(names) + 1)), 3.7))
    random = np.random.default_rng(0)
    for i in sorted(range(len(values)), key=lambda i: goodness[i])[-SHOWN:]:
        y = [place(space[name], values[i].get(name)) for name in names]
        spread = random.uniform(-0.012, 0.012, len(y))  # lines through one choice do not hide each other
        good = goodness[i]
        axes.plot(
            [*range(len(names)), len(names)], [*(y + spread), good],
            color=_MAP(good), linewidth=0.6 + 1.6 * good**4, alpha=0.25 + 0.7 * good**2,
        )  # fmt: skip
    for at, name in enumerate(names):
        axes.axvline(at, color="#444", linewidth=0.7)
        for where, text in _ticks(space[name]):
            axes.annotate(text, (at, where), (3, 0), textcoords="offset points", fontsize=7, va="center", alpha=0.9)
        if any(v.get(name) is None for v in values):
            axes.annotate("inactive", (at, -0.2), (3, 0), textcoords="offset points", fontsize=7, va="center")
    axes.axvline(len(names), color="#444", linewidth=0.7)
    axes.set_xticks(range(len(names) + 1), [*map(shown, names), "rank"], rotation=20, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) + 0.35)
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("Parallel coordinates: the best trials are the dark lines", loc="left")
    return svg(figure)


def slices(
    hp: Mapping[str, Any], values: Sequence[Any], scores: Sequence[float], rungs: Sequence[int], objective: str
) -> str:
    """The objective over one hyperparameter; dark points trained longest."""
    figure, axes = canvas((3.4, 2.5))
    longest = max(rungs, default=1)
    held = [(place(hp, v), s, r / longest) for v, s, r in zip(values, scores, rungs, strict=True)]
    held.sort(key=lambda item: item[2])
    spread = np.random.default_rng(0).uniform(-0.02, 0.02, len(held)) if "values" in hp["config"] else 0
    axes.scatter(
        np.array([h[0] for h in held]) + spread, [h[1] for h in held], s=14, c=[h[2] for h in held],
        cmap=_MAP, vmin=0, vmax=1,
    )  # fmt: skip
    ticks = _ticks(hp)
    if any(v is None for v in values):
        ticks = [(-0.2, "inactive"), *ticks]
    axes.set_xticks([t[0] for t in ticks], [t[1] for t in ticks], fontsize=8)
    axes.set(title=shown(hp["config"]["name"], 40), ylabel=objective)
    return svg(figure)


def _ticks(hp: Mapping[str, Any]) -> list[tuple[float, str]]:
    config = hp["config"]
    if "values" in config:
        return [(place(hp, value), shown(str(value))) for value in config["values"]]
    if "min_value" in config:
        low, high = float(config["min_value"]), float(config["max_value"])
        middle = (low * high) ** 0.5 if config.get("sampling") == "log" else (low + high) / 2
        return [(place(hp, value), f"{value:.3g}") for value in (low, middle, high)]
    return [(0.0, "False"), (1.0, "True")] if hp.get("class_name") == "Boolean" else [(0.0, "")]
