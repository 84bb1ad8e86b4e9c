"""What a file claims to contain is refused before it is taken: each kind of claim in one table.

Each file is read by the function that a command calls, in a process of its own whose peak of memory
is measured.
"""

import bz2
import gzip
import json
import lzma
import multiprocessing
import os
import pickle
import re
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from cache.convert.import_features import import_source, read
from cache.reader import FeatureStore
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore
from cache.store.checksums import CHECKSUMS, Checksums
from manifests import Card, Manifest
from manifests.adapters.csd import RELEASES
from manifests.adapters.csd import read as read_csd
from manifests.budget import Budget, OverBudgetError, check_fits, read_file
from manifests.csv_table import read_cells
from manifests.unpickle import load_pickle
from tests.datasets import write_scores
from tests.foreign import RAGGED_FILE, Calls, ramp, write_h5
from tests.stores import build_store
from tests.tampering import make_endless, unseal

fork = multiprocessing.get_context("fork")
MOST_BYTES = 512 << 20
MOST_SECONDS = 10
Reading = Callable[[], object]


# --- pickles --------------------------------------------------------------------------------------

LIST, TUPLE_2, DUPLICATE, DICT = b"]", b"\x86", b"2", b"}"
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n\x94cnumpy\nndarray\nK\0\x85C\1b\x87\x94"
NONE_LEFT = b"J\xff\xff\xff\xff" * 2
F4 = b"cnumpy\ndtype\nX\2\0\0\0f4K\0K\1\x87R(K\3X\1\0\0\0<NNN" + NONE_LEFT + b"K\0tb"
OBJECTS = b"cnumpy\ndtype\nX\2\0\0\0O8K\0K\1\x87R(K\3X\1\0\0\0|NNN" + NONE_LEFT + b"K\x3ftb"
MEGABYTES_16 = b"B" + struct.pack("<I", 1 << 24) + bytes(1 << 24)
NUMBERS = LIST + b"(" + b"".join(b"J" + n.to_bytes(4, "little") for n in range(200_000)) + b"e"
MANY_NONE = LIST + b"(" + b"N" * 1_000_000 + b"e"
TEXT = b"X" + struct.pack("<I", 1 << 22) + b"a" * (1 << 22)


def pickled(content: bytes) -> Callable[[Path], Reading]:
    def make(folder: Path) -> Reading:
        path = folder / "hostile.pkl"
        path.write_bytes(b"\x80\x05" + content + b".")
        return lambda: load_pickle(path)

    return make


def claimed(code: bytes, form: str, size: int) -> Callable[[Path], Reading]:
    """An instruction that announces more bytes than the file has."""
    return pickled(code + struct.pack(form, size) + b"few bytes")


def strings_of_no_length(kind: str) -> bytes:
    state = (3, "|", None, None, None, 0, 1, 0)
    make = Calls(np.dtype, kind, False, True)
    make.call = (*make.call, state)
    array = Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b")
    array.call = (*array.call, (1, (1 << 40,), make, False, b""))
    return pickle.dumps(array, 4)[2:-1]


def colliding(count: int) -> bytes:
    """A dictionary of integers that all have the hash 0."""
    keys = (n * (2**61 - 1) for n in range(1, count))
    return (
        DICT + b"(" + b"".join(b"\x8a\x0a" + k.to_bytes(10, "little") + b"N" for k in keys) + b"u"
    )


def colliding_tuples(count: int) -> bytes:
    keys = (n.to_bytes(4, "little") for n in range(count))
    return DICT + b"".join(b"J%bJ%b\x86Ns" % (k, bytes(4)) for k in keys)


def arrays_of(content: bytes, shape: bytes, kind: bytes, count: int) -> bytes:
    """As many arrays as wanted of one content, which the file has once."""
    start = content + b"\x94" + kind + b"\x94" + LIST + b"("
    return start + (ARRAY + b"(K\x01" + shape + b"h\x01I00\nh\x00tb") * count + b"e"


