"""How an extraction is going, and in the end what failed and why."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cache import Record

EVERY_S = 30.0
"""Seconds between two lines where there is no terminal."""


@dataclass
class Tally:
    """Counts of a running extraction.

    Attributes:
        in_all: utterances of the dataset that this run is about.
        work: estimated seconds of video that are to be extracted.
        done: utterances finished, those of earlier runs included.
        failed: utterances among them without features.
        seconds: seconds of video extracted by this run.
        new: utterances finished by this run.
        worked: how much of ``work`` is finished.
        decoded: ids of those that this run has decoded,
        encoded: and of those that it has encoded; they are finished when their block is written.
        began: when the work began, on the monotonic clock.
    """

    in_all: int
    work: float
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    new: int = 0
    worked: float = 0.0
    decoded: set[str] = field(default_factory=set)
    encoded: set[str] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def add(self, records: Sequence[Record], worked: float) -> None:
        """A block is finished; ``worked`` are its estimated seconds."""
        self.done += len(records)
        self.new += len(records)
        self.failed += sum(record.status == "failed" for record in records)
        self.seconds += sum(record.duration for record in records)
        self.worked += worked

    def reached(self, stage: str, ids: Sequence[str]) -> None:
        """Some utterances are ``"decoded"`` or ``"encoded"``; those of a lost worker twice."""
        (self.decoded if stage == "decoded" else self.encoded).update(ids)

    def line(self, now: float | None = None) -> str:
        """One line for a person: how far, how fast, how long still."""
        took = (time.monotonic() if now is None else now) - self.began
        text = f"{self.done} of {self.in_all} utterances"
        if self.decoded:
            stages = f"{len(self.decoded)} decoded, {len(self.encoded)} encoded"
            text += f", {stages}, {self.new} written"
        if self.failed:
            text += f", {self.failed} failed"
        if self.new and took > 0:
            text += f", {self.new / took:.1f} utterances/s, {self.seconds / took:.1f} video-s/s"
        if self.worked > 0 and self.done < self.in_all:
            left = took * max(0.0, self.work - self.worked) / self.worked
            text += f", {clock(left)} left"
        return text


class ProgressView:
    """A live bar on a terminal, a line every 30 seconds elsewhere."""

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
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, tally: Tally) -> None:
        """Called about once a second."""
        rest = tally.line().partition(" utterances")[2].removeprefix(", ")
        self._bar.update(
            self._task, completed=tally.done, total=tally.in_all, description=rest or "starting"
        )
        if self._lines and time.monotonic() - self._said >= EVERY_S:
            print(tally.line(), flush=True)
            self._said = time.monotonic()


def by_reason(failures: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """``(reason, ids)`` of what is not ok, the most frequent reason first.

    Reasons that differ in numbers and quoted names only are one; the first one stands for all.
    """
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for i, reason in failures:
        key = re.sub(r"[\w./-]*\d[\w./-]*|'[^']*'|\"[^\"]*\"", "#", reason)
        groups[key].append((reason, i))
    largest = sorted(groups.values(), key=lambda group: (-len(group), group[0]))
    return [(group[0][0], [i for _, i in group]) for group in largest]


def reason_lines(failures: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason of :func:`by_reason`: how many, the first ids, why."""
    lines = []
    for reason, ids in by_reason(failures):
        examples = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        count = f"{len(ids)} x " if len(ids) > 1 else ""
        lines.append(f"  {count}{examples}: {reason}")
    return lines


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
