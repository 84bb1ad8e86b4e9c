"""UR-FUNNY from small imitations of its pickled tables; any other content is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from manifests import Manifest, adapters
from manifests.__main__ import main

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


def test_an_empty_punchline_is_excluded_and_reported(tmp_path):
    sentences = SENTENCES | {11: entry(" ", ["then"])}
    root = write_release(tmp_path, language_sdk=sentences)
    manifest, notes = adapters.build("urfunny", root, media=False)
    assert notes == ["excluded, its punchline is empty: 11"]
    assert "11" not in set(manifest.table["id"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"humor_label_sdk": LABELS | {64: 2}}, "id 64: 2 in humor_label_sdk.pkl"),
        ({"language_sdk": {64: entry("a", [])}}, "id 8592: no punchline_sentence in language_sdk"),
        ({"data_folds": {"train": [64], "test": [5]}}, "data_folds.pkl has no list called 'dev'"),
        ({"data_folds": [64]}, "data_folds.pkl contains a list, not a table"),
        ({"data_folds": FOLDS | {"test": [64]}}, "duplicate id"),
        ({"data_folds": FOLDS | {"test": [[5]]}}, r"\[5\] in data_folds.pkl is not an id"),
        ({"humor_label_sdk": LABELS | {64: np.arange(2)}}, r"id 64: \[0, 1\] in humor_label_sdk"),
        ({"language_sdk": SENTENCES | {5: entry(None, [])}}, "id 5: a sentence .* is not text"),
        ({"language_sdk": SENTENCES | {5: Path("x")}}, "pathlib.*which is not allowed"),
    ],
)
def test_faults_name_the_place(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        adapters.build("urfunny", write_release(tmp_path, **changes), media=False)


def test_arrays_count_as_lists(tmp_path):
    """Copies of the release differ in this."""
    lists, arrays = tmp_path / "lists", tmp_path / "arrays"
    write_release(lists)
    sentences = SENTENCES | {
        7: entry(np.array(["no", "way"], dtype=object), SENTENCES[7]["context_sentences"])
    }
    write_release(
        arrays,
        language_sdk=sentences,
        humor_label_sdk={key: np.float32(label) for key, label in LABELS.items()},
        data_folds={fold: np.array(ids) for fold, ids in FOLDS.items()},
    )
    built = [adapters.build("urfunny", root, media=False)[0] for root in (lists, arrays)]
    assert built[0].digest == built[1].digest


@pytest.mark.parametrize("nested", ["key", "sentence"])
def test_nested_content_that_would_take_forever_is_refused(tmp_path, nested):
    """A few bytes whose hash, comparison or text form takes time exponential in the depth."""
    root = write_release(tmp_path)
    path = root / "features" / "language_sdk.pkl"
    if nested == "key":
        path.write_bytes(b"\x80\x04})" + b"2\x86" * 40 + b"K\x01s.")
        says = r"language_sdk.pkl: the pickle has a key of type tuple .*Download it again"
    else:
        words: list = ["a"]
        for _ in range(40):
            words = [words, words]
        path.write_bytes(pickle.dumps(SENTENCES | {5: entry(words, [])}))
        says = "id 5: a sentence in language_sdk.pkl is not text"
    with pytest.raises(ValueError, match=says):
        adapters.build("urfunny", root, media=False)


def test_a_missing_table_says_how_to_obtain_it(tmp_path):
    root = write_release(tmp_path)
    (root / "features" / "data_folds.pkl").unlink()
    with pytest.raises(ValueError, match=r"data_folds.pkl: no such file.*ROC-HCI/UR-FUNNY"):
        adapters.build("urfunny", root, media=False)
