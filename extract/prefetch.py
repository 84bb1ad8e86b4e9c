"""Prefetch: decode a block's videos in background threads while the encoder runs."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import groupby, islice
from pathlib import Path

from cache.store.sources import PER_FILE_ERRNOS
from extract.decode import DecodedClip, DecodeError, StalledError, decode_spans
from extract.job import Job, Utterance
from extract.sampling import Sampling

DEFAULT_DECODERS = 2
"""ffmpeg processes per worker: with fewer, the encoder would wait while one starts."""
GAP_S = 30.0
"""Utterances of a video with a longer gap are decoded in separate passes."""
PASS_IMAGES = 256
"""Images of one pass (38 MB), unless a single utterance has more."""
PASS_UTTERANCES = 16
"""Utterances of one pass: each needs a pipe, and some systems allow a process 256 descriptors."""


def plan_decode_passes(sampling: Sampling, block: Sequence[Utterance]) -> list[list[Utterance]]:
    """Group neighbours in a video, ordered by time, into passes of one ffmpeg process each."""
    together: list[list[Utterance]] = []

    def source(u: Utterance) -> tuple[str, tuple[float, ...] | None]:
        return u.video, u.crop

    def images(u: Utterance) -> int:
        seconds = (u.end or 0.0) - (u.start or 0.0)
        return sampling.frames(seconds) * sampling.images_per_frame

    for _, group in groupby(block, source):
        for utterance in sorted(group, key=lambda u: u.start or 0.0):
            last = together[-1] if together else []
            if (
                last
                and source(last[-1]) == source(utterance)
                and utterance.end is not None
                and all(u.end is not None for u in last)
                and (utterance.start or 0.0) <= max(u.end or 0.0 for u in last) + GAP_S
                and len(last) < PASS_UTTERANCES
                and sum(map(images, [*last, utterance])) <= PASS_IMAGES
            ):
                last.append(utterance)
            else:
                together.append([utterance])
    return together


@contextmanager
def prefetch_clips(
    job: Job,
    block: Sequence[Utterance],
    decoders: int,
    on_stage: Callable[[str, list[str]], None],
) -> Iterator[Iterator[tuple[Utterance, DecodedClip | DecodeError]]]:
    """Decode a block in background threads; the iterator yields each utterance with its clip.

    At most ``decoders`` passes are decoded ahead of the one that is consumed. The iterator raises
    an OSError if the machine is at fault, such as an unmounted data folder.
    """
    stalled: dict[str, DecodeError] = {}

    def decode_pass(together: Sequence[Utterance]) -> Sequence[DecodedClip | DecodeError]:
        video = together[0].video
        if video in stalled:  # do not wait for the timeout again
            return [stalled[video]] * len(together)
        path, spans = job.data / video, [(u.start or 0.0, u.end) for u in together]
        outcomes: Sequence[DecodedClip | DecodeError]
        try:
            _check_source(together[0], path)
            outcomes = decode_spans(path, job.sampling, spans, together[0].crop, job.timeout)
            _check_source(together[0], path)
        except DecodeError as error:
            outcomes = [error] * len(together)
        except OSError as error:
            if error.errno not in PER_FILE_ERRNOS or str(error.filename) != str(path):
                raise
            outcomes = [DecodeError(f"cannot be read: {error.strerror}")] * len(together)
        if any(isinstance(o, DecodeError) for o in outcomes) and _is_unmounted(job.data):
            raise FileNotFoundError(
                errno.ENOENT, "the folder of the videos no longer exists", str(job.data)
            )
        stalled.update((video, o) for o in outcomes if isinstance(o, StalledError))
        decoded = zip(together, outcomes, strict=True)
        on_stage("decoded", [u.id for u, outcome in decoded if isinstance(outcome, DecodedClip)])
        return outcomes

    pool = decoder_pool(decoders)
    remaining = iter(plan_decode_passes(job.sampling, block))
    ahead = deque(
        (together, pool.submit(decode_pass, together)) for together in islice(remaining, decoders)
    )

    def clips() -> Iterator[tuple[Utterance, DecodedClip | DecodeError]]:
        while ahead:
            together, decoded = ahead.popleft()
            outcomes = decoded.result()
            ahead.extend(
                (further, pool.submit(decode_pass, further)) for further in islice(remaining, 1)
            )
            yield from zip(together, outcomes, strict=True)

    try:
        yield clips()
    finally:
        for _, decoded in ahead:
            decoded.cancel()


def _check_source(utterance: Utterance, path: Path) -> None:
    """Raise a DecodeError if a video is not the file that was hashed at the start of the run."""
    if utterance.source is not None and not utterance.source.is_at(path):
        raise DecodeError("the file was changed during the extraction; extract again")


@cache
def decoder_pool(decoders: int) -> ThreadPoolExecutor:
    """The thread pool that all blocks of a process share; it decodes in order of submission."""
    return ThreadPoolExecutor(decoders)


def _is_unmounted(folder: Path) -> bool:
    """Whether a folder no longer exists, or is empty, as a mount point is after unmounting."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except PermissionError:
        return False  # its files may be readable nevertheless
    except OSError:
        return True
