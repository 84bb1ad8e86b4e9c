"""The command line of train: help, and errors before slow imports."""

import shlex
import subprocess
import sys

import pytest

from manifests import Card
from train.__main__ import main

COMMANDS = ("predict", "metrics", "compare", "labels", "ablations", "compare-methods", "search")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_two_examples_that_are_valid(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"], prog="semanticmac train")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) < 80
    examples = shown.rpartition("examples:\n")[2].splitlines()
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example)
        assert words[:3] == ["semanticmac", "train", command]
        assert main(words[2:]) == 1  # no such run or dataset; wrong usage would exit with 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["cache=none.zarr"], "none.zarr does not exist"),
        (["stores=none"], "no published store of 'own'"),
        (["sclg.knm=3"], "unknown key 'sclg.knm'"),
    ],
)
def test_wrong_keys_and_missing_stores_are_reported_before_slow_imports(keys, message, tmp_path):
    folder = tmp_path / "data" / "own"
    Card("own", "Own", "regression", range=[-3, 3], preset="").save(folder / "card.yaml")
    (folder / "manifest.parquet").touch()
    code = (
        "import sys; from train.__main__ import main; main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'zarr', 'pandas', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "fit", "dataset=own", *keys]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert message in done.stderr
    assert done.returncode == 0, done.stderr
