"""Ctrl-C, as a terminal sends it: to the run, its workers and its ffmpeg processes at once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cache import Parts
from cache.store.publish import is_published
from extract import EncoderSpec, Settings, extract
from extract.__main__ import main
from extract.decode import DecodeError, decode
from extract.sampling import Sampling
from manifests import Manifest
from tests.stores import tree_of
from tests.test_extract import write_clips

LINE = "interrupted; finished blocks are kept, run the command again\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data"), [1.0 + 0.3 * i for i in range(10)])


@pytest.fixture(scope="module")
def reference_store(data, tmp_path_factory) -> Path:
    """The store of a run without an interruption."""
    settings = Settings(EncoderSpec("imagebind-tiny"))
    return extract(Manifest.load(data), data, tmp_path_factory.mktemp("stores"), settings).store


def has_child(words: str, below: int) -> bool:
    """Whether a process below another has ``words`` in its command line."""
    for child in psutil.Process(below).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if words in " ".join(child.cmdline()):
                return True
    return False


@pytest.mark.parametrize("moment", ["multiprocessing.forkserver", "ffmpeg"])
def test_ctrl_c_prints_one_line_and_fails_no_video(data, reference_store, tmp_path, moment):
    """Interrupt while the workers start, and while they decode."""
    command = [str(data), "--stores", str(tmp_path), "--workers", "1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "extract", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not has_child(moment, run.pid):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGINT)
    assert run.communicate(timeout=120)[1] == LINE
    assert run.returncode == 130
    store = tmp_path / "toy" / reference_store.name
    assert not is_published(store)
    assert {r.status for part in Parts(store).read() for r in part.records} <= {"ok"}
    assert main(command) == 0
    assert tree_of(store) == tree_of(reference_store)


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM"])
def test_an_ffmpeg_killed_before_it_handles_signals_is_an_interruption(
    data, monkeypatch, tmp_path, name
):
    """It is killed by the signal instead of logging that it received one."""
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text(f"#!/bin/sh\nkill -{name} $$\n")
    ffmpeg.chmod(0o755)
    monkeypatch.setattr("extract.decode.ffmpeg_exe", lambda: str(ffmpeg))
    with pytest.raises(InterruptedError):
        decode(data / "v/00.mp4", Sampling())


def test_an_ffmpeg_that_crashes_fails_its_video(data, monkeypatch, tmp_path):
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text("#!/bin/sh\nkill -SEGV $$\n")
    ffmpeg.chmod(0o755)
    monkeypatch.setattr("extract.decode.ffmpeg_exe", lambda: str(ffmpeg))
    with pytest.raises(DecodeError, match="SIGSEGV"):
        decode(data / "v/00.mp4", Sampling())
