"""From a small real store and manifest to finished runs, through the command line."""

import json

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from cache import FeatureStore, Parts, Recipe, Record, find, publish
from manifests import Card, Manifest
from train.__main__ import main
from train.batch_order import epoch_batches
from train.config import make_config
from train.data import load_splits
from train.loss_meter import LossMeter
from train.methods.semanticmac import PSEUDO, SemanticMAC
from train.model.language_model import load_tokenizer, tokenize
from train.task import Task

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "so", "the", "film", "was"]
SPLITS = ["train"] * 48 + ["valid"] * 12 + ["test"] * 12
FAST = [
    "width=16",
    "perceiver.layers=1",
    "sgfi.layers=1",
    "train.batch_size=8",
    "train.epochs=5",
    "optim.lr=5e-3",
    "optim.lr_text=1e-3",
    "sclg.knn=4",
    "train.cpu=true",
]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A tiny BERT with random weights and a tokenizer of ten words."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", **special
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS), num_hidden_layers=2, **sizes)).save_pretrained(
        folder
    )
    return str(folder)


def write_dataset(root, card):
    """A manifest whose label shows in text, sound and picture, and its store; two rows failed."""
    rng = np.random.default_rng(0)
    score = rng.uniform(-3, 3, len(SPLITS)).round(1)
    ids = [f"u{i:03d}" for i in rng.permutation(len(SPLITS))]
    table = pd.DataFrame(
        {
            "id": ids,
            "video": [f"{i}.mp4" for i in ids],
            "split": SPLITS,
            "text": [
                " ".join(["the film was", *["so"] * (i % 4), "good" if y > 0 else "bad"])
                for i, y in enumerate(score)
            ],
        }
    )
    if card.task == "regression":
        table["label"] = score
    elif card.task == "classification":
        table["label"] = np.where(score > 0, "happy", "sad")
    else:
        table["happy"], table["loud"] = (score > 0).astype(int), (abs(score) > 1).astype(int)
    Manifest(card, table).save(root / "data" / card.name)
    store = root / "stores" / card.name / "tiny.zarr"
    recipe = Recipe.with_one_encoder(card.name, "tiny", "0" * 64, {}, {"fps": 2}, 1, "0" * 64)
    records, audio, vision = [], [], []
    for i, (name, y) in enumerate(zip(ids, score, strict=True)):
        frames = 2 + i % 5
        status = {3: "no_audio", 5: "failed", 70: "failed"}.get(i, "ok")
        heard = 0 if status != "ok" else frames
        seen = 0 if status == "failed" else frames
        records.append(Record(name, status, "" if status == "ok" else "broken", 1.0, heard, seen))
        audio.append(y + rng.normal(size=(heard, 3)))
        vision.append(y + rng.normal(size=(seen, 4)))
    features = {"audio": np.concatenate(audio), "vision": np.concatenate(vision)}
    Parts(store).write(records, {k: v.astype(np.float32) for k, v in features.items()}, "float16")
    return publish(store, recipe, {"audio": 3, "vision": 4}, {}, ids)