PICKLES = {
    "bytes of 1 TB": (claimed(b"\x8e", "<Q", 1 << 40), "cannot be read as a pickle"),
    "bytearray of 1 TB": (claimed(b"\x96", "<Q", 1 << 40), "cannot be read as a pickle"),
    "text of 1 TB": (claimed(b"\x8d", "<Q", 1 << 40), "cannot be read as a pickle"),
    "frame of 1 TB": (claimed(b"\x95", "<Q", 1 << 40), "cannot be read as a pickle"),
    "integer of 2 GB": (claimed(b"\x8b", "<i", 2**31 - 1), "cannot be read as a pickle"),
    "strings S0": (pickled(strings_of_no_length("S0")), "strings of length 0"),
    "strings U0": (pickled(strings_of_no_length("U0")), "strings of length 0"),
    "sets": (pickled(b"\x8f" * 1_000_000), "needs"),
    "lists": (pickled(b"]" * 2_000_000), "needs"),
    "dictionaries": (pickled(b"}" * 2_000_000), "needs"),
    "marks": (pickled(b"(" * 2_000_000), "needs"),
    "memo": (pickled(b"N" + b"\x94" * 2_000_000), "needs"),
    "empty arrays": (pickled(RECONSTRUCT + b"(" + b"h\0h\1R" * 399_000), "needs"),
    "one content in many arrays": (
        pickled(arrays_of(MEGABYTES_16, b"J\0\0\x40\0\x85", F4, 200)),
        "needs",
    ),
    "one list in many object arrays": (
        pickled(arrays_of(MANY_NONE, b"J\x40\x42\x0f\0\x85", OBJECTS, 99)),
        "needs",
    ),
    "one list in many sets": (
        pickled(NUMBERS + b"\x94(" + b"c__builtin__\nset\nh\0\x85R" * 500),
        "needs",
    ),
    "one text encoded many times": (
        pickled(TEXT + b"\x94(" + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 500),
        "needs",
    ),
    "colliding keys": (pickled(colliding(100_000)), r"key of type int .* 2\^61 or more"),
    "keys of tuples": (pickled(colliding_tuples(100_000)), "key of type tuple"),
    "nested tuples": (pickled(b"}N" + (DUPLICATE + TUPLE_2) * 60 + b"K\x01s"), "key of type tuple"),
    "nested tuples in a set": (
        pickled(b"c__builtin__\nset\n" + LIST + b"N" + (DUPLICATE + TUPLE_2) * 60 + b"a\x85R"),
        "key of type tuple",
    ),
}


def sparse(name: str, reading: Callable[[Path], object]) -> Callable[[Path], Reading]:
    """A terabyte of nothing."""

    def make(folder: Path) -> Reading:
        path = folder / name
        path.touch()
        make_endless(path, "sparse")
        return lambda: reading(path)

    return make


def line_without_end(folder: Path) -> Reading:
    path = folder / "hostile.pkl"
    path.write_bytes(b"S'")
    os.truncate(path, 1 << 40)
    return lambda: load_pickle(path)


# --- arrays ---------------------------------------------------------------------------------------


def npy(shape: tuple[int, ...], kind: str) -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def npz(name: str, shape: tuple[int, ...], kind: str, blocks: int) -> Callable[[Path], Reading]:
    """A member of as many blocks of 4 MB, all zero and compressed."""

    def make(folder: Path) -> Reading:
        path = folder / "hostile.npz"
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(f"{name}.npy", "w", force_zip64=True) as member,
        ):
            member.write(npy(shape, kind))
            for _ in range(blocks):
                member.write(bytes(1 << 22))
        return lambda: read(path, "npz")

    return make


def lying_npz(folder: Path) -> Reading:
    """A member whose size in the directory is that of its header; there is much more in it."""
    make = npz("ids", (1 << 27,), "<f4", 128)(folder)
    path = folder / "hostile.npz"
    whole = bytearray(path.read_bytes())
    at = whole.index(b"PK\x01\x02") + 24
    whole[at : at + 4] = struct.pack("<I", 1000)
    path.write_bytes(whole)
    return make


