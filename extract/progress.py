"""Progress of a running extraction, and its failures grouped by reason."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cache import Record
from manifests.console import Console
from manifests.printing import clock, format_bytes, preview, say

EVERY_S = 30.0
"""Seconds between two lines of output without a terminal."""


@dataclass
class Tally:
    """Counts of a running extraction.

    Attributes:
        total: utterances that this run is to extract, including those of earlier runs.
        total_s: estimated seconds of video that this run is to extract.
        done: utterances finished, including those of earlier runs.
        failed: utterances among them without features.
        seconds: seconds of video extracted by this run.
        new: utterances finished by this run.
        done_s: how many of ``total_s`` are finished.
        decoded: ids that this run has decoded.
        encoded: ids that this run has encoded; they are finished when their block is written.
        began: start of the run on the monotonic clock.
    """

    total: int
    total_s: float
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    new: int = 0
    done_s: float = 0.0
    decoded: set[str] = field(default_factory=set)
    encoded: set[str] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def add(self, records: Sequence[Record], seconds: float) -> None:
        """Count a finished block; ``seconds`` is its estimated length."""
        self.done += len(records)
        self.new += len(records)
        self.failed += sum(record.status == "failed" for record in records)
        self.seconds += sum(record.duration for record in records)
        self.done_s += seconds

    def reached(self, stage: str, ids: Sequence[str]) -> None:
        """Count utterances as ``"decoded"`` or ``"encoded"``; a lost worker's are counted once."""
        (self.decoded if stage == "decoded" else self.encoded).update(ids)

    def line(self, now: float | None = None) -> str:
        """One line of text: counts, speed and time left."""
        took = (time.monotonic() if now is None else now) - self.began
        text = f"{self.done} of {self.total} utterances"
        if self.decoded:
            stages = f"{len(self.decoded)} decoded, {len(self.encoded)} encoded"
            text += f", {stages}, {self.new} written"
        if self.failed:
            text += f", {self.failed} failed"
        if self.new and took > 0:
            text += f", {self.new / took:.1f} utterances/s, {self.seconds / took:.1f} video-s/s"
        if self.done_s > 0 and self.done < self.total:
            left = took * max(0.0, self.total_s - self.done_s) / self.done_s
            text += f", {clock(left)} left"
        return text


class ProgressView:
    """A progress bar on a terminal; elsewhere a line every 30 seconds."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("extract"), BarColumn(), MofNCompleteColumn()
        self._bar = Progress(
            *columns,
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._lines = not console.is_terminal
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, tally: Tally) -> None:
        """Show the counts; called about once a second."""
        rest = tally.line().partition(" utterances")[2].removeprefix(", ")
        self._bar.update(
            self._task, completed=tally.done, total=tally.total, description=rest or "starting"
        )
        if self._lines and time.monotonic() - self._last_line >= EVERY_S:
            say(tally.line(), flush=True)
            self._last_line = time.monotonic()

    def hashing(self, done: int, total: int) -> None:
        """Show that the videos' contents are compared: bytes read, bytes to read."""
        text = f"reading the videos: {format_bytes(done)} of {format_bytes(total)}"
        self._bar.update(self._task, description=text)
        if self._lines and time.monotonic() - self._last_line >= EVERY_S:
            say(text, flush=True)
            self._last_line = time.monotonic()


def by_reason(failures: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Group failures ``(id, reason)`` into ``(reason, ids)``, the most frequent reason first.

    Reasons that differ only in numbers and quoted names are grouped under the first of them.
    """
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for i, reason in failures:
        key = re.sub(r"[\w./-]*\d[\w./-]*|'[^']*'|\"[^\"]*\"", "#", reason)
        groups[key].append((reason, i))
    largest = sorted(groups.values(), key=lambda group: (-len(group), group[0]))
    return [(group[0][0], [i for _, i in group]) for group in largest]


def reason_lines(failures: Iterable[tuple[str, str]]) -> list[str]:
    """One line per reason of :func:`by_reason`: count, first ids, reason."""
    lines = []
    for reason, ids in by_reason(failures):
        count = f"{len(ids)} x " if len(ids) > 1 else ""
        lines.append(f"  {count}{preview(ids, 3)}: {reason}")
    return lines
