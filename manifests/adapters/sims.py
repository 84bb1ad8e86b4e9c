"""CH-SIMS: sentiment of clips from Chinese films and television, of each modality too."""

from pathlib import Path

from manifests.adapters import AdapterResult, raw_clips
from manifests.card import Card

LABELS = ("label", "label_t", "label_a", "label_v")


def build(source: Path, media: bool = True) -> AdapterResult:
    """The table of utterances of ``label.csv`` or ``meta.csv``, with its unimodal labels."""
    return read("sims", source)


def read(name: str, source: Path) -> AdapterResult:
    """The same for any release of the CH-SIMS family."""
    path = raw_clips.find_table(source)
    if path is None:
        raise ValueError(
            f"{source / raw_clips.TABLES[0]}: no such file, nor {raw_clips.TABLES[1]}; "
            f"to obtain it: {Card.builtin(name).obtain}"
        )
    return raw_clips.read(path, LABELS, fallback="gb18030", clip_name=clip_name)


def clip_name(video: str, clip: str) -> str:
    """The clip's file: ``video_0001/0001`` but ``aqgy3_0001/00000``, whose zeros may be lost."""
    return clip.zfill(4 if video.startswith("video_") else 5)
