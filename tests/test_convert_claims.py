"""Files that claim more than they contain or link to other files; features too large for memory."""

import pickle
import struct
import zipfile

import h5py
import numpy as np
import pytest

from cache.convert.export import export
from cache.convert.import_features import import_blocks, import_source, read
from tests.foreign import (
    GOOD,
    RAGGED_FILE,
    back,
    manifest_of,
    mmsa_file,
    ramp,
    rows_of,
    write_h5,
    write_npz,
    write_pickle,
)
from tests.stores import LENGTHS, build_store


def twice(depth: int) -> list | tuple:
    """A list of twice the same list of twice the same ...: few bytes, but endless when printed."""
    value: list | tuple = (1,)
    for _ in range(depth):
        value = [value, value]
    return value


def npy(shape: tuple[int, ...], kind: str, content: bytes = b"") -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def zipped(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def claiming(path, name: str, data: bytes, size: int):
    """Write an npz whose directory gives one member another size."""
    member = zipfile.ZipInfo(f"{name}.npy")
    member.extra = struct.pack("<HHQ", 1, 8, size)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    whole = bytearray(path.read_bytes())
    place = whole.index(b"PK\x01\x02") + 24
    whole[place : place + 4] = b"\xff" * 4  # see the extra field
    path.write_bytes(whole)
    return path


# --- h5: links ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["ids", "audio", "audio/values"])
@pytest.mark.parametrize("kind", ["external", "soft", "dangling"])
def test_links_of_an_h5_are_refused(tmp_path, place, kind):
    write_h5(tmp_path / "secret.h5", RAGGED_FILE)
    path = write_h5(tmp_path / "f.h5", RAGGED_FILE)
    with h5py.File(path, "a") as file:
        file.move(place, "elsewhere")
        links = {
            "external": h5py.ExternalLink("secret.h5", f"/{place}"),
            "soft": h5py.SoftLink("/elsewhere"),
            "dangling": h5py.ExternalLink("missing.h5", f"/{place}"),
        }
        file[place] = links[kind]
    message = rf"f\.h5 cannot be read as HDF5: {place}(/values)? is a link, perhaps to another file"
    with pytest.raises(ValueError, match=message):
        read(path, "h5")


def test_a_second_name_in_the_same_file_is_accepted(tmp_path):
    path = write_h5(tmp_path / "f.h5", RAGGED_FILE)
    with h5py.File(path, "a") as file:
        file["vision"] = file["audio"]
    assert rows_of(back(path, "h5", tmp_path))["b"] == ([[1, 2]], [[1, 2]])


# --- claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy((10**13,), "<f4"), "ids claims 40000000000000 bytes and has 0"),
        (npy((10**13,), "<U0"), "ids claims 10000000000000 bytes and has 0"),
        (npy((2,), "<U1", b"a\0\0\0"), "ids claims 8 bytes and has 4"),
        (npy((1,), "|O", b"12345678"), "ids contains Python objects"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "ids has a header"),
        (b"no array", "magic string"),
    ],
)
def test_a_header_that_its_array_does_not_back_is_refused(tmp_path, member, message):
    path = zipped(tmp_path / "f.npz", {"ids": member})
    with pytest.raises(ValueError, match=rf"f\.npz cannot be read as npz: .*{message}"):
        read(path, "npz")


def test_an_array_larger_than_memory_is_refused_before_it_is_unpacked(tmp_path):
    header = npy((10**13,), "<f4")
    path = claiming(tmp_path / "f.npz", "ids", header, 4 * 10**13 + len(header))
    with pytest.raises(ValueError, match=r"f\.npz.* ids needs 40000\.0 GB of memory, .* are free"):
        read(path, "npz")


