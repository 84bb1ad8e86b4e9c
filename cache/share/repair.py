"""Repair a store, on this machine or on a share, from another copy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from cache.names import is_digest
from cache.share.claims import check_claim, claim, pushing_folder, release
from cache.share.location import Location, ShareError
from cache.share.remote_store import DamagedError, RemoteStore, resolve_one
from cache.share.transfer import WORKERS, Progress, download, upload
from cache.share.verify import Fault, find_problems, verify
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.disk import atomic_write, make_read_only

_REPLACEABLE = ("missing", "wrong size", "changed", "unreadable")
_LIST_LOST = Fault(CHECKSUMS, "unreadable")


def repair(
    store: str | Path | RemoteStore, source: str, on_bytes: Progress | None = None
) -> list[Fault]:
    """Replace every faulty file by that of another copy, and remove files that do not belong there.

    Each file is compared with this store's own checksums before it is replaced, so a wrong copy
    does no harm. If the checksums are lost, they are taken from the copy.

    Args:
        store: the store to repair: a folder, or a store on a share that can be written to.
        source: another copy, by path or URL: the store, ``LOCATION/DIGEST``, or the share that
            contains it.
        on_bytes: called with the progress of each step.

    Returns:
        The faults that were repaired.

    Raises:
        ValueError: the store does not exist or cannot be written.
        ShareError: the copy is unreachable, or the files are faulty there too; the other files are
            repaired.
    """
    if isinstance(store, RemoteStore) and store.folder is None:
        return _repair_share(store, _copy_of(store.dataset, store.name, source), on_bytes)
    store = Path(store.where.path) if isinstance(store, RemoteStore) else Path(store)
    return _repair_folder(store.resolve(), source, on_bytes)


def mend(
    target: RemoteStore,
    checksums: Checksums,
    names: Collection[str],
    read: Callable[[str], bytes],
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> None:
    """Write files of a published store on a share again.

    Args:
        target: the store on the share.
        checksums: its checksums.
        names: paths inside the store. If `CHECKSUMS` is one of them, the share has no readable
            checksums; it is written last.
        read: returns the content of a file; it has compared it with its checksum.
        workers: files transferred at once.
        on_bytes: called after each file.

    Raises:
        ValueError: other content is being pushed to its place.
        ShareError: the share is unreachable or not writable, or the store was replaced.
    """
    if not names:
        return
    folder = pushing_folder(target)
    claim(target, checksums.content)  # else it could be mixed with one that replaces it
    try:
        if CHECKSUMS not in names and target.published_checksums().raw != checksums.raw:
            raise ShareError(f"{target} was replaced while it was being mended; nothing was sent")
        files = [name for name in names if name != CHECKSUMS]
        upload(read, checksums, files, target.share, target.path, folder, workers, on_bytes)
        check_claim(target, checksums.content)
        if CHECKSUMS in names:
            target.share.write(f"{target.path}/{CHECKSUMS}", checksums.raw, folder)
    except ShareError:
        now = target.checksums()
        if now is None or now.raw != checksums.raw or find_problems(target, checksums):
            raise
        # else a push of the same store mended it at the same time and removed the folder
    finally:
        release(target, checksums.content)


def _copy_of(dataset: str, name: str, source: str) -> RemoteStore:
    """Find the copy of a store for a text that names the copy, or the share that contains it."""
    where = Location.parse(source)
    if where.name.endswith(".zarr"):
        return RemoteStore.parse(source)
    if is_digest(where.name) and not (where.folder is not None and where.folder.is_dir()):
        return resolve_one(source)
    return RemoteStore(where, dataset, name)


def _repair_share(target: RemoteStore, copy: RemoteStore, on_bytes: Progress | None) -> list[Fault]:
    if not target.share.writable:
        raise ValueError(f"{target}: {target.share.why_read_only}")
    if target.share.in_commits:
        raise ValueError(f"{target} is mended in one commit; {target.remedy}")
    faults = []
    try:
        checksums = target.checksums()
    except DamagedError:
        checksums = None
    if checksums is None:
        if target.path != copy.path:  # else another store would be written there
            raise ValueError(
                f"{target} has no readable {CHECKSUMS}, and {copy} is another store. Nothing was "
                "changed; name a copy of the same store"
            )
        checksums = copy.published_checksums()
        faults.append(_LIST_LOST)
    faults += verify(target, on_bytes, checksums=checksums)
    unrepaired = []
    names = [f.file for f in faults if f.file in checksums.files and f.problem in _REPLACEABLE]
    wanted = Checksums(checksums.raw, {name: checksums.files[name] for name in names})
    for name, problem in find_problems(copy, wanted).items():
        unrepaired.append(f"{copy}: {name} is {problem}")
        names.remove(name)
    for fault in faults:
        if fault.problem == "extra":
            target.share.remove_file(f"{target.path}/{fault.file}")
        elif fault.problem not in _REPLACEABLE:
            unrepaired.append(_as_published(f"{target}: {fault.file}", fault))
    if faults[:1] == [_LIST_LOST] and not unrepaired:
        names.append(CHECKSUMS)
    mend(target, checksums, names, lambda n: copy.read(n, checksums.files[n]), on_bytes=on_bytes)
    _check_all_repaired(unrepaired)
    return faults


def _repair_folder(store: Path, source: str, on_bytes: Progress | None) -> list[Fault]:
    if not store.is_dir():
        raise ValueError(f"{store}: no such folder; `python -m cache pull` fetches a shared store")
    copy = _copy_of(store.parent.name, store.name, source)
    try:
        Checksums.of(store)
    except ValueError:
        if store.name != copy.name:  # else all files of a mistyped folder would be deleted
            raise ValueError(
                f"{store} has no readable {CHECKSUMS} and is not named {copy.name}. Nothing was "
                "changed; give the store's own folder"
            ) from None
        atomic_write(store / CHECKSUMS, copy.published_checksums().raw)
        make_read_only(store / CHECKSUMS)
    checksums, faults = Checksums.of(store), verify(store, on_bytes)
    unrepaired = []
    for fault in faults:
        try:
            _repair_file(store, fault, checksums, copy)
        except ShareError as error:
            unrepaired.append(str(error))
        except OSError as error:
            raise ValueError(f"{store} cannot be repaired: {error}") from error
    _check_all_repaired(unrepaired)
    return faults


def _repair_file(store: Path, fault: Fault, checksums: Checksums, copy: RemoteStore) -> None:
    """Repair one file; a link is removed, its target is not touched.

    Raises:
        ShareError: no copy can repair it.
    """
    path = store / fault.file
    if fault.file == CHECKSUMS:  # it is a link, and its target was read
        atomic_write(path, checksums.raw)
        make_read_only(path)
        return
    if fault.problem == "extra" or path.is_symlink():
        path.unlink()
    elif fault.file not in checksums.files or not checksums.problem(store, fault.file):
        raise ShareError(_as_published(str(path), fault))
    if fault.file in checksums.files:
        download(copy, checksums, [fault.file], store)
        make_read_only(path)


def _as_published(path: str, fault: Fault) -> str:
    return f"{path}: {fault.problem}; published like this; extract or pull it again"


def _check_all_repaired(unrepaired: list[str]) -> None:
    if unrepaired:
        raise ShareError(f"{len(unrepaired)} files have no intact copy there: {unrepaired[0]}")
