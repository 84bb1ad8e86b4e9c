"""Console output: messages, progress bar, and tables for a terminal, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from manifests.console import Console
from train.metrics import UNSCALED, Metrics

if TYPE_CHECKING:
    import pandas as pd

FEW = 5
"""Steps after which the time of one is known."""

_ESCAPED = str.maketrans({**{c: f"\\{c}" for c in "%_&#{}$"}, "±": "$\\pm$"})
"""Characters that LaTeX reserves."""


def print_plain(console: Console, line: str) -> None:
    """Print one line without markup, colours or wrapping."""
    console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, steps: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal; yields a function to call after each step."""
    left = _Remaining(done)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), left)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=steps, completed=done)
        yield lambda: bar.advance(task)


class _Remaining(TimeRemainingColumn):
    """The remaining time, once this process has timed a few steps.

    Args:
        done: steps done before this process started; its first one is slow.
    """

    def __init__(self, done: int) -> None:
        super().__init__()
        self.done = done

    def render(self, task: RichTask) -> Text:
        """Render dashes for the first steps, then the time."""
        if task.completed < self.done + FEW:
            return Text("-:--:--", style="progress.remaining")
        return super().render(task)


def metrics_table(predictors: Mapping[str, Metrics]) -> Table:
    """Format metrics side by side, one column per predictor; fractions in percent."""
    table = Table("metric", caption_justify="left")
    for predictor in predictors:
        table.add_column(predictor, justify="right")
    for name in next(iter(predictors.values())):
        table.add_row(
            name, *(format_metric(name, results[name]) for results in predictors.values())
        )
    table.caption = "fractions in percent"
    return table


def headline(results: Metrics) -> str:
    """Format the first two metrics of a set, for the line of an epoch."""
    return "  ".join(f"{name} {format_metric(name, results[name])}" for name in list(results)[:2])


def format_metric(name: str, value: float | None) -> str:
    """Format a metric as in a paper: percent with one decimal place, errors with three."""
    if value is None or math.isnan(value):  # a file's null stands for NaN
        return "undefined"
    return f"{value:.3f}" if name in UNSCALED else f"{100 * value:.1f}"


def quiet_transformers(console: Console) -> None:
    """Silence transformers: errors only, and no progress bars outside a terminal."""
    from transformers.utils import logging  # takes seconds to import

    logging.set_verbosity_error()
    if not console.is_terminal:
        logging.disable_progress_bar()


def markdown(cells: pd.DataFrame) -> str:
    """Format cells as a Markdown table; the index is the first column, left-aligned."""
    head, *rows = _rows(cells)
    lines = [head, [":--", *["--:"] * cells.shape[1]], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(cells: pd.DataFrame) -> str:
    """Format cells as a LaTeX ``tabular`` with the rules of booktabs."""
    head, *rows = (" & ".join(cell.translate(_ESCAPED) for cell in row) for row in _rows(cells))
    lines = [
        f"\\begin{{tabular}}{{l{'r' * cells.shape[1]}}}",
        "\\toprule",
        f"{head} \\\\",
        "\\midrule",
        *(f"{row} \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def drop_columns_to_fit(cells: pd.DataFrame, width: int) -> pd.DataFrame:
    """Drop columns, from the fourth on, until the cells fit in ``width`` characters."""
    cells = cells.copy()
    while cells.shape[1] > 3 and _width(cells) > width:
        del cells[cells.columns[min(3, cells.shape[1] - 1)]]
    return cells


def rich_table(cells: pd.DataFrame, title: str) -> Table:
    """Format cells as a table for a terminal."""
    head, *rows = _rows(cells)
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _width(cells: pd.DataFrame) -> int:
    widest = [max(map(len, column)) for column in zip(*_rows(cells), strict=True)]
    return sum(widest) + 3 * len(widest) + 1  # two blanks and a line about each


def _rows(cells: pd.DataFrame) -> Iterator[list[str]]:
    yield [str(cells.index.name), *cells.columns]
    for name, row in zip(cells.index, cells.to_numpy(), strict=True):
        yield [str(name), *row]
