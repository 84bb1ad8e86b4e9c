"""Find a dataset's files by its name, without importing pandas: errors are reported at once."""

import re
from pathlib import Path

from manifests.card import Card, builtin_names

DATA = Path("data")
MANIFEST, CARD = "manifest.parquet", "card.yaml"
OWN_TABLE = "labels.csv"
"""The table of the user's own dataset, for which this package has no card."""


def folder_of(dataset: str | Path) -> Path:
    """Return the folder of a manifest; a bare name such as ``"demo"`` means ``data/demo``."""
    bare = isinstance(dataset, str) and re.fullmatch(r"\w[\w-]*", dataset)
    return DATA / dataset if bare else Path(dataset)


def find_manifest(dataset: str | Path) -> Path:
    """Return the path of a dataset's ``manifest.parquet``.

    Raises:
        ValueError: no such file.
    """
    path = folder_of(dataset) / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `python -m manifests build NAME` creates it")
    return path


def load_card(dataset: str | Path) -> Card:
    """Read the card next to a dataset's manifest, without the table.

    Raises:
        ValueError: no manifest, or the card is missing or invalid.
    """
    return Card.load(find_manifest(dataset).with_name(CARD))


def check_known(name: str, source: Path) -> None:
    """Raise a ValueError unless this package has a card for `name` or `source` has a table."""
    if name not in builtin_names() and not (source / OWN_TABLE).is_file():
        raise ValueError(
            f"unknown dataset {name!r}; the datasets are: {', '.join(builtin_names())}. For your "
            f"own data write {source / OWN_TABLE} (documentation: your-own-data.md)"
        )
