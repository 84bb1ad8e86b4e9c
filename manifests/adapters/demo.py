"""The demonstration dataset: not read but generated, below the data root."""

from manifests.demo import build

__all__ = ["build"]
