"""Mutated and stalling files: complete rows or a reason, and no process or file left over."""

import os
import threading
import time

import numpy as np
import psutil
import pytest

from cache import Parts
from extract import EncoderSpec, Sampling, Settings
from extract.block import extract_block
from extract.ffmpeg import ffmpeg_exe
from extract.job import Utterance
from tests.test_decode import clicks, ffmpeg

TWO = Sampling(fps=2.0, window_s=0.5)
SECONDS = 3.0  # for all mutants of one container


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, truncate, or copy a piece to another place."""
    changed = bytearray(data)
    kind = rng.integers(3)
    if kind == 0:
        for at in rng.integers(len(data), size=rng.integers(1, 30)):
            changed[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del changed[rng.integers(len(data)) :]
    else:
        begin, at = rng.integers(len(data), size=2)
        changed[at:at] = data[begin : begin + rng.integers(1, 5000)]
    return bytes(changed)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "wav"])
def test_mutated_files_give_whole_rows_or_a_reason(tmp_path, suffix):
    path = tmp_path / f"whole.{suffix}"
    sound = clicks(tmp_path / "sound.wav", 2.0, 0.5, 16000)
    picture = ["-f", "lavfi", "-i", "testsrc=r=10:s=64x48:d=2"] if suffix != "wav" else []
    video = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", 5]
    ffmpeg(*picture, "-i", sound, *(video if picture else ()), path)
    settings = Settings(EncoderSpec("imagebind-tiny"), sampling=TWO, timeout=5.0)
    job = settings.job(tmp_path / "s.zarr", tmp_path)
    # two passes, to start both threads that decode
    extract_block(job, [Utterance("whole", path.name), Utterance("again", path.name)])
    data, rng = path.read_bytes(), np.random.default_rng(7)
    me, threads = psutil.Process(), threading.active_count()
    descriptors, children = me.num_fds(), len(me.children())
    seen, began = 2, time.monotonic()
    while time.monotonic() - began < SECONDS and seen < 60:
        block = []
        for i in range(seen, seen + 3):
            (tmp_path / f"{i}.{suffix}").write_bytes(mutant(data, rng))
            block += [
                Utterance(f"{i}", f"{i}.{suffix}"),
                Utterance(f"{i} part", f"{i}.{suffix}", 0.25, 1.75),
            ]
        assert {r.id for r in extract_block(job, block)} == {u.id for u in block}
        seen += len(block)
    assert threading.active_count() == threads
    assert len(me.children()) == children
    assert me.num_fds() <= descriptors

    parts = Parts(job.place).read()
    records = [record for part in parts for record in part.records]
    assert len(records) == seen
    for record in records:
        frames = 0 if record.status == "failed" else TWO.frames(record.duration)
        assert (record.status == "ok") == (record.error == "")
        assert record.audio_frames == (0 if record.status == "no_audio" else frames)
        assert record.vision_frames == (0 if record.status == "no_video" else frames)
    for part in parts:
        for modality in ("audio", "vision"):
            rows = part.values(modality)
            assert len(rows) == sum(record.frames(modality) for record in part.records)
            assert np.isfinite(rows).all()


def test_the_timeout_of_a_stalling_file_is_waited_for_once(tmp_path, monkeypatch):
    """The timeout is not waited for again per utterance, and the next file is decoded."""
    ffmpeg("-f", "lavfi", "-i", "testsrc=r=10:s=64x48:d=3", tmp_path / "good.mp4")
    (tmp_path / "stalls.mp4").write_bytes((tmp_path / "good.mp4").read_bytes())
    wrapper, calls = tmp_path / "wrapper", tmp_path / "calls"
    wrapper.write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\n'
        f'case "$*" in *stalls*) exec sleep 60;; esac\nexec {ffmpeg_exe()} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setattr("extract.decode.ffmpeg_exe", lambda: str(wrapper))
    settings = Settings(EncoderSpec("imagebind-tiny"), sampling=TWO, timeout=3.0)
    job = settings.job(tmp_path / "s.zarr", tmp_path)
    # far apart: each has its own pass
    stalls = [Utterance(f"s{k}", "stalls.mp4", 100.0 * k, 100.0 * k + 1.0) for k in range(3)]
    records = extract_block(job, [*stalls, Utterance("good", "good.mp4", 0.0, 2.0)])
    assert [record.status for record in records] == ["failed"] * 3 + ["no_audio"]
    assert {record.error for record in records[:3]} == {"ffmpeg gave no result within 3 s"}
    tried = [line for line in calls.read_text().splitlines() if "stalls.mp4" in line]
    assert len(tried) == 2  # at the same time; the third is not tried
    assert "sleep" not in [child.name() for child in psutil.Process().children()]


def test_pipes_and_folders_fail_at_once(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    job = Settings(EncoderSpec("imagebind-tiny"), timeout=60.0).job(tmp_path / "s.zarr", tmp_path)
    records = extract_block(job, [Utterance("p", "pipe.mp4"), Utterance("f", "folder.mp4")])
    assert {record.error for record in records} == {"not a file"}
