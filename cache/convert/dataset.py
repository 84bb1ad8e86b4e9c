"""Turn the transcripts, labels and splits of an imported file into a dataset: table and card."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from cache.convert.arguments import check_new
from cache.convert.layouts import ExternalFeatures
from manifests import Card, Manifest
from manifests.adapters.custom import draft_card
from manifests.atomic import atomic_path
from manifests.locate import CARD, MANIFEST
from manifests.printing import preview
from manifests.validation import find_faults


@dataclass(frozen=True)
class ImportedDataset:
    """A dataset that is ready to be written.

    Attributes:
        manifest: its card and table; the videos' paths are empty.
        table: the path of the table; the card is written into the same folder.
        drafted: whether the card is a draft; False: the folder has a card, which is kept.
        notes: sentences on what was decided, and what to fill in.
    """

    manifest: Manifest
    table: Path
    drafted: bool
    notes: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Write the table, and the card if it is a draft."""
        if self.drafted:
            self.manifest.card.save(self.table.with_name(CARD))
        self.table.parent.mkdir(parents=True, exist_ok=True)
        # Loading takes the language from the card, so correcting a draft is enough.
        table = self.manifest.table.drop(columns="language")
        with atomic_path(self.table) as temporary:
            table.to_parquet(temporary, engine="pyarrow", index=False)


def dataset_of(source: ExternalFeatures, name: str, out: Path, licence: str) -> ImportedDataset:
    """Make a dataset of the labels, texts and splits in a file; nothing is written yet.

    Args:
        source: the content of the file.
        name: of the dataset.
        out: the dataset's folder, or a path ending in ``.parquet`` for the table.
        licence: of the data; empty if it is unknown.

    Raises:
        ValueError: the file has no splits or labels, the table exists, or the folder's card does
            not fit the table.
    """
    path = out if out.suffix == ".parquet" else out / MANIFEST
    if source.table is None:
        raise ValueError(f"{source.path} has no splits or labels: --manifest-out is for mmsa")
    if "label" not in source.table:
        raise ValueError(f"{source.path}: neither regression_labels nor classification_labels")
    check_new(path)
    card_path = path.with_name(CARD)
    if drafted := not card_path.exists():
        card, table, notes = _draft(source, source.table, name, licence, card_path)
    else:
        card, table, notes = Card.load(card_path), source.table, []
    manifest = Manifest(card, table, path)
    # Features were imported, so no video is needed: an empty path is not a fault here.
    faults = find_faults(card, manifest.table.assign(video="not needed"))
    if faults:
        notes.append(f"{path}: {preview(faults, 1)}")
    return ImportedDataset(manifest, path, drafted, notes)


def _draft(
    source: ExternalFeatures, table: pd.DataFrame, name: str, licence: str, path: Path
) -> tuple[Card, pd.DataFrame, list[str]]:
    """Return a card drafted from the file's content, the table that fits it, and notes."""
    if source.class_labels:
        table = table.assign(label=_class_names(table))
        classes = sorted(set(table["label"]) - {""})
        metrics = "binary" if len(classes) == 2 else "emotion"
        card = Card(name, name, "classification", classes=classes, metrics=metrics)
    else:
        card = draft_card(name, table.astype("object").where(table.notna(), ""), source.path)
    blank = (table["text"].str.strip() == "").sum()
    card = replace(card, licence=licence or "not stated", transcripts=not blank)
    notes = [
        f"{path} is a draft: the labels are taken for {card.target}, the language for "
        f"{card.language!r}, read by {card.language_model}; check these, and fill in title and "
        "licence"
    ]
    if blank:
        notes.append(f"{blank} texts are empty: `transcripts: false` in {path.name}")
    return card, table, notes


def _class_names(table: pd.DataFrame) -> pd.Series:
    """Return the class of each row: its annotation if each class has its own, else its number."""
    numbers = table["label"].map(lambda number: "" if pd.isna(number) else f"{number:g}")
    if "annotation" in table:
        pairs = table.assign(label=numbers)[["label", "annotation"]].drop_duplicates()
        if pairs["label"].is_unique and pairs["annotation"].is_unique:
            return table["annotation"]
    return numbers
