"""Parts that the commands of ``python -m cache`` share: parsers, notes, progress bars.

Nothing large is imported at the top, so that ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.store.temp_paths import TempPath
from manifests.printing import escape_controls

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(
    commands: SubParsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    purpose: str,
    examples: str,
    details: str = "",
) -> argparse.ArgumentParser:
    """Add a sub-command whose ``--help`` ends with examples.

    Args:
        commands: the sub-parsers of the command line.
        name: the command's name.
        run: executes the command and returns its exit status.
        purpose: what it does, in one line without a full stop.
        examples: one per line; ``%(prog)s`` stands for the program and the command.
        details: further lines of the description, printed as they are.
    """
    parser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.\n\n{details}",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


class RenamedOption(argparse.Action):
    """An option's former name: still accepted, with a note; ``dest`` is the present name."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        """Print the note and set the option of the present name."""
        name = self.dest.replace("_", "-")
        print_note(f"{option} is now called --{name}; the next release drops the old name")
        setattr(namespace, self.dest, values)


def print_note(text: str) -> None:
    """Print a remark to standard error."""
    print(f"note: {escape_controls(text)}", file=sys.stderr)


def check_exists(path: str | Path) -> None:
    """Check that a store's path exists, before anything large is imported to read it.

    Raises:
        ValueError: neither the path exists nor an earlier store that its replacement moved away.
    """
    path = Path(path)
    if not path.exists() and not TempPath.REPLACED.next_to(path).exists():
        raise ValueError(f"{path} does not exist; `python -m cache pull` fetches a shared store")


@contextmanager
def progress_bar(what: str, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error if it is a terminal.

    Yields:
        A function to be called with (done, total).
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    count = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (what, BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
