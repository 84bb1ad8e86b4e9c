"""MELD from small look-alikes of its three CSV files and its folders of clips."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import Manifest, adapters
from manifests.__main__ import main
from manifests.adapters.files import read_text, repaired

HEADER = ["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"]
HEADER += ["Season", "Episode", "StartTime", "EndTime"]
TIMES = ("00:16:16,059", "00:16:21,731")


def table(*rows: tuple) -> str:
    """CSV text of rows (dialogue, utterance, text, speaker, emotion)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(HEADER)
    for number, (dialogue, turn, text, speaker, emotion) in enumerate(rows, 1):
        line = [number, text, speaker, emotion, "neutral", dialogue, turn, 8, 21, *TIMES]
        writer.writerow(line)
    return out.getvalue()


TRAIN = table(
    (0, 0, "Hi, “you”!", "Chandler", "joy"),
    (0, 1, "So?  Oh,\nwell.", "Ross", "anger"),
    (7, 0, "NA", "Joey", "neutral"),
)
DEV = table((0, 0, "It’s a café…", "Chloé", "sadness"))
TEST = table(
    (0, 0, "He\x92s \x93late\x94.", "Mark", "fear"),
    (0, 1, "You’re here".encode().decode("cp1252"), "Rachel", "surprise"),
    (3, 4, "Plain.", "Rachel", "disgust"),
)
FOLDERS = ("train_splits", "dev_splits_complete", "output_repeated_splits_test")


@pytest.fixture
def release(tmp_path):
    """The CSV files alone, each in an encoding that copies of MELD were seen in."""
    root = tmp_path / "MELD.Raw"
    root.mkdir()
    (root / "train_sent_emo.csv").write_bytes(b"\xef\xbb\xbf" + TRAIN.encode())
    (root / "dev_sent_emo.csv").write_bytes(DEV.encode("cp1252"))
    (root / "test_sent_emo.csv").write_bytes(TEST.encode())
    return root


