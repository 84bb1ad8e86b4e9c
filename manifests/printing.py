"""Prepare text from files and shares for printing: escape it, shorten it, name sizes."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

_UNITS = {"T": 10**12, "G": 10**9, "M": 10**6, "K": 10**3}


def escape_controls(text: str) -> str:
    """Escape control characters and unprintable text; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def preview(items: Collection[object], shown: int = 5, separator: str = ", ") -> str:
    """Join the first ``shown`` items; ``and N more`` counts the rest."""
    parts = [str(item) for item in islice(items, shown)]
    if len(items) > shown:
        parts.append(f"and {len(items) - shown} more")
    return separator.join(parts)


def format_bytes(size: int) -> str:
    """Format a number of bytes with a decimal unit, such as ``1.5 GB``."""
    for unit, factor in _UNITS.items():
        if size >= factor:
            return f"{size / factor:.1f} {unit}B"
    return f"{size} B"
