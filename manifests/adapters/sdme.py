"""Read SDME, one discrete emotion per clip: not public, so read from a table of the user's own."""

from dataclasses import replace
from pathlib import Path

from manifests.adapters import AdapterResult, custom
from manifests.card import Card
from manifests.csv_table import read_cells, require
from manifests.locate import OWN_TABLE


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read the table of utterances from ``labels.csv``; its labels are the classes.

    Raises:
        ValueError: no such file, or a table that `manifests.adapters.custom` cannot read.
    """
    path, card = source / OWN_TABLE, Card.builtin("sdme")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; to obtain it: {card.obtain}")
    cells, _ = read_cells(path)
    require(cells, ["id", "video", "label", "text"], path)
    classes = sorted(set(cells["label"]) - {""})
    built = custom.to_table(replace(card, classes=classes), cells, path)
    built.notes += custom.label_warnings(cells["label"])
    return replace(built, card=built.card | {"classes": classes})
