"""Extraction: from a manifest and its videos to a published feature store.

ffmpeg decodes, a frozen encoder turns sampled frames and audio windows into vectors, Dask
distributes the work, and the package ``cache`` stores the result::

    python -m extract demo --data data/demo
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extract.encoders import EncoderSpec
    from extract.engine import Summary, extract
    from extract.sampling import Sampling
    from extract.settings import ClusterSpec, Settings

__all__ = ["ClusterSpec", "EncoderSpec", "Sampling", "Settings", "Summary", "extract"]

_MODULES = {
    "ClusterSpec": "extract.settings",
    "EncoderSpec": "extract.encoders",
    "Sampling": "extract.sampling",
    "Settings": "extract.settings",
    "Summary": "extract.engine",
    "extract": "extract.engine",
}


def __getattr__(name: str) -> Any:
    # Imported on first use (PEP 562): PyTorch and Dask take seconds, `--help` needs neither.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
