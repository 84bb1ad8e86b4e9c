"""Faults of the machine or the setup: they end the run, and no utterance is marked as failed."""

import gc
import os
import resource
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cache import FeatureStore, Parts
from extract import EncoderSpec, Sampling, Settings
from extract.__main__ import main
from extract.block import extract_block
from extract.job import Job, Utterance
from extract.scheduler import attempt_block
from tests.test_extract import write_clip, write_manifest


@pytest.fixture
def job(tmp_path) -> Job:
    """A job on a folder with one good clip of half a second."""
    (tmp_path / "data").mkdir()
    write_clip(tmp_path / "data/good.mp4", 0.5)
    return Settings(EncoderSpec("imagebind-tiny")).job(tmp_path / "s.zarr", tmp_path / "data")


GOOD = [Utterance("u", "good.mp4")]


@pytest.fixture
def lower_limit():
    """Lower a resource limit of this process for one test."""
    before = {}

    def lower(kind: int, limit: int) -> None:
        before[kind] = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit, before[kind][1]))

    yield lower
    for kind, limits in before.items():
        resource.setrlimit(kind, limits)


# --- the machine ----------------------------------------------------------------------------------


def test_running_out_of_descriptors_is_not_a_failed_video(job, lower_limit):
    extract_block(job, GOOD)  # opens every file that stays open
    gc.collect()  # closes files left open by other tests
    lower_limit(
        resource.RLIMIT_NOFILE, max(int(file.name) for file in Path("/dev/fd").iterdir()) + 4
    )
    with ExitStack() as open_files:
        with suppress(OSError):
            while True:  # the limit is on numbers: use up those below it
                last = open_files.enter_context(Path(os.devnull).open())
        last.close()
        with pytest.raises(OSError, match="Too many open files"):
            extract_block(job, GOOD)


def test_a_full_disk_is_not_a_failed_video(job, lower_limit, monkeypatch):
    monkeypatch.setattr("extract.ffmpeg.MAX_IN_MEMORY", 1000)
    lower_limit(resource.RLIMIT_FSIZE, 100_000)  # one image is 150528 bytes
    message = attempt_block(job, GOOD, 2, lambda stage, ids: None)
    assert "File too large" in message
    assert "finished blocks are kept" in message


@pytest.mark.parametrize("left", ["nothing", "the empty mount point"])
def test_an_unmounted_folder_is_not_missing_files(job, left):
    (job.data / "good.mp4").unlink()
    if left == "nothing":
        job.data.rmdir()
    with pytest.raises(OSError, match="folder of the videos no longer exists"):
        extract_block(job, GOOD)


def test_a_missing_file_fails_its_utterance(job):
    (record,) = extract_block(job, [Utterance("u", "gone.mp4")])
    assert (record.status, record.error) == ("failed", "file not found")


# --- the workers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"weights": "0" * 64}, "weights"),
        ({"settings": {"version": 0}}, "settings"),
        ({"preprocess": 1}, "pre-processing version"),
    ],
)
def test_an_encoder_other_than_the_recipes_is_refused(job, change, what):
    with pytest.raises(ValueError, match=f"imagebind-tiny on .* its {what}"):
        extract_block(replace(job, identity=replace(job.identity, **change)), GOOD)
    assert not Parts(job.place).read()


def test_the_checkpoints_path_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("link.safetensors").symlink_to("blob")
    spec = EncoderSpec("imagebind", Path("link.safetensors"))
    assert spec.checkpoint == tmp_path / "link.safetensors"
    assert EncoderSpec("imagebind", Path("~/w.pth")).checkpoint == Path("~/w.pth").expanduser()


# --- all utterances failed ------------------------------------------------------------------------


def test_no_store_is_published_if_all_utterances_fail(tmp_path, capsys):
    """Nothing is published; after the cause is fixed the same command extracts all."""
    data, root = tmp_path / "data", tmp_path / "stores"
    data.mkdir()
    videos = {f"u{i}": f"{i}.mp4" for i in range(6)}
    for video in videos.values():
        (data / video).write_text("not unpacked yet\n" * 50)
    write_manifest(data, videos)
    command = [str(data), "--stores", str(root), "--workers", "1", "--allow-failures"]
    for _ in range(2):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "none of 6 utterances could be extracted" in error
        assert "  6 x u0, u1, u2, and 3 more: " in error
        (parts,) = (root / "toy").iterdir()
        assert parts.name.endswith(".parts")
    clip = write_clip(tmp_path / "clip.mp4", 0.5)
    for video in list(videos.values())[1:]:
        (data / video).write_bytes(clip.read_bytes())
    assert main(command) == 0
    (store,) = (root / "toy").iterdir()
    assert FeatureStore.open(store).counts["ok"] == 5


def test_training_refuses_separate_crop_rows(tmp_path):
    """Three rows per frame are not a sequence in time: such stores are for other programs."""
    from train.config import make_config
    from train.data import load_splits
    from train.task import Task

    write_clip(tmp_path / "0.mp4", 0.6)
    manifest = write_manifest(tmp_path, {f"u{i}": "0.mp4" for i in range(3)})
    command = [str(tmp_path), "--stores", str(tmp_path / "s"), "--workers", "1", "--crops", "3"]
    assert main([*command, "--crop-rows", "separate"]) == 0
    (store,) = (tmp_path / "s/toy").iterdir()
    config = make_config(None, ["text.source=model"])
    with pytest.raises(ValueError, match=r"3 vision rows per frame.*--crop-rows mean"):
        load_splits(
            manifest,
            FeatureStore.open(store),
            Task.from_card(manifest.card),
            None,
            config,
        )
    assert Sampling(crops=3).rows_per_frame["vision"] == 1
