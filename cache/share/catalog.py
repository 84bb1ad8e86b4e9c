"""Read and write the catalogue of a share.

The catalogue is one small file per store, ``catalog/<dataset>/<name>.json``, written by the push of
the store: two writers never write the same file, so no entry is lost and no lock is needed.

``catalog.json`` is an index, generated from these files: for people, for web servers, which cannot
list folders, and for object stores, where it saves a request per entry. It contains the tag that
the object store gave to each entry; an entry with another tag is read itself. After writing it, a
push lists the entries again and starts over if they changed: so the last writer has written all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from cache.share.location import Location, ShareError, UnreadableError
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.metadata import is_count, is_sha256, parse_attributes, parse_json, segments_of
from cache.store.recipe import NAMES_ONLY, Recipe, check_place, user_name
from manifests.printing import get_logger

log = get_logger(__name__)

CATALOG = "catalog.json"
ENTRIES = "catalog"
_LARGEST_ENTRY = 1 << 20  # bytes
_READERS = 8


@dataclass(frozen=True)
class Entry:
    """One store of a share.

    Attributes:
        dataset: name of the dataset.
        name: the store's folder, ``<encoder>-<sampling>-<digest12>.zarr``.
        encoder: the frozen encoder.
        sampling: settings of the frame and window sampling.
        digest: of the recipe, 64 hex digits.
        content: SHA-256 of ``checksums.json``, 64 hex digits.
        bytes: size of all files.
        files: number of files without ``checksums.json``.
        utterances: number of utterances in the store.
        failures: number of utterances without features.
        who: user name of the person who pushed it (in a share without catalogue: extracted it).
        when: time of the push, ISO 8601 in UTC; empty if unknown.
        licence: the dataset's licence note.
        features: digest of the encoders; empty if unknown.
        segments: digest of the segments by name; empty if unknown.
    """

    dataset: str
    name: str
    encoder: str
    sampling: dict[str, Any]
    digest: str
    content: str
    bytes: int
    files: int
    utterances: int
    failures: int
    who: str
    when: str
    licence: str
    features: str = ""
    segments: str = ""

    @classmethod
    def of(cls, name: str, attributes: Mapping[str, Any], checksums: Checksums) -> Entry:
        """Make the entry of a store from its root attributes; ``when`` is empty."""
        recipe, counts = Recipe.of_store(attributes), attributes["counts"]
        return cls(
            dataset=recipe.dataset,
            name=name,
            encoder=recipe.encoder,
            sampling=recipe.sampling,
            digest=attributes["digest"],
            content=checksums.content,
            bytes=checksums.size,
            files=len(checksums.files),
            utterances=counts["utterances"],
            failures=counts["failed"],
            who=str(attributes.get("creator", "")),
            when="",
            licence=str(attributes.get("licence", "")),
            features=recipe.features_digest if recipe.version != NAMES_ONLY else "",
            segments=segments_of(attributes) or "",
        )

    @classmethod
    def from_json(cls, plain: Any) -> Entry:
        """Validate an entry; unknown keys (of later releases) are ignored.

        Raises:
            ValueError: a key is missing or has another type, a name cannot be a folder's, or the
                name does not end with the digest's first digits.
        """
        kinds = {"str": str, "int": int, "dict[str, Any]": dict}
        values: dict[str, Any] = {}
        for field in fields(cls):
            try:
                value = plain[field.name]
            except (KeyError, TypeError) as error:
                if isinstance(plain, dict) and field.default is not MISSING:
                    continue
                raise ValueError(f"not a catalogue entry: {error!r}") from error
            kind = kinds[str(field.type)]
            if not isinstance(value, kind) or (kind is int and not is_count(value)):
                raise ValueError(f"{field.name} is {value!r:.200}")
            if isinstance(value, str):
                value.encode()  # raises ValueError for a lone surrogate, which cannot be printed
            values[field.name] = value
        for name in ("digest", "content"):
            if not is_sha256(values[name]):
                raise ValueError(f"{name} is {values[name]!r:.200}")
        check_place(values["dataset"], values["name"])
        if not values["name"].endswith(_ending(values["digest"])):
            raise ValueError(f"{values['name']} is not the name of a store {values['digest']}")
        return cls(**values)

    @property
    def path(self) -> str:
        """Path of the store, relative to the share."""
        return f"{self.dataset}/{self.name}"


@dataclass(frozen=True)
class _Entries:
    """The entries of a share as they were listed at one moment.

    Attributes:
        tags: path below `ENTRIES` -> tag of its content, see :meth:`Location.tags`.
        plain: store's path -> the entry as it is written, with keys of later releases.
        parsed: store's path -> the entry.
    """

    tags: dict[str, str]
    plain: dict[str, Any]
    parsed: dict[str, Entry]


def add(share: Location, entry: Entry) -> None:
    """Add a pushed store to the share's catalogue, unless it has the entry already.

    ``who`` and ``when`` are set to this user and the present time. Stores that were copied to the
    share by hand get an entry too, else the first push would hide them.

    Raises:
        ShareError: the share is unreachable or not writable.
    """
    known = _read_entries(share)
    mine = known.parsed.get(entry.path)
    for found in _scan(share, {entry.path, *known.parsed}):
        try:
            _write_entry(share, asdict(found))
        except ShareError as error:  # for instance a folder of another user
            log.warning("skipping a store that was copied by hand: %s", error)
    if mine is None or mine.content != entry.content or not mine.when:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _write_entry(share, {**asdict(entry), "who": user_name(), "when": now})
    known = _read_entries(share)
    while True:
        stores = [plain for _, plain in sorted(known.plain.items())]
        index = {"version": 1, "stores": stores, "tags": known.tags}
        share.write(CATALOG, _json(index), temporary=ENTRIES)
        present = _read_entries(share)
        if present == known:
            return
        known = present


def entries(share: Location) -> list[Entry]:
    """List the stores of a share, sorted by path; a share without catalogue is searched.

    A folder is always searched: stores that were copied by hand are listed at once. Elsewhere they
    are listed after the next push.

    Raises:
        ShareError: the share is unreachable.
    """
    share.check()
    if not share.listable:
        return _sorted(_read_catalog(share))
    known = _read_entries(share).parsed
    more = _scan(share, known) if share.folder is not None or not known else []
    return _sorted([*known.values(), *more])


def find(share: Location, digest: str) -> list[Entry]:
    """List the stores whose digest starts with ``digest``, 12 digits or more, sorted by path.

    Of the entries only theirs are read.

    Raises:
        ShareError: the share is unreachable.
    """
    share.check()
    if not share.listable:
        found = _read_catalog(share)
    else:
        found = list(_read_entries(share, _ending(digest)).parsed.values())
        if share.folder is not None or not found:
            found += _scan(share, {entry.path for entry in found}, _ending(digest))
    return _sorted([entry for entry in found if entry.digest.startswith(digest)])


def _sorted(found: list[Entry]) -> list[Entry]:
    return sorted(found, key=lambda entry: entry.path)


def _read_catalog(share: Location) -> list[Entry]:
    """Read the index of a share that lists no files, or search the share without one."""
    try:
        raw = share.read(CATALOG)
    except FileNotFoundError:
        return _scan(share)
    try:
        stores = list(parse_json(raw, str(share / CATALOG))["stores"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShareError(f"{share / CATALOG} cannot be read: {error!r}") from error
    return [entry for plain in stores if (entry := _parse(share / CATALOG, plain)) is not None]


def _read_entries(share: Location, ending: str = ".zarr") -> _Entries:
    """Read the entries of the stores whose names have an ending; those in the index from there."""
    tags = {
        name: tag
        for name, tag in sorted(share.tags(ENTRIES).items())
        if name.endswith(f"{ending}.json")
    }
    index = _read_index(share) if ending == ".zarr" and any(tags.values()) else {}
    plain: dict[str, Any] = {
        name: index[name][1] for name in tags if index.get(name, ("",))[0] == tags[name] != ""
    }

    def read(name: str) -> list[tuple[str, Any]]:
        try:
            raw = share.read(f"{ENTRIES}/{name}", _LARGEST_ENTRY)
        except FileNotFoundError:  # removed in between
            return []
        except UnreadableError as error:  # for instance: no permission
            log.warning("skipping an entry: %s", error)
            return []
        try:
            return [(name, parse_json(raw, "it"))]
        except ValueError as error:
            log.warning("%s: skipping an entry: %s", share / ENTRIES / name, error)
            return []

    with ThreadPoolExecutor(_READERS) as pool:
        for pairs in pool.map(read, [name for name in tags if name not in plain]):
            plain |= dict(pairs)
    found = _Entries(tags, {}, {})
    for name, values in sorted(plain.items()):
        entry = _parse(share / ENTRIES / name, values)
        if entry is not None and name != f"{entry.path}.json":
            log.warning("%s: skipping an entry: it is of %s", share / ENTRIES / name, entry.path)
        elif entry is not None:
            found.plain[entry.path], found.parsed[entry.path] = values, entry
    return found


def _read_index(share: Location) -> dict[str, tuple[str, Any]]:
    """Map the paths of entries to the tag and content they had when the index was written."""
    try:
        index = parse_json(share.read(CATALOG), CATALOG)
        stores = {f"{plain['dataset']}/{plain['name']}.json": plain for plain in index["stores"]}
        return {name: (tag, stores[name]) for name, tag in index["tags"].items() if name in stores}
    except (FileNotFoundError, UnreadableError):
        return {}
    except ShareError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):  # of an earlier release, or damaged
        return {}


def _parse(where: Location, plain: Any) -> Entry | None:
    """Validate an entry; one that is invalid is skipped with a warning."""
    try:
        return Entry.from_json(plain)
    except ValueError as error:
        log.warning("%s: skipping an entry: %s", where, error)
        return None


def _write_entry(share: Location, plain: dict[str, Any]) -> None:
    name = f"{ENTRIES}/{plain['dataset']}/{plain['name']}.json"
    share.write(name, _json(plain), temporary=ENTRIES)


def _scan(share: Location, known: Collection[str] = (), ending: str = ".zarr") -> list[Entry]:
    """Find every ``<dataset>/<name>`` with checksums, if the back-end can list folders.

    Args:
        share: the share.
        known: paths of stores to leave out.
        ending: of the names.
    """
    places = [
        (dataset, name)
        for dataset, name in _places(share)
        if name.endswith(ending) and f"{dataset}/{name}" not in known
    ]
    if not places:
        return []
    from cache.store.consistency import check_named_by_recipe  # imports zarr

    found = []
    for dataset, name in places:
        where = share / f"{dataset}/{name}"
        try:
            checksums = Checksums.parse(where.read(CHECKSUMS), str(where / CHECKSUMS))
            raw = where.read("zarr.json", checksums.files["zarr.json"].size)
            attributes = parse_attributes(raw, str(where / "zarr.json"))
            check_named_by_recipe(attributes, dataset, name)
            found.append(Entry.of(name, attributes, checksums))
        except FileNotFoundError:
            continue  # not published yet
        except ValueError as error:
            log.warning("%s: skipping it: %s", where, error)
    return found


def _places(share: Location) -> Iterator[tuple[str, str]]:
    """Yield (dataset, name) of the folders of a share that have a store's name."""
    for dataset in share.names():
        try:
            names = share.names(dataset)
        except UnreadableError as error:
            log.warning("skipping a dataset: %s", error)
            continue
        for name in names:
            with suppress(ValueError):
                check_place(dataset, name)
                yield dataset, name


def _ending(digest: str) -> str:
    """How the name of a store with this digest ends."""
    return f"-{digest[:12]}.zarr"


def _json(plain: Any) -> bytes:
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False).encode()
