"""`Utterance` and `Job`: the dataclasses that are sent to every worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache.store.sources import Source
from extract.encoders import EncoderIdentity, EncoderSpec
from extract.sampling import Sampling

if TYPE_CHECKING:
    from cache import Record
    from cache.store.parts import Cut


@dataclass(frozen=True)
class Utterance:
    """A segment of a video; ``None`` where the manifest leaves a cell empty.

    Attributes:
        id: unique in the dataset.
        video: path of the video, relative to the dataset's folder.
        start: begin in seconds.
        end: end in seconds.
        crop: part of the picture as fractions ``(x, y, width, height)``.
        source: the content of the video; None if it is not checked.
    """

    id: str
    video: str
    start: float | None = None
    end: float | None = None
    crop: tuple[float, float, float, float] | None = None
    source: Source | None = None

    @property
    def cut(self) -> Cut:
        """What is cut from the video."""
        return self.start, self.end, self.crop

    def record(
        self,
        status: str,
        error: str = "",
        duration: float = 0.0,
        audio_frames: int = 0,
        vision_frames: int = 0,
    ) -> Record:
        """The record of this utterance's extraction; arguments as of `cache.Record`."""
        from cache import Record  # not needed to parse a command line

        source = self.source or Source()
        return Record(
            self.id,
            status,
            error,
            duration,
            audio_frames,
            vision_frames,
            0,
            source.sha256,
            source.bytes,
            self.start,
            self.end,
            *(self.crop or (None,) * 4),
        )


@dataclass(frozen=True)
class Job:
    """The settings shared by every block of one extraction.

    Attributes:
        data: folder to which the manifest's video paths are relative.
        place: parts are written next to this path.
        store: path of the store that is made of them; once another run has published it, they are
            removed. None if they are kept.
        encoder: the encoder to load.
        identity: the encoder in the store's recipe; a worker's encoder must be the same.
        sampling: how frames and audio windows are taken.
        dtype: stored type.
        timeout: seconds that decoding one file may take.
    """

    data: Path
    place: Path
    store: Path | None
    encoder: EncoderSpec
    identity: EncoderIdentity
    sampling: Sampling
    dtype: str
    timeout: float
