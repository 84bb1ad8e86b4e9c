"""`Utterance` and `Job`: the dataclasses that are sent to every worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from extract.encoders import EncoderIdentity, EncoderSpec
from extract.sampling import Sampling


@dataclass(frozen=True)
class Utterance:
    """A segment of a video; ``None`` where the manifest leaves a cell empty.

    Attributes:
        id: unique in the dataset.
        video: path of the video, relative to the dataset's folder.
        start: begin in seconds.
        end: end in seconds.
        crop: part of the picture as fractions ``(x, y, width, height)``.
    """

    id: str
    video: str
    start: float | None = None
    end: float | None = None
    crop: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Job:
    """The settings shared by every block of one extraction.

    Attributes:
        data: folder to which the manifest's video paths are relative.
        store: path of the store under construction; parts are written next to it.
        encoder: the encoder to load.
        identity: the encoder in the store's recipe; a worker's encoder must be the same.
        sampling: how frames and audio windows are taken.
        dtype: stored type.
        timeout: seconds that decoding one file may take.
    """

    data: Path
    store: Path
    encoder: EncoderSpec
    identity: EncoderIdentity
    sampling: Sampling
    dtype: str
    timeout: float
