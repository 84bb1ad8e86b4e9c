"""One block of utterances, from files to a finished part: the unit of work of a Dask worker."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import MODALITIES, Parts, Record
from cache.store import is_published
from extract.decode import Clip, DecodeError, StalledError, decode_spans
from extract.encoders import Encoder, load
from extract.sampling import PREPROCESS_VERSION, Sampling

DECODERS = 2
"""ffmpegs of a worker at once, where nobody says how many: the fewest that hide how they start."""
GAP_S = 30.0
"""Two utterances of a video that lie further apart are not worth decoding what is between them."""
PASS_IMAGES = 256
"""Images of one pass (38 MB), unless a single utterance has more."""

_loading = threading.Lock()

OF_THE_FILE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)
"""Why a file cannot be opened on any machine; all else (full disks, lost mounts) may pass."""

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


def extract_block(job: Job, block: Sequence[Utterance], decoders: int = DECODERS) -> list[Record]:
    """Decode and encode a block, write its part, return what became of each utterance.

    Args:
        job: what it has in common with the others.
        block: the utterances.
        decoders: ffmpegs at once, of all blocks that this process works on.

    Raises:
        ValueError: this machine's encoder or code is not the recipe's.
        OSError: this machine is at fault, not a file: a full disk, a mount that went away.
    """
    if job.device == "cpu":
        # One thread per worker: workers share the cores, and threads would wait for each other.
        torch.set_num_threads(1)
    with _loading:
        encoder = load(job.encoder, job.checkpoint, job.device, job.precision, job.backend)
    _refuse_other_recipe(job, encoder)
    age = next(_ages)
    with _decoding(job, block, decoders) as clips:
        records, features = _encode_all(job, encoder, clips, age)
    if job.sampling.crops > job.sampling.rows_per_frame["vision"]:
        of_crops = features["vision"].reshape(-1, job.sampling.crops, encoder.widths["vision"])
        features["vision"] = of_crops.mean(axis=1)
    Parts(job.store).write(records, features, job.dtype)
    if is_published(job.store):
        Parts(job.store).remove()  # another run was quicker: nobody would come for this part
    return records


def _refuse_other_recipe(job: Job, encoder: Encoder) -> None:
    """Workers on other machines have files and releases of their own."""
    for what, here, wanted in (
        ("weights (SHA-256)", encoder.weights_sha256, job.weights_sha256),
        ("settings", encoder.settings, job.encoder_settings),
        ("pre-processing version", PREPROCESS_VERSION, job.preprocess),
    ):
        if here != wanted:
            raise ValueError(
                f"the encoder {job.encoder} on {socket.gethostname()} is not the one that the run "
                f"was started with: its {what}: {here}, there: {wanted}; give all machines the "
                "same weights and release"
            )


def _encode_all(
    job: Job, encoder: Encoder, clips: Iterable[tuple[Utterance, Clip | DecodeError]], age: int
) -> tuple[list[Record], dict[str, np.ndarray]]:
    """What became of each utterance, and the features of all, float32 ``[rows, d]``."""
    records: list[Record] = []
    batches = {m: _Batches(encoder, m, torch.device(job.device)) for m in MODALITIES}
    for utterance, outcome in clips:
        if isinstance(outcome, DecodeError):
            records.append(Record(utterance.id, "failed", _plain(str(outcome), job.data)))
            continue
        with _encoding.turn(age):
            there = _encode(outcome, job.sampling, batches)
        rows = {
            modality: outcome.frames * job.sampling.rows_per_frame[modality] * there[modality]
            for modality in MODALITIES
        }
        absent = [modality for modality in MODALITIES if not there[modality]]
        records.append(
            Record(
                utterance.id,
                f"no_{STREAMS[absent[0]]}" if absent else "ok",
                f"the file has no {STREAMS[absent[0]]} stream" if absent else "",
                round(outcome.duration, 6),
                rows["audio"],
                rows["vision"],
            )
        )
    with _encoding.turn(age):
        return records, {modality: batches[modality].finish() for modality in MODALITIES}


class _Turns:
    """Of a worker's blocks at its one encoder: the oldest that has something for it comes first.

    So the older block is encoded to its end while the younger is decoded ahead. Taking equal turns,
    they would end together, and the next two begin with nothing decoded.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._busy = False

    @contextmanager
    def turn(self, age: int) -> Iterator[None]:
        """Wait for the encoder; it is the caller's until the end of the ``with``."""
        with self._changed:
            self._waiting.add(age)
            self._changed.wait_for(lambda: not self._busy and age == min(self._waiting))
            self._waiting.remove(age)
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()


