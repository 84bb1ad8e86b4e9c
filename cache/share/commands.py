"""The commands about sharing: push, pull, list, gc, diff."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.table import Table

from cache.diff import diff
from cache.open import is_url, open_store
from cache.reader import FeatureStore
from cache.share import catalog
from cache.share.gc import delete_garbage, find_garbage
from cache.share.location import Location, ShareError
from cache.share.mirror import mirror_folder
from cache.share.peek import open_remote_metadata
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore, resolve, resolve_one

console = Console()

_LOCATION = "a folder (NFS, ...), s3://, gs://, ssh:// or, to read only, http(s)://"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def add_commands(commands: Any) -> None:
    """Register the sub-commands."""
    send = commands.add_parser(
        "push",
        help="copy a published store to a share",
        description="Copy a published store to a share and enter it into its catalogue. Run it "
        "again after an interruption: it goes on. Access is the share's own; a location never "
        "carries a password or key.",
    )
    send.add_argument("store", type=Path, help="a published store, <name>.zarr")
    send.add_argument("location", help=_LOCATION)
    send.add_argument(
        "--take-over",
        action="store_true",
        help="drop what another, unfinished push of the same recipe left there",
    )
    send.add_argument(
        "--replace",
        action="store_true",
        help="replace the store of the same recipe that is there, if yours has all its utterances: "
        "after extract --retry-failed",
    )
    send.set_defaults(run=_push)

    bring = commands.add_parser(
        "pull",
        help="copy a store of a share to this machine",
        description="Copy stores of a share to this machine, every byte checked. Run it again "
        "after an interruption: it goes on.",
    )
    bring.add_argument(
        "source",
        help="LOCATION/DATASET/NAME.zarr, LOCATION/DIGEST (12 digits or more) or LOCATION: "
        + _LOCATION,
    )
    bring.add_argument("--to", type=Path, default=Path("stores"), help="where to (stores)")
    bring.add_argument("--all", action="store_true", help="all stores of LOCATION, not just one")
    bring.set_defaults(run=_pull)

    show = commands.add_parser("list", help="the stores that a share holds")
    show.add_argument("location", help=_LOCATION)
    show.set_defaults(run=_list)

    clean = commands.add_parser(
        "gc",
        help="what may be deleted from the local mirror",
        description="List what may be deleted from the mirror of shared stores: remains of "
        "interrupted pulls and, where asked, stores unused for long or beyond a size. Nothing is "
        "deleted without --yes.",
    )
    clean.add_argument(
        "--mirror", type=Path, help="default: $SEMANTICMAC_CACHE or the user's cache"
    )
    clean.add_argument("--older-than", type=_days, metavar="DAYS", help="stores unused for so long")
    clean.add_argument(
        "--larger-than",
        type=_size,
        metavar="SIZE",
        help="the longest unused stores, until the rest is smaller than this: 500M, 20G, 1T",
    )
    clean.add_argument("--yes", action="store_true", help="delete them")
    clean.set_defaults(run=_gc)

    compare = commands.add_parser(
        "diff",
        help="how far two stores lie apart",
        description="Compare two stores, of one recipe or not: settings, utterances, statuses, "
        "values. Exit status: 0 nothing differs, 1 something does or an error.",
    )
    compare.add_argument("a", metavar="STORE_A", help="a published store; a URL is mirrored first")
    compare.add_argument("b", metavar="STORE_B", help="another one")
    compare.set_defaults(run=_diff)


def plain(text: str) -> str:
    """Text from elsewhere without what a terminal obeys or cannot print."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


@contextmanager
def opened(store: str) -> Iterator[FeatureStore]:
    """A store for looking at: of a URL all files but the features are fetched and checked.

    Raises:
        ValueError: there is no published store.
    """
    if not is_url(store):
        yield FeatureStore.open(store)
        return
    source = resolve_one(store)
    checksums = source.checksums()
    if checksums is None:
        raise ValueError(f"{source}: there is no published store")
    with open_remote_metadata(source, checksums) as cache:
        yield cache


def _push(options: argparse.Namespace) -> int:
    with _Bar("push") as bar:
        target, copied = push(
            options.store,
            options.location,
            take_over=options.take_over,
            replace=options.replace,
            on_bytes=bar.show,
        )
    print(f"{target}: {f'{copied} files copied' if copied else 'was there already'}")
    licence = FeatureStore.open(options.store).attributes.get("licence") or "not stated"
    print(f"licence of the dataset: {licence}")
    print("Features of research-only data stay research-only: who may not have the videos may not")
    print("have them either. Check who can read this share.")
    return 0


