"""New clips through a finished run: real videos, a real encoder, the numbers of the evaluation."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cache.store.disk import remove_tree
from extract import EncoderSpec, Settings, extract
from extract.block import encode_block
from extract.ffmpeg import ffmpeg_exe
from manifests import Card, Manifest
from tests.language_models import save_language_model
from train.__main__ import main
from train.predict.clips import read_clips
from train.predict.predict import EXIT_SOME_FAILED

FAST = [
    *("width=16", "perceiver.layers=1", "sgfi.layers=1", "train.batch_size=4", "sclg.knn=2"),
    *("train.epochs=2", "optim.lr=1e-2", "optim.lr_text=1e-3", "train.cpu=true"),
]
SUBTASKS = {"M", "S", "t", "a", "v"}


def write_clip(path, seconds, pitch, picture="testsrc", sound=True):
    """A test picture and a tone, H.264 and AAC."""
    inputs = []
    if picture:
        inputs += ["-f", "lavfi", "-i", f"{picture}=d={seconds}:r=10:s=64x48"]
    if sound:
        inputs += ["-f", "lavfi", "-i", f"sine=f={pitch}:d={seconds}:r=16000"]
    command = [ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error", *inputs]
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast"]
    subprocess.run([*command, *codec, str(path)], check=True)


ROWS = [  # id, video, start, end, split, turn, text, label
    ("a", "v/a.mp4", None, None, "train", 0, "good film", 2.0),
    ("b", "v/b.mp4", None, None, "train", 1, "bad film", -2.0),
    ("c", "v/long.mp4", 0.0, 1.5, "train", 2, "it was so so", 1.0),
    ("d", "v/mute.mp4", None, None, "train", 3, "bad", -1.0),
    ("e", "v/b.mp4", 0.0, 1.0, "valid", 0, "a film", 0.5),
    ("f", "v/a.mp4", 0.5, 1.2, "valid", 1, "so bad", -0.5),
    ("whole", "v/a.mp4", None, None, "test", 0, "the film was good", 1.5),
    ("part", "v/long.mp4", 1.2, 3.1, "test", 1, "so bad it was good", -1.5),
    ("mute", "v/mute.mp4", None, None, "test", 2, "good", 0.5),
    ("blind", "v/blind.mp4", None, None, "test", 3, "the", 0.5),
    ("wordless", "v/b.mp4", None, None, "test", 4, None, -0.5),
]
COLUMNS = ["id", "video", "start", "end", "split", "turn", "text", "label"]
TABLE = pd.DataFrame(ROWS, columns=COLUMNS).assign(dialogue="x")
SCORES = Card("clips", "Clips", "regression", range=[-3, 3], encoder="imagebind-tiny", preset="")
LACKS = {"mute": ["audio"], "blind": ["vision"], "wordless": ["text"]}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "v").mkdir()
    write_clip(folder / "v/a.mp4", 1.3, 300)
    write_clip(folder / "v/b.mp4", 2.0, 600, "testsrc2")
    write_clip(folder / "v/long.mp4", 3.4, 900, "smptebars")
    write_clip(folder / "v/mute.mp4", 1.0, 0, "testsrc2", sound=False)
    write_clip(folder / "v/blind.mp4", 1.0, 450, picture=None)
    return folder


@pytest.fixture(scope="module")
def place(videos, tmp_path_factory):
    """A folder with a language model and the store of `TABLE`."""
    place = tmp_path_factory.mktemp("place")
    settings = Settings(EncoderSpec("imagebind-tiny"))
    extract(Manifest(SCORES, TABLE), videos, place / "stores", settings)
    save_language_model("roberta", place / "model")
    return place


def fit(place, card, table, *overrides):
    """Train on `table`; then only the run remains: manifest and store are moved away."""
    root = place / card.task
    Manifest(card, table).save(root / "data")
    shutil.copytree(place / "stores", root / "stores")
    folders = [f"dataset={root}/data", f"stores={root}/stores", f"runs={root}/runs"]
    model = [f"text.model={place}/model", "text.context_turns=1", *FAST, *overrides]
    assert main(["fit", *folders, *model]) == 0
    (config,) = (root / "runs").rglob("config.yaml")
    run = config.parent.rename(root / "run")
    remove_tree(root / "stores")
    shutil.rmtree(root / "data")
    return run


@pytest.fixture(scope="module")
def run(place):
    return fit(place, SCORES, TABLE, "perceiver.max_frames=8")


@pytest.fixture
def predict(run, capsys, tmp_path):
    """Call the command; return its status, its output, and its JSON by id."""

    def call(*arguments, of=run):
        capsys.readouterr()
        written = tmp_path / "new" / "said.json"
        status = main(["predict", str(of), *map(str, arguments), "--json", str(written)])
        output = capsys.readouterr()
        assert not output.err
        clips = json.loads(written.read_text())["clips"]
        return status, output.out, {clip["id"]: clip for clip in clips}

    return call


def csv_of(folder, table):
    path = folder / "clips.csv"
    table.to_csv(path, index=False)
    return path


def test_clips_get_the_numbers_of_the_evaluation(run, videos, predict):
    test = TABLE[TABLE["split"] == "test"].drop(columns=["split", "label"])
    status, output, clips = predict(csv_of(videos, test))
    assert status == 0
    assert list(clips) == test["id"].tolist()
    evaluated = pd.read_parquet(run / "predictions.parquet").set_index("id")
    assert evaluated.loc[list(clips), "M"].std() > 0
    for i, clip in clips.items():
        assert not clip["error"]
        assert clip["missing"] == LACKS.get(i, [])
        answer = clip["answer"]
        assert set(answer["scores"]) == SUBTASKS
        assert answer["prediction"] == answer["scores"]["M"]
        for k, score in answer["scores"].items():
            assert score == pytest.approx(evaluated.loc[i, k], abs=1e-5)
        (line,) = (line for line in output.splitlines() if line.startswith(f"{i}: "))
        assert f"{i}: {answer['prediction']:.3f}  S {answer['scores']['S']:.3f}" in line
        assert ("treated as missing" in line) == bool(clip["missing"])
    assert "(no sound: treated as missing)" in output
    assert "(no picture: treated as missing)" in output
    assert "(no transcript: treated as missing)" in output


def test_one_file_with_its_transcript(run, videos, predict):
    evaluated = pd.read_parquet(run / "predictions.parquet").set_index("id")
    status, output, clips = predict(videos / "v/a.mp4", "--text", "the film was good")
    assert status == 0
    clip = clips["a.mp4"]
    assert clip["missing"] == ["context"]  # the run reads preceding utterances
    assert "no preceding utterances: treated as missing" in output
    # As the first utterance of its dialogue it had no context in the evaluation either.
    assert clip["answer"]["scores"]["M"] == pytest.approx(evaluated.loc["whole", "M"], abs=1e-5)
    without = predict(videos / "v/a.mp4")[2]["a.mp4"]
    assert without["missing"] == ["text", "context"]
    assert without["answer"]["scores"]["M"] != clip["answer"]["scores"]["M"]


def test_a_broken_clip_does_not_stop_the_others(videos, tmp_path, predict):
    shutil.copy(videos / "v/a.mp4", tmp_path / "good.mp4")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/broken.mp4").write_bytes((videos / "v/a.mp4").read_bytes()[:3000])
    (tmp_path / "empty.mov").write_bytes(b"")
    write_clip(tmp_path / "long.mp4", 5.0, 300, "smptebars")
    (tmp_path / "notes.txt").write_text("no clip")
    (tmp_path / "._good.mp4").write_bytes(b"what macOS leaves next to a file")
    (tmp_path / "folder.mp4").mkdir()
    status, output, clips = predict(tmp_path)
    assert status == EXIT_SOME_FAILED
    assert set(clips) == {"good.mp4", "sub/broken.mp4", "empty.mov", "long.mp4"}
    assert clips["good.mp4"]["answer"]["scores"]
    assert clips["empty.mov"]["error"] == "file is empty (0 bytes)"
    assert clips["sub/broken.mp4"]["error"]
    assert "too long: 10 frames, the model takes 8" in clips["long.mp4"]["error"]
    for name in ("sub/broken.mp4", "empty.mov", "long.mp4"):
        assert clips[name]["answer"] is None
        assert f"{name}: failed: {clips[name]['error']}" in output


def test_finished_predictions_are_kept_after_an_error(run, videos, tmp_path, capsys, monkeypatch):
    test = TABLE[TABLE["split"] == "test"].drop(columns=["split", "label"])
    written, begun = tmp_path / "said.json", []

    def once(job, block):
        begun.append(block)
        if len(begun) > 1:
            raise OSError(28, "No space left on device")
        return encode_block(job, block)

    monkeypatch.setattr("extract.block.encode_block", once)
    monkeypatch.setattr("extract.plan.MAX_BLOCK_UTTERANCES", 1)
    clips = csv_of(videos, test)
    assert main(["predict", str(run), str(clips), "--json", str(written)]) == 1
    assert "No space left" in capsys.readouterr().err
    (clip,) = json.loads(written.read_text())["clips"]
    assert clip["answer"]["scores"]


def test_the_number_of_threads_stays(run, videos, predict):
    """The encoder uses one thread, as in a worker; later code uses as many as before."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert predict(videos / "v/a.mp4")[0] == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_classes(task, place, videos, predict):
    table = TABLE.drop(columns="label")
    if task == "classification":
        card = replace(SCORES, task=task, range=None, classes=["glad", "sad"], metrics="emotion")
        table["label"] = np.where(TABLE["label"] > 0, "glad", "sad")
    else:
        names = ["glad", "loud"]
        card = replace(
            SCORES, task=task, range=None, classes=names, labels=names, metrics="mosei_emotion"
        )
        table["glad"], table["loud"] = [(TABLE["label"] > least).astype(int) for least in (-1, 0.4)]
    run = fit(place, card, table, "train.epochs=1", "text.context_turns=0")
    evaluated = pd.read_parquet(run / "predictions.parquet").set_index("id")
    text = "so bad it was good"
    clips = csv_of(videos, pd.DataFrame({"video": ["v/long.mp4"], "start": 1.2, "end": 3.1}))
    clips.write_text(clips.read_text().replace("video", "text,video").replace("v/", f"{text},v/"))
    status, output, found = predict(clips, of=run)
    assert status == 0
    answer = found["v/long.mp4"]["answer"]
    for k, scores in answer["scores"].items():
        for name, score in scores.items():
            assert score == pytest.approx(evaluated.loc["part", f"{k}_{name}"], abs=1e-5)
    if task == "classification":
        assert answer["prediction"] == evaluated.loc["part", "prediction"]
        assert (
            f"v/long.mp4: {answer['prediction']}  M {max(answer['scores']['M'].values()):.3f}"
            in output
        )
    else:
        yes = [name for name in names if evaluated.loc["part", f"prediction_{name}"]]
        assert answer["prediction"] == yes
        assert f"v/long.mp4: {', '.join(yes) or 'none'}  M " in output


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_another_encoder_is_refused(run, videos, tmp_path, capsys):
    clip, other = videos / "v/a.mp4", tmp_path / "run"
    shutil.copytree(run, other)
    kept = json.loads((run / "encoder.json").read_text())
    for key, value, says in (
        ("weights", "f" * 64, "imagebind-tiny differs from the one"),
        ("preprocess", 1, "pre-processing version: 2, expected: 1"),
        ("settings", {**kept["recipe"]["audio"]["settings"], "mel": 7}, "its settings"),
        ("encoder", "mmsa", "'mmsa', which were not extracted here"),
    ):
        recipe = {m: {**kept["recipe"][m], key: value} for m in ("audio", "vision")}
        changed = {**kept, "recipe": {**kept["recipe"], **recipe}}
        (other / "encoder.json").write_text(json.dumps(changed))
        assert says in refused(capsys, other, clip)
    (other / "encoder.json").unlink()
    assert "encoder.json: no such file" in refused(capsys, other, clip)


