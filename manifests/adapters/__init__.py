"""One module for each release: it reads the release's own files and gives the table of utterances.

To add a dataset ``abc``: write ``manifests/adapters/abc.py`` with a function
``build(source: Path)`` and ``manifests/cards/abc.yaml``. Nothing else needs to know. `build` gets
the data root (the folder the ``video`` column is relative to) and returns the table as a
DataFrame, or as a `Built` when it has something to add.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from manifests.card import Card
from manifests.manifest import Manifest


@dataclass
class Built:
    """What an adapter made: the table, notes for the user, and card fields this copy overrides.

    The overrides are for copies that cannot keep the card's promise: one actor's clips cannot be
    split by actor, so the adapter returns ``{"disjoint": [], "split_rule": "..."}``.
    """

    table: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)


def has_adapter(name: str) -> bool:
    """Whether this package can read the release called `name`."""
    return bool(re.fullmatch(r"[a-z]\w*", name)) and find_spec(f"{__name__}.{name}") is not None


def build(name: str, source: Path) -> tuple[Manifest, list[str]]:
    """Read the release `name` below `source`; returns the checked manifest and the notes."""
    card = Card.builtin(name)
    if not has_adapter(name):
        raise ValueError(f"{name} has a card but no adapter yet: add manifests/adapters/{name}.py")
    adapter: Callable[[Path], pd.DataFrame | Built] = importlib.import_module(
        f"{__name__}.{name}"
    ).build
    built = adapter(source)
    if isinstance(built, pd.DataFrame):
        built = Built(built)
    if built.table.empty:
        raise ValueError(f"{source}: nothing of {card.title} in it; to obtain it: {card.obtain}")
    manifest = Manifest(replace(card, **built.card), built.table)
    manifest.check()
    return manifest, built.notes
