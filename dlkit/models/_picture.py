"""A network as an SVG picture: one box per run of layers with the same map."""

from html import escape
from itertools import groupby
from typing import Any

COLOURS = ("#8ecae6", "#219ebc", "#90be6d", "#f9c74f", "#f8961e", "#f3722c", "#577590")


def svg(description: Any) -> str:
    """Returns the picture: heights follow the map's side (log scale), widths the number of layers with weights."""
    stages = _stages(description)
    boxes, x, top, base = [], 20, 60, 220
    for i, (size, channels, layers, parameters) in enumerate(stages):
        height = 24 + 18 * max(0, (size or 1).bit_length() - 1)
        width = 34 + 6 * min(layers, 16)
        y = base - height / 2 - top / 2
        label = f"{size}x{size}x{channels}" if size else str(channels)
        title = f"{layers} layers with weights, {parameters:,} parameters"
        boxes.append(
            f'<g><title>{escape(title)}</title><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" '
            f'fill="{COLOURS[i % len(COLOURS)]}" stroke="#333"/>'
            f'<text x="{x + width / 2}" y="{base + 70}" text-anchor="middle">{escape(label)}</text>'
            f'<text x="{x + width / 2}" y="{base + 86}" text-anchor="middle" fill="#555">{layers} layers</text></g>'
        )
        x += width + 44
    head = f"{description.name}: {description.parameters:,} parameters"
    if description.multiply_adds is not None:
        head += f", {description.multiply_adds:,} multiply-adds"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x}" height="{base + 110}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="20" y="28" font-size="15">{escape(head)}</text>{"".join(boxes)}</svg>\n'
    )


def _stages(description: Any) -> list[tuple[int | None, int, int, int]]:
    """Returns (side, channels, layers with weights, parameters) of each run of layers with equal outputs."""
    rows = [r for r in description.layers if r.multiply_adds or (r.multiply_adds is None and r.parameters)]

    def key(row: Any) -> tuple[int | None, int]:
        side = row.output[0] if len(row.output) > 1 else None
        return side, 0 if side else row.output[-1] or 0

    found = []
    for (side, _), group in groupby(rows, key):
        members = list(group)
        channels = max(r.output[-1] for r in members)
        found.append((side, channels, len(members), sum(r.parameters for r in members)))
    return found
