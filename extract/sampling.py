"""`Sampling`: the grid of frame times that images and audio windows share.

Frame ``i`` of an utterance is at the time ``t_i = i / fps``, ``i < T``,
``T = max(1, ceil(fps * duration))``. Vision frame ``i`` is the image shown at ``t_i``, or that and
the one shown ``TUBELET_S`` later; audio frame ``i`` is the window of ``window_s`` seconds centred
on ``t_i``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SAMPLE_RATE = 16_000
IMAGE_SIZE = 224
TUBELET_S = 0.25
"""Seconds between the two images of a tubelet."""
PREPROCESS_VERSION = 2
"""Incremented whenever decoding or sampling gives other values; part of every store's digest."""


@dataclass(frozen=True)
class Sampling:
    """How frames and windows are taken from a video.

    Attributes:
        fps: frames per second (the paper samples two a second).
        window_s: length of an audio window in seconds.
        channel: ``mix`` mixes all channels to one; ``first`` takes only the first one.
        vision: ``image``: one image per frame; ``tubelet``: two, the second ``TUBELET_S`` later.
        crops: 1, the picture's centre, or 3 squares along its longer side (left, centre, right,
            or top, centre, bottom).
        crop_rows: with three crops, one row per frame, their ``mean``, or three ``separate`` rows
            per frame, one after another in the store, which training does not read.
    """

    fps: float = 2.0
    window_s: float = 2.0
    channel: str = "mix"
    vision: str = "image"
    crops: int = 1
    crop_rows: str = "mean"

    def __post_init__(self) -> None:
        for name in ("fps", "window_s"):  # 2 is 2.0, in the digest too
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 < self.fps <= 60:
            raise ValueError(f"fps is {self.fps}; choose more than 0 and at most 60")
        if not 0.1 <= self.window_s <= 30:
            raise ValueError(f"window_s is {self.window_s}; choose 0.1 to 30 seconds")
        if self.channel not in ("mix", "first"):
            raise ValueError(f"channel is {self.channel!r}; choose mix or first")
        if self.vision not in ("image", "tubelet"):
            raise ValueError(f"vision is {self.vision!r}; choose image or tubelet")
        if self.crops not in (1, 3):
            raise ValueError(f"crops is {self.crops}; choose 1 or 3")
        if self.crop_rows not in ("separate", "mean"):
            raise ValueError(f"crop_rows is {self.crop_rows!r}; choose separate or mean")

    def as_dict(self) -> dict[str, Any]:
        """The entries of the store's recipe, without ``vision`` and ``crops`` at their defaults.

        So the digests of stores made before these options existed do not change.
        """
        plain = asdict(self)
        if self.vision == "image":
            del plain["vision"]
        if self.crops == 1:
            del plain["crops"], plain["crop_rows"]
        return plain

    @property
    def rows_per_frame(self) -> dict[str, int]:
        """Rows of a store per frame, by modality."""
        separate = self.crop_rows == "separate"
        return {"audio": 1, "vision": self.crops if separate else 1}

    @property
    def images_per_frame(self) -> int:
        """Images of 224 x 224 decoded per frame."""
        return self.crops * (2 if self.vision == "tubelet" else 1)

    def frames(self, duration: float) -> int:
        """``T`` for an utterance of ``duration`` seconds."""
        # The tolerance absorbs rounding errors: 0.1 + 0.2 seconds must equal 0.3 seconds.
        return max(1, math.ceil(self.fps * duration - 1e-6))

    def samples(self, first: int, count: int) -> tuple[int, int]:
        """Begin and end, in samples, of the span of ``count`` frames' windows."""
        size = round(self.window_s * SAMPLE_RATE)
        begin, last = (round(i / self.fps * SAMPLE_RATE) for i in (first, first + count - 1))
        return begin - size // 2, last - size // 2 + size

    def windows(
        self, audio: np.ndarray, frames: int, first: int = 0, offset: int = 0
    ) -> np.ndarray:
        """Cut the audio windows of frames, with zeros outside the utterance.

        Args:
            audio: float32 ``[samples]`` at 16 kHz, at least the part that the windows span.
            frames: number of frames.
            first: index of the first frame.
            offset: index of ``audio``'s first sample in the utterance.

        Returns:
            float32 ``[frames, window_s * 16000]``.
        """
        import numpy as np  # not needed to parse a command line

        size = round(self.window_s * SAMPLE_RATE)
        begin, end = self.samples(first, frames)
        centres = np.round(np.arange(first, first + frames) / self.fps * SAMPLE_RATE)
        padded = np.zeros(end - begin, np.float32)
        kept = audio[max(0, begin - offset) : max(0, end - offset)]
        at = max(0, offset - begin)
        padded[at : at + len(kept)] = kept
        starts = centres.astype(np.int64) - size // 2 - begin
        return np.lib.stride_tricks.sliding_window_view(padded, size)[starts]