def _pull(options: argparse.Namespace) -> int:
    sources: list[RemoteStore] = (
        resolve(options.source) if options.all else [resolve_one(options.source)]
    )
    refused = []
    for source in sources:
        try:
            with _Bar("pull") as bar:
                store, copied = pull(source, options.to, on_bytes=bar.show)
        except ShareError as error:  # of a newer format, or damaged there
            refused.append(str(error))
            continue
        print(f"{store}: {f'{copied} files copied' if copied else 'was there already'}")
    if refused:
        raise ShareError("\n".join(refused))
    return 0


def _list(options: argparse.Namespace) -> int:
    share = Location.parse(options.location)
    found = catalog.entries(share)
    if not found:
        print(f"{share} lists no store")
        return 0
    table = Table(title=escape(str(share)))
    for heading in ("dataset", "encoder", "sampling", "digest", "size"):
        table.add_column(heading, no_wrap=heading == "digest", overflow="fold")
    for heading in ("utterances", "failed"):
        table.add_column(heading, justify="right")
    for heading in ("who", "when", "licence"):
        table.add_column(heading, overflow="fold")
    for entry in found:
        row = (
            entry.dataset,
            entry.encoder,
            ", ".join(f"{key} {value}" for key, value in entry.sampling.items()),
            entry.digest[:12],
            _bytes(entry.bytes),
            str(entry.utterances),
            str(entry.failures),
            entry.who,
            entry.when,
            entry.licence,
        )
        table.add_row(*(escape(plain(cell)) for cell in row))
    # Where nobody looks at a terminal, lines may be long.
    (console if console.is_terminal else Console(width=160)).print(table)
    return 0


def _gc(options: argparse.Namespace) -> int:
    folder = options.mirror or mirror_folder()
    if options.mirror is not None and not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    found = find_garbage(folder, options.older_than, options.larger_than)
    for item in found:
        print(f"{item.path}: {_bytes(item.bytes)}, {item.reason}")
        if options.yes:
            try:
                delete_garbage(item)
            except OSError as error:
                raise ValueError(f"{item.path} cannot be deleted: {error}") from error
    total = _bytes(sum(item.bytes for item in found))
    if not found:
        print(f"{folder}: nothing to delete")
    elif options.yes:
        print(f"deleted {total}")
    else:
        print(f"{total} may go; delete with --yes")
    return 0


def _diff(options: argparse.Namespace) -> int:
    a, b = open_store(options.a), open_store(options.b)
    with _Bar("diff") as bar:
        difference = diff(a, b, on_bytes=bar.show)
    for key, (ours, theirs) in difference.recipe.items():
        print(f"recipe: {key}: {ours} | {theirs}")
    for where, only in ((options.a, difference.only_a), (options.b, difference.only_b)):
        if only:
            print(f"only in {where}: {len(only)} utterances: {_some(only)}")
    if difference.status:
        told = [f"{i} {ours} | {theirs}" for i, (ours, theirs) in difference.status.items()]
        print(f"status: {len(told)} utterances: {_some(told)}")
    for modality, (ours, theirs) in difference.widths.items():
        print(f"{modality}: {ours} | {theirs} columns, not comparable")
    for modality, distance in difference.values.items():
        lengths = f", {distance.lengths} of other lengths" if distance.lengths else ""
        farthest = f" ({distance.farthest})" if distance.farthest else ""
        print(
            f"{modality}: {distance.utterances} utterances, {distance.rows} rows compared{lengths};"
            f" difference max {distance.largest:.3g}{farthest}, mean {distance.mean:.3g}; "
            f"lowest cosine {distance.cosine:.6f}"
        )
    print("nothing differs" if difference.equal else "the stores differ")
    return 0 if difference.equal else 1


class _Bar:
    """A bar of bytes on a terminal, nothing elsewhere."""

    def __init__(self, what: str) -> None:
        columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(what, *columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, in_all: int) -> None:
        """So many bytes are through."""
        self._bar.update(self._task, completed=done, total=in_all)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 <= days < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return days


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.upper(), re.ASCII)
    size = float(match[1]) * _UNITS[match[2]] if match else math.inf
    if size == math.inf:
        raise argparse.ArgumentTypeError(f"{text!r:.50} is no size; write 500M, 20G or 1T")
    return int(size)


def _bytes(size: int) -> str:
    for unit in ("T", "G", "M", "K"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.1f} {unit}B"
    return f"{size} B"


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
