"""The pictures of a report, as PNG inside the page."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dlkit.report._outcome import Outcome
from dlkit.report._plots import shown

SHARES = "cividis"  # even in grey and to colour-blind readers
NAMED = 40  # classes that fit beside a confusion matrix
COUNTED = 15  # classes whose counts fit into it


def confusion(outcome: Outcome) -> str:
    """The confusion matrix, each row as shares of its class."""
    counts, n = outcome.confusion(), len(outcome.classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(11.0, max(4.2, 2.2 + 0.42 * min(n, NAMED)))
    figure = _figure(side, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix")
    if n <= NAMED:
        names = [shown(name, instead=f"class {i}") for i, name in enumerate(outcome.classes)]
        axes.set_xticks(range(n), names, rotation=90)
        axes.set_yticks(range(n), names)
    for i, j in np.argwhere(counts) if n <= COUNTED else ():
        axes.text(j, i, counts[i, j], ha="center", va="center", color="black" if shares[i, j] > 0.6 else "white")
    figure.colorbar(image, shrink=0.75, label="share of the true class")
    return _image(figure, "confusion matrix")


def calibration(outcome: Outcome) -> str:
    """Accuracy against confidence, and how often each confidence was given."""
    rows, error = outcome.calibration()
    figure = _figure(5.2, 4.6)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left = [row["low"] for row in rows]
    width = [row["high"] - row["low"] for row in rows]
    top.bar(left, [row["accuracy"] for row in rows], width, align="edge", color="#0072B2", edgecolor="white")
    top.plot([0, 1], [0, 1], color="#D55E00", linestyle="--", label="perfectly calibrated")
    top.set(title=f"Calibration: ECE {error:.3f}", ylabel="accuracy (fraction)", xlim=(0, 1), ylim=(0, 1))
    top.legend(frameon=False, loc="upper left")
    below.bar(left, [row["share"] for row in rows], width, align="edge", color="#b9bec4", edgecolor="white")
    below.set(xlabel="confidence (probability of the predicted class)", ylabel="share", ylim=(0, 1))
    return _image(figure, "calibration curve")


def grid(images: Sequence[np.ndarray], titles: Sequence[str], columns: int, alt: str, cell: float = 1.45) -> str:
    """Small pictures with a line of text above each."""
    rows = -(-len(images) // columns)
    figure = _figure(cell * columns, (cell + (0.42 if any(titles) else 0.08)) * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    for panel, image, title in zip(axes.flat, images, titles, strict=False):
        _show(panel, image)
        panel.set_title(title, fontsize=8)
    return _image(figure, alt)


def overlays(images: Sequence[np.ndarray], maps: np.ndarray, titles: Sequence[str], alt: str) -> str:
    """Each picture above itself under its heat map."""
    n = len(images)
    figure = _figure(1.6 * n, 3.8)
    axes = figure.subplots(2, n, squeeze=False)
    for i in range(n):
        _show(axes[0, i], images[i])
        _show(axes[1, i], images[i] if images[i].shape[-1] == 1 else images[i].mean(-1, keepdims=True))
        height, width = images[i].shape[:2]
        heat = axes[1, i].imshow(
            maps[i], cmap="inferno", alpha=0.6, vmin=0, vmax=1, extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
        )  # fmt: skip
        axes[0, i].set_title(titles[i], fontsize=8)
        axes[0, i].axis("off")
        axes[1, i].axis("off")
    figure.colorbar(heat, ax=axes[1, :], shrink=0.8, label="relative weight")
    return _image(figure, alt)


def filters(kernel: np.ndarray, columns: int = 16) -> str:
    """The kernels of the first convolution, each scaled to its own range."""
    shown = min(kernel.shape[-1], 4 * columns)
    scaled = [_scaled(kernel[..., i]) for i in range(shown)]
    return grid(scaled, [""] * shown, min(columns, shown), "first filters", cell=0.7)


def maps(name: str, found: np.ndarray, columns: int = 12) -> str:
    """The first maps of a layer for one picture, each scaled to its own range."""
    shown = min(found.shape[-1], 2 * columns)
    return grid([_scaled(found[..., i : i + 1]) for i in range(shown)], [""] * shown, columns, f"maps of {name}", 0.9)


def scatter(true: np.ndarray, predicted: np.ndarray, name: str) -> str:
    """Predicted against true values of one target."""
    figure = _figure(4.6, 4.0)
    axes = figure.subplots()
    axes.scatter(true, predicted, s=8, color="#0072B2", alpha=0.5)
    both = np.concatenate([true, predicted[np.isfinite(predicted)]])
    ends = [both.min(), both.max()]
    axes.plot(ends, ends, color="#D55E00", linestyle="--", label="equal")
    axes.set(xlabel=f"true {name} (the data's unit)", ylabel=f"predicted {name} (the data's unit)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    return _image(figure, f"predicted against true values of {name}")


def boxes(images: Sequence[np.ndarray], true: np.ndarray, predicted: np.ndarray, titles: Sequence[str]) -> str:
    """Pictures with the true box and the predicted one; boxes are x, y, width, height as fractions."""
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    figure = _figure(2.4 * columns, 2.7 * rows + 0.3)
    for i, panel in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        _show(panel, images[i])
        height, width = images[i].shape[:2]
        for box, colour, style, label in (
            (true[i], "#009E73", "-", "true"), (predicted[i], "#D55E00", "--", "predicted")
        ):  # fmt: skip
            x, y, w, h = box * (width, height, width, height)
            panel.plot(
                np.array([x, x + w, x + w, x, x]) - 0.5, np.array([y, y, y + h, y + h, y]) - 0.5, color=colour,
                linestyle=style, label=label,
            )  # fmt: skip
        panel.set_title(titles[i], fontsize=8)
        panel.axis("off")
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return _image(figure, "true and predicted boxes")


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _show(axes: Any, image: np.ndarray) -> None:
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    else:
        axes.imshow(image[..., :3])


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _image(figure: Figure, alt: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{text}">'
