"""An extraction from manifest to published store: plan, run on Dask, publish, sum up.

Whatever was finished before an interruption lies in parts beside the store; a new run takes only
what is missing.
"""

from __future__ import annotations

import getpass
import logging
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from dask.distributed import Client, LocalCluster, as_completed

from cache import FeatureCache, Parts, Recipe, Record, newest_per_id, publish
from cache.recipe import digest_of_utterances
from cache.share import pull_recipe
from cache.store import is_published
from extract.block import Job, Utterance, extract_block
from extract.decode import ffmpeg_version
from extract.encoders import load
from extract.sampling import PREPROCESS_VERSION, Sampling
from manifests import Manifest

log = logging.getLogger(__name__)

BLOCK = 16
"""Utterances per task: enough to make Dask's own cost vanish, few enough to lose when killed."""


@dataclass(frozen=True)
class Settings:
    """How to extract; only ``encoder``, ``sampling`` and ``dtype`` change what is stored."""

    encoder: str
    checkpoint: Path | None = None
    device: str = "cpu"
    sampling: Sampling = field(default_factory=Sampling)
    dtype: str = "float16"
    workers: int = 1
    scheduler: str | None = None
    timeout: float = 600.0
    shares: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What an extraction did.

    Attributes:
        store: the published store.
        complete: it was there already: nothing was decoded.
        shared: where it was pulled from, if somebody had extracted and shared it.
        resumed: utterances found in parts of an earlier run.
        statuses: utterances per status.
        failures: ``(id, reason)`` of everything that is not ``ok``.
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
    root: Path,
    settings: Settings,
    on_block: Callable[[int, int, int], None] | None = None,
) -> Summary:
    """Extract every utterance of a manifest and publish the store.

    If a share holds the store already, it is pulled instead.

    Args:
        manifest: what to extract.
        data: the folder that the manifest's video paths are relative to.
        root: where stores lie, ``<root>/<dataset>/<store>``.
        settings: encoder, sampling, machinery, and the shares to look into first.
        on_block: called with (utterances done, failed, in all) as blocks finish.

    Raises:
        ValueError: unusable settings, or not one video of the manifest is below ``data``.
    """
    utterances = plan(manifest)
    encoder = load(settings.encoder, settings.checkpoint, settings.device)
    recipe = Recipe(
        dataset=manifest.card.name,
        encoder=encoder.name,
        weights=encoder.weights_sha256,
        settings=encoder.settings,
        sampling=settings.sampling.as_dict(),
        preprocess=PREPROCESS_VERSION,
        utterances=digest_of_utterances(
            (u.id, u.video, u.start, u.end, u.crop) for u in utterances
        ),
        dtype=settings.dtype,
    )
    store = root / recipe.dataset / recipe.store_name
    if is_published(store):
        Parts(store).remove()  # of a run that was killed just after publishing
        return _summary(store, complete=True)
    shared = pull_recipe(recipe, settings.shares, root)
    if shared is not None:
        Parts(store).remove()
        return _summary(store, shared=shared)
    _refuse_wrong_folder(utterances, data)
    finished = newest_per_id(Parts(store).read())
    remaining = [u for u in utterances if u.id not in finished]
    failed = sum(part.records[i].status == "failed" for part, i in finished.values())
    resumed = done = len(finished)
    job = Job(
        data=data.resolve(),
        store=store.resolve(),
        encoder=settings.encoder,
        checkpoint=settings.checkpoint,
        device=settings.device,
        sampling=settings.sampling,
        dtype=settings.dtype,
        timeout=settings.timeout,
    )
    for records in _run(job, remaining, settings):
        done += len(records)
        failed += sum(record.status == "failed" for record in records)
        if on_block is not None:
            on_block(done, failed, len(utterances))
    publish(store, recipe, encoder.widths, _about(manifest), [u.id for u in utterances])
    return _summary(store, resumed=resumed)


def plan(manifest: Manifest) -> list[Utterance]:
    """The manifest's utterances in the order of the store's rows."""

    def number(value: Any) -> float | None:
        return None if pd.isna(value) else float(value)

    utterances = []
    for row in manifest.table.to_dict("records"):
        box = [number(row.get(f"crop_{side}")) for side in "xywh"]
        x, y, width, height = box
        crop = None
        if x is not None and y is not None and width is not None and height is not None:
            crop = (x, y, width, height)
        start, end = number(row.get("start")), number(row.get("end"))
        utterances.append(Utterance(str(row["id"]), str(row["video"]), start, end, crop))
    return sorted(utterances, key=lambda utterance: utterance.id)


def _run(job: Job, utterances: Sequence[Utterance], settings: Settings) -> Iterator[list[Record]]:
    """Blocks through Dask workers, in whatever order they finish."""
    if not utterances:
        return
    blocks = [utterances[i : i + BLOCK] for i in range(0, len(utterances), BLOCK)]
    if settings.scheduler is not None:
        cluster = None
        client = Client(settings.scheduler)
    else:
        cluster = LocalCluster(
            n_workers=min(settings.workers, len(blocks)),
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        )
        client = Client(cluster)
    try:
        futures = client.map(extract_block, [job] * len(blocks), blocks, pure=False)
        for future in as_completed(futures):
            yield future.result()
            future.release()
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _refuse_wrong_folder(utterances: Sequence[Utterance], data: Path) -> None:
    """Before any work: some videos may be missing, all of them are a wrong path."""
    if not any((data / utterance.video).exists() for utterance in utterances):
        raise ValueError(
            f"none of the {len(utterances)} videos of the manifest is below {data}, for example "
            f"{utterances[0].video}; give the folder of the release with --data (make: DATA=...)"
        )


def _about(manifest: Manifest) -> dict[str, Any]:
    """Root attributes beyond the recipe: where the store comes from and what one may do with it."""
    return {
        "manifest_digest": manifest.digest,
        "licence": manifest.card.licence,
        "creator": getpass.getuser(),
        "tools": {
            "python": platform.python_version(),
            "ffmpeg": ffmpeg_version(),
            **{name: version(name) for name in ("semanticmac", "torch", "numpy", "zarr")},
        },
    }


def _summary(
    store: Path, *, complete: bool = False, shared: str | None = None, resumed: int = 0
) -> Summary:
    cache = FeatureCache.open(store)
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
