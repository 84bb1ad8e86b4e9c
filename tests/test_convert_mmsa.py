"""MMSA's pickle: which rows are real, what is refused."""

import numpy as np
import pytest

from cache import FeatureStore
from cache.__main__ import main
from cache.convert.import_features import read
from cache.share.verify import verify
from tests.foreign import (
    GOOD,
    back,
    mmsa_file,
    ramp,
    rows_of,
    split_of,
    write_pickle,
)
from tests.stores import WITH_TEXT, build_store, tree_of


def test_ids_join_the_splits_and_widths_are_free(tmp_path):
    train = split_of(["v$_$1", "v$_$0"], ramp(2, 3, 2), ramp(2, 5, 7))
    path = mmsa_file(tmp_path, train, test=split_of(["w$_$0"], ramp(1, 3, 2), ramp(1, 5, 7)))
    store = back(path, "mmsa", tmp_path)
    assert FeatureStore.open(store).widths == {"audio": 2, "vision": 7}
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
    assert FeatureStore.open(store).status == {"a": "ok", "b": "no_audio"}
    notes = " ".join(read(path, "mmsa").notes)
    assert "exceed" in notes
    assert "dropped, the first is 'b'" in notes


def test_all_zero_utterances_without_lengths_are_absent(tmp_path):
    audio = ramp(2, 3, 2)
    audio[1] = 0
    path = mmsa_file(tmp_path, split_of(["a", "b"], audio, audio))
    assert FeatureStore.open(back(path, "mmsa", tmp_path)).status == {"a": "ok", "b": "failed"}


def test_a_vector_is_a_sequence_of_length_one(tmp_path):
    vectors = np.stack([ramp(4), np.zeros(4, np.float32)])
    path = mmsa_file(tmp_path, split_of(["a", "b"], vectors, list(vectors), audio_lengths=[7, 7]))
    found = rows_of(back(path, "mmsa", tmp_path))
    assert found["a"] == ([[1, 2, 3, 4]], [[1, 2, 3, 4]])
    assert found["b"] == ([[0, 0, 0, 0]], [[0, 0, 0, 0]])
    np.savez(tmp_path / "f.npz", **{"ids": ["a", "b"], "vision/values": vectors})
    store = back(tmp_path / "f.npz", "npz", tmp_path)
    assert rows_of(store)["a"] == ([], [[1, 2, 3, 4]])
    assert FeatureStore.open(store).widths == {"audio": 1, "vision": 4}
    assert FeatureStore.open(store).status == {"a": "no_audio", "b": "no_audio"}


@pytest.mark.parametrize("front", [False, True])
def test_text_features_are_a_modality_and_token_ids_are_not(tmp_path, front):
    text = np.zeros((2, 4, 8), np.float32)
    for row, count in enumerate((3, 2)):
        text[row, slice(4 - count, 4) if front else slice(0, count)] = ramp(count, 8)
    path = mmsa_file(tmp_path, GOOD | {"text": text, "text_bert": ramp(2, 3, 4)})
    store = back(path, "mmsa", tmp_path)
    assert FeatureStore.open(store).widths == {"audio": 2, "vision": 2, "text": 8}
    assert [rows_of(store)[i][2] for i in "ab"] == [ramp(3, 8).tolist(), ramp(2, 8).tolist()]


def test_a_file_without_text_features_gives_a_store_without(tmp_path):
    bare = back(mmsa_file(tmp_path, GOOD), "mmsa", tmp_path / "a")
    empty = {"text": np.zeros((2, 0, 0)), "text_bert": np.zeros((2, 3, 0))}
    same = back(mmsa_file(tmp_path, GOOD | empty), "mmsa", tmp_path / "b")
    assert rows_of(bare) == rows_of(same)
    for store in (bare, same):
        assert list(FeatureStore.open(store).widths) == ["audio", "vision"]
        assert not any("text" in name for name in tree_of(store))


def test_no_text_ignores_text_features_of_any_kind(tmp_path, capsys):
    path = mmsa_file(tmp_path, GOOD | {"text": ["words", "more words"]})
    command = ["import", str(path), "--from", "mmsa", "--dataset", "d", "--stores", str(tmp_path)]
    assert main(command) == 1
    assert "train.text must hold numbers" in (error := capsys.readouterr().err)
    assert error.endswith("--no-text ignores it\n")
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
    with pytest.raises(ValueError, match="a store cannot hold it"):
        back(path, "mmsa", tmp_path, dtype="float32")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not MMSA's structure"),
        ({"a": 1}, "not MMSA's structure"),
        ({"train": {"audio": 1}}, "train.id is missing"),
        ({"train": GOOD | {"id": [1.5, 2.5]}}, "train.id contains 1.5"),
        ({"train": GOOD | {"id": ["a", "a"]}}, "id 'a' occurs 2 times"),
        ({"train": GOOD, "test": GOOD}, "id 'a' occurs 2 times"),
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
