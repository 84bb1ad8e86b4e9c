"""What is extracted, and how: the words that the engine and its workers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.sampling import PREPROCESS_VERSION, Sampling


@dataclass(frozen=True)
class Utterance:
    """What is cut out of which video; ``None`` where the manifest leaves a cell empty."""

    id: str
    video: str
    start: float | None = None
    end: float | None = None
    crop: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Job:
    """What every block of one extraction has in common: small, and sent to the workers.

    Attributes:
        data: folder to which the manifest's video paths are relative.
        store: the store that is being made; parts go beside it.
        encoder: name of the encoder.
        checkpoint: its weights, where they are not packaged.
        device: where it runs.
        precision: of its matrix products.
        backend: who computes it.
        sampling: how frames are taken.
        dtype: stored type.
        timeout: seconds one file may take to decode.
        weights_sha256: of the recipe; a worker's encoder must have the same weights,
        encoder_settings: the same settings,
        preprocess: and a worker's code the same version of the pre-processing.
    """

    data: Path
    store: Path
    encoder: str
    checkpoint: Path | None
    device: str
    precision: str
    backend: str
    sampling: Sampling
    dtype: str
    timeout: float
    weights_sha256: str
    encoder_settings: Mapping[str, Any]
    preprocess: int = PREPROCESS_VERSION
