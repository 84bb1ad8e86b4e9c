"""Find and read the files of a release, however it was unpacked and encoded."""

import re
from pathlib import Path
from typing import Any

from manifests.budget import Budget, read_file
from manifests.unpickle import load_pickle

_COPIES = 9  # bytes per byte: the text and its repaired copy may take four each
UNREAD = re.compile("[\x80-\x9f\udc80-\udcff]")
"""Bytes that were not decoded: control characters of Latin-1, or surrogate escapes (PEP 383)."""


def find_file(source: Path, name: str, obtain: str) -> Path:
    """Find the file called `name` in `source` or below; of several the one that is least deep.

    Raises:
        ValueError: no such file; the message says how to obtain it.
    """
    found = [path for path in source.rglob(name) if path.is_file()]
    if not found:
        raise ValueError(
            f"{source / name}: no such file, nor in a folder below; to obtain it: {obtain}"
        )
    return min(found, key=lambda path: (len(path.parts), path))


def find_folder(source: Path, name: str) -> str:
    """Find the folder called `name`; return its path relative to `source`, `name` if missing."""
    found = [path for path in source.rglob(name) if path.is_dir() and "__MACOSX" not in path.parts]
    if not found:
        return name
    return min(found, key=lambda path: (len(path.parts), path)).relative_to(source).as_posix()


def read_text(path: Path) -> str:
    """Read a text file whose lines are UTF-8 or Windows-1252, even both in one file."""
    content = read_file(path, Budget.of(path), copies=_COPIES)
    text = content.decode("utf-8-sig", errors="surrogateescape")
    return "\n".join(map(repaired, text.split("\n")))


def read_pickle(path: Path) -> Any:
    """Load a pickled table as data, by `manifests.unpickle`.

    Raises:
        ValueError: the pickle references something other than data, or is damaged.
    """
    try:
        return load_pickle(path)
    except ValueError as error:
        raise ValueError(f"{error}. Download it again from its authors") from error


def repaired(text: str) -> str:
    r"""Repair a text of a Western language that was read in a wrong encoding.

    UTF-8 that was read as Windows-1252 (``â€™``) is decoded again, and bytes of Windows-1252 that
    were read as Latin-1 (``\x92``) become its characters (’).
    """
    if text.isascii():
        return text
    try:
        again = b"".join(map(_byte, text)).decode("utf-8")
        again.encode("cp1252")  # reject a decoding that is not Western: é–– would become Chinese
        return again
    except UnicodeError:
        return UNREAD.sub(lambda found: _byte(found[0]).decode("cp1252", errors="replace"), text)


def one_line(text: str) -> str:
    """Replace every run of white space, line breaks included, by one blank."""
    return " ".join(text.split())


def _byte(character: str) -> bytes:
    """Return the byte that was read as this Windows-1252 character, or was not decoded."""
    if UNREAD.match(character):
        return bytes([ord(character) & 0xFF])
    return character.encode("cp1252")
