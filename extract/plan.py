"""Plan an extraction: its utterances, their blocks, and an estimate of time and size."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from extract.block import extract_block, single_thread
from extract.encoders import Encoder
from extract.job import Job, Utterance
from manifests import Manifest

BLOCK_S = 120.0
"""Seconds of video in a block: long enough to hide Dask's overhead, little to lose when killed."""

MAX_BLOCK_UTTERANCES = 64
"""Utterances in a block at most, however short they are."""

BLOCKS_PER_WORKER = 4
"""At least this many, so that in a small dataset no worker waits long for the last block."""

FIRST_BLOCK_DIVISOR = 4
"""Each worker's first block is this many times shorter: until it is decoded, the encoder waits."""

BYTES_PER_S = 125_000
"""Assumed bit rate (1 Mbit/s), to guess a video's length from its file size."""

SAMPLED_UTTERANCES = 5
"""Utterances extracted to estimate the time."""


@dataclass(frozen=True)
class ExtractionEstimate:
    """Expected work, time and size of an extraction.

    Attributes:
        utterances: number still to be extracted.
        seconds: seconds of video in them, estimated from file sizes where the manifest has no
            times.
        blocks: number of blocks.
        bytes: size of their features.
        took: seconds; None if none of the sampled utterances could be read.
        workers: number of workers.
    """

    utterances: int
    seconds: float
    blocks: int
    bytes: int
    took: float | None
    workers: int


def utterances_of(manifest: Manifest) -> list[Utterance]:
    """The manifest's utterances in the order of the store's rows."""
    return [Utterance(*cut) for cut in manifest.cuts]


def durations(utterances: Sequence[Utterance], data: Path) -> dict[str, float]:
    """Seconds of each utterance, by id: from the manifest, else guessed from the file's size."""
    sizes: dict[str, float] = {}

    def seconds(utterance: Utterance) -> float:
        if utterance.end is not None:
            return utterance.end - (utterance.start or 0.0)
        if utterance.video not in sizes:
            try:
                sizes[utterance.video] = (data / utterance.video).stat().st_size / BYTES_PER_S
            except (OSError, ValueError):  # the latter: a null character in the name
                sizes[utterance.video] = 0.0  # missing: reported when its block is decoded
        return max(0.0, sizes[utterance.video] - (utterance.start or 0.0))

    return {utterance.id: seconds(utterance) for utterance in utterances}


def plan_blocks(
    utterances: Sequence[Utterance], lengths: dict[str, float], workers: int
) -> list[list[Utterance]]:
    """Divide utterances into blocks of about equal length; each worker's first one is shorter.

    The result is deterministic. Segments of a video follow one another. The stored features do not
    depend on the blocks.

    Args:
        utterances: the utterances to extract.
        lengths: seconds of each, by id.
        workers: number of workers that share the blocks.
    """
    share = sum(lengths[u.id] for u in utterances) / (BLOCKS_PER_WORKER * workers)
    usual = min(BLOCK_S, share)
    cut: list[list[Utterance]] = []
    filled = limit = 0.0
    for utterance in sorted(utterances, key=lambda u: (u.video, u.start or 0.0, u.id)):
        length = lengths[utterance.id]
        if not cut or len(cut[-1]) == MAX_BLOCK_UTTERANCES or filled + length > limit:
            limit = usual / FIRST_BLOCK_DIVISOR if len(cut) < workers else usual
            cut.append([])
            filled = 0.0
        cut[-1].append(utterance)
        filled += length
    return cut


def estimate_extraction(
    job: Job,
    encoder: Encoder,
    utterances: Sequence[Utterance],
    lengths: dict[str, float],
    in_blocks: int,
    workers: int,
    threads: int,
    cores: float,
) -> ExtractionEstimate:
    """Extract a few utterances into a temporary folder and extrapolate the time.

    Args:
        job: job of the extraction.
        encoder: the job's encoder.
        utterances: the utterances to extract.
        lengths: estimated seconds of each, by id.
        in_blocks: number of blocks.
        workers: number of workers.
        threads: threads per worker.
        cores: number of cores shared by all workers and their ffmpeg processes.
    """
    # Spread over the dataset; the first utterance warms up the encoder and is not timed.
    step = max(1, len(utterances) // (SAMPLED_UTTERANCES + 1))
    sample = utterances[::step][: SAMPLED_UTTERANCES + 1]
    with tempfile.TemporaryDirectory() as folder, single_thread():
        job = replace(job, place=Path(folder, "warm-up"), store=None)
        extract_block(job, sample[:1])
        timed = sample[1:] or sample
        began, worked = time.perf_counter(), _cpu_seconds()
        records = [r for r in extract_block(job, timed, threads) if r.status != "failed"]
        took, work = time.perf_counter() - began, _cpu_seconds() - worked
    measured = sum(record.duration for record in records)
    guessed = sum(lengths[record.id] for record in records)
    # The true length of the sampled files corrects the guess from their sizes.
    seconds = sum(lengths[u.id] for u in utterances)
    if guessed:
        seconds *= measured / guessed
    rows = seconds * job.sampling.fps + len(utterances) / 2  # T is rounded up
    return ExtractionEstimate(
        utterances=len(utterances),
        seconds=seconds,
        blocks=in_blocks,
        bytes=round(rows * sum(encoder.widths.values()) * np.dtype(job.dtype).itemsize),
        # the workers of a machine and their ffmpeg processes share its cores
        took=max(took / workers, work / cores) / measured * seconds if measured else None,
        workers=workers,
    )


def _cpu_seconds() -> float:
    """Processor time of this process and of the ffmpeg processes it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
