"""The competitors of the extraction benchmark; each runs in the process that calls it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from time import perf_counter
from typing import Self

import numpy as np
import psutil
import torch

from cache import MODALITIES, Record
from cache.store.sources import SourceIndex
from extract import filtergraph
from extract.cluster import connect, threads
from extract.decode import decode
from extract.encoders import Encoder, load
from extract.ffmpeg import ffmpeg_exe
from extract.job import Job, Utterance
from extract.plan import plan_blocks
from extract.sampling import IMAGE_SIZE, SAMPLE_RATE
from extract.scheduler import run_blocks
from extract.settings import ClusterSpec

LOOK_S = 0.2


@dataclass(frozen=True)
class Task:
    """Utterances of ``seconds`` each, and their job."""

    job: Job
    utterances: Sequence[Utterance]
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One competitor in one process.

    Attributes:
        seconds: wall-clock time, without starting processes and loading the encoder.
        cpu_seconds: CPU time of the encoding process and its ffmpeg processes.
        frames: number of frames.
        memory: peak memory of the encoding process and its ffmpeg processes, in bytes, libraries
            included.
    """

    seconds: float
    cpu_seconds: float
    frames: int
    memory: int


def decode_alone(task: Task) -> Measured:
    """Run the ffmpeg commands of the extraction with its parallelism; discard their output."""
    videos = [list(group) for _, group in groupby(task.utterances, lambda u: u.video)]

    def decode_video(utterances: Sequence[Utterance]) -> None:
        path = task.job.data / utterances[0].video
        spans = [(u.start or 0.0, u.end) for u in utterances]
        sampling, seekable = task.job.sampling, filtergraph.seeks_to_keyframes(path)
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            wanted = filtergraph.outputs(sampling, spans, seekable, MODALITIES)
            sinks = dict.fromkeys(wanted, null)
            line = filtergraph.command(ffmpeg_exe(), path, sampling, spans, seekable, None, sinks)
            subprocess.run(line, check=True, capture_output=True, pass_fds=[null])
        finally:
            os.close(null)

    with _Watch() as watch, ThreadPoolExecutor(threads(workers=1)) as pool:
        list(pool.map(decode_video, videos))
    return watch.measured(task)


def encode_alone(task: Task) -> Measured:
    """Encode tensors that are on the device already, in batches of the extraction's size."""
    encoder, device = _encoder(task.job), task.job.encoder.device
    size = encoder.batch_size
    samples = round(task.job.sampling.window_s * SAMPLE_RATE)
    shape = (size["vision"], IMAGE_SIZE, IMAGE_SIZE, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    windows = 0.1 * torch.randn(size["audio"], samples, device=device)
    frames = _frames(task)
    with _Watch() as watch:
        for _ in range(0, frames, size["audio"]):
            features = encoder.audio(windows)
        for _ in range(0, frames, size["vision"]):
            features = encoder.vision(images)
        features.cpu()  # waits until the device has finished
    return watch.measured(task)


def ours(task: Task) -> Measured:
    """Hash the videos and extract the blocks on a worker that has loaded its encoder."""
    lengths = {u.id: task.seconds for u in task.utterances}
    planned = plan_blocks(task.utterances, lengths, 1)
    first = task.utterances[:1]
    with connect(ClusterSpec(workers=1), task.job.encoder.device, len(planned), print) as client:
        warm = run_blocks(
            client, replace(task.job, place=task.job.place / "warm"), [first], _give_up, _unheard
        )
        assert list(warm)
        worker = psutil.Process(next(iter(client.run(os.getpid).values())))
        with _Watch(worker) as watch:
            index = SourceIndex(task.job.place.parent, "benchmark")
            sources = index.identify({task.job.data / u.video for u in task.utterances})
            blocks = [
                [replace(u, source=sources[task.job.data / u.video]) for u in block]
                for block in planned
            ]
            finished = list(run_blocks(client, task.job, blocks, _give_up, _unheard))
    assert [record.status for records in finished for record in records] == ["ok"] * len(
        task.utterances
    )
    return watch.measured(task)


def _give_up(utterance: Utterance, reason: str) -> Record:
    return Record(utterance.id, "failed", reason)


def _unheard(stage: str, ids: list[str]) -> None:
    """No-op progress callback."""


def naive(task: Task) -> Measured:
    """Decode, encode frame by frame and save one utterance after the other."""
    encoder = _encoder(task.job)
    folder = task.job.place.with_suffix(".naive")
    folder.mkdir(exist_ok=True)
    with _Watch() as watch:
        for u in task.utterances:
            clip = decode(task.job.data / u.video, task.job.sampling, u.start, u.end)
            assert clip.images is not None
            windows = np.concatenate(list(clip.window_batches(task.job.sampling)))
            for modality, inputs in (("audio", windows), ("vision", clip.images)):
                encode = encoder.audio if modality == "audio" else encoder.vision
                rows = torch.from_numpy(inputs.copy()).to(task.job.encoder.device).split(1)
                features = torch.cat([encode(row) for row in rows])
                np.save(folder / f"{u.id}.{modality}.npy", features.half().cpu().numpy())
    return watch.measured(task)


MEASURED: dict[str, Callable[[Task], Measured]] = {
    "decode": decode_alone,
    "encode": encode_alone,
    "ours": ours,
    "naive": naive,
}


def _encoder(job: Job) -> Encoder:
    """Load the encoder and call it once per modality to warm it up."""
    if job.encoder.device == "cpu":
        torch.set_num_threads(1)  # as in a worker
    encoder = load(job.encoder)
    size = (encoder.batch_size["vision"], IMAGE_SIZE, IMAGE_SIZE, 3)
    encoder.vision(torch.zeros(size, dtype=torch.uint8))
    samples = round(job.sampling.window_s * SAMPLE_RATE)
    encoder.audio(torch.zeros(encoder.batch_size["audio"], samples)).cpu()
    return encoder


def _frames(task: Task) -> int:
    return len(task.utterances) * task.job.sampling.frames(task.seconds)


class _Watch:
    """Measure time, CPU time and peak memory of a process and its children within a ``with``."""

    def __init__(self, process: psutil.Process | None = None) -> None:
        self._process = process or psutil.Process()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.memory = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._worked = self._cpu_seconds()
        self._began = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = perf_counter() - self._began
        self.cpu_seconds = self._cpu_seconds() - self._worked
        self._over.set()
        self._thread.join()

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return sum((times.user, times.system, times.children_user, times.children_system))

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            held = 0
            for process in (self._process, *self._process.children()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    held += process.memory_info().rss
            self.memory = max(self.memory, held)

    def measured(self, task: Task) -> Measured:
        """Return the measurements of a task."""
        return Measured(self.seconds, self.cpu_seconds, _frames(task), self.memory)
