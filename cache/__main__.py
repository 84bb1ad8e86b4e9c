"""``python -m cache``: inspect, verify, share and convert feature stores."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cache import source_commands
from cache.command_line import check_exists, progress_bar
from cache.convert import commands as convert_commands
from cache.share import commands as share_commands
from manifests.command_line import add_command
from manifests.printing import preview, say

if TYPE_CHECKING:
    from cache.reader import FeatureStore
    from manifests.command_line import SubParsers

DESCRIPTION = """\
Inspect, verify, share and convert published feature stores.

A feature store is a folder NAME.zarr with the features of one dataset by one
encoder. Stores are kept in stores/DATASET/ and can be shared through a folder,
a bucket, SSH or a web server.
"""
EPILOG = """\
`%(prog)s COMMAND --help` lists the options of a command.

examples:
  %(prog)s info stores/meld/embedded-2fps-0123456789ab.zarr
  %(prog)s pull /nfs/lab/features/0123456789ab
"""


def main(arguments: list[str] | None = None, prog: str = "python -m cache") -> int:
    """Run a command; returns the exit status.

    0 success, 1 an error or a store with faults, 2 bad usage, 130 stopped by Ctrl-C, 141 standard
    output was closed.
    """
    options = build_parser(prog).parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has closed the pipe: nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, RecursionError, OverflowError, MemoryError) as error:
        say(f"error: {str(error) or type(error).__name__}", error=True)
        return 1
    except KeyboardInterrupt:
        say("interrupted; run the same command again", error=True)
        return 130


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_commands(commands)
    share_commands.add_commands(commands)
    source_commands.add_commands(commands)
    convert_commands.add_commands(commands)
    return parser


def _add_commands(commands: SubParsers) -> None:
    info = add_command(
        commands,
        "info",
        _info,
        "show what a store contains and how it was made",
        [
            "stores/meld/embedded-2fps-0123456789ab.zarr",
            "s3://lab/features/meld/embedded-2fps-0123456789ab.zarr",
        ],
        "Show what a store contains and how it was made. For a store at a URL, all files "
        "except the features are downloaded.",
    )
    info.add_argument("store", help="a published store, NAME.zarr, by path or URL")

    check = add_command(
        commands,
        "verify",
        _verify,
        "compare every file of a store with its published SHA-256",
        [
            "stores/meld/NAME.zarr --repair /nfs/lab/features",
            "s3://lab/features/0123456789ab --repair stores/meld/NAME.zarr",
        ],
        "Compare every file of a store, on this machine or on a share, with its published SHA-256. "
        "A store on a share is read once, and not kept.",
        status=("Exit status: 0 every file is as published, 1 there are faults."),
    )
    check.add_argument(
        "store",
        help="a published store on this machine or on a share: NAME.zarr or LOCATION/DIGEST",
    )
    check.add_argument(
        "--repair",
        metavar="FROM",
        help="replace faulty files by those of another copy (a folder or URL: the store, or the "
        "share that contains it), and delete files that do not belong to the store",
    )

    compare = add_command(
        commands,
        "diff",
        _diff,
        "compare two stores: settings, utterances, statuses, values",
        [
            "stores/meld/NAME.zarr other/meld/NAME.zarr",
            "stores/meld/NAME.zarr /nfs/lab/features/meld/NAME.zarr",
        ],
        "Compare two stores: settings, utterances, statuses, values. The stores may have "
        "different recipes.",
        status=("Exit status: 0 nothing differs, 1 something differs, or an error."),
    )
    compare.add_argument(
        "a", metavar="STORE_A", help="a published store; one at a URL is copied to the mirror first"
    )
    compare.add_argument("b", metavar="STORE_B", help="the store to compare it with")


def _info(options: argparse.Namespace) -> int:
    check_exists(options.store)
    from cache.share.remote_store import locate

    source = locate(options.store)
    if isinstance(source, Path):
        from cache.reader import FeatureStore

        return _describe(FeatureStore.open(source), options.store)
    checksums = source.published_checksums()
    from cache.share.transfer import open_remote_metadata

    with open_remote_metadata(source, checksums) as store:
        return _describe(store, options.store)


def _describe(store: FeatureStore, title: str) -> int:
    from rich.table import Table

    from manifests.console import Console

    console = Console()
    table = Table("", "", title=title, show_header=False)
    for name, value in store.attributes.items():
        if isinstance(value, dict):
            value = "\n".join(f"{key} = {item}" for key, item in value.items())
        table.add_row(name, str(value))
    console.print(table)
    failures = [
        f"{id_}: {status}: {error}"
        for (id_, status), error in zip(store.status.items(), store.column("error"), strict=True)
        if status != "ok"
    ]
    if failures:
        console.print(preview(failures, 20, "\n"))
    return 0


def _verify(options: argparse.Namespace) -> int:
    check_exists(options.store)
    from cache.share.remote_store import locate
    from cache.share.repair import repair
    from cache.share.verify import verify

    store = locate(options.store)
    if options.repair:
        with progress_bar("repair", in_bytes=True) as on_bytes:
            repaired = repair(store, options.repair, on_bytes)
        for fault in repaired:
            action = {"extra": "removed", "link": "unlinked"}.get(fault.problem, "fetched")
            say(f"{fault.file}: was {fault.problem}, {action}")
    with progress_bar("verify", in_bytes=True) as on_bytes:
        faults = verify(store, on_bytes)
    for fault in faults:
        ids = f" (utterances {preview(fault.utterances, 10)})" if fault.utterances else ""
        say(f"{fault.file}: {fault.problem}{ids}")
    say(f"{store}: {f'{len(faults)} faults' if faults else 'every file is as published'}")
    if faults and not options.repair:
        command = f"python -m cache verify {shlex.quote(options.store)} --repair COPY"
        say(f"An intact COPY of the store (a path, URL or share) repairs it: {command}")
    return 1 if faults else 0


def _diff(options: argparse.Namespace) -> int:
    for store in (options.a, options.b):
        check_exists(store)
    from cache.diff import diff
    from cache.open import open_store

    a, b = open_store(options.a), open_store(options.b)
    with progress_bar("diff", in_bytes=True) as on_bytes:
        difference = diff(a, b, on_bytes=on_bytes)
    for key, (ours, theirs) in difference.recipe.items():
        say(f"recipe: {key}: {ours} | {theirs}")
    for where, only in ((options.a, difference.only_a), (options.b, difference.only_b)):
        if only:
            say(f"only in {where}: {len(only)} utterances: {preview(only)}")
    if difference.status:
        statuses = [f"{i} {ours} | {theirs}" for i, (ours, theirs) in difference.status.items()]
        say(f"status: {len(statuses)} utterances: {preview(statuses)}")
    for modality, (ours, theirs) in difference.widths.items():
        say(f"{modality}: {ours} | {theirs} columns, not comparable")
    for modality, distance in difference.values.items():
        lengths = f", {distance.lengths} of different lengths" if distance.lengths else ""
        farthest = f" ({distance.farthest})" if distance.farthest else ""
        say(
            f"{modality}: {distance.utterances} utterances, {distance.rows} rows compared{lengths};"
            f" difference max {distance.largest:.3g}{farthest}, mean {distance.mean:.3g}; "
            f"lowest cosine {distance.cosine:.6f}"
        )
    say("nothing differs" if difference.equal else "the stores differ")
    return 0 if difference.equal else 1


if __name__ == "__main__":
    sys.exit(main())