GZIP = {"compression": "gzip"}


def h5(change: Callable[[h5py.File], object]) -> Callable[[Path], Reading]:
    def make(folder: Path) -> Reading:
        path = write_h5(folder / "hostile.h5", {"audio/values": ramp(3, 2)})
        with h5py.File(path, "a") as file:
            change(file)
        return lambda: read(path, "h5")

    return make


def shared_strings(folder: Path, chunked: bool = False) -> Reading:
    """Many elements that refer to the same string of 4 MB."""
    path = write_h5(folder / "hostile.h5", {"audio/values": ramp(3, 2)})
    with h5py.File(path, "a") as file:
        options = {"chunks": (1000,)} if chunked else {}
        file.create_dataset(
            "ids", data=["x" * (1 << 22)] + ["y"] * 999, dtype=h5py.string_dtype(), **options
        )
        at = (
            file["ids"].id.get_chunk_info(0).byte_offset if chunked else file["ids"].id.get_offset()
        )
    whole = bytearray(path.read_bytes())
    whole[at : at + 16 * 1000] = whole[at : at + 16] * 1000
    path.write_bytes(whole)
    return lambda: read(path, "h5")


def strings_without_content(file: h5py.File) -> None:
    file.create_dataset(
        "ids", (1 << 26,), h5py.string_dtype(), chunks=(1 << 16,), compression="gzip"
    )


def references(file: h5py.File) -> None:
    file.create_dataset("ids", (1 << 26,), h5py.ref_dtype, chunks=(1 << 16,), **GZIP)


def sequences(file: h5py.File) -> None:
    file.create_dataset("ids", (1 << 26,), h5py.vlen_dtype("f8"), chunks=(1 << 16,))


def records(file: h5py.File) -> None:
    file.create_dataset("ids", (4,), np.dtype([("a", "f8", (1 << 10,))]))


def numbers_without_content(file: h5py.File) -> None:
    file["ids"] = ["a", "b"]
    file.create_dataset("audio/offsets", (1 << 28,), "i8", chunks=(1 << 16,), compression="gzip")


def large_chunk(file: h5py.File) -> None:
    file["ids"] = ["a", "b"]
    del file["audio/values"]
    file.create_dataset(
        "audio/values", (1 << 17, 1 << 10), "f8", chunks=(1 << 17, 1 << 10), compression="gzip"
    )


def fixed_strings(file: h5py.File) -> None:
    file.create_dataset("ids", (1 << 20,), "S4096", chunks=(1 << 10,), compression="gzip")


def rows_without_content(folder: Path) -> Reading:
    """Features that are nowhere in the file would be written to the store as zeros."""
    path = folder / "hostile.h5"
    with h5py.File(path, "w") as file:
        file["ids"] = [f"u{n}" for n in range(1000)]
        file.create_dataset("audio/values", (1 << 20, 1 << 10), "f4", chunks=(64, 1 << 10))
        file["audio/offsets"] = np.linspace(0, 1 << 20, 1001).astype(np.int64)
    return lambda: import_source(read(path, "h5"), "h5", folder / "stores", "toy")


def csd(kind: str) -> Callable[[Path], Reading]:
    def make(folder: Path) -> Reading:
        release = RELEASES["mosi"]
        for name in (release.labels, release.words):
            with h5py.File(folder / name, "w") as file:
                group = file.create_group("data/data/v0")
                group["intervals"] = np.zeros((1, 2))
                if kind == "rows":
                    group.create_dataset("features", (1 << 30, 1), "f8", chunks=(1 << 16, 1))
                else:
                    group.create_dataset(
                        "features", (1 << 26, 1), h5py.ref_dtype, chunks=(1 << 16, 1)
                    )
        (folder / Path(release.folds).name).write_text(
            "".join(f"standard_{s}_fold = []\n" for s in ("train", "valid", "test"))
        )
        return lambda: read_csd("mosi", folder, ["label"])

    return make


