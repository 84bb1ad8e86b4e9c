"""Converting stores: h5, npz, csv and MMSA's pickle, with real files in real folders."""

import json
import os
import pickle
import pickletools
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import FeatureCache
from cache.__main__ import main
from cache.export import export
from cache.importing import import_source, read
from cache.unpickle import load_pickle
from cache.verify import verify
from tests.stores import LENGTHS, WIDTHS, WITH_TEXT, build_store, tree_of

IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
RAGGED_WITH_TEXT = st.dictionaries(IDS, st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6)
RAGGED = st.dictionaries(
    IDS, st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6
)
ROUND_TRIPS = settings(max_examples=10, deadline=None)


def rows_of(store: Path) -> dict[str, tuple[list, ...]]:
    """Every utterance's rows in the store's modalities, by id."""
    cache = FeatureCache.open(store)
    features = cache.select(cache.ids)
    rows = {}
    for place, i in enumerate(cache.ids):
        batch = features.batch(torch.tensor([place]))
        rows[i] = tuple(batch[m].values.tolist() for m in cache.widths)
    return rows


def back(path: Path, form: str, root: Path, **options) -> Path:
    return import_source(read(path, form), form, root, **{"dataset": "toy"} | options)


def manifest_of(folder: Path, ids: list[str]) -> Path:
    """A Parquet table that shares the utterances out among the splits."""
    table = pd.DataFrame(
        {
            "id": ids,
            "split": [("train", "valid", "test")[n % 3] for n in range(len(ids))],
            "text": [f"words of {i}" for i in ids],
            "label": [(-1.5, 0.0, 2.0)[n % 3] for n in range(len(ids))],
            "label_t": 0.5,
        }
    )
    path = folder / "manifest.parquet"
    table.sample(frac=1, random_state=0).to_parquet(path)  # its order means nothing
    return path


