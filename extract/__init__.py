"""SEE it once: manifest and videos to a published feature store.

ffmpeg decodes, a frozen encoder turns sampled frames and audio windows into vectors, Dask spreads
the work, and the cache package keeps the result::

    python -m extract demo --data data/demo
"""

from extract.encoders import EncoderSpec
from extract.engine import Summary, extract
from extract.sampling import Sampling
from extract.settings import ClusterSpec, Settings

__all__ = ["ClusterSpec", "EncoderSpec", "Sampling", "Settings", "Summary", "extract"]
