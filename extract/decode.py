"""Decode the images and the sound of a video's utterances in one ffmpeg process."""

from __future__ import annotations

import errno
import math
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from extract import filtergraph
from extract.ffmpeg import HangingError, ffmpeg_exe, run_process
from extract.filtergraph import Crop, Span
from extract.sampling import IMAGE_SIZE, SAMPLE_RATE, TUBELET_S, Sampling

CODEC_PADDING_S = 0.1
"""Sound that is longer than the picture by less than this is padding of the audio codec."""
TERMINATION_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""Sent to an interrupted run, or to a job at the end of its time: not a fault of the video."""
BATCH_FRAMES = 32
"""Frames read into memory at a time."""


class DecodeError(Exception):
    """A video cannot be used; the message is the reason kept in the store."""


class StalledError(DecodeError):
    """A video gave no result within the timeout: a retry would take as long."""


@dataclass(frozen=True)
class RowFile:
    """Rows of equal size in a file: images, or samples of sound.

    Attributes:
        file: in memory if small, else on disk.
        dtype: NumPy type of the values.
        shape: of one row.
        begin: index of the utterance's first row.
        count: number of the utterance's rows.
    """

    file: IO[bytes]
    dtype: type
    shape: tuple[int, ...]
    begin: int
    count: int

    def read(self, first: int, last: int) -> np.ndarray:
        """Read rows ``first`` to ``last`` (exclusive), fewer at the end: ``[rows, *shape]``."""
        size = int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        first, last = min(first, self.count), min(last, self.count)
        self.file.seek((self.begin + first) * size)
        data = self.file.read((last - first) * size)
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape)


@dataclass(frozen=True)
class DecodedClip:
    """A decoded utterance.

    Attributes:
        duration: seconds.
        frames: ``T``, in each modality present.
        picture: its images, uint8 ``[T or fewer, 224, 224, 3]``, or ``[..., 3, 224, 224, 3]`` with
            three crops; None without a video stream.
        later: the second images of its tubelets, same shape; None for single images.
        sound: its samples, float32; None without an audio stream.
    """

    duration: float
    frames: int
    picture: RowFile | None
    later: RowFile | None
    sound: RowFile | None

    @property
    def images(self) -> np.ndarray | None:
        """All images at once, RGB, as :meth:`image_batches` yields them."""
        return None if self.picture is None else np.concatenate(list(self.image_batches()))

    @property
    def audio(self) -> np.ndarray | None:
        """All samples at once, float32 ``[samples]``, 16 kHz mono in [-1, 1]."""
        return None if self.sound is None else self.sound.read(0, self.sound.count)

    def image_batches(self) -> Iterator[np.ndarray]:
        """Iterate over the images in batches: memory does not grow with the video's length.

        Yields:
            uint8 ``[n, 224, 224, 3]`` RGB; with three crops ``[n, 3, 224, 224, 3]``; as tubelets
            ``[n, 2, 224, 224, 3]`` or ``[n, 3, 2, 224, 224, 3]``.
        """
        assert self.picture is not None
        for first in range(0, self.frames, BATCH_FRAMES):
            wanted = np.arange(first, min(first + BATCH_FRAMES, self.frames))
            # After the last image, a player keeps showing it.
            shown = np.minimum(wanted, self.picture.count - 1)
            images = self.picture.read(shown[0], shown[-1] + 1)[shown - shown[0]]
            if self.later is None:
                yield images
                continue
            second = images.copy()  # where the utterance ends first, both images are the same
            later = self.later.read(first, first + len(wanted))
            second[: len(later)] = later
            yield np.stack([images, second], axis=-4)

    def window_batches(self, sampling: Sampling) -> Iterator[np.ndarray]:
        """Iterate over the audio windows in batches: float32 ``[n, window_s * 16000]``."""
        assert self.sound is not None
        for first in range(0, self.frames, BATCH_FRAMES):
            count = min(BATCH_FRAMES, self.frames - first)
            begin, end = sampling.samples(first, count)
            begin = max(0, begin)
            yield sampling.windows(self.sound.read(begin, end), count, first, begin)


def decode(
    path: Path,
    sampling: Sampling,
    start: float | None = None,
    end: float | None = None,
    crop: Crop | None = None,
    timeout: float = 600.0,
) -> DecodedClip:
    """Decode one utterance.

    Args:
        path: the video.
        sampling: frame rate and audio channel.
        start: begin of the utterance in seconds; None: the file's begin.
        end: its end in seconds; None: the file's end.
        crop: part of the picture as fractions ``(x, y, width, height)``.
        timeout: seconds after which a hanging ffmpeg is killed.

    Raises:
        DecodeError: nothing usable; the message is ffmpeg's first error.
    """
    clip = decode_spans(path, sampling, [(start or 0.0, end)], crop, timeout)[0]
    if isinstance(clip, DecodeError):
        raise clip
    return clip


def decode_spans(
    path: Path,
    sampling: Sampling,
    spans: Sequence[Span],
    crop: Crop | None = None,
    timeout: float = 600.0,
) -> list[DecodedClip | DecodeError]:
    """Decode several utterances of one video in one pass, from the first begin to the last end.

    Each clip has the bits that :func:`decode` gives. If the pass fails (other than by a timeout),
    the utterances are decoded one by one, so that a fault affects only the utterances it is in.

    Returns:
        Per span a clip, or the error that it failed with.
    """
    try:
        return _one_pass(path, sampling, spans, crop, timeout)
    except DecodeError as error:
        if len(spans) == 1 or isinstance(error, StalledError) or not path.is_file():
            return [_without_traceback(error)] * len(spans)
    return [decode_spans(path, sampling, [span], crop, timeout)[0] for span in spans]


def _one_pass(
    path: Path, sampling: Sampling, spans: Sequence[Span], crop: Crop | None, timeout: float
) -> list[DecodedClip | DecodeError]:
    if not path.is_file():
        raise DecodeError("not a file" if path.exists() else "file not found")
    if path.stat().st_size == 0:
        raise DecodeError("file is empty (0 bytes)")
    seekable = filtergraph.seeks_to_keyframes(path)

    def attempt(kinds: Sequence[str]) -> tuple[int, str, dict[filtergraph.Output, IO[bytes]]]:
        try:
            return run_process(
                filtergraph.outputs(sampling, spans, seekable, kinds),
                partial(filtergraph.command, ffmpeg_exe(), path, sampling, spans, seekable, crop),
                timeout,
            )
        except HangingError as error:
            raise StalledError(str(error)) from None

    status, log, streams = attempt(["vision", "audio"])
    if status and "matches no streams" in log:
        present = set(re.findall(r"Stream #0:\d+.*?: (Video|Audio): ", log))
        if not present:
            raise DecodeError("neither a video nor an audio stream")
        status, log, streams = attempt(
            ["vision"] * ("Video" in present) + ["audio"] * ("Audio" in present)
        )
    if "received signal" in log or -status in TERMINATION_SIGNALS:
        raise InterruptedError(errno.EINTR, "ffmpeg was terminated by a signal")
    if status < 0:
        raise DecodeError(_signal_reason(signal.Signals(-status)))
    if status:
        raise DecodeError(_ffmpeg_error(log, path) or f"ffmpeg ended with status {status}")
    stated = _stated_duration(log)
    clips: list[DecodedClip | DecodeError] = []
    for k, (begin, end) in enumerate(spans):
        origin = filtergraph.sound_origin(begin, seekable)
        picture = _image_rows(streams.get(("vision", k)), sampling)
        later = _later_rows(_image_rows(streams.get(("later", k)), sampling), sampling, begin, end)
        sound = _sound_rows(streams.get(("audio", origin)), origin, begin, end)
        try:
            clips.append(_align(picture, later, sound, sampling, begin, end, stated))
        except DecodeError as error:
            clips.append(_without_traceback(error))
    return clips


def _without_traceback(error: DecodeError) -> DecodeError:
    """Drop an error's context and traceback: their frames keep decoded streams alive."""
    error.__context__ = None
    return error.with_traceback(None)


