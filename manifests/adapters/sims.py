"""Read CH-SIMS: sentiment of Chinese film and television clips, also of each modality."""

from pathlib import Path

from manifests.adapters import AdapterResult, raw_clips
from manifests.card import UNIMODAL_LABELS, Card


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read the table of utterances from ``label.csv`` or ``meta.csv``, with unimodal labels."""
    return read("sims", source)


def read(name: str, source: Path) -> AdapterResult:
    """Read the table of utterances of CH-SIMS or CH-SIMS v2."""
    path = raw_clips.find_table(source)
    if path is None:
        raise ValueError(
            f"{source / raw_clips.TABLES[0]}: no such file, nor {raw_clips.TABLES[1]}; "
            f"to obtain it: {Card.builtin(name).obtain}"
        )
    labels = ("label", *UNIMODAL_LABELS)
    return raw_clips.read(path, labels, fallback="gb18030", clip_name=clip_name)


def clip_name(video: str, clip: str) -> str:
    """Return the clip's name with the zeros it may have lost: four digits, in aqgy videos five."""
    return clip.zfill(4 if video.startswith("video_") else 5)
