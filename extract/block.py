"""Extract one block of utterances into a part file: the unit of work of a Dask worker."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import torch

from cache import MODALITIES, Parts, Record
from cache.store.publish import is_published
from extract.decode import DecodedClip, DecodeError
from extract.encoders import Encoder, EncoderIdentity, load
from extract.job import Job, Utterance
from extract.prefetch import DEFAULT_DECODERS, prefetch_clips
from extract.sampling import Sampling

STREAMS = {"audio": "audio", "vision": "video"}
"""Modality to the name of its stream in a file."""

_load_lock = threading.Lock()


@contextmanager
def single_thread() -> Iterator[None]:
    """Let PyTorch compute on one thread, as in a worker: features' bits depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def extract_block(
    job: Job,
    block: Sequence[Utterance],
    decoders: int = DEFAULT_DECODERS,
    on_stage: Callable[[str, list[str]], None] = lambda stage, ids: None,
) -> list[Record]:
    """Encode a block, write its part and return one record per utterance.

    Raises:
        ValueError: as `encode_block`, or a feature does not fit the stored type.
        OSError: as `encode_block`, or the part cannot be written.
    """
    records, features = encode_block(job, block, decoders, on_stage)
    Parts(job.place).write(records, features, job.dtype)
    if job.store is not None and is_published(job.store):
        Parts(job.place).remove()  # another run published first: no run would use this part
    return records


def encode_block(
    job: Job,
    block: Sequence[Utterance],
    decoders: int = DEFAULT_DECODERS,
    on_stage: Callable[[str, list[str]], None] = lambda stage, ids: None,
) -> tuple[list[Record], dict[str, np.ndarray]]:
    """Decode and encode a block.

    Args:
        job: the settings shared by all blocks.
        block: the utterances.
        decoders: ffmpeg processes at once, shared by all blocks of this process.
        on_stage: called from any thread with ``"decoded"`` or ``"encoded"`` and utterance ids.

    Returns:
        One record per utterance, and per modality the features of all utterances in the order
        of the records, float32 ``[rows, d]``.

    Raises:
        ValueError: this machine's encoder or code differs from the recipe's.
        OSError: a fault of this machine, not of a file: a full disk, an unmounted folder.
    """
    with _load_lock:
        encoder = load(job.encoder)
    _check_identity(job, encoder)
    age = next(_block_numbers)
    records: list[Record] = []
    batches = {m: _Batches(encoder, m, torch.device(job.encoder.device)) for m in MODALITIES}
    with prefetch_clips(job, block, decoders, on_stage) as clips:
        for utterance, clip in clips:
            if isinstance(clip, DecodeError):
                reason = _portable_reason(str(clip), job.data)
                records.append(utterance.record("failed", reason))
                continue
            with _encoder_lock.turn(age):
                _encode(clip, job.sampling, batches)
            on_stage("encoded", [utterance.id])
            records.append(_record(utterance, clip, job.sampling))
        with _encoder_lock.turn(age):
            features = {modality: batches[modality].finish() for modality in MODALITIES}
    if job.sampling.crops > job.sampling.rows_per_frame["vision"]:
        of_crops = features["vision"].reshape(-1, job.sampling.crops, encoder.widths["vision"])
        features["vision"] = of_crops.mean(axis=1)
    return records, features


def _check_identity(job: Job, encoder: Encoder) -> None:
    """Raise a ValueError if this machine's encoder gives other features than the recipe's.

    Workers on other machines have their own files and their own release.
    """
    difference = EncoderIdentity.of(encoder).difference(job.identity)
    if difference:
        raise ValueError(
            f"the encoder {encoder.name} on {socket.gethostname()} is not the one that the run was "
            f"started with: {difference}; give all machines the same weights and release"
        )


class EncoderLock:
    """A lock on the worker's only encoder that is granted to the oldest waiting block first.

    The older block is encoded to its end while the younger one is decoded. With a fair lock both
    would end together, and the next two blocks would begin with nothing decoded.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._busy = False

    @contextmanager
    def turn(self, age: int) -> Iterator[None]:
        """Wait for the encoder and hold it until the end of the ``with`` block."""
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

    @property
    def waiting(self) -> int:
        """The number of threads that wait for the encoder."""
        return len(self._waiting)


_encoder_lock, _block_numbers = EncoderLock(), count()


def _encode(clip: DecodedClip, sampling: Sampling, batches: Mapping[str, _Batches]) -> None:
    """Add a clip's windows and images to the batches."""
    if clip.sound is not None:
        for windows in clip.window_batches(sampling):
            batches["audio"].add(windows)
    if clip.picture is not None:
        for images in clip.image_batches():
            # each crop is a row of its own, the crops of a frame one after another
            batches["vision"].add(
                images if sampling.crops == 1 else images.reshape(-1, *images.shape[2:])
            )


def _record(utterance: Utterance, clip: DecodedClip, sampling: Sampling) -> Record:
    """The record of an encoded utterance; at most one of its streams is missing."""
    present = {"audio": clip.sound is not None, "vision": clip.picture is not None}
    rows = {m: clip.frames * sampling.rows_per_frame[m] * present[m] for m in MODALITIES}
    absent = [STREAMS[modality] for modality in MODALITIES if not present[modality]]
    return utterance.record(
        f"no_{absent[0]}" if absent else "ok",
        f"the file has no {absent[0]} stream" if absent else "",
        round(clip.duration, 6),
        rows["audio"],
        rows["vision"],
    )


class _Batches:
    """Encode the rows of many utterances in batches of a fixed size.

    The last batch is padded with zeros: with a single shape, a row's bits do not depend on the
    other rows of its batch or on their number.
    """

    def __init__(self, encoder: Encoder, modality: str, device: torch.device) -> None:
        self._encode = encoder.audio if modality == "audio" else encoder.vision
        self._size = encoder.batch_size[modality]
        self._width = encoder.widths[modality]
        self._device = device
        self._waiting: list[np.ndarray] = []
        self._done = [torch.empty(0, self._width, device=device)]

    def add(self, rows: np.ndarray) -> None:
        """Add rows and encode each batch that becomes full."""
        for row in rows:
            self._waiting.append(row)
            if len(self._waiting) == self._size:
                self._flush()

    def finish(self) -> np.ndarray:
        """Encode the rest and return all features, float32 ``[rows, d]``."""
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
            inputs = inputs.pin_memory()  # copied while the GPU computes the previous batch
        features = self._encode(inputs.to(self._device, non_blocking=True))
        # Kept on the device until the end: copying them now would wait for the GPU.
        self._done.append(features[:count].float())


def _portable_reason(reason: str, data: Path) -> str:
    """Remove from a reason what differs between machines: folders and memory addresses."""
    return re.sub(r" ?@? ?0x[0-9a-f]+", "", reason.replace(f"{data}/", ""))
