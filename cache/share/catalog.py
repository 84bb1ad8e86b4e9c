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
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cache.share.entry import Entry, ending_of
from cache.share.location import Location, ShareError, UnreadableError
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.metadata import parse_attributes, parse_json
from cache.store.recipe import check_place, user_name
from manifests.printing import get_logger

log = get_logger(__name__)

CATALOG = "catalog.json"
ENTRIES = "catalog"
_LARGEST_ENTRY = 1 << 20  # bytes
_READERS = 8


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
    for found in _scan(share, {entry.path, *known.parsed}):
        try:
            _write_entry(share, asdict(found))
        except ShareError as error:  # for instance a folder of another user
            log.warning("skipping a store that was copied by hand: %s", error)
    mine = _of_this_push(known, entry)
    if mine is not None:
        _write_entry(share, mine)
    known = _read_entries(share)
    while True:
        share.write(CATALOG, _index(known.plain, known.tags), temporary=ENTRIES)
        present = _read_entries(share)
        if present == known:
            return
        known = present


def changes(
    share: Location, entry: Entry, tag_of: Callable[[bytes], str]
) -> tuple[dict[str, bytes], list[Entry]]:
    """Return what :func:`add` would write, for a share that is written in commits.

    Args:
        share: the share.
        entry: of the pushed store.
        tag_of: returns the tag that the share gives to a file with this content.

    Returns:
        The contents of the files that change, by path; and the entries of the share after that.

    Raises:
        ShareError: the share is unreachable.
    """
    known = _read_entries(share)
    new = [asdict(found) for found in _scan(share, {entry.path, *known.parsed})]
    mine = _of_this_push(known, entry)
    files, stores, tags = {}, dict(known.plain), dict(known.tags)
    for plain in [*new, *([] if mine is None else [mine])]:
        path, data = f"{plain['dataset']}/{plain['name']}", _json(plain)
        files[f"{ENTRIES}/{path}.json"] = data
        stores[path], tags[f"{path}.json"] = plain, tag_of(data)
    try:
        index = share.read(CATALOG)
    except FileNotFoundError:
        index = b""
    if index != _index(stores, tags):
        files[CATALOG] = _index(stores, tags)
    return files, [Entry.from_json(plain) for _, plain in sorted(stores.items())]


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
        found = list(_read_entries(share, ending_of(digest)).parsed.values())
        if share.folder is not None or not found:
            found += _scan(share, {entry.path for entry in found}, ending_of(digest))
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


def _of_this_push(known: _Entries, entry: Entry) -> dict[str, Any] | None:
    """Return the entry with this user and the present time; None if the catalogue has it."""
    mine = known.parsed.get(entry.path)
    if mine is not None and mine.content == entry.content and mine.when:
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {**asdict(entry), "who": user_name(), "when": now}


def _index(plain: dict[str, Any], tags: dict[str, str]) -> bytes:
    stores = [entry for _, entry in sorted(plain.items())]
    return _json({"version": 1, "stores": stores, "tags": dict(sorted(tags.items()))})


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


def _json(plain: Any) -> bytes:
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False).encode()
