"""Tamper with stores: change files and write matching checksums."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def unseal(store: Path) -> Path:
    """Every file may be written again."""
    for path in store.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    return store


def make_endless(path: Path, how: str) -> None:
    """Put something without an end that one reaches where a file is.

    Args:
        path: the file.
        how: ``endless`` (a device), ``sparse`` (a terabyte of nothing) or ``pipe``.
    """
    path.unlink()
    if how == "endless":
        path.symlink_to("/dev/zero")
    elif how == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        os.mkfifo(path)


def reseal(store: Path) -> None:
    """Write ``checksums.json`` for the files as they are."""
    files = {
        path.relative_to(store).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "checksums.json"
    }
    listing = {"algorithm": "sha256", "files": files}
    (store / "checksums.json").write_text(json.dumps(listing))


def change_root(store: Path, change: Callable[[Any], Any]) -> None:
    """Change what ``zarr.json`` says."""
    path = store / "zarr.json"
    root = json.loads(path.read_text())
    change(root)
    path.write_text(json.dumps(root))
    reseal(store)
