"""One block of utterances, from files to a finished part: the unit of work of a Dask worker."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from cache import MODALITIES, Parts, Record
from extract.decode import Clip, DecodeError, decode_spans
from extract.encoders import Encoder, load
from extract.sampling import Sampling

DECODE_AHEAD = 2
"""Passes decoded while the encoder works: enough to hide ffmpeg, few enough for any memory."""
GAP_S = 30.0
"""Two utterances of a video that lie further apart are not worth decoding what is between them."""
PASS_IMAGES = 256
"""Images of one pass (38 MB), unless a single utterance has more."""

STREAMS = {"audio": "audio", "vision": "video"}
"""What a file calls the streams of our modalities."""


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
        sampling: how frames are taken.
        dtype: stored type.
        timeout: seconds one file may take to decode.
    """

    data: Path
    store: Path
    encoder: str
    checkpoint: Path | None
    device: str
    sampling: Sampling
    dtype: str
    timeout: float


def extract_block(job: Job, block: Sequence[Utterance]) -> list[Record]:
    """Decode and encode a block, write its part, return what became of each utterance."""
    if job.device == "cpu":
        # One thread per worker: workers share the cores, and threads would wait for each other.
        torch.set_num_threads(1)
    encoder = load(job.encoder, job.checkpoint, job.device)
    records: list[Record] = []
    batches = {m: _Batches(encoder, m, torch.device(job.device)) for m in MODALITIES}
    for utterance, outcome in _decoded(job, block):
        if isinstance(outcome, DecodeError):
            records.append(Record(utterance.id, "failed", _plain(str(outcome), job.data)))
            continue
        frames = dict.fromkeys(MODALITIES, 0)
        if outcome.sound is not None:
            for windows in outcome.window_batches(job.sampling):
                frames["audio"] += batches["audio"].add(windows)
        if outcome.picture is not None:
            for images in outcome.image_batches():
                frames["vision"] += batches["vision"].add(images)
        absent = [modality for modality in MODALITIES if not frames[modality]]
        records.append(
            Record(
                utterance.id,
                f"no_{STREAMS[absent[0]]}" if absent else "ok",
                f"the file has no {STREAMS[absent[0]]} stream" if absent else "",
                round(outcome.duration, 6),
                frames["audio"],
                frames["vision"],
            )
        )
    features = {modality: batches[modality].finish() for modality in MODALITIES}
    Parts(job.store).write(records, features, job.dtype)
    return records


class _Batches:
    """Rows of many utterances through the encoder in batches of one fixed size.

    The last batch is filled up with zeros: with one shape, a row's bits never depend on what else
    was in its batch or how full it was.
    """

    def __init__(self, encoder: Encoder, modality: str, device: torch.device) -> None:
        self._encode = encoder.audio if modality == "audio" else encoder.vision
        self._size = encoder.batch_size[modality]
        self._width = encoder.widths[modality]
        self._device = device
        self._waiting: list[np.ndarray] = []
        self._done: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> int:
        """Take the rows of one utterance; returns how many there are."""
        for row in rows:
            self._waiting.append(row)
            if len(self._waiting) == self._size:
                self._flush()
        return len(rows)

    def finish(self) -> np.ndarray:
        """All features so far, float32 ``[rows, d]``."""
        if self._waiting:
            self._flush()
        return np.concatenate([np.empty((0, self._width), np.float32), *self._done])

    def _flush(self) -> None:
        count = len(self._waiting)
        batch = np.zeros((self._size, *self._waiting[0].shape), self._waiting[0].dtype)
        np.stack(self._waiting, out=batch[:count])
        self._waiting.clear()
        features = self._encode(torch.from_numpy(batch).to(self._device))
        self._done.append(features[:count].float().cpu().numpy())


def passes(sampling: Sampling, block: Sequence[Utterance]) -> list[list[Utterance]]:
    """What one ffmpeg process decodes at a time: neighbours in one video, in order of time."""
    together: list[list[Utterance]] = []

    def cut(u: Utterance) -> tuple[str, tuple[float, ...] | None]:
        return u.video, u.crop

    def images(u: Utterance) -> int:
        return sampling.frames((u.end or 0.0) - (u.start or 0.0))

    for _, group in groupby(block, cut):
        for utterance in sorted(group, key=lambda u: u.start or 0.0):
            last = together[-1] if together else []
            if (
                last
                and cut(last[-1]) == cut(utterance)
                and utterance.end is not None
                and all(u.end is not None for u in last)
                and (utterance.start or 0.0) <= max(u.end or 0.0 for u in last) + GAP_S
                and sum(map(images, [*last, utterance])) <= PASS_IMAGES
            ):
                last.append(utterance)
            else:
                together.append([utterance])
    return together


def _decoded(
    job: Job, block: Sequence[Utterance]
) -> Iterator[tuple[Utterance, Clip | DecodeError]]:
    """The block's clips, decoded a little ahead of whoever asks."""

    def attempt(together: Sequence[Utterance]) -> Sequence[Clip | DecodeError]:
        path = job.data / together[0].video
        spans = [(u.start or 0.0, u.end) for u in together]
        try:
            return decode_spans(path, job.sampling, spans, together[0].crop, job.timeout)
        except OSError as error:  # no permission, a share that went away
            return [DecodeError(f"cannot be read: {error.strerror or error}")] * len(together)

    ahead = passes(job.sampling, block)
    with ThreadPoolExecutor(DECODE_AHEAD) as pool:
        waiting = [pool.submit(attempt, together) for together in ahead[:DECODE_AHEAD]]
        for index, together in enumerate(ahead):
            outcomes = waiting.pop(0).result()
            if index + DECODE_AHEAD < len(ahead):
                waiting.append(pool.submit(attempt, ahead[index + DECODE_AHEAD]))
            yield from zip(together, outcomes, strict=True)


def _plain(reason: str, data: Path) -> str:
    """A reason that reads the same on every machine."""
    return re.sub(r" ?@? ?0x[0-9a-f]+", "", reason.replace(f"{data}/", ""))
