"""Find stores on shares, and read their files.

A share contains a store when it contains its ``checksums.json``; every file that is read is
compared with that list.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.names import is_digest, is_url
from cache.share import catalog
from cache.share.location import Location, ShareError
from cache.store.checksums import CHECKSUMS, Checksums, FileSum
from cache.store.metadata import parse_attributes
from cache.store.recipe import check_place
from manifests.printing import get_logger

log = get_logger(__name__)

_TRIES = 3


class DamagedError(ShareError):
    """A file on the share is missing or not as published."""


@dataclass(frozen=True)
class RemoteStore:
    """A store on a share: ``<share>/<dataset>/<name>``.

    Raises:
        ValueError: the dataset or the name is not valid.
    """

    share: Location
    dataset: str
    name: str

    def __post_init__(self) -> None:
        check_place(self.dataset, self.name)

    @classmethod
    def parse(cls, text: str | Path) -> RemoteStore:
        """Parse a store's own URL or path, ``LOCATION/DATASET/NAME.zarr``; nothing is read.

        Raises:
            ValueError: the location or the name is not valid.
        """
        where = Location.parse(text)
        try:
            return cls(where.parent.parent, where.parent.name, where.name)
        except ValueError as error:
            raise ValueError(
                f"{where} is not a store ({error}); its form is LOCATION/DATASET/NAME.zarr"
            ) from None

    def __str__(self) -> str:
        return str(self.where)

    @property
    def path(self) -> str:
        """Path of the store, relative to the share."""
        return f"{self.dataset}/{self.name}"

    @property
    def where(self) -> Location:
        """The store's own location."""
        return self.share / self.path

    @property
    def folder(self) -> Path | None:
        """The store as a folder of this machine, None for other back-ends."""
        return self.where.folder

    @property
    def remedy(self) -> str:
        """Say which command mends this store."""
        if not self.share.writable:
            return (
                "mend it where it is served from, with an intact copy: "
                "python -m cache push STORE LOCATION --check"
            )
        share = shlex.quote(str(self.share))
        return f"mend it with an intact copy: python -m cache push STORE {share} --check"

    def checksums(self) -> Checksums | None:
        """Read the checksums of the store's files; None if it is not published.

        Raises:
            DamagedError: the list is damaged.
            ShareError: the share is unreachable.
        """
        self.share.check()
        try:
            raw = self.where.read(CHECKSUMS)
        except FileNotFoundError:
            return None
        try:
            return Checksums.parse(raw, str(self.where / CHECKSUMS))
        except ValueError as error:
            where = shlex.quote(str(self))
            raise DamagedError(
                f"{error}; take the list from an intact copy: "
                f"python -m cache verify {where} --repair COPY"
            ) from error

    def published_checksums(self) -> Checksums:
        """Read the checksums as :meth:`checksums` does, of a store that must be published.

        Raises:
            ShareError: as there, or the store is not published.
        """
        checksums = self.checksums()
        if checksums is None:
            raise ShareError(f"{self} is not a published store")
        return checksums

    def attributes(self, checksums: Checksums) -> dict[str, Any]:
        """Read the store's root attributes.

        Raises:
            ShareError: they are not as published, or not feature-store metadata.
        """
        data = self.read("zarr.json", checksums.files["zarr.json"])
        try:
            return parse_attributes(data, str(self.where / "zarr.json"))
        except ValueError as error:
            raise ShareError(str(error)) from error

    def read(self, name: str, expected: FileSum) -> bytes:
        """Read a file and compare it with its checksum; retried twice on a flaky connection.

        Raises:
            DamagedError: the file is missing or not as published.
            ShareError: it cannot be read.
        """
        problem, data = self.check(name, expected)
        if problem == "missing":
            raise DamagedError(f"{self}: {name} is missing; {self.remedy}")
        if problem:
            raise DamagedError(
                f"{self}: {name} is damaged: its SHA-256 is not the published one (if the store is "
                f"being replaced there, try again later); {self.remedy}"
            )
        return data

    def check(self, name: str, expected: FileSum, tries: int = _TRIES) -> tuple[str, bytes]:
        """Read a file and compare it with its checksum.

        Args:
            name: path inside the store.
            expected: its published size and SHA-256.
            tries: how often it is read until it is as published.

        Returns:
            What is wrong with it, and its content if nothing is: ``missing``, ``wrong size``,
            ``changed``, or empty.

        Raises:
            ShareError: it cannot be read.
        """
        problem = ""
        for attempt in range(1, tries + 1):
            try:
                data = self.where.read(name, expected.size)
            except FileNotFoundError:
                return "missing", b""
            except ShareError:
                if attempt == tries:
                    raise
            else:
                if expected.matches(data):
                    return "", data
                problem = "changed" if len(data) == expected.size else "wrong size"
            time.sleep(0.1 * attempt)
        return problem, b""


