"""Write the results of a benchmark as JSON, Markdown and SVG."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import psutil
import torch


def machine(threads: int) -> dict[str, Any]:
    """Describe the hardware and versions that the numbers depend on; nothing that identifies it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": gpu,
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write(
    folder: Path,
    name: str,
    ratios: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    threads: int,
    text: str,
    svg: str = "",
) -> None:
    """Write ``<name>.json``, ``<name>.md`` and, if there is a plot, ``<name>.svg``.

    The JSON file is ``{"ratios": {...}, "rows": [...], "machine": {...}}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "ratios": dict(ratios),
        "rows": [dict(row) for row in rows],
        "machine": machine(threads),
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    if svg:
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format an aligned table: first column to the left, the others to the right."""
    widths = [max(3, *(len(row[i]) for row in (headings, *rows))) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headings), line(rule), *(line(row) for row in rows)])


def ratio_table(ratios: Mapping[str, float]) -> str:
    """Format the ratios of a benchmark, in their order."""
    return markdown(["Ratio", "measured"], [[f"`{name}`", number(x)] for name, x in ratios.items()])


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with significant digits and thousands separators; None as a dash."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{rounded:,.{decimals}f}"


def bars_svg(title: str, unit: str, bars: Sequence[tuple[str, float, bool]]) -> str:
    """Draw horizontal bars over a logarithmic axis, for light and dark pages.

    Args:
        title: the headline.
        unit: unit of the values.
        bars: ``(label, value > 0, whether it is ours)``, from top to bottom.
    """
    left, plot, right, top, step = 220, 460, 90, 56, 26
    low = math.floor(math.log10(min(value for _, value, _ in bars)))
    high = math.log10(max(value for _, value, _ in bars))
    per_decade = plot / max(1e-9, high - low)
    bottom = top + step * len(bars)
    width, height = left + plot + right, bottom + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}">',
        "<style>",
        "text { font: 13px system-ui, sans-serif; fill: #24292f }",
        ".title { font-weight: 600; font-size: 15px } .axis { font-size: 11px; fill: #6e7781 }",
        ".grid { stroke: #d0d7de } .ours { fill: #0969da } .other { fill: #8c959f }",
        "@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .axis { fill: #8b949e }",
        ".grid { stroke: #30363d } .ours { fill: #58a6ff } .other { fill: #6e7681 } }",
        "</style>",
        f'<text class="title" x="12" y="26">{escape(title)}</text>',
    ]
    for power in range(low, math.floor(high) + 1):
        x = left + (power - low) * per_decade
        lines += [
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{bottom}"/>',
            f'<text class="axis" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{10.0**power:,.10g}</text>",
        ]
    for place, (label, value, ours) in enumerate(bars):
        y = top + place * step
        length = max(1.0, (math.log10(value) - low) * per_decade)
        style = "ours" if ours else "other"
        lines += [
            f'<text x="{left - 10}" y="{y + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{style}" x="{left}" y="{y}" width="{length:.1f}" height="18" rx="2"/>',
            f'<text x="{left + length + 6:.1f}" y="{y + 13}">{number(value)}</text>',
        ]
    lines.append(
        f'<text class="axis" x="{left + plot}" y="{bottom + 29}" text-anchor="end">'
        f"{escape(unit)}, logarithmic</text>"
    )
    return "\n".join([*lines, "</svg>", ""])
