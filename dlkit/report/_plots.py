"""The figures of a report, as SVG text. Colours of Okabe and Ito, which colour-blind readers can tell apart."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def curves(
    title: str, unit: str, epochs: Sequence[float], lines: Mapping[str, Sequence[float]], log: bool = False
) -> str:
    """Draws lines over the epochs; `unit` stands at the vertical axis."""
    figure, axes = canvas((5.2, 3.1))
    for (name, values), colour in zip(lines.items(), (BLUE, ORANGE, GREEN), strict=False):
        marker = "o" if len(epochs) < 25 else None
        axes.plot(epochs, values, color=colour, label=name, marker=marker, markersize=3, linewidth=1.6)
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    if log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
