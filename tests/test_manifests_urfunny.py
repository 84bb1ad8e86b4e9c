"""UR-FUNNY from small look-alikes of its pickled tables; what else a pickle may hold is refused."""

import contextlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import Manifest, adapters
from manifests.__main__ import main
from manifests.adapters.pickles import load_pickle

FOLDS = {"train": [64, 8592, 7], "dev": [11], "test": [5]}
LABELS = {64: 1, 8592: 0, 7: np.int64(1), 11: 0, 5: 1}


def entry(punchline, context):
    """One entry of language_sdk, with fields that nothing reads, some of them arrays."""
    return {
        "punchline_embedding_indexes": [3, 7],
        "context_embedding_indexes": [[1], [2, 5]],
        "punchline_sentence": punchline,
        "context_sentences": context,
        "punchline_intervals": np.array([[0.5, 0.9], [0.9, 1.5]]),
        "context_intervals": np.array([[[0, 0.5]], [[1, 2], [2, 2.5]]], dtype=object),
    }


SENTENCES = {
    64: entry("so i  said it\x92s me", ["we met\nin june", "he was late"]),
    8592: entry("and that was all", []),
    7: entry(["no", "way"], [["it", "rained"], ["a", "lot"]]),
    11: entry("fine", ["then"]),
    5: entry("the last one", ["first", "", "second"]),
    999: entry("in no fold", []),
}


def write_release(root: Path, protocol: int = 4, **changes) -> Path:
    tables = {"language_sdk": SENTENCES, "humor_label_sdk": LABELS, "data_folds": FOLDS} | changes
    (root / "features").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (root / "features" / f"{name}.pkl").write_bytes(pickle.dumps(table, protocol))
    return root


@pytest.mark.parametrize("protocol", [2, 4])
def test_rows(tmp_path, protocol):
    manifest, notes = adapters.build("urfunny", write_release(tmp_path, protocol), media=False)
    rows = manifest.table.set_index("id")
    assert notes == []
    assert rows["split"].to_dict() == {
        "64": "train", "8592": "train", "7": "train", "11": "valid", "5": "test",
    }  # fmt: skip
    assert list(rows["label"]) == ["humorous", "serious", "humorous", "serious", "humorous"]
    assert rows.loc["64", "text"] == "so i said it’s me"
    assert rows.loc["64", "context"] == "we met in june\nhe was late"
    assert rows["context"].isna()["8592"]
    assert (rows.loc["7", "text"], rows.loc["7", "context"]) == ("no way", "it rained\na lot")
    assert rows.loc["5", "context"] == "first\nsecond"
    assert rows.loc["64", "video"] == "urfunny2_videos/64.mp4"


def test_command_line_finds_the_clips(tmp_path, capsys):
    root = write_release(tmp_path / "in")
    clip = root / "clips" / "urfunny2_videos" / "64.mp4"
    clip.parent.mkdir(parents=True)
    clip.touch()
    (root / "__MACOSX" / "urfunny2_videos").mkdir(parents=True)
    out = tmp_path / "out"
    assert main(["build", "urfunny", "--source", str(root), "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "missing videos: 4 of 5" in said
    for count in ("7614", "980", "994"):
        assert count in said
    assert Manifest.load(out).table["video"].iloc[0] == "clips/urfunny2_videos/64.mp4"


def test_an_empty_punchline_is_left_out_and_told(tmp_path):
    sentences = SENTENCES | {11: entry(" ", ["then"])}
    root = write_release(tmp_path, language_sdk=sentences)
    manifest, notes = adapters.build("urfunny", root, media=False)
    assert notes == ["left out, its punchline is empty: 11"]
    assert "11" not in set(manifest.table["id"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"humor_label_sdk": LABELS | {64: 2}}, "id 64: 2 in humor_label_sdk.pkl"),
        ({"language_sdk": {64: entry("a", [])}}, "id 8592: no punchline_sentence in language_sdk"),
        ({"data_folds": {"train": [64], "test": [5]}}, "data_folds.pkl has no list called 'dev'"),
        ({"data_folds": [64]}, "data_folds.pkl holds a list, not a table"),
        ({"data_folds": FOLDS | {"test": [64]}}, "duplicate id"),
    ],
)
def test_faults_name_the_place(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        adapters.build("urfunny", write_release(tmp_path, **changes), media=False)


def test_a_missing_table_says_how_to_obtain_it(tmp_path):
    root = write_release(tmp_path)
    (root / "features" / "data_folds.pkl").unlink()
    with pytest.raises(ValueError, match=r"data_folds.pkl: no such file.*ROC-HCI/UR-FUNNY"):
        adapters.build("urfunny", root, media=False)


# --- pickles ------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=8,
)


@given(content=PLAIN, protocol=st.sampled_from([0, 2, 4, 5]))
def test_plain_data_is_read_as_it_was(tmp_path_factory, content, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    assert load_pickle(path) == content


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["int64", ">i4", "float32", "bool", "uint8"])
def test_arrays_become_lists(tmp_path, kind, protocol):
    array = np.arange(6).astype(kind).reshape(2, 3)
    content = {"c": array, "fortran": np.asfortranarray(array), "one": array[1, 2]}
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    loaded = load_pickle(path)
    assert loaded["c"] == loaded["fortran"] == array.tolist()
    assert loaded["one"] == array[1, 2]


class Runs:
    """What a hostile pickle does: it names a function and calls it."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def test_nothing_is_run(tmp_path):
    marker = tmp_path / "ran"
    hostile = {
        "posix.mkdir|nt.mkdir": Runs(os.mkdir, str(marker)),
        "eval": Runs(eval, f"__import__('os').mkdir({str(marker)!r})"),
        "getattr": Runs(getattr, "x", "upper"),
        "pathlib": Path("x"),
        "load": Runs(np.load, "x.npy"),
    }
    path = tmp_path / "hostile.pkl"
    for says, content in hostile.items():
        for protocol in (0, 2, 4):
            path.write_bytes(pickle.dumps([content], protocol))
            with pytest.raises(ValueError, match=f"hostile.pkl.*(?:{says}).*nothing of it was run"):
                load_pickle(path)
    assert not marker.exists()


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.pkl"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        load_pickle(path)


def test_damaged_tables_are_refused(tmp_path):
    path = tmp_path / "cut.pkl"
    whole = pickle.dumps({"rows": np.arange(50)})
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.pkl cannot be read.*Download it again"):
            load_pickle(path)
