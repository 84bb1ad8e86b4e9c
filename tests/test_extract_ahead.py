"""Who decodes and who encodes when: what several blocks of one worker share."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from cache import Parts
from extract import ClusterSpec, EncoderSpec, Settings, extract, prefetch
from extract.block import EncoderLock, extract_block
from extract.cluster import IN_FLIGHT, connect, threads
from extract.ffmpeg import FFMPEG_NICE, HangingError, ffmpeg_exe, run_process
from extract.job import Job, Utterance
from extract.progress import Tally
from extract.scheduler import attempt_block
from manifests import Manifest
from tests.test_extract import write_clip, write_manifest


@pytest.fixture
def job(tmp_path) -> Job:
    """Of a folder with eight clips."""
    (tmp_path / "data").mkdir()
    first = write_clip(tmp_path / "data/0.mp4", 1.0)
    for i in range(1, 8):
        (tmp_path / f"data/{i}.mp4").hardlink_to(first)
    return Settings(EncoderSpec("imagebind-tiny")).job(tmp_path / "s.zarr", tmp_path / "data")


@pytest.fixture
def wrapped(tmp_path, monkeypatch):
    """Puts a shell script in the place of ffmpeg; ``$ffmpeg`` is the real one."""

    def wrap(script: str) -> None:
        wrapper = tmp_path / "wrapper"
        wrapper.write_text(f"#!/bin/sh\nffmpeg={ffmpeg_exe()}\n{script}\n")
        wrapper.chmod(0o755)
        monkeypatch.setattr("extract.decode.ffmpeg_exe", lambda: str(wrapper))

    return wrap


def utterances(*names: int) -> list[Utterance]:
    return [Utterance(f"u{i}", f"{i}.mp4") for i in names]


def test_the_oldest_block_comes_first_at_the_encoder():
    turns, order = EncoderLock(), []

    def encode(age: int) -> None:
        with turns.turn(age):
            order.append(age)

    with turns.turn(9):
        waiting = [threading.Thread(target=encode, args=(age,)) for age in (3, 1, 2)]
        for thread in waiting:
            thread.start()
        while turns.waiting < 3:
            pass
    for thread in waiting:
        thread.join()
    assert order == [1, 2, 3]


def test_an_error_at_the_encoder_leaves_it_free():
    turns = EncoderLock()
    with pytest.raises(KeyError), turns.turn(1):
        raise KeyError
    with turns.turn(2):
        pass


def test_blocks_share_their_ffmpegs(job, wrapped, tmp_path):
    """Two blocks of four files: never more at once than one block alone may have."""
    log = tmp_path / "log"
    wrapped(f'echo + >> {log}\n"$ffmpeg" "$@"\nstatus=$?\nsleep 0.1\necho - >> {log}\nexit $status')
    with ThreadPoolExecutor(2) as pool:
        blocks = [utterances(*range(4)), utterances(*range(4, 8))]
        for records in pool.map(lambda block: extract_block(job, block, 2), blocks):
            assert [record.status for record in records] == ["ok"] * 4
    running, most = 0, 0
    for line in log.read_text().split():
        running += 1 if line == "+" else -1
        most = max(most, running)
    assert most == 2


def test_what_is_not_needed_any_more_is_not_decoded(job, wrapped, tmp_path):
    log = tmp_path / "log"
    wrapped(f'echo + >> {log}\nsleep 0.2\nexec "$ffmpeg" "$@"')
    with prefetch.prefetch_clips(job, utterances(*range(8)), 4, _unheard) as clips:
        next(clips)
    prefetch.decoder_pool(4).submit(int).result()
    assert len(log.read_text().split()) <= 6


def test_ffmpeg_comes_after_the_encoder(job, wrapped):
    wrapped("exec sleep 60")
    running = threading.Thread(
        target=extract_block, args=(replace(job, timeout=2.0), utterances(0))
    )
    running.start()
    me = psutil.Process()
    while not (ffmpegs := [child for child in me.children() if child.name() == "sleep"]):
        assert running.is_alive()
    while ffmpegs[0].nice() != me.nice() + FFMPEG_NICE:
        assert running.is_alive()
    running.join()
    assert not ffmpegs[0].is_running()


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_an_interrupted_ffmpeg_is_no_broken_video(job, wrapped, name):
    """Ctrl-C and a job's end reach the whole group of processes: the block is not written."""
    # at the speed of the clip, so that the signal comes in the middle
    wrapped(f'exec timeout --preserve-status -s {name} 0.25 "$ffmpeg" -re "$@"')
    said = attempt_block(job, utterances(0), 2, _unheard)
    assert "terminated by a signal" in said
    assert not Parts(job.store).read()


