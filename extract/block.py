"""One block of utterances, from files to a finished part: the unit of work of a Dask worker."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cache import MODALITIES, Parts, Record
from extract.decode import Clip, DecodeError, decode
from extract.encoders import Encoder, load
from extract.sampling import Sampling

DECODE_AHEAD = 2
"""Utterances decoded while the encoder works: enough to hide ffmpeg, few enough for any memory."""


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
        if outcome.audio is not None:
            windows = job.sampling.windows(outcome.audio, outcome.frames)
            frames["audio"] = batches["audio"].add(windows)
        if outcome.images is not None:
            frames["vision"] = batches["vision"].add(outcome.images)
        absent = [modality for modality in MODALITIES if not frames[modality]]
        records.append(
            Record(
                utterance.id,
                f"no_{absent[0]}" if absent else "ok",
                f"the file has no {absent[0]} stream" if absent else "",
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


def _decoded(
    job: Job, block: Sequence[Utterance]
) -> Iterator[tuple[Utterance, Clip | DecodeError]]:
    """The block's clips in order, decoded a little ahead of whoever asks."""

    def attempt(utterance: Utterance) -> Clip | DecodeError:
        path = job.data / utterance.video
        span = (utterance.start, utterance.end)
        try:
            return decode(path, job.sampling, *span, utterance.crop, job.timeout)
        except DecodeError as error:
            return error
        except OSError as error:  # no permission, a share that went away
            return DecodeError(f"cannot be read: {error.strerror or error}")

    with ThreadPoolExecutor(DECODE_AHEAD) as pool:
        waiting = [pool.submit(attempt, utterance) for utterance in block[:DECODE_AHEAD]]
        for index, utterance in enumerate(block):
            outcome = waiting.pop(0).result()
            if index + DECODE_AHEAD < len(block):
                waiting.append(pool.submit(attempt, block[index + DECODE_AHEAD]))
            yield utterance, outcome


def _plain(reason: str, data: Path) -> str:
    """A reason that reads the same on every machine."""
    return re.sub(r" ?@? ?0x[0-9a-f]+", "", reason.replace(f"{data}/", ""))
