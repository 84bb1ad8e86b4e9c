"""The help of the train sub-commands."""

import shlex

import pytest

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
