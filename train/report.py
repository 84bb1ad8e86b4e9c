"""What a run says: lines, a bar on a terminal, the table of figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from train.metrics import UNSCALED, Figures


def say(console: Console, line: str) -> None:
    """One plain line: no markup, no colours, no wrapping."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, steps: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; yields what to call after each step."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=steps)
        yield lambda: bar.advance(task)


def figures_table(predictors: Mapping[str, Figures]) -> Table:
    """Figures side by side, one column per predictor; fractions in percent."""
    table = Table("figure", caption_justify="left")
    for predictor in predictors:
        table.add_column(predictor, justify="right")
    for name in next(iter(predictors.values())):
        table.add_row(name, *(shown(name, figures[name]) for figures in predictors.values()))
    table.caption = "fractions in percent"
    return table


def headline(figures: Figures) -> str:
    """The first two figures of a set, for the line of an epoch."""
    return "  ".join(f"{name} {shown(name, figures[name])}" for name in list(figures)[:2])


def shown(name: str, value: float) -> str:
    """A figure as a reader meets it in a paper: percent with one place, errors with three."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.3f}" if name in UNSCALED else f"{100 * value:.1f}"


def some(ids: list[str], count: int = 5) -> str:
    """The first few of a list."""
    return ", ".join(ids[:count]) + (", ..." if len(ids) > count else "")
