"""Read the user's own data: a folder with ``labels.csv``, the videos and optionally ``card.yaml``.

docs/your-own-data.md describes these files. A missing card is drafted from the labels and missing
splits are drawn by speaker, the same on every machine; both are reported.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from manifests.adapters import AdapterResult
from manifests.card import SPLITS, UNIMODAL_LABELS, Card
from manifests.csv_table import numbers, read_cells, require
from manifests.locate import CARD, OWN_TABLE
from manifests.manifest import FLOATS, INTEGERS

SEED = 1
TEST, VALID = 0.2, 0.1


def read(name: str, source: Path) -> tuple[Card, AdapterResult]:
    """Read the card and the table of the data in `source` as the dataset `name`.

    Raises:
        ValueError: a name that cannot be a folder's, a card with another name, a missing column, or
            a cell that cannot be read; the message names file and row.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"{name!r} cannot name a dataset: use letters, digits, _ and -")
    path = source / OWN_TABLE
    cells, _ = read_cells(path)
    require(cells, ["id", "video"], path)
    if (source / CARD).is_file():
        card = Card.load(source / CARD)
        if card.name != name:
            raise ValueError(
                f"{source / CARD}: the name is {card.name!r}: "
                f"run `build {card.name}`, or write `name: {name}` there"
            )
        return card, to_table(card, cells, path)
    card = draft_card(name, cells, path)
    built = to_table(card, cells, path)
    built.notes.insert(0, f"no {CARD}: the labels are taken for {card.target}")
    built.notes += label_warnings(cells["label"]) if card.classes else []
    return card, built


def draft_card(name: str, cells: pd.DataFrame, path: Path) -> Card:
    """Draft a card from a table: regression if all labels are numbers, else classification."""
    require(cells, ["label"], path)
    unimodal = set(UNIMODAL_LABELS) <= set(cells)
    fields: dict[str, Any] = {
        "name": name,
        "title": name,
        "unimodal": unimodal,
        "licence": f"not stated in a {CARD}",
    }
    columns = ["label", *(UNIMODAL_LABELS if unimodal else ())]
    labels = pd.Series(cells[columns].to_numpy().ravel())
    scores = pd.to_numeric(labels[labels != ""], errors="coerce")
    if scores.empty:
        raise ValueError(f"{path}: the column label is empty: fill it in")
    if scores.isna().any():
        classes = sorted(set(cells["label"]) - {""})
        metrics = "binary" if len(classes) == 2 else "emotion"
        return Card(task="classification", classes=classes, metrics=metrics, **fields)
    if scores.min() < 0:
        high = float(math.ceil(scores.abs().max()))
        low = -high
    else:
        low, high = float(math.floor(scores.min())), float(math.ceil(scores.max()))
    if low == high:
        raise ValueError(
            f"{path}: every label is {low:g}: fill in others, or write a {CARD} with their range"
        )
    metrics = {(-1.0, 1.0): "sims", (-3.0, 3.0): "mosi"}.get((low, high), "score")
    return Card(task="regression", range=[low, high], metrics=metrics, **fields)


def to_table(card: Card, cells: pd.DataFrame, path: Path) -> AdapterResult:
    """Convert the cells of the file at `path` to utterances of a dataset with this card.

    Columns that a manifest does not know are kept as text. An empty cell is a null.
    """
    # read_cells makes the header lower case; the card's spelling of the classes is kept
    cells = cells.rename(columns={label.lower(): label for label in card.labels})
    require(cells, card.labels, path)
    notes: list[str] = []
    overrides: dict[str, Any] = {}
    table = cells.astype("object").where(cells != "", None)
    numeric = {*FLOATS, *INTEGERS, *(UNIMODAL_LABELS if card.unimodal else ())}
    numeric |= set() if card.task == "classification" else set(card.labels)
    for column in sorted(numeric & set(cells)):
        table[column] = numbers(cells, column, path)
    if "text" not in cells:
        table["text"] = ""
        overrides["transcripts"] = False
        notes.append("no column text: the language model gets empty texts")
    if "language" in cells:
        table["language"] = table["language"].fillna(card.language)
    if "split" not in cells:
        by = "speaker" if "speaker" in cells and (cells["speaker"] != "").all() else "video"
        if cells[by].nunique() < len(SPLITS):
            few = f"{cells[by].nunique()} speakers or videos cannot fill three splits"
            whole = [f"{few}: add a column split"]
            return AdapterResult(table.assign(split="train"), notes, overrides, path, whole)
        table["split"] = cells[by].map(draw_splits(cells[by]))
        rule = f"by {by}, drawn with seed {SEED}: a fifth test, a tenth valid, the others train"
        overrides |= {"split_rule": rule, "disjoint": [by]}
        notes.append(f"no column split: {rule}")
    elif "speaker" in cells and "speaker" not in card.disjoint:
        splits = table.groupby("speaker")["split"].nunique()
        if shared := int((splits > 1).sum()):
            notes.append(
                f"{shared} speakers are in several splits, which makes the metrics too good; "
                f"`disjoint: [speaker]` in {CARD} makes that an error"
            )
    empty = [split for split in SPLITS if split not in set(table["split"])]
    whole = [f"no row is {' or '.join(empty)}: all three splits need some"] if empty else []
    return AdapterResult(table, notes, overrides, file=path, whole=whole)


def label_warnings(labels: pd.Series) -> list[str]:
    """Return warnings about labels of classes that look like typing errors, with their rows."""
    notes = []
    odd = labels[(labels != "") & pd.to_numeric(labels, errors="coerce").isna()]
    if 0 < 2 * len(odd) < len(labels):
        rows = ", ".join(f"{label!r} (row {row})" for row, label in odd.head().items())
        notes.append(f"the labels are taken for classes although most are numbers: not {rows}")
    for _, alike in labels.groupby(labels.str.casefold()):
        if alike.nunique() > 1:
            firsts = alike.drop_duplicates()
            rows = ", ".join(f"{label!r} (row {row})" for row, label in firsts.items())
            notes.append(f"classes that differ only in capitals: {rows}")
    return notes


def draw_splits(groups: Iterable[str], seed: int = SEED) -> dict[str, str]:
    """Draw a split for each group (a speaker, a video), a pure function of names and `seed`.

    The groups are sorted by a hash of their names: the first fifth is test, the next tenth valid,
    at least one of each; `groups` has three groups or more.
    """
    order = sorted(set(groups), key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    test = max(1, round(TEST * len(order)))
    valid = max(1, round(VALID * len(order)))
    names = ["test"] * test + ["valid"] * valid + ["train"] * (len(order) - test - valid)
    return dict(zip(order, names, strict=True))
