"""Publishing under duress: killed at every step, raced by another writer, out of disk space."""

import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from cache import Parts, publish
from cache.share.verify import verify
from cache.store.publish import is_published
from extract import EncoderSpec, Settings
from extract.block import extract_block
from extract.job import Utterance
from tests.stores import RECIPE, WIDTHS, build_store, records_of, tree_of, write_part
from tests.test_extract import write_clip

fork = multiprocessing.get_context("fork")
LENGTHS = {f"u{i}": (3, 2) for i in range(4)}
STEPS = {
    *("open", "write", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "chmod", "flock"),
}


def _work(root: Path, step, kill_at: int, pause: float) -> None:
    """Publish; at its ``kill_at``-th call that touches the disk the process kills itself."""

    def before_call(_frame, event, function):
        if event == "c_call" and function.__name__ in STEPS:
            step.value += 1
            if step.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if pause:
                time.sleep(pause)

    threading.setprofile(before_call)
    sys.setprofile(before_call)
    build_store(root, LENGTHS)


def _run(root: Path, kill_at: int = 0) -> int:
    """Returns how many steps were taken."""
    step = fork.Value("i", 0, lock=False)
    process = fork.Process(target=_work, args=(root, step, kill_at, 0.0))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return step.value


def _is_like(root: Path, calm: Path) -> None:
    # no staging folder, part or lock is left next to the store
    assert tree_of(root) == tree_of(calm)


@pytest.mark.parametrize("first", [1, 7, 13, 19])
def test_killed_before_every_sixth_step(tmp_path, first):
    steps = _run(tmp_path / "calm")
    assert steps > 60
    for kill_at in range(first, steps + 1, 24):
        root = tmp_path / str(kill_at)
        _run(root, kill_at)
        build_store(root, LENGTHS)
        _is_like(root, tmp_path / "calm")


@pytest.mark.parametrize("fresh", [False, True])
def test_killed_at_thirty_random_moments(tmp_path, fresh):
    steps = _run(tmp_path / "calm")
    draw = random.Random(7)
    for turn, moment in enumerate(sorted(draw.randint(1, steps) for _ in range(30))):
        root = tmp_path / (f"killed{turn}" if fresh else "killed")
        step = fork.Value("i", 0, lock=False)
        process = fork.Process(target=_work, args=(root, step, 0, 0.0003))
        process.start()
        while step.value < moment and process.is_alive():
            time.sleep(0.0002)
        process.kill()
        process.join()
        if fresh:
            build_store(root, LENGTHS)
            _is_like(root, tmp_path / "calm")
    build_store(root, LENGTHS)
    _is_like(root, tmp_path / "calm")


@pytest.mark.parametrize("locks", [True, False])
def test_two_writers_at_once(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr("cache.store.disk.fcntl", None)  # a file system without them
    calm = build_store(tmp_path / "calm", LENGTHS)
    for turn in range(6):
        root = tmp_path / str(turn)
        writers = [fork.Process(target=build_store, args=(root, LENGTHS)) for _ in range(2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        _is_like(root, tmp_path / "calm")
        assert verify(root / "toy" / calm.name) == []


def _write_parts_until(root: Path, published, blocks: int) -> None:
    """A worker of a slow run: it continues for a while after another run has published."""
    store, records = root / "toy" / RECIPE.store_name, records_of(LENGTHS)
    late = 0
    while late < 5:
        for start in range(0, len(records), blocks):
            write_part(store, records[start : start + blocks])
        late += published.is_set()


@pytest.mark.parametrize("locks", [True, False])
def test_one_publishes_while_another_still_writes_parts(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr("cache.store.disk.fcntl", None)
    calm = build_store(tmp_path / "calm", LENGTHS)
    store = tmp_path / "raced" / "toy" / RECIPE.store_name
    published = fork.Event()
    writers = [
        fork.Process(target=_write_parts_until, args=(tmp_path / "raced", published, blocks))
        for blocks in (1, 3)
    ]
    for writer in writers:
        writer.start()
    try:
        build_store(tmp_path / "raced", LENGTHS)
        assert tree_of(store) == tree_of(calm)
    finally:
        published.set()
        for writer in writers:
            writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert verify(store) == []
    build_store(tmp_path / "raced", LENGTHS)  # the next run removes the late files
    _is_like(tmp_path / "raced", tmp_path / "calm")


def test_a_block_that_is_done_too_late_leaves_nothing(tmp_path):
    write_clip(tmp_path / "a.mp4", 0.5)
    store = build_store(tmp_path / "stores")
    before = tree_of(tmp_path / "stores")
    place = store.with_name("other")
    job = Settings(EncoderSpec("imagebind-tiny")).job(place, tmp_path, store)
    (record,) = extract_block(job, [Utterance("a", "a.mp4")])
    assert record.status == "ok"
    assert tree_of(tmp_path / "stores") == before
    assert list(store.parent.iterdir()) == [store]


def _publish_limited(root: Path, limit: int, said) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        build_store(root, {f"u{i}": (40, 40) for i in range(8)}, block=1)
    except ValueError as error:
        said.put(str(error))


@pytest.mark.parametrize(("limit", "finished"), [(300, 0), (2000, 8)])
def test_size_limit_is_a_clear_error_and_work_goes_on(tmp_path, limit, finished):
    lengths = {f"u{i}": (40, 40) for i in range(8)}
    said = fork.Queue()
    process = fork.Process(target=_publish_limited, args=(tmp_path / "full", limit, said))
    process.start()
    message = said.get(timeout=120)
    process.join()
    assert "larger than the system allows" in message
    assert "finished blocks are kept" in message
    assert "\n" not in message
    store = tmp_path / "full" / "toy" / RECIPE.store_name
    assert not is_published(store)
    assert len(Parts(store).read()) == finished
    assert {path.suffix for path in Parts(store).folder.iterdir()} <= {".part"}
    build_store(tmp_path / "full", lengths, block=1)
    build_store(tmp_path / "calm", lengths, block=1)
    _is_like(tmp_path / "full", tmp_path / "calm")


def test_too_little_room_is_refused_before_assembling(tmp_path, monkeypatch):
    store = tmp_path / "toy" / RECIPE.store_name
    write_part(store, records_of(LENGTHS))
    nearly_full = os.statvfs_result((4096, 4096, 9, 0, 0, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: nearly_full)
    with pytest.raises(ValueError, match=r"disk is full .*needs 0\.000 MB.* free some space"):
        publish(store, RECIPE, WIDTHS, {}, list(LENGTHS))
    assert len(Parts(store).read()) == 1
