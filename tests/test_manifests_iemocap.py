"""IEMOCAP from a small look-alike of its sessions, without a video."""

from pathlib import Path

import pandas as pd
import pytest

from manifests import Manifest, adapters
from manifests.__main__ import main

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
# When, who, what the annotators agreed on, what was said; the speakers' times interleave.
TURNS = (
    (12.5, 14.0, "M000", "xxx", "Never mind."),
    (6.29, 8.24, "F000", "neu", "Excuse  me."),
    (9.0, 11.25, "M001", "fru", "Do you have your forms?"),
    (15.0, 15.5, "F001", "sur", "Oh!"),
    (16.0, 19.0, "FXX2", "exc", "[LAUGHTER] It’s great."),
)


def write_dialogue(root: Path, name: str, turns=TURNS) -> None:
    dialog = root / f"Session{name[4]}" / "dialog"
    evaluation, said = [HEADER], []
    for start, end, who, label, text in turns:
        turn = f"{name}_{who}"
        evaluation += [
            f"[{start:.4f} - {end:.4f}]\t{turn}\t{label}\t[2.5000, 3.0000, 1.5000]\n",
            "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n",
        ]
        said += [f"{turn} [{start:08.4f}-{end:08.4f}]: {text}\n", "M: [BREATHING]\n"]
    for folder, lines in (("EmoEvaluation", evaluation), ("transcriptions", said)):
        path = dialog / folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="cp1252")
        path.with_name(f"._{name}.txt").write_bytes(b"\0\5\x16\7")
    categories = dialog / "EmoEvaluation" / "Categorical" / f"{name}_e2_cat.txt"
    categories.parent.mkdir(exist_ok=True)
    categories.write_text(f"{name}_F000 :Neutral state; ()\n")


@pytest.fixture
def release(tmp_path):
    root = tmp_path / "IEMOCAP_full_release"
    for name in ("Ses01F_impro01", "Ses01M_script01_1", "Ses05M_script01_1b"):
        write_dialogue(root, name)
    return root


def test_utterances(release):
    manifest, notes = adapters.build("iemocap", release, media=False)
    rows = manifest.table.set_index("id")
    assert len(rows) == 9
    assert notes == ["excluded 6 of 15 utterances, of no or another class"]
    first = rows.loc["Ses01F_impro01_F000"]
    assert first["video"] == "Session1/dialog/avi/DivX/Ses01F_impro01.avi"
    assert (first["start"], first["end"], first["text"]) == (6.29, 8.24, "Excuse me.")
    assert (first["speaker"], first["dialogue"]) == ("Ses01F", "Ses01F_impro01")
    assert (first["valence"], first["activation"], first["dominance"]) == (2.5, 3.0, 1.5)
    assert rows.loc["Ses01F_impro01_FXX2", "text"] == "[LAUGHTER] It’s great."
    # Turns are in the order of time and count those that are left out.
    turns = rows.loc[rows["dialogue"] == "Ses01F_impro01", ["turn", "label"]]
    assert turns.values.tolist() == [[0, "neu"], [1, "fru"], [4, "exc"]]
    assert rows.loc["Ses05M_script01_1b_M001", "split"] == "test"


def test_who_wears_the_markers_is_at_the_left(release):
    rows = adapters.build("iemocap", release, media=False)[0].table.set_index("id")
    left = {name: x == 0 for name, x in rows["crop_x"].items()}
    assert left["Ses01F_impro01_F000"]
    assert not left["Ses01F_impro01_M001"]
    assert left["Ses01M_script01_1_M001"]
    assert not left["Ses01M_script01_1_F000"]
    halves = rows[["crop_x", "crop_y", "crop_w", "crop_h"]].drop_duplicates()
    assert sorted(halves.values.tolist()) == [[0, 0, 0.5, 1], [0.5, 0, 0.5, 1]]


def test_splits_keep_dialogues_and_the_test_speakers_apart(tmp_path):
    names = [f"Ses0{s}{m}_impro0{i}" for s in range(1, 6) for m in "FM" for i in range(1, 4)]
    for name in names:
        write_dialogue(tmp_path, name)
    manifest, _ = adapters.build("iemocap", tmp_path)
    table = manifest.table
    assert manifest.card.disjoint == ["dialogue", "video"]
    assert (table[table["split"] == "test"]["speaker"].str[:5] == "Ses05").all()
    assert not table[table["split"] != "test"]["speaker"].str.startswith("Ses05").any()
    valid = sorted(set(table[table["split"] == "valid"]["dialogue"]))
    assert valid == [sorted(names[:24])[5], sorted(names[:24])[16]]
    assert table.groupby("dialogue")["split"].nunique().max() == 1
    pd.testing.assert_frame_equal(adapters.build("iemocap", tmp_path)[0].table, table)


def test_from_the_folder_above_and_without_a_transcript(release, tmp_path, capsys):
    path = release / "Session1/dialog/transcriptions/Ses01F_impro01.txt"
    lines = path.read_text(encoding="cp1252").splitlines()
    path.write_text("\n".join(line for line in lines if "M001" not in line), encoding="cp1252")
    out = tmp_path / "out"
    arguments = ["build", "iemocap", "--source", str(tmp_path), "--out", str(out)]
    assert main(arguments) == 1
    assert "unpack them there, or pass --no-media" in capsys.readouterr().err
    assert main([*arguments, "--no-media"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 utterances without a transcript: Ses01F_impro01_M001" in said
    assert "missing videos: 3 of 3" in said
    for count in ("5228", "519", "1622"):
        assert count in said
    videos = set(Manifest.load(out).table["video"])
    assert "IEMOCAP_full_release/Session1/dialog/avi/DivX/Ses01F_impro01.avi" in videos


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ("2.5000,", "two,"),
            r"Ses01F_impro01.txt: row 3: .* is not an evaluation of Ses01F_impro01",
        ),
        (("Ses01F_impro01_M000", "Ses01F_impro02_M000"), "row 3: .* is not an evaluation of"),
        (("_M000", "_X000"), "row 3: .* is not an evaluation of"),
        (("8.2400]", "5.2400]"), r"utterance \(id 'Ses01F_\w+'\): bad interval 6.29 to 5.24"),
    ],
)
def test_faults_name_the_place(release, change, says):
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ValueError, match=says):
        adapters.build("iemocap", release, media=False)


def test_missing_parts_are_named(release, tmp_path):
    (release / "Session5/dialog/transcriptions/Ses05M_script01_1b.txt").unlink()
    with pytest.raises(ValueError, match=r"transcriptions/Ses05M_script01_1b.txt: no such file"):
        adapters.build("iemocap", release, media=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no such file; to obtain it: Ask at https://sail"):
        adapters.build("iemocap", tmp_path / "empty", media=False)
