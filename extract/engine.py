"""Run an extraction from manifest to published store: plan, distribute, publish, summarise.

Finished blocks of an interrupted run are kept as parts next to the store; a new run extracts only
the missing utterances.
"""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from dask.system import CPU_COUNT

from cache import FeatureStore, Parts, Recipe, Record, best_per_id, publish
from cache.share.pull import pull_recipe
from cache.store.publish import is_published, republish
from cache.store.recipe import digest_of_utterances, user_name
from cache.store.temp_paths import retry_of
from extract.cluster import connect, threads, worker_count
from extract.encoders import Encoder, EncoderIdentity
from extract.ffmpeg import ffmpeg_version
from extract.job import Job, Utterance
from extract.plan import (
    ExtractionEstimate,
    durations,
    estimate_extraction,
    plan_blocks,
    utterances_of,
)
from extract.progress import Tally, reason_lines
from extract.sampling import Sampling
from extract.scheduler import run_blocks
from extract.settings import Settings
from manifests import Manifest
from manifests.printing import preview

log = logging.getLogger(__name__)

MAX_REASONS = 5
"""Reasons listed in one error message."""


@dataclass(frozen=True)
class Summary:
    """The result of an extraction.

    Attributes:
        store: the published store.
        complete: whether the store existed already, so that nothing was decoded.
        shared: URL that the store was pulled from; None if it was extracted here.
        resumed: number of utterances from parts of an earlier run.
        statuses: utterances per status.
        failures: ``(id, reason)`` of every utterance whose status is not ``ok``.
        frames: rows per modality.
        seconds: seconds of video in the store.
    """

    store: Path
    complete: bool
    shared: str | None
    resumed: int
    statuses: dict[str, int]
    failures: list[tuple[str, str]]
    frames: dict[str, int]
    seconds: float


def extract(
    manifest: Manifest,
    data: Path,
    stores: Path,
    settings: Settings,
    on_block: Callable[[Tally], None] | None = None,
    on_message: Callable[[str], None] = log.info,
) -> Summary:
    """Extract every utterance of a manifest and publish the store.

    If a share holds the store already, it is pulled instead. With ``settings.retry_failed`` the
    failed utterances of a published store are extracted again, and only those.

    Args:
        manifest: what to extract.
        data: the folder that the manifest's video paths are relative to.
        stores: folder of the stores, ``<stores>/<dataset>/<store>``.
        settings: encoder, sampling, cluster, and the shares to search first.
        on_block: called with the counts when a block finishes, and about once a second.
        on_message: called with messages for the user, such as the dashboard's address.

    Raises:
        ValueError: invalid settings, no video of the manifest exists below ``data``, or no
            utterance could be extracted; the parts are kept, and the next run tries again.
    """
    utterances = utterances_of(manifest)
    encoder = settings.load_encoder()
    recipe = _recipe(manifest, utterances, encoder, settings)
    store = stores / recipe.dataset / recipe.store_name
    shared = None if is_published(store) else pull_recipe(recipe, settings.shares, stores)
    published = is_published(store)
    if published:
        Parts(store).remove()  # left by a run that was killed just after publishing
        failed = _failed(store)
        if not (failed and settings.retry_failed):
            return _summary(store, complete=shared is None, shared=shared)
    _check_data_folder(utterances, data)
    attributes = _attributes(manifest, settings.sampling)
    work = _Work.of(store, utterances, data, settings)
    resumed = len(work.wanted) - len(work.remaining)
    tally = Tally(
        total=len(work.wanted),
        total_s=sum(work.lengths[u.id] for u in work.remaining),
        done=resumed,
        failed=work.failed,
    )
    job = settings.job(work.place, data)
    if work.blocks:
        write_failed = partial(_write_failed, job, encoder.widths)
        with (
            connect(settings.cluster, job.encoder.device, len(work.blocks), on_message) as client,
            closing(run_blocks(client, job, work.blocks, write_failed, tally.reached)) as finished,
        ):
            for records in finished:
                if not published and is_published(store):
                    log.info("another run has published %s; using it", store)
                    break  # queued blocks are cancelled
                tally.add(records, sum(work.lengths[record.id] for record in records))
                if on_block is not None:
                    on_block(tally)
    if published:
        republish(store, recipe, encoder.widths, attributes, Parts(work.place))
    else:
        if not is_published(store):
            _check_any_extracted(work.place)
        publish(store, recipe, encoder.widths, attributes, [u.id for u in utterances])
    return _summary(store, resumed=resumed)


def dry_run(
    manifest: Manifest, data: Path, stores: Path, settings: Settings
) -> ExtractionEstimate | None:
    """Estimate what :func:`extract` would do, without writing; None if there is nothing to do.

    Raises:
        ValueError: as :func:`extract`.
    """
    utterances = utterances_of(manifest)
    encoder = settings.load_encoder()
    recipe = _recipe(manifest, utterances, encoder, settings)
    store = stores / recipe.dataset / recipe.store_name
    if is_published(store) and not (settings.retry_failed and _failed(store)):
        return None
    _check_data_folder(utterances, data)
    work = _Work.of(store, utterances, data, settings)
    if not work.remaining:
        return None
    job = settings.job(work.place, data)
    most = worker_count(settings.cluster, job.encoder.device)
    count = max(1, min(most, len(work.blocks)))
    remote = settings.cluster.is_remote  # of unknown hardware: assume one like this per worker
    if remote:
        job = replace(job, encoder=replace(job.encoder, device="cpu"))
    return estimate_extraction(
        job,
        encoder,
        work.remaining,
        work.lengths,
        in_blocks=len(work.blocks),
        workers=count,
        threads=threads(1 if remote else count),
        cores=CPU_COUNT * count if remote else CPU_COUNT,
    )


