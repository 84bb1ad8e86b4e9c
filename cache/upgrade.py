"""Record the contents of the videos in stores of format version 1, and compare those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.reader import FeatureStore
from cache.store.metadata import CROP, segments_of
from cache.store.parts import Parts, Record, Row
from cache.store.publish import Finished, publish
from cache.store.recipe import (
    FORMAT_VERSION,
    NAMES_ONLY,
    Recipe,
    digest_of_segments,
    digest_of_sources,
)
from cache.store.sources import MISSING, Source, SourceIndex, signature_of
from cache.store.store_source import StoreSource
from manifests.printing import preview

Cuts = Sequence[tuple[str, str, float | None, float | None, Any]]
"""``(id, video, start, end, crop)`` per utterance of a manifest."""
_NOT_COPIED = ("format_version", "dataset", "digest", "recipe", "widths", "counts")
_SAMPLED = 20


def upgrade(
    store: Path,
    cuts: Cuts,
    data: Path,
    stores: Path,
    on_hash: Callable[[int, int], None] | None = None,
) -> tuple[Path, list[str]]:
    """Write a store of the present format version from one of version 1 and today's videos.

    The features are copied. The new store is marked ``asserted``: nothing proves that its features
    were extracted from the files that are there now. The old store is kept.

    Args:
        store: a store of format version 1.
        cuts: the segments of the manifest that it was extracted from.
        data: folder of the videos.
        stores: folder of the stores; the new one is written to ``<stores>/<dataset>/<name>``.
        on_hash: called with (bytes hashed, bytes to hash).

    Returns:
        The new store, and the ids of utterances with features whose video is missing; their rows
        name no content.

    Raises:
        ValueError: the store names contents already, was imported, is damaged or was extracted from
            other segments; or none of the videos exists.
    """
    old = StoreSource(store)
    attributes, recipe = old.attributes, Recipe.of_store(old.attributes)
    if recipe.version != NAMES_ONLY:
        raise ValueError(f"{store} names the contents of its videos already")
    if segments_of(attributes) is None:
        raise ValueError(f"{store} was imported: the videos that it was made from are unknown")
    if segments_of(attributes) != digest_of_segments(cuts):
        raise ValueError(
            f"{store} was extracted from other utterances, paths, times or crops than the manifest "
            "has; name the manifest that it was extracted from with --manifest"
        )
    damaged = old.problem()
    if damaged or len(old.intact(range(len(old.records)))) < len(old.records):
        raise ValueError(f"{store} is damaged; run: python -m cache verify {store}")
    sources = _identify(cuts, data, SourceIndex(stores, recipe.dataset), on_hash)
    rows = {
        record.id: Row(old, index, _with_source(record, sources[record.id], cut))
        for index, (record, cut) in enumerate(
            zip(old.records, sorted(cuts, key=lambda cut: cut[0]), strict=True)
        )
    }
    records = [row.record for row in rows.values()]
    recipe = replace(
        recipe,
        version=FORMAT_VERSION,
        utterances=digest_of_sources((r.id, r.source_sha256, *r.cut) for r in records),
    )
    about = {name: value for name, value in attributes.items() if name not in _NOT_COPIED}
    about |= {"segments": digest_of_segments(cuts), "asserted": True}
    new = stores / recipe.dataset / recipe.store_name
    finished = Finished(Parts(new), rows)
    publish(new, recipe, old.widths, about, list(rows), finished=finished)
    return new, [r.id for r in records if r.status != "failed" and not r.source_sha256]


def _with_source(record: Record, source: Source, cut: tuple[Any, ...]) -> Record:
    """Add the source to a record; a failed one names none, so that it is extracted again."""
    known = MISSING if record.status == "failed" else source
    crop = dict(zip(CROP, cut[4] or (None,) * 4, strict=True))
    return replace(
        record,
        source_sha256=known.sha256,
        source_bytes=known.bytes,
        start=cut[2],
        end=cut[3],
        **crop,
    )


@dataclass(frozen=True)
class SourceDifferences:
    """Local videos compared with those that a store was made from.

    Attributes:
        same: number of utterances whose video has the same content.
        different: ids of utterances whose video has another content.
        missing: ids of utterances whose video is missing here.
        unknown: ids of utterances whose content the store does not name, since the file was missing
            when it was made, or that the manifest lacks.
    """

    same: int
    different: list[str]
    missing: list[str]
    unknown: list[str]


def compare_sources(
    store: FeatureStore,
    cuts: Cuts,
    data: Path,
    stores: Path,
    on_hash: Callable[[int, int], None] | None = None,
) -> SourceDifferences:
    """Compare local videos with those that a store was made from; the arguments as of `upgrade`.

    Raises:
        ValueError: the store has format version 1, or none of the videos exists.
    """
    _check_names_contents(store)
    sources = _identify(cuts, data, SourceIndex(stores, store.dataset), on_hash)
    found = SourceDifferences(0, [], [], [])
    same = 0
    for i, expected in zip(store.ids, store.column("source_sha256"), strict=True):
        local = sources.get(i)
        if local is None or not expected:
            found.unknown.append(i)
        elif not local.sha256:
            found.missing.append(i)
        elif local.sha256 != expected:
            found.different.append(i)
        else:
            same += 1
    return replace(found, same=same)


def differing_sizes(store: FeatureStore, cuts: Cuts, data: Path) -> list[str]:
    """Ids of utterances whose local video has another size than the one the store was made from.

    Missing videos are not compared. If the first ones are missing, no others are looked for: the
    videos are elsewhere.
    """
    if store.recipe.version == NAMES_ONLY:
        return []
    expected = dict(zip(store.ids, store.column("source_bytes").tolist(), strict=True))
    videos = {video: (data / video) for _, video, *_ in cuts}
    if not any(signature_of(path) for path in list(videos.values())[:_SAMPLED]):
        return []
    sizes = {video: signature_of(path) for video, path in videos.items()}
    return [
        i
        for i, video, *_ in cuts
        if expected.get(i) and (found := sizes[video]) and found[0] != expected[i]
    ]


def _check_names_contents(store: FeatureStore) -> None:
    if store.recipe.version == NAMES_ONLY:
        raise ValueError(
            f"{store.path} has format version {NAMES_ONLY}: it names no contents of videos; run: "
            f"python -m cache upgrade {store.path} --data FOLDER"
        )


def _identify(
    cuts: Cuts, data: Path, index: SourceIndex, on_hash: Callable[[int, int], None] | None
) -> Mapping[str, Source]:
    """The local source of each utterance, by id."""
    paths = {i: data.resolve() / video for i, video, *_ in cuts}
    found = index.identify(paths.values(), on_file=on_hash)
    if paths and not any(source.sha256 for source in found.values()):
        raise ValueError(
            f"none of {len(found)} videos exists below {data}, for example "
            f"{preview([video for _, video, *_ in cuts], 1)}; give their folder with --data"
        )
    return {i: found[path] for i, path in paths.items()}
