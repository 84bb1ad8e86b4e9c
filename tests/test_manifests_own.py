"""Own data: docs/your-own-data.md followed to the letter, and how a table can go wrong."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import Manifest, adapters
from manifests.__main__ import main
from manifests.adapters.custom import draw_splits
from train.config import preset_names
from train.metrics import METRIC_SETS

DOCUMENT = Path(__file__).parent.parent / "docs/your-own-data.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
PLAIN = "id,video,label,text"
ROWS = [f"u{i},v/s{i % 5}.mp4,{i % 3},words {i}" for i in range(10)]


def blocks(kind: str) -> list[str]:
    return [text for name, text in BLOCKS if name == kind]


def write(root: Path, *lines: str, card: str = "") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    if card:
        (root / "card.yaml").write_text(card, encoding="utf-8")
    return root


# --- the document -------------------------------------------------------------------------------


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The folder that the document describes, at home."""
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / "home/interviews", blocks("csv")[0], card=blocks("yaml")[0])
    for video in re.findall(r"videos/[^,]+", blocks("csv")[0]):
        (root / video).parent.mkdir(exist_ok=True)
        (root / video).touch()
    return root


def commands() -> list[list[str]]:
    lines = [line for text in blocks("sh") for line in text.splitlines()]
    return [shlex.split(line) for line in lines]


def test_the_document_works_to_the_letter(documented, capsys):
    ours = [words[3:] for words in commands() if words[:3] == ["python", "-m", "manifests"]]
    assert [words[0] for words in ours] == ["build", "check", "show"]
    for words in ours:
        assert main([word.replace("~", str(documented.parent)) for word in words]) == 0
    said = capsys.readouterr().out
    assert "missing videos: 0 of 6" in said
    assert "9 rows, no fault" in said
    manifest = Manifest.load("interviews")
    counts = manifest.table["split"].value_counts().to_dict()
    assert counts == {"train": 5, "valid": 2, "test": 2}
    row = manifest.table.set_index("id").loc["ben-2"]
    assert (row["start"], row["end"], row["label"]) == (3.2, 7.9, "annoyed")
    assert manifest.table["start"].isna().sum() == 4


def test_its_make_targets_exist():
    makefile = (DOCUMENT.parent.parent / "Makefile").read_text(encoding="utf-8")
    made = [words for words in commands() if words[0] == "make"]
    assert len(made) + 4 == len(commands())  # and activate, build, check, show
    assert [words[1] for words in made] == ["extract", "train"]
    for _, target, *settings_ in made:
        assert re.search(f"^{target}:", makefile, re.M)
        assert all(setting.split("=")[0] in ("DATASET", "DATA") for setting in settings_)


@pytest.mark.parametrize(
    ("dataset", "data", "built"),
    [("mine", "", False), ("mine", "in", True), ("new", "", True), ("demo", "", True)],
)
def test_make_extract_builds_what_it_can(tmp_path, dataset, data, built):
    """A manifest without DATA is enough: a share may hold the features."""
    (tmp_path / "data/mine").mkdir(parents=True)
    (tmp_path / "data/mine/manifest.parquet").touch()
    makefile = DOCUMENT.parent.parent / "Makefile"
    (rule,) = re.findall(r"^\$\(BIN\)/\.ready: (.*)$", makefile.read_text(), re.M)
    for path in (*rule.split(), ".venv/bin/.ready"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    make = ["make", "-n", "-f", makefile, "-C", tmp_path, "extract"]
    make += [f"DATASET={dataset}", f"DATA={data}"]
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    assert (f"manifests build {dataset}" in done.stdout) == built
    assert f"extract {dataset}" in done.stdout


def test_its_faults_are_the_ones_it_shows(documented, capsys):
    write(documented, blocks("csv")[1])
    assert main(["build", "interviews", "--source", str(documented)]) == 1
    said = capsys.readouterr().err
    assert said.replace(str(documented.parent), "~") == blocks("text")[1]
    assert not Path("data").exists()


def test_it_names_every_column_and_only_metrics_there_are(documented):
    text = DOCUMENT.read_text(encoding="utf-8")
    manifest, _ = adapters.build("interviews", documented)
    columns = {*manifest.column_types(), "context", "label_t", "label_a", "label_v"}
    assert columns <= set(re.findall(r"`(\w+)`", text))
    (row,) = [line for line in text.splitlines() if line.startswith("| `metrics`")]
    named = set(re.findall(r"`(\w+)`", row)) - {"metrics"}
    assert named <= set(METRIC_SETS)
    assert "binary" in named
    assert manifest.card.preset in preset_names()


# --- what the table leaves open -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "task", "says"),
    [
        (["-0.5", "1", "0"], "regression", [-1, 1]),
        (["-2.2", "1", "0"], "regression", [-3, 3]),
        (["0", "99.5", "40"], "regression", [0, 100]),
        (["joy", "rage", "1"], "classification", ["1", "joy", "rage"]),
        (["ja", "nein", "ja"], "classification", ["ja", "nein"]),
    ],
)
def test_a_card_is_drafted(labels, task, says, tmp_path):
    rows = [f"u{i},v{i}.mp4,{label},text" for i, label in enumerate(labels)]
    manifest, notes = adapters.build("mine", write(tmp_path, PLAIN, *rows))
    assert manifest.card.task == task
    assert (manifest.card.range or manifest.card.classes) == says
    assert notes[0] == f"no card.yaml: the labels are taken for {manifest.card.target}"
    assert manifest.card.name == "mine"


