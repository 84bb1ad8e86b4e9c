"""The layout of the CMU Multimodal SDK: computational sequences (``.csd``) and standard folds.

A ``.csd`` is an HDF5 file with one group, named after what it holds, in it ``data/<video_id>`` with
``intervals [N, 2]`` in seconds and ``features [N, ...]``, and ``metadata``. Labels are one row a
segment, words one row a word, each of a whole video. Segment `i` of a video is called, as the SDK
calls it, ``<video_id>[i]``. Which video is in which split stands in a Python file of the SDK.
"""

import ast
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from manifests.adapters import AdapterResult
from manifests.adapters.files import find_file
from manifests.card import SPLITS, Card
from manifests.validation import raise_faults

SDK = "https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK"
STANDARD = "mmsdk/mmdatasdk/dataset/standard_datasets"
PAUSE = "sp"
"""What the forced aligner writes where nobody speaks."""


@dataclass(frozen=True)
class Release:
    """The names of a dataset's files.

    Attributes:
        labels: the sequence of labels.
        words: the sequence of words.
        folds: the file of the standard folds.
        videos: folder of the whole videos, ``<video_id>.mp4``.
        columns: names of the labels' columns, in their order.
    """

    labels: str
    words: str
    folds: str
    videos: str
    columns: tuple[str, ...]


MOSI = Release(
    labels="CMU_MOSI_Opinion_Labels.csd",
    words="CMU_MOSI_TimestampedWords.csd",
    folds=f"{STANDARD}/CMU_MOSI/cmu_mosi_std_folds.py",
    videos="Raw/Video/Full",
    columns=("label",),
)
MOSEI = Release(
    labels="CMU_MOSEI_Labels.csd",
    words="CMU_MOSEI_TimestampedWords.csd",
    folds=f"{STANDARD}/CMU_MOSEI/cmu_mosei_std_folds.py",
    videos="Raw/Videos/Full/Combined",
    columns=("label", "happy", "sad", "anger", "surprise", "disgust", "fear"),
)


RELEASES = {"mosi": MOSI, "mosei": MOSEI, "mosei_emotion": MOSEI}


def read(name: str, source: Path, labels: Sequence[str]) -> AdapterResult:
    """One row a labelled segment, sorted by video and segment, with its times and its words.

    Segments of a video that is in no fold, without a word or of no length are left out, which the
    notes say. The release's counts on the card are those of the single clips, so they go too.

    Args:
        name: of the dataset.
        source: folder of the files, at any depth.
        labels: those of the labels that are kept, as they are.

    Raises:
        ValueError: a file is missing (says where to get it) or is not what it should be.
    """
    release = RELEASES[name]
    rated = find_file(source, release.labels, f"`mmsdk` downloads it, see {SDK}")
    spoken = find_file(source, release.words, f"`mmsdk` downloads it, see {SDK}")
    folds = read_folds(
        find_file(source, Path(release.folds).name, f"it is {release.folds} in {SDK}")
    )
    words = _read_csd(spoken)
    rows: list[dict[str, object]] = []
    left_out: Counter[str] = Counter()
    faults = []
    for video, (intervals, features) in sorted(_read_csd(rated).items()):
        ratings = features.reshape(len(intervals), -1)
        if ratings.shape[1] != len(release.columns):
            faults.append(
                f"video {video!r}: {ratings.shape[1]} labels a segment, expected "
                f"{len(release.columns)} ({', '.join(release.columns)}): take the SDK's own file"
            )
            continue
        for turn, (interval, values) in enumerate(zip(intervals, ratings, strict=True)):
            start, end = max(float(interval[0]), 0.0), float(interval[1])
            text = _words_within(words.get(video), start, end)
            if video not in folds:
                left_out["of videos in no standard fold"] += 1
            elif not start < end:
                left_out["of no length"] += 1
            elif not text:
                left_out["without a word"] += 1
            else:
                rated_as = dict(zip(release.columns, map(float, values), strict=True))
                rows.append(
                    {
                        "id": f"{video}[{turn}]",
                        "video": f"{release.videos}/{video}.mp4",
                        "start": start,
                        "end": end,
                        "split": folds[video],
                        "text": text,
                        "dialogue": video,
                        "turn": turn,
                    }
                    | {label: rated_as[label] for label in labels}
                )
    raise_faults(faults, rated)
    notes = [f"left out {count} segments {why}" for why, count in sorted(left_out.items())]
    told = Card.builtin(name).splits
    splits = {split: {**counts, "release": None} for split, counts in told.items()}
    return AdapterResult(pd.DataFrame(rows), notes, {"splits": splits})


def read_folds(path: Path) -> dict[str, str]:
    """Video id to split, from the lists in a file of the SDK; the file is parsed, never run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a Python file: {error}: take it from {SDK}") from error
    lists = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    folds: dict[str, str] = {}
    for split in SPLITS:
        name = f"standard_{split}_fold"
        try:
            videos = [str(video) for video in ast.literal_eval(lists[name])]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no list {name}: take the file from {SDK}") from error
        for video in videos:
            if folds.setdefault(video, split) != split:
                raise ValueError(f"{path}: video {video!r} is in {folds[video]} and in {split}")
    return folds


def _read_csd(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Intervals ``[N, 2]`` and features of each video."""
    try:
        with h5py.File(path) as file:
            # Releases differ in how the outer group is called, never in there being just one.
            (root,) = file.keys()
            return {
                video: (entry["intervals"][:].reshape(-1, 2), entry["features"][:])
                for video, entry in file[root]["data"].items()
            }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a computational sequence of the CMU SDK ({error}): download it again"
        ) from error


def _words_within(video: tuple[np.ndarray, np.ndarray] | None, start: float, end: float) -> str:
    """The words whose middle lies in the segment, so that none is in two adjoining ones."""
    if video is None:
        return ""
    intervals, words = video
    middle = intervals.mean(axis=1)
    within = words.reshape(len(intervals), -1)[(start <= middle) & (middle < end), 0]
    texts = [w.decode("utf-8", "replace") if isinstance(w, bytes) else str(w) for w in within]
    return " ".join(text for text in texts if text and text != PAUSE)
