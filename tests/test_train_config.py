"""Presets, overrides, and the messages for wrong ones."""

import copy
import re
import shlex
from dataclasses import is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import get_type_hints

import pytest

from manifests import Manifest
from tests.datasets import write_scores
from train.__main__ import main
from train.config import (
    PRESETS,
    Config,
    choose_config,
    config_digest,
    load_config,
    make_config,
    preset_names,
    save_config,
)
from train.data import resolve
from train.methods import METHODS, PROBES

TABLE = {  # epochs, batch, lr of the language model, lr of the rest, decay, schedule, dropout
    "mosi": (20, 32, 4e-5, 5e-4, 5e-4, "constant", 0.1),
    "mosei": (10, 128, 4e-5, 1e-4, 1e-3, "cosine", 0.1),
    "sims": (20, 64, 3e-6, 1e-4, 1e-3, "constant", 0.1),
    "simsv2": (20, 64, 3e-6, 1e-4, 1e-3, "constant", 0.1),
    "mosei_emotion": (10, 64, 5e-6, 1e-4, 1e-2, "constant", 0.3),
    "iemocap": (10, 64, 1e-5, 1e-4, 1e-2, "constant", 0.2),
    "meld": (20, 64, 1e-5, 1e-4, 1e-3, "cosine", 0.2),
    "urfunny": (10, 64, 1e-5, 1e-4, 1e-4, "constant", 0.3),
    "mustard": (20, 64, 5e-5, 1e-4, 1e-3, "cosine", 0.1),
}

OPTIONS = {f"{name}.": method.Options for name, method in (METHODS | PROBES).items()}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name):
    config = make_config(name, ["dataset=x"])
    if name in TABLE:
        optim = config.optim
        assert config.perceiver.long_video == "subsample"  # releases hold clips of minutes
        assert TABLE[name] == (
            config.train.epochs,
            config.train.batch_size,
            optim.lr_text,
            optim.lr,
            optim.weight_decay,
            optim.schedule,
            config.dropout,
        )


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_documents_its_use_and_the_expected_metrics(name):
    lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line[1:] for line in takewhile(lambda line: line.startswith("#"), lines)]
    code = "\n".join(line for line in head if line.startswith("     "))
    commands = [shlex.split(command) for command in code.replace("\\\n", " ").splitlines()]
    for command in commands:
        assert command[:5] == ["python", "-m", "train", "fit", f"dataset={name}"]
        make_config(name, command[4:])  # every key is one
    prose = " ".join(" ".join(line for line in head if not line.startswith("     ")).split())
    assert re.search(r"Licence of the data: \S+", prose)
    if name in TABLE:
        scores = re.search(r"The paper, with (.+) \(mean of five seeds\)", prose)
        assert re.search(r"(Acc|F1)\S* \d\d\.\d", scores[1])
        # The keys of the other settings of the table are given.
        in_context = [any("text.context_turns=" in word for word in each) for each in commands]
        assert in_context == ([False, True] if "as context" in prose else [False])
    else:
        assert "o published score" in prose or "has no score" in prose
        assert len(commands) == 1


def test_the_papers_table_is_complete():
    assert set(preset_names()) == {*TABLE, "demo", "ravdess"}