@dataclass(frozen=True)
class _Work:
    """The remaining work for a store.

    Attributes:
        place: parts are next to this path: the store, or ``.retry`` if the store is published.
        wanted: utterances that this run is to extract.
        remaining: those of them that are in no part yet.
        failed: number of failed utterances among the others.
        lengths: estimated seconds of each, by id.
        blocks: of ``remaining``.
    """

    place: Path
    wanted: list[Utterance]
    remaining: list[Utterance]
    failed: int
    lengths: dict[str, float]
    blocks: list[list[Utterance]]

    @classmethod
    def of(cls, store: Path, utterances: list[Utterance], data: Path, settings: Settings) -> _Work:
        place, wanted = store, utterances
        if is_published(store):
            place = retry_of(store)
            again = _failed(store)
            wanted = [u for u in utterances if u.id in again]
        found = best_per_id(Parts(place).read())
        failed = {i for i, (part, row) in found.items() if part.records[row].status == "failed"}
        # If every utterance failed, their common cause may be fixed by now: try all again.
        again_failed = settings.retry_failed or failed == found.keys()
        finished = found.keys() - failed if again_failed else found.keys()
        remaining = [u for u in wanted if u.id not in finished]
        lengths = durations(wanted, data)
        workers = worker_count(settings.cluster, settings.encoder.device)
        return cls(
            place,
            wanted,
            remaining,
            len(failed & finished),
            lengths,
            plan_blocks(remaining, lengths, workers),
        )


def _recipe(
    manifest: Manifest, utterances: Sequence[Utterance], encoder: Encoder, settings: Settings
) -> Recipe:
    identity = EncoderIdentity.of(encoder)
    return Recipe(
        dataset=manifest.card.name,
        encoder=encoder.name,
        weights=identity.weights,
        settings=identity.settings,
        sampling=settings.sampling.as_dict(),
        preprocess=identity.preprocess,
        utterances=digest_of_utterances(
            (u.id, u.video, u.start, u.end, u.crop) for u in utterances
        ),
        dtype=settings.dtype,
    )


def _failed(store: Path) -> set[str]:
    """Ids of the utterances of a published store that failed."""
    return {i for i, status in FeatureStore.open(store).status.items() if status == "failed"}


def _write_failed(job: Job, widths: Mapping[str, int], utterance: Utterance, reason: str) -> Record:
    """Write a failed row for an utterance that kills every worker, and return its record."""
    record = Record(utterance.id, "failed", reason)
    nothing = {modality: np.empty((0, width), np.float32) for modality, width in widths.items()}
    Parts(job.store).write([record], nothing, job.dtype)
    return record


def _check_data_folder(utterances: Sequence[Utterance], data: Path) -> None:
    """Raise a ValueError if no video exists: some may be missing, all of them is a wrong path."""
    if not any((data / utterance.video).exists() for utterance in utterances):
        raise ValueError(
            f"none of the {len(utterances)} videos of the manifest exists below {data}, for "
            f"example {utterances[0].video}; give the folder of the release with --data (make: "
            "DATA=...)"
        )


def _check_any_extracted(place: Path) -> None:
    """Raise a ValueError if every utterance failed: some may, all of them have a common cause."""
    found = best_per_id(Parts(place).read())
    records = [part.records[row] for _, (part, row) in sorted(found.items(), key=itemgetter(0))]
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


def _attributes(manifest: Manifest, sampling: Sampling) -> dict[str, Any]:
    """Root attributes besides the recipe: the store's origin and its licence."""
    several = {m: rows for m, rows in sampling.rows_per_frame.items() if rows > 1}
    return {
        **({"rows_per_frame": several} if several else {}),
        "manifest_digest": manifest.digest,
        "licence": manifest.card.licence,
        "creator": user_name(),
        "tools": {
            "python": platform.python_version(),
            "ffmpeg": ffmpeg_version(),
            **{name: version(name) for name in ("semanticmac", "torch", "numpy", "zarr")},
        },
    }


def _summary(
    store: Path, *, complete: bool = False, shared: str | None = None, resumed: int = 0
) -> Summary:
    cache = FeatureStore.open(store)
    reasons = zip(cache.ids, cache.column("error"), strict=True)
    return Summary(
        store=store,
        complete=complete,
        shared=shared,
        resumed=resumed,
        statuses=dict(Counter(cache.status.values())),
        failures=[(i, str(reason)) for i, reason in reasons if cache.status[i] != "ok"],
        frames={m: cache.counts[f"{m}_frames"] for m in cache.widths},
        seconds=float(cache.column("duration").sum()),
    )
