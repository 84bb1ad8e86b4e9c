"""Cards, the table's schema and digest, its faults, and the command line."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import Card, Manifest, adapters
from manifests.__main__ import main
from manifests.card import builtin_names

REGRESSION = Card("r", "Regression", "regression", range=[-3, 3], disjoint=["speaker"])
CLASSES = Card("c", "Classes", "classification", classes=["sad", "glad"])
MULTILABEL = Card(
    "m", "Many", "multilabel", labels=["sad", "very glad"], classes=["sad", "very glad"]
)


def table(rows: int = 3, **columns: object) -> pd.DataFrame:
    plain = {
        "id": [f"u{i}" for i in range(rows)],
        "video": [f"videos/u{i}.mp4" for i in range(rows)],
        "split": (["train", "valid", "test"] * rows)[:rows],
        "text": ["a word"] * rows,
        "speaker": [f"s{i}" for i in range(rows)],
        "label": [0.5 * (i % 5) for i in range(rows)],
    }
    return pd.DataFrame(plain | columns)


# --- card ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_card_survives_its_file(name, tmp_path):
    card = Card.builtin(name)
    card.save(tmp_path / "card.yaml")
    assert Card.load(tmp_path / "card.yaml") == card
    assert card.name == name
    assert card.licence
    assert card.obtain


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\ntitle: X\ntask: regression\nrange: [0, 1]\ncolour: red", "unknown key colour"),
        ("name: x\ntitle: X", "missing key task"),
        ("name: x\ntitle: X\ntask: guessing", "task is 'guessing'"),
        ("name: x\ntitle: X\ntask: regression", "range is None"),
        ("name: x\ntitle: X\ntask: classification", "distinct names"),
        ("name: x\ntitle: X\ntask: multilabel\nclasses: [a]", "`labels` equal"),
        ("name: x\ntitle: X\ntask: classification\nclasses: [a]\nsplits: {dev: {}}", "'dev'"),
        ("[1", "not YAML"),
        ("- 1", "mapping"),
    ],
)
def test_bad_card_is_refused(text, says, tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        Card.load(path)
    assert str(path) in str(error.value)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"demo, .*ravdess"):
        Card.builtin("nonesuch")
    assert not adapters.has_adapter("nonesuch")
    assert not adapters.has_adapter("../demo")


# --- table --------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
SENTIMENT = st.floats(-3, 3)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.integers(1, 6))
    column = lambda values: draw(st.lists(values, min_size=rows, max_size=rows))  # noqa: E731
    return table(
        rows,
        text=column(TEXT),
        speaker=column(st.none() | TEXT),
        turn=pd.array(column(st.none() | st.integers(0, 2**53)), dtype="Int64"),
        start=column(st.none() | st.floats(0, 1e6)),
        label=column(SENTIMENT),
        kind=column(TEXT),
    )


@settings(max_examples=40, deadline=None)
@given(tables())
def test_round_trip(tmp_path_factory, rows):
    manifest = Manifest(REGRESSION, rows)
    folder = manifest.save(tmp_path_factory.mktemp("manifest"))
    loaded = Manifest.load(folder)
    pd.testing.assert_frame_equal(loaded.table, manifest.table)
    assert loaded.card == manifest.card
    assert loaded.digest == manifest.digest
    assert sorted(p.name for p in folder.iterdir()) == ["card.yaml", "manifest.parquet"]


@settings(max_examples=60, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_digest_ignores_order(rows, random):
    columns = random.sample(list(rows), len(rows.columns))
    shuffled = rows.sample(frac=1, random_state=random.randrange(2**31))[columns]
    assert Manifest(REGRESSION, shuffled).digest == Manifest(REGRESSION, rows).digest


@settings(max_examples=100, deadline=None)
@given(tables(), st.data())
def test_digest_sees_every_change(rows, data):
    row = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(["text", "label", "start", "turn", "speaker", "kind"]))
    values = {"label": SENTIMENT, "start": st.floats(0, 1e6), "turn": st.integers(0, 99)}
    value = data.draw(values.get(column, TEXT))
    before = rows[column].iloc[row]
    changed = rows.copy()
    changed[column] = [value if i == row else old for i, old in enumerate(rows[column])]
    same = not pd.isna(before) and str(value) == str(before)
    digests = Manifest(REGRESSION, changed).digest, Manifest(REGRESSION, rows).digest
    assert (digests[0] == digests[1]) == same


def test_digest_is_the_one_we_published():
    # A digest that changes from version to version would orphan every cache.
    manifest = Manifest(REGRESSION, table())
    assert manifest.digest == "e26fdbdb8939248a427b8c2bd431b7d894654ba9599dc8533fd690d60e092c63"
    assert Manifest(replace(REGRESSION, licence="another"), table()).digest == manifest.digest


def test_missing_columns_are_filled():
    manifest = Manifest(REGRESSION, table())
    types = manifest.table.dtypes.astype(str).to_dict()
    assert types["turn"] == "Int64"
    assert types["start"] == types["crop_w"] == types["label"] == "float64"
    assert types["dialogue"] == "string"
    assert manifest.table["dialogue"].isna().all()
    assert set(manifest.table["language"]) == {"en"}
    assert list(manifest.split("valid")["id"]) == ["u1"]
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        manifest.split("dev")
    manifest.check()


def test_multilabel_and_classification_are_sound():
    Manifest(CLASSES, table(label=["sad", "glad", "sad"])).check()
    Manifest(MULTILABEL, table(sad=[0, 1, 0], **{"very glad": [1.0, 1.0, 0.0]})).check()


def test_wrong_type_names_the_column():
    with pytest.raises(ValueError, match=r"column label: .*happy"):
        Manifest(REGRESSION, table(label=["happy", "1", "2"]))
    with pytest.raises(ValueError, match="no column text, label"):
        Manifest(REGRESSION, table().drop(columns=["text", "label"]))


INTERVAL = {"start": [0, 0, 0.0], "end": [1, 1, 1.0]}
CROP = {"crop_x": [0.0] * 3, "crop_y": [0.0] * 3, "crop_w": [1.0] * 3, "crop_h": [1.0] * 3}


@pytest.mark.parametrize(
    ("card", "columns", "says"),
    [
        (REGRESSION, {"id": ["u0", "u1", "u0"]}, r"row 2 \(id 'u0'\): duplicate id"),
        (REGRESSION, {"id": ["u0", None, "u2"]}, "row 1 .*empty id"),
        (REGRESSION, {"split": ["train", "dev", "test"]}, "row 1 .*unknown split 'dev'"),
        (REGRESSION, {"split": ["train", None, "test"]}, "row 1 .*unknown split"),
        (REGRESSION, {"label": [0, 3.01, 0]}, "row 1 .*label 3.01 is not in"),
        (REGRESSION, {"label": [0, np.nan, 0]}, "row 1 .*no label: fill it in"),
        (
            replace(REGRESSION, unimodal=True),
            {"label_t": [0, 0, 0], "label_a": [0, 9, 0], "label_v": [0, 0, 0]},
            "row 1 .*label_a 9.0",
        ),
        (CLASSES, {"label": ["sad", "mad", "glad"]}, "row 1 .*unknown class 'mad'"),
        (MULTILABEL, {"sad": [0, 2, 1], "very glad": [0, 1, 1]}, "row 1 .*sad 2 must be 0 or 1"),
        (MULTILABEL, {"sad": [0, 1, 1], "very glad": [0, None, 1]}, "row 1 .*very glad must be"),
        (REGRESSION, {"speaker": ["s", "x", "s"]}, "row 2 .*split leak: speaker 's'"),
        (REGRESSION, {"speaker": ["s", None, "x"]}, "row 1 .*no speaker"),
        (replace(REGRESSION, disjoint=["clan"]), {}, "no column 'clan'"),
        (REGRESSION, {"text": ["a", " ", "b"]}, "row 1 .*empty text"),
        (REGRESSION, {"text": ["a", None, "b"]}, "row 1 .*empty text"),
        (REGRESSION, INTERVAL | {"end": [1, 0, 1]}, "row 1 .*bad interval 0.0 to 0.0"),
        (REGRESSION, INTERVAL | {"start": [0, -1, 0]}, "row 1 .*bad interval -1.0"),
        (REGRESSION, INTERVAL | {"end": [1, np.inf, 1]}, "row 1 .*bad interval"),
        (REGRESSION, INTERVAL | {"end": [1, np.nan, 1]}, "row 1 .*give both, or neither"),
        (REGRESSION, INTERVAL | {"end": [1, 601, 1]}, "row 1 .*is over 600 s: give seconds"),
        (REGRESSION, {"text": ["a", "caf\ufffd", "b"]}, "row 1 .*bad encoding in text 'caf"),
        (REGRESSION, {"text": ["a", "don\x92t", "b"]}, "row 1 .*bad encoding in text"),
        (REGRESSION, {"speaker": ["a", "ZoÃ«", "b"]}, "row 1 .*bad encoding in speaker 'ZoÃ«'"),
        (REGRESSION, {"context": ["a", "â€œwell", None]}, "row 1 .*bad encoding in context"),
        (REGRESSION, CROP | {"crop_w": [1, np.nan, 1]}, "row 1 .*all four fractions"),
        (REGRESSION, CROP | {"crop_x": [0, 0.5, 0]}, "row 1 .*be inside the picture"),
        (REGRESSION, {"video": ["a", "/b.mp4", "c"]}, "row 1 .*absolute path '/b.mp4'"),
        (REGRESSION, {"video": ["a", "C:/b.mp4", "c"]}, "row 1 .*absolute path"),
        (REGRESSION, {"video": ["a", "x/../b.mp4", "c"]}, r"row 1 .*has '\.\.'"),
        (REGRESSION, {"video": ["a", "x\\b.mp4", "c"]}, "row 1 .*backslash"),
        (REGRESSION, {"video": ["a", "", "c"]}, "row 1 .*no video"),
    ],
)
def test_check_names_the_fault(card, columns, says, tmp_path):
    folder = Manifest(card, table(**columns)).save(tmp_path)
    with pytest.raises(ValueError, match=says) as error:
        Manifest.load(folder).check()
    lines = str(error.value).splitlines()
    assert all(line.startswith(str(tmp_path / "manifest.parquet")) for line in lines)


def test_texts_in_their_own_encoding_are_sound():
    words = ["NÃO, AMANHÃ!", "“Ça va” – déjà vu…", "我很好。", "tab\tand\nline", "½ £5 25°C"]
    Manifest(REGRESSION, table(5, text=words)).check()
    for word in ("déçu", "schön", "niño", "5 £", "it’s"):
        garbled = word.encode().decode("cp1252")
        with pytest.raises(ValueError, match="bad encoding"):
            Manifest(REGRESSION, table(text=[garbled] * 3)).check()


def test_a_dataset_without_transcripts_may_have_empty_texts():
    Manifest(replace(REGRESSION, transcripts=False), table(text=["", None, " "])).check()


def test_check_bounds_its_list():
    with pytest.raises(ValueError, match="and 80 more") as error:
        Manifest(REGRESSION, table(100, label=[4.0] * 100)).check()
    assert len(str(error.value).splitlines()) == 21


# --- command line -------------------------------------------------------------------------------


def test_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Manifest(REGRESSION, table()).save("data/mine")
    assert main(["show", "mine", "-n", "1"]) == 0
    assert Manifest.load("mine").digest in capsys.readouterr().out
    assert main(["check", "mine"]) == 0
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "3 rows, no fault" in out
    assert "ravdess" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["check", "nonesuch"], "no such file"),
        (["build", "nonesuch"], "unknown dataset 'nonesuch'"),
        (["build", "meld"], "data/meld contains no release: pass --source FOLDER"),
        (["build", "mine"], "data/mine contains no release: pass --source FOLDER"),
        (["build", "ravdess", "--source", "nowhere"], "no such folder"),
        (["build", "ravdess", "--source", "."], "0 RAVDESS speech clips"),
    ],
)
def test_mistakes_are_one_clear_line(argv, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_bad_usage_is_exit_2():
    with pytest.raises(SystemExit) as stop:
        main(["dance"])
    assert stop.value.code == 2


@pytest.mark.parametrize("command", ["", "build", "list", "show", "check"])
def test_help_ends_with_two_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"], prog="semanticmac manifests")
    assert stop.value.code == 0
    examples = capsys.readouterr().out.rpartition("examples:\n")[2].splitlines()
    assert len(examples) >= 2
    assert all(line.startswith("  semanticmac manifests ") for line in examples)


@pytest.mark.parametrize(
    "command",
    ["--help", "dance", "show nowhere", "check nowhere", "build nonesuch", "build meld --source x"],
)
def test_answers_that_need_no_table_do_not_wait_for_pandas(command, tmp_path):
    program = (
        "import sys\n"
        "from manifests.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    assert 'pandas' not in sys.modules, 'pandas was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert "pandas was imported" not in done.stderr
    assert done.stdout or "error: " in done.stderr
