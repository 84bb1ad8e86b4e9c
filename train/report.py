"""What a run says: lines, a bar on a terminal, the table of figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from train.metrics import UNSCALED, Metrics

FEW = 5
"""Steps after which the time of one is known."""


def print_plain(console: Console, line: str) -> None:
    """One plain line: no markup, no colours, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, steps: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; yields what to call after each step."""
    left = _Remaining(done)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), left)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=steps, completed=done)
        yield lambda: bar.advance(task)


class _Remaining(TimeRemainingColumn):
    """The time left, as soon as some steps of this process tell how long one takes.

    Args:
        done: steps that were done before; the first of this process is slow.
    """

    def __init__(self, done: int) -> None:
        super().__init__()
        self.done = done

    def render(self, task: RichTask) -> Text:
        """Dashes at first, then the time."""
        if task.completed < self.done + FEW:
            return Text("-:--:--", style="progress.remaining")
        return super().render(task)


def metrics_table(predictors: Mapping[str, Metrics]) -> Table:
    """Metrics side by side, one column per predictor; fractions in percent."""
    table = Table("figure", caption_justify="left")
    for predictor in predictors:
        table.add_column(predictor, justify="right")
    for name in next(iter(predictors.values())):
        table.add_row(
            name, *(format_metric(name, figures[name]) for figures in predictors.values())
        )
    table.caption = "fractions in percent"
    return table


def headline(figures: Metrics) -> str:
    """The first two figures of a set, for the line of an epoch."""
    return "  ".join(f"{name} {format_metric(name, figures[name])}" for name in list(figures)[:2])


def format_metric(name: str, value: float | None) -> str:
    """A figure as a reader meets it in a paper: percent with one place, errors with three."""
    if value is None or math.isnan(value):  # a file's null stands for NaN
        return "undefined"
    return f"{value:.3f}" if name in UNSCALED else f"{100 * value:.1f}"


def quiet_transformers(console: Console) -> None:
    """Keep transformers from talking between our lines."""
    from transformers.utils import logging  # takes seconds: `--help` should not wait for it

    logging.set_verbosity_error()
    if not console.is_terminal:
        logging.disable_progress_bar()