def test_arrays_that_the_layout_does_not_know_are_not_looked_at(tmp_path):
    path = write_npz(tmp_path / "f.npz", {**RAGGED_FILE, "text/values": ramp(3, 2)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("junk.npy", npy((10**13,), "<f4"))
    with pytest.raises(ValueError, match="no text/offsets"):
        read(path, "npz")
    assert read(path, "npz", text=False).ids == ["b", "a"]


@pytest.mark.parametrize("name", ["ids", "audio/offsets", "duration"])
def test_a_column_of_an_h5_larger_than_memory_is_refused(tmp_path, name):
    path = write_h5(tmp_path / "f.h5", {k: v for k, v in RAGGED_FILE.items() if k != name})
    with h5py.File(path, "a") as file:
        kind = h5py.string_dtype() if name == "ids" else "i8"
        file.create_dataset(name, (10**12,), kind, chunks=(1024,), compression="gzip")
    with pytest.raises(ValueError, match=rf"f\.h5.* {name} needs \d+\.\d GB of memory"):
        read(path, "h5")


def h5_of_rows(path, rows: int, count: int):
    """Write an h5 with rows that were never written: the file stays small."""
    with h5py.File(path, "w") as file:
        file["ids"] = [f"u{n}" for n in range(count)]
        file.create_dataset("audio/values", (rows, 8), "f4", chunks=(1024, 8), compression="gzip")
        file["audio/offsets"] = np.linspace(0, rows, count + 1).astype(np.int64)
    return path


def test_an_utterance_larger_than_memory_is_refused(tmp_path):
    source = read(h5_of_rows(tmp_path / "f.h5", 10**12, 1), "h5")
    with pytest.raises(ValueError, match=r"f\.h5: utterance 'u0' needs 128000\.0 GB of memory"):
        import_blocks(source)


def test_features_larger_than_the_disk_are_refused(tmp_path):
    source = read(h5_of_rows(tmp_path / "f.h5", 10**12, 10**5), "h5")
    with pytest.raises(ValueError, match=r"f\.h5: its features take 16000\.00 GB .*--stores"):
        import_source(source, "h5", tmp_path / "stores", "toy")
    assert not (tmp_path / "stores").exists()


def test_long_utterances_are_imported_a_few_at_a_time(tmp_path):
    """A block takes a GiB at 16 bytes a value."""
    short = read(h5_of_rows(tmp_path / "short.h5", 1024, 1024), "h5")
    assert [len(block) for block in import_blocks(short)] == [256] * 4
    long = read(h5_of_rows(tmp_path / "long.h5", 1 << 25, 8), "h5")  # half a GiB each
    assert list(import_blocks(long)) == [range(n, n + 2) for n in (0, 2, 4, 6)]


# --- mmsa -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": [twice(40), "b"]}, "train.id contains"),
        ({"raw_text": ["a", twice(40)]}, "train.raw_text contains"),
        ({"annotations": ["a", {"b": twice(40)}]}, "train.annotations contains"),
        ({"regression_labels": [1.0, twice(40)]}, "regression_labels must hold one number"),
        ({"audio_lengths": [1, [twice(40)]]}, "audio_lengths must hold one number"),
        ({"audio": [twice(40), twice(40)]}, "train.audio contains lists nested deeper"),
    ],
)
def test_nested_values_are_not_written_out(tmp_path, change, message):
    path = mmsa_file(tmp_path, GOOD | change)
    with pytest.raises(ValueError, match=message) as error:
        read(path, "mmsa")
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 2000


def test_an_array_of_a_nested_type_is_not_written_out(tmp_path):
    nested = pickle.dumps(twice(40), 4)[2:-1]
    data = b"\x80\x04" + b"cnumpy\ndtype\n" + nested[9:] + b"\x85R."
    (tmp_path / "f.pkl").write_bytes(data)
    with pytest.raises(ValueError, match="contains an array of type") as error:
        read(tmp_path / "f.pkl", "mmsa")
    assert len(str(error.value)) < 2000


def test_texts_without_meaning_in_unicode_are_kept_as_far_as_possible(tmp_path):
    path = mmsa_file(tmp_path, GOOD | {"raw_text": ["a\udc80b", b"\xffc"]})
    table = read(path, "mmsa").table
    assert table is not None
    assert table["text"].tolist() == ["a?b", "\ufffdc"]


def test_an_unknown_key_is_named_shortly(tmp_path):
    path = write_pickle(tmp_path / "f.pkl", {"train": GOOD, "x" * 10**6: 1})
    assert max(map(len, read(path, "mmsa").notes)) < 200


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npz", "mmsa"])
def test_a_store_larger_than_memory_is_not_exported_as_a_whole(tmp_path, form, monkeypatch):
    store = build_store(tmp_path)
    manifest = manifest_of(tmp_path, list(LENGTHS)) if form == "mmsa" else None
    monkeypatch.setattr("manifests.budget.free_memory", lambda: 100)
    with pytest.raises(ValueError, match=r"GB of memory, .*; export to h5"):
        export(store, form, tmp_path / "out", manifest)
    assert not list(tmp_path.glob("*out*"))
