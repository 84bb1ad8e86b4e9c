"""Read the layout of the CMU Multimodal SDK: computational sequences (``.csd``) and folds.

A ``.csd`` is an HDF5 file with one group, named after its content, that contains ``metadata`` and
``data/<video_id>`` with ``intervals [N, 2]`` in seconds and ``features [N, ...]``. Labels have one
row per segment, words one row per word, both of a whole video. Segment `i` of a video is called
``<video_id>[i]``, as in the SDK. A Python file of the SDK assigns videos to splits.
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
from manifests.budget import Budget
from manifests.card import SPLITS, Card
from manifests.h5 import find_dataset, load
from manifests.validation import raise_faults

SDK = "https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK"
STANDARD = "mmsdk/mmdatasdk/dataset/standard_datasets"
_PER_VIDEO = 500  # bytes of its names and arrays, without their content
PAUSE = "sp"
"""The forced aligner's mark for a pause."""


@dataclass(frozen=True)
class Release:
    """The file names of a dataset.

    Attributes:
        labels: the sequence of labels.
        words: the sequence of words.
        folds: the file of the standard folds.
        videos: folder of the whole videos, ``<video_id>.mp4``.
        columns: names of the labels' columns, in order.
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
    """Read one row per labelled segment, sorted by video and segment, with its times and words.

    Segments of a video that is in no fold, without a word or with an empty interval are excluded
    and counted in the notes. The release's counts on the card are those of the single clips, so
    they are removed.

    Args:
        name: of the dataset.
        source: folder of the files, at any depth.
        labels: the labels to keep, unchanged.

    Raises:
        ValueError: a file is missing (the message says where to get it) or has another content.
    """
    release = RELEASES[name]
    rated = find_file(source, release.labels, f"`mmsdk` downloads it, see {SDK}")
    spoken = find_file(source, release.words, f"`mmsdk` downloads it, see {SDK}")
    folds = read_folds(
        find_file(source, Path(release.folds).name, f"it is {release.folds} in {SDK}")
    )
    words = _read_csd(spoken)
    rows: list[dict[str, object]] = []
    excluded: Counter[str] = Counter()
    faults = []
    for video, (intervals, features) in sorted(_read_csd(rated).items()):
        ratings = features.reshape(len(intervals), -1)
        if ratings.shape[1] != len(release.columns):
            faults.append(
                f"video {video!r}: {ratings.shape[1]} labels per segment, expected "
                f"{len(release.columns)} ({', '.join(release.columns)}): take the SDK's own file"
            )
            continue
        for turn, (interval, values) in enumerate(zip(intervals, ratings, strict=True)):
            start, end = max(float(interval[0]), 0.0), float(interval[1])
            text = _words_within(words.get(video), start, end)
            if video not in folds:
                excluded["of videos in no standard fold"] += 1
            elif not start < end:
                excluded["with an empty interval"] += 1
            elif not text:
                excluded["without a word"] += 1
            else:
                label_of = dict(zip(release.columns, map(float, values), strict=True))
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
                    | {label: label_of[label] for label in labels}
                )
    raise_faults(faults, rated)
    notes = [f"excluded {count} segments {why}" for why, count in sorted(excluded.items())]
    published = Card.builtin(name).splits
    splits = {split: {**counts, "release": None} for split, counts in published.items()}
    return AdapterResult(pd.DataFrame(rows), notes, {"splits": splits})


def read_folds(path: Path) -> dict[str, str]:
    """Return the split of each video id from a Python file of the SDK, which is parsed, not run."""
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
    """Return the intervals ``[N, 2]`` and features of each video."""
    try:
        budget = Budget.of(path)
        with h5py.File(path) as file:
            # The outer group has different names in different releases, but is always the only one.
            (root,) = file.keys()
            data = file[root]["data"]
            budget.take("its list of videos", _PER_VIDEO * len(data))
            return {
                video: (
                    _load(data, f"{video}/intervals", budget).reshape(-1, 2),
                    _load(data, f"{video}/features", budget),
                )
                for video in data
            }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a computational sequence of the CMU SDK ({error}): download it again"
        ) from error


def _load(data: h5py.Group, name: str, budget: Budget) -> np.ndarray:
    node = find_dataset(data, name, budget)
    if node is None:
        raise KeyError(f"it has no {name}")
    return load(node, budget)


def _words_within(video: tuple[np.ndarray, np.ndarray] | None, start: float, end: float) -> str:
    """Return the words whose middle is in the segment, so that segments do not share a word."""
    if video is None:
        return ""
    intervals, words = video
    middle = intervals.mean(axis=1)
    within = words.reshape(len(intervals), -1)[(start <= middle) & (middle < end), 0]
    # Bytes that are not UTF-8 were read as surrogates, which no file can keep.
    texts = [str(w).encode("utf-8", "surrogateescape").decode("utf-8", "replace") for w in within]
    return " ".join(text for text in texts if text and text != PAUSE)
