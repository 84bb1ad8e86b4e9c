"""Generate a dataset of drawn faces, synthesised voices and composed sentences.

Every clip has three sentiments in [-3, 3]: of its text t, its voice a and its face v. Its label is
0.4 t + 0.3 a + 0.3 v. In most clips the three agree; a quarter is sarcastic, and only a model of
more than one modality predicts those correctly. The dataset shows that the pipeline from video to
prediction works; a score on it says nothing about people.
"""

from pathlib import Path

import pandas as pd

from manifests.demo.clips import clip_path, write_clips
from manifests.demo.plan import DemoClip, make_plan

__all__ = ["DemoClip", "build", "make_plan", "to_table"]


def build(source: Path, media: bool = True) -> pd.DataFrame:
    """Return the table; with `media`, generate the clips that ``source/videos`` lacks."""
    clips = make_plan()
    if media:
        write_clips(clips, source / "videos")
    return to_table(clips)


def to_table(clips: list[DemoClip]) -> pd.DataFrame:
    """Return the table of utterances; `kind` says how the modalities agree."""
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