def test_unimodal_labels_and_other_columns_are_kept(tmp_path):
    header = PLAIN + ",split,label_t,label_a,label_v,note,turn"
    rows = [
        f"u{i},v{i}.mp4,0.5,text,{s},0,1,-1,NA,{i}"
        for i, s in enumerate(["train", "valid", "test"])
    ]
    manifest, _ = adapters.build("mine", write(tmp_path, header, *rows))
    assert manifest.card.unimodal
    assert manifest.table.loc[0, ["label_t", "label_a", "label_v"]].tolist() == [0, 1, -1]
    assert manifest.table["note"].tolist() == ["NA"] * 3
    assert manifest.table["turn"].tolist() == [0, 1, 2]


def test_several_classes_at_once(tmp_path):
    card = "name: mine\ntitle: M\ntask: multilabel\nlabels: [joy, rage]\nclasses: [joy, rage]"
    rows = ["a,a.mp4,1,0,x", "b,b.mp4,0,0,y", "c,c.mp4,1,1,z"]
    manifest, _ = adapters.build(
        "mine", write(tmp_path, "id,video,joy,rage,text", *rows, card=card)
    )
    assert manifest.table[["joy", "rage"]].to_numpy().tolist() == [[1, 0], [0, 0], [1, 1]]


def test_several_classes_keep_the_cards_capitals(tmp_path):
    card = "name: mine\ntitle: M\ntask: multilabel\nlabels: [Joy, RAGE]\nclasses: [Joy, RAGE]"
    rows = ["a,a.mp4,1,0,x", "b,b.mp4,0,0,y", "c,c.mp4,1,1,z"]
    manifest, _ = adapters.build(
        "mine", write(tmp_path, "id,video,Joy,rage,text", *rows, card=card)
    )
    assert manifest.table[["Joy", "RAGE"]].to_numpy().tolist() == [[1, 0], [0, 0], [1, 1]]


def test_a_language_model_of_the_hub_is_reported_before_extraction(tmp_path, capsys):
    card = (
        "name: mine\ntitle: M\ntask: regression\nrange: [0, 2]\nlanguage_model: bert-base-chinese"
    )
    root = write(tmp_path / "in", PLAIN, *ROWS, card=card)
    argv = ["build", "mine", "--source", str(root), "--no-media", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "language model: bert-base-chinese, which `train` loads from the Hugging Face" in said


def test_without_transcripts(tmp_path):
    manifest, notes = adapters.build(
        "mine", write(tmp_path, "id,video,label", "a,a.mp4,1", "b,b.mp4,2", "c,c.mp4,0")
    )
    assert manifest.card.transcripts is False
    assert manifest.table["text"].tolist() == ["", "", ""]
    assert any("no column text" in note for note in notes)
    Manifest.load(manifest.save(tmp_path / "out")).check()


def test_labels_that_look_like_typing_errors_are_reported(tmp_path):
    labels = ["1", "2", "n/a", "2", "3"]
    rows = [f"u{i},v{i}.mp4,{label},text" for i, label in enumerate(labels)]
    _, notes = adapters.build("mine", write(tmp_path, PLAIN, *rows))
    assert "the labels are taken for classes although most are numbers: not 'n/a' (row 4)" in notes
    labels = ["happy", "Happy", "happy ", "sad", "Happy"]
    rows = [f"u{i},v{i}.mp4,{label},text" for i, label in enumerate(labels)]
    says = "classes that differ only in capitals: 'happy' (row 2), 'Happy' (row 3)"
    for name in ("mine", "sdme"):
        _, notes = adapters.build(name, write(tmp_path, PLAIN, *rows))
        assert says in notes
        assert not any("most are numbers" in note for note in notes)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["0", "0", "0"], "every label is 0: fill in others, or write a card.yaml"),
        (["", "", ""], "the column label is empty"),
        (["x", "y", ""], r"row 4 \(id 'u2'\): no label: fill it in, or drop the row"),
        (["1", "2", ""], r"row 4 \(id 'u2'\): no label: fill it in, or drop the row"),
        ([], "no rows below the header"),
    ],
)
def test_labels_that_nothing_can_be_learnt_from(labels, says, tmp_path):
    rows = [f"u{i},v{i}.mp4,{label},text" for i, label in enumerate(labels)]
    root = write(tmp_path, PLAIN, *rows)
    with pytest.raises(ValueError, match=says) as error:
        adapters.build("mine", root)
    assert str(error.value).startswith(str(root / "labels.csv"))


