"""A dataset made of nothing but code: drawn faces, synthesised voices, composed sentences.

Every clip carries three sentiments in [-3, 3]: of its text t, its voice a and its face v. Its
label is 0.4 t + 0.3 a + 0.3 v. In most clips the three agree; a quarter is sarcastic, and only
who listens to more than one modality gets those right. It shows that the whole way from video to
prediction works; a score on it says nothing about people.
"""

from pathlib import Path

import pandas as pd

from manifests.demo.clips import clip_path, write_clips
from manifests.demo.plan import DemoClip, make_plan

__all__ = ["DemoClip", "build", "make_plan", "to_table"]


def build(source: Path, media: bool = True) -> pd.DataFrame:
    """The table; with `media`, generates those clips that are not yet in ``source/videos``."""
    clips = make_plan()
    if media:
        write_clips(clips, source / "videos")
    return to_table(clips)


def to_table(clips: list[DemoClip]) -> pd.DataFrame:
    """The table of utterances, without the videos; `kind` says how the modalities agree."""
    return pd.DataFrame(
        {
            "id": clip.id,
            "video": clip_path(Path("videos"), clip).as_posix(),
            "split": clip.split,
            "text": clip.text,
            "speaker": clip.speaker.name,
            "label": clip.label,
            "label_t": clip.text_sentiment,
            "label_a": clip.voice_sentiment,
            "label_v": clip.face_sentiment,
            "kind": clip.kind,
        }
        for clip in clips
    )
