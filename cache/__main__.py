"""``python -m cache``: look at published feature stores, check and share them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cache.convert import commands as convert
from cache.reader import FeatureStore
from cache.share.commands import add_commands, opened, plain
from cache.share.verify import repair, verify

console = Console()


def main(arguments: list[str] | None = None, prog: str = "python -m cache") -> int:
    """Run a command; returns the exit status: 0 good, 1 faults or an unusable store, 2 usage."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Inspect, verify, share and convert published feature stores."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="what a store holds and what it was made from")
    info.add_argument("store", help="a published store, <name>.zarr, here or by URL")
    info.set_defaults(run=_info)
    check = commands.add_parser("verify", help="compare every file with its published SHA-256")
    check.add_argument("store", type=Path, help="a published store, <name>.zarr")
    check.add_argument(
        "--repair",
        metavar="FROM",
        help="another copy, folder or URL: fetch faulty files from it and remove those that do not "
        "belong there",
    )
    check.set_defaults(run=_verify)
    add_commands(commands)
    convert.add_commands(commands)
    options = parser.parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough; nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, RecursionError, OverflowError, MemoryError) as error:
        print(f"error: {plain(str(error)) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130


def _info(options: argparse.Namespace) -> int:
    with opened(options.store) as cache:
        return _describe(cache, options.store)


def _describe(cache: FeatureStore, title: str) -> int:
    table = Table("", "", title=escape(title), show_header=False)
    for name, value in cache.attributes.items():
        if isinstance(value, dict):
            value = "\n".join(f"{k} = {v}" for k, v in value.items())
        table.add_row(escape(plain(name)), escape(plain(str(value))))
    console.print(table)
    failed = [
        (i, s, e)
        for (i, s), e in zip(cache.status.items(), cache.column("error"), strict=True)
        if s != "ok"
    ]
    for i, status, error in failed[:20]:
        console.print(plain(f"{i}: {status}: {error}"), markup=False)
    if len(failed) > 20:
        console.print(f"... and {len(failed) - 20} more")
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.repair:
        for fault in repair(options.store, options.repair):
            what = {"extra": "removed", "link": "unlinked"}.get(fault.problem, "fetched")
            print(plain(f"{fault.file}: was {fault.problem}, {what}"))
    faults = verify(options.store)
    for fault in faults:
        print(plain(f"{fault.file}: {fault.problem}{_named(fault.utterances)}"))
    print(f"{options.store}: {f'{len(faults)} faults' if faults else 'every file is as published'}")
    return 1 if faults else 0


def _named(utterances: tuple[str, ...]) -> str:
    if not utterances:
        return ""
    more = f" and {len(utterances) - 10} more" if len(utterances) > 10 else ""
    return f" (utterances {', '.join(utterances[:10])}{more})"


if __name__ == "__main__":
    sys.exit(main())
