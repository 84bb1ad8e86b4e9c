"""Videos that are there, missing or not asked for; lengths from MP4 headers; the column context."""

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import Card, Manifest, adapters
from manifests.__main__ import main
from manifests.card import builtin_names
from manifests.csv_table import read_cells
from manifests.demo.clips import ffmpeg
from manifests.media import mp4_seconds, survey
from tests.test_manifests import REGRESSION, table


def mp4(path: Path, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = f"color=s=16x16:r=10:d={seconds}"
    subprocess.run([ffmpeg(), "-v", "error", "-f", "lavfi", "-i", picture, path], check=True)
    return path


# --- without media ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows"), [("ravdess", 1440), ("demo", 120)])
def test_labels_that_are_names_need_no_files(name, rows, tmp_path, capsys):
    argv = ["build", name, "--source", str(tmp_path), "--out", str(tmp_path / "out"), "--no-media"]
    assert main(argv) == 0
    assert f"missing videos: {rows} of {rows}" in capsys.readouterr().out
    assert len(Manifest.load(tmp_path / "out").table) == rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_ravdess_is_the_same_with_and_without_its_files(tmp_path):
    labels, _ = adapters.build("ravdess", tmp_path, media=False)
    for video in labels.table["video"]:
        (tmp_path / video).parent.mkdir(exist_ok=True)
        (tmp_path / video).touch()
    assert adapters.build("ravdess", tmp_path)[0].digest == labels.digest


def test_no_video_at_all_is_the_wrong_folder(tmp_path, capsys):
    (tmp_path / "labels.csv").write_text(
        "id,video,label,split,text\na,v/a.mp4,1,train,x\nb,v/b.mp4,2,test,y\nc,v/c.mp4,0,valid,z\n"
    )
    argv = ["build", "mine", "--source", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(argv) == 1
    assert "a.mp4: no such file, nor any other of the 3 videos" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*argv, "--no-media"]) == 0
    assert "3 utterances of unknown length" in capsys.readouterr().out
    mp4(tmp_path / "v/b.mp4", 2)
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "hours: 0.00, and 2 utterances of unknown length" in said
    assert "missing videos: 2 of 3 (v/a.mp4, v/c.mp4)" in said


def test_survey(tmp_path):
    rows = table(4, video=["whole.mp4", "whole.mp4", "gone.mp4", "cut.avi"])
    rows["start"], rows["end"] = [None, 1.0, 2.0, None], [None, 1.5, 4.0, None]
    mp4(tmp_path / "whole.mp4", 3)
    (tmp_path / "cut.avi").write_bytes(b"RIFF")
    media = survey(Manifest(REGRESSION, rows), tmp_path)
    assert media.missing == ["gone.mp4"]
    assert (media.videos, media.unknown) == (3, 1)
    assert media.seconds == pytest.approx(3 + 0.5 + 2)


# --- MP4 headers --------------------------------------------------------------------------------


def box(kind: bytes, content: bytes, wide: bool = False) -> bytes:
    if wide:
        return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content
    return struct.pack(">I4s", 8 + len(content), kind) + content


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.integers(1, 2**31),
    st.integers(1, 2**31),
    st.binary(max_size=9),
)
def test_any_order_and_width_of_boxes(tmp_path_factory, long, wide, scale, duration, padding):
    path = tmp_path_factory.mktemp("mp4") / "a.mp4"
    times = struct.pack(">QQIQ" if long else ">IIII", 0, 0, scale, duration)
    header = box(b"mvhd", bytes([long, 0, 0, 0]) + times + bytes(80))
    moov = box(b"moov", box(b"udta", padding) + header)
    path.write_bytes(box(b"ftyp", padding) + box(b"mdat", padding, wide) + moov)
    assert mp4_seconds(path) == pytest.approx(duration / scale)


WHOLE = box(b"moov", box(b"mvhd", bytes(4) + struct.pack(">IIII", 0, 0, 1, 5)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(WHOLE) - 1).map(lambda size: WHOLE[:size]) | st.binary(max_size=60))
def test_broken_files_have_no_length(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("mp4") / "a.mp4"
    path.write_bytes(content)
    assert mp4_seconds(path) is None
    path.write_bytes(WHOLE)
    assert mp4_seconds(path) == 5


# --- CSV files ----------------------------------------------------------------------------------

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(CELL, CELL), max_size=6),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_csv_round_trip(tmp_path_factory, rows, encoding):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_bytes("\r\n".join(["A, b ", *quoted]).encode(encoding))
    cells, _ = read_cells(path)
    kept = [(i, a.strip(), b.strip()) for i, (a, b) in enumerate(rows, 2) if (a + b).strip()]
    assert list(cells.itertuples(name=None)) == kept
    assert list(cells) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "its first line is ''"),
        (b"a;b\n1;2", "'a;b': it must name the columns, separated by commas"),
        (b"a,b,A\n1,2,3", "column a occurs twice"),
        (b"a,b\n1,2\n3,\xb2\xbb", "row 3: byte 0xb2 is not UTF-8: save the file as CSV UTF-8"),
        (b"a,b\n1,2,3\n\n4", r"(?s)row 2: 3 cells, the header has 2.*row 4: 1 cells"),
    ],
)
def test_a_broken_csv_is_an_error(content, says, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        read_cells(path)
    assert str(path) in str(error.value)


# --- cards, context -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", builtin_names())
def test_every_card_has_an_adapter_and_is_listed(name, capsys):
    assert adapters.has_adapter(name)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert f"\n{name} " in f"\n{out}"
    assert Card.builtin(name).licence.split()[0] in out


def test_context_is_part_of_the_digest_only_where_there_is_one(tmp_path):
    without = Manifest(REGRESSION, table())
    assert "context" not in without.table
    spoken = Manifest(REGRESSION, table(context=["Oldest.\nNewest.", None, "One."]))
    again = Manifest(REGRESSION, table(context=["Oldest.\nNewest.", None, "Two."]))
    assert len({m.digest for m in (without, spoken, again)}) == 3
    loaded = Manifest.load(spoken.save(tmp_path))
    assert loaded.digest == spoken.digest
    assert loaded.table["context"].isna().tolist() == [False, True, False]
