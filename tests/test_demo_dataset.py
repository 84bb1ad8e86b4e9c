"""The generated dataset: its plan, its formula, and the bytes of its clips."""

import json
import subprocess
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import Card, Manifest
from manifests.demo import make_plan, to_table
from manifests.demo.clips import clip_path, ffmpeg, write_clip, write_clips
from manifests.demo.face import SIZE, draw_frames
from manifests.demo.plan import FPS, fuse
from manifests.demo.sentences import draw_sentence
from manifests.demo.voice import SAMPLE_RATE, speak


@pytest.fixture(scope="module")
def plan():
    return make_plan()


@pytest.fixture(scope="module")
def short(plan):
    """The shortest clips, for the tests that make files."""
    return sorted(plan, key=lambda clip: clip.frames)[:2]


def test_plan_is_a_sound_manifest(plan):
    manifest = Manifest(Card.builtin("demo"), to_table(plan))
    manifest.check()  # no speaker and no sentence in two splits, labels in range
    for split, counts in manifest.card.splits.items():
        assert len(manifest.split(split)) == counts["release"]
    assert Manifest(manifest.card, to_table(make_plan())).digest == manifest.digest
    assert manifest.table["text"].is_unique


def test_every_split_has_every_kind_and_both_signs(plan):
    assert Counter(c.kind for c in plan) == {"agree": 72, "sarcastic": 30, "independent": 18}
    for split in ("train", "valid", "test"):
        part = [c for c in plan if c.split == split]
        assert {c.kind for c in part} == {"agree", "sarcastic", "independent"}
        assert sum(c.label > 0 for c in part) * 2 == len(part)
    for clip in plan:
        if clip.kind == "sarcastic":
            assert clip.text_sentiment * clip.voice_sentiment < 0
            assert clip.text_sentiment * clip.face_sentiment < 0
    praise = [c.text_sentiment > 0 for c in plan if c.kind == "sarcastic"]
    assert 0.5 < np.mean(praise) < 1


def test_labels_follow_the_formula(plan):
    for row in to_table(plan).itertuples():
        fused = 0.4 * row.label_t + 0.3 * row.label_a + 0.3 * row.label_v
        assert row.label == pytest.approx(np.clip(fused, -3, 3), abs=5e-5)
        assert row.label == round(row.label, 4)
    assert fuse(3, 3, 3) == 3


@given(st.integers(0, 2**32))
def test_sentences_are_graded(seed):
    sentence = draw_sentence(np.random.default_rng(seed))
    assert -3 <= sentence.sentiment <= 3
    assert sentence.text[0].isupper()
    assert sentence.text.endswith(".")
    assert "  " not in sentence.text


def test_plan_sets_lengths(plan):
    assert all(2 <= clip.duration <= 4 for clip in plan)
    assert len({clip.seed for clip in plan}) == len(plan)


def test_voice_is_bounded_and_follows_the_sentiment(plan):
    level = []
    for mood in (-3, 3):
        voices = [speak(replace(clip, voice_sentiment=mood)) for clip in plan[:12]]
        for voice, clip in zip(voices, plan, strict=False):
            assert len(voice.waveform) == round(clip.duration * SAMPLE_RATE)
            assert np.abs(voice.waveform).max() < 1
            assert len(voice.opening) == clip.frames
            assert voice.opening.min() >= 0
            assert 0.5 < voice.opening.max() <= 1
        level.append(np.mean([np.std(v.waveform) for v in voices]))
    assert level[1] > 1.5 * level[0]


def test_face_follows_the_sentiment_and_the_voice(short):
    clip = replace(short[0], frames=3)

    def picture(mood, opening):
        *_, last = draw_frames(replace(clip, face_sentiment=mood), np.full(3, opening))
        return np.frombuffer(last, np.uint8).reshape(SIZE, SIZE, 3).astype(float)

    still = picture(0.0, 0.0)
    np.testing.assert_array_equal(still, picture(0.0, 0.0))
    for other in (picture(3.0, 0.0), picture(-3.0, 0.0), picture(0.0, 1.0)):
        changed = np.abs(other - still).max(axis=2) > 30
        # The face moves; its surroundings (the corners of the picture) do not.
        assert 0.005 < changed.mean() < 0.2
        assert not changed[:, :20].any()


def test_one_clip_is_the_same_bytes_and_whole(short, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_clip(short[0], tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]

    decode = [ffmpeg(), "-v", "error", "-xerror", "-i", f"file:{tmp_path / 'a.mp4'}"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    pixels = subprocess.run([*decode, *raw], capture_output=True, check=True).stdout
    frames = np.frombuffer(pixels, np.uint8).reshape(-1, SIZE, SIZE, 3)
    assert len(frames) == short[0].frames
    drawn = next(draw_frames(short[0], speak(short[0]).opening))
    drawn = np.frombuffer(drawn, np.uint8).reshape(SIZE, SIZE, 3)
    assert np.abs(frames[0].astype(float) - drawn).mean() < 4
    sound = subprocess.run(
        [*decode, "-f", "s16le", "-ac", "1", "pipe:1"], capture_output=True, check=True
    ).stdout
    assert len(sound) / 2 / 48_000 == pytest.approx(short[0].frames / FPS, abs=0.05)


def test_second_build_writes_only_what_is_missing(short, tmp_path):
    assert write_clips(short, tmp_path) == 2
    assert write_clips(short, tmp_path) == 0
    kept, broken = (clip_path(tmp_path, clip) for clip in short)
    before = kept.stat().st_mtime_ns
    whole = broken.read_bytes()
    broken.write_bytes(whole[:1000])
    assert write_clips(short, tmp_path) == 1
    assert broken.read_bytes() == whole
    assert kept.stat().st_mtime_ns == before
    assert set(json.loads((tmp_path / "index.json").read_text())) == {c.id for c in short}


def test_failing_ffmpeg_leaves_no_file(short, tmp_path, monkeypatch):
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\ncat >/dev/null\necho no such encoder >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv("SEMANTICMAC_FFMPEG", str(script))
    with pytest.raises(ChildProcessError, match="no such encoder"):
        write_clip(replace(short[0], frames=5), tmp_path / "videos" / "a.mp4")
    assert list((tmp_path / "videos").iterdir()) == []
