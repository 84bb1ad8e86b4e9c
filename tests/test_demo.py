"""The demonstration dataset shows what it promises, from the first clip to the last table."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest

import manifests.demo
from extract.__main__ import main as extract
from manifests import Manifest
from manifests.__main__ import main as build
from manifests.demo.clips import ffmpeg
from train.__main__ import main as train
from train.study.label_quality import pseudo_label_correlation


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    """The working folder, with the clips of an earlier test run if the same code drew them.

    Drawing takes a minute. Pytest's cache keeps the clips of one version of the code and of ffmpeg;
    `build` draws those that are missing.
    """
    monkeypatch.chdir(tmp_path)
    sources = sorted(Path(manifests.demo.__file__).parent.glob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + ffmpeg().encode())
    cache = getattr(request.config, "cache", None)  # None: -p no:cacheprovider
    kept = cache and cache.mkdir("demo") / code.hexdigest()[:16]
    drawn = tmp_path / "data" / "demo" / "videos"
    if kept and kept.is_dir():
        shutil.copytree(kept, drawn)
    yield tmp_path
    if kept and not kept.is_dir() and (drawn / "index.json").is_file():
        for old in kept.parent.iterdir():
            shutil.rmtree(old)
        shutil.copytree(drawn, kept.with_suffix(".new"))
        kept.with_suffix(".new").rename(kept)


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_more_than_one_modality_is_needed_and_generated_labels_follow_theirs():
    assert build(["build", "demo"]) == 0
    assert extract(["demo"]) == 0
    keys = ["dataset=demo", "methods=text,audio,vision,mean", "train.cpu=true", "train.epochs=8"]
    assert train(["compare-methods", *keys]) == 0

    mae = pd.read_csv("runs/demo/studies/compare-methods/table.csv", index_col="variant")["MAE"]
    assert mae["semanticmac"] < 0.75 * mae[["text", "audio", "vision", "mean"]].min()

    (run,) = Path("runs/demo/semanticmac").glob("*")
    predictions = pd.read_parquet(run / "predictions.parquet")
    found = pseudo_label_correlation(Manifest.load("demo").table, predictions)
    mismatched = found[found["clips"].str.startswith("mismatched")]
    assert len(mismatched) == 3
    assert (mismatched["pseudo"] > mismatched["label"] + 0.05).all()
