"""Run an extraction from manifest to published store: plan, distribute, publish, summarise.

Finished blocks of an interrupted run are kept as parts next to the store; a new run extracts only
the missing utterances.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from dask.system import CPU_COUNT

from cache import FeatureStore, Parts, Record, best_per_id, publish
from cache.at_hand import find_by_name
from cache.store.publish import Finished, is_published, republish
from cache.store.recipe import check_portable, user_name
from cache.store.sources import signature_of
from extract.cluster import connect, threads, worker_count
from extract.ffmpeg import ffmpeg_version
from extract.job import Job, Utterance
from extract.plan import ExtractionEstimate, estimate_extraction
from extract.progress import Tally, reason_lines
from extract.request import Request, Sourced, Work, failed_ids
from extract.scheduler import run_blocks
from extract.settings import Settings
from manifests import Manifest
from manifests.printing import get_logger, preview

log = get_logger(__name__)

MAX_REASONS = 5
"""Reasons listed in one error message."""


@dataclass(frozen=True)
class Summary:
    """The result of an extraction.

    Attributes:
        store: the published store.
        complete: whether the store existed already, so that nothing was decoded.
        shared: URL that the store was pulled from; None if it was extracted here.
        names_only: whether the contents of the videos were not compared, only their names: a store
            of format version 1.
        resumed: number of utterances from parts of an earlier run.
        carried: number of utterances whose features were copied from another store.
        borrowed: how many of them are from a share.
        gone: ids of those of them whose video is missing.
        extracted: number of utterances that were decoded, including the resumed ones.
        replaced: how many of them had another video before.
        removed: number of utterances of the dataset's last store that the manifest lacks.
        saved_s: estimated seconds that decoding the carried utterances would have taken; None if
            nothing was decoded to estimate it from.
        statuses: utterances per status.
        failures: ``(id, reason)`` of every utterance whose status is not ``ok``.
        frames: rows per modality.
        seconds: seconds of video in the store.
    """

    store: Path
    complete: bool = False
    shared: str | None = None
    names_only: bool = False
    resumed: int = 0
    carried: int = 0
    borrowed: int = 0
    gone: tuple[str, ...] = ()
    extracted: int = 0
    replaced: int = 0
    removed: int = 0
    saved_s: float | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def extract(
    manifest: Manifest,
    data: Path,
    stores: Path,
    settings: Settings,
    on_block: Callable[[Tally], None] | None = None,
    on_message: Callable[[str], None] = log.info,
    on_hash: Callable[[int, int], None] | None = None,
) -> Summary:
    """Extract every utterance of a manifest and publish the store.

    Features that a local store or a share has of the same content are copied instead of extracted.
    With ``settings.retry_failed`` the failed utterances are extracted again.

    Args:
        manifest: what to extract.
        data: the folder that the manifest's video paths are relative to.
        stores: folder of the stores, ``<stores>/<dataset>/<store>``.
        settings: encoder, sampling, cluster, and the shares to search first.
        on_block: called with the counts when a block finishes, and about once a second.
        on_message: called with messages for the user, such as the dashboard's address.
        on_hash: called with (bytes of the videos hashed, bytes to hash).

    Raises:
        ValueError: invalid settings, no video of the manifest exists below ``data``, a video is
            being written to, or no utterance could be extracted; the parts are kept, and the next
            run tries again.
    """
    encoder = settings.load_encoder()
    request = Request.of(manifest, data, stores, encoder, settings)
    named = _named(request)
    if named is not None:
        return _summary(named)
    check_portable(request.recipe.dataset, request.recipe.store_name)
    attributes = _attributes(request, manifest)  # before anything is read: it needs ffmpeg
    sourced = request.identified(settings.rehash, on_hash)
    store = sourced.store
    published = is_published(store)
    if published:
        Parts(request.place).remove()  # left by a run that was killed just after publishing
        if not (settings.retry_failed and failed_ids(store)):
            return _summary(Summary(store, complete=True))
    work = Work.of(sourced)
    if work.remaining:
        _check_data_folder(sourced.utterances, data)
    tally = Tally(
        total=len(work.wanted),
        total_s=sum(work.lengths[u.id] for u in work.remaining),
        done=len(work.wanted) - len(work.remaining),
        failed=work.failed,
    )
    job = settings.job(work.place, data, None if published else store)
    took = _extract_blocks(job, work, encoder.widths, tally, store, settings, on_block, on_message)
    if sourced.at_hand.asserted:
        attributes["asserted"] = True
    if published:
        republish(store, sourced.recipe, encoder.widths, attributes, Parts(work.place))
    else:
        _publish(sourced, work, encoder.widths, attributes)
    return _summary(_made(sourced, work, took / tally.seconds if tally.seconds else None))


def _named(request: Request) -> Summary | None:
    """Find a store by the names of the videos; None if their contents must be compared."""
    settings = request.settings
    named = find_by_name(
        request.recipe, request.segments, request.sizes, request.stores, settings.shares
    )
    if named is None:
        return None
    if settings.retry_failed and failed_ids(named.store):
        if not named.names_only:
            return None
        raise ValueError(
            f"{named.store} has format version 1, whose failed utterances cannot be extracted "
            f"again; run first: python -m cache upgrade {named.store} --data {request.data}"
        )
    complete = named.shared is None
    return Summary(named.store, complete, named.shared, named.names_only)


def _publish(
    sourced: Sourced, work: Work, widths: Mapping[str, int], attributes: Mapping[str, Any]
) -> None:
    """Publish the store from the carried rows and the parts."""
    rows = sourced.at_hand.rows
    if not is_published(sourced.store) and not rows:
        _check_any_extracted(work.place)
    finished = Finished(Parts(work.place), rows, sourced.sources)
    ids = [u.id for u in sourced.utterances]
    publish(sourced.store, sourced.recipe, widths, attributes, ids, finished=finished)


def _made(sourced: Sourced, work: Work, pace: float | None) -> Summary:
    """The summary of a run; ``pace`` is its seconds per second of video, None if unknown."""
    hand, now = sourced.at_hand, sourced.sources
    video_s = sum(row.record.duration for row in hand.rows.values())
    return Summary(
        sourced.store,
        resumed=len(work.wanted) - len(work.remaining),
        carried=len(hand.rows),
        borrowed=len(hand.borrowed),
        gone=tuple(sorted(hand.gone)),
        extracted=len(work.wanted),
        replaced=sum(hand.before.get(u.id, now[u.id]) != now[u.id] for u in work.wanted),
        removed=len(hand.before.keys() - now.keys()),
        saved_s=None if pace is None else video_s * pace,
    )


def _extract_blocks(
    job: Job,
    work: Work,
    widths: Mapping[str, int],
    tally: Tally,
    store: Path,
    settings: Settings,
    on_block: Callable[[Tally], None] | None,
    on_message: Callable[[str], None],
) -> float:
    """Extract the blocks of ``work``; stop if another run publishes the store meanwhile.

    Returns:
        The seconds that the blocks took, without the start of the workers.
    """
    if not work.blocks:
        return 0.0
    published = is_published(store)
    write_failed = partial(_write_failed, job, widths)
    with (
        connect(settings.cluster, job.encoder.device, len(work.blocks), on_message) as client,
        closing(run_blocks(client, job, work.blocks, write_failed, tally.reached)) as finished,
    ):
        began = time.monotonic()
        for records in finished:
            if not published and is_published(store):
                log.info("another run has published %s; using it", store)
                break  # queued blocks are cancelled
            tally.add(records, sum(work.lengths[record.id] for record in records))
            if on_block is not None:
                on_block(tally)
        return time.monotonic() - began


def dry_run(
    manifest: Manifest, data: Path, stores: Path, settings: Settings
) -> ExtractionEstimate | None:
    """Estimate what :func:`extract` would do, without writing; None if there is nothing to do.

    The videos are not hashed: those of unknown content are compared by size.

    Raises:
        ValueError: as :func:`extract`.
    """
    encoder = settings.load_encoder()
    settings = replace(settings, shares=())
    request = Request.of(manifest, data, stores, encoder, settings)
    if find_by_name(request.recipe, request.segments, request.sizes, stores, ()) is not None:
        return None
    sourced = request.guessed()
    if is_published(sourced.store) and not (settings.retry_failed and failed_ids(sourced.store)):
        return None
    work = Work.of(sourced)
    if not work.remaining:
        return None
    _check_data_folder(sourced.utterances, data)
    job = settings.job(work.place, data)
    most = worker_count(settings.cluster, job.encoder.device)
    count = max(1, min(most, len(work.blocks)))
    remote = settings.cluster.is_remote  # of unknown hardware: assume one like this per worker
    if remote:
        job = replace(job, encoder=replace(job.encoder, device="cpu"))
    return estimate_extraction(
        job,
        encoder,
        [replace(u, source=None) for u in work.remaining],
        work.lengths,
        in_blocks=len(work.blocks),
        workers=count,
        threads=threads(1 if remote else count),
        cores=CPU_COUNT * count if remote else CPU_COUNT,
    )


def _write_failed(job: Job, widths: Mapping[str, int], utterance: Utterance, reason: str) -> Record:
    """Write a failed row for an utterance that kills every worker, and return its record."""
    record = utterance.record("failed", reason)
    nothing = {modality: np.empty((0, width), np.float32) for modality, width in widths.items()}
    Parts(job.place).write([record], nothing, job.dtype)
    return record


def _check_data_folder(utterances: Sequence[Utterance], data: Path) -> None:
    """Raise a ValueError if no video exists: some may be missing, all of them is a wrong path."""
    if not any(signature_of(data / utterance.video) for utterance in utterances):
        raise ValueError(
            f"none of the {len(utterances)} videos of the manifest exists below {data}, for "
            f"example {utterances[0].video}; give the folder of the release with --data (make: "
            "DATA=...)"
        )


def _check_any_extracted(place: Path) -> None:
    """Raise a ValueError if every utterance failed: some may, all of them have a common cause."""
    found = best_per_id(Parts(place).read())
    records = [row.record for _, row in sorted(found.items())]
    if records and all(record.status == "failed" for record in records):
        reasons = reason_lines((record.id, record.error) for record in records)
        raise ValueError(
            "\n".join(
                [
                    f"none of {len(records)} utterances could be extracted; no store was published",
                    preview(reasons, MAX_REASONS, "\n"),
                    "after fixing the cause, run the same command again: it tries all of them",
                ]
            )
        )


def _attributes(request: Request, manifest: Manifest) -> dict[str, Any]:
    """Root attributes besides the recipe: the store's origin and its licence."""
    rows_per_frame = request.settings.sampling.rows_per_frame
    several = {m: rows for m, rows in rows_per_frame.items() if rows > 1}
    return {
        **({"rows_per_frame": several} if several else {}),
        "segments": request.segments,
        "manifest_digest": manifest.digest,
        "licence": manifest.card.licence,
        "creator": user_name(),
        "tools": {
            "python": platform.python_version(),
            "ffmpeg": ffmpeg_version(),
            **{name: version(name) for name in ("semanticmac", "torch", "numpy", "zarr")},
        },
    }


def _summary(made: Summary) -> Summary:
    """Complete a summary with the store's content."""
    cache = FeatureStore.open(made.store)
    reasons = zip(cache.ids, cache.column("error"), strict=True)
    return replace(
        made,
        statuses=dict(Counter(cache.status.values())),
        failures=[(i, str(reason)) for i, reason in reasons if cache.status[i] != "ok"],
        frames={m: cache.counts[f"{m}_frames"] for m in cache.widths},
        seconds=float(cache.column("duration").sum()),
    )