# --- splits -------------------------------------------------------------------------------------


def test_splits_are_drawn_by_video_where_no_speaker_is_known(tmp_path):
    manifest, notes = adapters.build("mine", write(tmp_path, PLAIN, *ROWS))
    by_video = manifest.table.groupby("video")["split"]
    assert (by_video.nunique() == 1).all()
    assert sorted(by_video.first()) == ["test", "train", "train", "train", "valid"]
    assert manifest.card.disjoint == ["video"]
    assert any(note.startswith("no column split: by video") for note in notes)


def test_splits_are_drawn_by_speaker(tmp_path):
    rows = [f"{row},{'abcdef'[i % 6]}" for i, row in enumerate(ROWS)]
    manifest, _ = adapters.build("mine", write(tmp_path, PLAIN + ",speaker", *rows))
    assert (manifest.table.groupby("speaker")["split"].nunique() == 1).all()
    assert manifest.card.disjoint == ["speaker"]
    manifest.check()


@given(st.sets(st.text(max_size=5), min_size=3, max_size=60), st.randoms(use_true_random=False))
def test_the_draw_depends_on_the_names_alone(groups, random):
    drawn = draw_splits(groups)
    again = random.sample(sorted(groups), len(groups))
    assert draw_splits([*again, again[0]]) == drawn
    counts = {split: list(drawn.values()).count(split) for split in ("train", "valid", "test")}
    assert counts["test"] == max(1, round(0.2 * len(groups)))
    assert counts["valid"] == max(1, round(0.1 * len(groups)))
    assert counts["train"] >= 1


def test_the_draw_is_the_one_we_published():
    # Another one tomorrow would make yesterday's figures incomparable.
    drawn = draw_splits("abcdefghij")
    assert [name for name, split in drawn.items() if split != "train"] == ["i", "d", "g"]
    assert draw_splits("abcdefghij", seed=2) != drawn


def test_speakers_in_several_splits_are_reported_or_refused(tmp_path):
    rows = ["a,a.mp4,x,t,train,ann", "b,b.mp4,y,t,valid,ben", "c,c.mp4,x,t,test,ann"]
    root = write(tmp_path, PLAIN + ",split,speaker", *rows)
    _, notes = adapters.build("mine", root)
    assert any(note.startswith("1 speakers are in several splits") for note in notes)
    card = "name: mine\ntitle: M\ntask: classification\nclasses: [x, y]\ndisjoint: [speaker]"
    write(tmp_path, PLAIN + ",split,speaker", *rows, card=card)
    with pytest.raises(
        ValueError, match=r"labels.csv: row 4 .*split leak: speaker 'ann' is in test"
    ):
        adapters.build("mine", root)


# --- faults -------------------------------------------------------------------------------------

