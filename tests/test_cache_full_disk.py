"""A disk that is really full: a small file system in memory, mounted for one process alone."""

import ctypes
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.share.verify import verify
from extract import EncoderSpec, Settings, extract
from tests.stores import build_store, tree_of
from tests.test_extract import write_clip, write_manifest

fork = multiprocessing.get_context("fork")
LENGTHS = {f"u{i}": (400, 400) for i in range(8)}
CLONE_NEWNS, CLONE_NEWUSER, MS_REMOUNT = 0x20000, 0x10000000, 32


def _system(name: str, *arguments) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _mount(disk: Path, size: str, flags: int = 0) -> None:
    _system("mount", b"none", bytes(disk), b"tmpfs", flags, f"size={size}".encode())


def _on_small_disk(disk: Path, size: str, attempt: Callable[[], str], seen) -> None:
    """Attempt something on a disk that is too small, and again when there is room."""
    user, group = os.getuid(), os.getgid()
    try:
        _system("unshare", CLONE_NEWUSER | CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _mount(disk, size)
    except (OSError, AttributeError) as error:
        seen.send(f"a file system cannot be mounted here: {error}")
        return
    seen.send(None)
    error = attempt()
    left = [path.name for path in disk.rglob("*") if path.is_file()]
    _mount(disk, "64m", MS_REMOUNT)
    again = attempt()
    shutil.copytree(disk, disk.with_name("kept"))
    seen.send((error, left, again))


def twice(disk: Path, size: str, attempt: Callable[[], str]) -> tuple[str, list[str]]:
    """What the first attempt said and which files it left; the second one must succeed.

    The files then on the disk are copied to the folder ``kept`` next to it.
    """
    disk.mkdir()
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_on_small_disk, args=(disk, size, attempt, theirs))
    process.start()
    theirs.close()
    unable = ours.recv()
    if unable:
        process.join()
        pytest.skip(unable)
    error, left, again = ours.recv()
    process.join()
    assert again == ""
    return error, left


@pytest.mark.parametrize(("size", "finished"), [("48k", range(1, 8)), ("112k", [8])])
def test_publishing(tmp_path, size, finished):
    """There is room for some of the parts; for all of them, but not for the store too."""
    disk = tmp_path / "disk"

    def attempt() -> str:
        try:
            build_store(disk, LENGTHS, block=1)
        except ValueError as error:
            return str(error)
        return ""

    error, left = twice(disk, size, attempt)
    assert "the disk is full" in error
    assert "finished blocks are kept: free some space and run again" in error
    assert "\n" not in error
    assert len(left) in finished
    assert all(name.endswith(".part") for name in left)
    calm = build_store(tmp_path / "calm", LENGTHS)
    for index in tmp_path.glob("*/.sources-*"):  # remembers times
        index.unlink()
    assert tree_of(tmp_path / "kept") == tree_of(tmp_path / "calm")
    assert verify(tmp_path / "kept" / "toy" / calm.name) == []


def test_extracting(tmp_path):
    """The command line, with its workers, on a disk that holds one of two parts."""
    data, disk = tmp_path / "data", tmp_path / "disk"
    data.mkdir()
    for i in range(3):
        write_clip(data / f"{i}.mp4", 4 + i, size="32x32")
    manifest = write_manifest(data, {f"u{i}": f"{i}.mp4" for i in range(3)})
    command = [sys.executable, "-m", "extract", str(data), "--workers", "1", "--stores", str(disk)]

    def attempt() -> str:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert ended.returncode == bool(ended.stderr)
        return ended.stderr

    error, left = twice(disk, "4k", attempt)
    assert error.startswith("error: ")
    assert "the disk is full" in error
    assert error.count("\n") == 1
    assert all(name.endswith(".part") or "/.sources-" in f"/{name}" for name in left)
    extract(manifest, data, tmp_path / "calm", Settings(EncoderSpec("imagebind-tiny")))
    for index in tmp_path.glob("*/.sources-*"):  # remembers times
        index.unlink()
    assert tree_of(tmp_path / "kept") == tree_of(tmp_path / "calm")
