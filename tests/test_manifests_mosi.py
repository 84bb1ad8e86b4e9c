"""CMU-MOSI and CMU-MOSEI in both layouts, from look-alikes with the quirks that copies have."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from manifests import Manifest, adapters
from manifests.__main__ import main
from manifests.adapters.csd import read_folds

HEADER = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
CLIPS = [
    "03bSnISJMiM,1,ANYHOW IT WAS REALLY GOOD,2.4000000953674316,,,,Positive,train",
    '03bSnISJMiM,10,"THEY, ""SADLY"", DID",-0.8,,,,Negative,train',
    "-3g5yACwYnA,2,NA,0,,,,Neutral,valid",
    "un été,1,nan,-3,,,,Negative,test",
    "two words,1,null,3.0,,,,Positive,test",
]


def clips(root: Path, rows: list[str] = CLIPS, header: str = HEADER, mark: bytes = b"") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "label.csv").write_bytes(mark + "\r\n".join([header, *rows, ""]).encode())
    for row in rows:
        video, clip = row.split(",")[:2]
        path = root / "Raw" / video / f"{clip}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


# --- single clips -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mosi", "mosei"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_single_clips(name, mark, tmp_path):
    manifest, notes = adapters.build(name, clips(tmp_path, mark=mark))
    table = manifest.table.set_index("id")
    assert list(table.index) == [
        "03bSnISJMiM$_$1",
        "03bSnISJMiM$_$10",
        "-3g5yACwYnA$_$2",
        "un été$_$1",
        "two words$_$1",
    ]
    # The words of a transcript are words, whatever they mean to a table reader.
    assert list(table["text"])[1:] == ['THEY, "SADLY", DID', "NA", "nan", "null"]
    assert list(table["label"]) == [2.4000000953674316, -0.8, 0, -3, 3]
    row = table.loc["two words$_$1"]
    assert (row["video"], row["split"]) == ("Raw/two words/1.mp4", "test")
    assert (row["dialogue"], row["turn"], row["language"]) == ("two words", 1, "en")
    assert table["start"].isna().all()
    assert notes == []


def test_the_same_row_twice_is_taken_once(tmp_path):
    manifest, notes = adapters.build("mosi", clips(tmp_path, [*CLIPS, CLIPS[1], CLIPS[0]]))
    assert len(manifest.table) == len(CLIPS)
    assert notes == ["label.csv: 2 duplicate rows, used once: row 7, 8"]


def test_windows_1252_is_read_and_reported(tmp_path):
    clips(tmp_path)
    (tmp_path / "label.csv").write_bytes(
        "\n".join([HEADER, "a,1,a café,0,,,,Neutral,TRAIN"]).encode("cp1252")
    )
    manifest, notes = adapters.build("mosi", tmp_path, media=False)
    assert list(manifest.table["text"]) == ["a café"]
    assert list(manifest.table["split"]) == ["train"]
    assert notes == ["label.csv is not UTF-8, read as cp1252"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["a,1,x,good,,,,,train"], r"label.csv: row 2: label 'good' is not a number"),
        (['a,1,x,"0,5",,,,,train'], r"row 2: label '0,5' is not a number: .* a point"),
        (["a,1,x,1,,,,,train", "", "a,2,x,nan,,,,,train"], "row 4: label 'nan' is not a number"),
        (["a,1,x,,,,,,train"], r"row 2 \(id 'a\$_\$1'\): no label: fill it in"),
        (["a,1,x,3.5,,,,,train"], r"row 2 .*label 3.5 is not in"),
        (["a,1,x,1,,,,,train", "a,1,y,1,,,,,train"], r"row 3 .*duplicate id"),
        (["a,1,x,1,,,,,train", "a,2,y,1,,,,,test"], "row 3 .*split leak: dialogue 'a' is in test"),
        (["a,1,x,1,,,,,training"], "row 2 .*unknown split 'training'"),
        (["a,,x,1,,,,,train"], "row 2: no video_id or clip_id"),
        (["../a,1,x,1,,,,,train"], r"row 2 .*has '\.\.'"),
        (["a,1,x,1,train"], "row 2: 5 cells, the header has 9"),
        (["Ã©,1,x,1,,,,,train"], "row 2 .*bad encoding in id"),
        (['a,1,"x,1,,,,,train'], "not comma separated values: unexpected end"),
    ],
)
def test_faults_name_file_and_row(rows, says, tmp_path, capsys):
    (tmp_path / "label.csv").write_text("\n".join([HEADER, *rows]), encoding="utf-8")
    argv = ["build", "mosi", "--source", str(tmp_path), "--no-media", "--out", str(tmp_path / "o")]
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'label.csv'}" in error
    with pytest.raises(ValueError, match=says):
        adapters.build("mosi", tmp_path)
    assert not (tmp_path / "o").exists()


def test_garbled_texts_are_repaired_or_emptied_and_reported(tmp_path):
    """A release is not the user's to mend: a few bad cells of many thousand end no build."""
    texts = ["don’t say Ã©", "don\x92t", "lost\ufffdmark", "café “one”", " "]
    rows = [f"a,{i},{text},1,,,,,train" for i, text in enumerate(texts)]
    (tmp_path / "label.csv").write_text("\n".join([HEADER, *rows]), encoding="utf-8")
    manifest, notes = adapters.build("mosi", tmp_path, media=False)
    assert list(manifest.table["text"]) == ["don’t say é", "don’t", "lost mark", "café “one”", ""]
    assert notes == [
        "label.csv: 3 texts had a wrong encoding and were repaired: row 2, 3, 4",
        "label.csv: 1 texts are empty: the language model gets empty texts: row 6",
    ]
    manifest.save(tmp_path / "out")
    assert main(["check", str(tmp_path / "out")]) == 0