CARD = "name: mine\ntitle: M\ntask: regression\nrange: [-1, 1]"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["id,video,lable", "a,a.mp4,1"], "no column label: add it; it has id, video, lable"),
        (["name,file,label", "a,a.mp4,1"], "no column id, video"),
        (
            [PLAIN, "a,a.mp4,1,x", "b,b.mp4,2,x", "c,c.mp4,0,x"],
            r"row 3 \(id 'b'\): label 2.0 is not",
        ),
        ([PLAIN, "a,a.mp4,eins,x"], "row 2: label 'eins' is not a number"),
        ([PLAIN, "a,a.mp4,1,x", "", ",b.mp4,1,x", "c,c.mp4,1,x"], "row 4 .*empty id"),
        ([PLAIN, "a,/data/a.mp4,1,x", "b,b.mp4,1,x", "c,c.mp4,1,x"], "row 2 .*absolute path"),
        ([PLAIN, "a,v\\a.mp4,1,x", "b,b.mp4,1,x", "c,c.mp4,1,x"], "row 2 .*backslash"),
        ([PLAIN + ",split", "a,a.mp4,1,x,dev"], "row 2 .*unknown split 'dev'"),
        ([PLAIN + ",start,end,split", "a,a.mp4,1,x,1,,train"], "row 2 .*give both"),
        (
            [PLAIN + ",start,end,split", "a,a.mp4,1,x,0:30,1,train"],
            "row 2: start '0:30' is not a num",
        ),
        ([PLAIN + ",start,end,split", "a,a.mp4,1,x,2,1,train"], "row 2 .*bad interval 2.0 to 1.0"),
        ([PLAIN + ",start,end,split", "a,a.mp4,1,x,0,900,train"], "row 2 .*is over 600 s"),
        ([PLAIN, "a,a.mp4,1,well, well"], "row 2: 5 cells, the header has 4: put quotes"),
        ([PLAIN, "a,a.mp4,1,x", "b,b.mp4,1,x"], "2 speakers or videos cannot fill three splits"),
        (["id,video,label", "a,a.mp4,1", "b,b.mp4,1"], "2 speakers or videos cannot fill"),
        ([PLAIN, "a,a.mp4,1,x", "b,b.mp4,2,x"], r"row 3 \(id 'b'\): label 2.0 is not"),
        (
            [PLAIN + ",split", "a,a.mp4,1,x,train", "b,b.mp4,0,x,train"],
            "no row is valid or test: all three splits need some",
        ),
        ([PLAIN + ",split", "a,a.mp4,1,x,train", "b,b.mp4,0,x,Test"], "row 3 .*unknown split"),
    ],
)
def test_faults_name_file_row_and_remedy(lines, says, tmp_path):
    root = write(tmp_path, *lines, card=CARD)
    with pytest.raises(ValueError, match=says) as error:
        adapters.build("mine", root)
    assert str(error.value).startswith(str(root / "labels.csv"))


@pytest.mark.parametrize(
    ("card", "says"),
    [
        (
            CARD.replace("mine", "other"),
            "the name is 'other': run `build other`, or write `name: mine`",
        ),
        (CARD.replace("range: [-1, 1]", ""), "card.yaml: card 'mine': range is None"),
        ("name: mine\ntitle: M\ntask: classification\nclasses: [no, yes]", "quote them"),
    ],
)
def test_a_wrong_card_is_an_error(card, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        adapters.build("mine", write(tmp_path, PLAIN, *ROWS, card=card))


def test_neither_a_dataset_nor_a_table(tmp_path, capsys):
    assert main(["build", "mine", "--source", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "unknown dataset 'mine'" in said
    assert f"write {tmp_path / 'labels.csv'}" in said
    with pytest.raises(ValueError, match=r"'a/b' cannot name a dataset"):
        adapters.build("a/b", write(tmp_path, PLAIN, *ROWS))


# --- SDME ---------------------------------------------------------------------------------------


def test_sdme_takes_its_classes_from_the_table(tmp_path):
    rows = [
        f"u{i},v{i}.mp4,{label},text" for i, label in enumerate(["happy", "angry", "shy", "shy"])
    ]
    manifest, _ = adapters.build("sdme", write(tmp_path, PLAIN, *rows))
    assert manifest.card.classes == ["angry", "happy", "shy"]
    assert manifest.card.title.startswith("SDME")
    with pytest.raises(ValueError, match=r"row 3 .*no label: fill it in"):
        adapters.build(
            "sdme", write(tmp_path, PLAIN, rows[0], rows[1].replace("angry", ""), *rows[2:])
        )
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(ValueError, match=r"labels.csv: no such file; to obtain it: Announced"):
        adapters.build("sdme", tmp_path)
