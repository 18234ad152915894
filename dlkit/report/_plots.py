"""The figures of a report, as SVG text. Colours of Okabe and Ito, which colour-blind readers can tell apart."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def curves(
    title: str, unit: str, epochs: Sequence[float], lines: Mapping[str, Sequence[float]], log: bool = False
) -> str:
    """Draws lines over the epochs; `unit` stands at the vertical axis."""
    return overlay(title, "epoch", unit, {name: (epochs, values) for name, values in lines.items()}, log)


def overlay(
    title: str, across: str, unit: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], log: bool = False
) -> str:
    """Draws lines that each have their own positions (x, y); `across` and `unit` stand at the axes."""
    figure, axes = canvas((5.2, 3.1))
    for (name, (x, y)), colour in zip(lines.items(), COLOURS, strict=False):
        marker = "o" if len(x) < 25 else None
        axes.plot(x, y, color=colour, label=name, marker=marker, markersize=3, linewidth=1.6)
    axes.set(title=title, xlabel=across, ylabel=unit)
    if log:
        axes.set_yscale("log")
        values = [value for _, y in lines.values() for value in y if value > 0]
        if values and max(values) < 20 * min(values):  # plain numbers, no powers of ten
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=across == "epoch"))
    if len(lines) > 1:
        axes.legend(frameon=False)
    return svg(figure)


def canvas(size: tuple[float, float]) -> tuple[Figure, Any]:
    """Returns an empty figure of this size in inches, and its axes."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    return figure, axes


def svg(figure: Figure) -> str:
    """Returns the figure as text without the XML and DOCTYPE lines: it stands inside HTML."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().split("?>", 1)[1].split(">", 1)[1]