def test_a_missing_column_lists_those_there(tmp_path):
    clips(tmp_path, header=HEADER.replace("mode", "split"))
    with pytest.raises(ValueError, match=r"label.csv: no column mode: add it; it has video_id, .*"):
        adapters.build("mosi", tmp_path)


def test_build_is_deterministic_and_prints_the_counts(tmp_path, capsys):
    root = clips(tmp_path / "in")
    (root / "Raw/un été/1.mp4").unlink()
    for out in ("a", "b"):
        assert main(["build", "mosi", "--source", str(root), "--out", str(tmp_path / out)]) == 0
    said = capsys.readouterr().out
    assert "1284 │  1284" in said  # the release's and the paper's
    assert "missing videos: 1 of 5 (Raw/un été/1.mp4)" in said
    assert "languages: en 5" in said
    assert "language model: builtin:minilm, which comes with this project" in said
    files = ["manifest.parquet", "card.yaml"]
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    assert main(["check", str(tmp_path / "a")]) == 0


# --- the CMU SDK's files ------------------------------------------------------------------------

FOLDS = """\
standard_train_fold=['vid-a', '127470']
standard_valid_fold=['vid b']
standard_test_fold=['c']
raise SystemExit('this file must be parsed, not run')
"""
EMOTIONS = ["happy", "sad", "anger", "surprise", "disgust", "fear"]
SEGMENTS = {
    "vid-a": ([[0.0, 2.0], [2.0, 4.0]], [[1.5, 0, 0, 0, 0, 0, 0], [-3, 0, 2 / 3, 1, 0, 0, 0]]),
    "127470": ([[-0.01, 5.0]], [[0, 0, 0, 0, 0, 0, 0.25]]),
    "vid b": ([[0, 9.5]], [[1, 3, 0, 0, 0, 0, 0]]),
    "c": ([[1.0, 2.0], [5.0, 4.0], [7.0, 8.0]], [[2, 1, 0, 0, 0, 0, 0]] * 3),
    "in no fold": ([[0, 1]], [[0] * 7]),
}
WORDS = {
    "vid-a": [("well", 0.1, 0.5), ("sp", 0.5, 1.0), ("this", 1.0, 1.9), ("ends", 1.9, 2.4)],
    "127470": [("naïve", 0.2, 0.4)],
    "vid b": [("one", 0, 1), ("two", 8, 9.5)],
    "c": [("yes", 1, 2), ("sp", 7, 8)],
    "in no fold": [("no", 0, 1)],
}


