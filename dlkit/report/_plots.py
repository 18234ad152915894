"""The figures of a report, as SVG text. Colours of Okabe and Ito, which colour-blind readers can tell apart."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import font_manager
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
    drawn: list[Any] = []
    for (x, y), colour in zip(lines.values(), COLOURS, strict=False):
        marker = "o" if len(x) < 25 else None
        drawn += axes.plot(x, y, color=colour, marker=marker, markersize=3, linewidth=1.6)
    axes.set(title=title, xlabel=across, ylabel=unit)
    values = [value for _, y in lines.values() for value in y if 0 < value < math.inf]
    if log and len(set(values)) > 1:
        axes.set_yscale("log")
        if max(values) < 20 * min(values):  # plain numbers, no powers of ten
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=across == "epoch", min_n_ticks=1))  # 1: a run of one epoch
    if len(lines) > 1 or not any(name in title.lower() for name in lines):  # a title may say what its only line is
        axes.legend(drawn, [shown(name, 40) for name in lines], frameon=False)
    return svg(figure)


def shown(text: str, most: int = 24, instead: str = "") -> str:
    """Returns somebody else's text as a figure can show it: of `most` characters, no formula, no missing letters.

    Args:
        text: the name of a class, a run or a hyperparameter.
        most: characters; a longer text ends in an ellipsis.
        instead: what stands for a text with letters that the font lacks; empty puts "?" in their places.

    >>> shown("a" * 9, 4), shown("\u732b 1"), shown("\u732b 1", instead="class 3")
    ('aaa\u2026', '? 1', 'class 3')
    """
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    missing = {letter for letter in text if not font.get_char_index(ord(letter))}
    if missing and instead:
        return instead
    text = "".join("?" if letter in missing else letter for letter in text)
    text = text if len(text) <= most else text[: most - 1] + "\u2026"
    return text.replace("$", r"\$")


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
