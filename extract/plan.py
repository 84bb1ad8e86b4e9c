"""What an extraction will do, before it does it: utterances, their blocks, and an estimate."""

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
"""Seconds of video in a block: enough to make Dask's own cost vanish, few to lose when killed."""

MAX_BLOCK_UTTERANCES = 64
"""Utterances in a block at most, however short they are."""

BLOCKS_PER_WORKER = 4
"""A small dataset gets smaller blocks, so that no worker waits long for the last one."""

FIRST_BLOCK_DIVISOR = 4
"""Each worker's first block is this many times shorter: until it is decoded, the encoder waits."""

BYTES_PER_S = 125_000
"""A megabit a second: what stands for the length of a file before it is opened."""

SAMPLED_UTTERANCES = 5
"""Utterances that are extracted for an estimate."""


@dataclass(frozen=True)
class ExtractionEstimate:
    """What an extraction would take.

    Attributes:
        utterances: how many are still to be extracted.
        seconds: of video in them; estimated from file sizes where the manifest gives no times.
        blocks: tasks for the workers.
        bytes: size of their features.
        took: seconds, None if no utterance of the warm-up could be read.
        workers: how many share the work.
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
    """Seconds of each utterance: from the manifest, else guessed from the size of its file."""
    sizes: dict[str, float] = {}

    def seconds(utterance: Utterance) -> float:
        if utterance.end is not None:
            return utterance.end - (utterance.start or 0.0)
        if utterance.video not in sizes:
            try:
                sizes[utterance.video] = (data / utterance.video).stat().st_size / BYTES_PER_S
            except OSError:
                sizes[utterance.video] = 0.0  # missing: the block will say so
        return max(0.0, sizes[utterance.video] - (utterance.start or 0.0))

    return {utterance.id: seconds(utterance) for utterance in utterances}


def plan_blocks(
    utterances: Sequence[Utterance], lengths: dict[str, float], workers: int
) -> list[list[Utterance]]:
    """Blocks of about equal length but for shorter first ones, the same for the same arguments.

    Segments of one video follow one another. What is stored does not depend on the blocks.

    Args:
        utterances: what to extract.
        lengths: seconds of each, by id.
        workers: how many share the blocks.
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
    """Extract a few utterances into a temporary folder and scale up what that took.

    Args:
        job: of the extraction.
        encoder: the job's.
        utterances: what is to be extracted.
        lengths: seconds of each as far as known, by id.
        in_blocks: number of blocks.
        workers: how many share the work.
        threads: of each.
        cores: that they and their ffmpegs have together.
    """
    # Spread over the dataset; the first one warms up the encoder and is not counted.
    step = max(1, len(utterances) // (SAMPLED_UTTERANCES + 1))
    sample = utterances[::step][: SAMPLED_UTTERANCES + 1]
    with tempfile.TemporaryDirectory() as folder, single_thread():
        job = replace(job, store=Path(folder, "warm-up"))
        extract_block(job, sample[:1])
        timed = sample[1:] or sample
        began, worked = time.perf_counter(), _cpu_seconds()
        records = [r for r in extract_block(job, timed, threads) if r.status != "failed"]
        took, work = time.perf_counter() - began, _cpu_seconds() - worked
    seen = sum(record.duration for record in records)
    thought = sum(lengths[record.id] for record in records)
    # What the sampled files really last corrects the guess from their sizes.
    seconds = sum(lengths[u.id] for u in utterances)
    if thought:
        seconds *= seen / thought
    rows = seconds * job.sampling.fps + len(utterances) / 2  # T is rounded up
    return ExtractionEstimate(
        utterances=len(utterances),
        seconds=seconds,
        blocks=in_blocks,
        bytes=round(rows * sum(encoder.widths.values()) * np.dtype(job.dtype).itemsize),
        # workers of one machine, and their ffmpegs, share its cores
        took=max(took / workers, work / cores) / seen * seconds if seen else None,
        workers=workers,
    )


def _cpu_seconds() -> float:
    """Of this process and the ffmpegs that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
