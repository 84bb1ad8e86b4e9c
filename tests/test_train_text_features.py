"""Training on a store's own text features: no language model, no tokenizer, no transcript."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from cache import FeatureStore, Packed, Parts, Recipe, Record, publish
from manifests import Card, Manifest
from train.__main__ import main
from train.config import make_config
from train.data import Batch
from train.methods import build_method
from train.model.text_features import TextFeatures
from train.optimizer import parameter_groups
from train.task import Task

SPLITS = ["train"] * 48 + ["valid"] * 12 + ["test"] * 12
WIDTHS = {"audio": 3, "vision": 4, "text": 6}
FAST = [
    *("text.source=features", "width=16", "perceiver.layers=1", "sgfi.layers=1", "sclg.knn=4"),
    *("train.batch_size=8", "train.epochs=5", "optim.lr=5e-3", "train.cpu=true"),
]
CARD = Card("words", "Words", "regression", range=[-3, 3], preset="", language_model="no/such")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data set whose label shows in the text features; every eighth utterance has none."""

    def loads_nothing(*_, **__):
        raise AssertionError("a language model was asked for")

    for kind in (AutoModel, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", loads_nothing)
    rng = np.random.default_rng(0)
    score = rng.uniform(-3, 3, len(SPLITS)).round(1)
    ids = [f"u{i:03d}" for i in rng.permutation(len(SPLITS))]
    table = {"id": ids, "video": "", "split": SPLITS, "text": "", "label": score}
    Manifest(CARD, pd.DataFrame(table)).save(tmp_path / "data" / CARD.name)
    rows = {m: [] for m in WIDTHS}
    records = []
    for i, (name, y) in enumerate(zip(ids, score, strict=True)):
        frames = {"audio": 2, "vision": 3, "text": 0 if i % 8 == 7 else 1 + i % 5}
        for m, width in WIDTHS.items():
            rows[m].append((y if m == "text" else 0) + rng.normal(size=(frames[m], width)))
        records.append(Record(name, "ok", "", 1.0, **{f"{m}_frames": n for m, n in frames.items()}))
    joined = {m: np.concatenate(arrays).astype(np.float32) for m, arrays in rows.items()}
    for name, widths in (("full", WIDTHS), ("mute", {"audio": 3, "vision": 4})):
        store = tmp_path / "stores" / CARD.name / f"{name}.zarr"
        Parts(store).write(records, {m: joined[m] for m in widths}, "float16")
        recipe = Recipe.with_one_encoder(CARD.name, name, "0" * 64, {}, {"fps": 0}, 1, "0" * 64)
        publish(store, recipe, widths, {}, ids)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(store: str, *more: str) -> list[str]:
    return ["fit", f"dataset={CARD.name}", f"cache=stores/{CARD.name}/{store}.zarr", *FAST, *more]


def fit(place, capsys, *more):
    assert main(arguments("full", *more)) == 0, capsys.readouterr().err
    return place / capsys.readouterr().out.rsplit("run: ", 1)[1].strip()


def test_a_run_learns_from_text_features_alone(place, capsys):
    folder = fit(place, capsys)
    metrics = json.loads((folder / "metrics.json").read_text())
    losses = [line["train/total"] for line in metrics["history"]]
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["test"]["MAE"] < 0.8 * metrics["trivial"]["MAE"]
    assert metrics["utterances"] == {"train": 48, "valid": 12, "test": 12}
    assert main(["evaluate", str(folder)]) == 0
    assert f"{metrics['test']['MAE']:.3f}" in capsys.readouterr().out


def test_same_seed_same_result(place, capsys):
    tables = [
        pd.read_parquet(
            fit(place, capsys, "train.epochs=2", f"seed={seed}") / "predictions.parquet"
        )
        for seed in (1, 1, 2)
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert not np.allclose(tables[0]["M"], tables[2]["M"])


def test_a_store_without_text_features_is_a_clear_error(place, capsys):
    assert main(arguments("mute")) == 1
    error = capsys.readouterr().err
    assert "mute.zarr has no text features" in error
    assert "set text.source=model" in error
    assert error.count("\n") == 1


def test_only_known_sources(capsys):
    assert main(["fit", "dataset=x", "text.source=tea-leaves"]) == 1
    assert "use one of model, features" in capsys.readouterr().err


def model_and_batches(place):
    """A model in evaluation mode, and a function that returns batches of the first utterances."""
    config = make_config(None, FAST)
    torch.manual_seed(0)
    method = build_method(config, Task.from_card(CARD), WIDTHS).eval()
    cache = FeatureStore.open(place / "stores" / CARD.name / "full.zarr")
    features = cache.select(cache.ids)

    def batch(*places):
        index = torch.tensor(places)
        packed = features.batch(index)
        labels = torch.zeros(len(places), 1)
        return Batch(index, packed["text"], packed["audio"], packed["vision"], labels)

    return method, features.lengths["text"], batch


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(place):
    method, lengths_N, batch = model_and_batches(place)
    absent, longest = int(lengths_N.argmin()), int(lengths_N.argmax())
    short = int((lengths_N == 1).nonzero()[0])
    together = method(batch(longest, absent, short)).predictions
    for row, utterance in enumerate((longest, absent, short)):
        alone = method(batch(utterance)).predictions
        for k, output in together.items():
            torch.testing.assert_close(output[row], alone[k][0])


def test_an_utterance_without_text_learns_the_missing_embedding(place):
    method, lengths_N, batch = model_and_batches(place)
    absent, present = int(lengths_N.argmin()), int(lengths_N.argmax())
    for utterance, learns in ((absent, True), (present, False)):
        method.zero_grad()
        method(batch(utterance)).predictions["t"].sum().backward()
        gradient = method.text.missing.grad
        assert bool(gradient is not None and gradient.any()) == learns


def test_missing_rows_are_the_only_difference_to_padding():
    torch.manual_seed(0)
    text = TextFeatures(2)
    rows = Packed(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half(), torch.tensor([0, 2]))
    x_BLd, mask_BL = text(rows)
    assert mask_BL.tolist() == [[True, False], [True, True]]
    assert torch.equal(x_BLd[0, 0], text.missing)
    assert x_BLd[1].tolist() == [[1, 2], [3, 4]]


def test_no_weight_has_the_language_models_rate(place):
    method, _, _ = model_and_batches(place)
    groups = parameter_groups(method, make_config(None, ["optim.lr_text=0.1"]).optim)
    assert sum(len(g["params"]) for g in groups) == len(list(method.parameters()))
    assert all(g["lr"] != 0.1 for g in groups)
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decays[id(method.project_text.weight)] > 0
    assert decays[id(method.text.missing)] == 0
