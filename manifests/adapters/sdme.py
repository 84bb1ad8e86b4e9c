"""SDME: one discrete emotion a clip; not public, so read from a table of your making."""

from dataclasses import replace
from pathlib import Path

from manifests.adapters import Built, own
from manifests.card import Card
from manifests.csv_table import read_csv, require


def build(source: Path, media: bool = True) -> Built:
    """The table of utterances of ``labels.csv``, whose labels are the classes there are.

    Raises:
        ValueError: no such file, or as `manifests.adapters.own`.
    """
    path, card = source / own.TABLE, Card.builtin("sdme")
    if not own.is_there(source):
        raise ValueError(f"{path}: no such file; to obtain it: {card.obtain}")
    cells, _ = read_csv(path)
    require(cells, ["id", "video", "label", "text"], path)
    classes = sorted(set(cells["label"]) - {""})
    built = own.tabulate(replace(card, classes=classes), cells, path)
    built.notes += own.doubts(cells["label"])
    return replace(built, card=built.card | {"classes": classes})
