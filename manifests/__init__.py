"""What is in a dataset: a release folder becomes one table of utterances and one card.

A `Manifest` is a Parquet table (one row an utterance) beside a `Card` (YAML: task, labels, splits,
licence). Everything else in the project reads datasets through these two. On the command line:
``python -m manifests --help``.
"""

from manifests.card import Card
from manifests.manifest import Manifest

__all__ = ["Card", "Manifest"]
