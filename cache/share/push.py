"""Copy a published store to a share.

``checksums.json`` is written last: until then the share does not contain the store. Every file is
compared with it before it is sent. An interrupted push resumes.

A store on the share can be replaced by one with more utterances. In a folder the new one is
completed next to the old one, then the two are swapped. An object store cannot swap: the files
change one by one under the old ``checksums.json``, so a reader rejects the new files until the new
``checksums.json`` is written.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from cache.reader import FeatureStore
from cache.share import catalog
from cache.share.location import Location, ShareError
from cache.share.remote_store import RemoteStore
from cache.share.transfer import WORKERS, Progress, open_remote_metadata, upload
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
from cache.store.recipe import STORABLE, user_name
from cache.store.temp_paths import TempPath, claim_name, is_claim
from manifests.printing import preview

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
    """Copy a published store to a share and add it to the share's catalogue.

    Args:
        store: the published store.
        location: the share, a folder or URL.
        take_over: delete what another, unfinished push of the same recipe left there.
        replace: replace a store with the same recipe on the share, if no utterance loses features.
        workers: files transferred at once.
        on_bytes: called with the progress.

    Returns:
        The store on the share, and the number of files copied: 0 if it was there already.

    Raises:
        ValueError: the share has this recipe with different content and ``replace`` is false, or
            has more features than this store; or the store is damaged, or its name does not match
            its recipe.
        ShareError: the share is unreachable or not writable.
    """
    ours, checksums = FeatureStore.open(store), Checksums.of(store)
    target = RemoteStore(Location.parse(location), ours.dataset, store.resolve().name)
    check_named_by_recipe(ours.attributes, target.dataset, target.name)
    _check_consistent(ours, checksums)
    if not target.share.writable:
        raise ValueError(
            f"{target.share}: a web server is read-only; push to the folder or bucket "
            "that it serves"
        )
    entry = catalog.Entry.of(target.name, ours.attributes, checksums)
    copied = 0
    _make_folder(target.share)
    old = _replaced_by(ours, target, checksums) if replace else None
    if not _is_published(target, checksums, old):
        swapped = old is not None and target.share.folder is not None
        place = f"{_pushing_folder(target)}/{target.name}" if swapped else target.path
        _check_only_push_files(target.share, place, checksums)
        try:
            resumed = _claim(target, checksums, old, take_over)
            if old is not None and not swapped:
                resumed = False  # the folder has files of both stores, which sizes do not identify
            copied = _upload_missing(store, target, place, checksums, resumed, workers, on_bytes)
            if _claims(target) != {claim_name(checksums.content)}:
                raise ShareError(f"{target}: another push took over; push again")
            target.share.write(f"{place}/{CHECKSUMS}", checksums.raw, _pushing_folder(target))
            if swapped:
                _swap(target, place)
        except ShareError:
            if not _is_published(target, checksums, old):  # else another push was faster
                raise
    target.share.remove(_pushing_folder(target))
    catalog.add(target.share, entry)
    return target, copied


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
    if _claims(target) == {claim_name(checksums.content)}:
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


def _pushing_folder(target: RemoteStore) -> str:
    """The folder next to an unfinished store: claims of pushes, and incomplete files."""
    return f"{target.dataset}/{TempPath.PUSHING.name_for(target.name)}"


def _claims(target: RemoteStore) -> set[str]:
    return {name for name in target.share.sizes(_pushing_folder(target)) if is_claim(name)}


def _claim(
    target: RemoteStore, checksums: Checksums, old: Checksums | None, take_over: bool
) -> bool:
    """Write a claim that this content is being pushed; returns whether an earlier push is resumed.

    Two stores with the same recipe may differ in their last bits but have files of equal sizes, so
    an unfinished push of one must not be completed with the other. Each push writes its claim and
    then lists the claims: of two concurrent pushes at least one sees the other. The first to finish
    removes its claim after publishing, so a push that saw no other claim checks again whether a
    store was published.

    Raises:
        ValueError: other content is being pushed, or was published.
    """
    ours = claim_name(checksums.content)
    folder = _pushing_folder(target)
    resumed = _claims(target) == {ours} and not take_over
    if take_over:
        target.share.remove(folder)
    by = {"who": user_name(), "when": datetime.now(UTC).isoformat(timespec="seconds")}
    target.share.write(f"{folder}/{ours}", json.dumps(by).encode(), folder)
    try:
        for other in _claims(target) - {ours}:
            claim = target.share.read(f"{folder}/{other}", _LARGEST_CLAIM)
            raise ValueError(
                f"{target}: another push of the same recipe with different content is unfinished "
                f"({claim.decode(errors='replace')}); wait for it, or delete its files with "
                "--take-over"
            )
        _is_published(target, checksums, old)
    except ValueError:
        if not resumed:
            target.share.remove(f"{folder}/{ours}")
        raise
    return resumed


def _upload_missing(
    store: Path,
    target: RemoteStore,
    place: str,
    checksums: Checksums,
    resumed: bool,
    workers: int,
    on_bytes: Progress | None,
) -> int:
    """Upload the files that the folder ``place`` lacks; returns their number.

    Raises:
        ShareError: a file is incomplete on the share.
    """
    share = target.share
    sizes = share.sizes(place) if resumed else {}

    def is_missing(name: str) -> bool:
        if share.folder is not None and resumed:  # fast enough to be read again
            return bool(checksums.problem(share.folder / place, name))
        return sizes.get(name) != checksums.files[name].size

    names = [name for name in sorted(checksums.files) if is_missing(name)]
    upload(store, checksums, names, share, place, _pushing_folder(target), workers, on_bytes)
    sizes = share.sizes(place)
    wrong = [n for n, entry in checksums.files.items() if sizes.get(n) != entry.size]
    if wrong:
        raise ShareError(f"{share / place}: {wrong[0]} is incomplete on the share; push again")
    for extra in sizes.keys() - checksums.files.keys() - {CHECKSUMS}:
        share.remove(f"{place}/{extra}")
    return len(names)
