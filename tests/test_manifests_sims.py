"""CH-SIMS and CH-SIMS v2 from look-alikes: Chinese in three encodings, zeros lost, no labels."""

from pathlib import Path

import pytest

from manifests import Manifest, adapters

HEADER = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
ROWS = [
    "video_0001,0001,我不想嫁给李茶，“真的”,-0.6,-0.2,-0.8,-1,Negative,train",
    'video_0001,0002,"好, 好。",0.8,0.6,1,1.0,Positive,valid',
    "aqgy3_0001,00016,他说：NA,0.0,0,0,0.2,Neutral,test",
]


def release(
    root: Path, rows: list[str], table: str = "label.csv", encoding: str = "utf-8", end: str = "\n"
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / table).write_bytes(end.join([HEADER, *rows, ""]).encode(encoding))
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16"])
@pytest.mark.parametrize("name", ["sims", "simsv2"])
def test_chinese_in_any_encoding(name, encoding, tmp_path):
    manifest, notes = adapters.build(name, release(tmp_path, ROWS, encoding=encoding))
    table = manifest.table.set_index("id")
    assert list(table["text"]) == ["我不想嫁给李茶，“真的”", "好, 好。", "他说：NA"]
    assert set(table["language"]) == {"zh"}
    assert bool(notes) == (encoding in ("gbk", "gb18030", "utf-16"))
    assert table.loc["video_0001$_$0001", ["label", "label_t", "label_a", "label_v"]].tolist() == [
        -0.6,
        -0.2,
        -0.8,
        -1,
    ]


def test_zeros_that_a_spreadsheet_took_come_back(tmp_path):
    rows = [ROWS[0].replace(",0001,", ",1,"), ROWS[1], ROWS[2].replace("00016", "16")]
    lost, _ = adapters.build("simsv2", release(tmp_path / "a", rows, "meta.csv", end="\r\n"))
    kept, _ = adapters.build("simsv2", release(tmp_path / "b", ROWS, "meta.csv"))
    assert list(lost.table["video"]) == [
        "Raw/video_0001/0001.mp4",
        "Raw/video_0001/0002.mp4",
        "Raw/aqgy3_0001/00016.mp4",
    ]
    assert lost.digest == kept.digest
    assert list(lost.table["turn"]) == [1, 2, 16]


def test_clips_of_one_film_may_be_in_several_splits(tmp_path):
    manifest, _ = adapters.build("sims", release(tmp_path, ROWS))
    assert manifest.table.groupby("dialogue")["split"].nunique()["video_0001"] == 2


def test_the_unsupervised_part_of_v2_is_excluded(tmp_path):
    release(tmp_path, [*ROWS, "aqgy1_0001,00000,没有标签,,,,,,train"], "meta.csv")
    manifest, notes = adapters.build("simsv2", tmp_path)
    assert len(manifest.table) == 3
    assert notes == ["excluded 1 rows without a label: the unsupervised part"]
    with pytest.raises(ValueError, match=r"meta.csv: row 5 .*no label: fill it in"):
        adapters.build("sims", tmp_path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            "video_0002,0001,好,0.2,0.2,,0.2,Neutral,test",
            r"row 2 .*no label_a: fill it in",
        ),
        (
            "video_0002,0001,好,1.2,0.2,0,0.2,Positive,test",
            r"row 2 .*label 1.2 is not in \[-1, 1\]",
        ),
        ("video_0002,0001,好,弱,0.2,0,0.2,Positive,test", "row 2: label '弱' is not a number"),
    ],
)
def test_faults_name_the_row(row, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        adapters.build("sims", release(tmp_path, [row]))


def test_no_table_says_how_to_obtain_it(tmp_path):
    with pytest.raises(ValueError, match=r"label.csv: no such file, nor meta.csv; .*ch-sims-v2"):
        adapters.build("simsv2", tmp_path)


def test_the_card_keeps_its_promises(tmp_path):
    manifest, _ = adapters.build("sims", release(tmp_path, ROWS))
    loaded = Manifest.load(manifest.save(tmp_path / "out"))
    assert loaded.card.language == "zh"
    assert loaded.card.metrics == "sims"
    assert [counts["paper"] for counts in loaded.card.splits.values()] == [1368, 456, 457]
    loaded.check()
