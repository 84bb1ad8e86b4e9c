"""Killed workers and runs, and damaged files, on real processes: other rows do not change."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
import torch
from dask.distributed import Client, LocalCluster

from cache import FeatureStore
from cache.store.publish import is_published
from extract import ClusterSpec, EncoderSpec, Sampling, Settings, extract
from extract.__main__ import EXIT_SOME_FAILED, main
from extract.cluster import IN_FLIGHT
from extract.decode import decode
from extract.encoders import load
from manifests import Manifest
from tests.stores import tree_of
from tests.test_extract import write_clip, write_clips, write_manifest

CLIPS = 12
KILLS, FILLS = "u07", "u08"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve good clips of different length and their manifest."""
    return write_clips(tmp_path_factory.mktemp("data"), [0.4 + 0.1 * i for i in range(CLIPS)])


@pytest.fixture(scope="module")
def reference_store(data, tmp_path_factory) -> Path:
    """The store of a run without faults."""
    settings = Settings(EncoderSpec("imagebind-tiny"))
    return extract(Manifest.load(data), data, tmp_path_factory.mktemp("stores"), settings).store


def decoders(pid: int) -> list[psutil.Process]:
    """The ffmpeg processes below a process."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ffmpeg" in child.name():
                found.append(child)
    return found


def wait_until(condition, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- processes that die ---------------------------------------------------------------------------


def test_worker_killed_in_the_middle_of_a_block(data, reference_store, tmp_path):
    killed_workers = []

    def kill_decoding_worker() -> None:
        wait_until(lambda: decoders(os.getpid()))
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            worker = decoders(os.getpid())[0].parent()
            worker.kill()
            killed_workers.append(worker)

    killer = threading.Thread(target=kill_decoding_worker)
    killer.start()
    store = extract(
        Manifest.load(data), data, tmp_path, Settings(EncoderSpec("imagebind-tiny"))
    ).store
    killer.join()
    assert killed_workers
    assert tree_of(store) == tree_of(reference_store)


def test_run_killed_and_resumed(data, reference_store, tmp_path, capsys):
    command = [str(data), "--stores", str(tmp_path), "--workers", "1"]
    store = tmp_path / "toy" / reference_store.name
    run = subprocess.Popen([sys.executable, "-m", "extract", *command])
    wait_until(lambda: any(tmp_path.glob("toy/*.parts/*.part")))
    for process in [run.pid, *(p.pid for p in psutil.Process(run.pid).children(recursive=True))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(process).kill()
    run.wait()
    assert not is_published(store)
    assert main(command) == 0
    assert "from an earlier run" in capsys.readouterr().out
    assert tree_of(store) == tree_of(reference_store)


DEADLY_PRELOAD = f"""
import os, signal
import extract.scheduler
from extract.block import extract_block
def deadly(job, block, *rest):
    ids = [utterance.id for utterance in block]
    if {KILLS!r} in ids:
        os.kill(os.getpid(), signal.SIGKILL)
    if {FILLS!r} in ids:
        hold = [bytes([1]) * (1 << 26) for _ in range(1 << 6)]
    return extract_block(job, block, *rest)
extract.scheduler.extract_block = deadly
"""
"""Imported by each worker at its start: two utterances kill every worker that processes them."""


def test_utterances_that_kill_their_workers_fail_alone(data, reference_store, tmp_path):
    preload_file = tmp_path / "preload.py"
    preload_file.write_text(DEADLY_PRELOAD)
    cluster = ClusterSpec(workers=1, memory_limit="1500MB")
    settings = Settings(EncoderSpec("imagebind-tiny"), cluster=cluster)
    with dask.config.set({"distributed.worker.preload": [str(preload_file)]}):
        store = extract(Manifest.load(data), data, tmp_path / "stores", settings).store
    cache, good = FeatureStore.open(store), FeatureStore.open(reference_store)
    assert {i for i, status in cache.status.items() if status != "ok"} == {KILLS, FILLS}
    reasons = dict(zip(cache.ids, cache.column("error"), strict=True))
    assert "ended its worker 3 times: it was killed" in reasons[KILLS]
    assert "ended its worker 3 times: out of memory" in reasons[FILLS]
    assert all("--memory-limit" in reasons[i] for i in (KILLS, FILLS))
    others = [i for i in good.ids if i not in (KILLS, FILLS)]
    for modality in good.widths:
        assert cache.select(others).values[modality].equal(good.select(others).values[modality])


def test_a_worker_of_another_release_ends_the_run(data, tmp_path, capsys):
    other = tmp_path / "other.py"
    other.write_text("import extract.encoders\nextract.encoders.PREPROCESS_VERSION = 99\n")
    with dask.config.set({"distributed.worker.preload": [str(other)]}):
        assert main([str(data), "--stores", str(tmp_path / "stores"), "--workers", "1"]) == 1
    assert "its pre-processing version: 99, expected: " in capsys.readouterr().err
    assert not list(tmp_path.glob("stores/toy/*"))


def test_a_limit_below_the_encoder_is_an_error_with_a_remedy(data, tmp_path, capsys):
    command = [str(data), "--stores", str(tmp_path), "--workers", "1", "--memory-limit", "110MB"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "out of memory" in error
    assert "larger --memory-limit" in error


def test_workers_that_cannot_start_end_the_run_at_once(data, tmp_path, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no such library')\n")
    with dask.config.set({"distributed.worker.preload": [str(broken)]}):
        assert main([str(data), "--stores", str(tmp_path / "stores"), "--workers", "2"]) == 1
    assert "the workers could not be started: no such library" in capsys.readouterr().err


def test_workers_that_cannot_be_restarted_end_the_run(data, tmp_path, capsys, monkeypatch):
    """The first worker is killed by its block, all later ones end while they start."""
    mark = tmp_path / "killed"
    once = tmp_path / "once.py"
    once.write_text(f"""
