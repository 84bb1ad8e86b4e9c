"""Stores larger than what a process is given: descriptors, memory."""

import errno
import multiprocessing
import os
import resource

import numpy as np
import psutil
import zarr

from cache.share.verify import verify
from cache.store.chunks import ChunkedRows
from cache.store.disk import os_error_message
from tests.stores import build_store, tree_of

fork = multiprocessing.get_context("fork")
MANY = {f"u{i:03}": (1, 1) for i in range(200)}


def _publish_with(descriptors: int, root) -> None:
    there = psutil.Process().num_fds()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + descriptors, hard))
    build_store(root, MANY, block=1)


def test_more_parts_than_a_process_may_open_files(tmp_path):
    process = fork.Process(target=_publish_with, args=(120, tmp_path / "few"))
    process.start()
    process.join()
    assert process.exitcode == 0
    store = build_store(tmp_path / "enough", MANY, block=50)
    (few,) = (tmp_path / "few").rglob("*.zarr")
    assert verify(few) == []
    assert tree_of(few) == tree_of(store)


def test_too_many_open_files_is_said_plainly():
    assert "ulimit -n" in os_error_message(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))


def test_an_array_larger_than_memory_is_mapped(tmp_path):
    """Twice as large as memory and swap; the chunks are holes, but for the last row."""
    gigabytes = 2 * (psutil.virtual_memory().total + psutil.swap_memory().total) // 10**9 + 1
    rows, width = 1 << 19, 1024  # a chunk of 1 GiB
    array = zarr.create_array(
        tmp_path / "values",
        shape=(gigabytes * rows, width),
        chunks=(rows, width),
        dtype="float16",
        compressors=None,
        filters=None,
    )
    for chunk in range(gigabytes):
        path = tmp_path / "values" / "c" / str(chunk) / "0"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.truncate(rows * width * 2)
    with path.open("r+b") as file:
        file.seek(-width * 2, os.SEEK_END)
        file.write(np.arange(width, dtype=np.float16).tobytes())
    mapped = ChunkedRows.open(tmp_path / "values").map()
    assert mapped is not None
    assert mapped.shape == array.shape
    assert (mapped[-1] == np.arange(width)).all()
    assert not mapped[:: rows * 7].any()