ARRAYS = {
    "npz of zeros": (npz("ids", (1 << 27,), "<f4", 128), "npz: ids needs 0.5.*save them without"),
    "npz of empty strings": (npz("ids", (1 << 50,), "<S0", 0), "npz: ids claims"),
    "npz of short strings": (npz("ids", (1 << 28,), "<S1", 64), "npz: ids needs"),
    "npz of another size": (lying_npz, "cannot be read as npz: "),
    "h5 of empty strings": (h5(strings_without_content), "HDF5: ids needs"),
    "h5 of references": (h5(references), "HDF5: ids has references"),
    "h5 of sequences": (h5(sequences), "HDF5: ids has elements of object"),
    "h5 of records": (h5(records), "HDF5: ids has elements of"),
    "h5 of unwritten numbers": (h5(numbers_without_content), "HDF5: audio/offsets needs"),
    "h5 of a large chunk": (h5(large_chunk), "HDF5: a chunk of audio/values needs"),
    "h5 of fixed strings": (h5(fixed_strings), "HDF5: ids needs"),
    "h5 of one string": (shared_strings, "HDF5: ids has .* MB of strings"),
    "h5 of one string in a chunk": (
        lambda folder: shared_strings(folder, chunked=True),
        "HDF5: ids has .* MB of strings",
    ),
    "h5 of unwritten features": (rows_without_content, "most of it is not data"),
    "csd of unwritten rows": (csd("rows"), "computational sequence.*needs"),
    "csd of references": (csd("references"), "computational sequence.*has references"),
}


# --- tables ---------------------------------------------------------------------------------------

ROWS = b"0,0,0\n" * 20_000
PACKED = {
    "gz": lambda: gzip.compress(ROWS * 1000, 9),
    "gz of many members": lambda: gzip.compress(ROWS, 9) * 1000,
    "bz2": lambda: bz2.compress(ROWS * 20) * 50,
    "xz": lambda: lzma.compress(ROWS * 1000, preset=0),
}


def packed(how: str) -> Callable[[Path], Reading]:
    def make(folder: Path) -> Reading:
        path = folder / f"hostile.csv.{how.partition(' ')[0]}"
        if how == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("t.csv", b"id,f0,f1\n" + ROWS * 1000)
        else:
            path.write_bytes(PACKED[how]())
        return lambda: read(path, "csv", "audio")

    return make


def table(content: bytes) -> Callable[[Path], Reading]:
    def make(folder: Path) -> Reading:
        path = folder / "hostile.csv"
        path.write_bytes(content)
        return lambda: read_cells(path)

    return make


def parquet(folder: Path) -> Reading:
    """Equal cells, which are stored once."""
    write_scores(folder)
    path = folder / "data/scores/manifest.parquet"
    pd.DataFrame({"id": np.zeros(20_000_000, np.int8)}).to_parquet(path)
    return lambda: Manifest.load(path.parent)


def card(text: str) -> Callable[[Path], Reading]:
    def make(folder: Path) -> Reading:
        path = folder / "card.yaml"
        path.write_text(f"name: toy\ntitle: Toy\ntask: regression\nrange: [-1, 1]\n{text}")
        return lambda: Card.load(path)

    return make


