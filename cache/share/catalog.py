"""Read and write the catalogue of a share.

The catalogue is one small file per store, ``catalog/<dataset>/<name>.json``, written once by the
push of the store: two writers never write the same file, so no entry is lost and no lock is needed.
``catalog.json`` is generated from these files, for people and for web servers, which cannot list
folders. After writing it, a push lists the entries again and starts over if there is a new one: so
the last writer has written all of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from cache.share.location import Location, ShareError, UnreadableError
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.metadata import is_count, is_sha256, parse_attributes, parse_json
from cache.store.recipe import check_place, user_name

log = logging.getLogger(__name__)

CATALOG = "catalog.json"
ENTRIES = "catalog"
_LARGEST_ENTRY = 1 << 20  # bytes


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

    @classmethod
    def of(cls, name: str, attributes: Mapping[str, Any], checksums: Checksums) -> Entry:
        """Make the entry of a store from its root attributes; ``when`` is empty."""
        recipe, counts = attributes["recipe"], attributes["counts"]
        return cls(
            dataset=recipe["dataset"],
            name=name,
            encoder=recipe["encoder"],
            sampling=dict(recipe["sampling"]),
            digest=attributes["digest"],
            content=checksums.content,
            bytes=checksums.size,
            files=len(checksums.files),
            utterances=counts["utterances"],
            failures=counts["failed"],
            who=str(attributes.get("creator", "")),
            when="",
            licence=str(attributes.get("licence", "")),
        )

    @classmethod
    def from_json(cls, plain: Any) -> Entry:
        """Validate an entry; unknown keys (of later releases) are ignored.

        Raises:
            ValueError: a key is missing or has another type, or a name cannot be a folder's.
        """
        kinds = {"str": str, "int": int, "dict[str, Any]": dict}
        try:
            values = {field.name: plain[field.name] for field in fields(cls)}
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a catalogue entry: {error!r}") from error
        for field in fields(cls):
            value, kind = values[field.name], kinds[str(field.type)]
            if not isinstance(value, kind) or (kind is int and not is_count(value)):
                raise ValueError(f"{field.name} is {value!r:.200}")
            if isinstance(value, str):
                value.encode()  # raises ValueError for a lone surrogate, which cannot be printed
        for name in ("digest", "content"):
            if not is_sha256(values[name]):
                raise ValueError(f"{name} is {values[name]!r:.200}")
        check_place(values["dataset"], values["name"])
        return cls(**values)

    @property
    def path(self) -> str:
        """Path of the store, relative to the share."""
        return f"{self.dataset}/{self.name}"


def add(share: Location, entry: Entry) -> None:
    """Add a pushed store to the share's catalogue, unless it has the entry already.

    ``who`` and ``when`` are set to this user and the present time.

    Raises:
        ShareError: the share is unreachable or not writable.
    """
    known = _read_entries(share)
    if not any((e.path, e.content) == (entry.path, entry.content) for e in known):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        signed = {**asdict(entry), "who": user_name(), "when": now}
        share.write(f"{ENTRIES}/{entry.path}.json", _json(signed), temporary=ENTRIES)
        known = _read_entries(share)
    while True:
        plain = {"version": 1, "stores": [asdict(e) for e in known]}
        share.write(CATALOG, _json(plain), temporary=ENTRIES)
        present = _read_entries(share)
        if present == known:
            return
        known = present


def entries(share: Location) -> list[Entry]:
    """List the stores of a share, sorted by path; a share without catalogue is searched.

    Raises:
        ShareError: the share is unreachable.
    """
    share.check()
    if share.writable:
        return _read_entries(share) or _scan(share)
    try:
        raw = share.read(CATALOG)
    except FileNotFoundError:
        return _scan(share)
    try:
        plain = parse_json(raw, str(share / CATALOG))["stores"]
        return _valid(share, [(CATALOG, entry) for entry in plain])
    except (ValueError, KeyError, TypeError) as error:
        raise ShareError(f"{share / CATALOG} cannot be read: {error!r}") from error


def _read_entries(share: Location) -> list[Entry]:
    found: list[tuple[str, Any]] = []
    for name in (f"{ENTRIES}/{below}" for below in sorted(share.sizes(ENTRIES))):
        if not name.endswith(".zarr.json"):
            continue
        try:
            found.append((name, share.read(name, _LARGEST_ENTRY)))
        except UnreadableError as error:  # for instance: no permission
            log.warning("skipping an entry: %s", error)
    return _valid(share, found)


def _valid(share: Location, found: list[tuple[str, Any]]) -> list[Entry]:
    good = []
    for name, plain in found:
        try:
            plain = parse_json(plain, "it") if isinstance(plain, bytes) else plain
            good.append(Entry.from_json(plain))
        except ValueError as error:
            log.warning("%s: skipping an entry: %s", share / name, error)
    return sorted(good, key=lambda entry: entry.path)


def _scan(share: Location) -> list[Entry]:
    """Find every ``<dataset>/<name>.zarr`` with checksums, if the back-end can list folders."""
    from cache.store.consistency import check_named_by_recipe  # imports zarr

    found = []
    for dataset, name in _places(share):
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
    return sorted(found, key=lambda entry: entry.path)


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