def test_invalid_clips_are_one_clear_line(run, videos, tmp_path, capsys):
    path = tmp_path / "clips.csv"
    for content, says in {
        "text\nhello": "no column video: add it; it has text",
        "video,start,end\na.mp4,2,1": "row 2: from 2.0 to 1.0 s: write seconds",
        "video,start,end\na.mp4,-2,1": "row 2: from -2.0 to 1.0 s: write seconds",
        "video,start\na.mp4,1\nb.mp4,one": "row 3: start 'one' is not a number",
        "video,id\na.mp4,x\n\nb.mp4,x": "row 4: another row also has the id 'x'",
        "video,text\n,hello": "row 2: no video",
        "": "its first line is ''",
        "video;text\na.mp4;hello": "separated by commas (not semicolons or tabs)",
        "video,text": "no rows below the header",
        "text,video\nOh, great,a.mp4": "row 2: 3 cells, the header has 2: put quotes",
        "video,text\na.mp4,caf\xe9": "row 2: byte 0xe9 is not UTF-8: save the file as CSV UTF-8",
        "video,end\na.mp4,inf": "row 2: end 'inf' is not a number",
        "video,crop_x\na.mp4,left": "row 2: crop_x 'left' is not a number",
    }.items():
        path.write_bytes(content.encode("latin-1"))
        error = refused(capsys, run, path)
        assert says in error
        assert str(path) in error
    assert "transcript of one video" in refused(capsys, run, path, "--text", "hello")
    assert "no such file or folder" in refused(capsys, run, tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    assert "no video in this folder" in refused(capsys, run, tmp_path / "empty")


def test_wrong_paths_are_refused_before_slow_imports(run, videos, tmp_path):
    program = """
import sys
from train.__main__ import main
status = main(sys.argv[1:])
assert not {"torch", "pandas", "transformers", "zarr"} & set(sys.modules)
sys.exit(status)
"""
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "model.safetensors").unlink()
    for arguments, says in (
        ([tmp_path / "none", videos / "v/a.mp4"], "none: no such folder"),
        ([unfinished, videos / "v/a.mp4"], "model.safetensors: no such file"),
        ([run, videos / "none.mp4"], "none.mp4: no such file or folder"),
        ([run, videos, "--text", "good"], "--text is the transcript of one video"),
    ):
        command = [sys.executable, "-c", program, "predict", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_clips_of_one_video_have_different_ids(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_text("Video,end,text,txt\na.mp4,1,NA,\nb.mp4,1,,\na.mp4,2,hm,\n")
    data, clips, unread = read_clips(path, None, SCORES)
    assert data == tmp_path
    assert unread == ["txt"]
    assert clips.table["id"].tolist() == ["a.mp4#1", "b.mp4", "a.mp4#2"]
    assert clips.table["text"].fillna("").tolist() == ["NA", "", "hm"]
    assert clips.table["label"].isna().all()
    path.write_text("video\na.mp4\n")
    assert read_clips(path, None, SCORES)[1].table["video"].tolist() == ["a.mp4"]