def write_pickle(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def split_of(ids, audio, vision, **more) -> dict:
    labels = np.linspace(-1, 1, len(ids), dtype=np.float32)
    return {"id": ids, "audio": audio, "vision": vision, "regression_labels": labels} | more


def mmsa_file(tmp_path: Path, train: dict, **splits) -> Path:
    return write_pickle(tmp_path / "features.pkl", {"train": train, **splits})


def ramp(*shape: int) -> np.ndarray:
    """Non-zero numbers, exact in float16."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["h5", "npz"])
@ROUND_TRIPS
@given(lengths=RAGGED)
def test_a_store_survives_the_round_trip(form, lengths):
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(Path(folder, "a"), lengths)
        out = Path(folder, f"file.{form}")
        export(store, form, out)
        copy = import_source(read(out, form), form, Path(folder, "b"))
        assert rows_of(copy) == rows_of(store)
        before, after = FeatureCache.open(store), FeatureCache.open(copy)
        assert (after.dataset, after.widths, after.status) == ("toy", WIDTHS, before.status)
        for column in ("error", "duration"):
            assert list(after.column(column)) == list(before.column(column))
        # Everything but the root attributes is the same, byte for byte.
        changed = {"zarr.json", "checksums.json"}
        files = [
            {name: data for name, data in tree_of(s).items() if name not in changed}
            for s in (store, copy)
        ]
        assert files[0] == files[1]


@ROUND_TRIPS
@given(lengths=RAGGED)
def test_a_store_survives_the_round_trip_through_mmsa(lengths):
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(Path(folder, "a"), lengths)
        out = Path(folder, "file.pkl")
        export(store, "mmsa", out, manifest_of(Path(folder), list(lengths)))
        source = read(out, "mmsa")
        assert rows_of(back(out, "mmsa", Path(folder, "b"))) == rows_of(store)
        assert source.table is not None
        texts = dict(zip(source.table["id"], source.table["text"], strict=True))
        assert texts == {i: f"words of {i}" for i in lengths}


@pytest.mark.parametrize("form", ["h5", "npz", "mmsa"])
@ROUND_TRIPS
@given(lengths=RAGGED_WITH_TEXT)
def test_text_features_survive_the_round_trip(form, lengths):
    with tempfile.TemporaryDirectory() as folder:
        store = build_store(Path(folder, "a"), lengths, WITH_TEXT)
        before = FeatureCache.open(store)
        assert before.counts["text_frames"] == sum(n[2] for n in lengths.values())
        out = Path(folder, f"file.{form}")
        manifest = manifest_of(Path(folder), list(lengths)) if form == "mmsa" else None
        export(store, form, out, manifest)
        copy = back(out, form, Path(folder, "b"))
        assert FeatureCache.open(copy).widths == WITH_TEXT
        assert rows_of(copy) == rows_of(store)
        assert FeatureCache.open(copy).status == before.status
        without = import_source(read(out, form, text=False), form, Path(folder, "b"), "toy")
        assert FeatureCache.open(without).widths == WIDTHS
        assert rows_of(without) == {i: rows[:2] for i, rows in rows_of(store).items()}


def test_mmsa_files_have_the_structure_that_mmsa_reads(tmp_path):
    store = build_store(tmp_path)
    export(store, "mmsa", tmp_path / "f.pkl", manifest_of(tmp_path, list(LENGTHS)))
    content = pickle.loads((tmp_path / "f.pkl").read_bytes())  # our own, just written
    assert list(content) == ["train", "valid", "test"]
    for part in content.values():
        count = len(part["id"])
        assert part["audio"].shape == (count, 4, 3)  # the longest of all splits
        assert part["vision"].shape == (count, 4, 5)
        assert part["audio"].dtype == np.float32
        assert {len(part[key]) for key in part} == {count}
        assert set(part) == {
            *("raw_text", "audio", "vision", "id", "text", "text_bert", "audio_lengths"),
            *("vision_lengths", "annotations", "regression_labels", "regression_labels_T"),
            "classification_labels",
        }
    told = {
        (annotation, float(label), float(number))
        for part in content.values()
        for annotation, label, number in zip(
            part["annotations"],
            part["regression_labels"],
            part["classification_labels"],
            strict=True,
        )
    }
    assert told == {("Negative", -1.5, 0.0), ("Neutral", 0.0, 1.0), ("Positive", 2.0, 2.0)}


def test_order_in_the_file_means_nothing(tmp_path):
    store = build_store(tmp_path / "a")
    export(store, "npz", tmp_path / "f.npz")
    found = dict(np.load(tmp_path / "f.npz"))
    order = np.random.default_rng(0).permutation(len(found["ids"]))
    for name in ("ids", "status", "error", "duration"):
        found[name] = found[name][order]
    for m in WIDTHS:
        runs = np.split(found[f"{m}/values"], found[f"{m}/offsets"][1:-1])
        found[f"{m}/values"] = np.concatenate([runs[place] for place in order])
        lengths = np.diff(found[f"{m}/offsets"])[order]
        found[f"{m}/offsets"] = np.concatenate([[0], np.cumsum(lengths)])
    np.savez(tmp_path / "g.npz", **found)
    assert rows_of(back(tmp_path / "g.npz", "npz", tmp_path / "b")) == rows_of(store)


def test_the_same_file_gives_the_same_store_under_any_path(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        mmsa_file(tmp_path / folder, split_of(["a", "b"], ramp(2, 3, 2), ramp(2, 3, 4)))
    stores = [
        back(tmp_path / f / "features.pkl", "mmsa", tmp_path / f / "stores") for f in ("x", "y")
    ]
    assert stores[0].name == stores[1].name
    assert tree_of(stores[0]) == tree_of(stores[1])
    again = back(tmp_path / "x" / "features.pkl", "mmsa", tmp_path / "x" / "stores")
    assert again == stores[0]


def test_what_is_asked_of_an_import_is_in_its_digest(tmp_path):
    path = mmsa_file(tmp_path, split_of(["a"], ramp(1, 3, 2), ramp(1, 3, 4)))
    changes = [{}, {"dtype": "float32"}, {"non_finite": "zero"}, {"name": "other"}]
    stores = [back(path, "mmsa", tmp_path, **change) for change in changes]
    assert len({FeatureCache.open(store).digest for store in stores}) == len(changes)


GOOD = split_of(["a", "b"], ramp(2, 3, 2), ramp(2, 3, 2))


# --- mmsa: padding and lengths --------------------------------------------------------------------


def test_ids_join_the_splits_and_widths_are_free(tmp_path):
    train = split_of(["v$_$1", "v$_$0"], ramp(2, 3, 2), ramp(2, 5, 7))
    path = mmsa_file(tmp_path, train, test=split_of(["w$_$0"], ramp(1, 3, 2), ramp(1, 5, 7)))
    store = back(path, "mmsa", tmp_path)
    assert FeatureCache.open(store).widths == {"audio": 2, "vision": 7}
    assert rows_of(store)["v$_$0"] == (train["audio"][1].tolist(), train["vision"][1].tolist())
    assert set(rows_of(store)) == {"v$_$0", "v$_$1", "w$_$0"}


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("stated", [False, True])
def test_padding_at_either_end_is_taken_off(tmp_path, front, stated):
    real = {"a": ramp(3, 2), "b": ramp(5, 2) * 2, "c": ramp(1, 2)}
    audio = np.zeros((3, 6, 2), np.float32)
    for place, rows in enumerate(real.values()):
        audio[place, slice(6 - len(rows), 6) if front else slice(0, len(rows))] = rows
    lengths = {"audio_lengths": [3, 5, 1]} if stated else {}
    path = mmsa_file(tmp_path, split_of(list(real), audio, ramp(3, 1, 1), **lengths))
    found = rows_of(back(path, "mmsa", tmp_path))
    assert {i: rows[0] for i, rows in found.items()} == {i: r.tolist() for i, r in real.items()}
    assert any("front" in note for note in read(path, "mmsa").notes) == (front and stated)
    assert any("not stated" in note for note in read(path, "mmsa").notes)  # those of vision


def test_a_zero_row_within_the_stated_length_is_real(tmp_path):
    audio = np.zeros((2, 6, 2), np.float32)
    audio[0, 2:6] = ramp(4, 2)  # in front of it two rows of padding
    audio[1, 1:5] = ramp(4, 2)  # one row of padding, and a last frame of zeros
    path = mmsa_file(tmp_path, split_of(["a", "b"], audio, ramp(2, 1, 1), audio_lengths=[4, 5]))
    assert rows_of(back(path, "mmsa", tmp_path))["b"][0] == audio[1, 1:].tolist()


@pytest.mark.parametrize("lengths", [[9, 0], np.array([9, 0]), [9.0, 0.0], np.array([[9], [0]])])
def test_lengths_beyond_the_array_and_of_zero(tmp_path, lengths):
    path = mmsa_file(
        tmp_path, split_of(["a", "b"], ramp(2, 3, 2), ramp(2, 3, 2), audio_lengths=lengths)
    )
    store = back(path, "mmsa", tmp_path)
    assert [len(rows_of(store)[i][0]) for i in "ab"] == [3, 0]
    assert FeatureCache.open(store).status == {"a": "ok", "b": "no_audio"}
    notes = " ".join(read(path, "mmsa").notes)
    assert "exceed" in notes
    assert "dropped, the first is 'b'" in notes


def test_all_zero_utterances_without_lengths_are_absent(tmp_path):
    audio = ramp(2, 3, 2)
    audio[1] = 0
    path = mmsa_file(tmp_path, split_of(["a", "b"], audio, audio))
    assert FeatureCache.open(back(path, "mmsa", tmp_path)).status == {"a": "ok", "b": "failed"}


def test_a_vector_is_a_sequence_of_length_one(tmp_path):
    vectors = np.stack([ramp(4), np.zeros(4, np.float32)])
    path = mmsa_file(tmp_path, split_of(["a", "b"], vectors, list(vectors), audio_lengths=[7, 7]))
    found = rows_of(back(path, "mmsa", tmp_path))
    assert found["a"] == ([[1, 2, 3, 4]], [[1, 2, 3, 4]])
    assert found["b"] == ([[0, 0, 0, 0]], [[0, 0, 0, 0]])
    np.savez(tmp_path / "f.npz", **{"ids": ["a", "b"], "vision/values": vectors})
    store = back(tmp_path / "f.npz", "npz", tmp_path)
    assert rows_of(store)["a"] == ([], [[1, 2, 3, 4]])
    assert FeatureCache.open(store).widths == {"audio": 1, "vision": 4}
    assert FeatureCache.open(store).status == {"a": "no_audio", "b": "no_audio"}


@pytest.mark.parametrize("front", [False, True])
def test_text_features_are_a_modality_and_token_ids_are_not(tmp_path, front):
    text = np.zeros((2, 4, 8), np.float32)
    for row, count in enumerate((3, 2)):
        text[row, slice(4 - count, 4) if front else slice(0, count)] = ramp(count, 8)
    path = mmsa_file(tmp_path, GOOD | {"text": text, "text_bert": ramp(2, 3, 4)})
    store = back(path, "mmsa", tmp_path)
    assert FeatureCache.open(store).widths == {"audio": 2, "vision": 2, "text": 8}
    assert [rows_of(store)[i][2] for i in "ab"] == [ramp(3, 8).tolist(), ramp(2, 8).tolist()]


def test_a_file_without_text_features_gives_a_store_without(tmp_path):
    bare = back(mmsa_file(tmp_path, GOOD), "mmsa", tmp_path / "a")
    empty = {"text": np.zeros((2, 0, 0)), "text_bert": np.zeros((2, 3, 0))}
    same = back(mmsa_file(tmp_path, GOOD | empty), "mmsa", tmp_path / "b")
    assert rows_of(bare) == rows_of(same)
    for store in (bare, same):
        assert list(FeatureCache.open(store).widths) == ["audio", "vision"]
        assert not any("text" in name for name in tree_of(store))


def test_no_text_leaves_text_features_out_whatever_they_are(tmp_path, capsys):
    path = mmsa_file(tmp_path, GOOD | {"text": ["words", "more words"]})
    command = ["import", str(path), "--from", "mmsa", "--dataset", "d", "--root", str(tmp_path)]
    assert main(command) == 1
    assert "train.text must hold numbers" in (error := capsys.readouterr().err)
    assert error.endswith("--no-text leaves it out\n")
    assert main([*command, "--no-text"]) == 0
    assert "2 utterances, audio 2, vision 2\n" in capsys.readouterr().out


def test_a_damaged_text_chunk_names_its_utterances(tmp_path):
    store = build_store(tmp_path, {"a": (1, 1, 2), "b": (1, 1, 0)}, WITH_TEXT)
    chunk = store / "text" / "values" / "c" / "0" / "0"
    chunk.chmod(0o644)
    chunk.write_bytes(bytes(chunk.stat().st_size))
    assert [(f.file, f.utterances) for f in verify(store)] == [("text/values/c/0/0", ("a",))]


def test_ragged_lists_need_no_padding(tmp_path):
    ragged = [ramp(2, 3), ramp(5, 3)]
    path = mmsa_file(tmp_path, split_of(["a", "b"], ragged, ragged))
    assert rows_of(back(path, "mmsa", tmp_path))["b"][1] == ragged[1].tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name_or_zero(tmp_path, bad):
    audio = ramp(2, 3, 2)
    audio[1, 2, 0] = bad
    path = mmsa_file(tmp_path, split_of(["a", "b"], audio, ramp(2, 3, 2)))
    with pytest.raises(ValueError, match=r"features.pkl: utterance 'b': audio row 2, column 0"):
        back(path, "mmsa", tmp_path)
    store = back(path, "mmsa", tmp_path, non_finite="zero")
    assert rows_of(store)["b"][0][2][0] == 0


def test_overflow_says_what_to_do(tmp_path):
    audio = ramp(1, 3, 2).astype(np.float64) * 1e5
    path = mmsa_file(tmp_path, split_of(["a"], audio, ramp(1, 3, 2)))
    with pytest.raises(ValueError, match=r"'a': audio .* import with --dtype float32"):
        back(path, "mmsa", tmp_path)
    assert rows_of(back(path, "mmsa", tmp_path, dtype="float32"))["a"][0] == audio[0].tolist()
    path = mmsa_file(tmp_path, split_of(["a"], audio * 1e300, ramp(1, 3, 2)))
    with pytest.raises(ValueError, match="no store can hold it"):
        back(path, "mmsa", tmp_path, dtype="float32")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not MMSA's structure"),
        ({"a": 1}, "not MMSA's structure"),
        ({"train": {"audio": 1}}, "train.id is missing"),
        ({"train": GOOD | {"id": [1.5, 2.5]}}, "train.id holds 1.5"),
        ({"train": GOOD | {"id": ["a", "a"]}}, "id 'a' stands 2 times"),
        ({"train": GOOD, "test": GOOD}, "id 'a' stands 2 times"),
        ({"train": GOOD | {"id": []}}, "no utterance"),
        ({"train": GOOD | {"id": ["a"]}}, "train.audio has 2 entries for 1 ids"),
        ({"train": GOOD | {"audio": "x"}}, "train.audio is str"),
        ({"train": GOOD | {"audio": []}}, "train.audio is empty"),
        ({"train": GOOD | {"audio": np.array([["a"], ["b"]])}}, "train.audio must hold numbers"),
        ({"train": GOOD | {"audio": ramp(2, 1, 1, 1)}}, "train.audio must hold numbers"),
        ({"train": GOOD | {"audio": [ramp(2, 3), ramp(2, 4)]}}, "audio of 'b' is 4 wide, not 3"),
        ({"train": GOOD | {"vision_lengths": [1]}}, "train.vision_lengths has 1 entries"),
        ({"train": GOOD | {"vision_lengths": [1, -1]}}, "train.vision_lengths of 'b' is -1.0"),
        ({"train": GOOD | {"vision_lengths": [1, np.nan]}}, "of 'b' is nan"),
        ({"train": GOOD | {"vision_lengths": ["x", "y"]}}, "vision_lengths must hold one number"),
        ({"train": {"id": ["a"]}}, "features of neither"),
        ({"train": GOOD, "test": {"id": ["c"], "vision": ramp(1, 3, 2)}}, r"audio is in \['train'"),
    ],
)
def test_wrong_structure_is_named_with_file_and_key(tmp_path, content, message):
    path = write_pickle(tmp_path / "features.pkl", content)
    with pytest.raises(ValueError, match=message) as error:
        read(path, "mmsa")
    assert str(path) in str(error.value)


# --- pickles --------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


MARK = "touched"
GADGETS = {
    "reduce": lambda p: pickle.dumps(Calls(os.system, f"touch {p}"), 4),
    "global": lambda p: b"cposix\nsystem\n(S'touch %s'\ntR." % str(p).encode(),
    "inst": lambda p: b"(S'touch %s'\niposix\nsystem\n." % str(p).encode(),
    "stack_global": lambda p: (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93(V%s\ntR." % f"touch {p}".encode()
    ),
    "eval": lambda p: pickle.dumps(Calls(eval, f"open({str(p)!r}, 'w')"), 2),
    "dotted": lambda p: (
        b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93(V%s\ntR." % f"touch {p}".encode()
    ),
    "dotted_type": lambda p: b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile2\x93.",
    "numpy.load": lambda p: b"cnumpy\nload\n(S'%s'\ntR." % str(p).encode(),
    "numpy.memmap": lambda p: (
        b"cnumpy\nmemmap\n(S'%s'\nS'u1'\nS'w+'\nI0\nI4\ntR." % str(p).encode()
    ),
    "f2py": lambda p: b"cnumpy.f2py.crackfortran\nmyeval\n(S'1'\ntR.",
    "runstring": lambda p: b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
    "getattr": lambda p: b"cbuiltins\ngetattr\n(S'a'\nS'b'\ntR.",
    "bytes": lambda p: b"cbuiltins\nbytes\n(L10000000000000L\ntR.",
    "codec": lambda p: b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
    "ndarray": lambda p: b"cnumpy\nndarray\n((L1000000000000L\nttR.",
    "build": lambda p: b"cnumpy\ndtype\n}S'_make'\ncnumpy\nndarray\nsb.",
    "persistent": lambda p: b"Pfile\n.",
    "extension": lambda p: b"\x80\x02\x82\x01.",
    "state": lambda p: b"c_codecs\nencode\nN}S'x'\nI1\ns\x86b.",
}


@pytest.mark.parametrize("name", GADGETS)
def test_malicious_pickles_are_refused_and_do_nothing(tmp_path, name):
    touched = tmp_path / MARK
    path = tmp_path / "evil.pkl"
    path.write_bytes(GADGETS[name](touched))
    with pytest.raises(ValueError, match=r"evil.pkl: .*nothing of it was run"):
        load_pickle(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (GADGETS["global"]("x"), "posix.system"),
        (GADGETS["stack_global"]("x"), "posix.system"),
        (GADGETS["numpy.load"]("x"), "numpy.load"),
        (pickle.dumps(pd.Series([1])), "pandas"),
        (pickle.dumps(torch.zeros(1)), "torch"),
        (pickle.dumps(Path("x")), "pathlib"),
    ],
)
def test_the_offending_global_is_named(tmp_path, data, name):
    (tmp_path / "f.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=f"asks for {name}"):
        load_pickle(tmp_path / "f.pkl")


def test_an_evil_object_inside_an_array_is_refused(tmp_path):
    array = np.array([Calls(os.system, f"touch {tmp_path / MARK}")], dtype=object)
    write_pickle(tmp_path / "f.pkl", {"train": {"id": array}})
    with pytest.raises(ValueError, match=r"asks for posix\.system"):
        load_pickle(tmp_path / "f.pkl")
    assert not (tmp_path / MARK).exists()


def forged(shape, spec, state, content) -> bytes:
    """An array whose parts do not fit, as no numpy writes it."""
    make = Calls(np.dtype, spec, False, True)
    make.call = (*make.call, state)
    array = Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b")
    array.call = (*array.call, (1, shape, make, False, content))
    return pickle.dumps(array, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (forged((10**12,), "f4", (3, "<", None, None, None, -1, -1, 0), b"1234"), "other content"),
        (forged((-1,), "f4", (3, "<", None, None, None, -1, -1, 0), b""), "shape"),
        (forged((2,), "O", (3, "|", None, None, None, -1, -1, 63), [1]), "other content"),
        (forged((1,), "O", (3, "|", None, None, None, -1, -1, 0), b"12345678"), "other content"),
        (
            forged(
                (1,),
                "V8",
                (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0),
                b"12345678",
            ),
            "type 'V8'",
        ),
        (
            forged(
                (1,), "f8", (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0), b"8" * 8
            ),
            "records",
        ),
        (pickle.dumps(np.zeros(2, [("a", "f4")])), "type 'V4'"),
        (pickle.dumps(np.zeros(2, "M8[s]")), "type 'M8'"),
    ],
)
def test_forged_arrays_never_reach_numpy(tmp_path, data, message):
    (tmp_path / "f.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_pickle(tmp_path / "f.pkl")


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04", b"no pickle", b"\x80\x63.", b"]a.", b"\x8e" + b"\xff" * 8]
)
def test_damaged_pickles_are_clear_errors(tmp_path, data):
    (tmp_path / "f.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"f\.pkl cannot be read as a pickle"):
        load_pickle(tmp_path / "f.pkl")


DATA = {
    "floats": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "bools": np.array([True, False]),
    "text": np.array(["a", "ü"]),
    "objects": np.array(["a", None, "中"], dtype=object),
    "scalar": np.float64(1.5),
    "number": np.int64(7),
    "string": np.str_("ü"),
    "empty": np.zeros((2, 0, 3), np.float32),
    "plain": [1, 2.5, "x", b"\xff", None, True, (1, {"k": {1, 2}}), frozenset([3]), b""],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("old_numpy", [False, True])
def test_data_of_any_protocol_and_numpy_loads_as_it_was(tmp_path, protocol, old_numpy):
    data = pickle.dumps(DATA, protocol)
    if old_numpy:  # numpy 1 wrote the same under the module's older name
        old = data.replace(b"numpy._core.", b"numpy.core.")
        data = old if protocol < 4 else _reframed(data)
    (tmp_path / "f.pkl").write_bytes(data)
    found = load_pickle(tmp_path / "f.pkl")
    for name, value in DATA.items():
        assert np.array_equal(found[name], value) if name != "plain" else found[name] == value
        if isinstance(value, np.ndarray | np.generic):
            assert found[name].dtype == value.dtype.newbyteorder("=")


def _reframed(data: bytes) -> bytes:
    """The module's name shortened by one letter, in its string and in the frames around it."""
    out = bytearray()
    ends = [*[position for _, _, position in pickletools.genops(data)][1:], len(data)]
    for (code, argument, start), end in zip(pickletools.genops(data), ends, strict=True):
        if code.name == "FRAME":
            continue  # frames are optional
        if isinstance(argument, str) and argument.startswith("numpy._core."):
            text = argument.replace("numpy._core.", "numpy.core.").encode()
            out += b"\x8c" + bytes([len(text)]) + text
        else:
            out += data[start:end]
    return bytes(out)


def test_python_2_pickles_load(tmp_path):
    # pickle.dumps({'id': ['a'], 'x': numpy.array([1., 2.], 'f4')}, 0) under Python 2.
    data = (
        b"(dp0\nS'id'\np1\n(lp2\nS'a'\np3\nasS'x'\np4\ncnumpy.core.multiarray\n_reconstruct\np5\n"
        b"(cnumpy\nndarray\np6\n(I0\ntp7\nS'b'\np8\ntp9\nRp10\n(I1\n(I2\ntp11\ncnumpy\ndtype\np12\n"
        b"(S'f4'\np13\nI0\nI1\ntp14\nRp15\n(I3\nS'<'\np16\nNNNI-1\nI-1\nI0\ntp17\nbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\x00@'\np18\ntp19\nbs."
    )
    (tmp_path / "f.pkl").write_bytes(data)
    found = load_pickle(tmp_path / "f.pkl")
    assert found["id"] == ["a"]
    assert found["x"].tolist() == [1.0, 2.0]


# --- h5, npz, csv ---------------------------------------------------------------------------------


def write_h5(path: Path, found: dict) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in found.items():
            file[name] = value
    return path


def write_npz(path: Path, found: dict) -> Path:
    np.savez(path, **found)
    return path


RAGGED_FILE = {
    "ids": ["b", "a"],
    "audio/values": ramp(3, 2),
    "audio/offsets": np.array([0, 1, 3]),
}


@pytest.mark.parametrize(("form", "write"), [("h5", write_h5), ("npz", write_npz)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, "no 'ids'"),
        ({"ids": ["a", "a"]}, "id 'a' stands 2 times"),
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
    with pytest.raises(ValueError, match="audio/values: its content lies in other files"):
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
        ("id,f0\na,1\nb,x\n", "line 3: f0 'x' is no number"),
        ("id,frame,f0\na,0,1\na,0,2\n", "line 3: frame 0 of audio of 'a' stands twice"),
        ("id,modality,f0\na,smell,1\n", "line 2: modality 'smell'"),
        ("id,f0\n,1\n", "'' is no id"),
    ],
)
def test_faults_of_a_csv_are_named(tmp_path, text, message):
    (tmp_path / "f.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "f.csv", "csv", "audio")


def test_a_gap_in_a_csv_is_no_number(tmp_path):
    (tmp_path / "f.csv").write_text("id,f0,f1\na,1,2\nb,1,\n", encoding="utf-8")
    source = read(tmp_path / "f.csv", "csv", "vision")
    with pytest.raises(ValueError, match="utterance 'b': vision row 0, column 1 is nan"):
        import_source(source, "csv", tmp_path, dataset="toy")


# --- command line ---------------------------------------------------------------------------------


def test_mmsa_file_to_store_and_manifest_on_the_command_line(tmp_path, capsys):
    more = {
        "raw_text": ["one", "two"],
        "regression_labels_T": [0.5, -0.5],
        "annotations": ["Negative", "Positive"],
    }
    path = mmsa_file(tmp_path, GOOD | more)
    table = tmp_path / "data" / "manifest.parquet"
    command = ["import", str(path), "--from", "mmsa", "--dataset", "mine", "--name", "facet"]
    command += ["--root", str(tmp_path / "stores"), "--manifest-out", str(table)]
    assert main(command) == 0
    (store,) = (tmp_path / "stores" / "mine").glob("facet-*.zarr")
    assert str(store) in capsys.readouterr().out
    rows = pd.read_parquet(table).to_dict("records")
    assert rows == [
        {"id": "a", "video": "", "split": "train", "text": "one", "label": -1.0}
        | {"label_t": 0.5, "annotation": "Negative"},
        {"id": "b", "video": "", "split": "train", "text": "two", "label": 1.0}
        | {"label_t": -0.5, "annotation": "Positive"},
    ]
    assert main(["verify", str(store)]) == 0
    again = [str(store), "--to", "mmsa", str(tmp_path / "again.pkl"), "--manifest", str(table)]
    assert main(["export", *again]) == 0
    assert read(tmp_path / "again.pkl", "mmsa").ids == ["a", "b"]


def test_a_manifest_on_request_is_checked_before_the_work(tmp_path, capsys):
    path = mmsa_file(tmp_path, {k: v for k, v in GOOD.items() if k != "regression_labels"})
    command = ["import", str(path), "--from", "mmsa", "--dataset", "d", "--root", str(tmp_path)]
    assert main([*command, "--manifest-out", str(tmp_path / "m.parquet")]) == 1
    assert "neither regression_labels nor" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import missing.pkl --from mmsa --dataset d", "no such file"),
        ("import features.pkl --from mmsa", "does not name its dataset: say --dataset"),
        ("import features.pkl --from mmsa --dataset a/b", "cannot be part of a file name"),
        ("import features.pkl --from h5 --dataset d", "cannot be read as HDF5"),
        ("import features.pkl --from npz --dataset d", "cannot be read as npz"),
        ("export STORE --to mmsa out.pkl", "say --manifest"),
        ("export STORE --to mmsa out.pkl --manifest nowhere", "nowhere/manifest.parquet"),
        ("export STORE --to h5 out.h5 --manifest nowhere", "--manifest is for mmsa"),
        ("export STORE --to h5 features.pkl", "exists"),
        ("export features.pkl --to h5 out.h5", "no published feature store"),
    ],
)
def test_mistakes_end_with_one_clear_line(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    mmsa_file(tmp_path, GOOD)
    store = build_store(tmp_path)
    assert main([str(store) if word == "STORE" else word for word in command.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*out.*"))


@pytest.mark.parametrize(
    "command", [["import", "f", "--from", "zip"], ["export", "s", "--to", "h5"]]
)
def test_bad_usage_is_told_apart(command):
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "all"}, "split 'all'"),
        ({"label": np.nan}, "label of 'a' is nan"),
        ({"label": "joy"}, "label of 'a' is joy"),
        ({"id": "unknown"}, "holds no features of"),
        ({"text": None}, "no column text"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, change, message):
    store = build_store(tmp_path)
    table = pd.read_parquet(manifest_of(tmp_path, ["a"]))
    ((column, value),) = change.items()
    table = table.drop(columns=column) if value is None else table.assign(**change)
    table.to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ValueError, match=message):
        export(store, "mmsa", tmp_path / "f.pkl", tmp_path / "m.parquet")
    assert not list(tmp_path.glob("*f.pkl*"))


def test_utterances_outside_the_manifest_are_told(tmp_path):
    store = build_store(tmp_path)
    notes = export(store, "mmsa", tmp_path / "f.pkl", manifest_of(tmp_path, ["a", "b"]))
    assert any("3 utterances of the store are not in the manifest" in note for note in notes)


def test_ids_that_a_format_cannot_keep_are_refused(tmp_path):
    store = build_store(tmp_path, {"a\0": (1, 1)})
    with pytest.raises(ValueError, match="NUL, which HDF5 cannot keep"):
        export(store, "h5", tmp_path / "f.h5")


def test_a_store_that_was_imported_says_so(tmp_path):
    path = mmsa_file(tmp_path, GOOD)
    attributes = FeatureCache.open(back(path, "mmsa", tmp_path, licence="CC0")).attributes
    assert attributes["imported"]["format"] == "mmsa"
    assert attributes["licence"] == "CC0"
    assert str(tmp_path) not in json.dumps(attributes)


def test_help_works_without_a_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "cache", "import", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--manifest-out" in done.stdout
