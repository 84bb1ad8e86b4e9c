"""Generate the demonstration dataset below the data root."""

from manifests.demo import build

__all__ = ["build"]
