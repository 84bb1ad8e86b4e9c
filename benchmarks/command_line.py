"""The options that every benchmark has."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path


def benchmark_parser(
    name: str, purpose: str | None, sizes: Iterable[str], size_help: str, runs: int = 5
) -> argparse.ArgumentParser:
    """Return a parser with ``--size``, ``--runs`` and ``--out``.

    Args:
        name: module of the benchmark in this package.
        purpose: what it measures, printed first.
        sizes: choices of ``--size``; one is called small.
        size_help: what each size stands for.
        runs: default of ``--runs``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=purpose,
        epilog="examples:\n  %(prog)s --size tiny\n  %(prog)s --size full --out results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size", choices=tuple(sizes), default="small", help=f"{size_help} (default: small)"
    )
    parser.add_argument(
        "--runs", type=int, default=runs, help="repetitions, in turns (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/out"),
        help="folder of the results (default: %(default)s)",
    )
    return parser
