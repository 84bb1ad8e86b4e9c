"""Check a table of utterances; every fault is reported with its row and its remedy."""

import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from manifests.card import SPLITS, UNIMODAL_LABELS, Card
from manifests.printing import preview

CROP = ["crop_x", "crop_y", "crop_w", "crop_h"]
SHOWN = 20

LONGEST_S = 600
"""Seconds. A longer utterance means times in milliseconds or frames, or an uncut recording."""

# Signs of a text that was read in a wrong encoding: the replacement character, control characters
# (other than white space), and the most frequent pairs of UTF-8 read as Latin-1 or Windows-1252.
GARBLED = re.compile("\ufffd|[\0-\x08\x0e-\x1f\x7f-\x9f]|â€|[ÂÃ][¡-º¼-¿]")


def find_faults(card: Card, table: pd.DataFrame) -> list[str]:
    """Return all faults of `table` (in the manifest's types) under `card`.

    Each has the form ``row 12 (id 'a'): fault: remedy``; the number is the table's index. An index
    of text is the place itself: ``a.csv: row 12``.
    """
    checks = (_ids, _videos, _intervals, _crops, _splits, _texts, _encoding, _labels, _leaks)
    return [fault for check in checks for fault in check(card, table)]


def raise_faults(faults: Sequence[str], where: Path | str) -> None:
    """Raise one ValueError with a line per fault, at most `SHOWN`; return if `faults` is empty."""
    if faults:
        lines = [f"{where}: {fault}" for fault in faults]
        raise ValueError(preview(lines, SHOWN, "\n"))


def _at(table: pd.DataFrame, bad: pd.Series, fault: str) -> Iterator[str]:
    """Yield one fault for each row where `bad` is true; `fault` may name columns in braces."""
    for row, cells in table[bad.fillna(False).astype(bool)].iterrows():
        values = {
            str(column): repr(value) if isinstance(value, str) else str(value)
            for column, value in cells.items()
        }
        yield f"{_place(row)} (id {values['id']}): " + fault.format_map(values)


def _place(row: Hashable) -> str:
    return row if isinstance(row, str) else f"row {row}"


def _blank(column: pd.Series) -> pd.Series:
    return column.fillna("").str.strip() == ""


def _ids(card: Card, table: pd.DataFrame) -> Iterator[str]:
    yield from _at(table, _blank(table["id"]), "empty id: give every utterance an id")
    again = table["id"].duplicated() & ~_blank(table["id"])
    yield from _at(table, again, "duplicate id: ids must be unique, rename or drop the row")


def _videos(card: Card, table: pd.DataFrame) -> Iterator[str]:
    remedy = "give a path below the data root, with forward slashes"
    video = table["video"]
    yield from _at(table, _blank(video), f"no video: {remedy}")
    absolute = video.str.match(r"[/~]|[A-Za-z]:")
    yield from _at(table, absolute, f"absolute path {{video}}: {remedy}")
    outside = video.str.contains(r"(?:^|/)\.\.(?:/|$)", regex=True)
    yield from _at(table, outside, f"video {{video}} has '..': {remedy}")
    yield from _at(
        table, video.str.contains("\\", regex=False), f"video {{video}} has a backslash: {remedy}"
    )


def _intervals(card: Card, table: pd.DataFrame) -> Iterator[str]:
    start, end = table["start"], table["end"]
    one = start.isna() != end.isna()
    yield from _at(table, one, "start {start}, end {end}: give both, or neither for the whole file")
    bad = (start < 0) | (end <= start) | start.abs().eq(float("inf")) | end.eq(float("inf"))
    yield from _at(table, bad, "bad interval {start} to {end} s: need 0 <= start < end, finite")
    long = ~bad & (end - start > LONGEST_S)
    remedy = "give seconds, and cut a whole recording into utterances"
    yield from _at(table, long, f"interval {{start}} to {{end}} s is over {LONGEST_S} s: {remedy}")


def _crops(card: Card, table: pd.DataFrame) -> Iterator[str]:
    crop = table[CROP]
    some = crop.isna().any(axis=1) & crop.notna().any(axis=1)
    shown = "crop x {crop_x}, y {crop_y}, w {crop_w}, h {crop_h}"
    yield from _at(table, some, f"{shown}: give all four fractions, or none")
    x, y, w, h = (table[column] for column in CROP)
    rounding = 1 + 1e-9
    bad = (x < 0) | (y < 0) | (w <= 0) | (h <= 0) | (x + w > rounding) | (y + h > rounding)
    yield from _at(table, bad, f"{shown}: the crop must be inside the picture, in fractions of it")


def _splits(card: Card, table: pd.DataFrame) -> Iterator[str]:
    unknown = ~table["split"].isin(SPLITS)
    yield from _at(table, unknown, f"unknown split {{split}}: use {', '.join(SPLITS)}")


def _texts(card: Card, table: pd.DataFrame) -> Iterator[str]:
    if card.transcripts:
        yield from _at(table, _blank(table["text"]), "empty text: transcribe it or drop the row")


def _encoding(card: Card, table: pd.DataFrame) -> Iterator[str]:
    remedy = "it was read in another encoding than it was written in, save it as UTF-8"
    columns = ["id", "video", "text", "speaker", "dialogue", "context"]
    for column in (name for name in columns if name in table):
        garbled = table[column].str.contains(GARBLED)
        yield from _at(table, garbled, f"bad encoding in {column} {{{column}}}: {remedy}")


def _labels(card: Card, table: pd.DataFrame) -> Iterator[str]:
    if card.task == "classification":
        blank = _blank(table["label"])
        yield from _at(table, blank, "no label: fill it in, or drop the row")
        unknown = ~blank & ~table["label"].isin(card.classes)
        yield from _at(
            table, unknown, f"unknown class {{label}}: the card has {', '.join(card.classes)}"
        )
        return
    if card.task == "multilabel":
        for column in card.labels:
            bad = ~table[column].isin([0, 1])
            yield from _at(table, bad, f"{_quoted(column)} must be 0 or 1")
        return
    assert card.range is not None
    low, high = card.range
    for column in [*card.labels, *(UNIMODAL_LABELS if card.unimodal else ())]:
        blank = table[column].isna()
        yield from _at(table, blank, f"no {column}: fill it in, or drop the row")
        outside = ~blank & ~table[column].between(low, high)
        yield from _at(
            table, outside, f"{column} {{{column}}} is not in [{low}, {high}]: fix it or the card"
        )


def _quoted(column: str) -> str:
    # A class may have any name; a format string can refer to plain names only.
    return f"{column} {{{column}}}" if re.fullmatch(r"\w+", column) else column


def _leaks(card: Card, table: pd.DataFrame) -> Iterator[str]:
    for column in card.disjoint:
        if column not in table:
            yield f"no column {column!r}, which the card wants disjoint: add it or change the card"
            continue
        missing = table[column].isna()
        yield from _at(table, missing, f"no {column}, by which the card splits: fill it in")
        known = table[~missing]
        first = known.groupby(column)["split"].transform("first")
        for value, rows in known[known["split"] != first].groupby(column):
            splits = sorted(known.loc[known[column] == value, "split"].dropna().unique())
            yield (
                f"{_place(rows.index[0])} (id {rows['id'].iloc[0]!r}): split leak: "
                f"{column} {value!r} is in {' and '.join(splits)}: keep every {column} in one split"
            )
