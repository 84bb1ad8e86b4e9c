"""When to look and when to listen: one grid of frame times for both modalities.

Frame ``i`` of an utterance stands for the time ``t_i = i / fps``, ``i < T``,
``T = max(1, ceil(fps * duration))``. Vision frame ``i`` is the image shown at ``t_i``; audio frame
``i`` is the window of ``window_s`` seconds centred on ``t_i``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000
IMAGE_SIZE = 224
PREPROCESS_VERSION = 2
"""Raised whenever decoding or sampling gives other values: it is part of every store's digest."""


@dataclass(frozen=True)
class Sampling:
    """How frames and windows are taken from a video.

    Attributes:
        fps: frames per second (the paper samples two a second).
        window_s: length of an audio window in seconds.
        channel: ``mix`` mixes all channels to one; ``first`` takes the first one only.
    """

    fps: float = 2.0
    window_s: float = 2.0
    channel: str = "mix"

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 60:
            raise ValueError(f"fps is {self.fps}; choose more than 0 and at most 60")
        if not 0.1 <= self.window_s <= 30:
            raise ValueError(f"window_s is {self.window_s}; choose 0.1 to 30 seconds")
        if self.channel not in ("mix", "first"):
            raise ValueError(f"channel is {self.channel!r}; choose mix or first")

    def as_dict(self) -> dict[str, Any]:
        """For the store's recipe."""
        return asdict(self)

    def frames(self, duration: float) -> int:
        """``T`` for an utterance of ``duration`` seconds."""
        # The tolerance swallows what binary fractions add: 0.1 + 0.2 seconds are 0.3 seconds.
        return max(1, math.ceil(self.fps * duration - 1e-6))

    def samples(self, first: int, count: int) -> tuple[int, int]:
        """Begin and end, in samples, of what the windows of ``count`` frames span."""
        size = round(self.window_s * SAMPLE_RATE)
        begin, last = (round(i / self.fps * SAMPLE_RATE) for i in (first, first + count - 1))
        return begin - size // 2, last - size // 2 + size

    def windows(
        self, audio: np.ndarray, frames: int, first: int = 0, offset: int = 0
    ) -> np.ndarray:
        """Cut the audio windows of frames, silence outside the utterance.

        Args:
            audio: float32 ``[samples]`` at 16 kHz, or as much of it as the windows need.
            frames: how many.
            first: the first frame.
            offset: the sample of the utterance that ``audio`` begins with.

        Returns:
            float32 ``[frames, window_s * 16000]``.
        """
        size = round(self.window_s * SAMPLE_RATE)
        begin, end = self.samples(first, frames)
        centres = np.round(np.arange(first, first + frames) / self.fps * SAMPLE_RATE)
        padded = np.zeros(end - begin, np.float32)
        kept = audio[max(0, begin - offset) : max(0, end - offset)]
        at = max(0, offset - begin)
        padded[at : at + len(kept)] = kept
        starts = centres.astype(np.int64) - size // 2 - begin
        return np.lib.stride_tricks.sliding_window_view(padded, size)[starts]
