"""Count the videos of a manifest on this disk and their length, without a decoder."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from manifests.manifest import Manifest


@dataclass(frozen=True)
class Media:
    """The videos of a manifest that exist below a data root.

    Attributes:
        missing: the missing videos, sorted, each once.
        videos: number of different videos in the manifest.
        seconds: total length of all utterances of known length.
        unknown: number of utterances of unknown length: without times, and without a video whose
            header states its length.
    """

    missing: list[str]
    videos: int
    seconds: float
    unknown: int


def survey(manifest: Manifest, root: Path) -> Media:
    """Look below `root` for the videos of `manifest`.

    A length is taken from the utterance's times, or for a whole file from the file's header.
    """
    videos = sorted(set(manifest.table["video"].dropna()))
    missing = [video for video in videos if not (root / video).is_file()]
    headers: dict[str, float | None] = dict.fromkeys(missing)
    lengths: list[float | None] = []
    for row in manifest.table[["video", "start", "end"]].to_dict("records"):
        video, start, end = row["video"], row["start"], row["end"]
        if pd.isna(start) and video not in headers and pd.notna(video):
            headers[video] = mp4_seconds(root / video)
        lengths.append(headers.get(video) if pd.isna(start) else end - start)
    known = [length for length in lengths if length is not None]
    return Media(missing, len(videos), sum(known), len(manifest.table) - len(known))


def mp4_seconds(path: Path) -> float | None:
    """Return the length of an MP4 (or MOV) file in seconds from its movie header; None: no header.

    Only a few hundred bytes are read, so tens of thousands of clips take seconds.
    """
    with path.open("rb") as file:
        for moov, moov_end in _boxes(file, b"moov", path.stat().st_size):
            file.seek(moov)
            for header, _ in _boxes(file, b"mvhd", moov_end):
                file.seek(header)
                # Version 1 has 64-bit times. The scale follows version, flags and two dates.
                layout = ">20xIQ" if file.read(1) == b"\1" else ">12xII"
                file.seek(header)
                body = file.read(struct.calcsize(layout))
                if len(body) < struct.calcsize(layout):
                    return None
                scale, duration = struct.unpack(layout, body)
                return duration / scale if scale and duration else None
    return None


def _boxes(file: BinaryIO, kind: bytes, end: int) -> Iterator[tuple[int, int]]:
    """Yield where the content of each box of one `kind` begins and ends, from here to `end`."""
    at = file.tell()
    while at + 8 <= end:
        file.seek(at)
        size, name = struct.unpack(">I4s", file.read(8))
        begins = at + 8
        if size == 1:  # 64-bit size follows
            size = int.from_bytes(file.read(8), "big")
            begins += 8
        elif size == 0:  # to the end of the file
            size = end - at
        if size < begins - at:
            return
        if name == kind:
            yield begins, min(at + size, end)
        at += size
