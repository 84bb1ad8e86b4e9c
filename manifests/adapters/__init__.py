"""One module for each release: it reads the release's own files and gives the table of utterances.

To add a dataset ``abc``: write ``manifests/adapters/abc.py`` with a function
``build(source: Path, media: bool)`` and ``manifests/cards/abc.yaml``. Nothing else needs to know.
`build` gets the data root (the folder the ``video`` column is relative to) and returns the table as
a DataFrame, or as an `AdapterResult` when it has something to add (`csd` and `raw_clips` read
layouts that several releases share). Labels and texts alone must be enough: `media` says whether
the videos can be expected below the root, and most adapters need not ask. A row of the release is
kept whether or not its video is there; which are missing is not the adapter's to say but the
command line's (`manifests.media`). Where a release can be split in several ways, the adapter has a
table ``VARIANTS`` (name to what it is) and `build` a third parameter.
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
    """What an adapter made: the table, notes for the user, and card fields this copy overrides.

    The overrides are for copies that cannot keep the card's promise: one actor's clips cannot be
    split by actor, so the adapter returns ``{"disjoint": [], "split_rule": "..."}``. With `file`,
    the table's index holds the rows' numbers in that file, so that faults name the place to mend;
    rows of several files have the place in words there, below the data root. `whole` are faults of
    no single row, told where no row has one.
    """

    table: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    whole: list[str] = field(default_factory=list)


def has_adapter(name: str) -> bool:
    """Whether this package can read the release called `name`."""
    return bool(re.fullmatch(r"[a-z]\w*", name)) and find_spec(f"{__name__}.{name}") is not None


def build(
    name: str, source: Path, media: bool = True, variant: str | None = None
) -> tuple[Manifest, list[str]]:
    """Read the release `name` below `source`; returns the checked manifest and the notes.

    Args:
        name: of a dataset with a card in this package; any other is data of the user's own, which
            `manifests.adapters.custom` reads.
        source: folder of the release.
        media: whether its videos are there; False: only its labels and texts.
        variant: one of several ways to split it; None: the adapter's own choice.

    Raises:
        ValueError: no such dataset or variant, nothing of it in the folder, or faults in it.
    """
    from manifests.adapters import custom  # it needs `AdapterResult`

    if name in builtin_names():
        card, built = Card.builtin(name), _release(name, source, media, variant)
    else:
        check_known(name, source)
        if variant is not None:
            raise ValueError(f"{name} has no variant {variant!r}: its column `split` says the way")
        card, built = custom.read(name, source)
    if built.table.empty:
        raise ValueError(f"{source}: nothing of {card.title} in it; to obtain it: {card.obtain}")
    manifest = Manifest(replace(card, **built.card), built.table)
    rows, where = manifest.table.set_axis(built.table.index), built.file or source
    if built.file is None and is_integer_dtype(rows.index):  # numbers of a table nobody can see
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
            raise ValueError(f"{name} has no variant {variant!r}; there are: {ways}")
        built = adapter.build(source, media, variant)
    return AdapterResult(built) if isinstance(built, pd.DataFrame) else built