def csd(path: Path, root: str, data: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for video, (intervals, features) in data.items():
            group = file.create_group(f"{root}/data/{video}")
            group["intervals"], group["features"] = intervals, features
        file.create_group(f"{root}/metadata")["root name"] = f'"{root}"'


def sdk(root: Path, name: str = "mosei", width: int = 7) -> Path:
    files, group = {
        "mosei": ("CMU_MOSEI_Labels", "All Labels"),
        "mosi": ("CMU_MOSI_Opinion_Labels", "Opinion Segment Labels"),
    }[name]
    labels = {
        video: (np.array(intervals, "f8"), np.array(features, "f4")[:, :width])
        for video, (intervals, features) in SEGMENTS.items()
    }
    words = {
        video: (
            np.array([(start, end) for _, start, end in spoken], "f8"),
            np.array([[word.encode()] for word, _, _ in spoken], dtype="S16"),
        )
        for video, spoken in WORDS.items()
    }
    csd(root / "csd" / f"{files}.csd", group, labels)
    csd(root / "csd" / f"CMU_{name.upper()}_TimestampedWords.csd", "words", words)
    (root / f"cmu_{name}_std_folds.py").write_text(FOLDS)
    return root


@pytest.mark.parametrize(
    ("name", "width", "folder"),
    [("mosi", 1, "Raw/Video/Full"), ("mosei", 7, "Raw/Videos/Full/Combined")],
)
def test_sdk_files(name, width, folder, tmp_path):
    manifest, notes = adapters.build(name, sdk(tmp_path, name, width))
    table = manifest.table.set_index("id")
    assert list(table.index) == ["127470[0]", "c[0]", "vid b[0]", "vid-a[0]", "vid-a[1]"]
    assert list(table["split"]) == ["train", "test", "valid", "train", "train"]
    # A pause is not a word, and a word belongs to the segment that its middle is in.
    assert list(table["text"]) == ["naïve", "yes", "one two", "well this", "ends"]
    assert list(table["label"]) == [0, 2, 1, 1.5, -3]
    assert table.loc["vid-a[1]", ["start", "end"]].tolist() == [2, 4]
    assert table.loc["127470[0]", "start"] == 0
    assert table.loc["vid b[0]", "video"] == f"{folder}/vid b.mp4"
    assert notes == [
        "excluded 1 segments of videos in no standard fold",
        "excluded 1 segments with an empty interval",
        "excluded 1 segments without a word",
    ]
    # Its segments differ from the single clips, so the release's counts are removed.
    assert manifest.card.splits["train"]["release"] is None
    assert manifest.card.splits["test"]["paper"] == {"mosi": 686, "mosei": 4659}[name]


def test_emotions_are_present_above_zero(tmp_path):
    manifest, _ = adapters.build("mosei_emotion", sdk(tmp_path))
    table = manifest.table.set_index("id")
    assert table.loc["vid-a[1]", EMOTIONS].tolist() == [0, 1, 1, 0, 0, 0]
    assert table.loc["127470[0]", EMOTIONS].tolist() == [0, 0, 0, 0, 0, 1]
    assert table.loc["vid-a[0]", EMOTIONS].sum() == 0
    assert "label" not in table


def test_emotions_from_a_csv(tmp_path):
    header = "video_id,clip_id,text,Happy,Sad,Anger,Surprise,Disgust,Fear,mode"
    rows = ["a,1,x,0,0.33,0,0,0,0,train", "b,1,y,3,0,1,0,0,0,valid", "c,1,z,0,0,0,0,0,0,test"]
    manifest, _ = adapters.build("mosei_emotion", clips(tmp_path, rows, header))
    assert manifest.table[EMOTIONS].to_numpy().tolist() == [
        [0, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    clips(tmp_path, [rows[0].replace("0.33", "3.5"), rows[1].replace(",3,", ",,")], header)
    with pytest.raises(ValueError, match=r"row 3 .*happy nan .*\n.*row 2 .*sad 3\.5 is not betw"):
        adapters.build("mosei_emotion", tmp_path)


def test_emotions_come_from_the_sdk_where_the_csv_has_none(tmp_path):
    manifest, _ = adapters.build("mosei_emotion", clips(sdk(tmp_path)))
    assert "vid-a[0]" in set(manifest.table["id"])
    manifest, _ = adapters.build("mosei", tmp_path)
    assert "03bSnISJMiM$_$1" in set(manifest.table["id"])


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("csd/CMU_MOSEI_Labels.csd", "CMU_MOSEI_Labels.csd: no such file.*CMU-MultimodalSDK"),
        ("csd/CMU_MOSEI_TimestampedWords.csd", "TimestampedWords.csd: no such file"),
        ("cmu_mosei_std_folds.py", "it is mmsdk/mmdatasdk/.*/cmu_mosei_std_folds.py in https:"),
    ],
)
def test_a_missing_file_says_where_to_get_it(gone, says, tmp_path):
    (sdk(tmp_path) / gone).unlink()
    with pytest.raises(ValueError, match=says):
        adapters.build("mosei", tmp_path)


def test_broken_sequences_are_errors(tmp_path):
    labels = sdk(tmp_path) / "csd/CMU_MOSEI_Labels.csd"
    sdk(tmp_path, width=6)
    with pytest.raises(ValueError, match=r"Labels.csd: video '127470': 6 labels per segment"):
        adapters.build("mosei", tmp_path)
    labels.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"not a computational sequence.*download it again"):
        adapters.build("mosei", tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FOLDS.replace("standard_valid", "valid"), "no list standard_valid_fold"),
        (FOLDS.replace("['c']", "list('c')"), "no list standard_test_fold"),
        (FOLDS.replace("['c']", "['vid b']"), "video 'vid b' is in valid and in test"),
        ("<html>", "not a Python file"),
    ],
)
def test_broken_folds_are_errors(text, says, tmp_path):
    path = tmp_path / "cmu_mosi_std_folds.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_folds(path)


def test_sdk_build_is_deterministic(tmp_path):
    sdk(tmp_path / "in")
    for out in ("a", "b"):
        manifest, _ = adapters.build("mosei", tmp_path / "in", media=False)
        manifest.save(tmp_path / out)
    first, second = (tmp_path / out / "manifest.parquet" for out in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert Manifest.load(tmp_path / "a").digest == manifest.digest
