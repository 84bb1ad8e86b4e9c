"""The protocol: the test split is not trained on, and is read once, at the end."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import FeatureStore, Parts, Recipe, Record, publish
from manifests import Card, Manifest
from tests.language_models import WORDS, save_language_model
from train import fit as loop
from train.__main__ import main
from train.config import make_config
from train.data import check_no_leak, load_splits
from train.model.language_model import load_tokenizer
from train.task import Task

CARD = Card("talk", "Talk", "regression", range=[-3, 3], preset="")
SPLITS = ["train"] * 16 + ["valid"] * 6 + ["test"] * 6
WIDTHS = {"audio": 3, "vision": 4, "text": 5}
FAILED = {2, 20, 25}
FAST = [
    *("width=16", "perceiver.layers=1", "sgfi.layers=1", "train.batch_size=8", "sclg.knn=2"),
    *("train.epochs=2", "optim.lr_text=1e-3", "train.cpu=true"),
]


def table_of():
    """Dialogues of five that cross the splits; every text names its row by its words."""
    rng = np.random.default_rng(0)
    rows = range(len(SPLITS))
    return pd.DataFrame(
        {
            "id": [f"u{i:02d}" for i in rows],
            "video": [f"{i}.mp4" for i in rows],
            "split": SPLITS,
            "text": [" ".join(WORDS[int(digit)] for digit in f"{i:03o}") for i in rows],
            "dialogue": [f"d{i // 5}" for i in rows],
            "turn": [i % 5 for i in rows],
            "label": rng.uniform(-3, 3, len(SPLITS)).round(1),
        }
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    table = table_of()
    Manifest(CARD, table).save(place / "data" / CARD.name)
    rng = np.random.default_rng(1)
    records = []
    for i, name in enumerate(table["id"]):
        status, frames = ("failed", 0) if i in FAILED else ("ok", 2 + i % 3)
        why = "broken" if i in FAILED else ""
        records.append(Record(name, status, why, 1.0, frames, frames, frames))
    rows = sum(record.audio_frames for record in records)
    values = {m: rng.normal(size=(rows, width)).astype(np.float32) for m, width in WIDTHS.items()}
    store = place / "stores" / CARD.name / "tiny.zarr"
    Parts(store).write(records, values, "float16")
    recipe = Recipe.with_one_encoder(CARD.name, "tiny", "0" * 64, {}, {"fps": 2}, 1, "0" * 64)
    publish(store, recipe, WIDTHS, {}, list(table["id"]))
    for name in ("xlnet", "t5"):
        save_language_model(name, place / name)
    return place


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def load(place, table, *overrides, model="xlnet"):
    config = make_config(None, [f"text.model={place / model}", *overrides])
    cache = FeatureStore.open(place / "stores" / CARD.name / "tiny.zarr")
    tokenizer = load_tokenizer(config.text.model)
    return load_splits(
        Manifest(CARD, table), cache, Task.from_card(CARD), tokenizer, config
    ), tokenizer


@pytest.mark.parametrize(("one", "other"), [(0, 27), (3, 18), (17, 23)])
def test_an_id_in_two_splits_is_refused(place, one, other):
    table = table_of()
    again = table.iloc[[one]].assign(split=SPLITS[other])
    shared = table.loc[one, "id"]
    where = " and ".join(sorted({SPLITS[one], SPLITS[other]}))
    with pytest.raises(ValueError, match=f"1 ids are in several splits.*'{shared}' in {where}"):
        load(place, pd.concat([table, again]))


def test_the_command_refuses_a_leak_in_one_line(here, capsys):
    table, before = table_of(), list(here.glob("runs/**"))
    table.loc[27, "id"] = table.loc[0, "id"]
    Manifest(CARD, table).save("leaky")
    assert main(["fit", "dataset=./leaky", f"text.model={here}/xlnet", *FAST]) == 1
    error = capsys.readouterr().err
    assert "ids are in several splits" in error
    assert error.count("\n") == 1
    assert list(here.glob("runs/**")) == before


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["train", "valid", "test"]))))
def test_a_leak_is_found_wherever_it_is(place_rows):
    table = pd.DataFrame(place_rows, columns=["id", "split"]).astype({"id": "string"})
    leaks = any(len({s for i, s in place_rows if i == one}) > 1 for one, _ in place_rows)
    if leaks:
        with pytest.raises(ValueError, match="several splits"):
            check_no_leak(table)
    else:
        check_no_leak(table)


def test_no_split_is_read_before_it_is_needed(place):
    splits, _ = load(place, table_of())
    splits["train"].batch(torch.tensor([0, 1]))
    assert "features" in vars(splits["train"])
    assert not {"features", "labels"} & set(vars(splits["test"]))
    assert len(splits["test"]) == 5
    assert splits["test"].dropped == ["u25"]
    assert set(splits["train"].features.values) == {"audio", "vision"}  # the text is not loaded


def test_what_is_wrong_with_the_test_split_comes_out_at_once(place):
    table = table_of()
    with pytest.raises(ValueError, match=r"utterance 'u2.' has 4 audio frames"):
        load(
            place,
            table[(table["split"] == "test") | (table.index % 3 == 0)],
            "perceiver.max_frames=3",
        )
    with pytest.raises(ValueError, match="have no label, the first is 'u26'"):
        load(place, table.assign(label=table["label"].where(table["id"] != "u26")))
    renamed = table.replace({"id": {"u26": "new"}})
    with pytest.raises(ValueError, match="has no features of 1 utterances of the split 'test'"):
        load(place, renamed)


def test_a_run_reads_the_test_split_once_and_last(here, monkeypatch, capsys):
    read = []
    select, fit = FeatureStore.select, loop.fit

    def watched_select(self, ids, *more, **named):
        read.append(sorted(ids))
        return select(self, ids, *more, **named)

    def watched_fit(*arguments):
        fitted = fit(*arguments)
        read.append("the model is chosen")
        return fitted

    monkeypatch.setattr(FeatureStore, "select", watched_select)
    monkeypatch.setattr(loop, "fit", watched_fit)
    words = [f"dataset={CARD.name}", "text.model=xlnet", "text.context_turns=2", *FAST]
    assert main(["fit", *words]) == 0
    said = capsys.readouterr().out
    table = table_of().drop(index=list(FAILED))
    ids = {name: sorted(rows["id"]) for name, rows in table.groupby("split")}
    assert read[-2:] == ["the model is chosen", ids["test"]]
    assert read.count(ids["test"]) == 1

    folder = here / said.rsplit("run: ", 1)[1].strip()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["utterances"] == {name: len(ids[name]) for name in ("train", "valid", "test")}
    assert metrics["dropped"] == {"train": ["u02"], "valid": ["u20"], "test": ["u25"]}
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert {name: sorted(rows["id"]) for name, rows in predictions.groupby("split")} == ids
    assert "15 train, 5 valid, 5 test utterances" in said
    for name, dropped in metrics["dropped"].items():
        assert f"{name}: excluded 1 utterances without features: {dropped[0]}" in said
    assert main(["evaluate", str(folder)]) == 0  # the context is found again


def test_an_encoder_decoder_learns_too(here, capsys):
    words = [f"dataset={CARD.name}", "text.model=t5", "text.trainable=1", *FAST]
    assert main(["fit", *words, "train.epochs=4", "optim.lr=5e-3"]) == 0
    folder = here / capsys.readouterr().out.rsplit("run: ", 1)[1].strip()
    losses = [
        line["train/total"] for line in json.loads((folder / "metrics.json").read_text())["history"]
    ]
    assert losses[-1] < losses[0]


def test_context_stays_within_its_split(place):
    """A dialogue that continues in another split starts again there; failed clips are context."""
    table = table_of()
    for model in ("xlnet", "t5"):
        splits, tokenizer = load(place, table, "text.context_turns=2", model=model)
        texts, places = dict(zip(table["id"], table["text"], strict=True)), table.set_index("id")
        separator = tokenizer.sep_token or tokenizer.eos_token
        for name, split in splits.items():
            tokens = split.tokens.batch(torch.arange(len(split)))
            for row, i in enumerate(split.ids):
                mine = places.loc[i]
                same = places[(places["split"] == name) & (places["dialogue"] == mine["dialogue"])]
                before = same[same["turn"] < mine["turn"]].sort_values("turn").index[-2:]
                expected = f"{separator} ".join([*(texts[b] for b in before), texts[i]])
                said = tokenizer.decode(tokens.ids[row][tokens.mask[row]])
                ends = tokenizer.decode(tokenizer("")["input_ids"])
                assert said.removesuffix(ends).replace(" ", "") == expected.replace(" ", "")
    assert any(i in FAILED and SPLITS[i] == SPLITS[i + 1] for i in FAILED)


def test_context_without_dialogues_is_refused(place):
    table = table_of().drop(columns=["dialogue", "turn"])
    with pytest.raises(ValueError, match="has neither a column `context` nor"):
        load(place, table, "text.context_turns=1")
    splits, _ = load(place, table.assign(context="good\nbad"), "text.context_turns=1")
    alone, _ = load(place, table)
    assert (splits["train"].tokens.lengths - alone["train"].tokens.lengths).tolist() == [2] * 15


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("text.context_turns=-1", "must be 0 or above"),
        ("text.source=features", "text.source=model"),
    ],
)
def test_impossible_contexts(wrong, says):
    with pytest.raises(ValueError, match=says):
        make_config(None, ["text.context_turns=1", wrong])
