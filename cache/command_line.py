"""Parts that the commands of ``python -m cache`` share: checks of paths, progress bars.

Nothing large is imported at the top, so that ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.names import is_digest, is_url
from cache.store.temp_paths import TempPath


def check_exists(store: str | Path) -> None:
    """Check that a store's path exists, before anything large is imported to read it.

    A store at a URL is not checked, nor one named ``LOCATION/DIGEST`` whose location exists.

    Raises:
        ValueError: neither the path exists nor an earlier store that its replacement moved away.
    """
    path = Path(store)
    if is_url(store) or path.exists() or TempPath.REPLACED.next_to(path).exists():
        return
    if is_digest(path.name) and path.parent.is_dir():
        return  # LOCATION/DIGEST
    raise ValueError(f"{path} does not exist; `python -m cache pull` fetches a shared store")


@contextmanager
def progress_bar(what: str, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error if it is a terminal.

    Yields:
        A function to be called with (done, total).
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
    )

    from manifests.console import Console

    console = Console(stderr=True)
    count = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (what, BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