def resolve(text: str) -> list[RemoteStore]:
    """Find the stores for ``LOCATION``, ``LOCATION/DATASET/NAME.zarr`` or ``LOCATION/DIGEST``.

    Raises:
        ValueError: the share contains no such store.
        ShareError: the share is unreachable.
    """
    where = Location.parse(text)
    if where.name.endswith(".zarr"):
        return [RemoteStore.parse(text)]
    digest = where.name if is_digest(where.name) else ""
    if where.folder is not None and where.folder.is_dir():
        digest = ""  # a share whose name looks like a digest
    share = where.parent if digest else where
    found = catalog.find(share, digest) if digest else catalog.entries(share)
    if not found:
        wanted = f"No store with digest {digest}" if digest else "No stores"
        raise ValueError(f"{wanted} found in {share}.")
    stores = [RemoteStore(share, entry.dataset, entry.name) for entry in found]
    if digest or len(found) == 1:
        for store, entry in zip(stores, found, strict=True):
            _check_entry(store, entry)
    return stores


def _check_entry(store: RemoteStore, entry: catalog.Entry) -> None:
    """Check that a store is what the catalogue lists, before anything is read from it.

    A store that cannot be read passes: the reader gets an error, and `verify` finds its faults.

    Raises:
        ShareError: it has another digest, or its name does not match its recipe.
    """
    from cache.store.consistency import check_named_by_recipe  # imports zarr

    try:
        attributes = store.attributes(store.published_checksums())
    except ShareError:
        return
    try:
        check_named_by_recipe(attributes, store.dataset, store.name)
    except ValueError as error:
        raise ShareError(f"{store} is not a valid store: {error}") from error
    if attributes["digest"] != entry.digest:
        raise ShareError(
            f"{store} has the digest {attributes['digest']}, but the catalogue of {store.share} "
            f"lists it with {entry.digest}. Name the store by its path; push it again to correct "
            "the catalogue"
        )


def resolve_one(text: str) -> RemoteStore:
    """Find the one store for ``text``; see :func:`resolve`.

    Raises:
        ValueError: no store, or several: the message lists them.
    """
    found = resolve(text)
    if len(found) > 1:
        listed = "\n  ".join(str(shared) for shared in found)
        raise ValueError(f"{Location.parse(text)} contains several stores; name one:\n  {listed}")
    return found[0]


def locate(text: str | Path) -> Path | RemoteStore:
    """Find the one store that a path, URL or ``LOCATION/DIGEST`` names.

    Returns:
        The store's folder on this machine, see :func:`local_store`; or a store elsewhere.

    Raises:
        ValueError: the share contains no such store, or several: the message lists them.
        ShareError: the share is unreachable.
    """
    return resolve_one(str(text)) if Location.parse(text).folder is None else local_store(text)


def local_store(text: str | Path) -> Path:
    """Find the folder of the one store that a path or ``FOLDER/DIGEST`` names.

    A folder that exists is the store, unless it is a share with stores in it. Whether the result
    is a store, or exists, is not checked.

    Raises:
        ValueError: the share contains no such store, or several: the message lists them.
    """
    where = Location.parse(text)
    path = Path(where.path) if is_url(text) else Path(text)
    if path.is_dir():
        has_metadata = any((path / name).exists() for name in (CHECKSUMS, "zarr.json"))
        if where.name.endswith(".zarr") or has_metadata or not catalog.entries(where):
            return path
    elif not is_digest(where.name):
        return path
    return Path(resolve_one(str(text)).where.path)