def _image_rows(file: IO[bytes] | None, sampling: Sampling) -> RowFile | None:
    if file is None:
        return None
    square = (IMAGE_SIZE, IMAGE_SIZE, 3)
    shape = square if sampling.crops == 1 else (sampling.crops, *square)
    return RowFile(file, np.uint8, shape, 0, file.seek(0, 2) // math.prod(shape))


def _later_rows(
    rows: RowFile | None, sampling: Sampling, begin: float, end: float | None
) -> RowFile | None:
    """The second images of tubelets, up to the end of the utterance."""
    if rows is None:
        return None
    extra = filtergraph.extra_images(sampling)
    count = max(0, rows.count - extra)
    if end is not None:
        count = min(count, max(0, math.ceil(sampling.fps * (end - begin - TUBELET_S) - 1e-6)))
    return replace(rows, begin=extra, count=count)


def _sound_rows(
    file: IO[bytes] | None, origin: int, begin: float, end: float | None
) -> RowFile | None:
    """The utterance's part of a sound stream that begins at second ``origin``."""
    if file is None:
        return None
    available = file.seek(0, 2) // 4  # samples
    first = round(begin * SAMPLE_RATE) - origin * SAMPLE_RATE
    last = available
    if end is not None:
        last = min(available, round(end * SAMPLE_RATE) - origin * SAMPLE_RATE)
    return RowFile(file, np.float32, (), min(first, available), max(0, last - first))


def _align(
    picture: RowFile | None,
    later: RowFile | None,
    sound: RowFile | None,
    sampling: Sampling,
    begin: float,
    end: float | None,
    stated: float | None,
) -> DecodedClip:
    """Align both streams: T from the span if it is known, else from the decoded length."""
    # The fps filter rounds up at the end of the stream, so it gives ceil(fps * duration) images.
    picture_s = 0.0 if picture is None else picture.count / sampling.fps
    sound_s = 0.0 if sound is None else sound.count / SAMPLE_RATE
    if not max(picture_s, sound_s):
        raise DecodeError("no frame could be decoded")
    expected = end - begin if end is not None else (stated or 0.0) - begin
    longest = max(picture_s, sound_s)
    if longest < expected - 1.0:
        raise DecodeError(f"ends after {longest:.1f} s of {expected:.1f} s: truncated?")
    if end is not None:
        duration = end - begin
    elif sound_s > picture_s + CODEC_PADDING_S:
        duration = sound_s
    else:
        duration = min(picture_s, stated - begin) if stated and stated > begin else picture_s
        duration = max(duration, picture_s - 1 / sampling.fps + 1e-3)  # as many frames as images
    if picture is not None and not picture.count:
        raise DecodeError("no image could be decoded")
    if sound is not None and not sound.count and not begin:
        raise DecodeError("no sound could be decoded")
    return DecodedClip(duration, sampling.frames(duration), picture, later, sound)


def _stated_duration(log: str) -> float | None:
    """The duration in the container's header, in seconds; None if it has none."""
    found = re.search(r"Duration: (\d+):(\d\d):(\d\d\.\d+)(?:, start: (-?[\d.]+))?", log)
    if not found:
        return None
    hours, minutes, seconds, start = found.groups()
    length = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    # Matroska's duration is the last timestamp, even if the first one is not zero
    late = float(start or 0) if "Input #0, matroska" in log else 0.0
    return length - max(0.0, late)


def _signal_reason(cause: signal.Signals) -> str:
    """The reason if a signal ended ffmpeg; the system sends SIGKILL when memory runs out."""
    if cause == signal.SIGKILL:
        return "ffmpeg was killed, perhaps for want of memory: --retry-failed tries it again"
    return f"ffmpeg crashed ({cause.name})"


def _ffmpeg_error(log: str, path: Path) -> str:
    """The first error in ffmpeg's log, without paths and addresses, which differ per machine."""
    errors = [line for line in log.splitlines() if "[error]" in line or "[fatal]" in line]
    reason = re.sub(r"\[[^\]]*\]\s*", "", errors[0]).strip() if errors else ""
    for spelling in (f"file:{path}", str(path)):
        reason = reason.replace(spelling, path.name)
    return reason[:300]
