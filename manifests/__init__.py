"""Read datasets: each release becomes one table of utterances and one card.

A `Manifest` is a Parquet table (one row per utterance) next to a `Card` (YAML: task, labels,
splits, licence). The other stages read datasets through these two classes. On the command line:
``python -m manifests --help``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manifests.card import Card
    from manifests.manifest import Manifest

__all__ = ["Card", "Manifest"]


def __getattr__(name: str) -> Any:
    # Imported on first use (PEP 562): pandas takes most of a second, `manifests.atomic` no time.
    if name == "Card":
        from manifests.card import Card

        return Card
    if name == "Manifest":
        from manifests.manifest import Manifest

        return Manifest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
