"""`Request`: what is to be extracted, by the videos' names, and what of it exists already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import inf
from pathlib import Path

from cache import FeatureStore, Parts, Recipe
from cache.at_hand import AtHand, find_at_hand, guess_sources
from cache.store.parts import Row, best_per_id
from cache.store.publish import is_published
from cache.store.recipe import digest_of, digest_of_segments, digest_of_sources
from cache.store.sources import MISSING, Source, SourceIndex, signature_of
from cache.store.store_source import Wanted
from cache.store.temp_paths import retry_of
from extract.cluster import worker_count
from extract.encoders import Encoder, EncoderIdentity
from extract.job import Utterance
from extract.plan import durations, plan_blocks, utterances_of
from extract.settings import Settings
from manifests import Manifest


@dataclass(frozen=True)
class Request:
    """The features that a run is asked for.

    Attributes:
        recipe: the encoders; the digest of the sources is empty.
        utterances: the manifest's utterances, in the order of the store's rows.
        segments: digest of their ids, paths and cuts.
        data: folder of the videos.
        stores: folder of the stores.
        settings: the user's choices.
    """

    recipe: Recipe
    utterances: list[Utterance]
    segments: str
    data: Path
    stores: Path
    settings: Settings

    @classmethod
    def of(
        cls, manifest: Manifest, data: Path, stores: Path, encoder: Encoder, settings: Settings
    ) -> Request:
        """The request for all utterances of a manifest.

        Raises:
            ValueError: it has no utterance, one id twice, or a number that is infinite.
        """
        _check_cuts(manifest)
        identity = EncoderIdentity.of(encoder)
        recipe = Recipe.with_one_encoder(
            manifest.card.name,
            encoder.name,
            identity.weights,
            identity.settings,
            settings.sampling.as_dict(),
            identity.preprocess,
            dtype=settings.dtype,
        )
        segments = digest_of_segments(manifest.cuts)
        return cls(recipe, utterances_of(manifest), segments, data, stores, settings)

    @property
    def folder(self) -> Path:
        """The folder of the dataset's stores."""
        return self.stores / self.recipe.dataset

    @property
    def place(self) -> Path:
        """Parts are next to this path: found again by names, if a video was replaced meanwhile."""
        digest = digest_of([self.recipe.features_digest, self.segments])
        return self.folder / self.recipe.name_with(digest)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of each utterance's video, by id; without those that are missing."""
        videos = {u.video: signature_of(self.data / u.video) for u in self.utterances}
        return {u.id: found[0] for u in self.utterances if (found := videos[u.video])}

    def identified(self, rehash: bool, on_hash: Callable[[int, int], None] | None) -> Sourced:
        """Hash the videos that are not remembered; arguments and errors as of `SourceIndex`."""
        index = SourceIndex(self.stores, self.recipe.dataset)
        paths = {u.id: self.data.resolve() / u.video for u in self.utterances}
        found = index.identify(paths.values(), rehash, on_hash)
        return Sourced.of(self, {i: found[path] for i, path in paths.items()})

    def guessed(self) -> Sourced:
        """Guess the videos' contents by their sizes, without hashing."""
        index = SourceIndex(self.stores, self.recipe.dataset)
        by_size = guess_sources(self.recipe, self.stores)
        found: dict[str, Source] = {}
        for u in self.utterances:
            path = self.data.resolve() / u.video
            signature = signature_of(path)
            known = index.remembered(path, signature)
            size = signature[0] if signature else 0
            guess = Source(size, by_size.get((u.id, u.cut, size), f"not hashed: {u.video}"))
            found[u.id] = guess if known is None else known
        return Sourced.of(self, found)


def _check_cuts(manifest: Manifest) -> None:
    cuts, where = manifest.cuts, manifest.path or manifest.card.name
    if not cuts:
        raise ValueError(f"{where} has no utterance: make the dataset again")
    for (i, *_), (following, *_) in pairwise(cuts):
        if i == following:
            raise ValueError(f"{where}: duplicate id {i!r}: ids must be unique, rename or drop one")
    for i, _, start, end, crop in cuts:
        if inf in map(abs, (start or 0.0, end or 0.0, *(crop or ()))):
            raise ValueError(f"{where}: utterance {i!r} has an infinite time or crop: correct it")


