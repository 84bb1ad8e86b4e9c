"""h5, npz and csv files of other programs."""

import os

import h5py
import numpy as np
import pytest

from cache.convert.import_features import import_source, read
from tests.foreign import (
    MARK,
    RAGGED_FILE,
    Calls,
    back,
    ramp,
    rows_of,
    write_h5,
    write_npz,
)


@pytest.mark.parametrize(("form", "write"), [("h5", write_h5), ("npz", write_npz)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, "no 'ids'"),
        ({"ids": ["a", "a"]}, "id 'a' occurs 2 times"),
        ({"ids": np.arange(2)}, "ids is int64"),
        ({"audio/values": ramp(3)}, "audio/values is float32"),
        ({"audio/values": None}, "features of neither"),
        ({"audio/offsets": None}, "no audio/offsets, and 3 rows for 2 ids"),
        ({"audio/offsets": np.array([0, 3])}, "audio/offsets must be 3 integers"),
        ({"audio/offsets": np.array([0, 2, 4])}, "rise from 0 to 3"),
        ({"audio/offsets": np.array([0, 4, 3])}, "rise from 0 to 3"),
        ({"status": ["ok"]}, "status has 1 entries for 2 ids"),
        ({"status": ["ok", "fine"]}, "status 'fine'"),
    ],
)
def test_faults_of_the_layout_are_named(tmp_path, form, write, change, message):
    content = {k: v for k, v in (RAGGED_FILE | change).items() if v is not None}
    path = write(tmp_path / f"f.{form}", content)
    with pytest.raises(ValueError, match=message) as error:
        read(path, form)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("form", "write"), [("h5", write_h5), ("npz", write_npz)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration": ["x", "y"]}, "duration is .*must be seconds"),
        ({"duration": np.ones((2, 1))}, "duration is float64 .*must be seconds"),
        ({"duration": [1.0, np.nan]}, "duration is .*none of them infinite"),
        ({"ids": "a"}, r"ids is .* \(\); it must be strings"),
        ({"ids": [b"a", b"\xff"]}, "ids contains text that is not UTF-8"),
    ],
)
def test_values_of_another_kind_are_named(tmp_path, form, write, change, message):
    path = write(tmp_path / f"f.{form}", RAGGED_FILE | change)
    with pytest.raises(ValueError, match=rf"f\.{form}: {message}"):
        read(path, form)


def test_surrogates_in_an_npz_are_named(tmp_path):
    path = write_npz(tmp_path / "f.npz", RAGGED_FILE | {"error": ["", "\udc80"]})
    with pytest.raises(ValueError, match=r"f\.npz: error contains text that is not UTF-8"):
        read(path, "npz")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("[1]", "'about' is not a JSON object"),
        ("{bad", "'about' is not JSON: it cannot be read: Expecting"),
        ("[" * 10**5, "'about' is not JSON: it cannot be read: maximum recursion"),
        ('{"version": "x"}', "version 'x'; this release reads"),
        ('{"version": 2}', "version 2; this release reads"),
        ('{"layout": ["x"]}', r"\['x'\] version 1; this release reads"),
        ('{"dataset": [1]}', r"dataset's name is \[1\], not a text"),
    ],
)
def test_faults_of_what_a_npz_says_about_itself_are_named(tmp_path, about, message):
    path = write_npz(tmp_path / "f.npz", RAGGED_FILE | {"about": about})
    with pytest.raises(ValueError, match=message) as error:
        read(path, "npz")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layout", np.array(["a", "b"], "S1"), "the attribute layout is an array, not one value"),
        ("layout", "x", "'x' version 1; this release reads"),
        ("version", "x", "version 'x'; this release reads"),
        ("version", [1, 2], "the attribute version is an array, not one value"),
        ("dataset", 7, "dataset's name is"),
    ],
)
def test_faults_of_what_an_h5_says_about_itself_are_named(tmp_path, name, value, message):
    path = write_h5(tmp_path / "f.h5", RAGGED_FILE)
    with h5py.File(path, "a") as file:
        file.attrs[name] = value
    with pytest.raises(ValueError, match=message) as error:
        read(path, "h5")
    assert str(path) in str(error.value)


def test_npz_is_never_unpickled(tmp_path):
    evil = np.array([Calls(os.system, f"touch {tmp_path / MARK}")], dtype=object)
    np.savez(tmp_path / "f.npz", ids=evil)
    with pytest.raises(ValueError, match="cannot be read as npz"):
        read(tmp_path / "f.npz", "npz")
    assert not (tmp_path / MARK).exists()


def test_h5_that_borrows_its_content_from_other_files_is_refused(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["ids"] = ["a"]
        file.create_dataset("audio/values", (1, 2), "u1", external=[("secret", 0, 2)])
    with pytest.raises(ValueError, match="audio/values: its content is in other files"):
        read(tmp_path / "f.h5", "h5")


def test_csv_of_frames_in_any_order(tmp_path):
    (tmp_path / "f.csv").write_text(
        "id,modality,frame,f0,f1,f2\n"
        "NA,vision,1,4,5,6\n"
        "007,audio,0,1.5,-2,\n"
        "NA,vision,0,1,2,3\n"
        "NA,audio,3,0.5,0.25,\n",
        encoding="utf-8",
    )
    store = back(tmp_path / "f.csv", "csv", tmp_path)
    assert rows_of(store) == {
        "007": ([[1.5, -2]], []),
        "NA": ([[0.5, 0.25]], [[1, 2, 3], [4, 5, 6]]),
    }


def test_csv_of_utterances(tmp_path):
    (tmp_path / "f.csv").write_text("f0,id,f1\n1,b,2\n3,a,4\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"--modality audio\|vision"):
        read(tmp_path / "f.csv", "csv")
    source = read(tmp_path / "f.csv", "csv", "audio")
    store = import_source(source, "csv", tmp_path, dataset="toy", modality="audio")
    assert rows_of(store) == {"a": ([[3, 4]], []), "b": ([[1, 2]], [])}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as csv"),
        ("a,b\n1,2\n", "need 'id' and features"),
        ("id,f0\n", "no utterance"),
        ("id,f0\na,1\nb,x\n", "line 3: f0 'x' is not a number"),
        ("id,frame,f0\na,0,1\na,0,2\n", "line 3: frame 0 of audio of 'a' occurs twice"),
        ("id,modality,f0\na,smell,1\n", "line 2: modality 'smell'"),
        ("id,f0\n,1\n", "'' is not an id"),
    ],
)
def test_faults_of_a_csv_are_named(tmp_path, text, message):
    (tmp_path / "f.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "f.csv", "csv", "audio")


def test_a_gap_in_a_csv_is_not_a_number(tmp_path):
    (tmp_path / "f.csv").write_text("id,f0,f1\na,1,2\nb,1,\n", encoding="utf-8")
    source = read(tmp_path / "f.csv", "csv", "vision")
    with pytest.raises(ValueError, match="utterance 'b': vision row 0, column 1 is nan"):
        import_source(source, "csv", tmp_path, dataset="toy")
