"""Write a store, its catalogue and a card to a share in one commit: all of it or nothing.

The commit names the one that it follows. If another push was faster, the share refuses it, so two
contents are never mixed and no entry of the catalogue is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cache.share import catalog
from cache.share.back_ends import file_system
from cache.share.card import CARD, make_card
from cache.share.entry import Entry
from cache.share.location import Location, ShareError
from cache.share.patience import WebError
from cache.share.remote_store import RemoteStore
from cache.share.secrets import redacted
from cache.share.transfer import Progress, in_threads, read_local
from cache.share.verify import find_problems
from cache.store.checksums import CHECKSUMS, Checksums

if TYPE_CHECKING:
    from cache.share.hub import HubFiles


def head(share: Location) -> str:
    """Return the last commit of a share, which the next one follows.

    Raises:
        ShareError: the share does not exist or is not writable.
    """
    with _as_share_error(share):
        return _files(share).head()


def commit(
    store: Path,
    target: RemoteStore,
    checksums: Checksums,
    names: Collection[str],
    entry: Entry,
    parent: str,
    workers: int,
    on_bytes: Progress | None,
) -> None:
    """Write files of a store, its entry, the index of the catalogue and the card.

    Files in the store's place that do not belong to it are deleted. If all is there, no commit is
    made.

    Args:
        store: the store on this machine.
        target: the store on the share.
        checksums: of the store.
        names: paths inside the store to write, also `CHECKSUMS`.
        entry: of the store.
        parent: the last commit when the share was first read, see :func:`head`.
        workers: files read at once.
        on_bytes: called with the progress.

    Raises:
        ValueError: a file on this machine is damaged.
        ShareError: the share is not writable, or another commit was made in between.
    """
    from cache.share.hub import blob_id

    share = target.share
    ours = [name for name in names if name != CHECKSUMS]
    total = sum(checksums.files[name].size for name in ours)
    in_threads(lambda n: len(read_local(store, checksums, n)), ours, workers, total, None)
    files: dict[str, Path | bytes] = {f"{target.path}/{name}": store / name for name in ours}
    if CHECKSUMS in names:
        files[f"{target.path}/{CHECKSUMS}"] = checksums.raw
    about, entries = catalog.changes(share, entry, blob_id)
    card = make_card(str(share), entries, _present_card(share))
    if card is not None:
        about[CARD] = card
    extra = share.sizes(target.path).keys() - checksums.files.keys() - {CHECKSUMS}
    if not files and not about and not extra:
        return
    paths = {f"{share.path}/{path}": data for path, data in (files | about).items()}
    deleted = [f"{share.path}/{target.path}/{name}" for name in sorted(extra)]
    with _as_share_error(share):
        for sent in _files(share).commit(paths, deleted, f"Push {target.path}", parent):
            if on_bytes is not None:
                on_bytes(min(sent, total), total)
    lost = find_problems(target, checksums, check=False)
    if lost:  # for instance excluded by a .gitignore of the repository
        raise ShareError(f"{target}: {min(lost)} is incomplete on the share; push again")


def _present_card(share: Location) -> bytes | None:
    try:
        return share.read(CARD)
    except FileNotFoundError:
        return None


def _files(share: Location) -> HubFiles:
    files: HubFiles = file_system(share.scheme, share.host)
    return files


@contextmanager
def _as_share_error(share: Location) -> Iterator[None]:
    try:
        yield
    except WebError as error:
        raise ShareError(f"{share}: {redacted(str(error))}") from None
