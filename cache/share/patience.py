"""How long a server may take, and how long it may ask to wait."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

GRACE_S = 30.0
"""Seconds that any answer may take, before its speed counts."""
SLOWEST = 4000.0
"""Bytes per second below which a server is given up."""
MOST_WAIT_S = 60.0
"""Seconds that a busy server may ask to wait before the next try."""
TRIES = 4
BUSY = (429, 503)


class WebError(Exception):
    """A server sends too much, too slowly, or leads to where it must not."""


def pause(status: int, asked: str, attempt: int, most_s: float = MOST_WAIT_S) -> float:
    """Return the seconds to wait for a busy server: as many as it asks for.

    Args:
        status: of its answer.
        asked: its ``Retry-After``, seconds or a date; empty without one.
        attempt: number of tries before this one.
        most_s: seconds that it may ask for.

    Raises:
        WebError: it asks for more.
    """
    asked = asked.strip()
    if asked.isascii() and asked.isdigit():
        seconds = float(asked[:9])
    else:
        try:
            until = parsedate_to_datetime(asked)
            until = until if until.tzinfo else until.replace(tzinfo=UTC)
            seconds = max(0.0, (until - datetime.now(UTC)).total_seconds())
        except ValueError:  # nothing, or nothing that can be read
            seconds = 2.0**attempt
    if seconds > most_s:
        raise WebError(
            f"the server is busy (status {status}) and asks to wait {seconds:.0f} s; try "
            f"again at {time.strftime('%H:%M', time.localtime(time.time() + seconds))}"
        )
    return seconds
