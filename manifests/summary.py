"""Print a manifest as tables on the terminal."""

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from manifests.card import SPLITS, Card
from manifests.console import Console
from manifests.manifest import Manifest
from manifests.media import Media

SHOWN_MISSING = 5


def print_summary(manifest: Manifest, console: Console) -> None:
    """Print the rows per split next to the published counts, the labels and the languages."""
    console.print(_counts(manifest))
    console.print(_labels(manifest))
    languages = manifest.table["language"].value_counts().sort_index()
    counts = ", ".join(f"{language} {count}" for language, count in languages.items())
    console.print(f"languages: {counts}", highlight=False)


def print_media(media: Media, console: Console) -> None:
    """Print the hours of the utterances, and the videos that are missing on this disk."""
    hours = f"hours: {media.seconds / 3600:.2f}"
    if media.unknown:
        hours += f", and {media.unknown} utterances of unknown length"
    console.print(hours, highlight=False)
    missing = f"missing videos: {len(media.missing)} of {media.videos}"
    if media.missing:
        more = ", ..." if len(media.missing) > SHOWN_MISSING else ""
        missing += f" ({', '.join(media.missing[:SHOWN_MISSING])}{more})"
    style = "yellow" if media.missing else None
    console.print(missing, style=style, highlight=False, soft_wrap=True)


def print_cards(cards: Sequence[Card], console: Console) -> None:
    """Print for every dataset its target, its rows in the splits, its licence and its source."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 1, 0), show_header=False, show_edge=False)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for card in cards:
        about = Text.assemble(
            (f"{card.title}\n", "bold"),
            (f"{_target(card)}\n", "green"),
            (f"licence: {card.licence}\n", "yellow"),
            card.obtain,
        )
        table.add_row(card.name, about)
    console.print(table)
    console.print(
        "For your own data, write labels.csv next to the videos, then "
        "`python -m manifests build NAME --source FOLDER` (documentation: your-own-data.md).",
        highlight=False,
    )


def _target(card: Card) -> str:
    """Return the target, the language, and the rows in train, valid and test, in words."""
    published = [card.splits.get(split, {}) for split in SPLITS]
    sizes = [counts.get("release") or counts.get("paper") for counts in published]
    rows = "/".join(map(str, sizes)) + " rows" if all(sizes) else "no published splits"
    return f"{card.target}\n{card.language}, {rows}"


def print_rows(manifest: Manifest, count: int, console: Console) -> None:
    """Print the first `count` rows, one below the other, without columns that are all null."""
    shown = manifest.table.head(count).dropna(axis="columns", how="all")
    table = Table("column", title=f"{manifest.card.name}: {len(shown)} of {len(manifest.table)}")
    table.add_column("value", overflow="fold")
    for row in shown.to_dict("records"):
        for column, value in row.items():
            table.add_row(str(column), Text("" if pd.isna(value) else str(value)))
        table.add_section()
    console.print(table)


def _counts(manifest: Manifest) -> Table:
    table = Table(title=f"{manifest.card.name}: rows")
    table.add_column("split")
    for column in ("manifest", "release", "paper"):
        table.add_column(column, justify="right")
    totals: dict[str, list[int | None]] = {"here": [], "release": [], "paper": []}
    for split in SPLITS:
        published = manifest.card.splits.get(split, {})
        here = len(manifest.split(split))
        row = {"here": here, "release": published.get("release"), "paper": published.get("paper")}
        for key, count in row.items():
            totals[key].append(count)
        differs = row["release"] not in (None, here)
        style = "red" if here == 0 else "yellow" if differs else None
        table.add_row(split, *map(_or_dash, row.values()), style=style)
    table.add_section()
    table.add_row(
        "all", *(_or_dash(None if None in c else sum(filter(None, c))) for c in totals.values())
    )
    return table


def _or_dash(count: int | None) -> str:
    return "–" if count is None else str(count)


def _labels(manifest: Manifest) -> Table:
    table = Table(title=f"{manifest.card.name}: labels")
    table.add_column("label")
    for split in SPLITS:
        table.add_column(split, justify="right")
    split_of = manifest.table["split"]
    for name, mask in _groups(manifest.card, manifest.table):
        table.add_row(name, *(str(int((mask & (split_of == split)).sum())) for split in SPLITS))
    if manifest.card.task == "regression":
        labels = [manifest.split(split)["label"] for split in SPLITS]
        table.add_section()
        table.add_row("mean", *(f"{values.mean():.3f}" for values in labels))
        table.add_row("deviation", *(f"{values.std(ddof=0):.3f}" for values in labels))
    return table


def _groups(card: Card, table: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Return the rows of the table of labels: a name, and a mask of the utterances it counts."""
    if card.task == "classification":
        return [(name, table["label"] == name) for name in card.classes]
    if card.task == "multilabel":
        return [(name, table[name] == 1) for name in card.classes]
    assert card.range is not None
    low, high = card.range
    # Seven equal bins, the usual ones for sentiment in [-3, 3]; the last includes its upper edge.
    edges = [low + (high - low) * i / 7 for i in range(7)] + [high]
    above = [table["label"] >= edge for edge in edges[:-1]]
    below = [*(~mask for mask in above[1:]), table["label"] <= high]
    names = [f"{a:+.2f} to {b:+.2f}" for a, b in pairwise(edges)]
    return [(name, a & b) for name, a, b in zip(names, above, below, strict=True)]
