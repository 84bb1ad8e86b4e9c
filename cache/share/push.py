"""A published store goes to a share.

Its ``checksums.json`` goes up last: before that the share does not hold the store. Every file is
compared with it before it is sent. An interrupted push goes on where it stopped.

A store that is there already can be replaced by one with more utterances in it. In a folder the new
one is completed beside it and the two are swapped. An object store cannot do that: the files change
one by one, under the old ``checksums.json``, by which a reader refuses those of the new store until
its own is there.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from cache.reader import FeatureStore
from cache.share import catalog
from cache.share.location import Location, ShareError
from cache.share.remote_store import RemoteStore
from cache.share.transfer import WORKERS, Progress, in_threads, open_remote_metadata
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.consistency import (
    UnlistedFileError,
    check_all_listed,
    check_all_present,
    check_index,
    check_named_by_recipe,
)
from cache.store.disk import files_below
from cache.store.publish import replace as put_in_place
from cache.store.recipe import STORABLE, user_name
from cache.store.temp_paths import TempPath, claim_name, is_claim

_LARGEST_CLAIM = 1000  # bytes


def push(
    store: Path,
    location: str,
    *,
    take_over: bool = False,
    replace: bool = False,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> tuple[RemoteStore, int]:
    """Copy a published store to a share and enter it into the share's catalogue.

    Args:
        store: the published store.
        location: the share, a folder or URL.
        take_over: drop what another, unfinished push of the same recipe left there.
        replace: put the store in the place of one of the same recipe that is there, if no utterance
            loses features by it.
        workers: files in flight at once.
        on_bytes: told of the progress.

    Returns:
        Where it is now, and how many files were copied: 0 if it was there already.

    Raises:
        ValueError: the share has this recipe with other content and that is not to be replaced, or
            has more features than this store; or the store is damaged, or called otherwise than
            its recipe says.
        ShareError: the share is out of reach, or not ours to write.
    """
    cache, checksums = FeatureStore.open(store), Checksums.of(store)
    target = RemoteStore(Location.parse(location), cache.dataset, store.resolve().name)
    check_named_by_recipe(cache.attributes, target.dataset, target.name)
    _check_consistent(cache, checksums)
    if not target.share.writable:
        raise ValueError(f"{target.share}: a web server is only read; push to what lies behind it")
    entry = catalog.Entry.of(target.name, cache.attributes, checksums)
    copied = 0
    _make_folder(target.share)
    old = _replaceable(target, cache, checksums) if replace else None
    if not _already_there(target, checksums, old):
        swapped = old is not None and target.share.folder is not None
        place = f"{_waiting(target)}/{target.name}" if swapped else target.path
        _check_only_push_files(target.share, place, checksums)
        try:
            resumed = _claim(target, checksums, old, take_over)
            if old is not None and not swapped:
                resumed = False  # files of both stores lie there, and sizes do not tell them apart
            copied = _send(store, target, place, checksums, resumed, workers, on_bytes)
            if _claims(target) != {_ours(checksums)}:
                raise ShareError(f"{target}: another push took over; push again")
            target.share.write(f"{place}/{CHECKSUMS}", checksums.raw, _waiting(target))
            if swapped:
                _swap(target, place)
        except ShareError:
            if not _already_there(target, checksums, old):  # somebody else was faster
                raise
    target.share.remove(_waiting(target))
    catalog.add(target.share, entry)
    return target, copied


def _check_consistent(cache: FeatureStore, checksums: Checksums) -> None:
    store = cache.path
    try:
        check_all_listed(store, checksums.files)
    except OSError as error:
        raise ValueError(f"{store} is damaged: {error}; run: python -m cache verify") from error
    except UnlistedFileError as error:
        raise ValueError(f"{store}: {error}; extract or pull it again") from error
    check_index(store, cache.attributes)


def _make_folder(share: Location) -> None:
    """Make the folder of a share, but not the one that it is in: that may be a missing mount."""
    if share.folder is None:
        return
    try:
        if not share.folder.is_dir():
            share.folder.mkdir(exist_ok=True)
            share.parent.share_with_group(share.folder)
    except FileNotFoundError:
        raise ShareError(
            f"{share}: there is no folder {share.parent}; is it mounted? push only makes the last "
            "folder of a location"
        ) from None
    except OSError as error:
        raise ShareError(f"{share}: {error.strerror}") from error


def _already_there(target: RemoteStore, checksums: Checksums, old: Checksums | None) -> bool:
    """Whether this content is published; False too if what is, is the ``old`` to be replaced."""
    there = target.checksums()
    if there is None or (old is not None and there.raw == old.raw):
        return False
    if there.raw != checksums.raw:
        raise ValueError(
            f"{target} holds the same recipe with other content; a published store is never "
            "overwritten unasked. Pull that one, or compare: python -m cache diff. If yours has "
            "more utterances in it, after extract --retry-failed, push it with --replace"
        )
    return True


def _replaceable(
    target: RemoteStore, cache: FeatureStore, checksums: Checksums
) -> Checksums | None:
    """The checksums of the published store that ours may replace; None if there is nothing to.

    Raises:
        ValueError: it has features of an utterance that ours lacks.
    """
    old = target.checksums()
    if old is None or old.raw == checksums.raw:
        return None
    if _claims(target) == {_ours(checksums)}:
        return old  # looked at before an interruption, and in part overwritten since
    with open_remote_metadata(target, old) as there:
        if there.digest != cache.digest:
            raise ValueError(f"{target} is of another recipe; only one of the same is replaced")
        rank = {"failed": 0, "no_audio": 1, "no_video": 1, "ok": 2}
        ours = {i: rank[status] for i, status in cache.status.items()}
        lost = [i for i, status in there.status.items() if ours.get(i, 0) < rank[status]]
    if lost:
        raise ValueError(
            f"{target} has features of {len(lost)} utterances that {cache.path} lacks, the first "
            f"is {lost[0]!r}; it is not replaced"
        )
    return old


def _check_only_push_files(share: Location, place: str, checksums: Checksums) -> None:
    """A push writes, and tidies up, only where nothing but a push has written before.

    Raises:
        ValueError: a file that no push leaves lies there, or a link to elsewhere.
    """
    ours = {*checksums.files, CHECKSUMS}
    strange = [
        name
        for name in sorted(share.sizes(place).keys() - ours)
        if name.partition("/")[0] not in (*STORABLE, "utterances", "zarr.json")
    ]
    if share.folder is not None:
        where = share.folder / place
        strange += [str(path) for path in (where, *files_below(where)) if path.is_symlink()]
    if strange:
        raise ValueError(
            f"{share / place}: {strange[0]!r} is none that a push leaves; nothing there is "
            "touched: look what it is, and move it away"
        )


def _swap(target: RemoteStore, place: str) -> None:
    """Put the store at ``place``, in the same folder share, where the old one is."""
    assert target.share.folder is not None
    new = target.share.folder / place
    try:
        check_all_present(new)
        put_in_place(target.share.folder / target.path, new)
    except OSError as error:
        raise ShareError(f"{target} cannot be replaced: {error}") from error


def _waiting(target: RemoteStore) -> str:
    """Beside the store on its way: who sends it, and files that are not whole yet."""
    return f"{target.dataset}/{TempPath.PUSHING.name_for(target.name)}"


def _ours(checksums: Checksums) -> str:
    return claim_name(checksums.content)


def _claims(target: RemoteStore) -> set[str]:
    return {name for name in target.share.sizes(_waiting(target)) if is_claim(name)}


def _claim(
    target: RemoteStore, checksums: Checksums, old: Checksums | None, take_over: bool
) -> bool:
    """Say that we send this content; True if that was begun before and can go on.

    Two stores of one recipe may differ in their last bits but have files of equal sizes, so an
    unfinished push of one must not be completed with the other. Each writes its claim and then
    looks for others: of two at once at least one sees the other. Who finishes first takes the claim
    away after publishing, so whoever saw none looks for a published store again.
    """
    ours = _ours(checksums)
    resumed = _claims(target) == {ours} and not take_over
    if take_over:
        target.share.remove(_waiting(target))
    by = {"who": user_name(), "when": datetime.now(UTC).isoformat(timespec="seconds")}
    target.share.write(f"{_waiting(target)}/{ours}", json.dumps(by).encode(), _waiting(target))
    try:
        for other in _claims(target) - {ours}:
            told = target.share.read(f"{_waiting(target)}/{other}", _LARGEST_CLAIM)
            whose = told.decode(errors="replace")
            raise ValueError(
                f"{target}: somebody is pushing the same recipe with other content ({whose}); wait "
                "for that push, or drop what it left with --take-over"
            )
        _already_there(target, checksums, old)
    except ValueError:
        if not resumed:
            target.share.remove(f"{_waiting(target)}/{ours}")
        raise
    return resumed


def _send(
    store: Path,
    target: RemoteStore,
    place: str,
    checksums: Checksums,
    resumed: bool,
    workers: int,
    on_bytes: Progress | None,
) -> int:
    """Send to the folder ``place`` what it does not have; returns the number of files."""
    share = target.share
    there = share.sizes(place) if resumed else {}

    def missing(name: str) -> bool:
        if share.folder is not None and resumed:  # near enough to be read again
            return bool(checksums.problem(share.folder / place, name))
        return there.get(name) != checksums.files[name].size

    needed = [name for name in sorted(checksums.files) if missing(name)]

    def send(name: str) -> int:
        try:
            data = (store / name).read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise ValueError(f"{store}: {name} cannot be read: {error.strerror}") from error
        if not checksums.files[name].matches(data):
            raise ValueError(f"{store}: {name} is damaged; run: python -m cache verify {store}")
        share.write(f"{place}/{name}", data, _waiting(target))
        return len(data)

    in_all = sum(checksums.files[name].size for name in needed)
    in_threads(send, needed, workers, in_all, on_bytes)
    arrived = share.sizes(place)
    wrong = [n for n, entry in checksums.files.items() if arrived.get(n) != entry.size]
    if wrong:
        raise ShareError(f"{share / place}: {wrong[0]} did not arrive whole; push again")
    for extra in arrived.keys() - checksums.files.keys() - {CHECKSUMS}:
        share.remove(f"{place}/{extra}")
    return len(needed)
