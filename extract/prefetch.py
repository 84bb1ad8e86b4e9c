"""A block's videos, decoded a little ahead of whoever encodes them."""

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

from extract.decode import DecodedClip, DecodeError, StalledError, decode_spans
from extract.job import Job, Utterance
from extract.sampling import Sampling

DEFAULT_DECODERS = 2
"""ffmpegs of a worker at once by default: with fewer, the encoder would wait while one starts."""
GAP_S = 30.0
"""Two utterances of a video that lie further apart are not worth decoding what is between them."""
PASS_IMAGES = 256
"""Images of one pass (38 MB), unless a single utterance has more."""
PASS_UTTERANCES = 16
"""Of one pass: each has a pipe of its own, and some systems give a process 256 descriptors."""

PER_FILE_ERRNOS = frozenset(
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


def plan_decode_passes(sampling: Sampling, block: Sequence[Utterance]) -> list[list[Utterance]]:
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
    """The block's clips; from now on they are decoded a little ahead of whoever asks."""
    stalled: dict[str, DecodeError] = {}

    def attempt(together: Sequence[Utterance]) -> Sequence[DecodedClip | DecodeError]:
        video = together[0].video
        if video in stalled:  # once is long enough
            return [stalled[video]] * len(together)
        path, spans = job.data / video, [(u.start or 0.0, u.end) for u in together]
        outcomes: Sequence[DecodedClip | DecodeError]
        try:
            outcomes = decode_spans(path, job.sampling, spans, together[0].crop, job.timeout)
        except OSError as error:
            if error.errno not in PER_FILE_ERRNOS or str(error.filename) != str(path):
                raise
            outcomes = [DecodeError(f"cannot be read: {error.strerror}")] * len(together)
        if any(isinstance(o, DecodeError) for o in outcomes) and _is_unmounted(job.data):
            raise FileNotFoundError(errno.ENOENT, "the folder of the videos is gone", str(job.data))
        stalled.update((video, o) for o in outcomes if isinstance(o, StalledError))
        decoded = zip(together, outcomes, strict=True)
        on_stage("decoded", [u.id for u, outcome in decoded if isinstance(outcome, DecodedClip)])
        return outcomes

    pool = decoder_pool(decoders)
    todo = iter(plan_decode_passes(job.sampling, block))
    ahead = deque((together, pool.submit(attempt, together)) for together in islice(todo, decoders))

    def clips() -> Iterator[tuple[Utterance, DecodedClip | DecodeError]]:
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
def decoder_pool(decoders: int) -> ThreadPoolExecutor:
    """What all blocks of a process decode with, in the order in which they ask."""
    return ThreadPoolExecutor(decoders)


def _is_unmounted(folder: Path) -> bool:
    """Whether a folder is no longer there, or is the empty place where a share was mounted."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except PermissionError:
        return False  # its files may be read all the same
    except OSError:
        return True
