"""``python -m cache``: look at published feature stores and check them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cache.reader import FeatureCache
from cache.verify import verify

console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 good, 1 faults or an unusable store, 2 usage."""
    parser = argparse.ArgumentParser(prog="python -m cache", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="what a store holds and what it was made from")
    info.add_argument("store", type=Path, help="a published store, <name>.zarr")
    info.set_defaults(run=_info)
    check = commands.add_parser("verify", help="compare every file with its published SHA-256")
    check.add_argument("store", type=Path, help="a published store, <name>.zarr")
    check.set_defaults(run=_verify)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _info(options: argparse.Namespace) -> int:
    cache = FeatureCache.open(options.store)
    table = Table("", "", title=str(options.store), show_header=False)
    for name, value in cache.attributes.items():
        if isinstance(value, dict):
            value = "\n".join(f"{k} = {v}" for k, v in value.items())
        table.add_row(name, str(value))
    console.print(table)
    failed = [
        (i, s, e)
        for (i, s), e in zip(cache.status.items(), cache.column("error"), strict=True)
        if s != "ok"
    ]
    for i, status, error in failed[:20]:
        console.print(f"{i}: {status}: {error}", markup=False)
    if len(failed) > 20:
        console.print(f"... and {len(failed) - 20} more")
    return 0


def _verify(options: argparse.Namespace) -> int:
    faults = verify(options.store)
    for fault in faults:
        print(f"{fault.file}: {fault.problem}{_named(fault.utterances)}")
    print(f"{options.store}: {f'{len(faults)} faults' if faults else 'every file is as published'}")
    return 1 if faults else 0


def _named(utterances: tuple[str, ...]) -> str:
    if not utterances:
        return ""
    more = f" and {len(utterances) - 10} more" if len(utterances) > 10 else ""
    return f" (utterances {', '.join(utterances[:10])}{more})"


if __name__ == "__main__":
    sys.exit(main())
