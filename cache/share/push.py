"""Copy a published store to a share.

``checksums.json`` is written last: until then the share does not contain the store. Every file is
compared with it before it is sent. An interrupted push resumes. A push of a store that the share
contains already compares the files there with the list, and sends those that are missing or wrong.
A share that is written in commits gets all files at once, see :mod:`cache.share.commit`.

A store on the share can be replaced by one with more utterances. In a folder the new one is
completed next to the old one, then the two are swapped. An object store cannot swap: the files
change one by one under the old ``checksums.json``, so a reader rejects the new files until the new
``checksums.json`` is written.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from cache.reader import FeatureStore
from cache.share import catalog
from cache.share.claims import (
    check_claim,
    claim,
    is_only_claim,
    pushing_folder,
    release,
    withdraw,
)
from cache.share.commit import commit, head
from cache.share.location import Location, ShareError
from cache.share.remote_store import DamagedError, RemoteStore
from cache.share.repair import mend
from cache.share.transfer import WORKERS, Progress, open_remote_metadata, read_local, upload
from cache.share.verify import find_problems
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.consistency import (
    UnlistedFileError,
    check_all_listed,
    check_all_present,
    check_index,
    check_named_by_recipe,
)
from cache.store.disk import files_below
from cache.store.publish import replace as replace_folder
from cache.store.recipe import STORABLE, check_portable
from manifests.printing import preview


class Pushed(NamedTuple):
    """What a push did.

    Attributes:
        target: the store on the share.
        copied: number of files sent of a store that was not there.
        mended: number of files sent that the published store lacked or that were damaged.
    """

    target: RemoteStore
    copied: int
    mended: int


def push(
    store: Path,
    location: str,
    *,
    take_over: bool = False,
    replace: bool = False,
    check: bool = False,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> Pushed:
    """Copy a published store to a share, or mend it there, and add it to the share's catalogue.

    Args:
        store: the published store.
        location: the share, a folder or URL.
        take_over: delete what another, unfinished push of the same recipe left there.
        replace: replace a store with the same recipe on the share, if no utterance loses features.
        check: read the files that the share has already and compare their SHA-256; else only their
            sizes are compared.
        workers: files transferred at once.
        on_bytes: called with the progress.

    Returns:
        The store on the share, and how many files were sent: none if it was there and intact.

    Raises:
        ValueError: the share has this recipe with different content and ``replace`` is false, or
            has more features than this store; or the store is damaged, or its name does not match
            its recipe.
        ShareError: the share is unreachable or not writable.
    """
    ours, checksums = FeatureStore.open(store), Checksums.of(store)
    target = RemoteStore(Location.parse(location), ours.dataset, store.resolve().name)
    check_named_by_recipe(ours.attributes, target.dataset, target.name)
    check_portable(target.dataset, target.name)
    _check_consistent(ours, checksums)
    if not target.share.writable:
        raise ValueError(f"{target.share}: {target.share.why_read_only}")
    entry = catalog.Entry.of(target.name, ours.attributes, checksums)
    copied = mended = 0
    _make_folder(target.share)
    parent = head(target.share) if target.share.in_commits else None
    list_damaged = _is_list_damaged(target, checksums)
    old = _replaced_by(ours, target, checksums) if replace and not list_damaged else None
    if list_damaged or _is_published(target, checksums, old):
        found = find_problems(target, checksums, check or list_damaged, workers, on_bytes)
        names = [*found, CHECKSUMS] if list_damaged else list(found)
        mended = len(names)
        if parent is None:
            mend(target, checksums, names, partial(read_local, store, checksums), workers, on_bytes)
    elif parent is None:
        copied = _publish(store, target, checksums, old, take_over, check, workers, on_bytes)
    else:
        _check_only_push_files(target.share, target.path, checksums)
        names = [*checksums.files, CHECKSUMS]
        copied = len(checksums.files)
    if parent is not None:
        commit(store, target, checksums, names, entry, parent, workers, on_bytes)
    else:
        release(target, checksums.content)
        catalog.add(target.share, entry)
    return Pushed(target, copied, mended)


def _publish(
    store: Path,
    target: RemoteStore,
    checksums: Checksums,
    old: Checksums | None,
    take_over: bool,
    check: bool,
    workers: int,
    on_bytes: Progress | None,
) -> int:
    """Send a store that the share lacks, or has with the ``old`` content; returns files sent."""
    swapped = old is not None and target.folder is not None
    place = f"{pushing_folder(target)}/{target.name}" if swapped else target.path
    _check_only_push_files(target.share, place, checksums)
    names = list(checksums.files)
    try:
        resumed = _claim(target, checksums, old, take_over)
        if resumed and target.share.folder is not None:  # fast enough to be read again
            folder = target.share.folder / place
            names = [name for name in names if checksums.problem(folder, name)]
        elif resumed and old is None:  # else there are files of both, which sizes do not identify
            names = list(find_problems(target, checksums, check, workers, on_bytes))
        _upload(store, target, place, checksums, names, workers, on_bytes)
        check_claim(target, checksums.content)
        target.share.write(f"{place}/{CHECKSUMS}", checksums.raw, pushing_folder(target))
        if swapped:
            _swap(target, place)
    except ShareError:
        if not _is_published(target, checksums, old):  # else another push was faster
            raise
    return len(names)


def _check_consistent(ours: FeatureStore, checksums: Checksums) -> None:
    store = ours.path
    try:
        check_all_listed(store, checksums.files)
    except OSError as error:
        raise ValueError(f"{store} is damaged: {error}; run: python -m cache verify") from error
    except UnlistedFileError as error:
        raise ValueError(f"{store}: {error}; extract or pull it again") from error
    check_index(store, ours.attributes)


def _make_folder(share: Location) -> None:
    """Make the folder of a share, but not its parent: that may be a missing mount."""
    if share.folder is None:
        return
    try:
        if not share.folder.is_dir():
            share.folder.mkdir(exist_ok=True)
            share.parent.share_with_group(share.folder)
    except FileNotFoundError:
        raise ShareError(
            f"{share}: no such folder: {share.parent}; is it mounted? push creates only the last "
            "folder of a location"
        ) from None
    except OSError as error:
        raise ShareError(f"{share}: {error.strerror}") from error


def _is_list_damaged(target: RemoteStore, checksums: Checksums) -> bool:
    """Whether the share has this content, according to its catalogue, and a damaged list of it.

    Raises:
        DamagedError: the list is damaged, and the catalogue does not say that it is this content.
    """
    try:
        target.checksums()
    except DamagedError:
        known = catalog.entries(target.share)
        if any((e.path, e.content) == (target.path, checksums.content) for e in known):
            return True
        raise
    return False


def _is_published(target: RemoteStore, checksums: Checksums, old: Checksums | None) -> bool:
    """Whether the share has this content; False too if it has the ``old`` one to be replaced.

    Raises:
        ValueError: the share has other content.
    """
    found = target.checksums()
    if found is None or (old is not None and found.raw == old.raw):
        return False
    if found.raw != checksums.raw:
        raise ValueError(
            f"{target} has the same recipe with different content; a published store is not "
            "overwritten. Pull it, or compare the two: python -m cache diff. If yours has more "
            "utterances, after extract --retry-failed, push it with --replace"
        )
    return True


def _replaced_by(ours: FeatureStore, target: RemoteStore, checksums: Checksums) -> Checksums | None:
    """Return the checksums of the store on the share that ours may replace, None without one.

    Raises:
        ValueError: it has features of an utterance that ours lacks, or another recipe.
    """
    old = target.checksums()
    if old is None or old.raw == checksums.raw:
        return None
    if is_only_claim(target, checksums.content):
        return old  # checked before an interruption, and partly overwritten since
    with open_remote_metadata(target, old) as theirs:
        if theirs.digest != ours.digest:
            raise ValueError(f"{target} has another recipe; only a store with the same is replaced")
        rank = {"failed": 0, "no_audio": 1, "no_video": 1, "ok": 2}
        ranks = {i: rank[status] for i, status in ours.status.items()}
        lost = [i for i, status in theirs.status.items() if ranks.get(i, 0) < rank[status]]
    if lost:
        raise ValueError(
            f"{target} has features of {len(lost)} utterances that {ours.path} lacks: "
            f"{preview(lost)}; it was not replaced"
        )
    return old


def _check_only_push_files(share: Location, place: str, checksums: Checksums) -> None:
    """Check that a folder contains only files of pushes: other files are not touched.

    Raises:
        ValueError: it contains a file that a push does not write, or a symlink.
    """
    expected = {*checksums.files, CHECKSUMS}
    unexpected = [
        name
        for name in sorted(share.sizes(place).keys() - expected)
        if name.partition("/")[0] not in (*STORABLE, "utterances", "zarr.json")
    ]
    if share.folder is not None:
        where = share.folder / place
        unexpected += [str(path) for path in (where, *files_below(where)) if path.is_symlink()]
    if unexpected:
        raise ValueError(
            f"{share / place}: unexpected file {unexpected[0]!r} (not written by `push`). Nothing "
            "was changed; move it away and push again."
        )


def _swap(target: RemoteStore, place: str) -> None:
    """Replace the old store of a folder share by the one at ``place`` in the same share."""
    assert target.share.folder is not None
    new = target.share.folder / place
    try:
        check_all_present(new)
        replace_folder(target.share.folder / target.path, new)
    except OSError as error:
        raise ShareError(f"{target} cannot be replaced: {error}") from error


def _claim(
    target: RemoteStore, checksums: Checksums, old: Checksums | None, take_over: bool
) -> bool:
    """Claim the store's place for this content; returns whether an earlier push is resumed.

    Raises:
        ValueError: other content is being pushed, or was published.
    """
    resumed = claim(target, checksums.content, take_over)
    try:
        _is_published(target, checksums, old)
    except ValueError:
        if not resumed:
            withdraw(target, checksums.content)
        raise
    return resumed


def _upload(
    store: Path,
    target: RemoteStore,
    place: str,
    checksums: Checksums,
    names: list[str],
    workers: int,
    on_bytes: Progress | None,
) -> None:
    """Upload files to the folder ``place``, and remove those that an older push left there.

    Raises:
        ShareError: a file is incomplete on the share.
    """
    share, read = target.share, partial(read_local, store, checksums)
    upload(read, checksums, names, share, place, pushing_folder(target), workers, on_bytes)
    sizes = share.sizes(place)
    wrong = [n for n, entry in checksums.files.items() if sizes.get(n) != entry.size]
    if wrong:
        raise ShareError(f"{share / place}: {wrong[0]} is incomplete on the share; push again")
    for extra in sizes.keys() - checksums.files.keys() - {CHECKSUMS}:
        share.remove_file(f"{place}/{extra}")