def test_a_later_layer_wins_and_a_saved_one_comes_back(tmp_path):
    config = make_config("mosi", ["seed=7", "optim.lr=1e-2", "text.trainable=2", "sccl.bins=[0,1]"])
    assert (config.seed, config.optim.lr, config.train.batch_size) == (7, 1e-2, 32)
    assert (config.text.trainable, config.sccl.bins) == (2, [0.0, 1.0])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path) == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sclg.kn=3", "unknown key 'sclg.kn'; the group 'sclg' has: enabled, knn"),
        ("sed=3", "unknown key 'sed'; a run has: dataset"),
        ("train.epochs=many", "key 'train.epochs' must be a whole number, not many"),
        ("train.epochs=2.5", "key 'train.epochs' must be a whole number, not 2.5"),
        ("optim.lr=fast", "key 'optim.lr' must be a number, not fast"),
        ("sccl.enabled=5.5", "key 'sccl.enabled' has an invalid value"),
        ("train.epochs=0", "must be above 0"),
        ("train.patience=-1", "must be 0 or above"),
        ("sgfi.gate=both", "use one of query, output, none"),
        ("text.trainable=some", "use all, none or 1 and above"),
        ("text.trainable=0", "use all, none or 1 and above"),
        ("optim.clip=-1", "must be 0 or above"),
        ("sgfi.bridge_tokens=-1", "must be 0 or above"),
        ("sccl.bins=[1,0]", "the borders must increase"),
        ("sgfi.heads=3", "is not divisible by sgfi.heads=3"),
        ("dropout=1.5", "key 'dropout' is 1.5: it must be 0 or above, and below 1"),
        ("optim.lr=nan", "must be 0 or above"),
        ("loss.weights.t=-1", "must be 0 or above"),
        ("seed=-1", "must be 0 or above"),
        ("demo", "not of the form key=value"),
    ],
)
def test_wrong_overrides_are_one_clear_line(override, says, capsys):
    assert main(["fit", "dataset=demo", override]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_dataset_is_needed(capsys):
    assert main(["fit", "seed=3"]) == 1
    assert "dataset=NAME" in capsys.readouterr().err


def test_unknown_preset():
    with pytest.raises(ValueError, match="unknown preset 'nosuch'; choose from demo"):
        make_config("nosuch")


def test_a_resumed_run_takes_no_keys(capsys):
    for key in ("seed=2", "--cache=stores/x"):
        with pytest.raises(SystemExit, match="2"):
            main(["fit", "--resume", "runs/x", key])
        assert "error: --resume takes no keys" in capsys.readouterr().err


def test_bad_usage():
    with pytest.raises(SystemExit) as exit_status:
        main(["learn"])
    assert exit_status.value.code == 2


@pytest.mark.parametrize("old", ["no", "'no'"])
def test_the_old_word_for_full_precision_still_works(old, tmp_path, capsys):
    """In a run of an earlier release, or on the command line, where a note names the new value."""
    word = f"train.precision={old}"
    assert make_config(None, [word]) == make_config(None)
    (tmp_path / "config.yaml").write_text(f"train: {{precision: {old}}}")
    assert load_config(tmp_path) == make_config(None)
    assert main(["fit", "dataset=nowhere", word]) == 1
    assert capsys.readouterr().err.count("note: write train.precision=fp32") == 1


def groups(kind, prefix):
    """Every field of a dataclass and of those in it: its key and its type."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if is_dataclass(hint):
            yield from groups(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


@pytest.mark.parametrize(("prefix", "kind"), [("", Config), *OPTIONS.items()])
def test_every_number_and_word_has_a_range(prefix, kind):
    """Names and paths have no range: the file or module is looked up."""
    names = {"dataset", "preset", "method", "name", "cache", "stores", "runs", "text.model"}
    names |= {"options", "probe.run"}
    for key, hint in groups(kind, prefix):
        ranges = getattr(hint, "__metadata__", ())
        assert bool(ranges) == (hint is not bool and key not in names), key


def test_the_digest_covers_what_differs_from_the_defaults_and_has_an_effect():
    default = config_digest(make_config(None))
    same = [f"{key}={value}" for key, value in (("sclg.knn", 10), ("sccl.bins", "[0]"))]
    same += [
        "name=mine",
        "runs=elsewhere",
        "stores=elsewhere",
        "cache=x.zarr",
        "train.save_every=3",
    ]
    assert config_digest(make_config(None, same)) == default
    changed = ["sclg.knn=11", "sccl.bins=[1]", "text.model=x", "options.rank=4", "seed=2"]
    digests = {config_digest(make_config(None, [key])) for key in changed}
    assert len(digests | {default}) == 1 + len(changed)


def test_digests_do_not_change_between_releases():
    """Runs record digests: with a changed digest, finished studies are trained again."""
    config = make_config("mosi", ["dataset=mosi", "text.model=bert-base-uncased"])
    assert config_digest(config).startswith("386d7db9e196e02a")


def test_resolving_fills_a_copy_and_keeps_the_digest(tmp_path, monkeypatch):
    write_scores(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = choose_config(["dataset=scores", "text.model=x"])
    before = copy.deepcopy(config)
    full = resolve(config, Manifest.load("scores"))
    assert config == before
    assert Path(full.cache).is_dir()
    assert config_digest(full) == config_digest(config)
    assert resolve(full, Manifest.load("scores")) == full
    card = resolve(choose_config(["dataset=scores"]), Manifest.load("scores"))
    assert card.text.model == Manifest.load("scores").card.language_model