import os
from pathlib import Path
import extract.scheduler
mark = Path({str(mark)!r})
if mark.exists():
    os._exit(1)
def deadly(*arguments):
    mark.touch()
    os._exit(1)
extract.scheduler.extract_block = deadly
""")
    monkeypatch.setattr("extract.scheduler.LOCAL_WORKER_S", 2.0)
    with dask.config.set({"distributed.worker.preload": [str(once)]}):
        assert main([str(data), "--stores", str(tmp_path / "stores"), "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert "no worker could be started for 2 s" in error
    assert "finished blocks are kept" in error


# --- damaged files --------------------------------------------------------------------------------

GOOD = 200


def write_damaged_files(source: Path, folder: Path) -> dict[str, str]:
    """Write nine damaged files; return the status and reason expected of each, by name."""
    whole = source.read_bytes()
    cut = np.random.default_rng(0).integers(len(whole) // 10, len(whole) * 9 // 10)
    header, large = bytearray(whole), bytearray(whole)
    box = header.index(b"avcC")
    header[box + 4 : box + 40] = b"\xff" * 36
    size = large.index(b"avc1", large.index(b"stsd")) + 28
    large[size : size + 4] = b"\xff\xff\xff\xff"
    contents = {
        "zero": b"",
        "truncated": whole[:cut],
        "container": b"RIFF" + whole[4:40] + b"\0" * 4000,
        "text": b"this is not a video\n" * 50,
        "codec": bytes(header),
        "absurd": bytes(large),
        "locked": whole,
    }
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    (folder / "locked.mp4").chmod(0)
    write_clip(folder / "no_video.mp4", 0.6, picture=False)
    write_clip(folder / "no_audio.mp4", 0.6, sound=False)
    return {
        "zero": "failed: file is empty",
        "truncated": "failed: ",
        "container": "failed: ",
        "text": "failed: ",
        "codec": "",  # with wrong parameters a decoder may succeed: any status, but a row
        "absurd": "",
        "locked": "failed: cannot be read: Permission denied",
        "missing": "failed: file not found",
        "no_video": "no_video: the file has no video stream",
        "no_audio": "no_audio: the file has no audio stream",
    }


def obey_file_modes() -> None:
    """Drop root's privilege to read every file, in a worker."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capget(header, sets) == 0
        for effective_or_permitted in (0, 1):
            sets[effective_or_permitted] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert libc.capset(header, sets) == 0


@pytest.fixture(scope="module")
def scheduler():
    """Address of a running scheduler with two workers."""
    if os.geteuid() == 0 and sys.platform != "linux":
        pytest.skip("root reads every file, and here it cannot give that up")
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=IN_FLIGHT,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(obey_file_modes)
        yield cluster.scheduler_address


