"""Read datasets: each release becomes one table of utterances and one card.

A `Manifest` is a Parquet table (one row per utterance) next to a `Card` (YAML: task, labels,
splits, licence). The other stages read datasets through these two classes. On the command line:
``python -m manifests --help``.
"""

from typing import TYPE_CHECKING

from manifests.lazy_imports import lazy_attributes

if TYPE_CHECKING:
    from manifests.card import Card
    from manifests.manifest import Manifest

__all__ = ["Card", "Manifest"]

__getattr__ = lazy_attributes(
    __name__, {"Card": "manifests.card", "Manifest": "manifests.manifest"}
)
