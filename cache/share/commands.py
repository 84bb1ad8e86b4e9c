"""The commands that share stores: push, pull, list, gc."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from cache.command_line import check_exists, progress_bar
from manifests.command_line import add_command, add_stores_option
from manifests.printing import format_bytes, parse_bytes, say

if TYPE_CHECKING:
    from rich.table import Table

    from cache.share.remote_store import RemoteStore
    from manifests.command_line import SubParsers

_LOCATION = (
    "a folder (NFS, ...), s3://, gs://, ssh://, hf://datasets/OWNER/NAME or, read-only, http(s)://"
)


def add_commands(commands: SubParsers) -> None:
    """Register ``push``, ``pull``, ``list`` and ``gc``."""
    push = add_command(
        commands,
        "push",
        _push,
        "copy a published store to a share",
        ["stores/meld/NAME.zarr /nfs/lab/features", "stores/meld/NAME.zarr s3://lab-features/2024"],
        "Copy a published store to a share. The store is added to the share's catalogue. Run "
        "an interrupted push again to resume it. If the share has the store already, files that "
        "are missing or damaged there are sent again. Access rights are the share's own; a "
        "location must not contain a password or key.",
    )
    push.add_argument("store", help="a published store on this machine: NAME.zarr or FOLDER/DIGEST")
    push.add_argument("location", help=f"the share: {_LOCATION}")
    push.add_argument(
        "--take-over",
        action="store_true",
        help="delete the files of another, unfinished push of the same recipe",
    )
    push.add_argument(
        "--replace",
        action="store_true",
        help="replace the shared store with the same recipe, if yours has features of all its "
        "utterances: after extract --retry-failed",
    )
    push.add_argument(
        "--check",
        action="store_true",
        help="read the files of a store that the share has already, and mend those whose SHA-256 "
        "is wrong; without it only missing files and wrong sizes are found",
    )

    pull = add_command(
        commands,
        "pull",
        _pull,
        "copy a shared store to this machine",
        ["/nfs/lab/features/0123456789ab", "s3://lab-features/2024 --all --stores /data/stores"],
        "Copy a shared store to this machine. Every byte is checked. Run an interrupted pull "
        "again to resume it.",
    )
    pull.add_argument(
        "source",
        help="LOCATION/DATASET/NAME.zarr, LOCATION/DIGEST (12 digits or more) or LOCATION, which "
        f"is {_LOCATION}",
    )
    add_stores_option(pull, former="--to")
    pull.add_argument(
        "--all",
        action="store_true",
        help="all stores of LOCATION, not only one; a store that cannot be pulled stops no other",
    )

    list_ = add_command(
        commands,
        "list",
        _list,
        "list the stores of a share",
        ["/nfs/lab/features", "https://features.example.org"],
    )
    list_.add_argument("location", help=f"the share: {_LOCATION}")

    gc = add_command(
        commands,
        "gc",
        _gc,
        "list or delete unused stores and temporary files in the local mirror",
        ["--older-than 90 --larger-than 200G", "--older-than 90 --larger-than 200G --yes"],
        "List or delete unused stores and temporary files in the local mirror. The mirror "
        "contains copies of the shared stores that were opened by URL. The command lists "
        "temporary files of interrupted pulls and, on request, stores that were not used for "
        "a long time or exceed a total size. It deletes them only with --yes.",
    )
    gc.add_argument(
        "--mirror",
        type=Path,
        metavar="FOLDER",
        help="the mirror, or a folder of stores (default: $SEMANTICMAC_CACHE or the user's cache "
        "folder)",
    )
    gc.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="stores that were not used for DAYS days"
    )
    gc.add_argument(
        "--larger-than",
        type=_size,
        metavar="SIZE",
        help="the stores unused for longest, until the others are smaller than SIZE: 500M, 20G, 1T",
    )
    gc.add_argument(
        "--superseded",
        action="store_true",
        help="the stores whose features are all in a newer one, after the dataset has grown",
    )
    gc.add_argument("--yes", action="store_true", help="delete them")


def _push(options: argparse.Namespace) -> int:
    check_exists(options.store)
    from cache.reader import FeatureStore
    from cache.share.push import push
    from cache.share.remote_store import locate

    store = locate(options.store)
    if not isinstance(store, Path):
        raise ValueError(f"{store} is not on this machine; pull it, then push the copy")
    with progress_bar("push", in_bytes=True) as on_bytes:
        target, copied, mended = push(
            store,
            options.location,
            take_over=options.take_over,
            replace=options.replace,
            check=options.check,
            on_bytes=on_bytes,
        )
    done = f"{mended} files mended" if mended else "already there"
    say(f"{target}: {f'{copied} files copied' if copied else done}")
    licence = FeatureStore.open(store).attributes.get("licence") or "not stated"
    say(f"licence of the dataset: {licence}")
    say("Features of research-only data stay research-only. Do not share them with anyone who may")
    say("not access the videos. Check the permissions of this share.")
    return 0


def _pull(options: argparse.Namespace) -> int:
    from cache.share.remote_store import resolve, resolve_one

    def pull_one(source: RemoteStore) -> tuple[Path, str]:
        from cache.share.pull import pull

        with progress_bar("pull", in_bytes=True) as on_bytes:
            store, copied = pull(source, options.stores, on_bytes=on_bytes)
        return store, f"{copied} files copied" if copied else "already there"

    if not options.all:
        say("{}: {}".format(*pull_one(resolve_one(options.source))))
        return 0
    results = []
    for source in resolve(options.source):
        try:
            results.append((source.path, pull_one(source)[1]))
        except (ValueError, OSError) as error:  # damaged, newer, or different from the local store
            say(f"error: {error}", error=True)
            results.append((source.path, "not pulled, see the error above"))
    from rich.table import Table

    table = Table("store", "result", title=options.source)
    for row in results:
        table.add_row(*row)
    _print_table(table)
    return int(any(result.startswith("not pulled") for _, result in results))


def _list(options: argparse.Namespace) -> int:
    from cache.share import catalog
    from cache.share.location import Location

    share = Location.parse(options.location)
    entries = catalog.entries(share)
    if not entries:
        say(f"No stores found in {share}.")
        return 0
    from rich.table import Table

    table = Table(title=str(share))
    for heading in ("dataset", "encoder", "sampling", "digest", "size"):
        table.add_column(heading, no_wrap=heading == "digest", overflow="fold")
    for heading in ("utterances", "failed"):
        table.add_column(heading, justify="right")
    for heading in ("who", "when", "licence"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        row = (
            entry.dataset,
            entry.encoder,
            ", ".join(f"{key} {value}" for key, value in entry.sampling.items()),
            entry.digest[:12],
            format_bytes(entry.bytes),
            str(entry.utterances),
            str(entry.failures),
            entry.who,
            entry.when,
            entry.licence,
        )
        table.add_row(*row)
    _print_table(table)
    return 0


def _print_table(table: Table) -> None:
    from manifests.console import Console

    console = Console()
    # A file or pipe may have longer lines than a terminal.
    (console if console.is_terminal else Console(width=160)).print(table)


def _gc(options: argparse.Namespace) -> int:
    if options.mirror is not None and not options.mirror.is_dir():
        raise ValueError(f"{options.mirror}: no such folder")
    from cache.share.gc import delete_garbage, find_garbage
    from cache.share.mirror import mirror_folder

    folder = options.mirror or mirror_folder()
    found = find_garbage(folder, options.older_than, options.larger_than, options.superseded)
    for item in found:
        say(f"{item.path}: {format_bytes(item.bytes)}, {item.reason}")
        if options.yes:
            try:
                delete_garbage(item)
            except OSError as error:
                raise ValueError(f"{item.path} cannot be deleted: {error}") from error
    total = format_bytes(sum(item.bytes for item in found))
    if not found:
        say(f"{folder}: nothing to delete")
    elif options.yes:
        say(f"deleted {total}")
    else:
        say(f"{total} can be deleted; run again with --yes")
    return 0


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 <= days < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return days


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
