"""Read CSV files of any encoding as text; errors name the row as a spreadsheet numbers it."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from manifests.budget import Budget, read_file
from manifests.validation import raise_faults

_COPIES = 7  # bytes per byte: the text may take four, as does the buffer of the parser
_PER_CELL = 150  # bytes
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_cells(path: Path, fallback: str | None = None) -> tuple[pd.DataFrame, str]:
    """Read all cells as text without outer blanks; also return the encoding of the file.

    Nothing is parsed as a null or a number: an utterance may be the word "NA". Rows are numbered as
    in a spreadsheet (the header is row 1); empty rows are skipped. Column names are made lower
    case.

    Args:
        path: a file of comma separated values with a header.
        fallback: encoding of a file that is not UTF-8 (with or without a byte order mark); None:
            such a file is an error.

    Raises:
        ValueError: not in that encoding, no header, a column twice, or rows of another length.
    """
    budget = Budget.of(path)
    text, encoding = _decode(path, fallback, budget)
    budget.take(str(path), _PER_CELL * (text.count(",") + text.count("\n")))
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: not comma separated values: {error}") from error
    header = [cell.strip().lower() for cell in records[0]] if records else []
    if len(header) < 2 and not re.fullmatch(r"\w+", "".join(header)):
        raise ValueError(
            f"{path}: its first line is {','.join(header)!r}: it must name the columns, separated "
            "by commas (not semicolons or tabs)"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: column {', '.join(twice)} occurs twice: rename one")
    rows = {
        number: cells
        for number, cells in enumerate(records[1:], start=2)
        if any(cell.strip() for cell in cells)
    }
    raise_faults(
        [
            f"row {number}: {len(cells)} cells, the header has {len(header)}: put quotes around a "
            "text with commas"
            for number, cells in rows.items()
            if len(cells) != len(header)
        ],
        path,
    )
    table = pd.DataFrame(list(rows.values()), columns=header, index=list(rows), dtype="object")
    return table.map(str.strip), encoding


def require(table: pd.DataFrame, columns: list[str], path: Path) -> None:
    """Raise a ValueError unless `table`, read from `path`, has the columns and a row."""
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}: add it; it has {', '.join(table.columns)}"
        )
    if table.empty:
        raise ValueError(f"{path}: no rows below the header: write one for each utterance")


def numbers(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """Convert a column to float64; an empty cell becomes NaN.

    Raises:
        ValueError: a cell is not a finite number; lists the rows.
    """
    cells = table[column]
    values = pd.to_numeric(cells.where(cells != ""), errors="coerce").astype(np.float64)
    # pandas parses the words "nan" and "inf" as numbers; here they are faults.
    bad = (cells != "") & ~np.isfinite(values)
    raise_faults(
        [
            f"row {row}: {column} {cell!r} is not a number: write it like 0.4, with a point"
            for row, cell in cells[bad].items()
        ],
        path,
    )
    return values


def _decode(path: Path, fallback: str | None, budget: Budget) -> tuple[str, str]:
    try:
        content = read_file(path, budget, copies=_COPIES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if content.startswith(UTF_16_MARKS):
        return content.decode("utf-16"), "utf-16"
    try:
        return content.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        fault = f"{path}: row {row}: byte 0x{content[error.start]:02x} is not UTF-8"
    if fallback is None:
        raise ValueError(f"{fault}: save the file as CSV UTF-8")
    try:
        return content.decode(fallback), fallback
    except UnicodeDecodeError as error:
        raise ValueError(f"{fault}, nor is the file {fallback}: save it as CSV UTF-8") from error
