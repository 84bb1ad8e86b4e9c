"""The encoder, ffmpeg processes and progress events that the blocks of a worker share."""

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
    """A job on a folder with eight clips."""
    (tmp_path / "data").mkdir()
    first = write_clip(tmp_path / "data/0.mp4", 1.0)
    for i in range(1, 8):
        (tmp_path / f"data/{i}.mp4").hardlink_to(first)
    return Settings(EncoderSpec("imagebind-tiny")).job(tmp_path / "s.zarr", tmp_path / "data")


@pytest.fixture
def replace_ffmpeg(tmp_path, monkeypatch):
    """Replace ffmpeg by a shell script, in which ``$ffmpeg`` is the real one."""

    def wrap(script: str) -> None:
        wrapper = tmp_path / "wrapper"
        wrapper.write_text(f"#!/bin/sh\nffmpeg={ffmpeg_exe()}\n{script}\n")
        wrapper.chmod(0o755)
        monkeypatch.setattr("extract.decode.ffmpeg_exe", lambda: str(wrapper))

    return wrap


def utterances(*names: int) -> list[Utterance]:
    return [Utterance(f"u{i}", f"{i}.mp4") for i in names]


def test_the_encoder_lock_is_granted_to_the_oldest_block():
    lock, order = EncoderLock(), []

    def encode(age: int) -> None:
        with lock.turn(age):
            order.append(age)

    with lock.turn(9):
        waiting = [threading.Thread(target=encode, args=(age,)) for age in (3, 1, 2)]
        for thread in waiting:
            thread.start()
        while lock.waiting < 3:
            pass
    for thread in waiting:
        thread.join()
    assert order == [1, 2, 3]


def test_the_encoder_lock_is_released_after_an_error():
    lock = EncoderLock()
    with pytest.raises(KeyError), lock.turn(1):
        raise KeyError
    with lock.turn(2):
        pass


def test_blocks_share_their_ffmpeg_processes(job, replace_ffmpeg, tmp_path):
    """Two blocks of four files run no more ffmpeg processes at once than one block."""
    log = tmp_path / "log"
    replace_ffmpeg(
        f'echo + >> {log}\n"$ffmpeg" "$@"\nstatus=$?\nsleep 0.1\necho - >> {log}\nexit $status'
    )
    with ThreadPoolExecutor(2) as pool:
        blocks = [utterances(*range(4)), utterances(*range(4, 8))]
        for records in pool.map(lambda block: extract_block(job, block, 2), blocks):
            assert [record.status for record in records] == ["ok"] * 4
    running, most = 0, 0
    for line in log.read_text().split():
        running += 1 if line == "+" else -1
        most = max(most, running)
    assert most == 2


def test_prefetching_stops_when_the_block_is_abandoned(job, replace_ffmpeg, tmp_path):
    log = tmp_path / "log"
    replace_ffmpeg(f'echo + >> {log}\nsleep 0.2\nexec "$ffmpeg" "$@"')
    with prefetch.prefetch_clips(job, utterances(*range(8)), 4, ignore_stage) as clips:
        next(clips)
    prefetch.decoder_pool(4).submit(int).result()
    assert len(log.read_text().split()) <= 6


def test_ffmpeg_runs_at_a_lower_priority(job, replace_ffmpeg):
    replace_ffmpeg("exec sleep 60")
    running = threading.Thread(
        target=extract_block, args=(replace(job, timeout=2.0), utterances(0))
    )
    running.start()
    me = psutil.Process()
    while not (decoders := [child for child in me.children() if child.name() == "sleep"]):
        assert running.is_alive()
    while decoders[0].nice() != me.nice() + FFMPEG_NICE:
        assert running.is_alive()
    running.join()
    assert not decoders[0].is_running()


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_an_interrupted_ffmpeg_is_not_a_failed_video(job, replace_ffmpeg, name):
    """Ctrl-C and the end of a job signal the whole process group: the block is not written."""
    # -re: at the speed of the clip, so that the signal arrives in the middle
    replace_ffmpeg(f'exec timeout --preserve-status -s {name} 0.75 "$ffmpeg" -re "$@"')
    write_clip(job.data / "9.mp4", 3.0)
    message = attempt_block(job, utterances(9), 2, ignore_stage)
    assert "terminated by a signal" in message
    assert not Parts(job.place).read()


def test_stages_are_reported_in_order(job, tmp_path):
    stages: list[tuple[str, str]] = []
    extract_block(
        job, utterances(0, 1), 2, lambda stage, ids: stages.extend((stage, i) for i in ids)
    )
    assert sorted(stages) == [(s, f"u{i}") for s in ("decoded", "encoded") for i in (0, 1)]
    for i in (0, 1):
        assert stages.index(("decoded", f"u{i}")) < stages.index(("encoded", f"u{i}"))


def test_stages_reach_the_callback_of_the_run(job, tmp_path):
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


def ignore_stage(stage: str, ids: list[str]) -> None:
    """Ignore a progress event."""


# Count, then write a byte to the file descriptor {sink}.
COUNT = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; printf x > /dev/fd/{sink}"


def test_a_process_short_of_processor_time_may_exceed_its_timeout(monkeypatch):
    """A process that was stopped most of the time is late, but has not used its seconds."""
    pids, popen = [], subprocess.Popen
    started = threading.Event()

    def recording_popen(*args, **options):
        process = popen(*args, **options)
        pids.append(process.pid)
        started.set()
        return process

    def stop() -> None:
        started.wait()
        while psutil.Process(pids[0]).cpu_times().user < 0.03:
            time.sleep(0.005)
        os.kill(pids[0], signal.SIGSTOP)
        time.sleep(max(0.0, began + 3.2 - time.monotonic()))  # until its timeout is over
        os.kill(pids[0], signal.SIGCONT)

    monkeypatch.setattr(subprocess, "Popen", recording_popen)
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


def test_a_process_that_never_ends_is_killed():
    with pytest.raises(HangingError, match=r"within 0\.5 s"):
        run_process(["none"], lambda sinks: ["sh", "-c", "while :; do :; done"], 0.5)