def test_ten_kinds_of_damaged_files_affect_only_their_rows(
    data, reference_store, scheduler, tmp_path, capsys
):
    """Five percent are damaged; after their repair only they are extracted."""
    (tmp_path / "v").mkdir()
    good = {f"g{i:03}": f"v/{i:03}.mp4" for i in range(GOOD)}
    for i, video in enumerate(good.values()):
        (tmp_path / video).hardlink_to(data / f"v/{i % CLIPS:02}.mp4")
    expected = write_damaged_files(data / "v/05.mp4", tmp_path / "v")
    write_manifest(tmp_path, {**good, **{name: f"v/{name}.mp4" for name in expected}})
    command = [str(tmp_path), "--stores", str(tmp_path / "stores"), "--scheduler", scheduler]
    assert main(command) == EXIT_SOME_FAILED
    assert "file not found" in capsys.readouterr().out
    assert main([*command, "--allow-failures"]) == 0

    (store,) = (tmp_path / "stores/toy").iterdir()
    cache = FeatureStore.open(store)
    reasons = dict(zip(cache.ids, cache.column("error"), strict=True))
    outcome = {i: f"{cache.status[i]}: {reasons[i]}" for i in expected}
    assert {i: text for i, text in outcome.items() if not text.startswith(expected[i])} == {}
    assert all(reasons[i] for i in expected if cache.status[i] != "ok")
    assert_equal_to_reference(cache, list(good), reference_store)

    # Repair all, and remove a good one: its features are at hand.
    for name in expected:
        (tmp_path / f"v/{name}.mp4").unlink(missing_ok=True)
        shutil.copy(data / "v/05.mp4", tmp_path / f"v/{name}.mp4")
    (tmp_path / good["g000"]).unlink()
    capsys.readouterr()
    assert main([*command, "--retry-failed"]) == 0
    # The repaired files have the content of a good one, so nothing at all is decoded.
    carried = len(good) + len(expected)
    assert f"Carried over: {carried} utterances" in capsys.readouterr().out
    (new,) = set((tmp_path / "stores/toy").iterdir()) - {store}
    again = FeatureStore.open(new)
    assert_equal_to_reference(again, list(good), reference_store)
    before = FeatureStore.open(reference_store).select(["u05"] * len(expected))
    for modality in again.widths:
        assert again.select(list(expected)).values[modality].equal(before.values[modality])
    assert set(again.status.values()) == {"ok"}
    assert main([*command, "--retry-failed"]) == 0
    assert "nothing to decode" in capsys.readouterr().out


def assert_equal_to_reference(cache: FeatureStore, ids: list[str], reference_store: Path) -> None:
    before = FeatureStore.open(reference_store)
    theirs = before.select([f"u{i % CLIPS:02}" for i in range(len(ids))])
    mine = cache.select(ids)
    for modality in cache.widths:
        assert mine.values[modality].equal(theirs.values[modality])
        assert mine.lengths[modality].equal(theirs.lengths[modality])


# --- sampling options -----------------------------------------------------------------------------


def test_tubelets_crops_and_precision_reach_the_store(data, scheduler, tmp_path):
    write_manifest(tmp_path, {"a": "02.mp4", "b": "09.mp4"})
    encoder = load(EncoderSpec("imagebind-tiny"))
    names = set()
    for sampling, precision in (
        (Sampling(vision="tubelet"), "fp32"),
        (Sampling(crops=3, crop_rows="separate"), "fp32"),
        (Sampling(crops=3), "fp32"),
        (Sampling(fps=10.0, window_s=0.5), "fp32"),
        (Sampling(fps=10.0, window_s=0.5), "bf16"),
    ):
        settings = Settings(
            EncoderSpec("imagebind-tiny", precision=precision),
            sampling=sampling,
            dtype="float32",
            cluster=ClusterSpec(scheduler=scheduler),
        )
        store = extract(Manifest.load(tmp_path), data / "v", tmp_path / "s", settings).store
        cache = FeatureStore.open(store)
        clips = [decode(data / f"v/{name}.mp4", sampling) for name in ("02", "09")]
        images = np.concatenate([clip.images for clip in clips])
        if sampling.crops == 3:
            images = images.reshape(-1, *images.shape[2:])
        expected = encoder.vision(torch.from_numpy(images))
        if sampling == Sampling(crops=3):
            expected = expected.view(-1, 3, encoder.widths["vision"]).mean(1)
        features = cache.select(["a", "b"])
        if precision == "fp32":
            torch.testing.assert_close(features.values["vision"], expected, rtol=1e-4, atol=1e-4)
        several = {"vision": 3} if sampling.crop_rows == "separate" else {}
        assert cache.attributes.get("rows_per_frame", {}) == several
        assert features.lengths["audio"].tolist() == [clip.frames for clip in clips]
        rows = features.lengths["audio"] * several.get("vision", 1)
        assert features.lengths["vision"].equal(rows)
        names.add(store.name)
    assert len(names) == 5  # each is another recipe