@dataclass(frozen=True)
class Sourced:
    """A request whose videos' contents are known.

    Attributes:
        request: the request.
        utterances: its utterances, each with its source.
        at_hand: the features that exist already.
        store: path of the store that has exactly these sources.
    """

    request: Request
    utterances: list[Utterance]
    at_hand: AtHand
    store: Path

    @classmethod
    def of(cls, request: Request, sources: dict[str, Source]) -> Sourced:
        """Find out what of a request exists already; ``sources`` are by utterance id."""
        utterances = [replace(u, source=sources[u.id]) for u in request.utterances]
        store = request.folder / _with_sources(request.recipe, utterances, {}).store_name
        settings = request.settings
        wanted = [Wanted(u.id, u.cut, sources[u.id]) for u in utterances]

        def find(wanted: list[Wanted], shares: Sequence[str]) -> AtHand:
            borrowed = Parts(request.place).folder / "borrowed"
            failed = not settings.retry_failed
            return find_at_hand(request.recipe, wanted, request.stores, shares, borrowed, failed)

        if is_published(store):  # another store may have the features of videos that are gone
            gone = [w for w in wanted if not w.source.sha256]
            if not (gone and find(gone, ()).rows):
                return cls(request, utterances, AtHand({}, {}), store)
        hand = find(wanted, settings.shares)
        store = request.folder / _with_sources(request.recipe, utterances, hand.rows).store_name
        return cls(request, utterances, hand, store)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the store."""
        return _with_sources(self.request.recipe, self.utterances, self.at_hand.rows)

    @property
    def sources(self) -> dict[str, str]:
        """SHA-256 of each utterance's file, by id; that of the carried row if it is missing."""
        return _hashes(self.utterances, self.at_hand.rows)


def _hashes(utterances: list[Utterance], rows: dict[str, Row]) -> dict[str, str]:
    own = {u.id: (u.source or MISSING).sha256 for u in utterances}
    return own | {i: row.record.source_sha256 for i, row in rows.items()}


def _with_sources(recipe: Recipe, utterances: list[Utterance], rows: dict[str, Row]) -> Recipe:
    hashes = _hashes(utterances, rows)
    cuts = ((u.id, hashes[u.id], *u.cut) for u in utterances)
    return replace(recipe, utterances=digest_of_sources(cuts))


@dataclass(frozen=True)
class Work:
    """The remaining work for a store.

    Attributes:
        place: the parts are next to this path.
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
    blocks: list[list[Utterance]] = field(repr=False)

    @classmethod
    def of(cls, sourced: Sourced) -> Work:
        """What is left of a request; if its store is published, its failed utterances."""
        request, settings = sourced.request, sourced.request.settings
        place, wanted = request.place, sourced.utterances
        if is_published(sourced.store):
            place = retry_of(sourced.store)
            again = failed_ids(sourced.store)
            wanted = [u for u in wanted if u.id in again]
        wanted = [u for u in wanted if u.id not in sourced.at_hand.rows]
        found = best_per_id(Parts(place).read(), _hashes(wanted, {}))
        failed = {i for i, row in found.items() if row.record.status == "failed"}
        # If every utterance failed, their common cause may be fixed by now: try all again.
        again_failed = settings.retry_failed or failed == found.keys()
        finished = found.keys() - failed if again_failed else found.keys()
        remaining = [u for u in wanted if u.id not in finished]
        lengths = durations(wanted, request.data)
        workers = worker_count(settings.cluster, settings.encoder.device)
        blocks = plan_blocks(remaining, lengths, workers)
        return cls(place, wanted, remaining, len(failed & finished), lengths, blocks)


def failed_ids(store: Path) -> set[str]:
    """Ids of the utterances of a published store that failed."""
    return {i for i, status in FeatureStore.open(store).status.items() if status == "failed"}