TWICE = [f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
NESTED_CLASSES = "".join(f", {twice}" for twice in TWICE)
NESTED_NAMES = "".join(f"k{n}: {twice}\n" for n, twice in enumerate(["&a0 [x, x]", *TWICE]))
TABLES = {
    "card of nested names": (card(NESTED_NAMES), "card.yaml: unknown key"),
    "card of nested classes": (
        card(f"classes: [&a0 [x, x]{NESTED_CLASSES}]"),
        "card.yaml: .*classes is",
    ),
    "large card": (card("licence: " + "x" * 10_000_000), "card.yaml needs"),
    "sparse card": (sparse("card.yaml", Card.load), "card.yaml needs"),
    "manifest of equal rows": (parquet, "manifest.parquet needs"),
    **{f"csv.{how}": (packed(how), "csv: the table needs") for how in (*PACKED, "zip")},
    "sparse csv": (sparse("hostile.csv", lambda p: read(p, "csv", "audio")), "the table needs"),
    "sparse labels.csv": (sparse("hostile.csv", read_cells), "csv needs"),
    "cells": (table(b"a,b\n" + b"," * 4_000_000), "csv needs"),
    "sparse pickle": (sparse("hostile.pkl", load_pickle), "cannot be read as a pickle"),
    "line without end": (line_without_end, "needs"),
    "sparse npz": (sparse("hostile.npz", lambda p: read(p, "npz")), "cannot be read as npz"),
    "sparse h5": (sparse("hostile.h5", lambda p: read(p, "h5")), "cannot be read as HDF5"),
}


# --- stores and shares ----------------------------------------------------------------------------

DIGEST = "0" * 64


def store_with(name: str, content: Callable[[Path], object]) -> Callable[[Path], Reading]:
    """A share whose store has another content in one of its files; it is pulled."""

    def make(folder: Path) -> Reading:
        shared = push(build_store(folder / "stores"), str(folder / "share"))[0]
        content(unseal(Path(str(shared))) / name)
        return lambda: pull(RemoteStore.parse(str(shared)), folder / "pulled")

    return make


def millions_of_entries(path: Path) -> None:
    entries = ", ".join(f'"{n}": {{"bytes": 1, "sha256": "{DIGEST}"}}' for n in range(620_000))
    path.write_text(f'{{"algorithm": "sha256", "files": {{"zarr.json": {{}}, {entries}}}}}')


def empty_lists(path: Path) -> None:
    path.write_bytes(b"[" + b"[]," * 21_000_000 + b"[]]")


def large_file(path: Path) -> None:
    listing = json.loads(path.read_text())
    listing["files"]["audio/values/c/0/0"] = {"bytes": 1 << 40, "sha256": DIGEST}
    path.write_text(json.dumps(listing))
    with (path.parent / "audio/values/c/0/0").open("wb") as file:
        file.truncate(1 << 40)


def sparse_chunks(path: Path) -> None:
    """As many as are read at once, each of half a gigabyte of nothing."""
    listing = json.loads(path.read_text())
    for n in range(8):
        listing["files"][f"audio/values/c/{n}/0"] = {"bytes": 500_000_000, "sha256": DIGEST}
        chunk = path.parent / f"audio/values/c/{n}/0"
        chunk.parent.mkdir(exist_ok=True)
        with chunk.open("wb") as file:
            file.truncate(500_000_000)
    path.write_text(json.dumps(listing))


def local(name: str, reading: Callable[[Path], object]) -> Callable[[Path], Reading]:
    """A published store with a sparse file in the place of one of its own."""

    def make(folder: Path) -> Reading:
        store = unseal(build_store(folder / "stores"))
        make_endless(store / name, "sparse")
        return lambda: reading(store)

    return make


def sparse_column(folder: Path) -> Reading:
    store = unseal(build_store(folder / "stores"))
    os.truncate(store / "utterances/id/c/0", 500_000_000)
    return lambda: FeatureStore.open(store).ids


STORES = {
    "list of many files": (store_with(CHECKSUMS, millions_of_entries), "checksums.json"),
    "list of empty lists": (
        store_with(CHECKSUMS, empty_lists),
        "checksums.json has 63 MB and would",
    ),
    "list without end": (
        store_with(CHECKSUMS, lambda p: make_endless(p, "sparse")),
        "checksums.json",
    ),
    "file of 1 TB": (store_with(CHECKSUMS, large_file), "has 1099511627776 bytes; such a file"),
    "sparse chunks": (store_with(CHECKSUMS, sparse_chunks), "without compression or holes"),
    "local list without end": (local(CHECKSUMS, Checksums.of), "checksums.json"),
    "local root without end": (local("zarr.json", FeatureStore.open), "zarr.json"),
    "sparse column": (sparse_column, "without compression or holes"),
}


# --- the table ------------------------------------------------------------------------------------

HOSTILE = PICKLES | ARRAYS | TABLES | STORES


def memory_of_process(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s*(\d+) kB", status)[1]) << 10


def _try(reading: Reading, answer) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_of_process("VmRSS")
    room = memory_of_process("VmSize") + (4 << 30)  # so that a fault of ours harms no other process
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    began = time.process_time()
    try:
        reading()
        error = "it was read"
    except ValueError as refusal:
        error = str(refusal)
    except BaseException as fault:
        error = f"not a refusal: {fault!r:.500}"
    seconds = time.process_time() - began  # of this process, however busy the machine is
    answer.put((error, seconds, memory_of_process("VmHWM") - before))


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_claimed_is_refused_before_it_is_taken(tmp_path, name):
    make, message = HOSTILE[name]
    reading, answer = make(tmp_path), fork.Queue()
    process = fork.Process(target=_try, args=(reading, answer))
    process.start()
    try:
        error, seconds, taken = answer.get(timeout=60)
    finally:
        process.kill()
        process.join()
    assert re.search(message, error), error[:1000]
    assert str(tmp_path) in error
    assert len(error) < 2000
    assert seconds < MOST_SECONDS
    assert taken < MOST_BYTES


def test_content_that_is_there_is_read(tmp_path):
    """Strings of several storage layouts, and a packed table."""
    plain = {**RAGGED_FILE, "status": ["ok", "ok"]}
    for options in (
        {},
        {"maxshape": (None,), "chunks": (1,)},
        {"chunks": (2,), "compression": "gzip"},
    ):
        path = write_h5(tmp_path / "f.h5", {k: v for k, v in plain.items() if k != "ids"})
        with h5py.File(path, "a") as file:
            file.create_dataset("ids", data=["bé", "a"], dtype=h5py.string_dtype(), **options)
        assert read(path, "h5").ids == ["bé", "a"]
    for how, pack in {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.items():
        path = tmp_path / f"f.csv.{how}"
        path.write_bytes(pack(b"id,f0\na,1\nb,2\n"))
        assert read(path, "csv", "audio").ids == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [b"not packed", gzip.compress(b"id,f0\na,1\n")[:-9], b""],
    ids=["other", "cut", "empty"],  # the packed bytes contain the time
)
def test_a_damaged_archive_is_a_clear_error(tmp_path, content):
    path = tmp_path / "f.csv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"f\.csv\.gz cannot be read as csv"):
        read(path, "csv", "audio")


# --- the budget itself ----------------------------------------------------------------------------


def test_charges_add_up(monkeypatch):
    monkeypatch.setattr("manifests.budget.free_memory", lambda: 10**9)
    budget = Budget()
    budget.take("a", 6e8)
    with pytest.raises(
        OverBudgetError, match=r"b needs 0\.5 GB of memory, 1\.0 GB are free, of which 0\.6"
    ):
        budget.take("b", 5e8, "; look")
    budget.take("b", 4e8)
    assert budget.left == 0


def test_a_file_may_take_what_its_size_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("manifests.budget.free_memory", lambda: 10**12)
    small, large, hole = (tmp_path / name for name in ("small", "large", "hole"))
    small.write_bytes(b"x")
    large.write_bytes(b"x" * 10_000_000)
    with hole.open("wb") as file:
        file.truncate(1 << 40)
        file.write(b"x")
    assert Budget.of(small).left == 128 << 20
    assert Budget.of(large).left == 10**9
    assert Budget.of(hole).left == 128 << 20
    with pytest.raises(OverBudgetError, match="save them without compression or holes"):
        Budget.of(large).take("it", 2e9)
    check_fits("our own content", 9e11)


def test_the_limit_of_the_process_counts(tmp_path):
    def limited(answer) -> None:
        room = memory_of_process("VmSize") + (100 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        answer.put(Budget().left)

    answer = fork.Queue()
    process = fork.Process(target=limited, args=(answer,))
    process.start()
    assert 0 < answer.get(timeout=60) <= 100 << 20
    process.join()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for reading in (load_pickle, read_cells):
        with pytest.raises(ValueError, match="pipe"):
            reading(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_file(tmp_path / "pipe", Budget())
