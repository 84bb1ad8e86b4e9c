"""The command line of ``python -m cache``: help, renamed options, answers without large imports."""

import argparse

import pytest

from cache.__main__ import main
from cache.share.push import push
from cache.share.verify import verify
from manifests.printing import escape_controls, format_bytes, preview
from tests.stores import RECIPE, build_store

NAME = f"toy/{RECIPE.store_name}"
COMMANDS = ("info", "verify", "diff", "push", "pull", "list", "gc", "export", "import")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_ends_with_two_examples_of_the_command(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"], prog="semanticmac cache")
    shown = capsys.readouterr().out
    examples = shown.rpartition("examples:\n")[2].splitlines()
    assert len(examples) == 2
    for example in examples:
        assert example.startswith(f"  {' '.join(['semanticmac cache', *command])} ")
    assert argparse.SUPPRESS not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_former_name_of_the_folder_of_stores_still_works_with_a_note(tmp_path, capsys):
    share, pulled = str(tmp_path / "share"), tmp_path / "pulled"
    push(build_store(tmp_path / "stores"), share)
    assert main(["pull", share, "--to", str(pulled)]) == 0
    assert (
        capsys.readouterr().err
        == "note: --to is now called --stores; the next release drops the old name\n"
    )
    assert verify(pulled / NAME) == []


def test_text_from_elsewhere_cannot_control_the_terminal():
    assert escape_controls("a\x1b[31m\ré\n") == "a\\x1b[31m\\ré\n"


def test_a_preview_counts_what_it_leaves_out():
    assert preview(range(3), 3) == "0, 1, 2"
    assert preview({"a": 1, "b": 2, "c": 3}, 1) == "a, and 2 more"


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 B"), (1000, "1.0 KB"), (25 * 10**11, "2.5 TB")]
)
def test_sizes_have_decimal_units(size, text):
    assert format_bytes(size) == text