def test_stages_are_told_as_they_are_reached(job, tmp_path):
    heard: list[tuple[str, str]] = []
    extract_block(
        job, utterances(0, 1), 2, lambda stage, ids: heard.extend((stage, i) for i in ids)
    )
    assert sorted(heard) == [(s, f"u{i}") for s in ("decoded", "encoded") for i in (0, 1)]
    for i in (0, 1):
        assert heard.index(("decoded", f"u{i}")) < heard.index(("encoded", f"u{i}"))


def test_stages_reach_the_one_who_watches(job, tmp_path):
    write_manifest(job.data, {f"u{i}": f"{i}.mp4" for i in range(8)})
    tallies: list[Tally] = []
    settings = Settings(EncoderSpec("imagebind-tiny"))
    extract(Manifest.load(job.data), job.data, tmp_path / "stores", settings, tallies.append)
    (tally, *_) = tallies
    assert tally.encoded
    assert tally.encoded <= {f"u{i}" for i in range(8)}
    assert len(tally.decoded) >= len(tally.encoded)


def test_workers_share_cores_and_memory():
    assert threads(1) >= threads(2) >= IN_FLIGHT
    with connect(ClusterSpec(workers=2), "cpu", 8, print) as client:
        workers = client.scheduler_info()["workers"].values()
        limits = [worker["memory_limit"] for worker in workers]
    assert len(limits) == 2
    assert sum(limits) <= psutil.virtual_memory().total
    assert len(set(limits)) == 1


def _unheard(stage: str, ids: list[str]) -> None:
    """Nobody watches."""


# Counts, and gives a byte when it is done; {sink} is where to.
COUNT = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; printf x > /dev/fd/{sink}"


def test_who_is_short_of_a_core_is_not_hanging(monkeypatch):
    """Stopped for most of its time, the process is late without having done its seconds."""
    pids, popen = [], subprocess.Popen
    started = threading.Event()

    def watched(*args, **options):
        process = popen(*args, **options)
        pids.append(process.pid)
        started.set()
        return process

    def stop() -> None:
        started.wait()
        while psutil.Process(pids[0]).cpu_times().user < 0.03:
            time.sleep(0.005)
        os.kill(pids[0], signal.SIGSTOP)
        time.sleep(max(0.0, began + 3.2 - time.monotonic()))  # until it is late
        os.kill(pids[0], signal.SIGCONT)

    monkeypatch.setattr(subprocess, "Popen", watched)
    began = time.monotonic()
    stopping = threading.Thread(target=stop)
    stopping.start()
    _, _, streams = run_process(
        ["byte"], lambda sinks: ["sh", "-c", COUNT.format(sink=sinks["byte"])], 3.0
    )
    stopping.join()
    assert time.monotonic() - began > 3.0
    streams["byte"].seek(0)
    assert streams["byte"].read() == b"x"


def test_who_works_for_ever_is_ended():
    with pytest.raises(HangingError, match=r"within 0\.5 s"):
        run_process(["none"], lambda sinks: ["sh", "-c", "while :; do :; done"], 0.5)
