"""Make and recognise the names of a store's temporary files and folders."""

from __future__ import annotations

import platform
import re
import uuid
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from cache.store.recipe import STORE_NAME


class TempPath(Enum):
    """The kinds of paths that a running or killed command may leave next to a store.

    The value is the form of its name: ``{store}`` is the store's name, ``{random}`` 32 hex digits.
    """

    PARTS = "{store}.parts"
    """An extraction's partial results, its staging folder and lock."""
    RETRY_PARTS = "{store}.retry.parts"
    """The same, for the failed utterances of a published store."""
    REPLACED = ".{store}.aside"
    """The old store while it is being replaced, see :func:`cache.store.publish.replace`."""
    PARTIAL = "{store}.partial"
    """An unfinished pull."""
    UNLOCKED_PARTIAL = ".{store}.{random}.partial"
    """An unfinished pull on a file system without locks."""
    PULL_LOCK = ".{store}.lock"
    """Held by the process that pulls the store."""
    FILE = ".{store}.{random}"
    """One file of the store, not yet complete."""
    DELETED = ".{store}.gone-{random}"
    """A store, or one of the above, that is being deleted."""
    PUSHING = "{store}.pushing"
    """Claims and incomplete files of an unfinished push, on the share."""

    def name_for(self, store: str) -> str:
        """Return the name for the store called ``store``; a new one each time if it is random.

        ``store`` may be the name of one of these paths: the new one belongs to the same store.
        """
        found = recognise(store)
        return str(self.value).format(store=found[1] if found else store, random=uuid.uuid4().hex)

    def next_to(self, store: Path) -> Path:
        """Return the path in the folder of ``store`` with the name of :meth:`name_for`."""
        return store.with_name(self.name_for(store.name))


_PATTERNS = {
    kind: re.compile(
        re.escape(kind.value)
        .replace(re.escape("{store}"), f"({STORE_NAME})")
        .replace(re.escape("{random}"), "[0-9a-f]{32}")
    )
    for kind in TempPath
}


def recognise(name: str) -> tuple[TempPath, str] | None:
    """Return the kind of a temporary path and the name of its store; None for any other name."""
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(name):
            return kind, match[1]
    return None


def retry_of(store: Path) -> Path:
    """The path whose `TempPath.PARTS` are the `TempPath.RETRY_PARTS` of ``store``."""
    return store.with_name(f"{store.name}.retry")


def staging_lock(parts: Path) -> Path:
    """The lock file of the processes that assemble a store from a folder of parts."""
    return parts / "assembling.lock"


def new_staging(parts: Path) -> Path:
    """A new path in a folder of parts for a store to be assembled; it names this machine."""
    return parts / f"{_staging_prefix()}{uuid.uuid4().hex}"


def staging_folders(parts: Path) -> Iterator[Path]:
    """The staging folders of all machines."""
    return parts.glob("assembling-*")


def is_staged_here(staging: Path) -> bool:
    """Whether a process of this machine made a staging folder."""
    return staging.name.startswith(_staging_prefix())


def claim_name(content: str) -> str:
    """The file in `TempPath.PUSHING` that says which content (a SHA-256) is being pushed."""
    return f"{content}.claim"


def is_claim(name: str) -> bool:
    """Whether a file in `TempPath.PUSHING` is a claim."""
    return name.endswith(".claim")


def incomplete_file(folder: str) -> str:
    """A new path in a folder of a share for a file that is not complete yet."""
    return f"{folder}/{uuid.uuid4().hex}"


def _staging_prefix() -> str:
    return f"assembling-{platform.node()}-"
