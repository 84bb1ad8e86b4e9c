"""Find and read the files of a release, however it was unpacked and encoded."""

import re
from pathlib import Path
from typing import Any

from manifests.unpickle import load_pickle

UNREAD = re.compile("[\x80-\x9f\udc80-\udcff]")
"""Bytes that became no character: of Latin-1 taken literally, or as Python keeps them (PEP 383)."""


def find_file(source: Path, name: str, obtain: str) -> Path:
    """The file called `name`, in `source` or the least deep below.

    Raises:
        ValueError: it is nowhere; tells how to obtain it.
    """
    found = [path for path in source.rglob(name) if path.is_file()]
    if not found:
        raise ValueError(
            f"{source / name}: no such file, nor in a folder below; to obtain it: {obtain}"
        )
    return min(found, key=lambda path: (len(path.parts), path))


def find_folder(source: Path, name: str) -> str:
    """Path below `source` of the folder called `name`; where it belongs if it is not there."""
    found = [path for path in source.rglob(name) if path.is_dir() and "__MACOSX" not in path.parts]
    if not found:
        return name
    return min(found, key=lambda path: (len(path.parts), path)).relative_to(source).as_posix()


def read_text(path: Path) -> str:
    """A text file, whatever of UTF-8 and Windows-1252 its lines were written in, even both."""
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    return "\n".join(map(repaired, text.split("\n")))


def read_pickle(path: Path) -> Any:
    """Load a pickled table as data, by `manifests.unpickle`.

    Raises:
        ValueError: the pickle references anything but data, or is damaged.
    """
    try:
        return load_pickle(path)
    except ValueError as error:
        raise ValueError(f"{error}. Download it again from its authors") from error


def repaired(text: str) -> str:
    r"""The text, of a Western language, without the traces of a wrong encoding.

    UTF-8 that was taken for Windows-1252 (``â€™``) is read again, and bytes of Windows-1252 that
    were taken for Latin-1 (``\x92``) become its characters (’).
    """
    if text.isascii():
        return text
    try:
        again = b"".join(map(_byte, text)).decode("utf-8")
        again.encode("cp1252")  # or it made Chinese of é––
        return again
    except UnicodeError:
        return UNREAD.sub(lambda found: _byte(found[0]).decode("cp1252", errors="replace"), text)


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks too, as one blank."""
    return " ".join(text.split())


def _byte(character: str) -> bytes:
    """What the character was before it was read as Windows-1252, or not read at all."""
    if UNREAD.match(character):
        return bytes([ord(character) & 0xFF])
    return character.encode("cp1252")
