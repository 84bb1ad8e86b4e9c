"""SDME: one discrete emotion a clip; not public, so read from a table of your making."""

from dataclasses import replace
from pathlib import Path

from manifests.adapters import AdapterResult, custom
from manifests.card import Card
from manifests.csv_table import read_cells, require
from manifests.locate import OWN_TABLE


def build(source: Path, media: bool = True) -> AdapterResult:
    """The table of utterances of ``labels.csv``, whose labels are the classes there are.

    Raises:
        ValueError: no such file, or as `manifests.adapters.custom`.
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