def clip(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_labels_alone(release):
    manifest, notes = adapters.build("meld", release, media=False)
    rows = manifest.table.set_index("id")
    assert list(rows.index) == [
        *("train_dia0_utt0", "train_dia0_utt1", "train_dia7_utt0", "dev_dia0_utt0"),
        *("test_dia0_utt0", "test_dia0_utt1", "test_dia3_utt4"),
    ]
    assert list(rows["split"]) == ["train"] * 3 + ["valid"] + ["test"] * 3
    assert list(rows["text"]) == [
        *("Hi, “you”!", "So? Oh, well.", "NA", "It’s a café…"),
        *("He’s “late”.", "You’re here", "Plain."),
    ]
    assert rows.loc["dev_dia0_utt0", "speaker"] == "Chloé"
    assert rows["video"].iloc[0] == "train_splits/dia0_utt0.mp4"
    assert rows["video"].iloc[-1] == "output_repeated_splits_test/dia3_utt4.mp4"
    assert rows[["start", "end", "crop_x"]].isna().all(axis=None)  # a clip is one utterance
    last = rows.iloc[-1]
    assert (last["dialogue"], last["turn"], last["label"]) == ("test_dia3", 4, "disgust")
    assert (last["season"], last["episode"]) == (8, 21)
    assert (last["episode_start"], last["episode_end"]) == pytest.approx((976.059, 981.731))
    assert notes[:3] == ["train: 2 dialogues", "dev: 1 dialogues", "test: 2 dialogues"]


def test_dialogues_of_two_splits_are_two(release):
    manifest, _ = adapters.build("meld", release, media=False)
    assert manifest.table.groupby("dialogue")["split"].nunique().max() == 1


def test_clips_wherever_the_archives_were_unpacked(release, tmp_path, capsys):
    for name in ("train/train_splits/dia0_utt0.mp4", "train/train_splits/._dia0_utt0.mp4"):
        clip(release, name)
    clip(release, "dev_splits_complete/dia0_utt0.mp4")
    clip(release, "dev_splits_complete/dia66_utt9.mp4")  # without a label
    clip(release, "__MACOSX/output_repeated_splits_test/._dia0_utt0.mp4")
    names = ("dia0_utt0", "final_videos_testdia0_utt0", "final_videos_testdia0_utt1")
    for name in (*names, "._final_videos_testdia3_utt4"):
        clip(release, f"output_repeated_splits_test/{name}.mp4")
    out = tmp_path / "out"
    assert main(["build", "meld", "--source", str(release), "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "missing videos: 3 of 7" in said
    assert "2 clips are called final_videos_test...; 1 of them are used" in said
    videos = Manifest.load(out).table.set_index("id")["video"]
    assert videos["train_dia7_utt0"] == "train/train_splits/dia7_utt0.mp4"
    assert videos["test_dia0_utt0"] == "output_repeated_splits_test/dia0_utt0.mp4"
    assert videos["test_dia0_utt1"] == "output_repeated_splits_test/final_videos_testdia0_utt1.mp4"
    assert videos["test_dia3_utt4"] == "output_repeated_splits_test/dia3_utt4.mp4"


def test_it_prints_the_counts_of_release_and_paper(release, tmp_path, capsys):
    arguments = ["build", "meld", "--source", str(release), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--no-media"]) == 0
    said = capsys.readouterr().out
    for count in ("9989", "9765", "2610", "2524"):
        assert count in said
    first = Manifest.load(tmp_path / "out").digest
    assert main([*arguments, "--no-media"]) == 0
    assert Manifest.load(tmp_path / "out").digest == first


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("00:16:16,059", "16:16"), r"train_sent_emo.csv: row 2: '16:16' is not a time"),
        ((",joy,", ",glee,"), r"train_sent_emo.csv: row 2 \(id 'train_dia0_utt0'\): unknown class"),
        (
            (",neutral,neutral,", ",,neutral,"),
            r"train_sent_emo.csv: row 4 .*: no label: fill it in",
        ),
        ((",0,1,8,21,", ",0,one,8,21,"), r"train_sent_emo.csv: row 3: utterance_id 'one'"),
        ((",7,0,8,21,", ",7.5,0,8,21,"), r"train_sent_emo.csv: row 4: .*whole numbers"),
        (("Emotion", "Mood"), "no column emotion"),
        ((",0,1,8,", ",0,0,8,"), r"train_sent_emo.csv: row 3 .*duplicate id"),
    ],
)
def test_faults_name_the_place(release, change, says):
    (release / "train_sent_emo.csv").write_bytes(TRAIN.replace(*change, 1).encode())
    with pytest.raises(ValueError, match=says):
        adapters.build("meld", release, media=False)


def test_a_fault_of_a_later_file_names_that_file(release):
    (release / "below").mkdir()
    (release / "test_sent_emo.csv").rename(release / "below/test_sent_emo.csv")
    path = release / "below/test_sent_emo.csv"
    path.write_text(TEST.replace(",disgust,", ",digust,"), encoding="utf-8")
    says = rf"^{release}: below/test_sent_emo.csv: row 4 \(id 'test_dia3_utt4'\): unknown class"
    with pytest.raises(ValueError, match=says):
        adapters.build("meld", release, media=False)


def test_a_missing_table_says_how_to_obtain_it(release):
    (release / "dev_sent_emo.csv").unlink()
    with pytest.raises(ValueError, match=r"dev_sent_emo.csv: no such file.*affective-meld"):
        adapters.build("meld", release, media=False)


WORDS = ["It's", "it’s", "a", "café,", "‘no’", "“yes”…", "–", "—", "señor", "€5", "É!"]
WRITTEN = st.lists(st.sampled_from(WORDS)).map(" ".join)


@given(WRITTEN)
def test_repair_undoes_both_mistakes(text):
    assert repaired(text) == text
    assert repaired(text.encode("cp1252").decode("latin-1")) == text
    assert repaired(text.encode("cp1252").decode("utf-8", errors="surrogateescape")) == text
    # Readers differ in what they make of the five bytes that Windows-1252 does not have.
    taken = "".join(
        bytes([byte]).decode("latin-1" if byte in b"\x81\x8d\x8f\x90\x9d" else "cp1252")
        for byte in text.encode()
    )
    assert repaired(taken) == text


@given(WRITTEN, WRITTEN)
def test_one_file_may_hold_lines_of_both_encodings(tmp_path_factory, first, second):
    path = tmp_path_factory.getbasetemp() / "both.txt"
    path.write_bytes(first.encode() + b"\n" + second.encode("cp1252"))
    assert read_text(path) == f"{first}\n{second}"
