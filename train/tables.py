"""One table of strings, as Markdown, as LaTeX and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich.table import Table

_ESCAPED = str.maketrans({**{c: f"\\{c}" for c in "%_&#{}$"}, "±": "$\\pm$"})


def markdown(cells: pd.DataFrame) -> str:
    """A Markdown table; the index is the first column, the others stand at the right."""
    head, *rows = _rows(cells)
    lines = [head, [":--", *["--:"] * cells.shape[1]], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(cells: pd.DataFrame) -> str:
    """A LaTeX ``tabular`` with the rules of booktabs."""
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
    """The same in ``width`` characters: columns go, from the fourth on, until it fits."""
    cells = cells.copy()
    while cells.shape[1] > 3 and _width(cells) > width:
        del cells[cells.columns[min(3, cells.shape[1] - 1)]]
    return cells


def rich_table(cells: pd.DataFrame, title: str) -> Table:
    """The same for a terminal."""
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