CARDS = {
    "score": Card("score", "Scores", "regression", range=[-3, 3], preset=""),
    "one": Card(
        "one", "One class", "classification", classes=["happy", "sad"], metrics="emotion", preset=""
    ),
    "many": Card(
        "many",
        "Any classes",
        "multilabel",
        ["happy", "loud"],
        ["happy", "loud"],
        metrics="mosei_emotion",
        preset="",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    for card in CARDS.values():
        write_dataset(root, card)
    return root


@pytest.fixture
def fit(place, language_model, monkeypatch, capsys):
    """Train through the command line; returns the run's folder and what was printed."""
    monkeypatch.chdir(place)

    def run(dataset, *overrides):
        arguments = [f"dataset={dataset}", f"text.model={language_model}", *FAST, *overrides]
        assert main(["fit", *arguments]) == 0, capsys.readouterr().err
        output = capsys.readouterr().out
        return place / output.rsplit("run: ", 1)[1].strip(), output

    return run


def test_a_run_learns_and_leaves_its_files(fit, capsys):
    folder, output = fit("score")
    assert "train: excluded 1 utterances without features" in output
    assert output.count("epoch ") >= 5
    found = {path.name for path in folder.iterdir()}
    assert found == {
        "card.yaml",
        "config.yaml",
        "encoder.json",
        "environment.json",
        "last.safetensors",
        "log",
        "metrics.json",
        "model.safetensors",
        "predictions.parquet",
    }
    assert list((folder / "log").rglob("events.*"))

    metrics = json.loads((folder / "metrics.json").read_text())
    losses = [line["train/total"] for line in metrics["history"]]
    assert losses[-1] < 0.6 * losses[0]
    assert metrics["test"]["MAE"] < 0.6 * metrics["trivial"]["MAE"]
    assert metrics["trivial"]["Corr"] is None
    valid = [line["valid/loss"] for line in metrics["history"]]
    assert metrics["best_epoch"] == 1 + valid.index(min(valid))

    assert Card.load(folder / "card.yaml") == CARDS["score"]
    best, last = (load_file(folder / f"{name}.safetensors") for name in ("model", "last"))
    assert best.keys() == last.keys()
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert same == (metrics["best_epoch"] == 5)

    environment = json.loads((folder / "environment.json").read_text())
    assert environment["cache_digest"] == FeatureStore.open(find("score")).digest
    assert environment["manifest_digest"] == Manifest.load("score").digest

    table = pd.read_parquet(folder / "predictions.parquet").set_index("id")
    rows = Manifest.load("score").table.set_index("id")
    assert table["split"].value_counts().to_dict() == {"train": 47, "valid": 12, "test": 11}
    assert np.allclose(table["truth"], rows.loc[table.index, "label"])
    assert np.allclose(table["prediction"], table["M"])
    train = table[table["split"] == "train"]
    assert train[["pseudo_S", "pseudo_t", "pseudo_a", "pseudo_v"]].abs().to_numpy().max() <= 3
    assert not np.allclose(train["pseudo_a"], train["truth"])
    assert table.loc[table["split"] == "test", "pseudo_S"].isna().all()
    test = table[table["split"] == "test"]
    assert (test["M"] - test["truth"]).abs().mean() == pytest.approx(
        metrics["test"]["MAE"], abs=1e-6
    )

    for split in ("test", "valid"):
        assert main(["evaluate", str(folder), "--split", split]) == 0
        assert f"{metrics[split]['MAE']:.3f}" in capsys.readouterr().out


def test_same_seed_same_result_other_seed_other_result(fit):
    runs = [fit("score", "train.epochs=2", f"seed={seed}")[0] for seed in (1, 1, 2)]
    weights = [(run / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1] != weights[2]
    tables = [pd.read_parquet(run / "predictions.parquet") for run in runs]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert not np.allclose(tables[0]["M"], tables[2]["M"])


@pytest.mark.parametrize("dataset", ["one", "many"])
def test_classes(fit, dataset):
    folder, _ = fit(dataset, "train.epochs=4")
    metrics = json.loads((folder / "metrics.json").read_text())
    name = {"one": "wF1", "many": "wF1_average"}[dataset]
    assert metrics["test"][name] > metrics["trivial"][name]
    scores = [(line[f"valid/{name}"], -line["valid/loss"]) for line in metrics["history"]]
    assert metrics["best_epoch"] == 1 + scores.index(max(scores))
    table = pd.read_parquet(folder / "predictions.parquet")
    if dataset == "one":
        assert set(table["truth"]) == {"happy", "sad"}
        assert np.allclose(table[["t_happy", "t_sad"]].sum(axis=1), 1)
    else:
        assert set(table["prediction_loud"]) <= {0, 1}
        assert table["pseudo_a_loud"].dropna().between(0, 1).all()


def test_of_epochs_with_one_f1_the_lowest_loss_is_chosen(fit):
    # Rates this low change the probabilities, but no predicted class.
    keys = ("train.epochs=4", "optim.lr=1e-7", "optim.lr_text=1e-8", "dropout=0")
    metrics = json.loads((fit("one", *keys)[0] / "metrics.json").read_text())
    losses = [line["valid/loss"] for line in metrics["history"]]
    assert len({line["valid/wF1"] for line in metrics["history"]}) == 1
    assert metrics["best_epoch"] == 1 + losses.index(min(losses)) > 1


def test_patience_ends_a_run_that_does_not_improve(fit):
    # A rate this high throws the weights about: the first epochs are soon not beaten any more.
    keys = ("train.epochs=12", "train.patience=2", "optim.lr=0.5", "optim.lr_text=0.5")
    metrics = json.loads((fit("score", *keys)[0] / "metrics.json").read_text())
    epochs, best = len(metrics["history"]), metrics["best_epoch"]
    assert epochs == best + 2 < 12


def test_a_method_without_weights_sees_one_epoch(fit):
    folder, _ = fit("score", "method=mean")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics["history"]) == 1
    assert metrics["test"]["MAE"] == pytest.approx(metrics["trivial"]["MAE"])


def test_half_precision(fit):
    runs = []
    for precision in ([], ["train.precision=bf16"]):
        AcceleratorState._reset_state(True)  # Accelerate fixes the precision once per process
        keys = ["train.epochs=1", "dropout=0", *precision]
        runs.append(load_file(fit("score", *keys)[0] / "last.safetensors"))
    AcceleratorState._reset_state(True)
    whole, half = (torch.cat([x.flatten() for x in run.values()]) for run in runs)
    assert half.dtype == torch.float32  # the weights stay whole, only their products are not
    # The six rates of the warm-up add up to 0.0175, what AdamW moves a weight by; rounding to 8
    # bits leads it astray by about 1e-4 on average.
    astray = (half - whole).abs()
    assert 1e-6 < float(astray.mean()) < 5e-4
    assert float(astray.max()) < 2 * 0.0175


def test_store_as_an_option_between_keys(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ["fit", "dataset=score", "--cache", "nowhere.zarr", "train.epochs=1"]
    assert main(words) == 1
    assert "nowhere.zarr does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "dataset=score", "--nonsense"])


def test_mistakes_are_one_line(place, language_model, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    base = ["dataset=score", f"text.model={language_model}", *FAST]
    for wrong, says in {
        "perceiver.max_frames=4": "raise perceiver.max_frames",
        "text.model=models/nosuch": "models/nosuch: no such folder",
        "text.model=builtin:nosuch": "unknown language model",
        "method=nosuch": "unknown method 'nosuch'",
        "dataset=nosuch": "no such file",
        "cache=stores/one/tiny.zarr": "has features of 'one', not of 'score'",
        "cache=stores/none.zarr": "none.zarr does not exist",
    }.items():
        assert main(["fit", *base, wrong]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert main(["evaluate", "runs/nosuch"]) == 1
    assert "is not the folder of a run" in capsys.readouterr().err


def test_mistakes_are_reported_before_a_language_model_is_loaded(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    base = ["dataset=score", "text.model=org/none", *FAST]
    for wrong, says in {
        ("method=nosuch",): "unknown method 'nosuch'",
        ("options.rank=3",): "method=semanticmac has no options",
        ("method=lmf", "options.rank=0"): "'options.rank' is 0: it must be above 0",
        ("cache=stores/none.zarr",): "none.zarr does not exist",
    }.items():
        assert main(["fit", *base, *wrong]) == 1
        assert says in capsys.readouterr().err


def test_long_videos_can_be_subsampled(fit):
    fit("score", "train.epochs=1", "perceiver.max_frames=4", "perceiver.long_video=subsample")


def test_an_infinite_loss_names_term_and_batch():
    meter = LossMeter(["a", "b", "c", "d"], every=2)
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    meter.update(torch.tensor([0, 1]), {"task_M": good, "inter": good, "total": good})
    with pytest.raises(ValueError, match=r"'inter' is not finite in the batch: d, c"):
        meter.update(torch.tensor([3, 2]), {"task_M": good, "inter": bad, "total": bad})


@pytest.fixture
def broken(place, language_model, monkeypatch, capsys):
    """The output of a run with one pseudo label set to NaN, and that label's batch."""
    monkeypatch.chdir(place)
    manifest = Manifest.load("score")
    config = make_config(None, FAST)
    cache, tokenizer = FeatureStore.open(find("score")), load_tokenizer(language_model)
    train = load_splits(manifest, cache, Task.from_card(manifest.card), tokenizer, config)["train"]
    order = epoch_batches(train.text_lengths, config.train.batch_size, config.seed, 1, 100)
    begin = SemanticMAC.begin

    def begin_with_one_label_lost(self, labels_NC):
        begin(self, labels_NC)
        self.pseudo.labels[PSEUDO.index("a"), order[3][-1]] = torch.nan

    monkeypatch.setattr(SemanticMAC, "begin", begin_with_one_label_lost)
    assert len(order) == 6 < config.train.check_every
    # Of mse, unlike l1, the gradient is lost too: all weights, and all terms of the next batch.
    keys = [f"text.model={language_model}", *FAST, "loss.regression=mse"]
    assert main(["fit", "dataset=score", *keys]) == 1
    return capsys.readouterr().err, [train.ids[i] for i in order[3]]


def test_a_run_names_the_batch_that_broke(broken):
    output, batch = broken  # and not one of those after it, before anybody looked
    assert output.endswith(f" is not finite in the batch: {', '.join(batch)}\n")
    assert output.count("\n") == 1


def test_a_run_names_the_term_that_broke(broken):
    assert "the loss term 'task_a' is not finite" in broken[0]


def test_means_weigh_utterances_not_batches():
    meter = LossMeter(["a", "b", "c"], every=2)
    meter.update(torch.tensor([0, 1]), {"total": torch.tensor(1.0)})
    meter.update(torch.tensor([2]), {"total": torch.tensor(4.0)})
    assert meter.end_epoch() == {"total": 2.0}


def test_splits_join_by_id(place, language_model, monkeypatch):
    monkeypatch.chdir(place)
    manifest = Manifest.load("score")
    cache = FeatureStore.open(find("score"))
    config = make_config(None, ["text.max_tokens=5"])
    splits = load_splits(
        manifest, cache, Task.from_card(manifest.card), load_tokenizer(language_model), config
    )
    train = splits["train"]
    assert len(train.dropped) == 1
    assert train.tokens.cut == 48 - 1  # every text has at least four words and two marks
    labels = manifest.table.set_index("id")["label"]
    for name, split in splits.items():
        assert split.ids == sorted(split.ids), name
        assert np.allclose(split.labels[:, 0], labels[split.ids])
    batch = train.batch(torch.tensor([7, 2]))
    for row, place_in_split in enumerate((7, 2)):
        own = cache.select([train.ids[place_in_split]])
        part = batch.vision.values.split(batch.vision.lengths.tolist())[row]
        assert torch.equal(part, own.values["vision"])
    seen = torch.cat([batch.index for batch in train.in_order(5)])
    assert sorted(seen.tolist()) == list(range(len(train)))


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_are_padded_on_the_models_side(language_model, side):
    tokenizer = load_tokenizer(language_model)
    tokenizer.padding_side = side
    texts = ["good film", "the film was so so bad", ""]
    tokens = tokenize(tokenizer, texts, 8).batch(torch.tensor([2, 0, 1]))
    theirs = tokenizer([texts[2], texts[0], texts[1]], padding=True, return_tensors="pt")
    assert torch.equal(tokens.ids, theirs["input_ids"])
    assert torch.equal(tokens.mask, theirs["attention_mask"].bool())
