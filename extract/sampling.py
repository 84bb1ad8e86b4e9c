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
PREPROCESS_VERSION = 1
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

    def windows(self, audio: np.ndarray, frames: int) -> np.ndarray:
        """Cut the audio windows of all frames, silence outside the utterance.

        Args:
            audio: float32 ``[samples]`` at 16 kHz, beginning at ``t = 0``.
            frames: ``T``.

        Returns:
            float32 ``[T, window_s * 16000]``.
        """
        size = round(self.window_s * SAMPLE_RATE)
        centres = np.round(np.arange(frames) / self.fps * SAMPLE_RATE).astype(np.int64)
        needed = int(centres[-1]) + size  # in the padded signal, which begins half a window early
        padded = np.zeros(needed, np.float32)
        kept = audio[: needed - size // 2]
        padded[size // 2 : size // 2 + len(kept)] = kept
        return np.lib.stride_tricks.sliding_window_view(padded, size)[centres]
