"""MUStARD from a small look-alike of its JSON file, under every way to split it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from manifests import Manifest, adapters
from manifests.__main__ import main
from manifests.adapters.mustard import VARIANTS

SHOWS = ("BBT", "FRIENDS", "GOLDENGIRLS")


def entries(count: int = 690) -> dict[str, dict]:
    """As many as the release has; every second one sarcastic, shows and speakers in turns."""
    return {
        f"{1 + i % 2}_{10 * i}": {
            "utterance": f"It's  number {i}.\nReally.",
            "speaker": f"SPEAKER{i % 7}",
            "context": ["Who's there?", "Me.\nAgain."] if i % 5 else [],
            "context_speakers": ["PERSON", "SHELDON"] if i % 5 else [],
            "show": SHOWS[i % 3],
            "sarcasm": i % 2 == 0,
        }
        for i in range(count)
    }


def write_release(root: Path, content) -> Path:
    path = root / "data" / "sarcasm_data.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("mustard"), entries())


def counts(manifest: Manifest) -> dict[str, int]:
    return manifest.table["split"].value_counts().to_dict()


def test_rows(release):
    manifest, _ = adapters.build("mustard", release, media=False)
    row = manifest.table.set_index("id").loc["2_10"]
    assert (row["text"], row["label"]) == ("It's number 1. Really.", "sincere")
    assert (row["context"], row["context_speakers"]) == (
        "Who's there?\nMe. Again.",
        "PERSON\nSHELDON",
    )
    assert (row["video"], row["context_video"]) == (
        "utterances_final/2_10.mp4",
        "context_final/2_10_c.mp4",
    )
    assert (row["speaker"], row["show"]) == ("SPEAKER1", "FRIENDS")
    first = manifest.table.iloc[0]
    assert (first["id"], first["label"]) == ("1_0", "sarcastic")
    assert manifest.table["context"].isna()[0]


def test_the_papers_split(release):
    manifest, notes = adapters.build("mustard", release, media=False)
    assert counts(manifest) == {"train": 554, "valid": 68, "test": 68}
    halves = manifest.table.groupby("split")["label"].value_counts()
    assert set(halves["test"]) == set(halves["valid"]) == {34}
    assert manifest.card.splits["train"]["paper"] == 554
    assert notes == [f"split {manifest.card.split_rule}"]
    assert adapters.build("mustard", release)[0].digest == manifest.digest


def test_a_row_stays_in_its_split_whatever_the_order(release, tmp_path):
    shuffled = dict(sorted(entries().items(), reverse=True))
    other = write_release(tmp_path, shuffled)
    of = [
        adapters.build("mustard", root)[0].table.set_index("id")["split"].to_dict()
        for root in (release, other)
    ]
    assert of[0] == of[1]


def test_five_folds_test_everything_once(release):
    tested = []
    for fold in range(1, 6):
        manifest, notes = adapters.build("mustard", release, False, f"fold{fold}")
        assert counts(manifest) == {"train": 496, "valid": 56, "test": 138}
        assert "split_indices.p is missing" in notes[0]
        assert set(manifest.split("test")["label"].value_counts()) == {69}
        assert manifest.card.splits["train"] == {"release": None, "paper": None}
        tested += list(manifest.split("test")["id"])
    assert sorted(tested) == sorted(entries())


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_folds_of_the_release(tmp_path, protocol):
    content = entries(50)
    write_release(tmp_path, content)
    rows = np.arange(50)
    folds = [(rows[rows % 5 != i], rows[rows % 5 == i]) for i in range(5)]
    path = tmp_path / "data" / "split_indices.p"
    path.write_bytes(pickle.dumps(folds, protocol))
    manifest, notes = adapters.build("mustard", tmp_path, False, "fold2")
    assert set(manifest.split("test")["id"]) == {list(content)[i] for i in rows[rows % 5 == 1]}
    assert "fold 2 of the release's split_indices.p" in notes[0]
    for broken in (folds[:4], [(rows, rows)] * 4 + [(rows[:9], rows[:3])], {"a": 1}, 3):
        path.write_bytes(pickle.dumps(broken, protocol))
        with pytest.raises(ValueError, match="does not have 5 folds of the 50 entries"):
            adapters.build("mustard", tmp_path, False, "fold5")


def test_speaker_independent(release, tmp_path):
    manifest, _ = adapters.build("mustard", release, False, "speaker-independent")
    shows = manifest.table.groupby("split")["show"].unique()
    assert list(shows["test"]) == ["FRIENDS"]
    assert "FRIENDS" not in {*shows["train"], *shows["valid"]}
    assert counts(manifest) == {"train": 414, "valid": 46, "test": 230}
    older = entries(20)
    for each in older.values():
        del each["show"]
    root = write_release(tmp_path, older)
    with pytest.raises(ValueError, match="does not name the shows"):
        adapters.build("mustard", root, False, "speaker-independent")
    adapters.build("mustard", root, False, "paper")


def test_variants_on_the_command_line(release, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variant in VARIANTS:
        arguments = ["build", "mustard", "--source", str(release), "--no-media"]
        assert main([*arguments, "--variant", variant]) == 0
        assert len(Manifest.load(f"mustard-{variant}").table) == 690
    assert main([*arguments, "--variant", "fold6"]) == 1
    assert "no variant 'fold6'; the variants are: paper, fold1" in capsys.readouterr().err
    assert main(["build", "ravdess", "--source", ".", "--no-media", "--variant", "fold1"]) == 1
    assert "ravdess has no variant 'fold1'; the variants are: none" in capsys.readouterr().err


def test_clips_are_found_where_they_were_unpacked(release, tmp_path, capsys):
    root = write_release(tmp_path / "in", entries(20))
    clip = root / "mmsd_raw_data" / "utterances_final" / "1_0.mp4"
    clip.parent.mkdir(parents=True)
    clip.touch()
    (root / "mmsd_raw_data" / "context_final").mkdir()
    out = tmp_path / "out"
    assert main(["build", "mustard", "--source", str(root), "--out", str(out)]) == 0
    assert "missing videos: 19 of 20" in " ".join(capsys.readouterr().out.split())
    row = Manifest.load(out).table.iloc[0]
    assert row["video"] == "mmsd_raw_data/utterances_final/1_0.mp4"
    assert row["context_video"] == "mmsd_raw_data/context_final/1_0_c.mp4"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sarcasm": "yes"}, "id '1_0': sarcasm is 'yes', it must be a bool"),
        ({"context": "Hello"}, "id '1_0': context is 'Hello', it must be a list"),
        ({"utterance": None}, "id '1_0': utterance is None, it must be a str"),
        ({"utterance": " "}, "empty text"),
    ],
)
def test_faults_name_the_place(tmp_path, change, says):
    content = entries(10)
    content["1_0"] |= change
    with pytest.raises(ValueError, match=says):
        adapters.build("mustard", write_release(tmp_path, content), media=False)


def test_a_broken_or_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"sarcasm_data.json: no such file.*soujanyaporia/MUStARD"):
        adapters.build("mustard", tmp_path)
    (tmp_path / "sarcasm_data.json").write_text('{"1_0": {')
    with pytest.raises(ValueError, match=r"sarcasm_data.json: not JSON"):
        adapters.build("mustard", tmp_path)
    (tmp_path / "sarcasm_data.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"sarcasm_data.json: it must map ids to entries"):
        adapters.build("mustard", tmp_path)