_encoding, _ages = _Turns(), count()


def _encode(clip: Clip, sampling: Sampling, batches: Mapping[str, _Batches]) -> dict[str, bool]:
    """Everything of an utterance into the batches; says which modalities there are."""
    if clip.sound is not None:
        for windows in clip.window_batches(sampling):
            batches["audio"].add(windows)
    if clip.picture is not None:
        for images in clip.image_batches():
            # crops are images like others, those of a frame next to one another
            batches["vision"].add(
                images if sampling.crops == 1 else images.reshape(-1, *images.shape[2:])
            )
    return {"audio": clip.sound is not None, "vision": clip.picture is not None}


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
        self._done = [torch.empty(0, self._width, device=device)]

    def add(self, rows: np.ndarray) -> None:
        """Take rows, and encode whenever there are enough."""
        for row in rows:
            self._waiting.append(row)
            if len(self._waiting) == self._size:
                self._flush()

    def finish(self) -> np.ndarray:
        """All features so far, float32 ``[rows, d]``."""
        if self._waiting:
            self._flush()
        return torch.cat(self._done).cpu().numpy()

    def _flush(self) -> None:
        count = len(self._waiting)
        batch = np.zeros((self._size, *self._waiting[0].shape), self._waiting[0].dtype)
        np.stack(self._waiting, out=batch[:count])
        self._waiting.clear()
        inputs = torch.from_numpy(batch)
        if self._device.type == "cuda":
            inputs = inputs.pin_memory()  # is copied while the GPU works on the batch before
        features = self._encode(inputs.to(self._device, non_blocking=True))
        # They stay where they are to the end: fetching them would wait for them.
        self._done.append(features[:count].float())


def passes(sampling: Sampling, block: Sequence[Utterance]) -> list[list[Utterance]]:
    """What one ffmpeg process decodes at a time: neighbours in one video, in order of time."""
    together: list[list[Utterance]] = []

    def cut(u: Utterance) -> tuple[str, tuple[float, ...] | None]:
        return u.video, u.crop

    def images(u: Utterance) -> int:
        seconds = (u.end or 0.0) - (u.start or 0.0)
        return sampling.frames(seconds) * sampling.images_per_frame

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


@contextmanager
def _decoding(
    job: Job, block: Sequence[Utterance], decoders: int
) -> Iterator[Iterator[tuple[Utterance, Clip | DecodeError]]]:
    """The block's clips; from now on they are decoded a little ahead of whoever asks."""
    stalled: dict[str, DecodeError] = {}

    def attempt(together: Sequence[Utterance]) -> Sequence[Clip | DecodeError]:
        video = together[0].video
        if video in stalled:  # once is long enough
            return [stalled[video]] * len(together)
        path, spans = job.data / video, [(u.start or 0.0, u.end) for u in together]
        outcomes: Sequence[Clip | DecodeError]
        try:
            outcomes = decode_spans(path, job.sampling, spans, together[0].crop, job.timeout)
        except OSError as error:
            if error.errno not in OF_THE_FILE or str(error.filename) != str(path):
                raise
            outcomes = [DecodeError(f"cannot be read: {error.strerror}")] * len(together)
        if any(isinstance(o, DecodeError) for o in outcomes) and _went_away(job.data):
            raise FileNotFoundError(errno.ENOENT, "the folder of the videos is gone", str(job.data))
        stalled.update((video, o) for o in outcomes if isinstance(o, StalledError))
        return outcomes

    pool = _ffmpegs(decoders)
    todo = iter(passes(job.sampling, block))
    ahead = deque((together, pool.submit(attempt, together)) for together in islice(todo, decoders))

    def clips() -> Iterator[tuple[Utterance, Clip | DecodeError]]:
        while ahead:
            together, decoded = ahead.popleft()
            outcomes = decoded.result()
            ahead.extend((further, pool.submit(attempt, further)) for further in islice(todo, 1))
            yield from zip(together, outcomes, strict=True)

    try:
        yield clips()
    finally:
        for _, decoded in ahead:
            decoded.cancel()


@cache
def _ffmpegs(decoders: int) -> ThreadPoolExecutor:
    """What all blocks of a process decode with, in the order in which they ask."""
    return ThreadPoolExecutor(decoders)


def _went_away(folder: Path) -> bool:
    """Whether a folder is no longer there, or is the empty place where a share was mounted."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except PermissionError:
        return False  # its files may be read all the same
    except OSError:
        return True


def _plain(reason: str, data: Path) -> str:
    """A reason that reads the same on every machine."""
    return re.sub(r" ?@? ?0x[0-9a-f]+", "", reason.replace(f"{data}/", ""))
