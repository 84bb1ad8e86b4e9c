"""Print and log text from files and shares: escape it, shorten it, format sizes.

All output goes through :func:`say`, the loggers of :func:`get_logger` or `manifests.console`, so
that no name or message of others controls the terminal.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Collection
from itertools import islice

_UNITS = {"T": 10**12, "G": 10**9, "M": 10**6, "K": 10**3, "": 1}


def escape_controls(text: str) -> str:
    """Escape control characters, marks of direction and other invisible text; line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(text: object, error: bool = False, flush: bool = False) -> None:
    """Print a line, to standard error if it is an error."""
    print(escape_controls(str(text)), file=sys.stderr if error else sys.stdout, flush=flush)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; its messages are escaped whoever handles them."""
    log = logging.getLogger(name)
    if _escape_record not in log.filters:
        log.addFilter(_escape_record)
    return log


def _escape_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = escape_controls(record.getMessage()), ()
    return True


def preview(items: Collection[object], shown: int = 5, separator: str = ", ") -> str:
    """Join the first ``shown`` items; ``and N more`` counts the rest."""
    parts = [str(item) for item in islice(items, shown)]
    if len(items) > shown:
        parts.append(f"and {len(items) - shown} more")
    return separator.join(parts)


def format_bytes(size: int) -> str:
    """Format a number of bytes with a decimal unit, such as ``1.5 GB``."""
    for unit, factor in _UNITS.items():
        if unit and size >= factor:
            return f"{size / factor:.1f} {unit}B"
    return f"{size} B"


def parse_bytes(text: str) -> int:
    """Parse a size with a decimal unit, such as ``500M`` or ``1.5gb``.

    Raises:
        ValueError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.upper(), re.ASCII)
    size = float(match[1]) * _UNITS[match[2]] if match else math.inf
    if size == math.inf:
        raise ValueError(f"{text!r:.50} is not a size; write 500M, 20G or 1T")
    return int(size)


def clock(seconds: float) -> str:
    """Format seconds as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
