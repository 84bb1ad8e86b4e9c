"""Extraction: from a manifest and its videos to a published feature store.

ffmpeg decodes, a frozen encoder turns sampled frames and audio windows into vectors, Dask
distributes the work, and the package ``cache`` stores the result::

    python -m extract demo --data data/demo
"""

from typing import TYPE_CHECKING

from manifests.lazy_imports import lazy_attributes

if TYPE_CHECKING:
    from extract.encoders import EncoderSpec
    from extract.engine import Summary, extract
    from extract.sampling import Sampling
    from extract.settings import ClusterSpec, Settings

__all__ = ["ClusterSpec", "EncoderSpec", "Sampling", "Settings", "Summary", "extract"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "ClusterSpec": "extract.settings",
        "EncoderSpec": "extract.encoders",
        "Sampling": "extract.sampling",
        "Settings": "extract.settings",
        "Summary": "extract.engine",
        "extract": "extract.engine",
    },
)
