"""Read releases: one module per dataset turns the release's files into a table of utterances.

To add a dataset ``abc``, write ``manifests/adapters/abc.py`` with a function
``build(source: Path, media: bool)``, and ``manifests/cards/abc.yaml``; nothing else changes.
`build` gets the data root (the folder that the ``video`` column is relative to) and returns the
table as a DataFrame, or an `AdapterResult` if it has notes or other values (`csd` and `raw_clips`
read layouts that several releases share). Labels and texts must be enough: `media` says whether the
videos are expected below the root, and most adapters ignore it. A row of the release is kept
whether or not its video exists; missing videos are reported by the command line
(`manifests.media`). If a release can be split in several ways, the adapter has a dict ``VARIANTS``
(name to description) and `build` a third parameter.
"""

import importlib
import re
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_integer_dtype

from manifests.card import Card, builtin_names
from manifests.locate import check_known
from manifests.manifest import Manifest
from manifests.validation import find_faults, raise_faults


@dataclass
class AdapterResult:
    """The result of an adapter.

    Attributes:
        table: the table of utterances.
        notes: sentences for the user.
        card: fields of the card that this copy of the release overrides. For instance the clips of
            one actor cannot be split by actor: ``{"disjoint": [], "split_rule": "..."}``.
        file: the file that the index of `table` numbers the rows of, so that faults name the place
            to fix. None: the index has no meaning, or (text) is the place below the data root.
        whole: faults of the whole table, reported if no row has a fault.
    """

    table: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    whole: list[str] = field(default_factory=list)


def has_adapter(name: str) -> bool:
    """Return whether this package can read the release called `name`."""
    return bool(re.fullmatch(r"[a-z]\w*", name)) and find_spec(f"{__name__}.{name}") is not None


def build(
    name: str, source: Path, media: bool = True, variant: str | None = None
) -> tuple[Manifest, list[str]]:
    """Read the release `name` below `source`; return the checked manifest and the notes.

    Args:
        name: of a dataset with a card in this package; any other name is the user's own data, read
            by `manifests.adapters.custom`.
        source: folder of the release.
        media: whether the folder has the videos; False: only labels and texts.
        variant: one of several ways to split the release; None: the adapter's default.

    Raises:
        ValueError: no such dataset or variant, no utterance in the folder, or faults in the table.
    """
    from manifests.adapters import custom  # it needs `AdapterResult`

    if name in builtin_names():
        card, built = Card.builtin(name), _release(name, source, media, variant)
    else:
        check_known(name, source)
        if variant is not None:
            raise ValueError(f"{name} has no variant {variant!r}: use the column `split` instead")
        card, built = custom.read(name, source)
    if built.table.empty:
        raise ValueError(f"{source}: no utterance of {card.title}; to obtain it: {card.obtain}")
    manifest = Manifest(replace(card, **built.card), built.table)
    rows, where = manifest.table.set_axis(built.table.index), built.file or source
    if built.file is None and is_integer_dtype(rows.index):  # the user has no file with these rows
        rows.index = pd.Index(["utterance"] * len(rows))
    raise_faults(find_faults(manifest.card, rows) or built.whole, where)
    return manifest, built.notes


def _release(name: str, source: Path, media: bool, variant: str | None) -> AdapterResult:
    if not has_adapter(name):
        raise ValueError(f"{name} has a card but no adapter yet: add manifests/adapters/{name}.py")
    adapter = importlib.import_module(f"{__name__}.{name}")
    if variant is None:
        built = adapter.build(source, media)
    else:
        variants: dict[str, str] = getattr(adapter, "VARIANTS", {})
        if variant not in variants:
            ways = ", ".join(variants) or "none"
            raise ValueError(f"{name} has no variant {variant!r}; the variants are: {ways}")
        built = adapter.build(source, media, variant)
    return AdapterResult(built) if isinstance(built, pd.DataFrame) else built
